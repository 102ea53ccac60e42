"""What users may import, and which room may import which."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import tenantsync

ROOT = Path(__file__).parents[2]


def test_the_front_door_lists_exactly_what_it_opens():
    """Every public name is in __all__, sorted, and nothing else is."""
    public = {
        name
        for name, value in vars(tenantsync).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert sorted(public) == tenantsync.__all__


@pytest.mark.parametrize("name", tenantsync.__all__)
def test_everything_at_the_front_door_says_what_it_is(name):
    """Each name has a docstring of its own."""
    assert getattr(tenantsync, name).__doc__


def modules():
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "tenantsync").rglob("*.py")
        if path.name != "__init__.py"
        and "migrations" not in path.parts  # Alembic reads those by path; nobody imports them
    )


@pytest.mark.parametrize("name", modules())
def test_every_module_lists_what_it_opens(name):
    """Each module has an __all__ of names that it really has."""
    module = import_module(name)

    assert list(module.__all__) == sorted(module.__all__, key=sort_key)
    assert all(hasattr(module, public) for public in module.__all__)


def sort_key(name):
    """Constants, then classes, then functions: the order of ruff's rule RUF022."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


def test_importing_the_package_opens_no_door_that_needs_an_extra():
    """`import tenantsync` works without a server, a framework or a terminal."""
    program = (
        "import sys, tenantsync; print(sorted({name.split('.')[0] for name in sys.modules}"
        " & {'uvicorn', 'fastapi', 'flask', 'django', 'rich'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
    )

    assert done.stdout.strip() == "[]"


def test_arrows_between_rooms_point_down():
    """The contracts in pyproject.toml hold."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )

    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout
