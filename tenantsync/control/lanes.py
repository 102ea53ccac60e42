"""Lanes: who may drain which tenant's events, when, and how many there are.

A lane's row is the lock for all of its parked and quarantined events. Whoever changes one of these
locks the lane first, several lanes in the order of their ids, and the row of `strangers` last; so
counters are never wrong, and nobody waits in a circle.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    Connection,
    RowMapping,
    ScalarSelect,
    Select,
    delete,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from tenantsync.control.bulk import Updated
from tenantsync.control.entries import OVERHEAD, Lane, LaneInfo, LeaseLost, Totals
from tenantsync.control.moments import NOW, FreshToken, Later
from tenantsync.control.tables import IS_PARKED, inbox, lanes, strangers

__all__ = [
    "LaneRow",
    "after",
    "claim",
    "claiming",
    "inform",
    "lock",
    "lock_held",
    "oldest",
    "release",
    "renew",
    "save",
    "shares",
    "short",
    "total",
    "wake",
]

_LONGEST: Final = 500
_CENTURY: Final = 100 * 365 * 86400.0

# What is there already is locked and stays as it is: no dead row for each event that arrives. In
# one statement or in many, they are locked in the order in which they are given.
_ENSURE: Final = {
    "postgresql": text(
        "INSERT INTO lanes (tenant_id, known, waiting, quarantined, bytes, attempts, woken)"
        " SELECT name, false, 0, 0, 0, 0, false"
        " FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS given (name, place) ORDER BY place"
        " ON CONFLICT (tenant_id) DO UPDATE SET known = lanes.known WHERE false"
    ),
    "sqlite": text(
        "INSERT INTO lanes (tenant_id, known, waiting, quarantined, bytes, attempts, woken)"
        " SELECT value, false, 0, 0, 0, 0, false FROM json_each(:names) WHERE true"
        " ON CONFLICT (tenant_id) DO NOTHING"
    ),
}


@dataclass(slots=True, kw_only=True)
class LaneRow:
    """A lane that this transaction has locked. Change it, then `save` it.

    Args:
        tenant_id: The provider's id of the tenant.
        known: Whether a source knows the tenant.
        waiting: How many events are parked.
        quarantined: How many are in quarantine.
        bytes: Bytes of the bodies of both.
        attempts: How often in a row it failed.
        error: What went wrong last.
        since: When it began to fail.
        due_at: When it may be claimed, which for one that is held is the end of the lease.
        token: The fencing token of whoever claimed it last and did not release it.
        owner: Who that is.
        woken: Whether it was woken while it was held, so that it is due when it is released.
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
    token: str | None
    owner: str | None
    woken: bool

    now: datetime
    """The database's time when it was locked."""
    before: dict[str, object] = field(default_factory=dict)
    """The columns as they were."""
    share: tuple[int, int] = (0, 0)
    """What strangers held of it before: events and bytes."""

    @property
    def is_held(self) -> bool:
        """Whether somebody has a lease that is not over."""
        return self.owner is not None and self.due_at is not None and self.due_at > self.now

    @property
    def strange(self) -> tuple[int, int]:
        """What it holds of what nobody known has: events and bytes."""
        return (0, 0) if self.known else (self.waiting + self.quarantined, self.bytes)

    def learn(self) -> None:
        """Note that a source knows the tenant; events that slept until then are due now."""
        if not self.known:
            self.known = True
            self.rouse()

    def announce(self) -> None:
        """Have somebody look whether the tenant is to be made; it is no more known for that."""
        if self.is_held or self.due_at is None:
            self.rouse()

    def rouse(self) -> None:
        """Make it due now, or as soon as it is released; what failed before is forgotten."""
        self.attempts, self.error, self.since = 0, None, None
        if self.is_held:
            self.woken = True
        elif self.waiting:
            self.due_at = self.now

    def expect(self, due_at: datetime) -> None:
        """Have it claimed when a new event is due, unless it is held, asleep or failing."""
        if not self.known or self.is_held:
            return
        if self.due_at is None:
            # With events it was put to sleep, and a new one is no reason to wake it.
            self.due_at = None if self.waiting else due_at
        elif self.attempts == 0:
            self.due_at = min(self.due_at, due_at)

    def give_back(self) -> None:
        """End the lease; its token proves nothing any more."""
        self.owner = self.token = None
        self.woken = False


_WRITTEN: Final = tuple(
    one.name for one in fields(LaneRow) if one.name not in ("tenant_id", "now", "before", "share")
)
_SAVE: Final = Updated(lanes, "tenant_id", _WRITTEN)


_SHOWN: Final = (
    *("tenant_id", "known", "waiting", "quarantined", "bytes"),
    *("attempts", "error", "since", "due_at"),
)


