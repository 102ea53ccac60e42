"""What the inbox promises, on both databases, one caller at a time."""

import hashlib
import sys
from datetime import timedelta

import pytest
from sqlalchemy import text, update

from tenantsync.control.arrivals import OVERHEAD
from tenantsync.control.database import ControlDatabase, ControlMissing, ControlUnavailable
from tenantsync.control.inbox import (
    Arrival,
    Inbox,
    LeaseLost,
    Pruned,
    Settlement,
    State,
    Stored,
)
from tenantsync.control.moments import Later
from tenantsync.control.tables import inbox as events
from tenantsync.control.tables import lanes
from tenantsync.migrate.control import upgrade_control
from tenantsync.steps import AUDIT_EVENT, Step

DAY = 86400.0
KEEP = {"bodies": 7 * DAY, "ids": 35 * DAY, "quarantine": 90 * DAY}


@pytest.fixture
def control(database_url):
    with ControlDatabase(database_url) as made:
        upgrade_control(made)
        yield made


@pytest.fixture
def inbox(control):
    room = 10 * (OVERHEAD + 100)
    return Inbox(control, max_unknown_events=3, max_unknown_bytes=room, max_nameless_bytes=room)


def arrival(event_id="e1", tenant_id="acme", **options):
    given = {
        "type": "member.joined",
        "subject": "ann",
        "timestamp": 1_700_000_000_000,
        "body": b'{"event": 1}',
        "signed_at": 1_700_000_000,
        "door": "direct",
        "reason": "unavailable",
    }
    return Arrival(tenant_id=tenant_id, event_id=event_id, **given | options)


def applied(*entries, outcome="applied"):
    return [Settlement(number=entry.number, outcome=outcome) for entry in entries]


def age(inbox, seconds, *columns, table=events, where=None):
    """Let time pass for some columns of some rows."""
    with inbox.database.write() as connection:
        for column in columns:
            statement = update(table).values({column: Later(-seconds)})
            connection.execute(statement if where is None else statement.where(where))


def lane_of(inbox, tenant_id="acme"):
    return next((lane for lane in inbox.lanes() if lane.tenant_id == tenant_id), None)


def states(inbox):
    return {entry.event_id: entry.state.value for entry in inbox.list(limit=1000)}


def test_an_event_is_kept_as_it_came(inbox):
    """Body, digest, times and origin of a parked event are all there."""
    (stored,) = inbox.park([arrival(body=b"\x00\xffbody")])
    (listed,) = inbox.list()
    shown = inbox.show(listed.number)

    assert stored is Stored.PARKED
    assert listed.body is None
    assert shown.body == b"\x00\xffbody"
    assert shown.digest == hashlib.sha256(b"\x00\xffbody").hexdigest()
    assert (shown.tenant_id, shown.event_id, shown.type) == ("acme", "e1", "member.joined")
    assert (shown.subject, shown.timestamp, shown.signed_at) == (
        *("ann", 1_700_000_000_000, 1_700_000_000),
    )
    assert (shown.door, shown.reason, shown.size) == ("direct", "unavailable", 6)
    assert (shown.state, shown.attempts, shown.error) == (State.PARKED, 0, None)
    assert (shown.settled_at, shown.outcome) == (None, None)
    assert shown.due_at == shown.received_at
    assert 0 <= shown.age < 60
    assert inbox.show(listed.number + 1) is None


def test_an_event_that_comes_again_changes_nothing(inbox):
    """A redelivered event keeps its row, whether it comes in the same call or a later one."""
    first = inbox.park([arrival(), arrival(body=b"other")])
    again = inbox.park([arrival(body=b"third"), arrival("e2")])

    assert first == [Stored.PARKED] * 2
    assert again == [Stored.PARKED] * 2
    assert inbox.show(inbox.list()[0].number).body == b'{"event": 1}'
    assert (lane_of(inbox).waiting, lane_of(inbox).bytes) == (2, 24)
    assert inbox.park([]) == []


def test_the_same_id_of_two_tenants_is_two_events(inbox):
    """Ids are unique within a tenant; an answer names the right one of them."""
    assert inbox.park([arrival(tenant_id="a")]) == [Stored.PARKED]
    lane = inbox.claim("me")
    inbox.settle(lane, applied(*inbox.take(lane)))

    answers = inbox.park([arrival(tenant_id="b"), arrival(tenant_id="a")])

    assert answers == [Stored.PARKED, Stored.APPLIED]


def test_what_became_of_an_event_is_the_answer(inbox):
    """Each state of an event that is there already has an answer of its own."""
    inbox.park([arrival(name) for name in ("applied", "quarantined", "discarded", "parked")])
    lane = inbox.claim("me")
    first, second, third, _ = inbox.take(lane)
    inbox.settle(lane, [*applied(first), Settlement(number=second.number, quarantine=True)])
    inbox.discard(numbers=[third.number])

    answers = inbox.park([arrival(name) for name in states(inbox)])

    assert [answer.value for answer in answers] == list(states(inbox))


