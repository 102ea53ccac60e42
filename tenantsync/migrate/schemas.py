"""PostgreSQL: one tenant's transaction, from its lock to the proof that nothing went astray."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, cast

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError

from tenantsync.errors import TenantNotIsolated
from tenantsync.migrate.moves import Limits
from tenantsync.migrate.places import let_in
from tenantsync.migrate.report import State, Stopped
from tenantsync.migrate.scripts import VERSION_TABLE
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenants import Placement

__all__ = [
    "Entered",
    "SchemaVisitor",
    "blocker_of",
    "is_contention",
    "lock_name",
    "milliseconds",
    "opening",
    "raw_of",
    "refuse_other_transaction",
    "versions_query",
]

_CONTENTION: Final = frozenset(
    ("55P03", "40P01", "40001")  # no lock in time, a deadlock, a serialization failure
)

_BUSY: Final = frozenset((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED))

_SETTINGS: Final = (
    # All LOCAL. A migration may run longer than the login's statements usually may, but must not
    # wait for a lock for long: everybody else would queue behind it.
    "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true),"
    " set_config('synchronous_commit', 'on', true),"
    " pg_try_advisory_xact_lock(hashtextextended(%s, 0))"
)
_WAIT: Final = "SELECT set_config('lock_timeout', %s, true)"
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
# Asked after the lock is held: what it sees is not older than the lock.
_LOOK: Final = """
SELECT n.oid IS NOT NULL, c.oid IS NOT NULL FROM (VALUES (%s, %s)) AS wanted(schema, versions)
LEFT JOIN pg_namespace n ON n.nspname = wanted.schema
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.versions
"""
_ASTRAY: Final = (
    # pg_class has a row for each table, index and sequence; this transaction wrote those that it
    # made or altered. The temporary ones go by themselves.
    "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.xmin = pg_current_xact_id()::xid AND n.nspname <> %s"
    " AND n.nspname NOT LIKE 'pg\\_%%' ORDER BY 1, 2 LIMIT 1"
)
_TABLES: Final = (
    "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = %s AND c.relkind IN ('r', 'p')"
)
_BLOCKER: Final = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), a.usename, 'unknown'), a.state,
       floor(extract(epoch FROM clock_timestamp() - a.xact_start))::bigint
FROM pg_locks l
JOIN pg_class c ON c.oid = l.relation
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_stat_activity a ON a.pid = l.pid
WHERE n.nspname = %s AND l.granted AND a.pid <> pg_backend_pid()
ORDER BY a.xact_start NULLS LAST LIMIT 1
"""