def lock(
    connection: Connection, tenant_ids: Iterable[str], *, make: bool = False
) -> dict[str, LaneRow]:
    """Lock the lanes of some tenants until the transaction ends, and return those that are there.

    Args:
        connection: In a transaction that writes.
        tenant_ids: The provider's ids, at most some hundred.
        make: Whether those that are not there are made; `save` removes what stays empty.
    """
    names = sorted(set(tenant_ids))
    if not names:
        return {}
    if make:
        dialect = connection.dialect.name
        given = names if dialect == "postgresql" else json.dumps(names)
        connection.execute(_ENSURE[dialect], {"names": given})
    query = _locking().where(lanes.c.tenant_id.in_(names)).order_by(lanes.c.tenant_id)
    return {row["tenant_id"]: _row(row) for row in connection.execute(query).mappings()}


def lock_held(connection: Connection, lane: Lane) -> LaneRow:
    """Lock a lane that the caller has claimed.

    Raises:
        LeaseLost: Somebody else claimed it since, or it was given back.
    """
    query = _locking().where(lanes.c.tenant_id == lane.tenant_id, lanes.c.token == lane.token)
    found = connection.execute(query).mappings().one_or_none()
    if found is None:
        raise _lost()
    return _row(found)


def save(connection: Connection, rows: Iterable[LaneRow]) -> None:
    """Write what was changed of locked lanes; one without events goes away unless it is held."""
    changed, empty, events, size = [], [], 0, 0
    for row in rows:
        if row.waiting == 0 and not row.is_held:
            row.give_back()
            row.attempts, row.error, row.since, row.due_at = 0, None, None, None
        events += row.strange[0] - row.share[0]
        size += row.strange[1] - row.share[1]
        if row.waiting + row.quarantined == 0 and not row.is_held:
            empty.append(row.tenant_id)
        elif _values(row) != row.before:
            changed.append({"tenant_id": row.tenant_id} | _values(row))
    if changed:
        _SAVE.execute(connection, changed)
    if empty:
        connection.execute(delete(lanes).where(lanes.c.tenant_id.in_(empty)))
    if events or size:
        connection.execute(
            update(strangers).values(
                events=strangers.c.events + events, bytes=strangers.c.bytes + size
            )
        )


def shares(connection: Connection) -> dict[bool, int]:
    """Lock the rooms of who is not known, after all lanes and before any is saved.

    Returns:
        The bytes that are taken, with each event's overhead: under True of the room that unknown
        tenants share, under False of the one of what names no tenant.
    """
    row = connection.execute(select(strangers).with_for_update()).one()
    # In a statement of its own, after the lock: who holds it has saved the lane of the nameless
    # too, and nobody counts it up without the lock. `strangers` counts that lane in.
    held = lanes.c.waiting + lanes.c.quarantined
    query = select(lanes.c.bytes + OVERHEAD * held).where(lanes.c.tenant_id == "")
    nameless = int(connection.scalar(query) or 0)
    return {True: row.bytes + OVERHEAD * row.events - nameless, False: nameless}


def claiming(owner: str, lease: float, tenant_id: str | None = None) -> ReturningUpdate[Any]:
    """Return the statement that claims the lane longest due, or a certain one that nobody holds.

    It reads one entry of one index, however many events wait and whoever else claims.
    """
    found = select(lanes.c.tenant_id)
    if tenant_id is None:
        found = found.where(lanes.c.due_at <= NOW).order_by(lanes.c.due_at).limit(1)
    else:
        unheld = or_(lanes.c.owner.is_(None), lanes.c.due_at <= NOW)
        found = found.where(lanes.c.tenant_id == tenant_id, lanes.c.waiting > 0, unheld)
    one = found.with_for_update(skip_locked=True).scalar_subquery()
    return (
        update(lanes)
        .where(lanes.c.tenant_id == one)
        .values(owner=owner, token=FreshToken(), due_at=Later(lease), woken=False)
        .returning(
            *(lanes.c.tenant_id, lanes.c.token, lanes.c.attempts, lanes.c.known, lanes.c.waiting)
        )
    )


def claim(connection: Connection, owner: str, lease: float, tenant_id: str | None) -> Lane | None:
    """Lease the lane longest due, or a certain one, to `owner` for so many seconds."""
    row = connection.execute(claiming(owner, lease, tenant_id)).mappings().one_or_none()
    return None if row is None else Lane(**row)