def test_a_lane_is_claimed_drained_and_gone(inbox):
    """A lane without events leaves no row behind."""
    inbox.park([arrival("e1"), arrival("e2")])

    lane = inbox.claim("me")
    entries = inbox.take(lane)
    inbox.settle(lane, applied(*entries))
    inbox.release(lane)

    assert (lane.tenant_id, lane.attempts, lane.known, lane.waiting) == ("acme", 0, True, 2)
    assert [entry.body for entry in entries] == [b'{"event": 1}'] * 2
    assert states(inbox) == {"e1": "applied", "e2": "applied"}
    assert inbox.list()[0].outcome == "applied"
    assert inbox.list()[0].settled_at is not None
    assert inbox.lanes() == []
    assert inbox.claim("me") is None


def test_a_lane_has_one_holder(inbox):
    """Nobody else claims a lane that is leased, not by name either."""
    inbox.park([arrival()])
    lane = inbox.claim("me")

    assert inbox.claim("you") is None
    assert inbox.claim("you", tenant_id="acme") is None
    assert lane_of(inbox).held_by == "me"
    assert lane.token not in repr(lane)


def test_a_lease_that_is_over_is_anyones(inbox):
    """Who comes back after the lease was given to another changes nothing."""
    inbox.park([arrival()])
    stale = inbox.claim("stopped")
    entries = inbox.take(stale)
    age(inbox, 1, "due_at", table=lanes)
    assert lane_of(inbox).held_by is None

    fresh = inbox.claim("other")

    for late in (
        lambda: inbox.settle(stale, applied(*entries)),
        lambda: inbox.renew(stale),
        lambda: inbox.release(stale),
        lambda: inbox.release(stale, error="no", known=False),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert states(inbox) == {"e1": "parked"}
    assert lane_of(inbox).held_by == "other"
    inbox.settle(fresh, applied(*entries))
    inbox.release(fresh)
    with pytest.raises(LeaseLost):
        inbox.settle(fresh, applied(*entries))


def test_a_late_holder_settles_where_nobody_else_came(inbox):
    """A lease that is over is good until another claims the lane."""
    inbox.park([arrival()])
    lane = inbox.claim("slow")
    age(inbox, 1, "due_at", table=lanes)

    inbox.settle(lane, applied(*inbox.take(lane)))

    assert states(inbox) == {"e1": "applied"}


def test_a_renewed_lease_holds(inbox):
    """Renewing moves the end of the lease into the future."""
    inbox.park([arrival()])
    lane = inbox.claim("me")
    age(inbox, 1, "due_at", table=lanes)
    inbox.renew(lane)

    assert inbox.claim("you") is None


def test_tokens_never_repeat(inbox):
    """Not for the same tenant, nor after its lane was made anew."""
    tokens = []
    for number in range(20):
        inbox.park([arrival(f"e{number}")])
        lane = inbox.claim("me")
        tokens.append(lane.token)
        inbox.settle(lane, applied(*inbox.take(lane)))
        inbox.release(lane)

    assert len(set(tokens)) == 20


def test_the_lane_longest_due_comes_first(inbox):
    """Lanes are served in the order in which they became due."""
    inbox.park([arrival(tenant_id=name) for name in ("a", "b", "c")])
    for name, seconds in (("a", 5), ("b", 30), ("c", 10)):
        age(inbox, seconds, "due_at", table=lanes, where=lanes.c.tenant_id == name)

    assert [inbox.claim("me").tenant_id for _ in range(3)] == ["b", "c", "a"]


def test_a_certain_lane_is_claimed_before_it_is_due(inbox):
    """By name a lane is had that backs off or sleeps; one without events is not."""
    inbox.park([arrival(due_in=3600), arrival(tenant_id="new", known=False)])
    inbox.quarantine([arrival(tenant_id="odd")])

    assert inbox.claim("me") is None
    assert inbox.claim("me", tenant_id="acme").tenant_id == "acme"
    assert inbox.claim("me", tenant_id="new").known is False
    assert inbox.claim("me", tenant_id="odd") is None
    assert inbox.claim("me", tenant_id="nobody") is None


def test_an_arrival_delays_its_lane_and_not_itself(inbox):
    """A lane that is woken early gives all that came: waking touches one row, not each event's."""
    inbox.park([arrival("soon", due_in=600), arrival("later", due_in=3600)])
    assert inbox.claim("me") is None

    inbox.wake(["acme"])

    entries = inbox.take(inbox.claim("me"))
    assert [entry.event_id for entry in entries] == ["soon", "later"]


def test_an_event_is_taken_when_it_is_due(inbox):
    """What is due later stays, and the lane is due with the first of it."""
    inbox.park([arrival("soon"), arrival("later"), arrival("now")])
    lane = inbox.claim("me")
    first, second, third = inbox.take(lane)
    delays = [
        Settlement(number=entry.number, error="no", due_in=seconds)
        for entry, seconds in ((first, 600), (second, 3600))
    ]
    inbox.settle(lane, [*delays, *applied(third)])

    assert inbox.take(lane) == []
    inbox.release(lane)
    assert lane_of(inbox).due_at == next(e.due_at for e in inbox.list() if e.event_id == "soon")
    assert inbox.claim("me") is None


def test_a_lane_is_due_with_an_event_that_is_due_sooner(inbox):
    """A new event brings forward a lane that only waits for others."""
    inbox.park([arrival("later", due_in=3600)])
    inbox.park([arrival("now")])

    assert inbox.claim("me").tenant_id == "acme"


def test_taking_is_limited_and_goes_on(inbox):
    """A batch has at most so many, by number; the next one has the rest."""
    inbox.park([arrival(f"e{number}") for number in range(5)])
    lane = inbox.claim("me")
    first = inbox.take(lane, limit=3)
    inbox.settle(lane, applied(*first))
    second = inbox.take(lane, limit=3)

    numbers = [entry.number for entry in first + second]
    assert (len(first), len(second)) == (3, 2)
    assert numbers == sorted(numbers)


def test_an_event_with_a_reason_of_its_own_waits_alone(inbox):
    """One that is postponed counts its attempts and does not hold up its lane."""
    inbox.park([arrival("bad"), arrival("good")])
    lane = inbox.claim("me")
    bad, good = inbox.take(lane)
    postponed = Settlement(number=bad.number, error="the hook failed\x00" * 99, due_in=60)
    inbox.settle(lane, [*applied(good), postponed])

    entry = inbox.show(bad.number)
    assert inbox.take(lane) == []
    assert (entry.state, entry.attempts) == (State.PARKED, 1)
    assert entry.due_at > entry.received_at + timedelta(seconds=59)
    assert entry.error.startswith("the hook failed\ufffd")
    assert len(entry.error) == 500
    inbox.release(lane)
    assert lane_of(inbox).due_at == entry.due_at


def test_a_quarantined_event_stops_waiting(inbox):
    """Quarantine keeps body and error, and the lane's row until an operator decides."""
    inbox.park([arrival()])
    lane = inbox.claim("me")
    (entry,) = inbox.take(lane)
    inbox.settle(lane, [Settlement(number=entry.number, error="it failed", quarantine=True)])
    inbox.release(lane)

    shown = inbox.show(entry.number)
    assert (shown.state, shown.error, shown.attempts) == (State.QUARANTINED, "it failed", 1)
    assert shown.body == b'{"event": 1}'
    assert (lane_of(inbox).waiting, lane_of(inbox).quarantined) == (0, 1)
    assert lane_of(inbox).due_at is None
    inbox.park([arrival("next")])
    assert inbox.claim("me").waiting == 1


@pytest.mark.parametrize(
    "wrong",
    [{}, {"outcome": "applied", "quarantine": True}, {"due_in": 1.0, "outcome": "stale"}],
)
def test_a_settlement_says_one_thing(wrong):
    """A settlement that says nothing or two things is refused."""
    with pytest.raises(ValueError, match="one of outcome"):
        Settlement(number=1, **wrong)


def test_events_of_other_lanes_are_not_settled(inbox):
    """A lane's token is good for its own events only."""
    inbox.park([arrival(tenant_id="a"), arrival(tenant_id="b")])
    lane = inbox.claim("me", tenant_id="a")
    inbox.settle(lane, applied(*inbox.list()))

    assert [entry.state.value for entry in inbox.list()] == ["applied", "parked"]
    assert lane_of(inbox, "b").waiting == 1


def test_a_lane_that_fails_backs_off(inbox):
    """Failures are counted; a new event does not bring the next try forward."""
    inbox.park([arrival()])
    for _ in range(2):
        lane = inbox.claim("me", tenant_id="acme")
        inbox.release(lane, retry_in=600, error="the database is down")
    inbox.park([arrival("e2")])

    info = lane_of(inbox)
    assert inbox.claim("me") is None
    assert (info.attempts, info.error, info.held_by) == (2, "the database is down", None)
    assert info.since is not None
    assert inbox.totals().failing == 1
    lane = inbox.claim("me", tenant_id="acme")
    assert lane.attempts == 2
    inbox.release(lane)
    info = lane_of(inbox)
    assert (info.attempts, info.error, info.since) == (0, None, None)
    assert inbox.claim("me") is not None


def test_a_lane_sleeps_until_it_is_woken(inbox):
    """Without a time to retry at, neither time nor a new event makes it due."""
    inbox.park([arrival()])
    inbox.release(inbox.claim("me"), retry_in=None, error="suspended")
    inbox.park([arrival("e2")])
    assert lane_of(inbox).due_at is None

    assert inbox.wake(["acme", "acme", "nobody"]) == 1
    lane = inbox.claim("me")
    assert (lane.attempts, lane.waiting) == (0, 2)


def test_a_lane_woken_while_it_is_held_is_due_after(inbox):
    """Whoever registered the tenant is heard, although the holder had asked before."""
    inbox.park([arrival(due_in=3600)])
    for options in (
        {"error": "down", "retry_in": 900},
        {"known": False},
        {"retry_in": None, "error": "suspended"},
        {},
    ):
        lane = inbox.claim("me", tenant_id="acme")
        assert inbox.wake(["acme"]) == 1
        assert inbox.claim("you") is None
        inbox.release(lane, **options)

        assert (lane_of(inbox).known, lane_of(inbox).attempts) == (True, 0)
        assert inbox.claim("you").tenant_id == "acme"
        age(inbox, 1, "due_at", table=lanes)


def test_lanes_of_strangers_sleep_until_registration(inbox):
    """Only waking, or an event that says so, makes the lane of an unknown tenant due."""
    inbox.park([arrival("a", known=False), arrival("b", tenant_id="other", known=False)])
    assert inbox.claim("me") is None
    assert (lane_of(inbox).known, lane_of(inbox).due_at) == (False, None)

    inbox.wake(["acme"])
    assert inbox.claim("me").tenant_id == "acme"
    inbox.park([arrival("c", tenant_id="other", known=True)])
    assert inbox.claim("me").waiting == 2
    assert inbox.totals().unknown == 0


def test_a_tenant_that_nobody_knows_any_more_sleeps(inbox):
    """Given back as unknown, a lane sleeps, and what it holds counts as strangers'."""
    inbox.park([arrival(f"e{number}") for number in range(5)])
    inbox.release(inbox.claim("me"), known=False, error="nobody knows the tenant")

    assert inbox.claim("me") is None
    assert inbox.totals().unknown == 5
    assert lane_of(inbox).error == "nobody knows the tenant"
    assert inbox.park([arrival("more", known=False)]) == [Stored.FULL]
    inbox.wake(["acme"])
    assert inbox.totals().unknown == 0
    assert inbox.park([arrival("more", known=False)]) == [Stored.PARKED]


def test_a_stranger_has_room_for_so_many_events(inbox):
    """Beyond its bound a stranger's event is not stored, and leaves nothing behind."""
    answers = inbox.park([arrival(f"e{number}", known=False) for number in range(5)])
    again = inbox.park([arrival("e0", known=False), arrival("e9", known=False)])

    assert answers == [Stored.PARKED] * 3 + [Stored.FULL] * 2
    assert again == [Stored.PARKED, Stored.FULL]
    assert lane_of(inbox).waiting == 3
    assert len(inbox.list()) == 3


def test_strangers_share_room(inbox):
    """All unknown tenants together have so many bytes; a known one has room for ever."""
    tiny = [arrival(f"e{n}", tenant_id=f"t{n}", known=False, body=b"") for n in range(20)]
    answers = inbox.park(tiny)
    count = answers.count(Stored.PARKED)

    assert count == 10 * (OVERHEAD + 100) // OVERHEAD
    assert answers[count:] == [Stored.FULL] * (20 - count)
    assert len(inbox.lanes()) == count
    known = [arrival(f"e{n}", body=b"x" * 5000) for n in range(20)]
    assert inbox.park(known) == [Stored.PARKED] * 20


def test_room_comes_back(inbox):
    """What becomes known, applied, discarded, erased or forgotten takes no room any more."""
    full = [arrival("big", known=False, body=b"x" * (9 * OVERHEAD))]
    probe = [arrival("big", tenant_id="probe", known=False, body=b"x" * (9 * OVERHEAD))]

    def is_full():
        stored = inbox.park(probe)
        inbox.discard(tenant_id="probe")
        age(inbox, 1, "settled_at", where=events.c.tenant_id == "probe")
        inbox.prune(bodies=DAY, ids=0, quarantine=DAY)
        return stored == [Stored.FULL]

    for leave in (
        lambda: inbox.wake(["acme"]),
        lambda: inbox.discard(tenant_id="acme"),
        lambda: inbox.erase("acme", "ann"),
    ):
        assert inbox.park(full) == [Stored.PARKED]
        assert is_full()
        leave()
        assert not is_full()
        inbox.discard()
        age(inbox, 1, "settled_at")
        inbox.prune(bodies=0, ids=0, quarantine=0)
        assert inbox.list() == []
    assert inbox.quarantine([arrival("big", known=False, body=b"x" * (9 * OVERHEAD))]) == [
        Stored.QUARANTINED
    ]
    assert is_full()
    age(inbox, 1, "settled_at")
    inbox.prune(bodies=0, ids=0, quarantine=0)
    assert not is_full()


def test_what_cannot_be_read_goes_to_quarantine(inbox):
    """An unreadable event is kept without a tenant, counted, and never tried."""
    nameless = arrival(tenant_id="", type="?", subject=None, reason="body: no JSON")

    assert inbox.quarantine([nameless]) == [Stored.QUARANTINED]
    assert inbox.quarantine([nameless]) == [Stored.QUARANTINED]
    assert inbox.quarantine([arrival()]) == [Stored.QUARANTINED]
    assert inbox.claim("me") is None
    assert inbox.totals().quarantined == 2
    assert inbox.totals().unknown == 1
    assert inbox.retry(tenant_id="") == 0
    assert inbox.wake([""]) == 0
    assert lane_of(inbox, "").known is False
    assert inbox.retry() == 1
    assert inbox.claim("me").tenant_id == "acme"
    assert inbox.discard() == 2
    assert lane_of(inbox, "") is None


def test_only_all_nameless_events_together_are_bounded(inbox):
    """Events that name no tenant are nobody's in particular, but not endless."""
    many = [arrival(f"e{n}", tenant_id="", body=b"") for n in range(20)]
    answers = inbox.quarantine(many)

    assert answers.count(Stored.QUARANTINED) == 10
    assert answers.count(Stored.FULL) == 10


def test_strangers_and_nameless_events_take_no_room_of_each_other(inbox):
    """Neither fills the other's, whichever comes first, nor in one call."""
    strangers = [arrival("e", tenant_id=f"t{n}", known=False, body=b"") for n in range(20)]
    nameless = [arrival(f"e{n}", tenant_id="", known=False, body=b"") for n in range(20)]
    calls = {
        "strangers": lambda: inbox.park(strangers).count(Stored.PARKED),
        "nameless": lambda: inbox.quarantine(nameless).count(Stored.QUARANTINED),
        "both": lambda: inbox.quarantine([*nameless, *strangers]).count(Stored.QUARANTINED),
    }

    for order, counts in (
        (("strangers", "nameless"), [10, 10]),
        (("nameless", "strangers"), [10, 10]),
        (("both",), [20]),
    ):
        assert [calls[name]() for name in order] == counts
        assert inbox.totals().unknown == 20
        inbox.discard()
        age(inbox, 1, "settled_at")
        inbox.prune(bodies=0, ids=0, quarantine=0)


def test_an_announcement_makes_its_lane_due_and_nobody_known(inbox):
    """Somebody looks whether to make the tenant; what it has here stays bounded."""
    inbox.park([arrival("before", known=False)])
    assert inbox.claim("me") is None

    assert inbox.park([arrival("new", known=False, announced=True)]) == [Stored.PARKED]
    answers = inbox.park([arrival(f"e{n}", known=False) for n in range(20)])
    assert answers.count(Stored.PARKED) == 1
    assert (lane_of(inbox).known, lane_of(inbox).announced) == (False, True)
    assert inbox.totals().unknown == 3
    lane = inbox.claim("me")
    assert (lane.tenant_id, lane.known, lane.waiting) == ("acme", False, 3)

    inbox.release(lane, retry_in=600, error="not now", known=False, announced=True)
    inbox.park([arrival("new", known=False, announced=True), arrival("x", known=False)])
    assert inbox.claim("me") is None
    assert (lane_of(inbox).known, lane_of(inbox).attempts) == (False, 1)
    assert inbox.totals().unknown == 3
    inbox.retry(tenant_id="acme")
    lane = inbox.claim("me")
    inbox.release(lane, known=True)
    assert inbox.totals().unknown == 0


def test_an_announcement_alone_is_due(inbox):
    """It needs no event before it."""
    inbox.park([arrival(known=False, announced=True)])

    assert inbox.claim("me").tenant_id == "acme"


def test_an_announcement_has_room_where_strangers_have_none(inbox):
    """Whoever fills the room keeps nobody from being made; but there is an end to it."""
    crowd = [arrival("e", tenant_id=f"t{n}", known=False, body=b"") for n in range(20)]
    full = [arrival(f"e{n}", known=False, body=b"") for n in range(3)]
    assert inbox.park([*full, *crowd]).count(Stored.PARKED) == 10

    announced = [
        arrival(f"new{n}", tenant_id=f"n{n}", known=False, announced=True, body=b"")
        for n in range(20)
    ]
    new = arrival("new", known=False, announced=True, body=b"")
    assert inbox.park([new, *announced]).count(Stored.PARKED) == 10
    assert lane_of(inbox).waiting == 4
    assert inbox.park([arrival("new2", known=False, announced=True)]) == [Stored.FULL]


def test_an_announcement_is_heard_while_its_lane_is_held(inbox):
    """The holder had looked before; the lane is due after, and still a stranger's."""
    inbox.park([arrival(known=False)])
    lane = inbox.claim("me", tenant_id="acme")
    inbox.park([arrival("new", known=False, announced=True)])
    inbox.release(lane, retry_in=None, error="nobody knows the tenant", known=False)

    assert inbox.totals().unknown == 2
    assert inbox.claim("me").known is False


@pytest.mark.parametrize("known", [True, False])
def test_whoever_gives_a_lane_back_need_not_say_who_knows_the_tenant(inbox, known):
    """Then it is as it was."""
    inbox.park([arrival(known=known)])
    for options in ({}, {"error": "down", "retry_in": 0.0}):
        inbox.release(inbox.claim("me", tenant_id="acme"), **options)
        assert lane_of(inbox).known is known


def test_a_deleted_persons_bodies_are_erased(inbox):
    """Nothing of the person is left, in no state, and nothing of others is lost."""
    names = ("applied", "quarantined", "parked")
    inbox.park([arrival(name) for name in names] + [arrival("other", subject="bob")])
    lane = inbox.claim("me")
    first, second, *_ = inbox.take(lane)
    inbox.settle(lane, [*applied(first), Settlement(number=second.number, quarantine=True)])

    assert inbox.erase("acme", "ann") == 3
    assert inbox.erase("acme", "ann") == 0
    assert inbox.erase("nobody", "ann") == 0
    found = {entry.event_id: inbox.show(entry.number) for entry in inbox.list()}
    assert [found[name].body for name in names] == [None] * 3
    assert [found[name].state for name in names] == [State.APPLIED] * 3
    assert [found[name].outcome for name in names] == ["applied", "stale", "stale"]
    assert found["other"].body is not None
    assert (lane_of(inbox).waiting, lane_of(inbox).quarantined) == (1, 0)
    assert lane_of(inbox, "nobody") is None


def test_only_what_was_applied_keeps_its_body(inbox):
    """An older event may come after its person's deletion, whose erasure it has missed."""
    outcomes = ("applied", "stale", "duplicate", "ignored")
    inbox.park([arrival(outcome) for outcome in outcomes])
    lane = inbox.claim("me")
    entries = inbox.take(lane)
    inbox.settle(lane, [Settlement(number=one.number, outcome=one.event_id) for one in entries])

    kept = [one.event_id for one in entries if inbox.show(one.number).body is not None]
    assert kept == ["applied"]


def test_what_was_erased_while_it_was_drained_stays_erased(inbox):
    """The holder settles only what still waits, and the counters stay right."""
    inbox.park([arrival("gone"), arrival("dropped", subject="bob"), arrival("e", subject="eve")])
    lane = inbox.claim("me")
    entries = inbox.take(lane)
    inbox.erase("acme", "ann")
    inbox.discard(numbers=[entries[1].number])
    inbox.settle(lane, applied(*entries))
    inbox.release(lane)

    assert [entry.outcome for entry in inbox.list()] == ["stale", None, "applied"]
    assert states(inbox) == {"gone": "applied", "dropped": "discarded", "e": "applied"}
    assert inbox.lanes() == []


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["a", "b", "c", "d"]),
        ({"tenant_id": "acme"}, ["a", "b", "d"]),
        ({"type": "member.left"}, ["b"]),
        ({"type": "member.*"}, ["a", "b", "c"]),
        ({"type": "MEMBER.*"}, []),
        ({"type": "*"}, ["a", "b", "c", "d"]),
        ({"state": State.QUARANTINED}, ["d"]),
        ({"older_than": 3600.0}, ["c"]),
        ({"tenant_id": "acme", "type": "member.*", "state": State.PARKED}, ["a", "b"]),
        ({"limit": 2}, ["a", "b"]),
        ({"limit": 2, "after": 3}, ["d"]),
    ],
)
def test_events_are_listed_by_what_they_are(inbox, filters, expected):
    """All filters given must be true of an event."""
    inbox.park([arrival("a"), arrival("b", type="member.left"), arrival("c", tenant_id="globex")])
    inbox.quarantine([arrival("d", type="subject.updated")])
    age(inbox, 7200, "received_at", where=events.c.event_id == "c")

    assert [entry.event_id for entry in inbox.list(**filters)] == expected


