"""How PostgreSQL is read and written: as few round trips as possible, many places at a time.

Round trip one locks, binds, asks where we are, and reads; the answers are checked before anything
is written. Round trip two writes and commits. Every statement names its schema: the bound
search_path is for what the application itself runs.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import msgspec
import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor

from tenantsync.errors import TenantNotIsolated
from tenantsync.sync.apply import Changes, Known, PlaceFailed, Work
from tenantsync.sync.merge import Person, Tombstone, invert_clocks, revert_clocks
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenants import Placement

__all__ = ["PostgresStore", "lock_key"]

_COLUMNS: Final = tuple(Person.unknown(default_app_access=True).values)
_TYPES: Final = dict.fromkeys(_COLUMNS, "text") | {
    "email_verified": "boolean",
    "phone_verified": "boolean",
    "is_active": "boolean",
    "has_app_access": "boolean",
    "groups": "text[]",
    "tenant_roles": "text[]",
}
_NAMES: Final = ", ".join(_COLUMNS)

# READ COMMITTED whatever the role's default: the statements after the lock must see what the
# writer before us committed. Synchronous commit too: what is acknowledged survives a crash.
_BEGIN: Final = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"
_SETTINGS: Final = (
    "SELECT set_config('synchronous_commit', 'on', true), set_config('statement_timeout', %s, true)"
)
# FOR UPDATE locks nothing where no row is, and a person's first two events may come at once. So
# one advisory lock per place, in one order for everybody, held until the end of the transaction.
_LOCK: Final = "SELECT pg_advisory_xact_lock(key) FROM unnest(%s::bigint[]) AS key"

_READ: Final = f"""
SELECT (SELECT json_agg(event_id) FROM @.av_sync_events WHERE event_id = ANY ($1::text[]))::text,
  (SELECT json_object_agg(id, clock) FROM @.av_identity_tombstones
    WHERE id = ANY ($2::text[]))::text,
  (SELECT json_agg(json_build_array(id, clocks,
        (extract(epoch FROM created_at) * 1000)::bigint, {_NAMES}))
    FROM @.av_identities WHERE id = ANY ($2::text[]))::text
