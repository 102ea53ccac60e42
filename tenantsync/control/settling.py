"""How events leave the inbox: applied, given up, erased, sent back to the queue, or too old."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, TypedDict

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    func,
    literal_column,
    select,
    update,
)

from tenantsync.control.bulk import Updated
from tenantsync.control.entries import Lane, Settlement, State
from tenantsync.control.lanes import LaneRow, after, lock, lock_held, oldest, save, short
from tenantsync.control.moments import NOW, Later
from tenantsync.control.tables import IS_PARKED, inbox, lanes
from tenantsync.observe import Outcome

__all__ = [
    "HELD",
    "Filters",
    "candidates",
    "discard",
    "erase",
    "expire",
    "forget",
    "forget_bodies",
    "forget_quarantined",
    "matching",
    "retry",
    "settle",
]

HELD: Final = inbox.c.state.in_([State.PARKED.value, State.QUARANTINED.value])
"""What an operator may still decide on, and a lane counts."""

_SETTLE: Final = Updated(
    inbox, "number", ("state", "attempts", "error", "outcome", "due_at", "settled_at")
)
_GONE: Final = {"settled_at": NOW, "body": None}


class Filters(TypedDict, total=False):
    """Which events are meant; all of what is given must be true of them.

    Args:
        numbers: Their numbers.
        tenant_id: The provider's id of their tenant.
        type: Their type; one that ends in `*` names all that begin like it.
        state: What became of them.
        older_than: Seconds since they were stored, at least.
    """

    numbers: Collection[int] | None
    tenant_id: str | None
    type: str | None
    state: State | None
    older_than: float | None


def matching(filters: Filters) -> list[ColumnElement[bool]]:
    """Return the conditions that filters stand for."""
    conditions: list[ColumnElement[bool]] = []
    if (numbers := filters.get("numbers")) is not None:
        conditions.append(inbox.c.number.in_(numbers))
    if (tenant_id := filters.get("tenant_id")) is not None:
        conditions.append(inbox.c.tenant_id == tenant_id)
    if (kind := filters.get("type")) is not None:
        if kind.endswith("*"):
            # Not LIKE, which on SQLite takes capitals for small letters.
            conditions.append(func.substr(inbox.c.type, 1, len(kind) - 1) == kind[:-1])
        else:
            conditions.append(inbox.c.type == kind)
    if (state := filters.get("state")) is not None:
        conditions.append(inbox.c.state == state.value)
    if (age := filters.get("older_than")) is not None:
        conditions.append(inbox.c.received_at <= Later(-age))
    return conditions


def candidates(
    connection: Connection, conditions: Iterable[ColumnElement[bool]], limit: int, after: int = 0
) -> dict[int, str]:
    """Return the numbers, and the tenant of each, of the next events that may be meant.

    Nothing is locked: look again once their lanes are.
    """
    found = connection.execute(
        select(inbox.c.number, inbox.c.tenant_id)
        .where(inbox.c.number > after, *conditions)
        .order_by(inbox.c.number)
        .limit(limit)
    )
    return {row.number: row.tenant_id for row in found}


def settle(connection: Connection, lane: Lane, settlements: Sequence[Settlement]) -> None:
    """Write down what became of a lane's events; see `Inbox.settle`.

    Raises:
        LeaseLost: The lane is not the caller's any more.
    """
    row = lock_held(connection, lane)
    told = {settlement.number: settlement for settlement in settlements}
    # Somebody may have erased or discarded one of them while it was drained. That stands.
    found = connection.execute(
        select(
            inbox.c.number, inbox.c.attempts, inbox.c.due_at, inbox.c.settled_at, inbox.c.size
        ).where(inbox.c.number.in_(told), inbox.c.tenant_id == lane.tenant_id, _is(State.PARKED))
    )
    changed, idle = [], []
    for number, attempts, due_at, settled_at, size in found:
        settlement = told[number]
        error = short(settlement.error)
        values = {"number": number, "attempts": attempts, "due_at": due_at, "error": error}
        if settlement.due_in is not None:
            values |= {"state": State.PARKED.value, "outcome": None}
            # When it was sent back, if it was: it is given up so long after that, and no later.
            values |= {"settled_at": settled_at}
            values |= {"attempts": attempts + 1, "due_at": after(row.now, settlement.due_in)}
        elif settlement.quarantine:
            values |= {"state": State.QUARANTINED.value, "outcome": None, "settled_at": row.now}
            values |= {"attempts": attempts + 1}
            row.quarantined += 1
        else:
            values |= {"state": State.APPLIED.value, "settled_at": row.now}
            values |= {"outcome": settlement.outcome}
            row.bytes -= size
            if settlement.outcome != Outcome.APPLIED.value:
                idle.append(number)
        row.waiting -= settlement.due_in is None
        changed.append(values)
    if changed:
        _SETTLE.execute(connection, changed)
    if idle:
        # The deletion of a person erased what was here by then; this may have come later.
        connection.execute(update(inbox).where(inbox.c.number.in_(idle)).values(body=None))
    save(connection, [row])


def erase(connection: Connection, tenant_id: str, subject: str) -> int:
    """Erase one person's bodies; see `Inbox.erase`."""
    # Made if need be: an event parked meanwhile must not slip in beside a lane that is not there.
    rows = lock(connection, [tenant_id], make=True)
    theirs = and_(inbox.c.tenant_id == tenant_id, inbox.c.subject == subject)
    done = {"state": State.APPLIED.value, "outcome": "stale", "error": None}
    erased = _take_out(connection, theirs, rows, done | _GONE)
    kept = connection.execute(
        update(inbox).where(theirs, inbox.c.body.is_not(None)).values(body=None)
    )
    save(connection, rows.values())
    return erased + kept.rowcount