def test_an_operator_sends_events_back(inbox):
    """What failed too often is tried again, and its lane at once; what is done stays done."""
    inbox.park([arrival("bad"), arrival("done"), arrival("slow")])
    inbox.park([arrival("strange", tenant_id="new", known=False)])
    lane = inbox.claim("me")
    bad, done, slow = inbox.take(lane)
    failed = Settlement(number=bad.number, quarantine=True, error="no")
    postponed = Settlement(number=slow.number, due_in=3600, error="no")
    inbox.settle(lane, [*applied(done), failed, postponed])
    inbox.release(lane, retry_in=900, error="down")

    assert inbox.retry() == 3
    assert inbox.retry(state=State.APPLIED) == 0
    lane = inbox.claim("me")
    entries = inbox.take(lane)
    assert [entry.event_id for entry in entries] == ["bad", "slow"]
    assert [(entry.attempts, entry.error) for entry in entries] == [(0, None)] * 2
    assert (lane.attempts, lane.waiting) == (0, 2)
    assert inbox.claim("me") is None
    assert lane_of(inbox, "new").due_at is None


def test_an_operators_retry_is_heard_while_the_lane_is_held(inbox):
    """A lane that is held is due when it is given back, whatever the holder says."""
    inbox.park([arrival()])
    lane = inbox.claim("me")
    inbox.retry(tenant_id="acme")
    inbox.release(lane, retry_in=900, error="down")

    assert inbox.claim("me").attempts == 0


