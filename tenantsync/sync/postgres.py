"""How PostgreSQL is read and written: as few round trips as possible, many places at a time.

Round trip one locks, binds, asks where we are, and reads; the answers are checked before anything
is written. Round trip two writes and commits. Every statement names its schema: the bound
search_path is for what the application itself runs.
"""

import hashlib
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, cast

import msgspec
import psycopg
from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor

from tenantsync.errors import TenantNotIsolated
from tenantsync.steps import Step, reach
from tenantsync.sync.apply import Changes, Known, Limits, PlaceFailed, Work
from tenantsync.sync.merge import Person, Tombstone, invert_clocks, revert_clocks
from tenantsync.sync.pipeline import Pipeline, Row, StatementFailed, text_array
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
_BEGIN: Final = b"BEGIN ISOLATION LEVEL READ COMMITTED, READ WRITE"
_SETTINGS: Final = (
    b"SELECT set_config('synchronous_commit', 'on', true),"
    b" set_config('statement_timeout', $1, true), set_config('lock_timeout', $2, true)"
)
_STATEMENT_TIMEOUT: Final = b"SELECT set_config('statement_timeout', $1, true)"
# FOR UPDATE locks nothing where no row is, and a person's first two events may come at once. So
# one advisory lock per place, in one order for everybody, held until the end of the transaction.
_LOCK: Final = b"SELECT pg_advisory_xact_lock(key) FROM unnest($1::bigint[]) AS key"
# Or none of them is waited for: who holds a batch up is known by name, and without delay.
_TRY: Final = (
    b"SELECT json_agg(key) FROM unnest($1::bigint[]) AS key"
    b" WHERE NOT pg_try_advisory_xact_lock(key)"
)

