"""Revisions written down once: what is, what must not be, and that both ways end alike."""

import itertools
import sys
from types import ModuleType

import pytest
from fleets import OURS, SchemaFleet, facts, inside, write_revision
from sqlalchemy import text

from tenantsync.migrate import Kind, Move, State, upgrade
from tenantsync.migrate.moves import Way
from tenantsync.migrate.recording import Recorder
from tenantsync.migrate.report import Stopped
from tenantsync.migrate.scripts import Scripts
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Placement, Tenant


def recorded(folder, dialect="postgresql", start=(OURS,), move=Move()):  # noqa: B008 - frozen
    return Recorder(Scripts([folder]), move).recording(dialect, start)


@pytest.mark.parametrize("dialect", ["postgresql", "sqlite"])
def test_our_own_revisions_can_be_replayed(dialect, tmp_path):
    """From nothing to head without Alembic at the tenants, on both databases."""
    recording = recorded(tmp_path, dialect, ())

    assert recording.way is Way.REPLAY
    assert recording.end == (OURS,)


def test_nothing_to_do_is_nothing(tmp_path):
    """A place at head is not written down for."""
    assert recorded(tmp_path).way is Way.NOTHING


@pytest.mark.parametrize(
    ("top", "body", "reason"),
    [
        ("", "op.get_bind().execute(sa.text('SELECT 1'))", "it reads from the database"),
        ("", "sa.inspect(op.get_bind())", "it reads from the database"),
        ("", "if op.get_bind().scalar(sa.text('SELECT 1')):\n    pass", "reads from the database"),
        ("", "rows = op.get_context().connection.execute(sa.text('SELECT 1')).all()", "written"),
        ("import uuid", "op.execute(f\"SELECT '{uuid.uuid4()}'\")", "it imports uuid"),
        ("from random import random", "op.execute(f'SELECT {random()}')", "it imports random"),
        ("import datetime", "op.execute(f\"SELECT '{datetime.date.today()}'\")", "for the time"),
        ("from datetime import datetime as d", "op.execute(f\"SELECT '{d.now()}'\")", "the time"),
        ("import os", "op.execute('SELECT 1')", "it imports os"),
        ("online_only = True", "op.execute('SELECT 1')", "it says online_only"),
        ("import numbers_of_fleets as n", "op.execute(f'SELECT {n.next()}')", "each time"),
        ("from numbers_of_fleets import next\nTOKEN = next()", "op.execute(f'SELECT {TOKEN}')",
         "something else each time"),
        ("", "op.execute(f\"SELECT '{op.get_context().version_table_schema}'\")", "each time"),
        ("from alembic import context", "if not context.is_offline_mode():\n    pass", "written"),
        ("", "if op.get_context().as_sql:\n    pass", "only written down"),
        ("", "open('/dev/null').close()", "it reads a file"),
        ("", "op.execute(sa.text('SELECT :a').bindparams(a=object()))", "cannot be written"),
    ],
)  # fmt: skip
def test_what_is_not_the_same_for_all_is_run_by_alembic(tmp_path, monkeypatch, top, body, reason):
    """A revision that reads, makes values of its own, or asks how it is run is not replayed."""
    helper = ModuleType("numbers_of_fleets")
    helper.next = itertools.count().__next__
    monkeypatch.setitem(sys.modules, helper.__name__, helper)
    write_revision(tmp_path, "odd", body, top=top)

    recording = recorded(tmp_path)

    assert recording.way is Way.ONLINE
    assert reason in recording.reason


@pytest.mark.parametrize(
    "body",
    [
        "op.add_column('a', sa.Column('x', sa.DateTime(), server_default=sa.func.now()))",
        "if op.get_bind().dialect.name == 'postgresql':\n    op.execute('SELECT 1')",
        'op.bulk_insert(sa.table("x", sa.column("a", sa.Integer())), [{"a": 1}, {"a": None}])',
    ],
)
def test_what_only_looks_odd_is_replayed(tmp_path, body):
    """The database's own clock, and asking which database it is, are the same for all."""
    write_revision(tmp_path, "fine", body)

    assert recorded(tmp_path).way is Way.REPLAY


def test_a_value_is_written_down_as_it_is(tmp_path):
    """Neither tabs, nor percent signs, nor colons, nor quotes in a value are changed."""
    write_revision(
        tmp_path,
        "odd",
        "x = sa.table('x', sa.column('a', sa.Text()))\n"
        "op.execute(x.insert().values(a=\"tab\\t 5% :b 'q' \\\\\"))",
    )

    assert recorded(tmp_path).statements[0] == ("INSERT INTO x (a) VALUES ('tab\t 5% :b ''q'' \\')")


def test_an_autocommit_block_goes_apart(tmp_path):
    """What cannot be in a transaction is run with a lock and a place of the session's own."""
    write_revision(
        tmp_path, "apart", "with op.get_context().autocommit_block():\n    op.execute('SELECT 1')"
    )

    assert recorded(tmp_path).way is Way.APART
    assert recorded(tmp_path, "sqlite").way is Way.REPLAY


