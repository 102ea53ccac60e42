"""How PostgreSQL is read and written: as few round trips as possible, many places at a time.

Round trip one locks, binds, asks where we are, and reads; the answers are checked before anything
is written. Round trip two writes and commits. Every statement names its schema: the bound
search_path is for what the application itself runs.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec
import psycopg
from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor

from tenantsync.errors import TenantNotIsolated
from tenantsync.sync.apply import Changes, Known, PlaceFailed, Work
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
    b" set_config('statement_timeout', $1, true)"
)
# FOR UPDATE locks nothing where no row is, and a person's first two events may come at once. So
# one advisory lock per place, in one order for everybody, held until the end of the transaction.
_LOCK: Final = b"SELECT pg_advisory_xact_lock(key) FROM unnest($1::bigint[]) AS key"

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
        statement_timeout: Seconds that one statement may take, waiting for locks included.
    """

    def __init__(self, isolation: Isolation, *, statement_timeout: float = 5.0) -> None:
        self._isolation = isolation
        self._timeout = str(round(statement_timeout * 1000)).encode()

    def read(self, connection: Connection, works: Sequence[Work]) -> list[Known]:
        """Begin, lock, bind, read and prove all places, in one round trip."""
        if _raw(connection).autocommit:
            # Then SQLAlchemy and the hooks' session would not be in the transaction begun here.
            raise TenantNotIsolated("the connection is in autocommit: give an engine without it")
        pipeline = Pipeline(_raw(connection))
        pipeline.add(_BEGIN)
        pipeline.add(_SETTINGS, (self._timeout,))
        keys = sorted({lock_key(work.placement) for work in works})
        pipeline.add(_LOCK, (f"{{{','.join(map(str, keys))}}}".encode(),))
        owners: list[int | None] = [None] * len(pipeline)
        reads = []
        for index, work in enumerate(works):
            self._isolation.bind(cast("DBAPICursor", pipeline), work.placement)
            self._isolation.locate(cast("DBAPICursor", pipeline), work.placement)
            ids = text_array([event.id for event in work.events])
            subjects = text_array(list({event.sub for event in work.events if event.sub}))
            pipeline.add(_in_schema(_READ, work.placement), (ids, subjects))
            owners += [index] * (len(pipeline) - len(owners))
            reads.append(len(pipeline) - 1)
        rows = _run(pipeline, owners)
        known = []
        transactions = set()
        for index, (work, read) in enumerate(zip(works, reads, strict=True)):
            where = rows[read - 1]
            answer = where and [None if value is None else value.decode() for value in where]
            try:
                transactions.add(self._isolation.confirm(answer, work.placement))
            except TenantNotIsolated as error:
                raise PlaceFailed(index) from error
            known.append(_known(rows[read] or ()))
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
        pipeline = Pipeline(_raw(connection))
        owners: list[int | None] = []
        for index, (work, change) in enumerate(zip(works, changes, strict=True)):
            if change.ledger:
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
        _run(pipeline, owners)
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


def _in_schema(statement: str, placement: Placement) -> bytes:
    schema = schema_of(placement).replace('"', '""')
    return statement.replace("@", f'"{schema}"').encode()


def _run(pipeline: Pipeline, owners: Sequence[int | None]) -> list[Row | None]:
    """Send the statements; if one fails, say whose it was.

    Args:
        pipeline: The statements.
        owners: For each of them the index of its place; None for what is everybody's.
    """
    try:
        return pipeline.run()
    except StatementFailed as failure:
        cause = failure.__cause__ or failure
        owner = owners[failure.index]
        if owner is None:
            raise cause from None
        raise PlaceFailed(owner) from cause


def _known(answer: Sequence[bytes | None]) -> Known:
    ids, buried, rows = (msgspec.json.decode(part) if part else () for part in answer)
    people: dict[str, Person | Tombstone] = {}
    for subject, clocks, created, *values in rows:
        row = dict(zip(_COLUMNS, values, strict=True))
        row["groups"] = row["groups"] or []
        people[subject] = Person(row, revert_clocks(clocks), created)
    for subject, clock in dict(buried).items():
        people[subject] = Tombstone(clock)
    return Known(frozenset(ids), people)


def _changed_columns(change: Changes) -> list[str]:
    """Return the columns in which some row differs from what it held, or would be inserted with."""
    changed: set[str] = set()
    for subject, person in change.people.items():
        held = change.before.get(subject)
        values = held.values if isinstance(held, Person) else _INSERTED
        changed.update(name for name, value in person.values.items() if value != values[name])
    return sorted(changed)


def _write_statement(change: Changes, columns: Sequence[str]) -> str:
    parts = [_WRITE_LEDGER]
    if change.people:
        people = _WRITE_PEOPLE.format(
            names="".join(f", {name}" for name in columns),
            typed="".join(f", {name} {_TYPES[name]}" for name in columns),
            assigned="".join(f", {name} = excluded.{name}" for name in columns),
        )
        parts.append(people)
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
            "tombstones": change.tombstones,
            "sessions": change.sessions,
        }
    )
