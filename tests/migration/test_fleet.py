"""Many tenants in one run: who goes first, when it ends, what a failure leaves behind."""

import threading

import pytest
from fleets import OURS, SchemaFleet, facts, files, inside, write_revision
from sqlalchemy import text

from tenantsync.errors import ConfigError
from tenantsync.migrate import Kind, Move, State, choose, downgrade, plan, stamp, status, upgrade
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Tenant

COLUMN = 'op.add_column("av_identities", sa.Column("shoe_size", sa.Integer()))'
PYTHON = """
bind = op.get_bind()
op.create_table("sizes", sa.Column("id", sa.Text(), primary_key=True), sa.Column("n", sa.Integer()))
people = bind.execute(sa.text("SELECT id, email FROM av_identities ORDER BY id")).all()
for number, (identifier, email) in enumerate(people):
    bind.execute(sa.text("INSERT INTO sizes VALUES (:id, :n)"), {"id": identifier, "n": number})
"""


@pytest.fixture
def location(tmp_path):
    """Give a folder for an application's own revisions."""
    folder = tmp_path / "versions"
    folder.mkdir()
    return folder


@pytest.fixture
def fleet(postgres):
    """Give five tenants at head, in schemas of one database."""
    made = SchemaFleet(postgres.create_database(), 5)
    upgrade(made.tenants, isolation=made.isolation).check()
    return made


def states(report):
    return {row.tenant: row.state for row in report.rows}


@pytest.mark.parametrize("jobs", [1, 4])
def test_all_schemas_are_brought_to_head(postgres, jobs):
    """From nothing, one by one or several at once, each schema gets what a single one gets."""
    fleet = SchemaFleet(postgres.create_database(), 12)

    report = upgrade(fleet.tenants, isolation=fleet.isolation, jobs=jobs)

    assert report.counts == {State.UPGRADED: 12}
    assert [row.tenant for row in report.rows] == [tenant.key for tenant in fleet.tenants]
    first = facts(fleet.tenants[0].placement)
    assert all(facts(tenant.placement) == first for tenant in fleet.tenants)


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("body", [COLUMN, PYTHON])
def test_files_are_brought_to_head(tmp_path, location, jobs, body):
    """SQLite files too: replayed, or by Alembic in processes of its own."""
    tenants, isolation = files(tmp_path, 6)
    write_revision(location, "more", body)

    report = upgrade(tenants, isolation=isolation, locations=[location], jobs=jobs)

    assert report.counts == {State.UPGRADED: 6}
    assert {row.after for row in report.rows} == {"more"}
    assert upgrade(tenants, isolation=isolation, locations=[location]).counts == {State.OK: 6}


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_data_migration_in_python_from_three_starts(postgres, location, jobs):
    """Tenants at three revisions end alike, each with its own rows migrated."""
    fleet = SchemaFleet(postgres.create_database(), 9)
    isolation, tenants = fleet.isolation, fleet.tenants
    write_revision(location, "shop1", COLUMN)
    upgrade(tenants[3:6], isolation=isolation).check()
    upgrade(tenants[6:], isolation=isolation, locations=[location]).check()
    for tenant in tenants[3:]:
        with inside(tenant.placement) as connection:
            connection.execute(
                text("INSERT INTO av_identities (id) VALUES (:one), (:two)"),
                {"one": f"a-{tenant.key}", "two": f"b-{tenant.key}"},
            )
    write_revision(location, "shop2", PYTHON, after="shop1", depends_on=None)

    starts = status(tenants, isolation=isolation, locations=[location])
    report = upgrade(tenants, isolation=isolation, locations=[location], jobs=jobs)

    assert starts.counts == {State.BEHIND: 6, State.MISSING: 3}
    assert {(row.before, row.after) for row in report.rows} == {
        (None, "shop2"), (OURS, "shop2"), ("shop1", "shop2"),
    }  # fmt: skip
    for tenant in tenants[3:]:
        with inside(tenant.placement) as connection:
            assert connection.execute(text("SELECT id, n FROM sizes ORDER BY n")).all() == [
                (f"a-{tenant.key}", 0), (f"b-{tenant.key}", 1),
            ]  # fmt: skip
    first = facts(tenants[0].placement)
    assert all(facts(tenant.placement) == first for tenant in tenants)


