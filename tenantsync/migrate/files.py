"""SQLite files: the transaction that a migration of one runs in, and what stands in it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

from alembic.util import CommandError
from sqlalchemy import Connection

__all__ = ["rebuilding", "tables_of", "versions_of"]

_TABLES: Final = "SELECT name FROM sqlite_master WHERE type = 'table'"


@contextmanager
def rebuilding(connection: Connection) -> Iterator[None]:
    """Hold a transaction, with SQLite's write lock, in which tables may be rebuilt.

    Foreign keys are off meanwhile, and checked before it commits.

    Args:
        connection: In no transaction yet.

    Raises:
        CommandError: It is in a transaction, or rows would point at nothing.
    """
    if connection.in_transaction():
        raise CommandError("on SQLite the connection must not be in a transaction yet")
    driver = connection.connection.driver_connection
    assert driver is not None
    former_level = driver.isolation_level
    (former_keys,) = driver.execute("PRAGMA foreign_keys").fetchone()
    # The driver would begin with the first INSERT only, and leave the DDL before it outside.
    driver.isolation_level = None
    # SQLite rebuilds a table by dropping the old one. With foreign keys on, that deletes the
    # children of its rows. Inside a transaction this pragma does nothing at all.
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        with connection.begin():
            if not driver.in_transaction:  # an engine of tenantsync's begins by itself
                driver.execute("BEGIN IMMEDIATE")
            yield
            _refuse_orphans(connection)
    finally:
        driver.execute(f"PRAGMA foreign_keys = {int(former_keys)}")
        driver.isolation_level = former_level


def tables_of(connection: Connection) -> set[str]:
    """Return the names of the tables in the file, without beginning a transaction."""
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(_TABLES, ())
        return {name for (name,) in cursor.fetchall()}


def versions_of(connection: Connection, table: str) -> tuple[str, ...]:
    """Return the revisions in a version table that is there, without beginning a transaction."""
    with closing(connection.connection.cursor()) as cursor:
        cursor.execute(f'SELECT version_num FROM "{table}" ORDER BY 1', ())
        return tuple(version for (version,) in cursor.fetchall())


def _refuse_orphans(connection: Connection) -> None:
    orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if orphans:
        child, _, parent, _ = orphans[0]
        raise CommandError(
            f"{len(orphans)} rows would point at nothing, the first one in {child} at {parent}; "
            "nothing was changed: delete or repair them first"
        )
