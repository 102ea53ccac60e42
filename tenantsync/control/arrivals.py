"""How events come into the inbox: many at once, each one once, and strangers within a bound."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from tenantsync.control.bulk import Inserted
from tenantsync.control.entries import OVERHEAD, Arrival, State, Stored
from tenantsync.control.lanes import LaneRow, after, lock, save, shares, short
from tenantsync.control.tables import inbox

__all__ = ["Bound", "store"]

_Key = tuple[str, str]

# One search of the index for each pair, whatever the planner thinks of the table: a list of pairs
# after IN becomes a scan for each combination, or one of the whole table.
_FIND: Final = {
    "postgresql": text(
        "SELECT held.tenant_id, held.event_id, held.state"
        " FROM unnest(CAST(:tenants AS text[]), CAST(:events AS text[])) AS wanted (tenant, event)"
        " CROSS JOIN LATERAL (SELECT tenant_id, event_id, state FROM inbox"
        ' WHERE tenant_id = wanted.tenant COLLATE "C" AND event_id = wanted.event COLLATE "C"'
        " LIMIT 1) AS held"
    ),
    "sqlite": text(
        "SELECT held.tenant_id, held.event_id, held.state"
        " FROM json_each(:pairs) AS wanted CROSS JOIN inbox AS held"
        " ON held.tenant_id = wanted.value ->> 0 AND held.event_id = wanted.value ->> 1"
    ),
}

_INSERT: Final = Inserted(
    inbox,
    (column.name for column in inbox.c if column.name not in ("number", "error", "outcome")),
)


@dataclass(frozen=True, slots=True)
class Bound:
    """What unknown tenants may have in the inbox, and what names no tenant.

    Args:
        events: How many events each unknown tenant may have.
        bytes: How many bytes all of them may have together, each event with its overhead.
        nameless: How many bytes what names no tenant may have, counted likewise.
    """

    events: int
    bytes: int
    nameless: int

    def admits(self, arrival: Arrival, count: int, taken: int) -> bool:
        """Whether there is room for one more.

        Args:
            arrival: Of a tenant that is not known, or of none.
            count: How many events its tenant has.
            taken: The bytes that are taken of the room that it shares, its own included.
        """
        if not arrival.tenant_id:
            # Nobody's in particular: only all together are bounded.
            return taken <= self.nameless
        # Strangers who fill the room must not keep anybody from being announced: for that, and
        # nothing else, there is as much again, and one more place.
        size, events = self.bytes, self.events
        if arrival.announced:
            size, events = 2 * size, events + 1
        return taken <= size and count < events


def store(
    connection: Connection, arrivals: Sequence[Arrival], *, state: State, bound: Bound
) -> list[Stored]:
    """Store what is not there yet, and answer for each arrival what the inbox has of it.

    Args:
        connection: In a transaction that writes.
        arrivals: Of any tenants.
        state: What new ones become: `PARKED` or `QUARANTINED`.
        bound: What unknown tenants may have, and what names none.
    """
    wanted: dict[_Key, Arrival] = {}
    for arrival in arrivals:
        wanted.setdefault(_key(arrival), arrival)
    rows = lock(connection, (tenant_id for tenant_id, _ in wanted), make=True)
    for arrival in arrivals:
        if arrival.known and arrival.tenant_id:
            rows[arrival.tenant_id].learn()
    # Only now, under the locks: nobody else can store the same event any more.
    answers = _find(connection, wanted)
    fresh = [arrival for key, arrival in wanted.items() if key not in answers]
    stored = _admit(connection, fresh, rows, bound)
    for arrival in fresh:
        answers[_key(arrival)] = Stored.FULL
    for arrival in stored:
        answers[_key(arrival)] = Stored(state.value)
    if stored:
        columns = [_columns(arrival, rows[arrival.tenant_id], state) for arrival in stored]
        _INSERT.execute(connection, columns)
    for arrival in stored:
        _count(rows[arrival.tenant_id], arrival, state)
    for arrival in arrivals:
        if arrival.announced and arrival.tenant_id:
            rows[arrival.tenant_id].announce()
    save(connection, rows.values())
    return [answers[_key(arrival)] for arrival in arrivals]


def _key(arrival: Arrival) -> _Key:
    return arrival.tenant_id, arrival.event_id


def _find(connection: Connection, keys: Iterable[_Key]) -> dict[_Key, Stored]:
    dialect = connection.dialect.name
    pairs = list(keys)
    values: dict[str, object] = {"pairs": json.dumps(pairs)}
    if dialect == "postgresql":
        values = {"tenants": [one for one, _ in pairs], "events": [one for _, one in pairs]}
    found = connection.execute(_FIND[dialect], values)
    return {(row.tenant_id, row.event_id): Stored(row.state) for row in found}


def _admit(
    connection: Connection, fresh: Sequence[Arrival], rows: dict[str, LaneRow], bound: Bound
) -> list[Arrival]:
    """Return those for which there is room; who is known always has some."""
    if all(rows[arrival.tenant_id].known for arrival in fresh):
        return list(fresh)
    taken = shares(connection)
    counts = {name: row.waiting + row.quarantined for name, row in rows.items()}
    admitted = []
    for arrival in fresh:
        name = arrival.tenant_id
        if not rows[name].known:
            size = taken[bool(name)] + len(arrival.body) + OVERHEAD
            if not bound.admits(arrival, counts[name], size):
                continue
            taken[bool(name)] = size
            counts[name] += 1
        admitted.append(arrival)
    return admitted


def _columns(arrival: Arrival, row: LaneRow, state: State) -> dict[str, object]:
    return {
        "tenant_id": arrival.tenant_id,
        "event_id": arrival.event_id,
        "type": arrival.type,
        "subject": arrival.subject,
        "timestamp": arrival.timestamp,
        "signed_at": arrival.signed_at,
        "door": arrival.door,
        "body": arrival.body,
        "digest": hashlib.sha256(arrival.body).hexdigest(),
        "size": len(arrival.body),
        "received_at": row.now,
        "state": state.value,
        "reason": short(arrival.reason),
        "attempts": 0,
        "due_at": row.now,
        "settled_at": row.now if state is State.QUARANTINED else None,
    }


def _count(row: LaneRow, arrival: Arrival, state: State) -> None:
    row.bytes += len(arrival.body)
    if state is State.QUARANTINED:
        row.quarantined += 1
    else:
        row.expect(after(row.now, arrival.due_in))
        row.waiting += 1