"""

_WRITE_LEDGER: Final = """
ledger AS (
  INSERT INTO @.av_sync_events (event_id, type, subject, occurred_at, outcome)
  SELECT event_id, type, subject, to_timestamp(occurred / 1000.0), outcome
  FROM batch, jsonb_to_recordset(body -> 'ledger')
    AS e(event_id text, type text, subject text, occurred bigint, outcome text)
)"""
_WRITE_PEOPLE: Final = f"""
people AS (
  INSERT INTO @.av_identities (id, clocks, created_at, synced_at, updated_at, {_NAMES})
  SELECT id, clocks, to_timestamp(created / 1000.0), now(), now(), {_NAMES}
  FROM batch, jsonb_to_recordset(body -> 'people') AS p(id text, clocks jsonb, created bigint,
    {", ".join(f"{name} {kind}" for name, kind in _TYPES.items())})
  ORDER BY id
  ON CONFLICT (id) DO UPDATE SET clocks = excluded.clocks, created_at = excluded.created_at,
    synced_at = excluded.synced_at, updated_at = excluded.updated_at,
    {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)}
)"""
_WRITE_ENDINGS: Final = """
buried AS (
  INSERT INTO @.av_identity_tombstones (id, clock)
  SELECT key, value FROM batch, jsonb_each_text(body -> 'tombstones') ORDER BY key
  ON CONFLICT (id) DO UPDATE SET clock = excluded.clock
),
removed AS (
  DELETE FROM @.av_identities WHERE id IN (
    SELECT key FROM batch, jsonb_each(body -> 'tombstones'))
),
ended AS (
  UPDATE @.av_identity_sessions AS s SET revoked_at = now()
  FROM batch, jsonb_each_text(body -> 'sessions') AS e
  WHERE s.identity_id = e.key AND s.revoked_at IS NULL
    AND s.created_at < to_timestamp(e.value::bigint / 1000.0)
)"""
_BATCH: Final = "WITH batch AS (SELECT $1::jsonb AS body),"
_WRITE: Final = f"{_BATCH}{_WRITE_LEDGER},{_WRITE_PEOPLE} SELECT FROM batch"
_WRITE_ALL: Final = f"{_BATCH}{_WRITE_LEDGER},{_WRITE_PEOPLE},{_WRITE_ENDINGS} SELECT FROM batch"

_Cursor = psycopg.Cursor[tuple[Any, ...]]


class PostgresStore:
    """Reads and writes places in PostgreSQL through psycopg's pipeline.

    Args:
        isolation: Binds a transaction to a place and proves it.
        statement_timeout: Seconds that one statement may take, waiting for locks included.
    """

    def __init__(self, isolation: Isolation, *, statement_timeout: float = 5.0) -> None:
        self._isolation = isolation
        self._timeout = str(round(statement_timeout * 1000))

    def read(self, connection: Connection, works: Sequence[Work]) -> list[Known]:
        """Lock, bind, read and prove all places, in one round trip."""
        raw = _raw(connection)
        if raw.autocommit:
            # Each round trip would be a transaction of its own, although a pipeline hides it from
            # the proof: gone are the lock, the binding, and all or nothing.
            raise TenantNotIsolated("the connection is in autocommit: give an engine without it")
        asked: list[tuple[_Cursor, _Cursor]] = []
        opening, locking = _cursor(raw), _cursor(raw)
        with _attributed(asked, after=locking), raw.pipeline():
            opening.execute(_BEGIN)
            opening.execute(_SETTINGS, (self._timeout,))
            locking.execute(_LOCK, (sorted({lock_key(work.placement) for work in works}),))
            for work in works:
                where, read = _cursor(raw), _raw_cursor(raw)
                # Noted before it is asked: an answer may come, and fail, at any later execute.
                asked.append((where, read))
                self._isolation.bind(cast("DBAPICursor", where), work.placement)
                self._isolation.locate(cast("DBAPICursor", where), work.placement)
                ids = [event.id for event in work.events]
                subjects = list({event.sub for event in work.events if event.sub})
                read.execute(_in_schema(_READ, work.placement), (ids, subjects))
        known = []
        transactions = set()
        for index, (work, (where, read)) in enumerate(zip(works, asked, strict=True)):
            try:
                transactions.add(self._isolation.confirm(where.fetchone(), work.placement))
            except TenantNotIsolated as error:
                raise PlaceFailed(index) from error
            known.append(_known(read.fetchone() or ()))
        if len(transactions) != 1:
            raise TenantNotIsolated("the places were asked in different transactions")
        return known

    def write(
        self,
        connection: Connection,
        works: Sequence[Work],
        changes: Sequence[Changes],
        *,
        commit: bool,
    ) -> None:
        """Write all places, and commit if asked to, in one round trip."""
        raw = _raw(connection)
        written: list[tuple[_Cursor, ...]] = []
        with _attributed(written), raw.pipeline():
            binding = _cursor(raw)
            for work, change in zip(works, changes, strict=True):
                if not change.ledger:
                    written.append(())
                    continue
                if len(works) > 1:  # a single place is bound since it was read
                    self._isolation.bind(cast("DBAPICursor", binding), work.placement)
                writing = _raw_cursor(raw)
                written.append((writing,))
                ends = change.tombstones or change.sessions
                statement = _in_schema(_WRITE_ALL if ends else _WRITE, work.placement)
                writing.execute(statement, (_body(change),))
            if commit:
                # As a statement: SQLAlchemy's commit would meet the errors of the statements
                # before it, take the transaction for ended, and pool the connection in mid-air.
                _cursor(raw).execute("COMMIT")
        if commit:
            connection.commit()


def lock_key(placement: Placement) -> int:
    """Return the key of the place's advisory lock in its database: 64 bits, signed.

    The same for every process, whatever it calls the tenant: the place is what is locked.
    """
    digest = hashlib.sha256(f"tenantsync {schema_of(placement)}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _raw(connection: Connection) -> psycopg.Connection[Any]:
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection)


def _cursor(raw: psycopg.Connection[Any]) -> _Cursor:
    return psycopg.Cursor(raw, row_factory=tuple_row)


def _raw_cursor(raw: psycopg.Connection[Any]) -> _Cursor:
    # PostgreSQL's own $1 for long statements: psycopg need not look through them for %s.
    return psycopg.RawCursor(raw, row_factory=tuple_row)


def _in_schema(statement: str, placement: Placement) -> bytes:
    # As bytes, which psycopg sends as they are; the schema is quoted as PostgreSQL does it.
    schema = schema_of(placement).replace('"', '""')
    return statement.replace("@", f'"{schema}"').encode()


@contextmanager
def _attributed(
    cursors: Sequence[tuple[_Cursor, ...]], *, after: _Cursor | None = None
) -> Iterator[None]:
    """Say whose statement failed: the first place that a cursor has no result for.

    In a pipeline the error comes out late, and everything after the culprit was skipped.

    Args:
        cursors: Those of each place.
        after: What came before all places, such as the lock, and blames none of them.
    """
    try:
        yield
    except psycopg.Error as error:
        answered = [all(cursor.pgresult is not None for cursor in place) for place in cursors]
        # Where all were answered, the COMMIT failed.
        if all(answered) or (after is not None and after.pgresult is None):
            raise
        raise PlaceFailed(answered.index(False)) from error


def _known(answer: Sequence[str | None]) -> Known:
    ids, buried, rows = (msgspec.json.decode(part) if part else () for part in answer)
    people: dict[str, Person | Tombstone] = {}
    for subject, clocks, created, *values in rows:
        row = dict(zip(_COLUMNS, values, strict=True))
        row["groups"] = row["groups"] or []
        people[subject] = Person(row, revert_clocks(clocks), created)
    for subject, clock in dict(buried).items():
        people[subject] = Tombstone(clock)
    return Known(frozenset(ids), people)


def _body(change: Changes) -> str:
    return msgspec.json.encode(
        {
            "ledger": [
                {
                    "event_id": event.id,
                    "type": event.type,
                    "subject": event.sub,
                    "occurred": event.timestamp,
                    "outcome": outcome,
                }
                for event, outcome in change.ledger
            ],
            "people": [
                {
                    "id": subject,
                    "clocks": invert_clocks(person.clocks),
                    "created": person.created,
                    **person.values,
                }
                for subject, person in change.people.items()
            ],
            "tombstones": change.tombstones,
            "sessions": change.sessions,
        }
    ).decode()
