"""Upgrading tenants: what is made, where it stands, and what a failure leaves behind."""

import itertools
import os
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, inspect, make_url, text

from tenantsync.errors import ConfigError, MigrationFailed
from tenantsync.migrate import State, status, upgrade
from tenantsync.models import Base
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import DatabaseIsolation, SchemaIsolation
from tenantsync.tenants import Placement, Tenant

HEAD = "tenantsync_0001"
TABLES = {*Base.metadata.tables, "tenantsync_version"}


def tenant(key: str, place: Placement) -> Tenant:
    return Tenant(f"id-of-{key}", key, place)


def tables(place: Placement | str, schema: str | None = None) -> set[str]:
    url = place.url if isinstance(place, Placement) else make_url(place)
    schema = place.schema if isinstance(place, Placement) else schema
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            return set(inspect(connection).get_table_names(schema=schema))
    finally:
        engine.dispose()


@pytest.fixture
def fresh_place(database_url):
    """Give a place that was never migrated: a SQLite file, or a schema on PostgreSQL."""
    return Placement.of(database_url, "tenant_acme" if "postgresql" in database_url else None)


def test_a_missing_place_is_made(fresh_place):
    """A schema or a SQLite file that does not exist is made, and the tables stand in it."""
    report = upgrade([tenant("acme", fresh_place)], isolation=DatabaseIsolation(None))

    (row,) = report.rows
    assert (row.state, row.before, row.after, row.error) == (State.UPGRADED, None, HEAD, None)
    assert report.ok
    assert tables(fresh_place) == TABLES


def test_upgrading_again_changes_nothing(fresh_place):
    """The second upgrade finds nothing to do and says so."""
    acme = tenant("acme", fresh_place)
    upgrade([acme], isolation=DatabaseIsolation(None)).check()

    report = upgrade([acme], isolation=DatabaseIsolation(None))

    assert [(r.state, r.before, r.after) for r in report.rows] == [(State.OK, HEAD, HEAD)]


def test_rows_survive_a_second_upgrade(migrated_place):
    """What the tables hold is untouched by an upgrade that has nothing to do."""
    engine = make_engine(migrated_place.url)
    with engine.begin() as connection:
        connection.execution_options(schema_translate_map={None: migrated_place.schema})
        connection.execute(Base.metadata.tables["av_identities"].insert(), {"id": "u1"})

    upgrade([tenant("acme", migrated_place)], isolation=DatabaseIsolation(None)).check()

    with engine.connect() as connection:
        connection.execution_options(schema_translate_map={None: migrated_place.schema})
        found = connection.execute(Base.metadata.tables["av_identities"].select()).all()
    engine.dispose()
    assert [row.id for row in found] == ["u1"]


def test_folders_of_a_sqlite_file_are_made(tmp_path):
    """The folder of a tenant's file need not exist."""
    isolation = DatabaseIsolation(f"sqlite:///{tmp_path}/data/tenants/{{key}}.db")

    upgrade([tenant("acme", isolation.place("acme"))], isolation=isolation).check()

    assert (tmp_path / "data/tenants/acme.db").is_file()


def test_two_schemas_stand_side_by_side(postgres):
    """Each schema gets its own tables and version, and `public` stays empty."""
    url = postgres.create_database()
    isolation = SchemaIsolation(url)
    both = [tenant(key, isolation.place(key)) for key in ("acme", "globex")]

    upgrade(both, isolation=isolation).check()

    assert tables(both[0].placement) == TABLES
    assert tables(both[1].placement) == TABLES
    assert tables(url, "public") == set()


def test_schema_names_are_quoted(postgres):
    """A schema whose name needs quotes, in every way that it can, is migrated like any other."""
    url = postgres.create_database()
    odd = Placement.of(url, 'Odd "name"; --, %s :x')

    report = upgrade([tenant("odd", odd)], isolation=DatabaseIsolation(None))

    report.check()
    assert tables(odd) == TABLES
    assert tables(url, "public") == set()


def test_one_schema_can_be_upgraded_while_another_is_in_use(postgres):
    """A lock that somebody holds in one tenant's tables does not keep the others waiting."""
    isolation = SchemaIsolation(postgres.create_database())
    acme, globex = (tenant(key, isolation.place(key)) for key in ("acme", "globex"))
    upgrade([acme], isolation=isolation).check()
    with postgres.connect(acme.placement.url.database) as busy, busy.transaction():
        busy.execute("LOCK TABLE tenant_acme.av_identities")

        report = upgrade([globex], isolation=isolation, lock_timeout=1)

    report.check()


def test_without_a_schema_the_tables_stand_in_public(postgres):
    """A tenant with a PostgreSQL database of its own has its tables in `public`."""
    place = Placement.of(postgres.create_database())

    upgrade([tenant("acme", place)], isolation=DatabaseIsolation(None)).check()

    assert tables(place, "public") == TABLES


