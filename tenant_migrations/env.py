"""Alembic's environment: runs the revisions on a connection that it is given, or writes them down.

`config.attributes` says which. With `connection`, and for PostgreSQL `schema`, they are run, and it
gets `before`, the revisions that the place stood at. On PostgreSQL the caller has begun the
transaction and bound it to the tenant's schema, or, with `apart`, has bound the whole session. On
SQLite the transaction is begun here, because foreign keys can be switched off only before it. With
`listen`, in Alembic's offline mode, the statements go to who listens.
"""

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from tenantsync.migrate.files import rebuilding
from tenantsync.models import Base


def run() -> None:
    """Run what the Alembic command asks for."""
    attributes = context.config.attributes
    connection = attributes.get("connection")
    if context.is_offline_mode() and "listen" in attributes:
        _write_down()
        return
    if connection is None or context.is_offline_mode():
        raise CommandError(
            "these migrations run in a tenant's place only: use `tenantsync migrate`, "
            "or the functions of tenantsync.migrate"
        )
    if connection.dialect.name == "sqlite":
        with rebuilding(connection):
            _migrate(connection, None)
        return
    schema, apart = attributes.get("schema"), bool(attributes.get("apart"))
    if not schema or connection.in_transaction() is apart:
        raise CommandError(
            "on PostgreSQL the connection must be in a transaction that is bound to a schema"
        )
    _migrate(connection, schema, apart=apart)


def _migrate(connection: Connection, schema: str | None, *, apart: bool = False) -> None:
    attributes = context.config.attributes
    context.configure(
        connection=connection,
        target_metadata=attributes.get("metadata", Base.metadata),
        include_name=attributes.get("include_name"),
        version_table="tenantsync_version",
        version_table_schema=schema,
        # Alembic thinks that SQLite cannot roll DDL back. It can, if someone begins.
        transactional_ddl=True,
        transaction_per_migration=apart,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        attributes["before"] = context.get_context().get_current_heads()
        if apart:
            connection.commit()  # what was read just now began a transaction
        context.run_migrations()


def _write_down() -> None:
    attributes = context.config.attributes
    context.configure(
        url=f"{attributes['dialect']}://",
        dialect_opts={"paramstyle": "named"},  # with the driver's own, % would be doubled
        target_metadata=Base.metadata,
        version_table="tenantsync_version",
        version_table_schema=attributes["schema"],
        transactional_ddl=True,
        literal_binds=True,
    )
    attributes["listen"](context.get_context())
    with context.begin_transaction():
        context.run_migrations()


run()
