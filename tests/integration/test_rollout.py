"""The server and the tables need not be of one age: older, newer, and too old."""

import asyncio

import pytest
from guarding import ask, ledger, make, numbered, people, told
from sqlalchemy import select

from tenantsync.errors import TenantNotMigrated
from tenantsync.migrate import State, status, upgrade
from tenantsync.models import Identity
from tenantsync.observe import Outcome
from tenantsync.sync.breaker import BreakerOpen
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenancy.isolation import DatabaseIsolation

EVENTS = ("member.joined", "app_access.granted", "subject.updated", "subject.deleted")
HEAD = "tenantsync_0001"


def stamp_with(place, *revisions):
    """Write the revisions that a release of another age would have left."""
    ask(place, "DELETE FROM {s}tenantsync_version")
    for revision in revisions:
        ask(place, f"INSERT INTO {{s}}tenantsync_version VALUES ('{revision}')")


def state(place):
    tenants = numbered([place]).values()
    (row,) = status(tenants, isolation=DatabaseIsolation(None)).rows
    return row.state


def apply_all(place):
    """Return what becomes of one event of each kind, a hook that reads the person beside it."""

    def look(event, session):
        session.scalars(select(Identity).where(Identity.id == event.sub)).all()

    with IdentitySyncHandler(place, observers=()) as handler:
        handler.on("subject.updated")(look)
        return [told(handler, make(kind, id=f"e-{kind}")) for kind in EVENTS]


@pytest.mark.parametrize(
    "revisions", [("tenantsync_0000",), ("tenantsync_0002",), (HEAD, "shop_7")]
)
def test_a_revision_that_the_server_does_not_know_stops_no_event(migrated_place, revisions):
    """What counts is whether the columns are there: older, newer, and somebody else's branch."""
    stamp_with(migrated_place, *revisions)

    assert apply_all(migrated_place) == [Outcome.APPLIED] * 4
    assert people(migrated_place) == []
    assert len(ledger(migrated_place)) == 4


@pytest.mark.parametrize(
    "column",
    ["shoe_size integer", "shoe_size integer DEFAULT 42 NOT NULL", "since text DEFAULT 'then'"],
)
def test_migrations_that_add_may_run_before_the_server_is_replaced(migrated_place, column):
    """Columns and tables of a newer release, in every table of ours, are left alone."""
    for table in ("av_identities", "av_sync_events", "av_identity_tombstones"):
        ask(migrated_place, f"ALTER TABLE {{s}}{table} ADD COLUMN {column}")
    ask(migrated_place, "CREATE TABLE {s}av_newer (id text PRIMARY KEY)")
    stamp_with(migrated_place, "tenantsync_0002")

    assert apply_all(migrated_place) == [Outcome.APPLIED] * 4
    assert state(migrated_place) is State.AHEAD


def test_a_column_is_added_while_events_arrive(migrated_place):
    """One server, before and after: what a row held stays, and the new column takes its default."""
    with IdentitySyncHandler(migrated_place, observers=()) as handler:
        assert told(handler, make("member.joined", "ann")) is Outcome.APPLIED
        ask(migrated_place, "ALTER TABLE {s}av_identities ADD COLUMN size integer DEFAULT 42")
        assert told(handler, make("member.joined", "bob")) is Outcome.APPLIED
        assert told(handler, make("app_access.granted", "ann")) is Outcome.APPLIED

    rows = ask(migrated_place, "SELECT id, size, email FROM {s}av_identities ORDER BY id")
    assert rows == [("ann", 42, "ann@example.test"), ("bob", 42, "bob@example.test")]


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("av_identities", "clocks"),
        ("av_identities", "membership_status"),
        ("av_sync_events", "outcome"),
        ("av_identity_tombstones", "clock"),
    ],
)
def test_a_tenant_too_far_behind_is_told_to_be_migrated(migrated_place, table, column):
    """A column is missing: nothing is applied, not even in part, and it may be tried again."""
    ask(migrated_place, f"ALTER TABLE {{s}}{table} DROP COLUMN {column}")

    assert apply_all(migrated_place) == [*[TenantNotMigrated] * 3, BreakerOpen]
    assert ask(migrated_place, "SELECT * FROM {s}av_identities") == []
    assert ask(migrated_place, "SELECT * FROM {s}av_sync_events") == []
    assert TenantNotMigrated.retry


def test_a_tenant_too_far_behind_holds_nobody_up(schema_places):
    """Its neighbours' events are applied; its own are, as soon as it is migrated."""
    places = schema_places(3)
    ask(places[1], "DROP TABLE {s}av_identity_tombstones, {s}av_identity_sessions, "
        "{s}av_identities, {s}av_sync_events, {s}tenantsync_version")  # fmt: skip
    tenants = numbered(places)
    events = [make("member.joined", tenant=name, id=f"{name}/1") for name in tenants]

    async def every():
        return await asyncio.gather(*map(handler.handle, events), return_exceptions=True)

    with IdentitySyncHandler(tenants.get, observers=()) as handler:
        first = asyncio.run(every())
        upgrade(tenants.values(), isolation=DatabaseIsolation(None)).check()
        second = [told(handler, event) for event in events]

    assert [type(each) for each in first] == [Outcome, TenantNotMigrated, Outcome]
    assert "run `tenantsync migrate upgrade`" in str(first[1])
    assert second == [Outcome.DUPLICATE, Outcome.APPLIED, Outcome.DUPLICATE]
