"""The worker's threads: when they look into the inbox, what wakes them, and how they end."""

import logging
import threading
from contextlib import contextmanager

import pytest
from guarding import body_of
from sqlalchemy import text

from tenantsync.control.database import ControlDatabase, ControlUnavailable
from tenantsync.control.inbox import Arrival, Inbox
from tenantsync.errors import TenantUnavailable
from tenantsync.migrate.control import upgrade_control
from tenantsync.observe import Outcome
from tenantsync.tenants import Placement, Tenant
from tenantsync.worker.drain import Drainer
from tenantsync.worker.loop import Worker

HOURS = 3600.0
PLACE = Placement.of("sqlite:////nowhere/tenant.db")


class Applying:
    """Applies what it is given, and lets the test wait for that.

    Args:
        error: What it answers in place of an outcome, if anything.
        gate: Applying waits for it.
    """

    def __init__(self):
        self.error = None
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.applied = []
        self._changed = threading.Condition()

    def apply_parked(self, tenant_id, events, *, with_hooks=True):
        self.begun.release()
        assert self.gate.wait(30)
        with self._changed:
            if self.error is not None:
                self._changed.notify_all()
                return [self.error] * len(events)
            self.applied += [event.id for event in events]
            self._changed.notify_all()
        return [Outcome.APPLIED] * len(events)

    def forget(self, tenant_id):
        pass

    def wait_for(self, *ids):
        with self._changed:
            assert self._changed.wait_for(lambda: set(ids) <= set(self.applied), 30), self.applied


class Telegraph:
    """Signals within the process."""

    def __init__(self):
        self.wake = None
        self.listeners = 0

    def publish(self, tenant_id):
        self.wake(tenant_id)

    def listen(self, wake):
        self.wake = wake
        self.listeners += 1

    def close(self):
        pass


class Looking:
    """A drainer that says how often somebody looked into the inbox, and what for."""

    def __init__(self, drainer):
        self._drainer = drainer
        self.stopping = drainer.stopping
        self.looks = threading.Semaphore(0)
        self.times = 0
        self.failure = None

    def claim(self, tenant_id=None):
        self.times += 1
        try:
            if self.failure is not None:
                raise self.failure
            return self._drainer.claim(tenant_id)
        finally:
            self.looks.release()

    def drain(self, lane):
        return self._drainer.drain(lane)

    def wait(self, times=1):
        for _ in range(times):
            assert self.looks.acquire(timeout=30), "nobody looked into the inbox"


@pytest.fixture
def control(tmp_path):
    with ControlDatabase(f"sqlite:///{tmp_path / 'control.db'}") as database:
        upgrade_control(database)
        yield database


@pytest.fixture
def inbox(control):
    return Inbox(control)


@pytest.fixture
def handler():
    return Applying()


@pytest.fixture
def looking(inbox, handler):
    return Looking(Drainer(inbox, handler, owner="me"))


@pytest.fixture
def make_worker(inbox, looking):
    """Make workers that never look by themselves, and stop them at the end."""
    made = []

    def make(**options):
        options = {"threads": 1, "breath": 0.0, "soonest": HOURS, "tenants": list} | options
        options = {"interval": HOURS} | options
        made.append(Worker(inbox, looking, **options))
        return made[-1]

    yield make
    for worker in made:
        assert worker.stop()


@pytest.fixture
def park(inbox):
    """Park one event for each id."""

    def park(*ids, tenant="acme", known=True):
        inbox.park(
            [
                Arrival(
                    tenant_id=tenant,
                    event_id=event_id,
                    type="member.joined",
                    subject="ann",
                    timestamp=0,
                    body=body_of("member.joined", id=event_id, tenant=tenant),
                    signed_at=None,
                    door="webhook",
                    reason="TenantUnavailable",
                    known=known,
                )
                for event_id in ids
            ]
        )

    return park


@contextmanager
def started(worker):
    """Let a worker run for a while."""
    worker.start()
    try:
        yield worker
    finally:
        assert worker.stop()


def test_what_waits_is_drained_at_the_start(make_worker, handler, park):
    """What another process left is not left for the interval."""
    park("a", "b")

    with started(make_worker()):
        handler.wait_for("a", "b")


def test_a_worker_that_is_woken_looks_at_once(make_worker, handler, looking, park):
    """Its interval is an hour; the event is applied now."""
    with started(make_worker()) as worker:
        looking.wait()
        park("a")
        worker.wake("acme")

        handler.wait_for("a")


def test_a_wake_while_it_looks_is_not_lost(make_worker, handler, looking, park):
    """Between a look in vain and the sleep, something may be parked."""
    worker = make_worker()
    claim = looking._drainer.claim

    def claim_and_miss(tenant_id=None):
        looking._drainer.claim = claim
        found = claim(tenant_id)
        park("a")
        worker.wake()
        return found

    looking._drainer.claim = claim_and_miss

    with started(worker):
        handler.wait_for("a")


