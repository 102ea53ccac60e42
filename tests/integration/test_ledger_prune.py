"""Pruning: old ids leave the ledgers, but none that the inbox still holds."""

import logging
import threading

import pytest
from guarding import ask, body_of, ledger, make, numbered
from sqlalchemy import create_engine, text

from tenantsync.control.database import ControlDatabase, ControlUnavailable
from tenantsync.control.inbox import Arrival, Inbox, Settlement
from tenantsync.errors import TenantNotIsolated, TenantNotMigrated
from tenantsync.events import parse
from tenantsync.migrate.control import upgrade_control
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.ledger import LedgerPruner
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement, Tenant
from tenantsync.worker.prune import Pruner, Retention

DAY = 86_400.0
RETENTION = Retention(bodies=7 * DAY, ids=35 * DAY, quarantine=90 * DAY, expire=30 * DAY)


@pytest.fixture
def control(database_url, tmp_path):
    """A control database of each kind."""
    if database_url.startswith("sqlite"):
        database_url = f"sqlite:///{tmp_path / 'control.db'}"
    with ControlDatabase(database_url) as database:
        upgrade_control(database)
        yield database


@pytest.fixture
def lone_inbox(tmp_path):
    """An inbox in a SQLite file, where its kind does not matter."""
    with ControlDatabase(f"sqlite:///{tmp_path / 'inbox.db'}") as database:
        upgrade_control(database)
        yield Inbox(database)


@pytest.fixture
def registry():
    with EngineRegistry() as registry:
        yield registry


@pytest.fixture
def ledgers(registry):
    return LedgerPruner(registry, DatabaseIsolation(None), portion=3)


@pytest.fixture
def make_pruner(ledgers):
    """Make pruners that do not pause between tenants."""

    def make(inbox, tenants, **options):
        options = {"retention": RETENTION, "spread": 0.0} | options
        return Pruner(inbox, ledgers, tenants=lambda: tenants, **options)

    return make


def write(place, *ids, days=0):
    """Apply an event for each id, and have that happened some days ago."""
    with IdentitySyncHandler(place, observers=[]) as handler:
        for event_id in ids:
            handler.handle_blocking(make("member.joined", id=event_id))
    age(place, days, *ids)


def age(place, days, *ids):
    """Let events have been applied some days ago, by the clock of their database."""
    then = (
        f"now() - interval '{days} days'"
        if place.is_postgres
        else f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '-{days} days')"
    )
    names = ", ".join(f"'{event_id}'" for event_id in ids)
    ask(place, f"UPDATE {{s}}av_sync_events SET received_at = {then} WHERE event_id IN ({names})")


def arrival(event_id, tenant="acme"):
    body = body_of("member.joined", id=event_id, tenant=tenant)
    event = parse(body)
    return Arrival(
        tenant_id=tenant,
        event_id=event_id,
        type=event.type,
        subject=event.sub,
        timestamp=event.timestamp,
        body=body,
        signed_at=None,
        door="webhook",
        reason="TenantUnavailable",
    )


def test_ids_that_were_applied_long_ago_are_removed(ledgers, migrated_place):
    """By the time of applying, in portions, to the day."""
    write(migrated_place, *(f"old-{n}" for n in range(8)), days=36)
    write(migrated_place, "young", days=34)
    write(migrated_place, "new")

    removed = ledgers.prune(migrated_place, older_than=35 * DAY, held=set)

    assert removed == 8
    assert ledger(migrated_place) == ["new", "young"]


def test_when_an_event_happened_does_not_matter(ledgers, migrated_place):
    """An event from years ago that was applied today may come again tomorrow."""
    with IdentitySyncHandler(migrated_place, observers=[]) as handler:
        handler.handle_blocking(make("member.joined", id="late", at=1_000_000_000_000))

    assert ledgers.prune(migrated_place, older_than=35 * DAY, held=set) == 0
    assert ledger(migrated_place) == ["late"]


def test_ids_that_the_inbox_holds_stay_however_old(ledgers, migrated_place):
    """Also where a whole portion of them stands before what may go."""
    held = {f"a-held-{n}" for n in range(7)}
    write(migrated_place, *held, days=90)
    write(migrated_place, *(f"old-{n}" for n in range(7)), days=36)

    removed = ledgers.prune(migrated_place, older_than=35 * DAY, held=lambda: held)

    assert removed == 7
    assert ledger(migrated_place) == sorted(held)
    assert ledgers.prune(migrated_place, older_than=35 * DAY, held=lambda: held) == 0


def test_the_inbox_is_asked_only_where_something_is_old(ledgers, migrated_place):
    """Ten thousand tenants are gone through each hour."""
    write(migrated_place, "new")

    def never():
        raise AssertionError("asked in vain")

    assert ledgers.prune(migrated_place, older_than=35 * DAY, held=never) == 0


