"""The words of the inbox: what arrives, what is kept, and what a worker is told and tells."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from tenantsync.errors import TenantSyncError
from tenantsync.tenants import MAX_ID_BYTES

__all__ = [
    "OVERHEAD",
    "Arrival",
    "Entry",
    "Lane",
    "LaneInfo",
    "LeaseLost",
    "Pruned",
    "Settlement",
    "State",
    "Stored",
    "Totals",
]

OVERHEAD: Final = 2048
"""Bytes that an event of an unknown tenant counts for beside its body: its row, its lane and what
the indexes repeat of both, so that many small events and many lanes are bounded as well."""


class State(StrEnum):
    """What became of an event in the inbox."""

    PARKED = "parked"
    """It waits to be applied."""
    APPLIED = "applied"
    """The tenant's database has it, or needs it no more."""
    QUARANTINED = "quarantined"
    """It failed too often, waited too long or cannot be read; an operator decides."""
    DISCARDED = "discarded"
    """An operator does not want it."""


class Stored(StrEnum):
    """What the inbox answers to an arrival."""

    PARKED = "parked"
    """It waits to be applied, since now or since before."""
    APPLIED = "applied"
    """It came before and was applied."""
    QUARANTINED = "quarantined"
    """It is in quarantine, since now or since before."""
    DISCARDED = "discarded"
    """It came before and an operator did not want it."""
    FULL = "full"
    """It was not stored: unknown tenants, or events that name none, have no room left."""


class LeaseLost(TenantSyncError):
    """The lane is somebody else's now, or nobody's; nothing was changed. Leave it alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """An authentic event that cannot be applied now.

    Args:
        tenant_id: The provider's id of the tenant; empty where none could be read.
        event_id: Its id, unique within the tenant.
        type: Its type, such as `member.joined`.
        subject: The person it is about, or None.
        timestamp: Its own time, in milliseconds since 1970.
        body: The bytes as they were received.
        signed_at: The time in its signed header, in seconds since 1970, or None.
        door: Where it came in.
        reason: Why it cannot be applied, in a word.
        known: Whether a source knows the tenant. Others share a bound, and wait for registration.
        announced: Whether it is what may make a tenant that is not known: then its lane is due, and
            shares the bound nevertheless.
        due_in: Seconds from now until its lane is worth a try.
    """

    tenant_id: str
    event_id: str
    type: str
    subject: str | None
    timestamp: int
    body: bytes = field(repr=False)
    signed_at: int | None
    door: str
    reason: str
    known: bool = True
    announced: bool = False
    due_in: float = 0.0

    def __post_init__(self) -> None:
        """Refuse ids that no index can hold: they would fail for ever.

        Raises:
            ValueError: An id has more than 255 bytes, or a NUL.
        """
        for name in (self.tenant_id, self.event_id, self.subject or "", self.type):
            if len(name.encode()) > MAX_ID_BYTES or "\x00" in name:
                raise ValueError("ids have at most 255 bytes, none of them NUL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An event in the inbox.

    Args:
        number: Its number; never given twice.
        tenant_id: The provider's id of the tenant; empty where none could be read.
        event_id: Its id.
        type: Its type.
        subject: The person it is about, or None.
        timestamp: Its own time, in milliseconds since 1970.
        signed_at: The time in its signed header, in seconds since 1970, or None.
        door: Where it came in.
        received_at: When it was stored.
        age: Seconds since then, by the database's clock.
        state: What became of it.
        reason: Why it was not applied at once.
        attempts: How often it failed for reasons of its own.
        error: What went wrong last, or None.
        due_at: When it is worth a try.
        settled_at: When it was applied, quarantined, discarded or sent back, or None.
        outcome: What applying it came to, or None.
        size: Bytes of its body.
        digest: SHA-256 of its body, in hexadecimal.
        body: The bytes as they were received; None where they were erased or not asked for.
    """

    number: int
    tenant_id: str
    event_id: str
    type: str
    subject: str | None
    timestamp: int
    signed_at: int | None
    door: str
    received_at: datetime
    age: float
    state: State
    reason: str
    attempts: int
    error: str | None
    due_at: datetime
    settled_at: datetime | None
    outcome: str | None
    size: int
    digest: str
    body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One tenant's queue, leased to whoever holds this.

    Args:
        tenant_id: The provider's id of the tenant.
        token: The fencing token: proves the lease, and is never given twice.
        attempts: How often in a row the lane failed.
        known: Whether a source knew the tenant when it was last asked.
        waiting: How many events were parked when it was claimed.
    """

    tenant_id: str
    token: str = field(repr=False)
    attempts: int
    known: bool
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneInfo:
    """How a lane is, for whoever looks after it.

    Args:
        tenant_id: The provider's id of the tenant; empty for events that name none.
        known: Whether a source knows the tenant.
        waiting: How many events are parked.
        quarantined: How many are in quarantine.
        bytes: Bytes of the bodies of both.
        attempts: How often in a row the lane failed.
        error: What went wrong last, or None.
        since: When it began to fail, or None.
        due_at: When it may be claimed next; None where it sleeps until it is woken.
        oldest: Age in seconds of the event that is parked longest, or None.
        held_by: Who holds it now, or None.
    """

    tenant_id: str
    known: bool
    waiting: int
    quarantined: int
    bytes: int
    attempts: int
    error: str | None
    since: datetime | None
    due_at: datetime | None
    oldest: float | None
    held_by: str | None

    @property
    def announced(self) -> bool:
        """Whether nobody registered the tenant, but a worker is to look whether to make it."""
        return not self.known and self.waiting > 0 and self.due_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What became of one parked event. Give one of `outcome`, `due_in` and `quarantine`.

    Args:
        number: The event's number.
        outcome: What applying it came to: it is done.
        error: What went wrong, without personal data.
        due_in: Seconds until it is tried again; it stays parked, with one more attempt.
        quarantine: Whether it goes to quarantine.
    """

    number: int
    outcome: str | None = None
    error: str | None = None
    due_in: float | None = None
    quarantine: bool = False

    def __post_init__(self) -> None:
        """Refuse one that says nothing, or several things.

        Raises:
            ValueError: Not exactly one of `outcome`, `due_in` and `quarantine` is given.
        """
        if (self.outcome is not None) + (self.due_in is not None) + self.quarantine != 1:
            raise ValueError("a settlement has one of outcome, due_in and quarantine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What one call of `Inbox.prune` did.

    Args:
        expired: How many parked events went to quarantine because they waited too long.
        bodies: How many applied events lost their body.
        ids: How many applied or discarded events were forgotten.
        quarantined: How many events were forgotten in quarantine.
        more: Whether there may be more to do: call again.
    """

    expired: int
    bodies: int
    ids: int
    quarantined: int
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """How full the inbox is.

    Args:
        parked: How many events wait, of all tenants.
        quarantined: How many are in quarantine.
        bytes: Bytes of the bodies of both.
        oldest: Age in seconds of the event that is parked longest, or None.
        unknown: How many of both belong to tenants that nobody knows.
        failing: How many lanes failed the last time they were tried.
    """

    parked: int = 0
    quarantined: int = 0
    bytes: int = 0
    oldest: float | None = None
    unknown: int = 0
    failing: int = 0