def test_a_worker_looks_by_itself_after_its_interval(make_worker, handler, looking, park):
    """A signal that was lost does no harm."""
    with started(make_worker(interval=0.01)):
        looking.wait()
        park("a")

        handler.wait_for("a")


def test_a_worker_looks_again_soon_after_a_look_in_vain(make_worker, handler, looking, park):
    """What was parked with a waiting time of a second is not left for an interval of an hour."""
    with started(make_worker(soonest=0.01)):
        looking.wait(2)
        park("a")

        handler.wait_for("a")


def test_a_worker_with_nothing_to_do_looks_less_and_less_often(make_worker, looking):
    """An idle worker costs the control database next to nothing."""
    worker = make_worker(soonest=1.0, interval=10.0, jitter=lambda: 0.5)
    pauses = []

    def sleep(seen, pause):
        pauses.append(pause)
        if len(pauses) == 9:
            worker._stopping.set()
        return len(pauses) == 6

    worker._sleep = sleep
    worker._drain()

    assert pauses == [1, 2, 4, 8, 10, 10, 1, 2, 4]


def test_a_signal_wakes_a_worker(make_worker, handler, looking, park):
    """It listens once, however often it is started."""
    telegraph = Telegraph()
    worker = make_worker(signals=telegraph)
    for event_id in ("a", "b"):
        with started(worker):
            looking.wait()
            park(event_id)
            telegraph.publish("acme")
            handler.wait_for(event_id)

    assert telegraph.listeners == 1


def test_a_signal_does_not_make_a_tenant_be_asked_before_its_time(
    make_worker, handler, looking, park
):
    """While a tenant is down, each of its events wakes the worker, and in vain."""
    handler.error = TenantUnavailable("down")
    park("a")
    worker = make_worker()
    with started(worker):
        looking.wait(2)  # one that found the lane, one in vain
        for _ in range(5):
            before = looking.times
            worker.wake("acme")
            looking.wait()
            assert looking.times > before

    assert worker.totals().lanes == 1


def test_a_flood_of_signals_does_not_keep_the_control_database_busy(make_worker, looking):
    """After a look in vain a worker catches its breath."""
    worker = make_worker(breath=HOURS)
    with started(worker):
        looking.wait()
        for _ in range(1000):
            worker.wake("acme")

        assert not looking.looks.acquire(timeout=0.2), "it looked again at once"


def test_several_threads_drain_several_lanes_at_once(make_worker, handler, park):
    """A lane that is slow does not hold up the next, and one wake is enough for all threads."""
    handler.gate.clear()
    with started(make_worker(threads=3)) as worker:
        for tenant in ("acme", "globex", "initech"):
            park(f"of {tenant}", tenant=tenant)
        worker.wake()

        for _ in range(3):
            assert handler.begun.acquire(timeout=30)
        handler.gate.set()
        handler.wait_for("of acme", "of globex", "of initech")


def test_stopping_finishes_what_is_in_flight_and_leaves_no_lease(make_worker, handler, inbox, park):
    """Who stops waits for the portion that is being applied, and for nothing else."""
    handler.gate.clear()
    park(*(f"e{number:03d}" for number in range(100)))
    worker = make_worker()
    worker.start()
    assert handler.begun.acquire(timeout=30)

    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    handler.gate.set()
    stopper.join(30)

    assert not stopper.is_alive()
    (lane,) = inbox.lanes()
    assert (lane.waiting, lane.held_by) == (84, None)
    assert worker.totals().unfinished == 1


def test_stopping_does_not_wait_for_ever(make_worker, handler, park):
    """A database that hangs keeps nobody from ending; the lease runs out by itself."""
    handler.gate.clear()
    park("a")
    worker = make_worker()
    worker.start()
    assert handler.begun.acquire(timeout=30)

    assert worker.stop(timeout=0.01) is False

    handler.gate.set()
    assert worker.stop()


def test_a_worker_may_be_started_twice_and_again(make_worker, handler, looking, park):
    """Starting one that runs changes nothing; one that was stopped starts anew."""
    worker = make_worker()
    worker.start()
    worker.start()
    assert sum(thread.name.startswith("tenantsync-worker") for thread in threading.enumerate()) == 1
    worker.stop()
    park("a")
    worker.start()

    handler.wait_for("a")


def test_run_works_until_it_is_told_to_stop(make_worker, handler, park):
    """What `tenantsync worker` does."""
    park("a")
    stop = threading.Event()
    worker = make_worker()
    runner = threading.Thread(target=worker.run, args=(stop,))
    runner.start()
    handler.wait_for("a")

    stop.set()
    runner.join(30)

    assert not runner.is_alive()


