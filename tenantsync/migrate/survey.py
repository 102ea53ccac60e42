"""Where all tenants of one database stand, asked of its catalogue and not of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection

from tenantsync.migrate.schemas import is_contention, lock_name, raw_of
from tenantsync.migrate.scripts import VERSION_TABLE
from tenantsync.models import Base
from tenantsync.tenancy.isolation import schema_of
from tenantsync.tenants import Placement

__all__ = ["Standing", "survey"]

_AT_ONCE: Final = 40  # version tables in one statement: a table and its index are a lock each
_SCHEMAS_AT_ONCE: Final = 1000
_LOCK_TIMEOUT: Final = "250ms"
_CATALOGUE: Final = """
SELECT wanted.name, n.oid IS NOT NULL,
       coalesce(array_agg(c.relname::text) FILTER (WHERE c.relname IS NOT NULL), '{}'),
       (SELECT l.pid FROM pg_locks l
        WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended(wanted.lock, 0)
        LIMIT 1)
FROM unnest(%s::text[], %s::text[]) AS wanted(name, lock)
LEFT JOIN pg_namespace n ON n.nspname = wanted.name
LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p')
  AND c.relname = ANY(%s::text[])
GROUP BY wanted.name, wanted.lock, n.oid
"""

_HOLDER: Final = b"""
SELECT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE l.granted AND n.nspname = %s AND c.relname = %s AND l.mode = 'AccessExclusiveLock' LIMIT 1
"""

_Cursor = psycopg.Cursor[tuple[Any, ...]]
_Raw = psycopg.Connection[Any]


@dataclass(slots=True)
class Standing:
    """Where one schema stands.

    Args:
        exists: Whether it is there.
        tables: Which of our tables are in it, the version table included.
        versions: The revisions in its version table, sorted; None if that could not be read.
        locked_by: The process that migrates it now, or that locked its version table.
        error: Why its version table could not be read.
    """

    exists: bool
    tables: frozenset[str]
    versions: tuple[str, ...] | None
    locked_by: int | None = None
    error: Exception | None = None


def survey(connection: Connection, placements: Sequence[Placement]) -> dict[str, Standing]:
    """Return where schemas of one database stand, by schema.

    Few statements and few locks, however many schemas there are: what each statement locked is
    let go before the next one. No lock is waited for longer than a moment.

    Args:
        connection: In no transaction, and in none afterwards.
        placements: All of this database.
    """
    raw = raw_of(connection)
    found: dict[str, Standing] = {}
    wanted = list(dict.fromkeys(placements))
    for start in range(0, len(wanted), _SCHEMAS_AT_ONCE):
        found |= _catalogued(raw, wanted[start : start + _SCHEMAS_AT_ONCE])
    versioned = [schema for schema, standing in found.items() if standing.versions is None]
    for start in range(0, len(versioned), _AT_ONCE):
        _read(raw, versioned[start : start + _AT_ONCE], found)
    return found


def _catalogued(raw: _Raw, placements: Sequence[Placement]) -> dict[str, Standing]:
    values = (
        [schema_of(placement) for placement in placements],
        [lock_name(placement) for placement in placements],
        [VERSION_TABLE, *Base.metadata.tables],
    )
    cursor = _ask(raw, _CATALOGUE.encode(), values)
    shared: dict[frozenset[str], frozenset[str]] = {}
    standings = {}
    for schema, exists, names, pid in cursor:
        tables = frozenset(names)
        tables = shared.setdefault(tables, tables)
        versions = None if VERSION_TABLE in tables else ()
        standings[schema] = Standing(exists, tables, versions, pid)
    return standings


def _read(raw: _Raw, schemas: Sequence[str], found: dict[str, Standing]) -> None:
    """Read the version tables of some schemas; where one cannot be read, each by itself."""
    try:
        cursor = _ask(raw, _union(schemas))
    except psycopg.Error as error:
        if raw.closed:
            raise
        failed = error
    else:
        versions: dict[str, list[str]] = {schema: [] for schema in schemas}
        for index, version in cursor:
            versions[schemas[index]].append(version)
        for schema, several in versions.items():
            found[schema].versions = tuple(sorted(several))
        return
    if len(schemas) > 1:
        for schema in schemas:
            _read(raw, (schema,), found)
        return
    standing = found[schemas[0]]
    standing.error = failed
    if is_contention(failed) and standing.locked_by is None:
        standing.locked_by = _holder(raw, schemas[0])


def _union(schemas: Sequence[str]) -> bytes:
    # As bytes, which psycopg sends as they are; schemas are quoted as PostgreSQL does it.
    parts = []
    for index, schema in enumerate(schemas):
        quoted = schema.replace('"', '""')
        parts.append(f'SELECT {index}, version_num FROM "{quoted}".{VERSION_TABLE}')
    return " UNION ALL ".join(parts).encode()


def _holder(raw: _Raw, schema: str) -> int | None:
    row = _ask(raw, _HOLDER, (schema, VERSION_TABLE)).fetchone()
    return None if row is None else int(row[0])


def _ask(raw: _Raw, statement: bytes, values: Sequence[object] | None = None) -> _Cursor:
    """Return a cursor with the answer, whose transaction, and with it its locks, has ended."""
    limiting = psycopg.Cursor(raw, row_factory=tuple_row)
    asking = psycopg.Cursor(raw, row_factory=tuple_row)
    try:
        with raw.pipeline():
            limiting.execute("SELECT set_config('lock_timeout', %s, true)", (_LOCK_TIMEOUT,))
            asking.execute(statement, values)
            raw.commit()
    except psycopg.Error:
        if not raw.closed:
            raw.rollback()
        raise
    return asking
