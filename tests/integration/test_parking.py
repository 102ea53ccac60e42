"""What the handler does with what cannot be applied now: it goes to the inbox, and comes back."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from guarding import ask, body_of, connected, ledger, make, people

from tenantsync.control.database import ControlDatabase, ControlUnavailable
from tenantsync.control.inbox import Arrival, Inbox, State
from tenantsync.errors import ConfigError, Malformed, TenantNotMigrated, UnknownTenant
from tenantsync.events import encode, parse
from tenantsync.migrate.control import upgrade_control
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.parking import Parking, _Job
from tenantsync.tenancy.resolver import ListedTenants, TenantResolver
from tenantsync.tenants import Tenant


class Deliveries(list):
    """An observer that keeps what it is told."""

    def __call__(self, delivery):
        self.append(delivery)


@pytest.fixture
def control(tmp_path):
    """A control database with its tables."""
    with ControlDatabase(f"sqlite:///{tmp_path / 'control.db'}") as database:
        upgrade_control(database)
        yield database


@pytest.fixture
def inbox(control):
    return Inbox(control, max_unknown_events=3)


@pytest.fixture
def parking(inbox):
    parking = Parking(inbox)
    yield parking
    parking.close()


@pytest.fixture
def seen():
    return Deliveries()


@pytest.fixture
def handler(migrated_place, parking, seen):
    tenants = [Tenant("acme", "acme", migrated_place)]
    with IdentitySyncHandler(
        TenantResolver(ListedTenants(tenants)), parking=parking, observers=[seen]
    ) as handler:
        yield handler


def hide(place):
    """Take the tenant's tables away, as a migration that went wrong would."""
    with connected(place) as connection:
        prefix = f'"{place.schema}".' if place.is_postgres else ""
        connection.execute(f"ALTER TABLE {prefix}av_identities RENAME TO hidden")


def show(place):
    """Give them back."""
    with connected(place) as connection:
        prefix = f'"{place.schema}".' if place.is_postgres else ""
        connection.execute(f"ALTER TABLE {prefix}hidden RENAME TO av_identities")


@pytest.fixture(params=["async", "blocking"])
def handle(request, handler):
    """Both ways into the handler."""

    def asynchronous(event, **how):
        return asyncio.run(handler.handle(event, **how))

    return asynchronous if request.param == "async" else handler.handle_blocking


def test_an_event_of_a_broken_tenant_is_kept_byte_for_byte(handle, migrated_place, inbox, seen):
    """What is parked is what came, and the sender is told that it was accepted."""
    hide(migrated_place)
    body = body_of("member.joined", id="one")

    outcome = handle(parse(body), door="webhook", body=body, signed_at=1_793_000_400)

    assert outcome is Outcome.PARKED
    (entry,) = inbox.list()
    assert (entry.tenant_id, entry.event_id, entry.state) == ("acme", "one", State.PARKED)
    assert (entry.reason, entry.door, entry.signed_at) == (
        "TenantNotMigrated",
        "webhook",
        1_793_000_400,
    )
    assert inbox.show(entry.number).body == body
    assert [(each.outcome, each.error, each.tenant) for each in seen] == [
        (Outcome.PARKED, "TenantNotMigrated", "acme")
    ]


def test_an_event_without_its_body_is_kept_as_one_that_says_the_same(handle, migrated_place, inbox):
    """A program that calls `handle` itself has no body to give."""
    hide(migrated_place)
    event = make("app_access.granted")

    handle(event)

    (entry,) = inbox.list()
    assert parse(inbox.show(entry.number).body) == event
    assert parse(encode(event)) == event


def test_a_parked_event_that_comes_again_is_parked_once(handle, migrated_place, inbox):
    """The provider sends again what it did not hear of."""
    hide(migrated_place)
    event = make("member.joined")

    assert [handle(event), handle(event)] == [Outcome.PARKED, Outcome.PARKED]
    assert len(inbox.list()) == 1


def test_a_tenant_that_is_back_takes_what_was_parked(handler, migrated_place, inbox):
    """The worker's way in applies it once, also where it came by the front door meanwhile."""
    hide(migrated_place)
    first, second = make("member.joined", "ann", id="1"), make("member.joined", "bob", id="2")
    handler.handle_blocking(first)
    handler.handle_blocking(second)
    show(migrated_place)
    # The breaker is closed: two failures are not enough to open it.
    assert handler.handle_blocking(first) is Outcome.APPLIED

    results = handler.apply_parked("acme", [first, second])

    assert results == [Outcome.DUPLICATE, Outcome.APPLIED]
    assert people(migrated_place) == ["ann", "bob"]
    assert ledger(migrated_place) == ["1", "2"]


