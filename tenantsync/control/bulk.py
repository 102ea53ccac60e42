"""Many rows in one statement: as arrays on PostgreSQL, where each further statement costs a lot."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Integer,
    LargeBinary,
    Table,
    Text,
    TextClause,
    bindparam,
    insert,
    text,
    update,
)

from tenantsync.models import Timestamp

__all__ = ["Inserted", "Updated"]

_ARRAYS: Final[dict[type, str]] = {
    BigInteger: "bigint[]",
    Boolean: "boolean[]",
    Integer: "integer[]",
    LargeBinary: "bytea[]",
    Text: "text[]",
    Timestamp: "timestamptz[]",
}

_Rows = Sequence[Mapping[str, object]]


class Inserted:
    """Inserts rows.

    Args:
        table: Where.
        names: Columns that every row gives.
    """

    def __init__(self, table: Table, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._each = insert(table)
        self._all = _text(
            *("INSERT INTO", table.name, _listed(self._names)),
            *("SELECT * FROM", _arrays(table, self._names)),
        )

    def execute(self, connection: Connection, rows: _Rows) -> None:
        """Insert rows, at least one."""
        if connection.dialect.name == "postgresql":
            connection.execute(self._all, _columns(rows, self._names))
        else:
            connection.execute(self._each, rows)


class Updated:
    """Updates rows, each found by one column.

    Args:
        table: Where.
        key: The column by which a row is found.
        names: Columns that are written, each of which every row gives.
    """

    def __init__(self, table: Table, key: str, names: Iterable[str]) -> None:
        written = tuple(names)
        self._names = (key, *written)
        self._key = key
        self._each = (
            update(table)
            .where(table.c[key] == bindparam(f"{key}_"))
            .values({name: bindparam(name) for name in written})
        )
        self._all = _text(
            *("UPDATE", table.name),
            *("SET", ", ".join(f'"{name}" = told."{name}"' for name in written)),
            *("FROM", _arrays(table, self._names), "AS told", _listed(self._names)),
            f'WHERE {table.name}."{key}" = told."{key}"',
        )

    def execute(self, connection: Connection, rows: _Rows) -> None:
        """Update rows, at least one."""
        if connection.dialect.name == "postgresql":
            connection.execute(self._all, _columns(rows, self._names))
        else:
            key = self._key
            others = [name for name in self._names if name != key]
            told = [{name: row[name] for name in others} | {f"{key}_": row[key]} for row in rows]
            connection.execute(self._each, told)


def _text(*parts: str) -> TextClause:
    return text(" ".join(parts))


def _listed(names: Iterable[str]) -> str:
    return "(" + ", ".join(f'"{name}"' for name in names) + ")"


def _arrays(table: Table, names: Iterable[str]) -> str:
    arrays = (f"CAST(:{name} AS {_ARRAYS[type(table.c[name].type)]})" for name in names)
    return f"unnest({', '.join(arrays)})"


def _columns(rows: _Rows, names: Iterable[str]) -> dict[str, object]:
    return {name: [row[name] for row in rows] for name in names}
