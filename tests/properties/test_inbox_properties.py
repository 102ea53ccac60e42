"""Whatever happens to the inbox, in whatever order: nothing is lost, and every count is right."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select, update

from tenantsync.control.database import ControlDatabase
from tenantsync.control.inbox import Arrival, Inbox, Lane, LeaseLost, Settlement, State, Stored
from tenantsync.control.moments import Later
from tenantsync.control.tables import inbox as events
from tenantsync.control.tables import lanes, strangers
from tenantsync.migrate.control import upgrade_control

DAY = 86400.0
ROOM = 2
TENANTS = ("a", "b", "c")
tenants = st.sampled_from(TENANTS)
numbers = st.integers(0, 4)
PARKED, QUARANTINED = State.PARKED, State.QUARANTINED


@dataclass
class Modelled:
    """What a lane is thought to be."""

    known: bool = False
    asleep: bool = False
    holder: Lane | None = None
    is_over: bool = False
    woken: bool = False

    @property
    def is_held(self):
        return self.holder is not None and not self.is_over


def subject_of(number):
    return f"person-{number % 2}"


def arrival(tenant_id, number, known, due_in):
    return Arrival(
        tenant_id=tenant_id,
        event_id=f"e{number}",
        type="member.joined",
        subject=subject_of(number),
        timestamp=number,
        body=b"x" * number,
        signed_at=None,
        door="direct",
        reason="unavailable",
        known=known,
        due_in=due_in,
    )


class InboxMachine(RuleBasedStateMachine):
    """Does anything to an inbox on SQLite and compares it with a few dictionaries."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.control = ControlDatabase(f"sqlite:///{Path(self.folder.name) / 'control.db'}")
        self.events: dict[tuple[str, int], State] = {}
        self.lanes: dict[str, Modelled] = {}
        self.stale: list[Lane] = []
        self.tokens: set[str] = set()

    @initialize()
    def make(self):
        upgrade_control(self.control)
        self.inbox = Inbox(self.control, max_unknown_events=ROOM)

    def teardown(self):
        self.control.close()
        self.folder.cleanup()

    # What is thought.

    def count(self, tenant_id, *states):
        return sum(
            key[0] == tenant_id and state in (states or (PARKED, QUARANTINED))
            for key, state in self.events.items()
        )

    def lane(self, tenant_id):
        return self.lanes.setdefault(tenant_id, Modelled())

    def rouse(self, tenant_id):
        lane = self.lane(tenant_id)
        lane.known = True
        if lane.is_held:
            lane.woken = True
        else:
            lane.asleep = False

    def tidy(self):
        """Forget lanes that hold nothing, as nobody could tell them from new ones."""
        for tenant_id, lane in list(self.lanes.items()):
            if self.count(tenant_id, PARKED) == 0 and not lane.is_held:
                lane.asleep = lane.woken = False
                if lane.holder is not None:  # its lease was over, and nothing was left to settle
                    self.give_up(lane)
                if self.count(tenant_id) == 0:
                    del self.lanes[tenant_id]

    def give_up(self, lane):
        self.stale.append(lane.holder)
        lane.holder, lane.is_over = None, False

    def expected(self, tenant_id, number, known, state):
        if known and not self.lane(tenant_id).known:
            self.rouse(tenant_id)
        there = self.events.get((tenant_id, number))
        if there is not None:
            return Stored(there.value)
        if not self.lane(tenant_id).known and self.count(tenant_id) >= ROOM:
            return Stored.FULL
        self.events[tenant_id, number] = state
        return Stored(state.value)

    # What is done.

    @rule(
        what=st.lists(st.tuples(tenants, numbers), min_size=1, max_size=6),
        known=st.booleans(),
        due_in=st.sampled_from([0.0, 3600.0]),
        quarantined=st.sampled_from([False, False, False, True]),
    )
    def arrive(self, what, known, due_in, quarantined):
        arrivals = [arrival(*pair, known, due_in) for pair in what]
        state = QUARANTINED if quarantined else PARKED
        expected = [self.expected(*pair, known, state) for pair in what]

        store = self.inbox.quarantine if quarantined else self.inbox.park
        assert store(arrivals) == expected
        self.tidy()

    def claimed(self, lane):
        assert lane.token not in self.tokens
        self.tokens.add(lane.token)
        thought = self.lanes[lane.tenant_id]
        assert not thought.is_held
        assert lane.waiting == self.count(lane.tenant_id, PARKED)
        assert lane.known == thought.known
        if thought.holder is not None:
            self.give_up(thought)
        thought.holder, thought.is_over, thought.woken = lane, False, False
        thought.asleep = False

    @rule(tenant_id=tenants)
    def claim_one(self, tenant_id):
        lane = self.inbox.claim("one", tenant_id=tenant_id)
        thought = self.lanes.get(tenant_id)
        free = thought is not None and not thought.is_held

        assert (lane is not None) == (free and self.count(tenant_id, PARKED) > 0)
        if lane is not None:
            self.claimed(lane)

    @rule()
    def claim_any(self):
        lane = self.inbox.claim("any")
        if lane is not None:
            self.claimed(lane)

    @rule()
    def pass_all_time(self):
        """Once every lease and wait is over, each lane that is awake is claimed and read."""
        with self.control.write() as connection:
            connection.execute(
                update(lanes).where(lanes.c.due_at.is_not(None)).values(due_at=Later(-1.0))
            )
            connection.execute(update(events).values(due_at=Later(-1.0)))
        for thought in self.lanes.values():
            thought.is_over = thought.holder is not None
        due = {
            name
            for name, thought in self.lanes.items()
            if self.count(name, PARKED) and thought.known and not thought.asleep
        }
        while lane := self.inbox.claim("all"):
            due.discard(lane.tenant_id)
            self.claimed(lane)
            found = {(lane.tenant_id, int(one.event_id[1:])) for one in self.inbox.take(lane)}
            thought = {key for key, state in self.events.items() if state is PARKED}
            assert found == {key for key in thought if key[0] == lane.tenant_id}
        assert due == set()

    @rule(tenant_id=tenants)
    def outlast(self, tenant_id):
        """A lease ends while its holder is stopped."""
        thought = self.lanes.get(tenant_id)
        if thought is not None and thought.is_held and self.count(tenant_id, PARKED):
            with self.control.write() as connection:
                mine = lanes.c.tenant_id == tenant_id
                connection.execute(update(lanes).where(mine).values(due_at=Later(-1.0)))
            thought.is_over = True

    @rule(
        tenant_id=tenants,
        kinds=st.lists(st.sampled_from(["done", "later", "bad"]), max_size=5),
        renew=st.booleans(),
    )
    def settle(self, tenant_id, kinds, renew):
        thought = self.lanes.get(tenant_id)
        if thought is None or thought.holder is None:
            return
        lane, settlements, then = thought.holder, [], {}
        for entry, kind in zip(self.inbox.take(lane), kinds, strict=False):
            key = (tenant_id, int(entry.event_id[1:]))
            if kind == "done":
                settlements.append(Settlement(number=entry.number, outcome="applied"))
                then[key] = State.APPLIED
            elif kind == "bad":
                settlements.append(Settlement(number=entry.number, quarantine=True))
                then[key] = QUARANTINED
            else:
                settlements.append(Settlement(number=entry.number, error="no", due_in=60.0))
        self.inbox.settle(lane, settlements)
        self.events |= then
        self.tidy()
        if renew and thought.holder is not None:
            self.inbox.renew(lane)
            thought.is_over = False

    @rule(
        tenant_id=tenants,
        error=st.sampled_from([None, "down"]),
        retry_in=st.sampled_from([None, 0.0, 600.0]),
        known=st.booleans(),
    )
    def release(self, tenant_id, error, retry_in, known):
        thought = self.lanes.get(tenant_id)
        if thought is None or thought.holder is None:
            return
        self.inbox.release(thought.holder, retry_in=retry_in, error=error, known=known)
        self.give_up(thought)
        thought.known = known or thought.woken
        thought.asleep = not thought.woken and error is not None and retry_in is None
        thought.woken = False
        self.tidy()

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def come_back_late(self, data):
        """Whoever lost the lease changes nothing, which the invariants see."""
        lane = data.draw(st.sampled_from(self.stale))
        found = self.inbox.list(tenant_id=lane.tenant_id)
        everything = [Settlement(number=entry.number, outcome="applied") for entry in found]
        for late in (
            lambda: self.inbox.settle(lane, everything),
            lambda: self.inbox.renew(lane),
            lambda: self.inbox.release(lane, known=False),
        ):
            with pytest.raises(LeaseLost):
                late()

    @rule(tenant_ids=st.sets(tenants))
    def wake(self, tenant_ids):
        waiting = [name for name in tenant_ids if self.count(name, PARKED)]

        assert self.inbox.wake(tenant_ids) == len(waiting)
        for name in tenant_ids & self.lanes.keys():
            self.rouse(name)
        self.tidy()

    @rule(tenant_id=tenants, number=numbers)
    def erase(self, tenant_id, number):
        self.inbox.erase(tenant_id, subject_of(number))
        for key, state in self.events.items():
            theirs = key[0] == tenant_id and subject_of(key[1]) == subject_of(number)
            if theirs and state in (PARKED, QUARANTINED):
                self.events[key] = State.APPLIED
        self.tidy()
        for entry in self.inbox.list(tenant_id=tenant_id):
            if entry.subject == subject_of(number):
                assert self.inbox.show(entry.number).body is None

    @rule(tenant_id=tenants)
    def discard(self, tenant_id):
        assert self.inbox.discard(tenant_id=tenant_id) == self.count(tenant_id)
        for key, state in self.events.items():
            if key[0] == tenant_id and state in (PARKED, QUARANTINED):
                self.events[key] = State.DISCARDED
        self.tidy()

    @rule(tenant_id=tenants, state=st.sampled_from([None, QUARANTINED]))
    def retry(self, tenant_id, state):
        states = (PARKED, QUARANTINED) if state is None else (state,)
        count = self.count(tenant_id, *states)

        assert self.inbox.retry(tenant_id=tenant_id, state=state) == count
        for key, found in self.events.items():
            if key[0] == tenant_id and found in states:
                self.events[key] = PARKED
        if count and self.lane(tenant_id).known:
            self.rouse(tenant_id)
        self.tidy()

    @rule(days=st.sampled_from([1, 8, 36, 91]), limit=st.sampled_from([1, 100]))
    def prune_settled(self, days, limit):
        with self.control.write() as connection:
            connection.execute(
                update(events)
                .where(events.c.settled_at.is_not(None), events.c.state != PARKED.value)
                .values(settled_at=Later(-days * DAY))
            )
        self.prune(limit)
        forgotten = Counter({State.APPLIED: 35, State.DISCARDED: 35, QUARANTINED: 90, PARKED: 999})
        self.events = {key: state for key, state in self.events.items() if forgotten[state] > days}
        self.tidy()

    @rule(tenant_id=tenants)
    def prune_parked(self, tenant_id):
        """What is parked, or was sent back, so long ago is given up, whenever it is due."""
        with self.control.write() as connection:
            theirs = update(events).where(events.c.tenant_id == tenant_id)
            connection.execute(theirs.values(received_at=Later(-31 * DAY)))
            sent_back = events.c.settled_at.is_not(None), events.c.state == PARKED.value
            connection.execute(theirs.where(*sent_back).values(settled_at=Later(-31 * DAY)))
        self.prune(100)
        for key, state in self.events.items():
            if key[0] == tenant_id and state is PARKED:
                self.events[key] = QUARANTINED
        self.tidy()

    def prune(self, limit):
        while self.inbox.prune(bodies=7 * DAY, ids=35 * DAY, quarantine=90 * DAY, limit=limit).more:
            pass

    # What must hold.

    @invariant()
    def every_event_is_where_it_is_thought(self):
        found = {
            (one.tenant_id, int(one.event_id[1:])): one.state for one in self.inbox.list(limit=99)
        }
        assert found == self.events

    @invariant()
    def every_count_equals_the_rows(self):
        rows = self.inbox.list(limit=99)
        for info in self.inbox.lanes():
            held = [
                one
                for one in rows
                if one.tenant_id == info.tenant_id and one.state in (PARKED, QUARANTINED)
            ]
            waiting = sum(one.state is PARKED for one in held)
            assert (info.waiting, info.quarantined) == (waiting, len(held) - waiting)
            assert info.bytes == sum(one.size for one in held)
        strange = [info for info in self.inbox.lanes() if not info.known]
        with self.control.read() as connection:
            row = connection.execute(select(strangers.c.events, strangers.c.bytes)).one()
        assert row.events == sum(info.waiting + info.quarantined for info in strange)
        assert row.bytes == sum(info.bytes for info in strange)

    @invariant()
    def no_parked_event_is_out_of_reach(self):
        infos = {info.tenant_id: info for info in self.inbox.lanes()}
        for tenant_id, _ in (k for k, s in self.events.items() if s in (PARKED, QUARANTINED)):
            assert infos[tenant_id].known == self.lanes[tenant_id].known
        for tenant_id, info in infos.items():
            thought = self.lanes[tenant_id]
            assert (info.held_by is not None) == thought.is_held
            if info.waiting and thought.known and not thought.asleep:
                assert info.due_at is not None


InboxMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)


class TestInbox(InboxMachine.TestCase):
    """The machine, run by pytest."""