def test_what_is_parked_cannot_be_applied_without_hooks_by_mistake(handler, migrated_place):
    """Hooks run for parked events as for others, unless they are left out on purpose."""
    called = []
    handler.on("*")(lambda event, session: called.append(event.id))

    handler.apply_parked("acme", [make("member.joined", id="a"), make("invite.created", id="b")])
    handler.apply_parked("acme", [make("member.joined", id="c")], with_hooks=False)

    assert sorted(called) == ["a", "b"]
    assert ledger(migrated_place) == ["a", "b", "c"]


def test_a_failing_hook_blames_its_event_only(handler, inbox):
    """Others of the tenant go on: the lane does not stop for one event's own reasons."""

    @handler.on("member.left")
    def refuse(event, session):
        raise LookupError(event.sub)

    assert handler.handle_blocking(make("member.left", "ann", id="1")) is Outcome.PARKED
    assert handler.handle_blocking(make("member.joined", "bob", id="2")) is Outcome.APPLIED
    results = handler.apply_parked(
        "acme", [make("member.left", "ann", id="1"), make("member.joined", "eve", id="3")]
    )

    assert results[0].blames_event
    assert results[1] is Outcome.APPLIED
    assert [entry.reason for entry in inbox.list()] == ["HookFailed"]


def test_events_of_strangers_are_kept_up_to_a_bound(handle, inbox, seen):
    """Anyone can sign up at the provider; beyond the bound they are dropped, and counted."""
    for number in range(3):
        event = make("member.joined", tenant="nobody", id=f"n{number}")
        assert handle(event) is Outcome.PARKED
    with pytest.raises(UnknownTenant):
        handle(make("member.joined", tenant="nobody", id="n3"))

    assert len(inbox.list(tenant_id="nobody")) == 3
    assert [each.reason for each in seen] == ["unknown_tenant"] * 3 + ["inbox_full"]
    assert inbox.claim("worker") is None  # until somebody registers the tenant


@pytest.mark.parametrize("tenant", [None, "x" * 256])
def test_an_event_that_names_no_tenant_is_never_kept(handle, inbox, tenant):
    """There is no lane that it could wait in."""
    with pytest.raises(UnknownTenant):
        handle(make("member.joined", tenant=tenant))

    assert inbox.list() == []


def test_a_suspended_tenant_is_parked_and_looked_at_late(migrated_place, parking, inbox):
    """Resuming wakes its lane; until then it costs nothing."""
    tenants = [Tenant("acme", "acme", migrated_place, suspended=True)]
    with IdentitySyncHandler(
        TenantResolver(ListedTenants(tenants)), parking=parking, observers=[]
    ) as handler:
        assert handler.handle_blocking(make("member.joined")) is Outcome.PARKED

    assert inbox.claim("worker") is None
    inbox.wake(["acme"])
    assert inbox.claim("worker").tenant_id == "acme"


def test_a_tenant_that_takes_too_long_is_given_up_on_and_not_lost(migrated_place, parking, inbox):
    """The sender waits a bounded time; what the database does later is known as a duplicate."""
    slow = threading.Event()
    with IdentitySyncHandler(
        TenantResolver(ListedTenants([Tenant("acme", "acme", migrated_place)])),
        parking=parking,
        patience=0.05,
        observers=[],
    ) as handler:
        handler.on("member.joined")(lambda event, session: slow.wait(30) and None)
        outcomes = [
            handler.handle_blocking(make("member.joined", "ann", id="1")),
            asyncio.run(handler.handle(make("member.joined", "bob", id="2"))),
        ]
        slow.set()

    assert outcomes == [Outcome.PARKED, Outcome.PARKED]
    assert {entry.reason for entry in inbox.list()} == {"TenantUnavailable"}


def test_who_cannot_be_looked_up_is_parked_as_known(parking, inbox):
    """An outage of the tenants' source is not "there is no such tenant"."""

    def outage(tenant_id):
        raise OSError("down")

    with IdentitySyncHandler(outage, parking=parking, observers=[]) as handler:
        assert handler.handle_blocking(make("member.joined")) is Outcome.PARKED

    (lane,) = inbox.lanes()
    assert lane.known


def test_neither_the_tenant_nor_the_inbox_is_an_error_to_retry(migrated_place, tmp_path, seen):
    """Then, and only then, the provider must send it again."""
    hide(migrated_place)
    with ControlDatabase(f"sqlite:///{tmp_path / 'never-made.db'}") as database:
        parking = Parking(Inbox(database))
        with (
            IdentitySyncHandler(migrated_place, parking=parking, observers=[seen]) as handler,
            pytest.raises(ControlUnavailable) as caught,
        ):
            handler.handle_blocking(make("member.joined"))
        parking.close()

    assert caught.value.retry
    assert seen[-1].error == "ControlMissing"