def test_a_sqlite_rebuild_is_run_by_alembic(tmp_path):
    """A table can be rebuilt only by who sees it; on PostgreSQL nothing is rebuilt."""
    write_revision(
        tmp_path, "batch",
        "with op.batch_alter_table('av_identities') as batch:\n"
        "    batch.alter_column('locale', new_column_name='language')",
    )  # fmt: skip

    assert recorded(tmp_path, "sqlite").way is Way.ONLINE
    assert recorded(tmp_path, "postgresql").way is Way.REPLAY


def test_a_revision_that_depends_on_ours_takes_its_row(tmp_path):
    """Places are told apart by their set of heads, from which ours is missing then."""
    write_revision(tmp_path, "welcome", "op.execute('SELECT 1')")
    write_revision(tmp_path, "more", "op.execute('SELECT 2')", after="welcome", depends_on=None)
    write_revision(tmp_path, "else", "op.execute('SELECT 3')", depends_on=None)

    fresh = recorded(tmp_path, start=())
    halfway = recorded(tmp_path, start=("welcome",))

    assert fresh.end == halfway.end == ("else", "more")
    assert [s for s in halfway.statements if s.startswith("SELECT")] == [
        "SELECT 3",
        "SELECT 2",
    ] or [s for s in halfway.statements if s.startswith("SELECT")] == ["SELECT 2", "SELECT 3"]
    assert recorded(tmp_path, start=("else", "more")).way is Way.NOTHING


def test_unknown_revisions_are_ahead(tmp_path):
    """A place at a revision from elsewhere is not written down for."""
    with pytest.raises(Stopped) as info:
        recorded(tmp_path, start=("future",))

    assert info.value.state is State.AHEAD


def test_dropping_tables_is_noticed(tmp_path):
    """A downgrade says whether it drops tables, and so does one that nobody can tell about."""
    write_revision(tmp_path, "a", "pass", down="op.drop_column('av_identities', 'x')")
    write_revision(tmp_path, "b", "pass", after="a", depends_on=None, down="op.drop_table('x')")
    write_revision(tmp_path, "c", "pass", after="b", depends_on=None,
                   down="op.get_bind().execute(sa.text('SELECT 1'))")  # fmt: skip

    def drops(start, to):
        return recorded(tmp_path, start=(start,), move=Move(Kind.DOWNGRADE, to)).drops_tables

    assert not drops("a", "a@base")
    assert drops("b", "b@a")
    assert drops("c", "c@b")


BODY = """
op.create_table("orders", sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
    sa.Column("of", sa.Text(), sa.ForeignKey("av_identities.id", ondelete="CASCADE")),
    sa.Column("state", sa.Enum("new", "paid", name="order_state"), server_default="new"),
    sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
    sa.Column("sum", sa.Numeric(10, 2), sa.CheckConstraint("sum >= 0", name="positive")))
op.create_index("ix_orders_open", "orders", ["at"], postgresql_where=sa.text("state = 'new'"))
op.create_unique_constraint("uq_orders", "orders", ["of", "at"])
op.add_column("av_identities", sa.Column("shoe_size", sa.Integer(), server_default="42"))
op.execute("INSERT INTO orders (sum) VALUES (1.50)")
op.execute("UPDATE av_identities SET locale = 'de' WHERE locale LIKE '%DE'")
"""


def test_both_ways_leave_the_same_schema(postgres, tmp_path):
    """What is replayed ends as what Alembic does at the tenant, to the last constraint."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, top in ((one, ""), (two, "online_only = True")):
        folder.mkdir()
        write_revision(folder, "orders", BODY, top=top)
    fleet = SchemaFleet(postgres.create_database(), 2)

    ways = [recorded(folder, start=()).way for folder in (one, two)]
    for tenant, folder in zip(fleet.tenants, (one, two), strict=True):
        upgrade([tenant], isolation=fleet.isolation, locations=[folder]).check()

    assert ways == [Way.REPLAY, Way.ONLINE]
    replayed, online = (facts(tenant.placement) for tenant in fleet.tenants)
    assert replayed == online
    assert ("orders", "constraint", "ck_orders_positive") in replayed


SIMPLE = """
op.create_table("orders", sa.Column("id", sa.Integer(), primary_key=True),
    sa.Column("of", sa.Text(), sa.ForeignKey("av_identities.id", ondelete="CASCADE")))
op.create_index("ix_orders_of", "orders", ["of"])
op.add_column("av_identities", sa.Column("shoe_size", sa.Integer(), server_default="42"))
"""


def test_both_ways_leave_the_same_file(tmp_path):
    """The same for SQLite."""
    places = []
    for name, top in (("one", ""), ("two", "online_only = True")):
        (tmp_path / name).mkdir()
        write_revision(tmp_path / name, "orders", SIMPLE, top=top)
        place = Placement.of(f"sqlite:///{tmp_path / name}.db")
        upgrade([Tenant(name, name, place)], isolation=DatabaseIsolation(None),
                locations=[tmp_path / name]).check()  # fmt: skip
        places.append(place)

    assert facts(places[0]) == facts(places[1])
    with inside(places[0]) as connection:
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
