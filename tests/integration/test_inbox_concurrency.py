"""Many use one inbox at the same time: threads, and processes that share PostgreSQL."""

import multiprocessing
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from sqlalchemy import func, select, text

from tenantsync.control.arrivals import OVERHEAD
from tenantsync.control.database import ControlDatabase
from tenantsync.control.inbox import Arrival, Inbox, Settlement, State, Stored
from tenantsync.control.lanes import lock
from tenantsync.control.tables import inbox as events
from tenantsync.control.tables import lanes, strangers
from tenantsync.migrate.control import upgrade_control

TENANTS = [f"tenant-{number}" for number in range(12)]


def arrival(tenant_id, event_id, *, known=True, body=b"{}"):
    return Arrival(
        tenant_id=tenant_id,
        event_id=event_id,
        type="member.joined",
        subject="ann",
        timestamp=1,
        body=body,
        signed_at=None,
        door="direct",
        reason="unavailable",
        known=known,
    )


@pytest.fixture
def control(database_url):
    with ControlDatabase(database_url, statement_timeout=30.0) as made:
        upgrade_control(made)
        yield made


@pytest.fixture
def shared(postgres):
    """A control database on PostgreSQL."""
    with ControlDatabase(postgres.create_database(), statement_timeout=30.0) as made:
        upgrade_control(made)
        yield made


def together(*calls):
    """Run calls at the same time, and raise what any of them raised."""
    gate = threading.Barrier(len(calls))

    def run(call):
        gate.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(run, call) for call in calls]
        wait(running)
    return [one.result() for one in running]


def assert_counted(control):
    """Every counter equals the rows that it counts."""
    with control.read() as connection:
        counted = connection.execute(
            select(lanes.c.tenant_id, lanes.c.waiting, lanes.c.quarantined, lanes.c.bytes)
        ).all()
        parked = events.c.state == State.PARKED.value
        held = parked | (events.c.state == State.QUARANTINED.value)
        there = connection.execute(
            select(
                events.c.tenant_id,
                func.count().filter(parked),
                func.count().filter(~parked),
                func.sum(events.c.size),
            )
            .where(held)
            .group_by(events.c.tenant_id)
        ).all()
        strange = lanes.c.known.is_(False)
        expected = connection.execute(
            select(
                func.coalesce(func.sum(lanes.c.waiting + lanes.c.quarantined), 0),
                func.coalesce(func.sum(lanes.c.bytes), 0),
            ).where(strange)
        ).one()
        shared = connection.execute(select(strangers.c.events, strangers.c.bytes)).one()
    assert sorted(map(tuple, counted)) == sorted(map(tuple, there))
    assert tuple(shared) == tuple(expected)


class Drainers:
    """Workers that check on each other: who holds which lane, and who settled what.

    Args:
        inbox: The inbox that they drain.
        parked: Set when nothing more will be parked.
    """

    def __init__(self, inbox, parked):
        self.inbox = inbox
        self.parked = parked
        self.guard = threading.Lock()
        self.holding = set()
        self.settled = Counter()

    def drain(self):
        while True:
            is_last = self.parked.is_set()
            lane = self.inbox.claim(threading.current_thread().name)
            if lane is not None:
                self.drain_one(lane)
            elif is_last:
                return
            else:
                self.parked.wait(0.01)

    def drain_one(self, lane):
        with self.guard:
            assert lane.tenant_id not in self.holding
            self.holding.add(lane.tenant_id)
        entries = self.inbox.take(lane, limit=7)
        self.inbox.renew(lane)
        with self.guard:
            self.settled.update((entry.tenant_id, entry.event_id) for entry in entries)
        self.inbox.settle(
            lane, [Settlement(number=entry.number, outcome="applied") for entry in entries]
        )
        with self.guard:
            self.holding.remove(lane.tenant_id)
        self.inbox.release(lane)


def test_one_holds_a_lane_and_each_event_is_settled_once(control):
    """While some park for the same tenants in any order, others drain: nothing is done twice."""
    inbox = Inbox(control)
    parked = threading.Event()
    drainers = Drainers(inbox, parked)
    left = [4]

    def park(seed):
        chance = random.Random(seed)  # noqa: S311 - an order, not a secret
        for batch in range(15):
            names = chance.sample(TENANTS, 8)
            stored = inbox.park([arrival(name, f"{seed}-{batch}") for name in names])
            assert stored == [Stored.PARKED] * 8
        with drainers.guard:
            left[0] -= 1
            if left[0] == 0:
                parked.set()

    together(*[lambda seed=seed: park(seed) for seed in range(4)], *[drainers.drain] * 4)

    assert len(drainers.settled) == 4 * 15 * 8
    assert set(drainers.settled.values()) == {1}
    assert {entry.state for entry in inbox.list(limit=1000)} == {State.APPLIED}
    assert inbox.lanes() == []