def test_a_control_database_that_was_never_made_is_made_once(migrated_place, tmp_path):
    """The embedded one needs no command; a disk that is gone later is not papered over."""
    hide(migrated_place)
    made = []
    file = tmp_path / "control.db"
    with ControlDatabase(f"sqlite:///{file}") as database:

        def prepare():
            made.append(upgrade_control(database))

        parking = Parking(Inbox(database), prepare=prepare)
        with IdentitySyncHandler(migrated_place, parking=parking, observers=[]) as handler:
            assert handler.handle_blocking(make("member.joined")) is Outcome.PARKED
            database.close()
            for part in tmp_path.glob("control.db*"):
                part.unlink()
            with pytest.raises(ControlUnavailable):
                handler.handle_blocking(make("member.joined"))
        parking.close()

    assert len(made) == 1
    assert not file.exists()


def test_unreadable_bodies_go_to_quarantine(handler, parking, inbox, seen):
    """Authentic and no event that we can read: an operator looks at it."""
    error = Malformed("data.sub", "is missing")

    outcomes = [
        asyncio.run(handler.quarantine(b"{}", error, door="webhook")),
        handler.quarantine_blocking(b"{}", error, door="webhook"),
    ]

    assert outcomes == [Outcome.PARKED, Outcome.PARKED]
    (entry,) = inbox.list(state=State.QUARANTINED)
    assert entry.reason == "data.sub: is missing"
    assert inbox.show(entry.number).body == b"{}"
    assert seen[0].error == "Malformed"


def test_without_an_inbox_errors_are_raised(migrated_place):
    """The handler stands alone as well."""
    hide(migrated_place)
    with IdentitySyncHandler(migrated_place, observers=[]) as handler:
        with pytest.raises(Malformed):
            handler.quarantine_blocking(b"{}", Malformed("body", "is bad"), door="webhook")
        with pytest.raises(TenantNotMigrated) as caught:
            handler.handle_blocking(make("member.joined"))

    assert caught.value.retry


def test_a_deleted_person_leaves_no_body_behind(handle, migrated_place, inbox):
    """Whatever waits for somebody who was deleted for good says nothing any more."""
    hide(migrated_place)
    handle(make("member.joined", "ann", id="1"))
    handle(make("member.joined", "bob", id="2"))
    show(migrated_place)

    assert handle(make("subject.deleted", "ann", id="3")) is Outcome.APPLIED

    bodies = {entry.event_id: inbox.show(entry.number).body for entry in inbox.list()}
    assert bodies["1"] is None
    assert bodies["2"] is not None
    assert ask(migrated_place, "SELECT id FROM {s}av_identity_tombstones") == [("ann",)]


def test_a_place_that_recovers_has_its_lanes_woken(handler, migrated_place, inbox):
    """What was parked while the breaker was open is drained at once, not at the next look."""
    hide(migrated_place)
    for number in range(3):
        handler.handle_blocking(make("member.joined", f"p{number}", id=f"e{number}"))
    (lane,) = inbox.lanes()
    show(migrated_place)

    assert handler.apply_parked("acme", [make("member.joined", "ann")]) == [Outcome.APPLIED]
    handler.close()

    assert handler._parking.inbox.lanes()[0].due_at <= lane.due_at


def test_what_was_parked_is_announced(handler, inbox, migrated_place):
    """Workers elsewhere are told whose events wait; strangers' are not worth a word."""
    told = []
    parking = Parking(inbox, parked=told.append)
    hide(migrated_place)
    with IdentitySyncHandler(
        TenantResolver(ListedTenants([Tenant("acme", "acme", migrated_place)])),
        parking=parking,
        observers=[],
    ) as other:
        other.handle_blocking(make("member.joined"))
        other.handle_blocking(make("member.joined", tenant="nobody"))
    parking.close()

    assert told == [frozenset({"acme"})]


def test_many_senders_share_a_commit(control, inbox):
    """While one commit runs, the next ones queue up and are stored together."""
    sizes = []
    gate = threading.Event()

    class Counting(Inbox):
        def park(self, arrivals):
            gate.wait(30)
            sizes.append(len(arrivals))
            return super().park(arrivals)

    async def main():
        parking = Parking(Counting(control))
        events = [make("member.joined", tenant="t", id=f"e{n}") for n in range(50)]
        with IdentitySyncHandler(lambda _: None, parking=parking, observers=[]) as handler:
            tasks = [asyncio.ensure_future(handler.handle(event)) for event in events]
            for _ in range(200):
                await asyncio.sleep(0)
                if len(parking._waiting) >= 45:
                    break
                await asyncio.to_thread(lambda: None)
            gate.set()
            outcomes = await asyncio.gather(*tasks)
        parking.close()
        return outcomes

    assert set(asyncio.run(main())) == {Outcome.PARKED}
    assert sum(sizes) == 50
    assert len(sizes) < 25
    assert len(inbox.list()) <= 100


