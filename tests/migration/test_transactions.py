"""One transaction per tenant: what goes wrong leaves nothing, and nothing goes astray."""

import textwrap
import threading

import pytest
from sqlalchemy import inspect, text

from tenantsync.errors import ConfigError
from tenantsync.migrate import State, status, upgrade
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Placement, Tenant

OURS = "tenantsync_0001"


@pytest.fixture
def location(tmp_path):
    """Give a folder for an application's own revisions, with an odd name."""
    folder = tmp_path / "100% my: versions"
    folder.mkdir()
    return folder


@pytest.fixture
def fresh_place(database_url):
    """Give a place that was never migrated: a SQLite file, or a schema on PostgreSQL."""
    return Placement.of(database_url, "tenant_acme" if "postgresql" in database_url else None)


def write_revision(folder, name, body, *, after=None, depends_on=OURS):
    """Write a revision whose upgrade does what the body says."""
    (folder / f"{name}.py").write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\n\n"
        f"revision = {name!r}\ndown_revision = {after!r}\n"
        f"branch_labels = None\ndepends_on = {depends_on!r}\n\n\n"
        f"def upgrade():\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    )


def acme(place):
    return Tenant("id-of-acme", "acme", place)


def run(place, *locations, **options):
    (row,) = upgrade(
        [acme(place)], isolation=DatabaseIsolation(None), locations=locations, **options
    ).rows
    return row


def ask(place, question):
    """Return what a question to the place answers; `question` gets a connection that is in it."""
    engine = make_engine(place.url)
    try:
        with engine.begin() as connection:
            if place.schema:
                connection.execute(text(f'SET LOCAL search_path TO "{place.schema}"'))
            return question(connection)
    finally:
        engine.dispose()


def tables(place):
    return ask(place, lambda c: set(inspect(c).get_table_names(schema=place.schema)))


def test_a_failing_revision_leaves_nothing(fresh_place, location):
    """What a revision did before it failed is undone, and so are those before it."""
    write_revision(
        location, "bad", 'op.create_table("half", sa.Column("id", sa.Integer()))\n'
        'op.execute("INSERT INTO half VALUES (1)")\nraise RuntimeError("the lights went out")',
    )  # fmt: skip

    row = run(fresh_place, location)

    assert (row.state, row.before, row.after) == (State.FAILED, None, None)
    assert row.error == "RuntimeError: the lights went out"
    if fresh_place.is_postgres:
        assert ask(fresh_place, lambda c: c.scalar(text("SELECT to_regnamespace('tenant_acme')"))) \
            is None  # fmt: skip
    assert set() == tables(fresh_place)


def test_a_failing_revision_keeps_the_former_one(migrated_place, location):
    """A place at head stays there, rows and all, when a later revision fails."""
    ask(migrated_place, lambda c: c.execute(text("INSERT INTO av_identities (id) VALUES ('u1')")))
    before = tables(migrated_place)
    write_revision(location, "good", 'op.add_column("av_identities", sa.Column("x", sa.Text()))')
    write_revision(location, "bad", 'op.drop_table("av_sync_events")\nop.execute("SELECT nothing")',
                   after="good", depends_on=None)  # fmt: skip

    row = run(migrated_place, location)

    assert (row.state, row.before, row.after) == (State.FAILED, OURS, OURS)
    assert "nothing" in row.error
    assert before == tables(migrated_place)
    assert ask(migrated_place, lambda c: c.execute(text("SELECT id FROM av_identities")).all()) == [
        ("u1",)
    ]
    assert "x" not in ask(
        migrated_place,
        lambda c: {column["name"] for column in inspect(c).get_columns("av_identities")},
    )
    run(migrated_place)  # and the way is not blocked
    assert (
        status([acme(migrated_place)], isolation=DatabaseIsolation(None)).rows[0].state == State.OK
    )