def test_pruning_ends_early_where_it_is_told_to(ledgers, migrated_place):
    """A worker that stops does not finish a year's ledger first."""
    write(migrated_place, *(f"old-{n}" for n in range(8)), days=36)
    turns = iter([False, False, True])

    removed = ledgers.prune(
        migrated_place, older_than=35 * DAY, held=set, stopping=lambda: next(turns)
    )

    assert removed == 6
    assert len(ledger(migrated_place)) == 2


def test_a_pruned_person_is_still_there(ledgers, migrated_place):
    """Only the ledger forgets."""
    write(migrated_place, "old", days=36)

    ledgers.prune(migrated_place, older_than=35 * DAY, held=set)

    assert ask(migrated_place, "SELECT id FROM {s}av_identities") == [("ann",)]


def test_a_ledger_of_a_place_with_a_strange_name_is_pruned(ledgers, postgres):
    """Quotes and percent signs in a schema's name are part of the name."""
    place = Placement.of(postgres.create_database(), 'ten"ant %s @')
    quoted = '"ten""ant %s @"'
    engine = create_engine(place.url)
    with engine.begin() as connection:
        run = connection.connection.cursor().execute
        run(f"CREATE SCHEMA {quoted}")
        run(f"CREATE TABLE {quoted}.av_sync_events (event_id text, received_at timestamptz)")
        run(f"INSERT INTO {quoted}.av_sync_events VALUES ('a', '2001-01-01'), ('b', now())")
    engine.dispose()

    assert ledgers.prune(place, older_than=DAY, held=set) == 1


def test_only_the_tenants_own_ledger_is_touched(ledgers, schema_places):
    """Its neighbours' old ids are their own affair."""
    first, second = schema_places(2)
    for place in (first, second):
        write(place, "old", days=36)

    ledgers.prune(first, older_than=35 * DAY, held=set)

    assert (ledger(first), ledger(second)) == ([], ["old"])


def test_a_place_that_cannot_be_proven_is_not_pruned(registry, migrated_place):
    """Where the transaction is not in the tenant's place, nothing is removed."""

    class Astray(DatabaseIsolation):
        def confirm(self, answer, placement):
            raise TenantNotIsolated("elsewhere")

    write(migrated_place, "old", days=36)

    with pytest.raises(TenantNotIsolated):
        LedgerPruner(registry, Astray(None)).prune(migrated_place, older_than=DAY, held=set)

    assert ledger(migrated_place) == ["old"]


def test_a_schema_that_is_missing_is_an_error_and_not_an_empty_ledger(ledgers, postgres):
    """PostgreSQL would look elsewhere without a word."""
    url = postgres.create_database()

    with pytest.raises(TenantNotIsolated):
        ledgers.prune(Placement.of(url, "nobody"), older_than=DAY, held=set)


def test_an_engine_in_autocommit_is_refused(ledgers, postgres):
    """Each statement would be a transaction of its own, also where the place looks right."""
    engine = create_engine(postgres.create_database(), isolation_level="AUTOCOMMIT")
    place = Placement.of(engine)
    ask(place, "CREATE TABLE {s}av_sync_events (event_id text, received_at timestamptz)")
    ask(place, "INSERT INTO {s}av_sync_events VALUES ('old', '2001-01-01')")

    with pytest.raises(TenantNotIsolated, match="autocommit"):
        ledgers.prune(place, older_than=DAY, held=set)

    engine.dispose()
    assert ledger(place) == ["old"]


def test_tables_that_are_missing_are_said_to_be(ledgers, migrated_place):
    """The error is a sentence, and not the driver's."""
    ask(migrated_place, "ALTER TABLE {s}av_sync_events RENAME TO hidden")

    with pytest.raises(TenantNotMigrated):
        ledgers.prune(migrated_place, older_than=DAY, held=set)


def test_nothing_stays_on_the_connection(registry, migrated_place):
    """The next tenant on it must not inherit a place or a time limit."""
    ledgers = LedgerPruner(registry, DatabaseIsolation(None), statement_timeout=1.5)
    write(migrated_place, "old", days=36)
    ledgers.prune(migrated_place, older_than=DAY, held=set)

    with registry.connect(migrated_place) as connection:
        if migrated_place.is_postgres:
            path = connection.scalar(text("SELECT current_setting('search_path')"))
            limit = connection.scalar(text("SELECT current_setting('statement_timeout')"))
            assert (path, limit) == ('"$user", public', "0")
        else:
            assert connection.scalar(text("PRAGMA query_only")) == 0