def discard(connection: Connection, chosen: dict[int, str]) -> int:
    """Give up events that are parked or in quarantine; return how many still were."""
    rows = lock(connection, chosen.values())
    values = {"state": State.DISCARDED.value} | _GONE
    done = _take_out(connection, inbox.c.number.in_(chosen), rows, values)
    save(connection, rows.values())
    return done


def retry(connection: Connection, chosen: dict[int, str]) -> int:
    """Have events tried again now, also out of quarantine; return how many there were."""
    rows = lock(connection, chosen.values())
    values = {
        "state": State.PARKED.value,
        "attempts": 0,
        "error": None,
        "due_at": NOW,
        "settled_at": NOW,
    }
    those = inbox.c.number.in_(chosen)
    parked = _change(connection, and_(those, _is(State.PARKED)), values)
    freed = _change(connection, and_(those, _is(State.QUARANTINED)), values)
    for tenant_id, _ in freed:
        rows[tenant_id].waiting += 1
        rows[tenant_id].quarantined -= 1
    for tenant_id in {tenant_id for tenant_id, _ in parked + freed}:
        # The others wait for somebody to know their tenant, or to announce it.
        if rows[tenant_id].known or rows[tenant_id].due_at is not None:
            rows[tenant_id].rouse()
    save(connection, rows.values())
    return len(parked) + len(freed)


def expire(connection: Connection, age: float, limit: int) -> int:
    """Put events into quarantine that were parked for too long; return how many."""
    chosen = _neglected(connection, age, limit)
    rows = lock(connection, chosen.values())
    values = {"state": State.QUARANTINED.value, "reason": "expired", "settled_at": NOW}
    since = func.coalesce(inbox.c.settled_at, inbox.c.received_at)
    those = and_(inbox.c.number.in_(chosen), IS_PARKED, since <= Later(-age))
    done = _change(connection, those, values)
    for tenant_id, _ in done:
        rows[tenant_id].waiting -= 1
        rows[tenant_id].quarantined += 1
    save(connection, rows.values())
    return len(done)