def test_an_applications_branch_runs_beside_ours(fresh_place, location):
    """Revisions from another folder make tables that point at ours, in the same place."""
    write_revision(
        location, "welcome",
        'op.create_table("welcome", sa.Column("identity_id", sa.Text(collation=None),'
        ' sa.ForeignKey("av_identities.id", ondelete="CASCADE"), primary_key=True))',
    )  # fmt: skip

    row = run(fresh_place, location)

    assert (row.state, row.before, row.after) == (State.UPGRADED, None, "welcome")
    assert {"welcome", "av_identities"} <= tables(fresh_place)
    again = run(fresh_place, location)
    assert (again.state, again.after) == (State.OK, "welcome")


def test_a_branch_can_be_added_later(migrated_place, location):
    """A place at our head is behind once the application adds a revision."""
    write_revision(
        location, "later", 'op.create_table("later", sa.Column("id", sa.Integer()))',
        depends_on=None,
    )  # fmt: skip
    isolation = DatabaseIsolation(None)

    (behind,) = status([acme(migrated_place)], isolation=isolation, locations=[location]).rows
    row = run(migrated_place, location)

    assert (behind.state, behind.after) == (State.BEHIND, OURS)
    assert (State.UPGRADED, OURS, f"later, {OURS}") == (row.state, row.before, row.after)


def test_two_revisions_with_one_id_are_refused(fresh_place, location):
    """An application's revision cannot stand in for one of ours."""
    write_revision(location, OURS, "pass", depends_on=None)

    with pytest.raises(ConfigError, match="present more than once"):
        run(fresh_place, location)


def test_a_revision_that_cannot_be_read_is_refused(fresh_place, location):
    """A syntax error in a revision is said once, before any tenant is touched."""
    (location / "broken.py").write_text("def upgrade(:\n")

    with pytest.raises(ConfigError, match="the revisions cannot be read: SyntaxError"):
        run(fresh_place, location)


REBUILD = """
with op.batch_alter_table("av_identities", recreate="always") as batch:
    batch.add_column(sa.Column("shoe_size", sa.Text()))
"""


def put_a_person_with_a_session(place):
    ask(place, lambda c: c.execute(text("INSERT INTO av_identities (id) VALUES ('u1')")))
    ask(
        place,
        lambda c: c.execute(
            text(
                "INSERT INTO av_identity_sessions (id, identity_id, expires_at)"
                " VALUES ('s1', 'u1', '2030-01-01 00:00:00.000000')"
            )
        ),
    )


@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
def test_rebuilding_a_table_keeps_the_children_of_its_rows(migrated_place, location):
    """SQLite rebuilds a table by dropping it; the rows that point at its rows stay."""
    put_a_person_with_a_session(migrated_place)
    write_revision(location, "rebuild", REBUILD)

    row = run(migrated_place, location)

    assert row.state == State.UPGRADED
    assert ask(
        migrated_place,
        lambda c: c.execute(
            text(
                "SELECT s.id, i.id, i.shoe_size FROM av_identity_sessions s"
                " JOIN av_identities i ON i.id = s.identity_id"
            )
        ).all(),
    ) == [("s1", "u1", None)]
    # The foreign key still does its work afterwards.
    ask(migrated_place, lambda c: c.execute(text("DELETE FROM av_identities")))
    assert (
        ask(migrated_place, lambda c: c.scalar(text("SELECT count(*) FROM av_identity_sessions")))
        == 0
    )


@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
def test_the_same_rebuild_with_foreign_keys_on_would_lose_them(migrated_place):
    """The test above is not idle: with foreign keys on, dropping the table deletes the children."""
    put_a_person_with_a_session(migrated_place)

    ask(migrated_place, lambda c: c.execute(text("DROP TABLE av_identities")))

    assert (
        ask(migrated_place, lambda c: c.scalar(text("SELECT count(*) FROM av_identity_sessions")))
        == 0
    )


