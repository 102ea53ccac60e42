"""Fleets of tenants for the tests of migrations: schemas, revisions, and what stands in them."""

import textwrap
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import text

from tenantsync.migrate.connections import Connections
from tenantsync.migrate.drift import _facts_of_file, _facts_of_schema
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import DatabaseIsolation, SchemaIsolation, schema_of
from tenantsync.tenants import Placement, Tenant

OURS = "tenantsync_0001"


def write_revision(
    folder: Path, name: str, body: str, *, after=None, depends_on=OURS, down="pass", top=""
):
    """Write a revision whose upgrade does what the body says."""
    (folder / f"{name}.py").write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\n{top}\n"
        f"revision = {name!r}\ndown_revision = {after!r}\n"
        f"branch_labels = None\ndepends_on = {depends_on!r}\n\n\n"
        f"def upgrade():\n{textwrap.indent(textwrap.dedent(body), '    ')}\n\n\n"
        f"def downgrade():\n{textwrap.indent(textwrap.dedent(down), '    ')}\n"
    )


class SchemaFleet:
    """Tenants whose schemas are in one database.

    Args:
        url: The database.
        count: How many; their keys are t000, t001, ...
        role: As `SchemaIsolation` has it.
    """

    def __init__(self, url: str, count: int, *, role: str | None = None) -> None:
        self.url = url
        self.isolation = SchemaIsolation(url, role=role)
        self.tenants = [
            Tenant(f"id-{number}", key, self.isolation.place(key))
            for number, key in ((number, f"t{number:03d}") for number in range(count))
        ]

    def connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        """Return a connection to the database, in autocommit."""
        return psycopg.connect(
            self.url.replace("postgresql+psycopg", "postgresql"), autocommit=True
        )

    def versions(self) -> dict[str, set[str]]:
        """Return the revisions that each tenant's schema stands at."""
        found: dict[str, set[str]] = {}
        with self.connect() as connection:
            for tenant in self.tenants:
                rows = connection.execute(
                    f'SELECT version_num FROM "{tenant.placement.schema}".tenantsync_version'
                )
                found[tenant.key] = {version for (version,) in rows}
        return found


def facts(place: Placement):
    """Return what a place's tables, columns, constraints and indexes are."""
    connections = Connections(make_engine)
    try:
        with connections.use(place, make=False) as connection:
            if place.is_postgres:
                return _facts_of_schema(connection, schema_of(place), None)
            return _facts_of_file(connection)
    finally:
        connections.close()


@contextmanager
def inside(place: Placement):
    """Give a connection in a transaction that is in the place."""
    engine = make_engine(place.url)
    try:
        with engine.begin() as connection:
            if place.schema:
                connection.execute(text(f'SET LOCAL search_path TO "{place.schema}"'))
            yield connection
    finally:
        engine.dispose()


def files(folder: Path, count: int):
    """Return tenants with a SQLite file each, and their isolation."""
    isolation = DatabaseIsolation(f"sqlite:///{folder}/{{key}}.db")
    keys = [f"t{number:03d}" for number in range(count)]
    return [Tenant(f"id-{key}", key, isolation.place(key)) for key in keys], isolation