def test_discarding_gives_events_up(inbox):
    """A discarded event has no body, and does not come back."""
    inbox.park([arrival(), arrival("e2", type="member.left")])

    assert inbox.discard(type="member.left") == 1
    assert inbox.discard(type="member.left") == 0
    gone = inbox.show(inbox.list()[1].number)
    assert (gone.state, gone.body) == (State.DISCARDED, None)
    assert gone.settled_at is not None
    assert inbox.park([arrival("e2")]) == [Stored.DISCARDED]
    assert lane_of(inbox).waiting == 1


def test_many_are_changed_in_portions(inbox):
    """More events than one transaction takes are all found."""
    inbox.park([arrival(f"e{number}") for number in range(1101)])

    assert inbox.retry(tenant_id="acme") == 1101
    assert inbox.discard() == 1101
    assert inbox.lanes() == []


def test_the_ids_that_the_inbox_holds_are_known(inbox):
    """Of one tenant, in whatever state."""
    inbox.park([arrival("a"), arrival("b"), arrival("c", tenant_id="globex")])
    inbox.discard(numbers=[inbox.list()[0].number])

    assert inbox.held("acme") == {"a", "b"}
    assert inbox.held("nobody") == set()


def test_old_events_are_pruned_by_what_they_are(inbox):
    """Bodies go first, then ids; quarantine is kept longest; what waits is never deleted."""
    inbox.park([arrival(name) for name in ("parked", "applied", "quarantined", "discarded")])
    lane = inbox.claim("me")
    _, done, failed, dropped = inbox.take(lane)
    inbox.settle(lane, [*applied(done), Settlement(number=failed.number, quarantine=True)])
    inbox.discard(numbers=[dropped.number])
    inbox.release(lane)

    def after(days):
        settled = events.c.settled_at.is_not(None)
        age(inbox, days * DAY + 1, "settled_at", where=settled)
        return inbox.prune(**KEEP)

    assert after(6) == Pruned(expired=0, bodies=0, ids=0, quarantined=0, more=False)
    assert after(7) == Pruned(expired=0, bodies=1, ids=0, quarantined=0, more=False)
    assert inbox.show(done.number).body is None
    assert inbox.show(failed.number).body is not None
    assert after(35) == Pruned(expired=0, bodies=0, ids=2, quarantined=0, more=False)
    assert states(inbox) == {"parked": "parked", "quarantined": "quarantined"}
    assert after(90) == Pruned(expired=0, bodies=0, ids=0, quarantined=1, more=False)
    assert (lane_of(inbox).waiting, lane_of(inbox).quarantined) == (1, 0)
    age(inbox, 29 * DAY, "received_at", "due_at")
    assert inbox.prune(**KEEP).expired == 0
    age(inbox, 30 * DAY, "received_at", "due_at")
    assert inbox.prune(**KEEP).expired == 1
    (entry,) = inbox.list()
    assert (entry.state, entry.reason) == (State.QUARANTINED, "expired")
    assert (lane_of(inbox).waiting, lane_of(inbox).quarantined) == (0, 1)
    assert inbox.claim("me") is None
    inbox.retry()
    assert inbox.prune(**KEEP).expired == 0