def test_a_control_database_that_is_down_ends_nothing(make_worker, handler, looking, park, caplog):
    """It is said once, and when the database is back, so is the worker."""
    looking.failure = ControlUnavailable("the control database cannot be used now")
    worker = make_worker(interval=0.01)
    with caplog.at_level(logging.WARNING), started(worker):
        looking.wait(5)
        park("a")
        looking.failure = None
        handler.wait_for("a")

    said = [record for record in caplog.records if record.message == "tenantsync.inbox_unreachable"]
    assert [record.error for record in said] == ["the control database cannot be used now"]


def test_what_nobody_foresaw_ends_nothing(make_worker, handler, looking, park, caplog):
    """A thread that ended in silence would drain nothing for ever."""
    looking.failure = ValueError("ann@example.test")
    with caplog.at_level(logging.DEBUG), started(make_worker(interval=0.01)):
        looking.wait(2)
        park("a")
        looking.failure = None
        handler.wait_for("a")

    said = [record for record in caplog.records if record.message == "tenantsync.worker_failed"]
    assert {record.error for record in said} == {"ValueError"}
    assert all("ann@" not in str(vars(record)) for record in caplog.records)


def test_a_control_database_that_was_never_made_is_waited_for(tmp_path, handler, caplog):
    """Nothing was ever parked: that is no trouble, and nothing is said of it."""
    with ControlDatabase(f"sqlite:///{tmp_path / 'later.db'}") as database:
        looking = Looking(Drainer(Inbox(database), handler, owner="me"))
        worker = Worker(Inbox(database), looking, tenants=list, interval=0.01, threads=1)
        with caplog.at_level(logging.WARNING), started(worker):
            looking.wait(3)

    assert caplog.records == []


def test_lanes_of_unknown_tenants_are_woken_when_they_are_registered(
    make_worker, handler, inbox, park
):
    """The lane of nobody's tenant sleeps; once the tenant is in the list, it is drained."""
    park("a", known=False)
    park("b", tenant="globex", known=False)
    registered = [Tenant("acme", "acme", PLACE)]

    with started(make_worker(tenants=lambda: registered)):
        handler.wait_for("a")

    assert [lane.tenant_id for lane in inbox.lanes()] == ["globex"]
    assert handler.applied == ["a"]


def test_only_tenants_that_are_new_are_woken(make_worker, inbox, park):
    """Others have their own waiting times. New ones twice, should the first time be too early."""
    everybody = [Tenant("old", "old", PLACE)]
    woken = []
    worker = make_worker(tenants=lambda: everybody)
    worker._inbox = Waking(woken)

    for newcomer in (None, "acme", None, None):
        if newcomer:
            everybody.append(Tenant(newcomer, newcomer, PLACE))
        worker._greet_newcomers()

    assert woken == ["old", "acme", "acme"]


def test_a_suspended_tenant_is_new_again_when_it_is_resumed(make_worker):
    """Resuming wakes its lane, even where nobody did so at once."""
    woken = []
    everybody = [Tenant("acme", "acme", PLACE, suspended=True)]
    worker = make_worker(tenants=lambda: everybody)
    worker._inbox = Waking(woken)
    worker._greet_newcomers()
    assert woken == []

    everybody[:] = [Tenant("acme", "acme", PLACE)]
    worker._greet_newcomers()

    assert woken == ["acme"]


def test_newcomers_are_not_forgotten_in_an_outage(make_worker):
    """They are woken when the inbox answers again."""
    woken = []
    worker = make_worker(tenants=lambda: [Tenant("acme", "acme", PLACE)])
    worker._inbox = Waking(woken, failures=1)

    with pytest.raises(ControlUnavailable):
        worker._greet_newcomers()
    worker._greet_newcomers()

    assert woken == ["acme"]


class Waking:
    """An inbox that only says who was woken."""

    def __init__(self, woken, *, failures=0):
        self._woken = woken
        self._failures = failures

    def wake(self, tenant_ids):
        if self._failures:
            self._failures -= 1
            raise ControlUnavailable("down")
        self._woken += tenant_ids
        return len(tenant_ids)


def test_a_list_of_tenants_that_cannot_be_had_ends_nothing(make_worker, handler, park, caplog):
    """Draining goes on without it."""

    def fail():
        raise RuntimeError("acme")

    park("a")
    with caplog.at_level(logging.WARNING), started(make_worker(tenants=fail)):
        handler.wait_for("a")

    assert [record.error for record in caplog.records] == ["RuntimeError"]