_BEGIN_READING: Final = b"BEGIN ISOLATION LEVEL READ COMMITTED, READ ONLY"
_PAGE: Final = f"""
SELECT json_agg(json_build_array(id, clocks,
        (extract(epoch FROM created_at) * 1000)::bigint, {_NAMES}) ORDER BY id)::text
FROM (SELECT id, clocks, created_at, {_NAMES} FROM @.av_identities
      WHERE id > $1 ORDER BY id LIMIT $2::integer) AS page
"""
_BURIED: Final = """
SELECT json_agg(id)::text FROM @.av_identity_tombstones WHERE id = ANY ($1::text[])
"""
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
# Only the columns that a batch changes: what is named in a statement must be parsed and planned.
_WRITE_PEOPLE: Final = """
people AS (
  INSERT INTO @.av_identities (id, clocks, created_at, synced_at, updated_at{names})
  SELECT id, clocks, to_timestamp(created / 1000.0), now(), now(){names}
  FROM batch, jsonb_to_recordset(body -> 'people')
    AS p(id text, clocks jsonb, created bigint{typed})
  ORDER BY id
  ON CONFLICT (id) DO UPDATE SET clocks = excluded.clocks, created_at = excluded.created_at,
    synced_at = excluded.synced_at, updated_at = excluded.updated_at{assigned}
)"""
# Nobody changed: the row is confirmed, which is no update of it.
_WRITE_CLOCKS: Final = """
advanced AS (
  UPDATE @.av_identities AS i
  SET clocks = a.clocks, created_at = to_timestamp(a.created / 1000.0), synced_at = now()
  FROM batch, jsonb_to_recordset(body -> 'advanced') AS a(id text, clocks jsonb, created bigint)
  WHERE i.id = a.id
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
_INSERTED: Final = Person.unknown(default_app_access=True).values
"""What a row holds in the columns that its INSERT does not name."""


class PostgresStore:
    """Reads and writes places in PostgreSQL.

    Args:
        isolation: Binds a transaction to a place and proves it.
    """

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation

    def begin(self, connection: Connection, limits: Limits) -> AbstractContextManager[object]:
        """Return SQLAlchemy's transaction; the server's begins with the read."""
        return connection.begin()

    def read(
        self, connection: Connection, works: Sequence[Work], limits: Limits
    ) -> list[Known | None]:
        """Begin, lock, bind, read and prove all places, in one round trip."""
        _refuse_autocommit(connection)
        pipeline = Pipeline(_raw(connection))
        keys = [lock_key(work.placement) for work in works]
        owners = _begin(pipeline, keys, limits)
        tried = len(pipeline) - 1
        reads = []
        for index, work in enumerate(works):
            self._isolation.bind(cast("DBAPICursor", pipeline), work.placement)
            self._isolation.locate(cast("DBAPICursor", pipeline), work.placement)
            ids = text_array([event.id for event in work.events])
            subjects = text_array(work.subjects())
            pipeline.add(_in_schema(_READ, work.placement), (ids, subjects))
            owners += [index] * (len(pipeline) - len(owners))
            reads.append(len(pipeline) - 1)
        rows = _run(pipeline, owners, limits)
        elsewhere = _elsewhere(rows[tried]) if limits.skip else frozenset()
        known: list[Known | None] = []
        transactions = set()
        for index, (work, read) in enumerate(zip(works, reads, strict=True)):
            try:
                transactions.add(self._isolation.confirm(_texts(rows[read - 1]), work.placement))
            except TenantNotIsolated as error:
                raise PlaceFailed(index) from error
            known.append(None if keys[index] in elsewhere else _known(rows[read] or ()))
        if len(transactions) != 1:
            raise TenantNotIsolated("the places were asked in different transactions")
        return known

    def write(
        self,
        connection: Connection,
        works: Sequence[Work],
        changes: Sequence[Changes],
        limits: Limits,
        *,
        commit: bool,
    ) -> None:
        """Write all places, and commit if asked to, in one round trip."""
        pipeline = Pipeline(_raw(connection))
        owners: list[int | None] = []
        for index, (work, change) in enumerate(zip(works, changes, strict=True)):
            if not change.empty:
                if len(works) > 1:  # a single place is bound since it was read
                    self._isolation.bind(cast("DBAPICursor", pipeline), work.placement)
                columns = _changed_columns(change)
                statement = _in_schema(_write_statement(change, columns), work.placement)
                pipeline.add(statement, (_body(change, columns),))
                owners += [index] * (len(pipeline) - len(owners))
        if commit:
            # As a statement: SQLAlchemy's commit would meet the errors of the statements before
            # it, take the transaction for ended, and pool the connection in mid-air.
            pipeline.add(b"COMMIT")
            owners.append(None)
        _run(pipeline, owners, limits)
        if commit:
            connection.commit()
        else:
            reach(Step.WRITTEN)

    def page(
        self, connection: Connection, placement: Placement, after: str, size: int, limits: Limits
    ) -> list[tuple[str, Person]]:
        """Return the next rows of a place, in one round trip."""
        rows = self._look(connection, placement, _PAGE, (after.encode(), b"%d" % size), limits)
        return [_person(row) for row in rows]

    def buried(
        self,
        connection: Connection,
        placement: Placement,
        subjects: Collection[str],
        limits: Limits,
    ) -> frozenset[str]:
        """Return which of some people were deleted for good, in one round trip."""
        asked = (text_array(list(subjects)),)
        return frozenset(self._look(connection, placement, _BURIED, asked, limits))

    def _look(
        self,
        connection: Connection,
        placement: Placement,
        query: str,
        parameters: Sequence[bytes],
        limits: Limits,
    ) -> list[Any]:
        """Return the JSON that a query of one place answers with."""
        with connection.begin():
            _refuse_autocommit(connection)
            pipeline = Pipeline(_raw(connection))
            pipeline.add(_BEGIN_READING)
            pipeline.add(_SETTINGS, (_milliseconds(limits.statement), b"0"))
            self._isolation.bind(cast("DBAPICursor", pipeline), placement)
            self._isolation.locate(cast("DBAPICursor", pipeline), placement)
            located = len(pipeline) - 1
            pipeline.add(_in_schema(query, placement), parameters)
            pipeline.add(b"COMMIT")
            rows = _run(pipeline, [0] * len(pipeline), limits)
            self._isolation.confirm(_texts(rows[located]), placement)
            answer = rows[located + 1]
            connection.commit()
        return list(msgspec.json.decode(answer[0])) if answer and answer[0] else []


def lock_key(placement: Placement) -> int:
    """Return the key of the place's advisory lock in its database: 64 bits, signed.

    The same for every process, whatever it calls the tenant: the place is what is locked.
    """
    digest = hashlib.sha256(f"tenantsync {schema_of(placement)}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _raw(connection: Connection) -> psycopg.Connection[Any]:
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection)


def _refuse_autocommit(connection: Connection) -> None:
    if _raw(connection).autocommit:
        # Then SQLAlchemy and the hooks' session would not be in the transaction begun here.
        raise TenantNotIsolated("the connection is in autocommit: give an engine without it")


def _texts(row: Row | None) -> list[str | None] | None:
    return None if row is None else [None if value is None else value.decode() for value in row]


def _in_schema(statement: str, placement: Placement) -> bytes:
    schema = schema_of(placement).replace('"', '""')
    return statement.replace("@", f'"{schema}"').encode()


def _begin(pipeline: Pipeline, keys: Sequence[int], limits: Limits) -> list[int | None]:
    """Add how every transaction begins, the locks last, and return whose each statement is."""
    ordered = f"{{{','.join(map(str, sorted(set(keys))))}}}".encode()
    lock, statement = _milliseconds(limits.lock or 0.0), _milliseconds(limits.statement)
    pipeline.add(_BEGIN)
    if limits.skip:
        pipeline.add(_SETTINGS, (statement, lock))
        pipeline.add(_TRY, (ordered,))
        return [None, None, None]
    if len(keys) == 1:
        pipeline.add(_SETTINGS, (statement, lock))
        pipeline.add(_LOCK, (ordered,))
        return [None, None, 0]
    # All locks together may take as long as one.
    pipeline.add(_SETTINGS, (lock if limits.lock else statement, lock))
    pipeline.add(_LOCK, (ordered,))
    pipeline.add(_STATEMENT_TIMEOUT, (statement,))
    return [None, None, None, None]


def _elsewhere(answer: Row | None) -> frozenset[int]:
    """Return the keys of the locks that somebody else holds."""
    keys = answer[0] if answer else None
    return frozenset(msgspec.json.decode(keys)) if keys else frozenset()


def _milliseconds(seconds: float) -> bytes:
    return str(round(seconds * 1000)).encode()


def _run(pipeline: Pipeline, owners: Sequence[int | None], limits: Limits) -> list[Row | None]:
    """Send the statements; if one fails, say whose it was.

    Args:
        pipeline: The statements.
        owners: For each of them the index of its place; None for what is everybody's.
        limits: How long to wait for the answer.
    """
    try:
        return pipeline.run(limits.answer)
    except StatementFailed as failure:
        cause = failure.__cause__ or failure
        owner = owners[failure.index]
        if owner is None:
            raise cause from None
        raise PlaceFailed(owner) from cause


def _known(answer: Sequence[bytes | None]) -> Known:
    ids, buried, rows = (msgspec.json.decode(part) if part else () for part in answer)
    people: dict[str, Person | Tombstone] = {}
    people.update(map(_person, rows))
    for subject, clock in dict(buried).items():
        people[subject] = Tombstone(clock)
    return Known(frozenset(ids), people)


def _person(row: Sequence[Any]) -> tuple[str, Person]:
    subject, clocks, created, *values = row
    known = dict(zip(_COLUMNS, values, strict=True))
    known["groups"] = known["groups"] or []
    return subject, Person(known, revert_clocks(clocks), created)


def _changed_columns(change: Changes) -> list[str]:
    """Return the columns in which some row differs from what it held, or would be inserted with."""
    changed: set[str] = set()
    for subject, person in change.people.items():
        held = change.before.get(subject)
        values = held.values if isinstance(held, Person) else _INSERTED
        changed.update(name for name, value in person.values.items() if value != values[name])
    return sorted(changed)


def _write_statement(change: Changes, columns: Sequence[str]) -> str:
    parts = [_WRITE_LEDGER] if change.ledger else []
    if change.people:
        people = _WRITE_PEOPLE.format(
            names="".join(f", {name}" for name in columns),
            typed="".join(f", {name} {_TYPES[name]}" for name in columns),
            assigned="".join(f", {name} = excluded.{name}" for name in columns),
        )
        parts.append(people)
    if change.advanced:
        parts.append(_WRITE_CLOCKS)
    if change.tombstones or change.sessions:
        parts.append(_WRITE_ENDINGS)
    return f"{_BATCH}{','.join(parts)} SELECT FROM batch"


def _body(change: Changes, columns: Sequence[str]) -> bytes:
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
                    **{name: person.values[name] for name in columns},
                }
                for subject, person in change.people.items()
            ],
            "advanced": [
                {
                    "id": subject,
                    "clocks": invert_clocks(person.clocks),
                    "created": person.created,
                }
                for subject, person in change.advanced.items()
            ],
            "tombstones": change.tombstones,
            "sessions": change.sessions,
        }
    )