def test_an_event_that_is_put_off_again_and_again_expires_like_others(inbox):
    """When it is due says nothing: each failure of its own moves that."""
    inbox.park([arrival("waits"), arrival("fails"), arrival("fresh")])
    age(inbox, 31 * DAY, "received_at", where=events.c.event_id != "fresh")
    lane = inbox.claim("me")
    for entry in inbox.take(lane):
        if entry.event_id == "fails":
            inbox.settle(lane, [Settlement(number=entry.number, error="locked", due_in=900.0)])

    assert inbox.prune(**KEEP).expired == 2
    assert states(inbox) == {"waits": "quarantined", "fails": "quarantined", "fresh": "parked"}
    assert (lane_of(inbox).waiting, lane_of(inbox).quarantined) == (1, 2)


def test_what_an_operator_sent_back_has_all_of_the_time_again(inbox):
    """Out of quarantine or not, and however often it fails within that time; but no longer."""
    inbox.park([arrival("parked"), arrival("quarantined")])
    lane = inbox.claim("me")
    given_up = inbox.take(lane)[1]
    inbox.settle(lane, [Settlement(number=given_up.number, quarantine=True)])
    inbox.release(lane)
    age(inbox, 60 * DAY, "received_at")

    assert inbox.retry() == 2
    lane = inbox.claim("me")
    for seconds, expired in ((29 * DAY, 0), (30 * DAY + 1, 2)):
        age(inbox, seconds, "settled_at")
        age(inbox, 1, "due_at")
        inbox.settle(
            lane,
            [Settlement(number=one.number, error="no", due_in=900.0) for one in inbox.take(lane)],
        )
        assert inbox.prune(**KEEP).expired == expired


