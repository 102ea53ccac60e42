"""Revisions written down once, as statements that any tenant can be given.

Alembic can write down what it would execute. That is worth having only if it is what it would
execute at every tenant, so everything else is found out here: a revision that reads data, that
makes a value of its own, or that names a schema.
"""

import re
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from alembic.runtime.migration import MigrationContext
from sqlalchemy import Dialect, text
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql import ClauseElement

from tenantsync.migrate.moves import Kind, Move, Way
from tenantsync.migrate.report import State, Stopped, sentence_about
from tenantsync.migrate.scripts import ALEMBIC, VERSION_TABLE, Scripts
from tenantsync.migrate.traits import traits_of

__all__ = ["Recorder", "Recording"]

_Construct = ExecutableDDLElement | ClauseElement

_SCHEMAS: Final = ("tenantsync_rendering_one", "tenantsync_rendering_two")
_TRANSACTION: Final = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(ABORT|BEGIN|COMMIT|END|PREPARE\s+TRANSACTION|ROLLBACK(?!\s+TO)"
    r"|START)\b",
    re.IGNORECASE | re.DOTALL,
)
_DROPS: Final = re.compile(r"(?:^|;)\s*DROP\s+TABLE\b", re.IGNORECASE)


class _NeedsDatabase(Exception):
    """A revision wants something that only a tenant's database has."""


