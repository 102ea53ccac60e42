"""A tenant that is made to be looked at, at head, and thrown away."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final
from uuid import uuid4

from sqlalchemy import URL
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
    try:
        _migrate(place, isolation, scripts, factory)
        yield place
    finally:
        connections = Connections(factory)
        try:
            with connections.use(place, make=False) as connection, connection.begin():
                connection.execute(DropSchema(schema_of(place), cascade=True, if_exists=True))
        finally:
            connections.close()


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