def test_expiry_is_done_in_portions_whatever_the_lane(inbox):
    """Many lanes, and many events of one; each call does at most so much."""
    inbox.park([arrival(f"e{n}", tenant_id=name) for n in range(3) for name in ("a", "b", "c")])
    inbox.park([arrival("e", tenant_id="d")])
    age(inbox, 31 * DAY, "received_at", where=events.c.tenant_id != "d")

    assert [inbox.prune(**KEEP, limit=2).expired for _ in range(6)] == [2, 2, 2, 2, 1, 0]
    assert [lane.quarantined for lane in inbox.lanes()] == [3, 3, 3, 0]


def test_pruning_is_done_in_portions(inbox):
    """A call does at most so much and says whether there is more."""
    inbox.park([arrival(f"e{number}") for number in range(5)])
    inbox.discard()
    age(inbox, 36 * DAY, "settled_at")
    assert [inbox.prune(**KEEP, limit=2).ids for _ in range(4)] == [2, 2, 1, 0]
    assert not inbox.prune(**KEEP, limit=2).more


def test_a_tenant_whose_last_quarantined_event_is_forgotten_has_no_lane(inbox):
    """Pruning leaves no empty row behind."""
    inbox.quarantine([arrival()])
    age(inbox, 91 * DAY, "settled_at")
    inbox.prune(**KEEP)

    assert inbox.lanes() == []


