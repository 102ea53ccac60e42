"""Workers with real tenants: what was parked is applied, once, whoever drains it."""

import threading

import pytest
from folding import fold, stored
from guarding import NOON, ask, body_of, connected, ledger, numbered, people
from sqlalchemy import text

from tenantsync.control.database import ControlDatabase
from tenantsync.control.inbox import Arrival, Inbox, State
from tenantsync.events import parse
from tenantsync.migrate.control import upgrade_control
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.parking import Parking
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenancy.resolver import TenantResolver
from tenantsync.tenants import Tenant
from tenantsync.worker.drain import Drainer
from tenantsync.worker.loop import Worker

PAST = "2001-01-01 00:00:00.000000"


class Deliveries(list):
    """An observer that keeps what it is told."""

    def __call__(self, delivery):
        self.append(delivery)


class Tenants:
    """A source whose tenants come and go as the test says."""

    def __init__(self, *tenants):
        self.by_id = {tenant.id: tenant for tenant in tenants}

    def find(self, tenant_id):
        return self.by_id.get(tenant_id)

    def list(self):
        return list(self.by_id.values())


@pytest.fixture
def seen():
    return Deliveries()


@pytest.fixture
def control(database_url, tmp_path):
    """A control database of each kind."""
    if database_url.startswith("sqlite"):
        database_url = f"sqlite:///{tmp_path / 'control.db'}"
    with ControlDatabase(database_url) as database:
        upgrade_control(database)
        yield database


@pytest.fixture
def inbox(control):
    return Inbox(control)


@pytest.fixture
def make_handler(inbox, seen):
    """Make handlers with an inbox, as processes have them; closed at the end."""
    opened = []

    def make(source, **options):
        parking = Parking(inbox)
        handler = IdentitySyncHandler(
            TenantResolver(source, ttl=0.001, negative_ttl=0.001),
            parking=parking,
            observers=[seen],
            **options,
        )
        opened.append((handler, parking))
        return handler

    yield make
    for handler, parking in opened:
        handler.close()
        parking.close()


@pytest.fixture
def handler(make_handler, migrated_place):
    return make_handler(Tenants(Tenant("acme", "acme", migrated_place)))


@pytest.fixture
def drainer(inbox, handler):
    return Drainer(inbox, handler, owner="me")


@pytest.fixture
def come_due(control):
    """Let all waiting times pass, and all leases end."""
    zone = "+00" if control.placement.is_postgres else ""

    def come_due():
        with control.write() as connection:
            for statement in (
                "UPDATE lanes SET due_at = :past WHERE due_at IS NOT NULL",
                "UPDATE inbox SET due_at = :past",
            ):
                connection.execute(text(statement), {"past": PAST + zone})

    return come_due


def park(inbox, *bodies):
    """Park bodies past the handler, as if their tenant had been down."""
    arrivals = []
    for body in bodies:
        event = parse(body)
        arrivals.append(
            Arrival(
                tenant_id=event.tenant_id,
                event_id=event.id,
                type=event.type,
                subject=event.sub,
                timestamp=event.timestamp,
                body=body,
                signed_at=None,
                door="webhook",
                reason="TenantUnavailable",
            )
        )
    inbox.park(arrivals)


def hide(place):
    """Take the tenant's tables away, as a migration that went wrong would."""
    rename(place, "av_identities", "hidden")


def show(place):
    """Give them back."""
    rename(place, "hidden", "av_identities")


def rename(place, name, other):
    with connected(place) as connection:
        prefix = f'"{place.schema}".' if place.is_postgres else ""
        connection.execute(f"ALTER TABLE {prefix}{name} RENAME TO {other}")


def effects(place):
    """Give a tenant a table of the application's own, for hooks."""
    ask(place, "CREATE TABLE {s}effects (event_id text NOT NULL)")


def counted(place):
    """Return how many effects each event had."""
    rows = ask(place, "SELECT event_id, count(*) FROM {s}effects GROUP BY event_id")
    return dict(rows)


def note(event, session):
    """A hook whose effect can be counted."""
    session.execute(text("INSERT INTO effects (event_id) VALUES (:id)"), {"id": event.id})


def drain_all(drainer):
    """Drain the lane that is due, which must be there."""
    lane = drainer.claim()
    assert lane is not None, "no lane is due"
    return drainer.drain(lane)


