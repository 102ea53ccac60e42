"""What became of the tenants of one run, and the words for what went wrong."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Final

from alembic.util import CommandError
from sqlalchemy.exc import StatementError

from tenantsync.errors import MigrationFailed, TenantSyncError

__all__ = ["Report", "Row", "State", "Stopped", "sentence_about"]


class State(StrEnum):
    """How a tenant's place stands to the migrations."""

    OK = "ok"
    """At head; nothing was to be done."""
    UPGRADED = "upgraded"
    """At head now."""
    DOWNGRADED = "downgraded"
    """At the older revision that was asked for now."""
    STAMPED = "stamped"
    """Said to be at the revision that was asked for; no table was touched."""
    SKIPPED = "skipped"
    """Another run is migrating it."""
    BEHIND = "behind"
    """At an older revision."""
    AHEAD = "ahead"
    """At a revision that these migrations do not know."""
    LOCKED = "locked"
    """Being migrated by another run, or kept from it by somebody's lock."""
    DRIFTED = "drifted"
    """At head, but its tables are not what the migrations make."""
    UNVERSIONED = "unversioned"
    """The place is there, and was never migrated."""
    MISSING = "missing"
    """No such schema, database or SQLite file."""
    UNREACHABLE = "unreachable"
    """The database did not answer, or refused the login."""
    FAILED = "failed"
    """Something else is wrong, and nothing was changed."""


_WELL: Final = frozenset((State.OK, State.UPGRADED, State.DOWNGRADED, State.STAMPED, State.SKIPPED))


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one tenant.

    Args:
        tenant: Its key.
        before: The revisions that its place stood at, joined by ", "; None for none.
        after: The revisions that it stands at now.
        state: How it stands to the migrations now.
        seconds: How long that took.
        error: What is wrong and what to do, in a sentence; None where all is well.
    """

    tenant: str
    before: str | None
    after: str | None
    state: State
    seconds: float
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is left to do: it is where it should be, or another run sees to it."""
        return self.state in _WELL


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all tenants of one run.

    Args:
        heads: The newest revisions, which every tenant should stand at.
        rows: One row for each tenant, in the order in which they were given; where the caller
            wanted failures only, those.
        counts: How many tenants there are in each state.
        left: How many tenants were not begun, because the run was stopped before.
        stopped: Why it was stopped, in a sentence; None if it was not.
    """

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    counts: dict[State, int] = field(default_factory=dict)
    left: int = 0
    stopped: str | None = None

    @classmethod
    def of(cls, heads: tuple[str, ...], rows: Iterable[Row]) -> "Report":
        """Return the report of a run that kept all its rows."""
        kept = tuple(rows)
        return cls(heads, kept, dict(Counter(row.state for row in kept)))

    @property
    def ok(self) -> bool:
        """Whether every tenant is where it should be, or another run sees to it."""
        return not self.left and all(row.ok for row in self.rows)

    def check(self) -> None:
        """Do nothing if every tenant is at head.

        Raises:
            MigrationFailed: For the first one that is not, or that another run is migrating.
        """
        for row in self.rows:
            if not row.ok or row.state is State.SKIPPED:
                raise MigrationFailed(row.tenant, row.after, row.error or f"it is {row.state}")


class Stopped(Exception):
    """Why one tenant is not at head.

    Args:
        state: How it stands.
        reason: What is wrong and what to do, in a sentence.
        at: The revisions that it stands at.
        everywhere: Whether it would go wrong for every tenant, so that the run has to end.
    """

    def __init__(
        self, state: State, reason: str, at: tuple[str, ...] = (), *, everywhere: bool = False
    ) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason
        self.at = at
        self.everywhere = everywhere

    def __reduce__(self) -> tuple[object, ...]:
        """Say how it gets from one process to another, keywords and all."""
        return partial(Stopped, everywhere=self.everywhere), (self.state, self.reason, self.at)


def sentence_about(error: Exception) -> str:
    """Return one line about an error that holds no statement, parameter or value of a row."""
    if isinstance(error, Stopped):
        return error.reason
    if isinstance(error, TenantSyncError | CommandError):
        return str(error)
    # What SQLAlchemy says about a statement repeats it, with its parameters; the driver does not.
    cause = error.orig if isinstance(error, StatementError) and error.orig else error
    state = getattr(cause, "sqlstate", None) or ""
    kind = type(cause).__name__
    # Data exceptions quote the value. 22023 is a setting that is not allowed, such as a role.
    if state.startswith("22") and state != "22023":
        return f"{kind} ({state})"
    line = str(cause).strip().partition("\n")[0]
    return f"{kind}: {line}" if line else kind
