"""How a SQLite file is read and written: one writer at a time, from the BEGIN on."""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec
from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor

from tenantsync.errors import TenantNotIsolated
from tenantsync.steps import Step, reach
from tenantsync.sync.apply import Changes, Known, Limits, PlaceFailed, Work
from tenantsync.sync.merge import Person, Tombstone, invert_clocks, revert_clocks
from tenantsync.tenancy.engines import READ_ONLY
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenants import Placement

__all__ = ["SqliteStore"]

_COLUMNS: Final = tuple(Person.unknown(default_app_access=True).values)
_NAMES: Final = ", ".join(_COLUMNS)
_BOOLEANS: Final = ("email_verified", "phone_verified", "is_active", "has_app_access")
_LISTS: Final = ("groups", "tenant_roles")
_NOW: Final = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"
_AMONG: Final = "IN (SELECT value FROM json_each(?))"

# `main.`, because SQLite looks among temporary tables first, and a hook may have made some.
_READ_LEDGER: Final = f"SELECT event_id FROM main.av_sync_events WHERE event_id {_AMONG}"
_READ_TOMBSTONES: Final = f"SELECT id, clock FROM main.av_identity_tombstones WHERE id {_AMONG}"
_READ_PEOPLE: Final = (
    f"SELECT id, clocks, created_at, {_NAMES} FROM main.av_identities WHERE id {_AMONG}"
)
_WRITE_LEDGER: Final = (
    "INSERT INTO main.av_sync_events (event_id, type, subject, occurred_at, outcome)"
    " VALUES (?, ?, ?, ?, ?)"
)
_WRITE_PEOPLE: Final = (
    f"INSERT INTO main.av_identities (id, clocks, created_at, {_NAMES}, synced_at, updated_at)"
    f" VALUES (?, ?, ?, {', '.join('?' * len(_COLUMNS))}, {_NOW}, {_NOW})"
    " ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(
        f"{name} = excluded.{name}"
        for name in ("clocks", "created_at", *_COLUMNS, "synced_at", "updated_at")
    )
)
_PAGE: Final = (
    f"SELECT id, clocks, created_at, {_NAMES} FROM main.av_identities"
    " WHERE id > ? ORDER BY id LIMIT ?"
)
# Nobody changed: the row is confirmed, which is no update of it.
_WRITE_CLOCKS: Final = (
    "UPDATE main.av_identities AS i SET clocks = json_extract(each.value, '$[1]'),"
    f" synced_at = {_NOW}, created_at = json_extract(each.value, '$[2]')"
    " FROM json_each(?) AS each WHERE i.id = json_extract(each.value, '$[0]')"
)
_WRITE_TOMBSTONES: Final = (
    "INSERT INTO main.av_identity_tombstones (id, clock) VALUES (?, ?)"
    " ON CONFLICT (id) DO UPDATE SET clock = excluded.clock"
)
_REMOVE_PEOPLE: Final = "DELETE FROM main.av_identities WHERE id = ?"
_END_SESSIONS: Final = (
    f"UPDATE main.av_identity_sessions SET revoked_at = {_NOW}"
    " WHERE identity_id = ? AND revoked_at IS NULL AND created_at < ?"
)


