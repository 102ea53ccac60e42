"""What the source of a revision tells about how it may be run."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alembic.script import Script

__all__ = ["Traits", "traits_of"]

# Whoever imports one of these makes values of its own, or asks the world around: what is written
# down once must not be what every tenant gets.
_WORLD: Final = re.compile(
    r"(asyncio|getpass|http|httpx2?|io|os|pathlib|platform|random|requests|secrets|shutil|socket"
    r"|subprocess|tempfile|threading|time|urllib|uuid)(\.|$)"
)
_ASKS: Final = {
    "is_offline_mode": "it asks whether it is only written down",
    "as_sql": "it asks whether it is only written down",
    "attributes": "it asks how it is being run",
    "get_x_argument": "it asks how it is being run",
}
_CLOCKS: Final = frozenset(("now", "today", "utcnow"))


@dataclass(frozen=True, slots=True)
class Traits:
    """What one revision needs.

    Args:
        apart: Whether a part of it cannot be in a transaction.
        reason: Why it must be run by Alembic at every tenant, in a sentence; None if it need not.
    """

    apart: bool = False
    reason: str | None = None


def traits_of(script: Script) -> Traits:
    """Return what a revision's source tells.

    A revision says `online_only = True` where the source does not tell, such as one that takes a
    secret from the application's own modules. Values made while a revision is written down are
    also found by writing it down twice; what is found here is what twice would hide, such as the
    day's date.
    """
    tree = ast.parse(Path(script.path).read_bytes())
    nodes = list(ast.walk(tree))
    apart = any(
        isinstance(node, ast.Attribute) and node.attr == "autocommit_block" for node in nodes
    )
    if getattr(script.module, "online_only", False):
        return Traits(apart, "it says online_only")
    for node in nodes:
        reason = _reason(node)
        if reason is not None:
            return Traits(apart, f"line {getattr(node, 'lineno', '?')}: {reason}")
    return Traits(apart)


def _reason(node: ast.AST) -> str | None:
    match node:
        case ast.Import(names=names):
            modules = [name.name for name in names]
        case ast.ImportFrom(module=str(module)):
            modules = [module]
        case ast.Call(func=ast.Name(id="open")):
            return "it reads a file"
        case ast.Call(func=ast.Attribute(attr=attr) as called) if attr in _CLOCKS:
            # sa.func.now() is the database's clock, asked at each tenant.
            return None if _is_of_database(called) else "it asks for the time"
        case ast.Attribute(attr=attr) if attr in _ASKS:
            return _ASKS[attr]
        case _:
            return None
    world = next((name for name in modules if _WORLD.match(name)), None)
    return None if world is None else f"it imports {world}"


def _is_of_database(called: ast.Attribute) -> bool:
    match called.value:
        case ast.Attribute(attr="func") | ast.Name(id="func"):
            return True
    return False
