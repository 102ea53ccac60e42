"""The words for one run: where tenants are to be moved, how long it may wait, how it went."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["Found", "Kind", "Limits", "Move", "Way"]

_ATTEMPTS: Final = 3


class Kind(StrEnum):
    """What is done to a place."""

    UPGRADE = "upgrade"
    DOWNGRADE = "downgrade"
    STAMP = "stamp"


class Way(StrEnum):
    """How it is done."""

    NOTHING = "nothing"
    """The place is there already."""
    REPLAY = "replay"
    """Statements that were rendered once are run, in one transaction, without Alembic."""
    ONLINE = "online"
    """Alembic runs the revisions, in one transaction."""
    APART = "apart"
    """Alembic runs the revisions, each in a transaction of its own or in none."""


@dataclass(frozen=True, slots=True)
class Move:
    """Where the tenants are to be moved.

    Args:
        kind: In which direction.
        to: The revision, as Alembic writes it: `heads`, an id, `BRANCH@ID`, `BRANCH@base`.
    """

    kind: Kind = Kind.UPGRADE
    to: str = "heads"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one tenant may keep a run, and everybody else, waiting. All in seconds.

    Args:
        lock: To wait for a lock on a table, or for SQLite's write lock, each time.
        statement: For one statement; 0 for as long as it takes.
        wait: To wait for another run that migrates the same tenant; 0 leaves it to that one.
        attempts: How often a lock is tried for.
    """

    lock: float = 2.0
    statement: float = 0.0
    wait: float = 30.0
    attempts: int = _ATTEMPTS


@dataclass(frozen=True, slots=True)
class Found:
    """The revisions of one place, before and after, each sorted."""

    before: tuple[str, ...]
    after: tuple[str, ...]