OWNER, OTHER = "test_fleet_owner", "test_fleet_other"


@pytest.fixture
def owned(postgres):
    """Give 300 tenants at head, whose schemas belong to a login that is no superuser."""
    url = postgres.create_database()
    made = SchemaFleet(url.replace("postgres@", f"{OWNER}@"), 300)
    database = url.rpartition("/")[2]
    with postgres.connect() as connection:
        connection.execute(f"CREATE ROLE {OWNER} LOGIN; CREATE ROLE {OTHER}")
        connection.execute(f'GRANT CREATE ON DATABASE "{database}" TO {OWNER}')
    upgrade(made.tenants, isolation=made.isolation, jobs=2).check()
    yield made, SchemaFleet(url, 300)
    postgres.drop_databases()  # with all that the roles own
    with postgres.connect() as connection:
        connection.execute(f"DROP ROLE {OWNER}; DROP ROLE {OTHER}")


def hand_over(connection, schema, role):
    """Give a schema and its tables to a role, and to nobody else."""
    tables = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,)
    ).fetchall()
    for (table,) in tables:
        connection.execute(f"ALTER TABLE {schema}.{table} OWNER TO {role}")
    connection.execute(f"ALTER SCHEMA {schema} OWNER TO {role}")


@pytest.mark.parametrize("jobs", [1, 4])
def test_sabotaged_tenants_are_reported_and_the_rest_is_migrated(owned, location, jobs):
    """A table in the way, no permission, a held lock: each is told, and repaired alone."""
    fleet, powers = owned
    write_revision(location, "orders", 'op.create_table("orders", sa.Column("id", sa.Integer()))\n'
                   + COLUMN)  # fmt: skip
    conflict, refused, locked = (fleet.tenants[index].placement.schema for index in (7, 150, 299))
    options = {"isolation": fleet.isolation, "locations": [location], "jobs": jobs,
               "lock_timeout": 0.05}  # fmt: skip
    with powers.connect() as saboteur, powers.connect() as holder, holder.transaction():
        saboteur.execute(f"CREATE TABLE {conflict}.orders (id text)")
        hand_over(saboteur, refused, OTHER)
        holder.execute(f"LOCK TABLE {locked}.av_identities")

        report = upgrade(fleet.tenants, keep_rows=False, **options)

        pid = holder.info.backend_pid
        saboteur.execute(f"DROP TABLE {conflict}.orders")
        hand_over(saboteur, refused, OWNER)
    again = upgrade(fleet.tenants, **options)

    assert report.counts == {State.UPGRADED: 297, State.LOCKED: 1, State.FAILED: 2}
    errors = {row.tenant: row.error for row in report.rows}
    assert set(errors) == {"t007", "t150", "t299"}
    assert 'relation "orders" already exists' in errors["t007"]
    assert f"permission denied for schema {refused}" in errors["t150"]
    assert f"process {pid} " in errors["t299"]
    assert "holds locks on its tables" in errors["t299"]
    assert {row.tenant for row in again.rows if row.state is State.UPGRADED} == set(errors)
    assert again.counts == {State.OK: 297, State.UPGRADED: 3}
    assert set(map(frozenset, powers.versions().values())) == {frozenset({"orders"})}


def test_a_login_without_the_right_is_reported(postgres, location):
    """Where a schema belongs to somebody else, PostgreSQL's own reason is told."""
    fleet = SchemaFleet(postgres.create_database(), 4)
    upgrade(fleet.tenants, isolation=fleet.isolation).check()
    write_revision(location, "column", COLUMN)
    with fleet.connect() as connection:
        connection.execute("DROP ROLE IF EXISTS test_fleet; CREATE ROLE test_fleet LOGIN")
        for tenant in fleet.tenants[:3]:
            schema = tenant.placement.schema
            connection.execute(f"ALTER SCHEMA {schema} OWNER TO test_fleet")
            for table in ("av_identities", "av_identity_sessions", "av_sync_events",
                          "av_identity_tombstones", "tenantsync_version"):  # fmt: skip
                connection.execute(f"ALTER TABLE {schema}.{table} OWNER TO test_fleet")
    modest = SchemaFleet(fleet.url.replace("postgres@", "test_fleet@"), 4)

    report = upgrade(modest.tenants, isolation=modest.isolation, locations=[location], jobs=2)
    seen = status(modest.tenants, isolation=modest.isolation, locations=[location])

    assert report.counts == {State.UPGRADED: 3, State.FAILED: 1}
    (row,) = (row for row in report.rows if not row.ok)
    assert row.tenant == "t003"
    assert "permission denied for schema tenant_t003" in row.error
    assert states(seen)["t003"] == State.FAILED
    with fleet.connect() as connection:
        connection.execute("DROP OWNED BY test_fleet; DROP ROLE test_fleet")