@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
def test_a_revision_that_makes_orphans_is_rolled_back(migrated_place, location):
    """Foreign keys are off while SQLite migrates, and are checked before it commits."""
    put_a_person_with_a_session(migrated_place)
    write_revision(location, "orphans", 'op.execute("DELETE FROM av_identities")')

    row = run(migrated_place, location)

    assert (row.state, row.after) == (State.FAILED, OURS)
    assert "1 rows would point at nothing" in row.error
    assert "u1" not in row.error
    assert ask(migrated_place, lambda c: c.scalar(text("SELECT count(*) FROM av_identities"))) == 1


@pytest.mark.parametrize("migrated_place", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "body",
    [
        'op.execute("SET LOCAL search_path TO public")',
        'op.execute("SET search_path TO public")',
        "op.execute(\"SELECT set_config('search_path', 'public', true)\")",
        'op.execute("RESET search_path")',
    ],
)
def test_a_revision_that_leaves_the_schema_is_rolled_back(migrated_place, location, body):
    """What a revision made in `public` is undone, because its transaction has left its place."""
    write_revision(
        location, "astray", f'{body}\nop.create_table("stray", sa.Column("id", sa.Integer()))'
    )

    row = run(migrated_place, location)

    assert row.state == State.FAILED
    assert "search_path" in row.error or "the transaction is in schema 'public'" in row.error
    assert ask(migrated_place, lambda c: inspect(c).get_table_names(schema="public")) == []


@pytest.mark.parametrize("migrated_place", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("COMMIT", "a revision says COMMIT"),
        ("/* now */ rollback -- all", "a revision says ROLLBACK"),
        ("SELECT 1; COMMIT; BEGIN", "a revision ended the transaction"),
    ],
)
def test_a_revision_that_commits_is_found_out(migrated_place, location, statement, reason):
    """A COMMIT within a revision ends the place and the lock; it is refused, or reported."""
    write_revision(location, "commits", f'op.execute("{statement}")')

    row = run(migrated_place, location)

    assert row.state == State.FAILED
    assert reason in row.error


@pytest.mark.parametrize("migrated_place", ["postgresql"], indirect=True)
def test_a_value_of_a_row_is_not_repeated(migrated_place, location):
    """PostgreSQL quotes a value that it cannot convert; the report does not."""
    ask(migrated_place, lambda c: c.execute(text(
        "INSERT INTO av_identities (id, email) VALUES ('u1', 'ada@example.com')")))  # fmt: skip
    write_revision(location, "casts", 'op.execute("SELECT email::integer FROM av_identities")')

    row = run(migrated_place, location)

    assert row.error == "InvalidTextRepresentation (22P02)"


def test_upgrades_of_one_place_wait_for_each_other(fresh_place):
    """Many at once, on connections of their own: one makes the tables, the rest find them."""
    rows = []
    threads = [threading.Thread(target=lambda: rows.append(run(fresh_place))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(row.state for row in rows) == [State.OK] * 5 + [State.UPGRADED], rows


def test_another_migration_is_waited_for_so_long(postgres):
    """Who cannot have the lock in time says that another migration is running."""
    place = Placement.of(postgres.create_database(), "tenant_acme")
    with postgres.connect(place.url.database) as other, other.transaction():
        other.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('tenantsync migrate tenant_acme', 0))"
        )

        row = run(place, wait=0.05)

    assert row.state == State.LOCKED
    assert "another migration of it has run for more than 0.05 seconds" in row.error


def test_a_locked_table_is_not_waited_for_forever(migrated_place, location):
    """A revision that cannot have its lock gives up, so that nobody queues behind it for long."""
    write_revision(location, "waits", 'op.add_column("av_identities", sa.Column("x", sa.Text()))')
    engine = make_engine(migrated_place.url)
    with engine.begin() as busy:
        schema = f"{migrated_place.schema}." if migrated_place.schema else ""
        busy.execute(text(f"DELETE FROM {schema}av_identities"))

        row = run(migrated_place, location, lock_timeout=0.05)
    engine.dispose()

    assert row.state == State.LOCKED
    assert row.after == OURS
    assert ("process " in row.error) is migrated_place.is_postgres
    assert run(migrated_place, location).state == State.UPGRADED
