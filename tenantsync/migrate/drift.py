"""Whether tenants' tables are what the migrations make, asked of the catalogue set by set."""

import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any, Final

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import Connection

from tenantsync.migrate.connections import Connections
from tenantsync.migrate.schemas import raw_of
from tenantsync.migrate.scratch import scratch
from tenantsync.migrate.scripts import Scripts
from tenantsync.tenancy.engines import EngineFactory
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenants import Placement

__all__ = ["Expected", "differences", "drifts"]

_AT_ONCE: Final = 500  # schemas in one statement
_NAMED: Final = 5  # differences that are told one by one

_FACTS: Final = """
WITH wanted AS (
  SELECT n.oid, n.nspname, quote_ident(n.nspname) || '.' AS prefix
  FROM pg_namespace n WHERE n.nspname = ANY(%(schemas)s::text[])
), tables AS (
  SELECT c.oid, c.relname::text AS name, w.nspname::text AS schema, w.prefix
  FROM wanted w JOIN pg_class c ON c.relnamespace = w.oid AND c.relkind IN ('r', 'p')
  WHERE %(tables)s::text[] IS NULL OR c.relname = ANY(%(tables)s::text[])
), facts AS (
  SELECT t.schema, t.name AS of, 'table' AS kind, t.name, '' AS definition FROM tables t
  UNION ALL
  SELECT t.schema, t.name, 'column', a.attname::text,
         replace(format_type(a.atttypid, a.atttypmod), t.prefix, '')
         || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
         || coalesce(' COLLATE ' || nullif(l.collname, 'default'), '')
         || coalesce(' DEFAULT ' || replace(pg_get_expr(d.adbin, d.adrelid), t.prefix, ''), '')
  FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN pg_collation l ON l.oid = a.attcollation
  LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum
  UNION ALL
  SELECT t.schema, t.name, 'constraint', k.conname::text,
         replace(pg_get_constraintdef(k.oid), t.prefix, '')
  FROM tables t JOIN pg_constraint k ON k.conrelid = t.oid AND k.contype <> 'n'
  UNION ALL
  SELECT t.schema, t.name, 'index', i.relname::text,
         replace(pg_get_indexdef(x.indexrelid), t.prefix, '')
         || CASE WHEN x.indisvalid THEN '' ELSE ' INVALID' END
  FROM tables t JOIN pg_index x ON x.indrelid = t.oid JOIN pg_class i ON i.oid = x.indexrelid
)
"""
_ALL: Final = f"{_FACTS} SELECT of, kind, name, definition FROM facts"
# One short text for each schema; only of those that differ is more wanted.
_DIGESTS: Final = f"""{_FACTS}
SELECT schema, md5(string_agg(concat_ws(chr(31), of, kind, name, definition), chr(30)
       ORDER BY of COLLATE "C", kind COLLATE "C", name COLLATE "C"))
FROM facts GROUP BY schema
"""

Fact = tuple[str, str, str]
"""A table, `column`, `constraint`, `index` or `table`, and a name."""

Facts = dict[Fact, str]


class Expected:
    """What the tables should be: read, once for each kind of server, from one made for that.

    Args:
        isolation: How places are made, bound and proven.
        scripts: The revisions.
        factory: Makes the engine of a database.
    """

    def __init__(self, isolation: Isolation, scripts: Scripts, factory: EngineFactory) -> None:
        self._isolation = isolation
        self._scripts = scripts
        self._factory = factory
        self._lock = threading.Lock()
        self._kept: dict[str | None, tuple[Facts, str]] = {}

    def facts(self, beside: Placement) -> tuple[Facts, str]:
        """Return the facts of a place at head, and PostgreSQL's digest of them.

        Raises:
            Stopped: A place to read them from could not be made.
        """
        with self._lock:
            kept = self._kept.get(beside.server)
            if kept is None:
                kept = self._kept[beside.server] = self._read(beside)
            return kept

    def _read(self, beside: Placement) -> tuple[Facts, str]:
        connections = Connections(self._factory)
        try:
            with (
                scratch(beside, self._isolation, self._scripts, self._factory) as place,
                connections.use(place, make=False) as connection,
            ):
                if not place.is_postgres:
                    return _facts_of_file(connection), ""
                schema = schema_of(place)
                facts = _facts_of_schema(connection, schema, None)
                ((_, digest),) = _ask(connection, _DIGESTS, [schema], None)
                return facts, str(digest)
        finally:
            connections.close()