@pytest.mark.parametrize("body", [COLUMN, PYTHON])
def test_two_runs_at_once_share_the_tenants(postgres, location, body):
    """Each schema is migrated by one of them; the other finds it done, or skips it."""
    count = 200 if body == COLUMN else 40
    fleet = SchemaFleet(postgres.create_database(), count)
    upgrade(fleet.tenants, isolation=fleet.isolation, jobs=2).check()
    write_revision(location, "more", body)
    reports = []

    def run():
        reports.append(
            upgrade(fleet.tenants, isolation=fleet.isolation, locations=[location], jobs=2, wait=0)
        )

    runners = [threading.Thread(target=run) for _ in range(2)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()

    assert [report.ok for report in reports] == [True, True]
    migrated = [row.tenant for report in reports for row in report.rows if row.state == "upgraded"]
    assert sorted(migrated) == [tenant.key for tenant in fleet.tenants]
    assert {"more"} in fleet.versions().values()


def test_a_tenant_that_another_run_has_is_skipped(fleet, location):
    """With nothing to wait, a tenant that is being migrated is left to that run, and told of."""
    write_revision(location, "column", COLUMN)
    with fleet.connect() as other, other.transaction():
        other.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('tenantsync migrate tenant_t002', 0))"
        )
        pid = other.info.backend_pid

        seen = status(fleet.tenants, isolation=fleet.isolation, locations=[location])
        report = upgrade(fleet.tenants, isolation=fleet.isolation, locations=[location], wait=0)

    assert states(seen)["t002"] == State.LOCKED
    assert f"process {pid} is migrating it" in seen.rows[2].error
    assert report.ok
    assert states(report)["t002"] == State.SKIPPED
    assert report.rows[2].error == "another run is migrating it"


def test_a_lock_that_is_let_go_in_time_is_waited_for(fleet, location):
    """A lock is tried for several times, with pauses; when it is let go, the tenant is migrated."""
    write_revision(location, "column", COLUMN)
    pauses = []
    holder = fleet.connect()
    holder.execute("BEGIN; LOCK TABLE tenant_t002.av_identities")

    def sleep(seconds):
        pauses.append(seconds)
        holder.execute("COMMIT")

    report = upgrade(fleet.tenants, isolation=fleet.isolation, locations=[location],
                     lock_timeout=0.05, sleep=sleep)  # fmt: skip
    holder.close()

    assert report.counts == {State.UPGRADED: 5}
    assert len(pauses) == 1


def break_first(fleet, *keys):
    with fleet.connect() as connection:
        for key in keys:
            connection.execute(f"DROP TABLE tenant_{key}.av_identities CASCADE")


@pytest.mark.parametrize(
    ("pace", "done", "reason"),
    [
        ({"fail_fast": True}, 2, "1 tenant failed"),
        ({"max_failures": 1}, 4, "2 tenants failed"),
        ({"canary": 2}, 2, "1 tenant of the first failed"),
        ({"canary": 1, "wave": 2}, 3, "1 tenant of the first 3 failed"),
        ({"wave": 0.4}, 2, "1 tenant of the first 2 failed"),
        ({"wave": 2, "max_failures": 1}, 4, "2 tenants failed"),
        ({}, 5, None),
    ],
)
def test_a_run_ends_when_it_should(fleet, location, pace, done, reason):
    """Canaries, waves and bounds on failures end a run, and the report says what is left."""
    write_revision(location, "column", COLUMN)
    break_first(fleet, "t001", "t003")

    report = upgrade(fleet.tenants, isolation=fleet.isolation, locations=[location], **pace)

    assert len(report.rows) == done
    assert (report.left, report.stopped) == (5 - done, reason) or (
        report.left == 5 - done and reason in report.stopped
    )
    assert not report.ok


