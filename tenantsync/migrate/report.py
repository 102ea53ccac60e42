"""What became of the tenants of one run, and the words for what went wrong."""

from dataclasses import dataclass
from enum import StrEnum

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
    BEHIND = "behind"
    """At an older revision."""
    UNVERSIONED = "unversioned"
    """The place is there, and was never migrated."""
    MISSING = "missing"
    """No such schema, database or SQLite file."""
    UNREACHABLE = "unreachable"
    """The database did not answer, or refused the login."""
    FAILED = "failed"
    """Something else is wrong, and nothing was changed."""


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
        """Whether the place is at head."""
        return self.state in (State.OK, State.UPGRADED)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all tenants, in the order in which they were given.

    Args:
        heads: The newest revisions, which every tenant should stand at.
        rows: One row for each tenant.
    """

    heads: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every tenant is at head."""
        return all(row.ok for row in self.rows)

    def check(self) -> None:
        """Do nothing if every tenant is at head.

        Raises:
            MigrationFailed: For the first one that is not.
        """
        for row in self.rows:
            if not row.ok:
                raise MigrationFailed(row.tenant, row.after, row.error or f"it is {row.state}")


class Stopped(Exception):
    """Why one tenant is not at head.

    Args:
        state: How it stands.
        reason: What is wrong and what to do, in a sentence.
        at: The revisions that it stands at.
    """

    def __init__(self, state: State, reason: str, at: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.state = state
        self.reason = reason
        self.at = at


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
