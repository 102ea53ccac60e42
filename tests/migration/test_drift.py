"""Tables that are not what the migrations make, and how that is told."""

import subprocess
import sys

import pytest
from fleets import SchemaFleet, files, inside, write_revision
from sqlalchemy import text

from tenantsync.migrate import State, check, upgrade


@pytest.fixture
def fleet(postgres):
    """Give six tenants at head, in schemas of one database."""
    made = SchemaFleet(postgres.create_database(), 6)
    upgrade(made.tenants, isolation=made.isolation).check()
    return made


def change(place, *statements):
    with inside(place) as connection:
        for statement in statements:
            connection.execute(text(statement))


def test_differences_are_told_and_the_rest_is_well(fleet):
    """Missing and extra columns, indexes and types are named; the scratch tenant is gone again."""
    places = [tenant.placement for tenant in fleet.tenants]
    change(places[1], "DROP INDEX ix_av_identities_email")
    change(places[2], "ALTER TABLE av_identities ADD COLUMN extra integer DEFAULT 1")
    change(places[3], "ALTER TABLE av_identities ALTER COLUMN locale TYPE varchar(8)")
    change(places[4], "DROP TABLE av_identity_tombstones")
    change(places[5], "CREATE TABLE of_my_own (id integer)",
           "CREATE INDEX ix_extra ON av_identities (locale)")  # fmt: skip

    report = check(fleet.tenants, isolation=fleet.isolation)

    errors = [row.error for row in report.rows]
    assert report.counts == {State.OK: 1, State.FAILED: 1, State.DRIFTED: 4}
    assert errors[0] is None
    assert errors[1] == "it lacks index av_identities.ix_av_identities_email"
    assert errors[2] == "it has an extra column av_identities.extra"
    assert errors[3] == (
        "it has column av_identities.locale as 'character varying(8)' and not 'text'"
    )
    assert "lacks av_identity_tombstones" in errors[4]
    assert errors[5] == "it has an extra index av_identities.ix_extra"
    with fleet.connect() as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'tenantsync_scratch%'"
        ).fetchone() == (0,)


def test_the_order_of_columns_is_no_difference(fleet):
    """A column that was dropped and made again stands last, and is the same."""
    change(fleet.tenants[0].placement, "ALTER TABLE av_identities DROP COLUMN locale",
           "ALTER TABLE av_identities ADD COLUMN locale text")  # fmt: skip

    assert check(fleet.tenants, isolation=fleet.isolation, jobs=2).ok


def test_a_constraint_that_is_missing_is_told(fleet):
    """Foreign keys are compared too, whatever schema they are in."""
    change(fleet.tenants[0].placement, "ALTER TABLE av_identity_sessions DROP CONSTRAINT"
           " fk_av_identity_sessions_identity_id_av_identities")  # fmt: skip

    report = check(fleet.tenants, isolation=fleet.isolation)

    assert report.counts == {State.OK: 5, State.DRIFTED: 1}
    assert "lacks constraint av_identity_sessions.fk_av" in report.rows[0].error


def test_the_applications_own_tables_are_compared(fleet, tmp_path):
    """What the application's revisions make counts, and a tenant behind is not compared."""
    location = tmp_path / "versions"
    location.mkdir()
    write_revision(location, "orders", 'op.create_table("orders", sa.Column("id", sa.Integer()))')
    options = {"isolation": fleet.isolation, "locations": [location]}
    upgrade(fleet.tenants[:5], **options).check()
    change(fleet.tenants[1].placement, "ALTER TABLE orders ADD COLUMN note text",
           "ALTER TABLE orders ADD COLUMN more text")  # fmt: skip

    report = check(fleet.tenants, **options)

    assert report.counts == {State.OK: 4, State.BEHIND: 1, State.DRIFTED: 1}
    assert report.rows[1].error == (
        "it has an extra column orders.more; has an extra column orders.note"
    )


def test_files_are_compared(tmp_path):
    """SQLite files too."""
    tenants, isolation = files(tmp_path, 3)
    upgrade(tenants, isolation=isolation).check()
    change(tenants[1].placement, "DROP INDEX ix_av_identities_email",
           "ALTER TABLE av_identities ADD COLUMN extra TEXT")  # fmt: skip

    report = check(tenants, isolation=isolation)

    assert report.counts == {State.OK: 2, State.DRIFTED: 1}
    assert report.rows[1].error == (
        "it has an extra column av_identities.extra; lacks index"
        " av_identities.ix_av_identities_email"
    )


PROGRAM = """
import sys
from tenantsync.migrate.scratch import scratch
from tenantsync.migrate.scripts import Scripts
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import SchemaIsolation

isolation = SchemaIsolation(sys.argv[1])
with scratch(isolation.place("t000"), isolation, Scripts([]), make_engine) as place:
    print(place.schema, flush=True)
    sys.stdin.read()
"""


def scratches(connection):
    rows = connection.execute(
        "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'tenantsync_scratch%'"
    )
    return {name for (name,) in rows}


def test_what_a_killed_run_left_is_dropped_by_the_next(fleet):
    """The scratch tenant of a run that is gone is dropped; one that is in use is left alone."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, fleet.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    with fleet.connect() as connection, runs[0] as killed, runs[1] as alive:
        stale, used = killed.stdout.readline().strip(), alive.stdout.readline().strip()
        killed.kill()
        killed.wait()
        lock = "SELECT pg_advisory_lock(hashtextextended(%s, 0))"
        connection.execute(lock, (f"tenantsync scratch {stale}",))  # its server process is gone too
        connection.execute("SELECT pg_advisory_unlock_all()")
        left = scratches(connection)

        report = check(fleet.tenants, isolation=fleet.isolation)

        beside = scratches(connection)
        alive.communicate("")
        assert report.ok
        assert left == {stale, used}
        assert beside == {used}
        assert scratches(connection) == set()
