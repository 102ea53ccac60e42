"""A tenant that is made to be looked at, at head, and thrown away."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final
from uuid import uuid4

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.ddl import DropSchema

from tenantsync.migrate.connections import Connections
from tenantsync.migrate.mover import Mover
from tenantsync.migrate.moves import Limits, Move
from tenantsync.migrate.recording import Recorder
from tenantsync.migrate.scripts import Scripts
from tenantsync.tenancy.engines import EngineFactory
from tenantsync.tenancy.isolation import DatabaseIsolation, Isolation, schema_of
from tenantsync.tenants import Placement

__all__ = ["scratch"]

_PREFIX: Final = "tenantsync_scratch_"


@contextmanager
def scratch(
    beside: Placement, isolation: Isolation, scripts: Scripts, factory: EngineFactory
) -> Iterator[Placement]:
    """Give a place of the same kind and, on PostgreSQL, in the same database, at head.

    What a run that was killed left of its own there is dropped too.

    Args:
        beside: A place of a tenant; it is not touched.
        isolation: How places are made, bound and proven.
        scripts: The revisions.
        factory: Makes the engine of a database.

    Raises:
        Stopped: It could not be made.
    """
    if not beside.is_postgres:
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
            url = URL.create("sqlite", database=str(Path(folder) / "scratch.db"))
            place = Placement(url)
            _migrate(place, DatabaseIsolation(None), scripts, factory)
            yield place
        return
    place = replace(beside, schema=f"{_PREFIX}{uuid4().hex}", role=None)
    connections, guarding = Connections(factory), Connections(factory)
    try:
        with guarding.use(place, make=False) as guard, guard.begin():
            _take(guard, schema_of(place))
            # It is idle in its transaction for as long as the schema is used.
            guard.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            with connections.use(place, make=False) as connection:
                _drop_stale(connection)
            try:
                _migrate(place, isolation, scripts, factory)
                yield place
            finally:
                with connections.use(place, make=False) as connection, connection.begin():
                    connection.execute(DropSchema(schema_of(place), cascade=True, if_exists=True))
    finally:
        connections.close()
        guarding.close()


def _drop_stale(connection: Connection) -> None:
    """Drop the schemas of runs that were killed: nobody holds their locks any more."""
    with connection.begin():
        schemas = connection.scalars(
            text("SELECT nspname FROM pg_namespace WHERE starts_with(nspname, :prefix)"),
            {"prefix": _PREFIX},
        ).all()
    for schema in schemas:
        # One that belongs to another login, or that somebody looks at, is left to a later run.
        with suppress(DBAPIError), connection.begin():
            if _take(connection, schema):
                connection.execute(DropSchema(schema, cascade=True, if_exists=True))


def _take(connection: Connection, schema: str) -> bool:
    """Return whether the lock that says that a scratch schema is used was free, and hold it.

    It ends with the transaction, and so with the process that began it, however that ends.
    """
    return bool(
        connection.scalar(
            text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))"),
            {"name": f"tenantsync scratch {schema}"},
        )
    )


def _migrate(
    place: Placement, isolation: Isolation, scripts: Scripts, factory: EngineFactory
) -> None:
    connections = Connections(factory)
    recorder = Recorder(scripts, Move())
    try:
        mover = Mover(isolation, scripts, recorder, Move(), Limits(), connections)
        mover.move(place, alembic=True)
    finally:
        connections.close()
