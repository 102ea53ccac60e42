"""Alembic's environment: runs the revisions in the transaction that the caller has begun.

`config.attributes` must hold `connection`, which on PostgreSQL is bound to our schema.
"""

from alembic import context
from alembic.util import CommandError

from tenantsync.control.tables import METADATA, VERSION_TABLE


def run() -> None:
    """Run what the Alembic command asks for."""
    connection = context.config.attributes.get("connection")
    if connection is None or not connection.in_transaction() or context.is_offline_mode():
        raise CommandError(
            "these migrations run in the control database only: use tenantsync.migrate.control"
        )
    context.configure(
        connection=connection,
        target_metadata=METADATA,
        version_table=VERSION_TABLE,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