def test_a_round_prunes_the_ledgers_and_the_inbox(make_pruner, control, migrated_place):
    """What was applied long ago is forgotten in both; what waits is not."""
    inbox = Inbox(control)
    inbox.park([arrival("settled"), arrival("waiting")])
    lane = inbox.claim("me")
    numbers = {entry.event_id: entry.number for entry in inbox.list()}
    inbox.settle(lane, [Settlement(number=numbers["settled"], outcome="applied")])
    inbox.release(lane)
    write(migrated_place, "settled", "waiting", "forgotten", days=36)
    pruner = make_pruner(inbox, [Tenant("acme", "acme", migrated_place)])

    report = pruner.run()

    assert (report.tenants, report.ids, report.forgotten, report.failed) == (1, 1, 0, {})
    assert ledger(migrated_place) == ["settled", "waiting"]

    settle_long_ago(control)
    report = pruner.run()

    assert (report.ids, report.forgotten) == (1, 1)
    assert ledger(migrated_place) == ["waiting"]
    assert [entry.event_id for entry in inbox.list()] == ["waiting"]


def settle_long_ago(control):
    """Let what was settled have been settled forty days ago."""
    then = (
        "now() - interval '40 days'"
        if control.placement.is_postgres
        else "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-40 days')"
    )
    with control.write() as connection:
        connection.execute(text(f"UPDATE inbox SET settled_at = {then} WHERE state = 'applied'"))


def test_a_tenant_that_fails_does_not_stop_the_others(
    make_pruner, lone_inbox, schema_places, tmp_path, caplog
):
    """Missing tables, a missing file, a server that is away: the rest of the fleet is pruned."""
    places = [
        *schema_places(3),
        Placement.of(f"sqlite:///{tmp_path / 'missing.db'}"),
        Placement.of("postgresql+psycopg://nobody@127.0.0.1:1/nothing"),
    ]
    for place in places[:3]:
        write(place, "old", days=36)
    ask(places[1], "ALTER TABLE {s}av_sync_events RENAME TO hidden")
    tenants = [*numbered(places).values()]

    with caplog.at_level(logging.INFO):
        report = make_pruner(lone_inbox, tenants).run()

    assert report.failed == {
        "t1": "TenantNotMigrated",
        "t3": "TenantUnavailable",
        "t4": "TenantUnavailable",
    }
    assert (report.tenants, report.ids) == (5, 2)
    assert (ledger(places[0]), ledger(places[2])) == ([], [])
    told = [record for record in caplog.records if record.message == "tenantsync.prune_failed"]
    assert [(record.tenant, record.error) for record in told] == [*report.failed.items()]
    (summary,) = [record for record in caplog.records if record.message == "tenantsync.pruned"]
    assert (summary.ids, summary.failed) == (2, 3)


def test_a_suspended_tenant_is_left_alone(make_pruner, lone_inbox, migrated_place):
    """An operator said that nothing is to be written there."""
    write(migrated_place, "old", days=36)

    report = make_pruner(lone_inbox, [Tenant("acme", "acme", migrated_place, suspended=True)]).run()

    assert (report.tenants, ledger(migrated_place)) == (0, ["old"])


@pytest.mark.parametrize("listed", [["acme", "globex"], ["acme"]])
def test_a_shared_ledger_keeps_what_is_held_for_anybody(
    make_pruner, lone_inbox, migrated_place, listed
):
    """Under the strategy `single` one ledger has everyone's ids, even of tenants not listed."""
    lone_inbox.park([arrival("held", tenant="globex")])
    write(migrated_place, "held", "old", days=36)
    tenants = [Tenant(name, name, migrated_place) for name in listed]

    report = make_pruner(lone_inbox, tenants, shared=True).run()

    assert report.ids == 1
    assert ledger(migrated_place) == ["held"]


def test_without_the_inbox_no_id_is_removed(make_pruner, control, migrated_place):
    """Nobody knows then which of them must stay."""
    write(migrated_place, "old", days=36)

    class Failing(Inbox):
        def held(self, tenant_id):
            raise ControlUnavailable("down")

    with pytest.raises(ControlUnavailable):
        make_pruner(Failing(control), [Tenant("acme", "acme", migrated_place)]).run()

    assert ledger(migrated_place) == ["old"]


def test_a_round_ends_where_the_worker_stops(make_pruner, lone_inbox, migrated_place):
    """Nobody waits for the rest of the fleet."""
    write(migrated_place, "old", days=36)
    stopping = threading.Event()
    stopping.set()

    report = make_pruner(lone_inbox, [Tenant("acme", "acme", migrated_place)]).run(stopping)

    assert (report.tenants, ledger(migrated_place)) == (0, ["old"])


def test_two_workers_may_prune_one_tenant_at_once(registry, migrated_place):
    """They remove each id once, between them, and neither fails."""
    write(migrated_place, *(f"old-{n:02d}" for n in range(40)), days=36)
    pruners = [LedgerPruner(registry, DatabaseIsolation(None), portion=5) for _ in range(2)]
    start = threading.Barrier(2)
    failures = []

    def prune(pruner):
        start.wait(30)
        try:
            pruner.prune(migrated_place, older_than=35 * DAY, held=set)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=prune, args=(pruner,)) for pruner in pruners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failures == []
    assert ledger(migrated_place) == []