def test_totals_say_how_full_it_is(inbox):
    """An empty inbox has no oldest event; others count both kinds of what is kept."""
    assert inbox.totals().oldest is None

    inbox.park([arrival("a"), arrival("b", tenant_id="globex", known=False)])
    inbox.quarantine([arrival("c", body=b"123")])
    age(inbox, 100, "received_at", where=events.c.event_id == "b")
    age(inbox, 900, "received_at", where=events.c.event_id == "c")

    totals = inbox.totals()
    assert (totals.parked, totals.quarantined, totals.bytes) == (2, 1, 27)
    assert (totals.unknown, totals.failing) == (1, 0)
    assert 100 <= totals.oldest < 160
    assert 100 <= lane_of(inbox, "globex").oldest < 160


def test_each_step_is_announced(inbox):
    """Whoever kills the process at a step finds all of them, in this order."""
    steps = []
    listening = True

    def listen(event, arguments):
        if listening and event == AUDIT_EVENT:
            steps.append(Step(arguments[0]))

    sys.addaudithook(listen)
    inbox.park([arrival()])
    inbox.quarantine([arrival("bad")])
    inbox.erase("acme", "nobody")
    lane = inbox.claim("me")
    inbox.settle(lane, applied(*inbox.take(lane)))
    inbox.release(lane)
    inbox.claim("me")
    inbox.prune(**KEEP)
    listening = False

    assert steps == [
        *(Step.PARKING, Step.PARKED, Step.PARKING, Step.QUARANTINED, Step.ERASED),
        *(Step.CLAIMED, Step.SETTLING, Step.SETTLED, Step.RELEASED, *[Step.PRUNED] * 4),
    ]