@dataclass(slots=True)
class _Gate:
    """Lets one tenant go first, and the others only when it was found to be right."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    passed: bool = False


@dataclass(frozen=True)
class Recording:
    """How places are brought from one set of revisions to the target.

    Args:
        dialect: `postgresql` or `sqlite`.
        start: The revisions that they stand at.
        end: The revisions that they stand at afterwards; empty where only Alembic knows.
        way: How it is done.
        statements: What is executed, version rows included; empty if it cannot be written down.
        revisions: The revisions that are passed.
        reason: Why it is not replayed, in a sentence.
        gate: Lets the first tenant go first.
    """

    dialect: str
    start: tuple[str, ...]
    end: tuple[str, ...]
    way: Way
    statements: tuple[str, ...] = ()
    revisions: tuple[str, ...] = ()
    reason: str | None = None
    gate: _Gate = field(default_factory=_Gate, compare=False, repr=False)

    @cached_property
    def script(self) -> bytes:
        """The statements as one."""
        return ";\n".join(self.statements).encode()

    @property
    def drops_tables(self) -> bool:
        """Whether a table may be dropped: where it cannot be written down, nobody knows."""
        if self.way is Way.NOTHING:
            return False
        return not self.statements or any(_DROPS.search(text) for text in self.statements)


class Recorder:
    """Writes down, once for each set of revisions and kind of database, and keeps it.

    Args:
        scripts: The revisions.
        move: Where the tenants are to be moved.
        may_drop: Whether a downgrade may drop tables.
    """

    def __init__(self, scripts: Scripts, move: Move, *, may_drop: bool = True) -> None:
        self._scripts = scripts
        self._may_drop = may_drop
        self._move = move
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, tuple[str, ...]], Recording | Stopped] = {}

    def recording(self, dialect: str, start: tuple[str, ...]) -> Recording:
        """Return how places at these revisions get to the target.

        Raises:
            Stopped: The revisions are none of ours, a revision ends its transaction, or tables
                would be dropped and may not be.
        """
        with self._lock:
            kept = self._kept.get((dialect, start))
            if kept is None:
                try:
                    kept = self._allowed(self._record(dialect, start))
                except Stopped as stopped:
                    kept = stopped
                self._kept[dialect, start] = kept
        if isinstance(kept, Stopped):
            raise Stopped(kept.state, kept.reason, kept.at, everywhere=kept.everywhere)
        return kept

    def _allowed(self, recording: Recording) -> Recording:
        if self._move.kind is Kind.DOWNGRADE and not self._may_drop and recording.drops_tables:
            raise Stopped(
                State.FAILED,
                "this would drop tables and all that they hold, or nobody can tell whether it "
                "would: look at it with --dry-run, then say --yes",
                recording.start,
                everywhere=True,
            )
        return recording

    def _record(self, dialect: str, start: tuple[str, ...]) -> Recording:
        if not self._scripts.steps(self._move, start):
            return Recording(dialect, start, start, Way.NOTHING)
        passed = self._scripts.passed(self._move, start)
        with ALEMBIC:  # Python 3.11 cannot make two syntax trees at a time either
            traits = {script.revision: traits_of(script) for script in passed}
        revisions = tuple(traits)
        apart = next((name for name, trait in traits.items() if trait.apart), None)
        reason = next(
            (f"{name}: {trait.reason}" for name, trait in traits.items() if trait.reason), None
        )
        if apart is not None and dialect == "postgresql":
            reason = f"{apart}: a part of it cannot be in a transaction"
        end: tuple[str, ...] = ()
        statements: tuple[str, ...] = ()
        try:
            first, end = self._render(self._scripts, dialect, start, _SCHEMAS[0])
            # Modules are run anew for the second one: what they make when they are read, such as
            # a random token, differs then.
            second, _ = self._render(self._scripts.reread(), dialect, start, _SCHEMAS[1])
        except Stopped:
            raise
        except Exception as error:  # a revision is code, and may raise anything
            reason = reason or _why(error)
        else:
            statements = first
            if first != second:
                reason = reason or "it writes down something else each time"
        if reason is None:
            _refuse_transactions(statements, start)
            return Recording(dialect, start, end, Way.REPLAY, statements, revisions)
        way = Way.APART if apart is not None and dialect == "postgresql" else Way.ONLINE
        return Recording(dialect, start, (), way, statements, revisions, reason)

    def _render(
        self, scripts: Scripts, dialect: str, start: tuple[str, ...], schema: str
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        listener = _Listener()
        place = schema if dialect == "postgresql" else None
        scripts.render(dialect, place, self._move, start, listener)
        return tuple(_anywhere(line, place) for line in listener.statements), listener.heads


class _Listener:
    """Takes what Alembic would execute, statement by statement, and refuses to play a database."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.heads: tuple[str, ...] = ()

    def __call__(self, context: MigrationContext) -> None:
        """Put itself between a context and what it would print."""
        impl = context.impl
        members = {
            "bind": property(lambda _: _NoDatabase(context.dialect)),
            "_exec": lambda _, construct, *given, **named: self._take(
                context.dialect, construct, *given, **named
            ),
            "static_output": lambda *_: None,
            "emit_begin": lambda *_: None,
            "emit_commit": lambda *_: None,
        }
        # Its class knows the dialect's DDL, so it is kept and only its mouth is changed. What
        # Alembic prints is not what it executes: it turns tabs into spaces, also within values.
        impl.__class__ = type("Listening", (type(impl),), members)
        context.on_version_apply_callbacks = (self._note,)

    def _note(self, *, heads: set[str], **_: object) -> None:
        self.heads = tuple(sorted(heads))

    def _take(
        self,
        dialect: Dialect,
        construct: _Construct | str,
        execution_options: object = None,
        multiparams: object = None,
        params: object = None,
    ) -> None:
        if multiparams or params:
            raise _NeedsDatabase("it gives parameters to a statement")
        if isinstance(construct, str):
            construct = text(construct)
        options: dict[str, Any] = {}
        if not isinstance(construct, ExecutableDDLElement):
            options = {"compile_kwargs": {"literal_binds": True}}
        statement = str(construct.compile(dialect=dialect, **options)).strip().rstrip(";")
        if statement:
            self.statements.append(statement)


class _NoDatabase:
    """Stands where a connection would: it knows the kind of database, and nothing else."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    def __getattr__(self, name: str) -> object:
        raise _NeedsDatabase("it reads from the database")


def _anywhere(statement: str, schema: str | None) -> str:
    """Return the statement without the schema that stands for the tenant's."""
    if schema is not None:
        statement = statement.replace(f"{schema}.{VERSION_TABLE}", VERSION_TABLE)
    # It is there already where a place was downgraded to nothing.
    return statement.replace(
        f"CREATE TABLE {VERSION_TABLE} ", f"CREATE TABLE IF NOT EXISTS {VERSION_TABLE} "
    )


def _refuse_transactions(statements: tuple[str, ...], start: tuple[str, ...]) -> None:
    for statement in statements:
        found = _TRANSACTION.match(statement)
        if found:
            raise Stopped(
                State.FAILED,
                f"a revision says {found[1].upper()}, which would end the transaction that it runs "
                "in and leave it half-made: take that out, and put what cannot be in a "
                "transaction in `with op.get_context().autocommit_block():`",
                start,
            )


def _why(error: Exception) -> str:
    if isinstance(error, _NeedsDatabase):
        return str(error)
    return f"it cannot be written down ({sentence_about(error)})"