_Cursor = psycopg.Cursor[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Entered:
    """A transaction that holds the tenant's lock, is bound to its schema, and was proven to be.

    Args:
        transaction: PostgreSQL's id of it.
        versions: The revisions that the place stands at, sorted.
    """

    transaction: str
    versions: tuple[str, ...]


class SchemaVisitor:
    """Opens and closes the transactions in which tenants' schemas are migrated.

    Args:
        isolation: Makes, binds and proves.
        limits: How long it may wait.
    """

    def __init__(self, isolation: Isolation, limits: Limits) -> None:
        self._isolation = isolation
        self._limits = limits

    def enter(self, connection: Connection, placement: Placement, *, make: bool) -> Entered:
        """Lock, bind, prove and read the place, in the transaction that has just begun.

        Args:
            connection: In a transaction that has done nothing yet.
            placement: The place.
            make: Whether a missing schema is made.

        Raises:
            Stopped: Another run has the lock, or the schema is missing.
        """
        raw = raw_of(connection)
        if raw.autocommit:
            # Each statement would be a transaction of its own: gone would be the lock, the place,
            # and all or nothing.
            raise TenantNotIsolated("the connection is in autocommit: give an engine without it")
        schema, name = schema_of(placement), lock_name(placement)
        settings, looking = _cursor(raw), _cursor(raw)
        with raw.pipeline():
            settings.execute(*opening(self._limits, name))
            looking.execute(_LOOK, (schema, VERSION_TABLE))
        if not (settings.fetchone() or (False,))[-1]:
            self._wait_for_lock(raw, name)
            looking.execute(_LOOK, (schema, VERSION_TABLE))
        has_schema, has_versions = looking.fetchone() or (False, False)
        if not has_schema:
            if not make:
                raise Stopped(
                    State.MISSING,
                    f"schema {schema!r} does not exist: run `tenantsync migrate upgrade`",
                )
            self._isolation.create(connection, placement)
            let_in(connection, placement)
        where, reading = _cursor(raw), _cursor(raw)
        with raw.pipeline():
            self._isolation.bind(cast("DBAPICursor", where), placement)
            self._isolation.locate(cast("DBAPICursor", where), placement)
            if has_versions:
                reading.execute(versions_query(schema))
        transaction = self._isolation.confirm(where.fetchone(), placement)
        return Entered(transaction, _sorted(reading) if has_versions else ())

    def leave(
        self, connection: Connection, placement: Placement, entered: Entered
    ) -> tuple[str, ...]:
        """Prove that the transaction is still where it was, and return the revisions there now.

        Raises:
            TenantNotIsolated: It ended, or moved elsewhere.
        """
        raw = raw_of(connection)
        where, reading = _cursor(raw), _cursor(raw)
        with raw.pipeline():
            self._isolation.locate(cast("DBAPICursor", where), placement)
            reading.execute(_LOOK, (schema_of(placement), VERSION_TABLE))
        self._confirm_same(where.fetchone(), placement, entered)
        if not (reading.fetchone() or (False, False))[1]:
            return ()
        reading.execute(versions_query(schema_of(placement)))
        return _sorted(reading)

    def replay(
        self, connection: Connection, placement: Placement, entered: Entered, script: bytes
    ) -> tuple[str, ...]:
        """Run a script that writes versions, prove as `leave` does, and return the revisions.

        Raises:
            TenantNotIsolated: The transaction ended, or moved elsewhere.
        """
        raw = raw_of(connection)
        # One message, however many statements: without parameters psycopg sends it as it is.
        try:
            _cursor(raw).execute(script)
        except psycopg.errors.UndefinedTable as error:
            if VERSION_TABLE not in str(error):
                raise
            raise TenantNotIsolated(
                "a revision ended the transaction that it ran in, or led it out of the tenant's "
                "schema with search_path: take that out, and look whether something stands "
                "half-made"
            ) from error
        where, reading = _cursor(raw), _cursor(raw)
        with raw.pipeline():
            self._isolation.locate(cast("DBAPICursor", where), placement)
            reading.execute(versions_query(schema_of(placement)))
        self._confirm_same(where.fetchone(), placement, entered)
        return _sorted(reading)

    def tables(self, connection: Connection, placement: Placement) -> set[str]:
        """Return the names of the tables in the schema."""
        cursor = _cursor(raw_of(connection))
        cursor.execute(_TABLES, (schema_of(placement),))
        return {name for (name,) in cursor}

    def refuse_astray(self, connection: Connection, placement: Placement) -> None:
        """Do nothing if all that this transaction made or altered is in the schema.

        Raises:
            Stopped: A revision named another schema; that is so for every tenant.
        """
        cursor = _cursor(raw_of(connection))
        cursor.execute(_ASTRAY, (schema_of(placement),))
        found = cursor.fetchone()
        if found:
            raise Stopped(
                State.FAILED,
                f"a revision touched {found[1]!r} in the schema {found[0]!r}, which is not this "
                "tenant's, so the run was stopped and nothing of it stands: take the schema out "
                "of the revision",
                everywhere=True,
            )

    def _confirm_same(
        self, answer: Sequence[Any] | None, placement: Placement, entered: Entered
    ) -> None:
        refuse_other_transaction(answer, entered.transaction)
        self._isolation.confirm(answer, placement)

    def _wait_for_lock(self, raw: psycopg.Connection[Any], name: str) -> None:
        if self._limits.wait <= 0:
            raise Stopped(State.SKIPPED, "another run is migrating it")
        cursor = _cursor(raw)
        cursor.execute(_WAIT, (milliseconds(self._limits.wait),))
        try:
            cursor.execute(_LOCK, (name,))
        except psycopg.errors.LockNotAvailable:
            raise Stopped(
                State.LOCKED,
                f"another migration of it has run for more than {self._limits.wait:g} seconds: "
                "try again when it is done",
            ) from None  # this one is not to be tried again
        cursor.execute(_WAIT, (milliseconds(self._limits.lock),))


def opening(limits: Limits, name: str) -> tuple[LiteralString, tuple[str, ...]]:
    """Return the first statement of a visit: it sets limits, and says last if it got the lock.

    Args:
        limits: How long it may wait.
        name: What `lock_name` says.
    """
    return _SETTINGS, (milliseconds(limits.lock), milliseconds(limits.statement), name)


def refuse_other_transaction(answer: Sequence[Any] | None, transaction: str) -> None:
    """Do nothing if an isolation's answer comes from this transaction.

    A revision may have ended it, and with it the lock and the place. Then what it did is not where
    it should be.

    Raises:
        TenantNotIsolated: It comes from another one.
    """
    if answer is not None and answer[-1] != transaction:
        raise TenantNotIsolated(
            "a revision ended the transaction that it ran in, so that what it did may "
            "stand half-made: look there, and take the COMMIT out of the revision"
        )


def lock_name(placement: Placement) -> str:
    """Return what is hashed for the advisory lock of a place: the same for every runner."""
    return f"tenantsync migrate {schema_of(placement)}"


def milliseconds(seconds: float) -> str:
    """Return a time as PostgreSQL's settings want it; 0 stays 0, which is for ever."""
    if seconds == float("inf"):
        return "0"
    return f"{max(1, round(seconds * 1000))}ms" if seconds else "0"


def raw_of(connection: Connection) -> psycopg.Connection[Any]:
    """Return the driver's connection."""
    return cast("psycopg.Connection[Any]", connection.connection.driver_connection)


def is_contention(error: BaseException) -> bool:
    """Return whether an error says that somebody else was in the way for the moment."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _BUSY
    return getattr(cause, "sqlstate", None) in _CONTENTION


def blocker_of(connection: Connection, placement: Placement) -> str | None:
    """Return who holds locks in the schema, as a sentence; None if nobody does any more."""
    with connection.begin():
        cursor = _cursor(raw_of(connection))
        cursor.execute(_BLOCKER, (schema_of(placement),))
        found = cursor.fetchone()
    if found is None:
        return None
    pid, who, state, seconds = found
    told = f", {state}" if state else ""
    since = f" for {seconds} s" if seconds is not None else ""
    return f"process {pid} ({who}{told}{since})"


def _cursor(raw: psycopg.Connection[Any]) -> _Cursor:
    return psycopg.Cursor(raw, row_factory=tuple_row)


def versions_query(schema: str) -> bytes:
    """Return the statement that reads the revisions of a schema."""
    # As bytes, which psycopg sends as they are; the schema is quoted as PostgreSQL does it.
    quoted = schema.replace('"', '""')
    return f'SELECT version_num FROM "{quoted}".{VERSION_TABLE}'.encode()


def _sorted(cursor: _Cursor) -> tuple[str, ...]:
    return tuple(sorted(version for (version,) in cursor))