def test_nothing_is_kept_of_a_call_that_failed(inbox):
    """An error before the commit leaves no event and no count."""
    active = True

    def fail(event, arguments):
        if active and event == AUDIT_EVENT and arguments[0] == Step.PARKING:
            raise RuntimeError("killed here")

    sys.addaudithook(fail)
    with pytest.raises(RuntimeError, match="killed here"):
        inbox.park([arrival(), arrival("e2", tenant_id="new", known=False)])
    active = False

    assert inbox.list() == []
    assert inbox.lanes() == []
    assert inbox.totals().unknown == 0


def test_a_control_database_that_is_missing_or_down_is_said(database_url):
    """Every call says what is the matter with the control database."""
    with ControlDatabase(database_url) as unmade, pytest.raises(ControlMissing):
        Inbox(unmade).park([arrival()])
    nowhere = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    with ControlDatabase(nowhere) as down, pytest.raises(ControlUnavailable):
        Inbox(down).claim("me")


def test_ids_that_no_index_can_hold_are_refused():
    """An id longer than 255 bytes, or with NUL, would fail for ever: it is refused at the door."""
    for wrong in ({"event_id": "é" * 128}, {"tenant_id": "x" * 256}, {"event_id": "a\x00b"}):
        with pytest.raises(ValueError, match="at most 255 bytes"):
            arrival(**wrong)


def test_on_sqlite_a_commit_is_on_the_disk(tmp_path):
    """The log is written ahead, and every commit waits for the disk."""
    with ControlDatabase(f"sqlite:///{tmp_path / 'control.db'}") as control:
        upgrade_control(control)
        for opened in (control.write, control.read):
            with opened() as connection:
                assert connection.scalar(text("PRAGMA synchronous")) == 2
                assert connection.scalar(text("PRAGMA journal_mode")) == "wal"


def test_on_postgresql_a_commit_is_on_the_disk(postgres):
    """Whatever the database's default, a commit waits for the disk."""
    url = postgres.create_database()
    with ControlDatabase(url) as control:
        upgrade_control(control)
        name = control.placement.url.database
        with postgres.connect() as connection:
            connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        control.close()
        with control.write() as connection:
            assert connection.scalar(text("SHOW synchronous_commit")) == "on"
        with postgres.connect(name) as connection:
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