def test_lanes_can_be_drained_now_whatever_their_time(make_worker, handler, inbox, park):
    """What an operator asks for after a repair, on the operator's own thread."""
    handler.error = TenantUnavailable("down")
    park("a", "b")
    worker = make_worker()
    assert worker.drain_due().failed == 1
    handler.error = None
    told = []

    answers = worker.drain_now(
        ["acme", "acme", "nobody"], told=lambda tenant_id, drained: told.append(tenant_id)
    )

    assert {name: drained.settled for name, drained in answers.items()} == {"acme": {"applied": 2}}
    assert told == ["acme"]
    counts = worker.totals().counts()
    assert {name: count for name, count in counts.items() if count} == {
        "lanes": 2,
        "applied": 2,
        "failed": 1,
    }
    assert set(counts) >= {"duplicate", "stale", "ignored", "quarantined", "lost"}


def test_draining_now_goes_on_until_the_lane_is_empty(make_worker, handler, inbox, looking, park):
    """It does not end where another lane would have its turn."""
    looking._drainer = Drainer(inbox, handler, owner="me", portions=1)
    park(*(f"e{number:02d}" for number in range(50)))

    answers = make_worker().drain_now(["acme"])

    assert answers["acme"].settled == {"applied": 50}
    assert answers["acme"].lanes == 4


def test_a_lane_that_fails_is_drained_now_once(make_worker, handler, inbox, park):
    """It is not tried again and again for as long as its tenant is down."""
    handler.error = TenantUnavailable("down")
    park("a")

    answers = make_worker().drain_now(["acme"])

    assert (answers["acme"].lanes, answers["acme"].failed) == (1, 1)
    assert inbox.lanes()[0].attempts == 1


def test_a_lane_that_somebody_drains_is_left_to_them(make_worker, handler, inbox, park):
    """Two never drain one lane."""
    park("a")
    assert inbox.claim("somebody else") is not None

    assert make_worker().drain_now(["acme"]) == {}
    assert handler.applied == []


def test_what_is_due_is_drained_and_no_more(make_worker, handler, looking, park, control):
    """Also where each lane that failed comes due again at once: everyone has one turn, or two."""
    park("a", tenant="acme")
    park("b", tenant="globex")
    park("c", tenant="initech")
    handler.error = TenantUnavailable("down")
    drain = looking._drainer.drain
    drained = []

    def drain_in_vain(lane):
        result = drain(lane)
        drained.append(lane.tenant_id)
        now = text(
            "UPDATE lanes SET due_at = strftime('%Y-%m-%d %H:%M:%f000', 'now')"
            " WHERE tenant_id = :lane"
        )
        with control.write() as connection:
            connection.execute(now, {"lane": lane.tenant_id})
        return result

    looking._drainer.drain = drain_in_vain

    total = make_worker().drain_due()

    assert set(drained) == {"acme", "globex", "initech"}
    assert (total.lanes, total.failed) == (4, 4)


def test_a_worker_without_tenants_to_prune_has_no_thread_for_it(make_worker, looking):
    """Another worker does it."""
    with started(make_worker()):
        looking.wait()
        names = {thread.name for thread in threading.enumerate()}

    assert "tenantsync-greeter" in names
    assert "tenantsync-pruner" not in names


def test_a_chore_runs_for_as_long_as_the_worker_does(make_worker):
    """On a thread of its own, from each start to the stop that ends it."""
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    def chore(stopping):
        begun.release()
        assert stopping.wait(30)
        ended.release()

    worker = make_worker(chores=[chore, chore])
    for _ in range(2):
        with started(worker):
            assert begun.acquire(timeout=30)
            assert begun.acquire(timeout=30)
            assert not ended.acquire(blocking=False)
        # Whoever stops has waited for them.
        assert ended.acquire(blocking=False)
        assert ended.acquire(blocking=False)


def test_stopping_says_that_a_chore_did_not_end(make_worker):
    """It is as with a lane: nobody waits for ever."""
    begun, gate = threading.Event(), threading.Event()

    def chore(stopping):
        begun.set()
        assert gate.wait(30)

    worker = make_worker(chores=[chore])
    worker.start()
    assert begun.wait(30)

    assert worker.stop(timeout=0.01) is False

    gate.set()
    assert worker.stop()


def test_pruning_is_begun_at_a_moment_of_its_own_and_survives_failure(
    inbox, looking, handler, caplog
):
    """The first round comes within the hour, and one that fails is not the last."""

    class Rounds:
        done = threading.Semaphore(0)

        def run(self, stopping):
            self.done.release()
            raise ValueError("acme")

    worker = Worker(
        inbox, looking, Rounds(), tenants=list, interval=HOURS, threads=1, jitter=lambda: 0.0
    )
    with caplog.at_level(logging.ERROR), started(worker):
        assert Rounds.done.acquire(timeout=30)

    assert [record.error for record in caplog.records] == ["ValueError"]