def test_a_revision_that_names_another_schema_ends_the_run(fleet, location):
    """What would go astray for every tenant is found at the first one, and nothing of it stands."""
    write_revision(
        location,
        "stray",
        'op.create_table("stray", sa.Column("id", sa.Integer()), schema="public")',
    )

    report = upgrade(fleet.tenants, isolation=fleet.isolation, locations=[location], jobs=3)

    assert report.stopped is not None
    assert "touched 'stray' in the schema 'public'" in report.stopped
    assert State.UPGRADED not in report.counts
    assert set(map(frozenset, fleet.versions().values())) == {frozenset({OURS})}
    with fleet.connect() as connection:
        assert connection.execute("SELECT to_regclass('public.stray')").fetchone() == (None,)


def test_an_online_revision_that_names_another_schema_ends_the_run(fleet, location):
    """The same where Alembic runs it."""
    write_revision(
        location,
        "stray",
        'op.create_table("stray", sa.Column("id", sa.Integer()), schema="public")',
        top="online_only = True",
    )

    report = upgrade(fleet.tenants, isolation=fleet.isolation, locations=[location], jobs=2)

    assert State.UPGRADED not in report.counts
    assert "in the schema 'public'" in report.rows[0].error


CONCURRENT = """
op.add_column("av_identities", sa.Column("shoe_size", sa.Integer()))
with op.get_context().autocommit_block():
    op.create_index("ix_shoe", "av_identities", ["shoe_size"], postgresql_concurrently=True)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_index_is_made_concurrently_in_the_right_schema(fleet, location, jobs):
    """What cannot be in a transaction is run in the tenant's schema nevertheless."""
    write_revision(location, "index", CONCURRENT)

    report = upgrade(fleet.tenants, isolation=fleet.isolation, locations=[location], jobs=jobs)

    assert report.counts == {State.UPGRADED: 5}, report
    for tenant in fleet.tenants:
        assert ("av_identities", "index", "ix_shoe") in facts(tenant.placement)


def test_a_fresh_tenant_gets_its_concurrent_index_too(postgres, location):
    """A schema that does not exist yet is made first."""
    fleet = SchemaFleet(postgres.create_database(), 1)
    write_revision(location, "index", CONCURRENT)

    report = upgrade(fleet.tenants, isolation=fleet.isolation, locations=[location])

    assert report.counts == {State.UPGRADED: 1}, report


def test_a_failure_apart_says_what_to_do(fleet, location):
    """What stood before the part without a transaction stays, and the row says to look there."""
    write_revision(
        location, "index",
        CONCURRENT.replace("postgresql_concurrently", "unique=True, postgresql_concurrently"),
    )  # fmt: skip
    with inside(fleet.tenants[0].placement) as connection:
        connection.execute(text("INSERT INTO av_identities (id) VALUES ('a'), ('b')"))
    body = CONCURRENT.replace('["shoe_size"]', '["is_active"]')
    write_revision(location, "index", body.replace("postgresql_c", "unique=True, postgresql_c"))

    report = upgrade(fleet.tenants[:1], isolation=fleet.isolation, locations=[location])

    (row,) = report.rows
    assert (row.state, row.after) == (State.FAILED, OURS)
    assert "INVALID" in row.error
    with fleet.connect() as connection:
        assert connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                                  ).fetchone() == (0,)  # fmt: skip


def test_status_of_many_holds_few_locks_and_tells_each_state(fleet, postgres):
    """Behind, ahead, unversioned, missing and locked are told apart, in few statements."""
    with fleet.connect() as connection:
        connection.execute("DELETE FROM tenant_t000.tenantsync_version")
        connection.execute("UPDATE tenant_t001.tenantsync_version SET version_num = 'future'")
        connection.execute("DROP SCHEMA tenant_t002 CASCADE")
        with fleet.connect() as holder, holder.transaction():
            holder.execute("LOCK TABLE tenant_t003.tenantsync_version")
            pid = holder.info.backend_pid

            report = status(fleet.tenants, isolation=fleet.isolation)

    assert states(report) == {
        "t000": State.UNVERSIONED,
        "t001": State.AHEAD,
        "t002": State.MISSING,
        "t003": State.LOCKED,
        "t004": State.OK,
    }
    assert f"process {pid} has locked" in report.rows[3].error