def forget_quarantined(connection: Connection, age: float, limit: int) -> int:
    """Delete events that were in quarantine for too long; return how many."""
    old = and_(_is(State.QUARANTINED), inbox.c.settled_at <= Later(-age))
    chosen = _some(connection, limit, old)
    rows = lock(connection, chosen.values())
    gone = connection.execute(
        delete(inbox)
        .where(inbox.c.number.in_(chosen), old)
        .returning(inbox.c.tenant_id, inbox.c.size)
    ).all()
    for tenant_id, size in gone:
        rows[tenant_id].quarantined -= 1
        rows[tenant_id].bytes -= size
    save(connection, rows.values())
    return len(gone)


def forget_bodies(connection: Connection, age: float, limit: int) -> int:
    """Erase the bodies of events that were applied long enough ago; return how many."""
    kept = and_(_is(State.APPLIED), inbox.c.body.is_not(None), inbox.c.settled_at <= Later(-age))
    return connection.execute(
        update(inbox).where(inbox.c.number.in_(_unlocked(kept, limit))).values(body=None)
    ).rowcount


def forget(connection: Connection, age: float, limit: int) -> int:
    """Delete events that were applied or discarded long enough ago; return how many."""
    done = 0
    for state in (State.APPLIED, State.DISCARDED):
        old = and_(_is(state), inbox.c.settled_at <= Later(-age))
        these = inbox.c.number.in_(_unlocked(old, limit - done))
        done += connection.execute(delete(inbox).where(these)).rowcount
    return done


def _is(state: State) -> ColumnElement[bool]:
    # A literal and no parameter, as the conditions of the indexes have it.
    return inbox.c.state == literal_column(f"'{state.value}'")


def _neglected(connection: Connection, age: float, limit: int) -> dict[int, str]:
    """Return events that are parked for too long, since they were stored or last sent back.

    When one is due says nothing of that: each failure of its own moves it.
    """
    chosen = _some(connection, limit, IS_PARKED, inbox.c.settled_at <= Later(-age))
    # Lane by lane, since that is what the index of their ages begins with: as many steps as there
    # are tenants with something parked, and not as there are events.
    late = select(lanes.c.tenant_id).where(lanes.c.waiting > 0, oldest() <= Later(-age))
    for tenant_id in connection.scalars(late.order_by(lanes.c.tenant_id)).all():
        if len(chosen) >= limit:
            break
        stored = inbox.c.settled_at.is_(None), inbox.c.received_at <= Later(-age)
        mine = inbox.c.tenant_id == tenant_id
        chosen |= _some(connection, limit - len(chosen), mine, IS_PARKED, *stored)
    return chosen


def _some(connection: Connection, limit: int, *conditions: ColumnElement[bool]) -> dict[int, str]:
    found = connection.execute(
        select(inbox.c.number, inbox.c.tenant_id).where(*conditions).limit(limit)
    )
    return {row.number: row.tenant_id for row in found}


def _unlocked(condition: ColumnElement[bool], limit: int) -> Select[tuple[int]]:
    # These events count in no lane. Who waits for nobody's rows is in nobody's way.
    return select(inbox.c.number).where(condition).limit(limit).with_for_update(skip_locked=True)


def _take_out(
    connection: Connection,
    condition: ColumnElement[bool],
    rows: dict[str, LaneRow],
    values: dict[str, Any],
) -> int:
    """Change events that are parked or in quarantine so that they are neither any more."""
    parked = _change(connection, and_(condition, _is(State.PARKED)), values)
    freed = _change(connection, and_(condition, _is(State.QUARANTINED)), values)
    for tenant_id, size in parked:
        rows[tenant_id].waiting -= 1
        rows[tenant_id].bytes -= size
    for tenant_id, size in freed:
        rows[tenant_id].quarantined -= 1
        rows[tenant_id].bytes -= size
    return len(parked) + len(freed)


def _change(
    connection: Connection, condition: ColumnElement[bool], values: dict[str, Any]
) -> list[tuple[str, int]]:
    """Change events, and return the tenant and the size of each."""
    changed = connection.execute(
        update(inbox).where(condition).values(values).returning(inbox.c.tenant_id, inbox.c.size)
    )
    return [(row.tenant_id, row.size) for row in changed]