def test_a_missing_database_of_a_tenants_own_is_made(postgres):
    """With the `database` strategy a login that may makes the missing database."""
    url = postgres.create_database()
    postgres.drop_databases()
    place = Placement.of(url)

    (row,) = upgrade([tenant("acme", place)], isolation=DatabaseIsolation(None)).rows

    assert row.state == State.UPGRADED
    with postgres.connect() as connection:
        connection.execute(f'DROP DATABASE "{place.url.database}" WITH (FORCE)')


def test_a_missing_shared_database_is_not_made(postgres):
    """A database that several schemas share is never made: its URL is more likely wrong."""
    url = postgres.create_database()
    postgres.drop_databases()
    isolation = SchemaIsolation(url)

    (row,) = upgrade([tenant("acme", isolation.place("acme"))], isolation=isolation).rows

    assert row.state == State.MISSING
    assert "does not exist: make it, or correct the URL" in row.error


def test_a_login_that_may_not_make_databases_says_so(postgres):
    """The row says which right is missing, and nothing else fails."""
    with postgres.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS modest; CREATE ROLE modest LOGIN")
    url = make_url(postgres.url("never_made")).set(username="modest")

    (row,) = upgrade([tenant("acme", Placement(url))], isolation=DatabaseIsolation(None)).rows

    assert row.state == State.MISSING
    assert "give the login CREATEDB" in row.error


def test_a_tenant_that_fails_never_stops_the_others(tmp_path, postgres):
    """Unreachable and broken tenants are reported, and those after them are migrated."""
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"this is no SQLite file, although it is long enough to look" * 20)
    places = {
        "refused": Placement.of("postgresql+psycopg://app:s3cret@127.0.0.1:1/main", "tenant_x"),
        "broken": Placement.of(f"sqlite:///{broken}"),
        "good": Placement.of(f"sqlite:///{tmp_path / 'good.db'}"),
        "better": Placement.of(postgres.create_database(), "tenant_better"),
    }

    report = upgrade(
        [tenant(key, place) for key, place in places.items()], isolation=DatabaseIsolation(None)
    )

    assert {row.tenant: row.state for row in report.rows} == {
        "refused": State.UNREACHABLE,
        "broken": State.UNREACHABLE,
        "good": State.UPGRADED,
        "better": State.UPGRADED,
    }
    assert not report.ok
    assert "s3cret" not in repr(report)
    with pytest.raises(MigrationFailed, match="'refused' at no revision"):
        report.check()


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    """A file where the folder should be is said to be in the way."""
    (tmp_path / "tenants").write_text("in the way")
    place = Placement.of(f"sqlite:///{tmp_path / 'tenants' / 'acme.db'}")

    (row,) = upgrade([tenant("acme", place)], isolation=DatabaseIsolation(None)).rows

    assert row.state == State.UNREACHABLE
    assert "cannot be made: " in row.error


def test_progress_is_told_after_each_tenant(tmp_path):
    """The caller hears of each row, how many are done, and how many there are."""
    isolation = DatabaseIsolation(f"sqlite:///{tmp_path}/{{key}}.db")
    heard = []

    report = upgrade(
        [tenant(key, isolation.place(key)) for key in ("a", "b")],
        isolation=isolation,
        on_progress=lambda *told: heard.append(told),
        clock=itertools.count().__next__,
    )

    assert [(report.rows[0], 1, 2), (report.rows[1], 2, 2)] == heard
    assert [row.seconds for row in report.rows] == [1, 1]


def test_the_working_directory_does_not_matter(tmp_path, monkeypatch):
    """The revisions are found through the import system, from anywhere."""
    monkeypatch.chdir("/")
    place = Placement.of(f"sqlite:///{tmp_path / 'acme.db'}")

    upgrade([tenant("acme", place)], isolation=DatabaseIsolation(None)).check()

    assert tables(place) == TABLES


def test_the_callers_own_engine_is_used_and_kept(tmp_path):
    """An engine in the placement is used, is not disposed, and needs none of our settings."""
    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}")
    place = Placement.of(engine)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        before = (driver.isolation_level, connection.exec_driver_sql("PRAGMA foreign_keys").all())

    upgrade([tenant("own", place)], isolation=DatabaseIsolation(None)).check()

    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        after = (driver.isolation_level, connection.exec_driver_sql("PRAGMA foreign_keys").all())
        assert set(inspect(connection).get_table_names()) == TABLES
    engine.dispose()
    assert before == after


def test_the_place_for_migrations_can_differ(postgres):
    """The login for migrations is another one, and the tenant's own placement is not asked."""
    url = make_url(postgres.create_database())
    placement = Placement(url.set(username="nobody_at_all"), "tenant_acme")

    upgrade(
        [tenant("acme", placement)],
        isolation=DatabaseIsolation(None),
        place=lambda tenant: replace(tenant.placement, url=url),
    ).check()

    assert tables(replace(placement, url=url)) == TABLES