def test_a_target_can_be_given(fleet, location):
    """With `to` a run stops at an older revision, and places beyond it are left alone."""
    write_revision(location, "one", COLUMN)
    write_revision(location, "two", "pass", after="one", depends_on=None)
    options = {"isolation": fleet.isolation, "locations": [location]}
    upgrade(fleet.tenants[:1], **options).check()

    report = upgrade(fleet.tenants, to="one", **options)

    assert [row.after for row in report.rows] == ["two", *["one"] * 4]
    with pytest.raises(ConfigError, match="--to nowhere"):
        upgrade(fleet.tenants, to="nowhere", **options)


def test_a_branch_is_undone_and_ours_is_kept(fleet, location):
    """A downgrade names a branch; tables are dropped only by who says so."""
    write_revision(location, "shop", 'op.create_table("orders", sa.Column("id", sa.Integer()))',
                   down='op.drop_table("orders")')  # fmt: skip
    file = location / "shop.py"
    file.write_text(file.read_text().replace("branch_labels = None", "branch_labels = 'store'"))
    options = {"isolation": fleet.isolation, "locations": [location]}
    upgrade(fleet.tenants, **options).check()

    refused = downgrade(fleet.tenants, to="store@base", **options)
    report = downgrade(fleet.tenants, to="store@base", drop_tables=True, jobs=2, **options)

    assert "this would drop tables" in refused.stopped
    assert State.DOWNGRADED not in refused.counts
    assert report.counts == {State.DOWNGRADED: 5}, report
    assert {row.after for row in report.rows} == {OURS}
    assert set(map(frozenset, fleet.versions().values())) == {frozenset({OURS})}
    with pytest.raises(ConfigError, match="say which branch"):
        downgrade(fleet.tenants, to="-1", **options)


def test_down_to_nothing_and_up_again(fleet):
    """A place that was downgraded to nothing keeps its empty version table, and can come back."""
    options = {"isolation": fleet.isolation}

    down = downgrade(fleet.tenants, to="tenantsync@base", drop_tables=True, **options)
    up = upgrade(fleet.tenants, **options)

    assert down.counts == {State.DOWNGRADED: 5}, down
    assert up.counts == {State.UPGRADED: 5}, up


def test_stamping_changes_the_version_only(fleet, location):
    """A stamp writes the version row, and no table."""
    write_revision(location, "column", COLUMN)
    before = facts(fleet.tenants[0].placement)
    options = {"isolation": fleet.isolation, "locations": [location]}

    report = stamp(fleet.tenants, to="column", jobs=2, **options)

    assert report.counts == {State.STAMPED: 5}, report
    assert {row.after for row in report.rows} == {"column"}
    assert facts(fleet.tenants[0].placement) == before
    assert stamp(fleet.tenants, to="column", **options).counts == {State.OK: 5}


def test_a_plan_tells_each_start_and_does_nothing(fleet, location, tmp_path):
    """What would be run is told once for each set of revisions that tenants start from."""
    write_revision(location, "column", COLUMN)
    extra = Tenant("id-new", "new", fleet.isolation.place("new"))

    planned, report = plan(
        [*fleet.tenants, extra], move=Move(Kind.UPGRADE), isolation=fleet.isolation,
        locations=[location],
    )  # fmt: skip

    assert [(each.recording.start, each.tenants, each.example) for each in planned] == [
        ((), 1, "new"), ((OURS,), 5, "t000"),
    ]  # fmt: skip
    assert planned[1].recording.statements[0] == (
        "ALTER TABLE av_identities ADD COLUMN shoe_size INTEGER"
    )
    assert report.counts == {State.BEHIND: 5, State.MISSING: 1}
    assert set(map(frozenset, fleet.versions().values())) == {frozenset({OURS})}