def test_what_was_parked_is_applied_when_the_tenant_is_repaired(
    handler, drainer, inbox, migrated_place, come_due, seen
):
    """The way of an event through an outage: accepted, tried in vain, applied, told."""
    hide(migrated_place)
    bodies = [body_of("member.joined", f"p{n}", id=f"e{n}") for n in range(5)]
    for body in bodies:
        assert handler.handle_blocking(parse(body), door="webhook", body=body) is Outcome.PARKED
    come_due()
    failed = drain_all(drainer)
    show(migrated_place)
    come_due()

    drained = drain_all(drainer)

    assert (failed.failed, failed.error) == (1, "TenantNotMigrated")
    assert drained.settled == {"applied": 5}
    assert people(migrated_place) == [f"p{n}" for n in range(5)]
    assert inbox.lanes() == []
    told = [(each.event_id, each.outcome) for each in seen if each.door == "worker"][-5:]
    assert sorted(told) == [(f"e{n}", Outcome.APPLIED) for n in range(5)]


def test_hooks_have_their_effect_once(handler, drainer, inbox, migrated_place, come_due):
    """Also where the first try failed after the hook had run, and where it is drained twice."""
    effects(migrated_place)
    troubles = iter([ValueError, None])

    @handler.on("member.joined")
    def welcome(event, session):
        note(event, session)
        trouble = next(troubles, None)
        if trouble is not None:
            raise trouble

    body = body_of("member.joined", id="one")
    assert handler.handle_blocking(parse(body), body=body) is Outcome.PARKED
    come_due()
    assert drain_all(drainer).settled == {"applied": 1}
    assert handler.handle_blocking(parse(body), body=body) is Outcome.DUPLICATE

    assert counted(migrated_place) == {"one": 1}


def test_an_event_that_its_hook_never_takes_stops_nobody(
    handler, drainer, inbox, migrated_place, come_due
):
    """Five times it is tried; then it is in quarantine, and all others are applied."""

    @handler.on("member.joined")
    def refuse(event, session):
        if event.sub == "bad":
            raise ValueError("never")

    park(inbox, *(body_of("member.joined", sub, id=sub) for sub in ("a", "bad", "b")))

    for _ in range(5):
        come_due()
        drain_all(drainer)

    assert people(migrated_place) == ["a", "b"]
    assert {entry.event_id: entry.state for entry in inbox.list()} == {
        "a": State.APPLIED,
        "bad": State.QUARANTINED,
        "b": State.APPLIED,
    }


def test_without_hooks_events_are_applied_all_the_same(handler, inbox, migrated_place):
    """`--hooks none`: the operator wants the rows, and not the effects."""
    called = []
    handler.on("*")(lambda event, session: called.append(event.id))
    park(inbox, body_of("member.joined", id="one"))

    drained = drain_all(Drainer(inbox, handler, owner="me", with_hooks=False))

    assert (drained.settled, called) == ({"applied": 1}, [])
    assert people(migrated_place) == ["ann"]


def test_a_deletion_that_was_parked_erases_what_is_parked_of_the_person(
    handler, drainer, inbox, migrated_place, come_due
):
    """Nothing personal stays in the inbox, and the row does not come back."""
    park(
        inbox,
        body_of("subject.deleted", "ann", id="gone"),
        body_of("member.joined", "bob", id="other"),
    )
    drained = drain_all(drainer)
    assert drained.settled.total() == 2

    park(inbox, body_of("member.joined", "ann", id="late"))
    come_due()
    drain_all(drainer)

    assert people(migrated_place) == ["bob"]
    bodies = {entry.event_id: inbox.show(entry.number).body for entry in inbox.list()}
    assert bodies["gone"] is None
    assert bodies["other"] is not None


def test_a_tenant_that_is_registered_gets_what_waited_for_it(make_handler, inbox, migrated_place):
    """Its lane sleeps, and the next look at the list of tenants wakes it."""
    source = Tenants()
    handler = make_handler(source)
    applied = threading.Event()
    handler.on("*")(lambda event, session: applied.set())
    body = body_of("member.joined", id="early")
    assert handler.handle_blocking(parse(body), body=body) is Outcome.PARKED
    drainer = Drainer(inbox, handler, owner="me")
    assert drainer.claim() is None
    source.by_id["acme"] = Tenant("acme", "acme", migrated_place)
    worker = Worker(inbox, drainer, tenants=source.list, interval=3600.0)

    worker.start()
    try:
        assert applied.wait(30)
    finally:
        assert worker.stop()

    assert ledger(migrated_place) == ["early"]
    assert inbox.lanes() == []


def test_what_was_parked_while_suspended_is_applied_at_once_when_resumed(
    make_handler, inbox, migrated_place
):
    """Its events do not wait for the quarter of an hour after which a worker would have looked."""
    source = Tenants(Tenant("acme", "acme", migrated_place, suspended=True))
    handler = make_handler(source)
    body = body_of("member.joined", id="one")
    assert handler.handle_blocking(parse(body), body=body) is Outcome.PARKED

    source.by_id["acme"] = Tenant("acme", "acme", migrated_place)
    inbox.wake(["acme"])

    assert drain_all(Drainer(inbox, handler, owner="me")).settled == {"applied": 1}