def test_a_role_owns_the_tables_that_are_made_for_it(postgres):
    """With a role per tenant its tables belong to the role, and another role cannot read them."""
    isolation = SchemaIsolation(postgres.create_database(), role="test_tenant_{key}")
    both = [tenant(key, isolation.place(key)) for key in ("acme", "globex")]
    with postgres.connect() as connection:
        for one in both:
            connection.execute(f"DROP ROLE IF EXISTS {one.placement.role}")
            connection.execute(f"CREATE ROLE {one.placement.role}")

    upgrade(both, isolation=isolation).check()

    with postgres.connect(both[0].placement.url.database) as connection:
        owners = connection.execute(
            "SELECT DISTINCT schemaname, tableowner FROM pg_tables WHERE schemaname ~ '^tenant_'"
        ).fetchall()
        assert {
            ("tenant_acme", "test_tenant_acme"),
            ("tenant_globex", "test_tenant_globex"),
        } == set(owners)
        connection.execute("SET ROLE test_tenant_acme")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM tenant_globex.av_identities")


def test_a_role_that_does_not_exist_is_named(postgres):
    """The row says which role is missing."""
    isolation = SchemaIsolation(postgres.create_database(), role="never_made_{key}")

    (row,) = upgrade([tenant("acme", isolation.place("acme"))], isolation=isolation).rows

    assert row.state == State.FAILED
    assert 'role "never_made_acme" does not exist' in row.error


def test_a_location_that_is_no_folder_is_refused(tmp_path):
    """A wrong `[migrations] locations` is said before any tenant is touched."""
    place = Placement.of(f"sqlite:///{tmp_path / 'acme.db'}")

    with pytest.raises(ConfigError, match="missing is no folder"):
        upgrade(
            [tenant("acme", place)],
            isolation=DatabaseIsolation(None),
            locations=[tmp_path / "missing"],
        )

    assert not Path(place.url.database).exists()


def test_status_makes_nothing(fresh_place, postgres):
    """Asking where a missing place stands answers `missing`, and it is still missing then."""
    acme = tenant("acme", fresh_place)

    (row,) = status([acme], isolation=DatabaseIsolation(None)).rows

    assert (row.state, row.after) == (State.MISSING, None)
    assert "run `tenantsync migrate upgrade`" in row.error
    if not fresh_place.is_postgres:
        assert not os.path.exists(fresh_place.url.database)
    else:
        with postgres.connect(fresh_place.url.database) as connection:
            assert connection.execute("SELECT to_regnamespace('tenant_acme')").fetchone() == (None,)


def test_status_of_a_migrated_place_is_ok(migrated_place):
    """A place at head is `ok`, with its revision."""
    report = status([tenant("acme", migrated_place)], isolation=DatabaseIsolation(None))

    assert [(r.state, r.after, r.error) for r in report.rows] == [(State.OK, HEAD, None)]
    assert report.heads == (HEAD,)


def test_status_of_a_place_without_tables_is_unversioned(postgres):
    """A schema that is there and was never migrated is `unversioned`."""
    place = Placement.of(postgres.create_database())

    (row,) = status([tenant("acme", place)], isolation=DatabaseIsolation(None)).rows

    assert row.state == State.UNVERSIONED


def test_status_of_a_missing_database_is_missing(postgres):
    """A database that does not exist is told from one that does not answer."""
    gone = Placement.of(postgres.url("never_made"))
    refused = Placement.of("postgresql+psycopg://127.0.0.1:1/main")

    report = status(
        [tenant("gone", gone), tenant("refused", refused)], isolation=DatabaseIsolation(None)
    )

    assert [row.state for row in report.rows] == [State.MISSING, State.UNREACHABLE]


@pytest.mark.parametrize("work", [status, upgrade])
def test_a_revision_from_elsewhere_is_not_touched(migrated_place, work):
    """A place that a newer release migrated is told apart, and nothing is done to it."""
    engine = make_engine(migrated_place.url)
    schema = f"{migrated_place.schema}." if migrated_place.schema else ""
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {schema}tenantsync_version SET version_num = 'future'"))
    engine.dispose()

    (row,) = work([tenant("acme", migrated_place)], isolation=DatabaseIsolation(None)).rows

    assert (row.state, row.after) == (State.AHEAD, "future")
    assert "these migrations do not know: run a newer release" in row.error


@pytest.mark.parametrize("work", [status, upgrade])
def test_tables_that_were_dropped_are_missed(migrated_place, work):
    """A version row without its tables is no migrated place."""
    engine = make_engine(migrated_place.url)
    schema = f"{migrated_place.schema}." if migrated_place.schema else ""
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {schema}av_sync_events"))
    engine.dispose()

    (row,) = work([tenant("acme", migrated_place)], isolation=DatabaseIsolation(None)).rows

    assert (row.state, row.after) == (State.FAILED, HEAD)
    assert "lacks av_sync_events" in row.error