def test_tenants_with_roles_are_migrated_and_looked_at(postgres, location):
    """Each transaction takes the tenant's role, also when a script is replayed."""
    fleet = SchemaFleet(postgres.create_database(), 3, role="test_fleet_{key}")
    with fleet.connect() as connection:
        for tenant in fleet.tenants:
            connection.execute(f"DROP ROLE IF EXISTS {tenant.placement.role}")
            connection.execute(f"CREATE ROLE {tenant.placement.role}")
    write_revision(location, "index", CONCURRENT)

    upgrade(fleet.tenants, isolation=fleet.isolation, jobs=2).check()
    report = upgrade(fleet.tenants, isolation=fleet.isolation, locations=[location])

    assert report.counts == {State.UPGRADED: 3}, report
    assert status(fleet.tenants, isolation=fleet.isolation, locations=[location]).ok
    with fleet.connect() as connection:
        owners = connection.execute(
            "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'tenant_t001'"
        ).fetchall()
    assert owners == [("test_fleet_t001",)]


def test_an_unreachable_server_is_asked_once(postgres):
    """A server that does not answer is not waited for by each of its tenants."""
    fleet = SchemaFleet("postgresql+psycopg://app:s3cret@127.0.0.1:1/main", 50)

    report = upgrade(fleet.tenants, isolation=fleet.isolation, jobs=2)

    assert report.counts == {State.UNREACHABLE: 50}
    assert "s3cret" not in repr(report)


def test_rows_are_told_and_only_failures_are_kept(fleet, location):
    """With ten thousand tenants nobody wants them all in memory."""
    write_revision(location, "column", COLUMN)
    break_first(fleet, "t001")
    heard = []

    report = upgrade(
        fleet.tenants,
        isolation=fleet.isolation,
        locations=[location],
        keep_rows=False,
        jobs=2,
        on_progress=lambda *told: heard.append(told),
    )

    assert [row.tenant for row in report.rows] == ["t001"]
    assert report.counts == {State.UPGRADED: 4, State.FAILED: 1}
    assert [(done, total) for _, done, total in heard] == [(n, 5) for n in range(1, 6)]


def test_choosing_tenants(fleet):
    """Keys and patterns choose, others are left out, and one that matches nobody is an error."""
    keys = lambda *given: [tenant.key for tenant in choose(fleet.tenants, *given)]  # noqa: E731

    assert keys() == ["t000", "t001", "t002", "t003", "t004"]
    assert keys(["t00[12]", "t000"], ["t002"]) == ["t001", "t000"]
    with pytest.raises(ConfigError, match='"t01"; did you mean "t001"'):
        keys(["t01"])
    with pytest.raises(ConfigError, match="no tenant has the key"):
        keys([], ["x*"])


class Local(DatabaseIsolation):
    """An isolation that cannot be given to another process."""

    def __reduce__(self):
        raise TypeError


def test_what_cannot_be_given_to_a_process_is_done_here(tmp_path, location):
    """Alembic then runs in this process, one tenant at a time."""
    isolation = Local(f"sqlite:///{tmp_path}/{{key}}.db")
    tenants = [Tenant(key, key, isolation.place(key)) for key in ("a", "b", "c")]
    write_revision(location, "python", PYTHON)

    report = upgrade(tenants, isolation=isolation, locations=[location], jobs=2)

    assert report.counts == {State.UPGRADED: 3}, report


def test_a_process_that_dies_takes_one_tenant_with_it(tmp_path, location):
    """A revision that kills its process is reported, and the next tenant gets a new one."""
    tenants, isolation = files(tmp_path, 4)
    upgrade(tenants, isolation=isolation).check()
    with inside(tenants[1].placement) as connection:
        connection.execute(text("INSERT INTO av_identities (id) VALUES ('die')"))
    write_revision(
        location, "dies",
        "if op.get_bind().scalar(sa.text('SELECT 1 FROM av_identities')):\n    os._exit(9)",
        top="import os",
    )  # fmt: skip

    report = upgrade(tenants, isolation=isolation, locations=[location], jobs=2)

    assert report.counts == {State.UPGRADED: 3, State.FAILED: 1}, report
    assert "the process that migrated it ended" in report.rows[1].error