def test_a_suspended_tenant_is_left_alone_until_it_is_resumed(
    make_handler, inbox, migrated_place, come_due
):
    """Nothing is written for it; resuming wakes its lane."""
    source = Tenants(Tenant("acme", "acme", migrated_place, suspended=True))
    handler = make_handler(source)
    drainer = Drainer(inbox, handler, owner="me")
    body = body_of("member.joined", id="one")
    assert handler.handle_blocking(parse(body), body=body) is Outcome.PARKED
    assert drainer.claim() is None
    come_due()
    assert drain_all(drainer).error == "TenantSuspended"
    assert drainer.claim() is None
    assert ledger(migrated_place) == []

    source.by_id["acme"] = Tenant("acme", "acme", migrated_place)
    inbox.wake(["acme"])

    assert drain_all(drainer).settled == {"applied": 1}


def test_two_drainers_of_one_lane_settle_each_event_once(
    make_handler, inbox, migrated_place, come_due
):
    """One is stopped past its lease after it applied: what the other settled stands."""
    effects(migrated_place)
    source = Tenants(Tenant("acme", "acme", migrated_place))
    late, other = make_handler(source), make_handler(source)
    for handler in (late, other):
        handler.on("member.joined")(note)
    park(inbox, *(body_of("member.joined", f"p{n}", id=f"e{n}") for n in range(8)))
    stopped = Stopping(late)
    drainer = Drainer(inbox, stopped, owner="late")
    lane = drainer.claim()

    def meanwhile():
        come_due()
        assert drain_all(Drainer(inbox, other, owner="other")).settled == {"duplicate": 8}

    stopped.then = meanwhile
    drained = drainer.drain(lane)

    assert (drained.lost, drained.settled) == (1, {})
    assert {entry.outcome for entry in inbox.list()} == {"duplicate"}
    assert counted(migrated_place) == {f"e{n}": 1 for n in range(8)}
    assert inbox.lanes() == []


class Stopping:
    """A handler whose process is stopped right after its tenant's commit."""

    def __init__(self, handler):
        self._handler = handler
        self.then = None

    def apply_parked(self, tenant_id, events, *, with_hooks=True):
        results = self._handler.apply_parked(tenant_id, events, with_hooks=with_hooks)
        self.then()
        return results

    def forget(self, tenant_id):
        self._handler.forget(tenant_id)


def test_many_workers_apply_each_event_once(make_handler, control, schema_places):
    """Four workers with two threads each, twelve tenants, one of them broken until the end."""
    inbox = Watched(control)
    places = schema_places(12)
    tenants = numbered(places)
    source = Tenants(*tenants.values())
    workers = []
    for number in range(4):
        handler = make_handler(source)
        handler.on("member.joined")(note)
        drainer = Drainer(inbox, handler, owner=f"worker {number}", batch=8, portions=2)
        workers.append(
            Worker(inbox, drainer, tenants=source.list, interval=0.05, breath=0.01, threads=2)
        )
    told = {}
    for place, name in zip(places, tenants, strict=True):
        effects(place)
        kinds = ("member.joined", "app_access.granted", "member.left") * 10
        bodies = [
            body_of(kind, f"p{n % 7}", tenant=name, id=f"{name}-{n}", at=NOON + n)
            for n, kind in enumerate(kinds)
        ]
        told[name] = [parse(body) for body in bodies]
        park(inbox, *bodies)
    hide(places[0])

    for worker in workers:
        worker.start()
    try:
        inbox.wait_until(lambda: [lane.tenant_id for lane in inbox.lanes()] == ["t0"])
        show(places[0])
        inbox.wake(["t0"])
        workers[0].wake("t0")
        inbox.wait_until(lambda: inbox.lanes() == [])
    finally:
        assert all(worker.stop() for worker in workers)

    assert {entry.state for entry in inbox.list(limit=1000)} == {State.APPLIED}
    with EngineRegistry() as registry:
        for place, name in zip(places, tenants, strict=True):
            assert stored(registry, place) == fold(told[name])
            joined = [event.id for event in told[name] if event.type == "member.joined"]
            assert counted(place) == dict.fromkeys(joined, 1)


class Watched(Inbox):
    """An inbox that lets the test wait for what becomes of its lanes."""

    def __init__(self, database):
        super().__init__(database)
        self._released = threading.Condition()

    def release(self, lane, **how):
        super().release(lane, **how)
        with self._released:
            self._released.notify_all()

    def wait_until(self, true):
        with self._released:
            assert self._released.wait_for(true, 60), self.lanes()
