"""The models say what the migrations make, on both databases."""

from contextlib import contextmanager

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenantsync.migrate.scripts import VERSION_TABLE
from tenantsync.models import (
    Base,
    IdentityMixin,
    IdentitySessionMixin,
    SyncEventMixin,
    TombstoneMixin,
)
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenants import Placement


@contextmanager
def connected(place: Placement):
    engine = make_engine(place.url, create=True)
    try:
        with engine.begin() as connection:
            if place.schema:
                connection.execute(
                    text("SELECT set_config('search_path', :schema, true)"),
                    {"schema": place.schema},
                )
            yield connection
    finally:
        engine.dispose()


def differences(place: Placement, base: type[DeclarativeBase]):
    with connected(place) as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: (kind, name) != ("table", VERSION_TABLE),
            },
        )
        return compare_metadata(context, base.metadata)


def structure_on_postgres(place: Placement):
    """Return columns, constraints and indexes as the catalogue has them."""
    queries = {
        "columns": """
            SELECT c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
                   a.attnotnull, l.collname, pg_get_expr(d.adbin, d.adrelid)
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            LEFT JOIN pg_collation l ON l.oid = a.attcollation
            LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
            WHERE c.relnamespace = CAST(:schema AS regnamespace) AND c.relkind = 'r' AND attnum > 0
              AND c.relname <> 'tenantsync_version'""",
        "constraints": """
            SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
            FROM pg_constraint WHERE connamespace = CAST(:schema AS regnamespace)
              AND conrelid IS DISTINCT FROM to_regclass('tenantsync_version')""",
        "indexes": """
            SELECT tablename, indexname, replace(indexdef, quote_ident(schemaname) || '.', '')
            FROM pg_indexes WHERE schemaname = :schema AND tablename <> 'tenantsync_version'""",
    }
    with connected(place) as connection:
        return {
            name: sorted(map(tuple, connection.execute(text(query), {"schema": place.schema})))
            for name, query in queries.items()
        }


def structure_on_sqlite(place: Placement):
    """Return the tables and indexes as SQLite keeps them, without regard to white space."""
    with connected(place) as connection:
        rows = connection.exec_driver_sql(
            "SELECT type, tbl_name, name, sql FROM sqlite_master WHERE tbl_name <> ?",
            (VERSION_TABLE,),
        )
        return sorted((*row[:3], " ".join((row[3] or "").split())) for row in rows)


def test_autogenerate_finds_nothing_to_do(migrated_place):
    """Alembic sees no difference between a migrated place and the models."""
    assert differences(migrated_place, Base) == []


def test_autogenerate_would_find_something(migrated_place):
    """The comparison above is not blind: a column that only a model has is found."""

    class Other(DeclarativeBase):
        pass

    class Identity(IdentityMixin, Other):
        shoe_size: Mapped[str | None] = mapped_column(Text())

    for mixin in (IdentitySessionMixin, SyncEventMixin, TombstoneMixin):
        type(mixin.__name__.removesuffix("Mixin"), (mixin, Other), {})

    ((kind, _, table, column),) = differences(migrated_place, Other)

    assert (kind, table, column.name) == ("add_column", "av_identities", "shoe_size")


def test_the_postgresql_catalogue_is_the_same(schema_places):
    """Columns, defaults, collations, constraints and indexes are alike, names included."""
    (grown,) = schema_places(1)
    made = Placement(grown.url, "made_from_models")
    with connected(grown) as connection:
        connection.execute(text("CREATE SCHEMA made_from_models"))
        connection.execute(text("SET LOCAL search_path TO made_from_models"))
        Base.metadata.create_all(connection)

    assert structure_on_postgres(made) == structure_on_postgres(grown)


def test_ids_compare_by_bytes_on_postgresql(schema_places):
    """Every column that holds an id or a clock has the collation C."""
    (place,) = schema_places(1)

    columns = structure_on_postgres(place)["columns"]
    by_bytes = {(table, name) for table, _, name, _, _, collation, _ in columns if collation == "C"}

    assert by_bytes == {
        ("av_identities", "id"),
        ("av_identities", "tenant_id"),
        ("av_identities", "membership_id"),
        ("av_identity_sessions", "id"),
        ("av_identity_sessions", "identity_id"),
        ("av_identity_sessions", "auth_session_id"),
        ("av_sync_events", "event_id"),
        ("av_sync_events", "subject"),
        ("av_identity_tombstones", "id"),
        ("av_identity_tombstones", "clock"),
    }


@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
def test_the_sqlite_schema_is_the_same(migrated_place, tmp_path):
    """The statements that SQLite keeps for each table and index are alike."""
    made = Placement.of(f"sqlite:///{tmp_path / 'made.db'}")
    with connected(made) as connection:
        Base.metadata.create_all(connection)

    assert structure_on_sqlite(made) == structure_on_sqlite(migrated_place)
