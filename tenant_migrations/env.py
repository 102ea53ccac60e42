"""Alembic's environment: runs the revisions in one transaction on a connection that it is given.

`config.attributes` must hold `connection`, and for PostgreSQL `schema`; it gets `before`, the
revisions that the place stood at. On PostgreSQL the caller has begun the transaction and bound it
to the tenant's schema. On SQLite the transaction is begun here, because foreign keys can be
switched off only before it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from tenantsync.models import Base


def run() -> None:
    """Run what the Alembic command asks for."""
    connection = context.config.attributes.get("connection")
    if connection is None or context.is_offline_mode():
        raise CommandError(
            "these migrations run in a tenant's place only: use `tenantsync migrate`, "
            "or the functions of tenantsync.migrate"
        )
    if connection.dialect.name == "sqlite":
        with _transaction_on_sqlite(connection):
            _migrate(connection, None)
    else:
        schema = context.config.attributes.get("schema")
        if not schema or not connection.in_transaction():
            raise CommandError(
                "on PostgreSQL the connection must be in a transaction that is bound to a schema"
            )
        _migrate(connection, schema)


def _migrate(connection: Connection, schema: str | None) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table="tenantsync_version",
        version_table_schema=schema,
        # Alembic thinks that SQLite cannot roll DDL back. It can, if someone begins.
        transactional_ddl=True,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.config.attributes["before"] = context.get_context().get_current_heads()
        context.run_migrations()


@contextmanager
def _transaction_on_sqlite(connection: Connection) -> Iterator[None]:
    if connection.in_transaction():
        raise CommandError("on SQLite the connection must not be in a transaction yet")
    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 - a pooled connection that was checked out has one
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


def _refuse_orphans(connection: Connection) -> None:
    orphans = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if orphans:
        child, _, parent, _ = orphans[0]
        raise CommandError(
            f"{len(orphans)} rows would point at nothing, the first one in {child} at {parent}; "
            "nothing was changed: delete or repair them first"
        )


run()