def test_nobody_waits_in_a_circle(control):
    """Everything that locks lanes, at once and in any order, ends without a deadlock."""
    inbox = Inbox(control, max_unknown_events=50)

    def disturb(seed):
        chance = random.Random(seed)  # noqa: S311 - an order, not a secret
        for turn in range(25):
            names = chance.sample(TENANTS, 5)
            known = chance.random() < 0.5
            chance.choice((
                lambda names=names, turn=turn, known=known: inbox.park(
                    [arrival(name, f"{seed}-{turn}", known=known) for name in names]
                ),
                lambda names=names, turn=turn: inbox.quarantine(
                    [arrival(name, f"q{seed}-{turn}", known=False) for name in names]
                ),
                lambda names=names: inbox.wake(names),
                lambda names=names: inbox.erase(names[0], "ann"),
                lambda: inbox.discard(state=State.QUARANTINED),
                inbox.retry,
                lambda: inbox.prune(bodies=0, ids=0, quarantine=0, expire=0, limit=20),
            ))()  # fmt: skip
            lane = inbox.claim("me")
            if lane is not None:
                found = inbox.take(lane, limit=3)
                done = [Settlement(number=entry.number, outcome="stale") for entry in found]
                inbox.settle(lane, done)
                inbox.release(lane, known=known)

    together(*[lambda seed=seed: disturb(seed) for seed in range(6)])

    assert_counted(control)


def test_an_event_that_several_park_is_there_once(control):
    """The same deliveries by several doors at once are stored once, and all are answered."""
    inbox = Inbox(control)
    same = [arrival(name, "e") for name in TENANTS]

    answers = together(*[lambda: inbox.park(random.sample(same, len(same)))] * 6)

    assert answers == [[Stored.PARKED] * len(same)] * 6
    assert len(inbox.list()) == len(same)
    assert_counted(control)


def test_strangers_do_not_get_more_room_by_coming_at_once(control):
    """The bound is one for all, also while many ask for the last of it."""
    inbox = Inbox(control, max_unknown_bytes=30 * (OVERHEAD + 2))

    def park(who):
        names = [f"{who}-{number}" for number in range(20)]
        return inbox.park([arrival(name, "e", known=False) for name in names])

    answers = together(*[lambda who=who: park(who) for who in range(5)])

    assert sum(answer.count(Stored.PARKED) for answer in answers) == 30
    assert len(inbox.list()) == 30
    assert_counted(control)


def test_a_claim_does_not_wait_for_a_lane_that_is_being_changed(shared):
    """A lane whose row somebody has locked is passed over."""
    inbox = Inbox(shared)
    inbox.park([arrival("first", "e")])
    inbox.park([arrival("second", "e")])

    with shared.write() as connection:
        assert lock(connection, ["first"]).keys() == {"first"}
        assert inbox.claim("me").tenant_id == "second"
        assert inbox.claim("me") is None
        assert inbox.claim("me", tenant_id="first") is None
    assert inbox.claim("me").tenant_id == "first"


def drain_alone(url):
    """Drain all lanes in a process of its own; return what was settled."""
    settled = []
    with ControlDatabase(url, statement_timeout=30.0) as control, control.read() as witness:
        inbox = Inbox(control)
        while (lane := inbox.claim("process")) is not None:
            key = {"name": lane.tenant_id}
            # The server's own word for it that nobody else is here.
            alone = text("SELECT pg_try_advisory_lock(hashtext(:name))")
            assert witness.scalar(alone, key), "two hold one lane"
            entries = inbox.take(lane, limit=5)
            settled += [(entry.tenant_id, entry.event_id) for entry in entries]
            done = [Settlement(number=entry.number, outcome="applied") for entry in entries]
            inbox.settle(lane, done)
            witness.execute(text("SELECT pg_advisory_unlock(hashtext(:name))"), key)
            inbox.release(lane)
    return settled


def test_processes_share_the_lanes(shared):
    """Workers in several processes settle every event once, and never hold one lane together."""
    inbox = Inbox(shared)
    inbox.park([arrival(name, f"e{number}") for name in TENANTS for number in range(40)])
    url = shared.placement.url.render_as_string(hide_password=False)

    with multiprocessing.get_context("spawn").Pool(3) as pool:
        settled = Counter(pair for one in pool.map(drain_alone, [url] * 3) for pair in one)

    assert len(settled) == 40 * len(TENANTS)
    assert set(settled.values()) == {1}
    assert inbox.totals().parked == 0