def drifts(
    connection: Connection, placements: Sequence[Placement], expected: Expected
) -> list[str | None]:
    """Return, for places at head in one database, how each one differs; None where it does not.

    Tables that the migrations do not make are the application's own business.

    Args:
        connection: In no transaction.
        placements: The places.
        expected: What they should be.

    Raises:
        Stopped: What they should be could not be found out.
    """
    facts, digest = expected.facts(placements[0])
    if not placements[0].is_postgres:
        actual = _facts_of_file(connection)
        return [differences(facts, actual) for _ in placements]
    tables = sorted({of for of, _, _ in facts})
    found: dict[str, str | None] = {}
    schemas = [schema_of(placement) for placement in placements]
    for start in range(0, len(schemas), _AT_ONCE):
        some = schemas[start : start + _AT_ONCE]
        digests = dict(_ask(connection, _DIGESTS, some, tables))
        for schema in some:
            found[schema] = None
            if digests.get(schema) != digest:
                found[schema] = differences(facts, _facts_of_schema(connection, schema, tables))
    return [found[schema] for schema in schemas]


def differences(expected: Facts, actual: Facts) -> str | None:
    """Return how one place differs from what it should be, as a sentence; None if it does not."""
    tables = {of for of, _, _ in expected}
    told = []
    for fact in sorted(expected.keys() | actual.keys()):
        of, kind, name = fact
        # Of a table that is missing, its columns need not be told too.
        if of not in tables or (kind != "table" and (of, "table", of) not in actual):
            continue
        called = f"table {of}" if kind == "table" else f"{kind} {of}.{name}"
        if fact not in actual:
            told.append(f"lacks {called}")
        elif fact not in expected:
            told.append(f"has an extra {called}")
        elif expected[fact] != actual[fact]:
            told.append(f"has {called} as {actual[fact]!r} and not {expected[fact]!r}")
    if not told:
        return None
    more = f"; and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return f"it {'; '.join(told[:_NAMED])}{more}"


def _facts_of_schema(connection: Connection, schema: str, tables: list[str] | None) -> Facts:
    rows = _ask(connection, _ALL, [schema], tables)
    return {(of, kind, name): definition for of, kind, name, definition in rows}


def _ask(
    connection: Connection, query: str, schemas: list[str], tables: list[str] | None
) -> Iterable[tuple[Any, ...]]:
    with connection.begin():
        cursor = psycopg.Cursor(raw_of(connection), row_factory=tuple_row)
        cursor.execute(query.encode(), {"schemas": schemas, "tables": tables})
        return cursor.fetchall()


def _facts_of_file(connection: Connection) -> Facts:
    facts: Facts = {}
    with closing(connection.connection.cursor()) as cursor:

        def ask(query: str, *values: str) -> list[tuple[Any, ...]]:
            cursor.execute(query, values)
            return list(cursor.fetchall())

        tables = ask(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
        for (table,) in tables:
            facts[table, "table", table] = ""
            for name, kind, needed, default, key in ask(
                'SELECT name, type, "notnull", dflt_value, pk FROM pragma_table_info(?)', table
            ):
                facts[table, "column", name] = f"{kind} {needed} {default} {key}"
            for name, unique in ask('SELECT name, "unique" FROM pragma_index_list(?)', table):
                columns = ask("SELECT name FROM pragma_index_info(?) ORDER BY seqno", name)
                facts[table, "index", name] = f"{unique} {columns}"
            for number, target, source, key, update, delete in ask(
                'SELECT id, "table", "from", "to", on_update, on_delete'
                " FROM pragma_foreign_key_list(?)",
                table,
            ):
                name = f"{number} on {source}"
                facts[table, "constraint", name] = f"{target} {key} {update} {delete}"
    return facts