def renew(connection: Connection, lane: Lane, lease: float) -> None:
    """Let the lease end so many seconds from now.

    Raises:
        LeaseLost: It is not the caller's any more.
    """
    done = connection.execute(
        update(lanes)
        .where(lanes.c.tenant_id == lane.tenant_id, lanes.c.token == lane.token)
        .values(due_at=Later(lease))
    )
    if done.rowcount == 0:
        raise _lost()


def release(
    connection: Connection,
    lane: Lane,
    retry_in: float | None,
    error: str | None,
    *,
    known: bool | None,
    announced: bool,
) -> None:
    """Give a lane back; see `Inbox.release`.

    Raises:
        LeaseLost: It is not the caller's any more.
    """
    row = lock_held(connection, lane)
    woken = row.woken
    row.give_back()
    row.due_at = None  # the lease is over; no wait that is left may look like one
    if known is not None:
        # Whoever woke it knows of the tenant what the holder may have asked too early.
        row.known = known or (woken and row.known)
    later = None if retry_in is None else after(row.now, retry_in)
    if woken:
        row.rouse()
    elif known is False and not announced:
        row.attempts, row.error = 0, short(error)
        row.since = row.since or row.now
    elif error is None:
        row.attempts, row.error, row.since = 0, None, None
        row.due_at = max(_next_due(connection, lane.tenant_id) or row.now, later or row.now)
    else:
        row.attempts, row.error = row.attempts + 1, short(error)
        row.since = row.since or row.now
        row.due_at = later
    save(connection, [row])


def wake(connection: Connection, tenant_ids: Sequence[str]) -> int:
    """Make lanes due whose tenants are known and worth a try; return how many have events."""
    rows = lock(connection, tenant_ids)
    for row in rows.values():
        row.known = True
        row.rouse()
    save(connection, rows.values())
    return sum(row.waiting > 0 for row in rows.values())


def inform(connection: Connection) -> list[LaneInfo]:
    """Return how every lane is, by tenant id."""
    query = select(lanes, oldest().label("oldest"), NOW.label("now")).order_by(lanes.c.tenant_id)
    return [
        LaneInfo(
            **{name: row[name] for name in _SHOWN},
            oldest=_age(row["oldest"], row["now"]),
            held_by=row["owner"] if _row(row).is_held else None,
        )
        for row in connection.execute(query).mappings()
    ]


def total(connection: Connection) -> Totals:
    """Return how full the inbox is; counts lanes and not events."""
    row = (
        connection.execute(
            select(
                func.coalesce(func.sum(lanes.c.waiting), 0).label("parked"),
                func.coalesce(func.sum(lanes.c.quarantined), 0).label("quarantined"),
                func.coalesce(func.sum(lanes.c.bytes), 0).label("bytes"),
                func.min(oldest()).label("oldest"),
                func.count().filter(lanes.c.attempts > 0).label("failing"),
                select(strangers.c.events).scalar_subquery().label("unknown"),
                NOW.label("now"),
            ).select_from(lanes)
        )
        .mappings()
        .one()
    )
    counts = {name: int(row[name]) for name in ("parked", "quarantined", "bytes", "unknown")}
    return Totals(**counts, failing=row["failing"], oldest=_age(row["oldest"], row["now"]))


def after(now: datetime, seconds: float) -> datetime:
    """Return the moment so many seconds after another, at most a century."""
    return now + timedelta(seconds=min(seconds, _CENTURY))


def short(words: str | None) -> str | None:
    """Return an error as it is kept: bounded, and without what PostgreSQL cannot keep."""
    return None if words is None else words.replace("\x00", "\ufffd")[:_LONGEST]


def _locking() -> Select[Any]:
    return select(lanes, NOW.label("now")).with_for_update()


def _row(found: RowMapping) -> LaneRow:
    row = LaneRow(**{name: found[name] for name in ("tenant_id", "now", *_WRITTEN)})
    row.before, row.share = _values(row), row.strange
    return row


def _values(row: LaneRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in _WRITTEN}


def _next_due(connection: Connection, tenant_id: str) -> datetime | None:
    return connection.scalar(
        select(inbox.c.due_at)
        .where(inbox.c.tenant_id == tenant_id, IS_PARKED)
        .order_by(inbox.c.due_at)
        .limit(1)
    )


def oldest() -> ScalarSelect[datetime]:
    """Return when the event of a lane was stored that is parked longest, as an expression."""
    return (
        select(func.min(inbox.c.received_at))
        .where(inbox.c.tenant_id == lanes.c.tenant_id, IS_PARKED)
        .correlate(lanes)
        .scalar_subquery()
    )


def _age(since: datetime | None, now: datetime) -> float | None:
    return None if since is None else max(0.0, (now - since).total_seconds())


def _lost() -> LeaseLost:
    return LeaseLost("the lease of this lane is over and somebody else may have it: leave it alone")