class SqliteStore:
    """Reads and writes SQLite files.

    Args:
        isolation: Proves that the connection has the right file open.
    """

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation

    @contextmanager
    def begin(self, connection: Connection, limits: Limits) -> Iterator[None]:
        """Begin with the write lock, waiting for it no longer than allowed."""
        raw = _raw(connection)
        with _patience(raw, limits.lock):
            transaction = connection.begin()
            if not raw.in_transaction:
                # An engine of the caller's own may begin later, or not at all; the read belongs
                # under the lock, or two writers would merge into the same state.
                raw.execute("BEGIN IMMEDIATE")
        with transaction:
            yield

    def read(
        self, connection: Connection, works: Sequence[Work], limits: Limits
    ) -> list[Known | None]:
        """Read and prove: one file is one place, and its lock is there since the beginning."""
        raw = _raw(connection)
        return [self._read(raw, index, work) for index, work in enumerate(works)]

    def write(
        self,
        connection: Connection,
        works: Sequence[Work],
        changes: Sequence[Changes],
        limits: Limits,
        *,
        commit: bool,
    ) -> None:
        """Write, and commit if asked to."""
        raw = _raw(connection)
        for index, change in enumerate(changes):
            try:
                _write(raw, change)
            except sqlite3.Error as error:
                raise PlaceFailed(index) from error
        reach(Step.WRITTEN)
        if commit:
            connection.commit()

    def page(
        self, connection: Connection, placement: Placement, after: str, size: int, limits: Limits
    ) -> list[tuple[str, Person]]:
        """Return the next rows of the file; writers go on meanwhile."""
        with self._looking(connection, placement) as cursor:
            return [_person(row) for row in cursor.execute(_PAGE, (after, size))]

    def buried(
        self,
        connection: Connection,
        placement: Placement,
        subjects: Collection[str],
        limits: Limits,
    ) -> frozenset[str]:
        """Return which of some people were deleted for good."""
        with self._looking(connection, placement) as cursor:
            rows = cursor.execute(_READ_TOMBSTONES, (_json(list(subjects)),))
            return frozenset(subject for subject, _ in rows)

    @contextmanager
    def _looking(self, connection: Connection, placement: Placement) -> Iterator[sqlite3.Cursor]:
        """Give a cursor in a transaction that reads the file, which is proven first."""
        reading = connection.execution_options(**{READ_ONLY: True})
        with reading.begin(), closing(_raw(reading).cursor()) as cursor:
            self._isolation.bind(cast("DBAPICursor", cursor), placement)
            self._isolation.locate(cast("DBAPICursor", cursor), placement)
            self._isolation.confirm(cursor.fetchone(), placement)
            yield cursor

    def _read(self, raw: sqlite3.Connection, index: int, work: Work) -> Known:
        cursor = raw.cursor()
        try:
            self._isolation.bind(cast("DBAPICursor", cursor), work.placement)
            self._isolation.locate(cast("DBAPICursor", cursor), work.placement)
            self._isolation.confirm(cursor.fetchone(), work.placement)
            return _known(cursor, work)
        except (sqlite3.Error, TenantNotIsolated) as error:
            raise PlaceFailed(index) from error
        finally:
            cursor.close()


def _raw(connection: Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.driver_connection)


@contextmanager
def _patience(raw: sqlite3.Connection, seconds: float | None) -> Iterator[None]:
    """Wait no longer than this for a lock; as long as the connection was told to where None."""
    if seconds is None:
        yield
        return
    ((usual,),) = raw.execute("PRAGMA busy_timeout").fetchall()
    raw.execute(f"PRAGMA busy_timeout = {min(usual, round(seconds * 1000))}").close()
    try:
        yield
    finally:
        raw.execute(f"PRAGMA busy_timeout = {usual}").close()


def _known(cursor: sqlite3.Cursor, work: Work) -> Known:
    ids = _json([event.id for event in work.events])
    subjects = _json(work.subjects())
    seen = frozenset(row[0] for row in cursor.execute(_READ_LEDGER, (ids,)))
    people: dict[str, Person | Tombstone] = {}
    people.update(map(_person, cursor.execute(_READ_PEOPLE, (subjects,))))
    for subject, clock in cursor.execute(_READ_TOMBSTONES, (subjects,)):
        people[subject] = Tombstone(clock)
    return Known(seen, people)


def _person(row: Sequence[Any]) -> tuple[str, Person]:
    subject, clocks, created, *values = row
    known: dict[str, Any] = dict(zip(_COLUMNS, values, strict=True))
    for name in _BOOLEANS:
        known[name] = bool(known[name])
    for name in _LISTS:
        known[name] = msgspec.json.decode(known[name]) if known[name] else []
    moment = datetime.fromisoformat(created).replace(tzinfo=UTC)
    clocks = revert_clocks(msgspec.json.decode(clocks))
    return subject, Person(known, clocks, round(moment.timestamp() * 1000))


def _write(raw: sqlite3.Connection, change: Changes) -> None:
    raw.executemany(
        _WRITE_LEDGER,
        [
            (event.id, event.type, event.sub, _moment(event.timestamp), outcome.value)
            for event, outcome in change.ledger
        ],
    )
    raw.executemany(
        _WRITE_PEOPLE,
        [
            (
                subject,
                _json(invert_clocks(person.clocks)),
                _moment(person.created),
                *(
                    _json(value) if name in _LISTS else value
                    for name, value in person.values.items()
                ),
            )
            for subject, person in change.people.items()
        ],
    )
    if change.advanced:
        rows = [
            (subject, _json(invert_clocks(person.clocks)), _moment(person.created))
            for subject, person in change.advanced.items()
        ]
        raw.execute(_WRITE_CLOCKS, (_json(rows),))
    raw.executemany(_WRITE_TOMBSTONES, change.tombstones.items())
    raw.executemany(_REMOVE_PEOPLE, [(subject,) for subject in change.tombstones])
    raw.executemany(
        _END_SESSIONS,
        [(subject, _moment(before)) for subject, before in change.sessions.items()],
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _moment(milliseconds: int) -> str:
    """Return an instant as the models write it: text that sorts by time."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:03d}000"