def test_a_closed_parking_takes_nothing(inbox):
    """An application that stops answers 503 and lets the provider send it again."""
    parking = Parking(inbox)
    parking.close()

    with (
        IdentitySyncHandler(lambda _: None, parking=parking, observers=[]) as handler,
        pytest.raises(ControlUnavailable, match="stopping"),
    ):
        handler.handle_blocking(make("member.joined"))


@pytest.mark.parametrize("error", [ConfigError("no client"), LookupError("oops"), SystemExit(1)])
def test_a_signal_that_fails_keeps_no_later_event_waiting(handle, parking, migrated_place, error):
    """Telling workers is a kindness: whatever it raises, the next sender has an answer."""

    def publish(tenant_ids):
        raise error

    parking._parked = publish
    hide(migrated_place)
    with ThreadPoolExecutor(1) as senders:
        for number in range(3):
            event = make("member.joined", id=f"e{number}")
            assert senders.submit(handle, event).result(30) is Outcome.PARKED


def test_without_a_thread_there_is_an_answer_and_later_there_is_one_again(
    handle, migrated_place, inbox, monkeypatch
):
    """A process that may start no more threads refuses what it cannot store, and recovers."""
    hide(migrated_place)
    event = make("member.joined", id="one")

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(ControlUnavailable, match="no more threads"):
                handle(event)
    with ThreadPoolExecutor(1) as senders:
        assert senders.submit(handle, event).result(30) is Outcome.PARKED

    assert [entry.event_id for entry in inbox.list()] == ["one"]


def test_a_control_database_that_cannot_be_made_now_is_made_later(migrated_place, tmp_path):
    """One failure is no reason to give it up for good."""
    hide(migrated_place)
    attempts = []
    with ControlDatabase(f"sqlite:///{tmp_path / 'control.db'}") as database:

        def prepare():
            attempts.append(len(attempts))
            if len(attempts) == 1:
                raise ControlUnavailable("the disk is full")
            upgrade_control(database)

        parking = Parking(Inbox(database), prepare=prepare)
        with IdentitySyncHandler(migrated_place, parking=parking, observers=[]) as handler:
            with pytest.raises(ControlUnavailable, match="disk is full"):
                handler.handle_blocking(make("member.joined", id="one"))
            assert handler.handle_blocking(make("member.joined", id="one")) is Outcome.PARKED
        parking.close()

    assert attempts == [0, 1]


def test_a_control_database_that_was_there_is_never_made_anew(migrated_place, tmp_path):
    """A disk that is not mounted any more must not be papered over by an empty file."""
    hide(migrated_place)
    file = tmp_path / "control.db"
    with ControlDatabase(f"sqlite:///{file}") as database:
        upgrade_control(database)
        parking = Parking(Inbox(database), prepare=lambda: upgrade_control(database))
        with IdentitySyncHandler(migrated_place, parking=parking, observers=[]) as handler:
            assert handler.handle_blocking(make("member.joined")) is Outcome.PARKED
            database.close()
            file.rename(tmp_path / "elsewhere.db")
            with pytest.raises(ControlUnavailable):
                handler.handle_blocking(make("member.joined"))
        parking.close()

    assert not file.exists()


def test_who_waits_for_long_hears_of_the_first_failure(control):
    """Each attempt may take seconds: the last of a long queue is not made to sit through all."""
    now, begun, gate = [0.0], threading.Event(), threading.Event()
    sizes = []

    class Silent(Inbox):
        def park(self, arrivals):
            sizes.append(len(arrivals))
            begun.set()
            assert gate.wait(30)
            now[0] += 6.0
            raise ControlUnavailable("no answer")

    parking = Parking(Silent(control), clock=lambda: now[0])
    with ThreadPoolExecutor(1) as senders:
        first = senders.submit(parking.park_blocking, arrival("e0"))
        assert begun.wait(30)
        jobs = [_Job(arrival(f"e{number}"), True, Future(), now[0]) for number in range(1, 300)]
        for job in jobs:
            parking._submit(job)
        gate.set()
        for answer in (first, *(job.answer for job in jobs)):
            with pytest.raises(ControlUnavailable, match="no answer"):
                answer.result(30)
    parking.close()

    assert sizes == [1]


def arrival(event_id):
    """Return an event on its way into the inbox."""
    return Arrival(
        tenant_id="acme",
        event_id=event_id,
        type="member.joined",
        subject="ann",
        timestamp=1_793_000_400_000,
        body=b"{}",
        signed_at=None,
        door="direct",
        reason="TenantUnavailable",
    )
