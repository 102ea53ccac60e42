"""Draining one lane: what the inbox is told of each event, and when the lane is tried again."""

import logging
from collections import deque
from contextlib import suppress

import pytest
from guarding import body_of
from sqlalchemy import text

from tenantsync.control.database import ControlDatabase, ControlUnavailable
from tenantsync.control.inbox import Arrival, Inbox, State
from tenantsync.errors import (
    EventRefused,
    HookFailed,
    Malformed,
    TenantNotMigrated,
    TenantSuspended,
    TenantSyncError,
    TenantUnavailable,
    UnknownTenant,
)
from tenantsync.migrate.control import upgrade_control
from tenantsync.observe import Outcome
from tenantsync.worker import drain
from tenantsync.worker.drain import Drainer

DOWN = TenantUnavailable("the database of acme does not answer")


class Scripted:
    """Applies parked events as the test says, and remembers what it was asked.

    Args:
        answers: Event id, or tenant id for all of its events -> the result, or several to be given
            one after the other, the last one for ever.
        first: Called with the ids before they are applied.
    """

    def __init__(self):
        self.answers = {}
        self.calls = []
        self.forgotten = []
        self.first = lambda ids: None

    def apply_parked(self, tenant_id, events, *, with_hooks=True):
        ids = [event.id for event in events]
        self.calls.append(ids)
        self.first(ids)
        if tenant_id in self.answers:
            result = self._next(tenant_id)
            if result is not None:
                return [result] * len(events)
        return [
            self._next(event.id) if event.id in self.answers else Outcome.APPLIED
            for event in events
        ]

    def forget(self, tenant_id):
        self.forgotten.append(tenant_id)

    def _next(self, name):
        answer = self.answers[name]
        if isinstance(answer, deque):
            answer = answer.popleft() if len(answer) > 1 else answer[0]
        if isinstance(answer, Exception) and not isinstance(answer, TenantSyncError):
            raise answer
        return answer


class Policy:
    """Provisioning that does as the test says."""

    def __init__(self, handler, *, allowed=True, error=None):
        self._handler = handler
        self._allowed = allowed
        self._error = error
        self.made = []

    def allows(self, tenant_id):
        return self._allowed

    def provision(self, tenant_id):
        if self._error is not None:
            raise self._error
        self.made.append(tenant_id)
        self._handler.answers.pop(tenant_id, None)


@pytest.fixture
def control(database_url):
    with ControlDatabase(database_url) as database:
        upgrade_control(database)
        yield database


@pytest.fixture
def inbox(control):
    return Inbox(control)


@pytest.fixture
def handler():
    return Scripted()


@pytest.fixture
def make_drainer(inbox, handler):
    """Make a drainer whose waiting times have no chance in them."""

    def make(**options):
        return Drainer(inbox, handler, **{"owner": "me", "jitter": lambda: 0.0} | options)

    return make


@pytest.fixture
def drainer(make_drainer):
    return make_drainer()


@pytest.fixture
def park(inbox):
    """Park events by their ids."""

    def park(*ids, tenant="acme", kind="member.joined", body=None, known=True):
        inbox.park(
            [
                Arrival(
                    tenant_id=tenant,
                    event_id=event_id,
                    type=kind,
                    subject="ann",
                    timestamp=0,
                    body=body or body_of(kind, id=event_id, tenant=tenant),
                    signed_at=None,
                    door="webhook",
                    reason="TenantUnavailable",
                    known=known,
                )
                for event_id in ids
            ]
        )

    return park


@pytest.fixture
def run(control):
    """Run a statement in the control database; return rows, if it has any."""

    def run(statement, **values):
        with control.write() as connection:
            result = connection.execute(text(statement), values)
            return result.fetchall() if result.returns_rows else []

    return run


@pytest.fixture
def come_due(control, run):
    """Let all waiting times pass."""
    past = "2001-01-01 00:00:00.000000"
    if control.placement.is_postgres:
        past += "+00"

    def come_due():
        run("UPDATE lanes SET due_at = :past WHERE due_at IS NOT NULL", past=past)
        run("UPDATE inbox SET due_at = :past", past=past)

    return come_due


@pytest.fixture
def wait_of(control, run):
    """Say in how many seconds a lane, or an event, is due by the database's clock."""

    def wait_of(table="lanes"):
        if control.placement.is_postgres:
            ((seconds,),) = run(f"SELECT extract(epoch FROM due_at - now())::float FROM {table}")
        else:
            ((seconds,),) = run(
                f"SELECT (julianday(due_at) - julianday('now')) * 86400.0 FROM {table}"
            )
        return seconds

    return wait_of


def states(inbox):
    """Return the state of each event by its id."""
    return {entry.event_id: entry.state for entry in inbox.list(limit=1000)}


def drain_all(drainer):
    """Claim the lane that is due, which must be there, and drain it."""
    lane = drainer.claim()
    assert lane is not None, "no lane is due"
    return drainer.drain(lane)


def test_what_the_tenant_took_is_settled_with_its_outcome(inbox, handler, drainer, park):
    """Applied, duplicate, stale and ignored are all done, and the lane goes away."""
    park("a", "b", "c", "d")
    handler.answers = {
        "b": Outcome.DUPLICATE,
        "c": Outcome.STALE,
        "d": Outcome.IGNORED,
    }

    drained = drain_all(drainer)

    assert drained.settled == {"applied": 1, "duplicate": 1, "stale": 1, "ignored": 1}
    assert {entry.event_id: entry.outcome for entry in inbox.list()} == {
        "a": "applied",
        "b": "duplicate",
        "c": "stale",
        "d": "ignored",
    }
    assert inbox.lanes() == []
    assert drainer.claim() is None


def test_portions_begin_small_and_grow(handler, drainer, park):
    """Nobody knows at first how slow a tenant's hooks are; then the portions double up to 128."""
    park(*(f"e{number:03d}" for number in range(400)))

    drained = drain_all(drainer)

    assert [len(call) for call in handler.calls] == [16, 32, 64, 128, 128, 32]
    assert drained.settled == {"applied": 400}


def test_portions_shrink_where_they_are_slow(handler, make_drainer, park):
    """A portion should be over long before the lease is."""
    now = [0.0]

    def work(ids):
        now[0] += len(ids)  # a second for each

    handler.first = work
    drainer = make_drainer(clock=lambda: now[0], patience=1000.0)
    park(*(f"e{number:02d}" for number in range(40)))

    drain_all(drainer)

    assert [len(call) for call in handler.calls] == [16, 4, 8, 2, 4, 6]


def test_a_lease_is_renewed_between_portions(handler, make_drainer, park, wait_of):
    """However long a lane takes, nobody else claims it meanwhile."""
    now, seen = [0.0], []

    def work(ids):
        seen.append(wait_of())
        now[0] += 20

    handler.first = work
    drainer = make_drainer(clock=lambda: now[0], patience=1000.0, lease=50.0)
    park(*(f"e{number:02d}" for number in range(20)))
    lane = drainer.claim()
    drainer._inbox.renew(lane, lease=5.0)

    drainer.drain(lane)

    assert seen[0] <= 5.0 < 40.0 < seen[1] <= 50.0


def test_an_event_with_a_reason_of_its_own_waits_by_itself(inbox, handler, drainer, park, wait_of):
    """A hook that fails for one event stops neither the lane nor the others."""
    park("a", "bad", "c")
    handler.answers["bad"] = HookFailed("hook welcome raised ValueError")

    drained = drain_all(drainer)

    assert (drained.settled, drained.delayed, drained.failed) == ({"applied": 2}, 1, 0)
    (entry,) = inbox.list(state=State.PARKED)
    assert (entry.event_id, entry.attempts) == ("bad", 1)
    assert entry.error == "hook welcome raised ValueError"
    assert 0.1 < wait_of() <= 0.5  # a second, less its jitter
    (lane,) = inbox.lanes()
    assert (lane.attempts, lane.error, lane.held_by) == (0, None, None)


@pytest.mark.parametrize("error", [HookFailed("no"), EventRefused("no")])
def test_an_event_that_fails_five_times_is_quarantined(
    inbox, handler, drainer, park, come_due, error
):
    """Four times it is put off, the fifth time it is given up, and the lane is empty."""
    park("bad")
    handler.answers["bad"] = error

    found = []
    for _ in range(5):
        come_due()
        drained = drain_all(drainer)
        found.append((drained.delayed, drained.quarantined))

    assert found == [(1, 0)] * 4 + [(0, 1)]
    assert states(inbox) == {"bad": State.QUARANTINED}
    come_due()
    assert drainer.claim() is None


def test_waiting_times_of_an_event_double(handler, drainer, park, come_due, wait_of):
    """One second, two, four and eight, less the jitter."""
    park("bad")
    handler.answers["bad"] = HookFailed("no")

    waits = []
    for _ in range(4):
        come_due()
        drain_all(drainer)
        waits.append(wait_of("inbox"))

    assert [round(wait * 2) for wait in waits] == [1, 2, 4, 8]


def test_a_tenant_that_is_down_has_its_lane_put_off(inbox, handler, drainer, park, wait_of):
    """Nothing is settled, and the reason stands in the lane."""
    park("a", "b")
    handler.answers["acme"] = DOWN

    drained = drain_all(drainer)

    assert (drained.settled, drained.failed, drained.error) == ({}, 1, "TenantUnavailable")
    assert states(inbox) == {"a": State.PARKED, "b": State.PARKED}
    assert [entry.attempts for entry in inbox.list()] == [0, 0]
    (lane,) = inbox.lanes()
    assert (lane.attempts, lane.error, lane.held_by) == (1, str(DOWN), None)
    assert 0.1 < wait_of() <= 0.5


def test_an_error_that_is_raised_counts_like_one_that_is_returned(inbox, handler, drainer, park):
    """It concerns all events of the portion."""
    park("a", "b")

    def fail(ids):
        raise TenantNotMigrated("run `tenantsync migrate upgrade`")

    handler.first = fail

    assert drain_all(drainer).error == "TenantNotMigrated"
    assert inbox.lanes()[0].attempts == 1


def test_waiting_times_of_a_lane_double_up_to_a_quarter_of_an_hour(
    handler, drainer, park, come_due, wait_of
):
    """However often it failed, it is tried at least that often."""
    park("a")
    handler.answers["acme"] = DOWN

    waits = []
    for _ in range(12):
        come_due()
        drain_all(drainer)
        waits.append(wait_of())

    assert [round(wait * 2) for wait in waits[:4]] == [1, 2, 4, 8]
    assert [round(wait * 2) for wait in waits[-2:]] == [900, 900]


def test_a_lane_that_failed_is_tried_with_one_event(handler, drainer, park, come_due, inbox):
    """Only when the tenant took that one do the others follow, a few at first."""
    park(*(f"e{number:02d}" for number in range(20)))
    handler.answers["acme"] = deque([DOWN, DOWN, None])
    drain_all(drainer)
    come_due()
    drain_all(drainer)
    come_due()

    drained = drain_all(drainer)

    assert [len(call) for call in handler.calls] == [16, 1, 1, 2, 4, 8, 5]
    assert (drained.settled, drained.failed) == ({"applied": 20}, 0)
    assert inbox.lanes() == []


def test_the_probe_is_not_always_the_same_event(handler, make_drainer, park, come_due):
    """One event that waits for a lock of its own would hold up all that are behind it."""
    park("a", "b", "c", "d")
    handler.answers["acme"] = DOWN
    chances = iter([0.0, 0.0, 0.0, 0.5, 0.0])
    drainer = make_drainer(jitter=lambda: next(chances))
    drain_all(drainer)

    for _ in range(2):
        come_due()
        drain_all(drainer)

    assert handler.calls[1:] == [["a"], ["c"]]


def test_what_is_ignored_proves_nothing_of_the_tenant(handler, drainer, park, come_due):
    """The tenant's database was not asked, so the next event is a probe again."""
    park("a", "b", "c", "d")
    handler.answers = {"acme": DOWN}
    drain_all(drainer)
    come_due()
    handler.answers = {"a": Outcome.IGNORED}

    drain_all(drainer)

    assert [len(call) for call in handler.calls[1:]] == [1, 1, 2]


def test_an_event_that_fails_alone_does_not_hold_up_its_lane(
    inbox, handler, drainer, park, come_due
):
    """Somebody holds a lock on one person's row: the thousands of others are applied."""
    ids = [f"e{number:02d}" for number in range(40)]
    park(*ids)
    stuck = {"e20", "e30"}

    def block(asked):
        if stuck & set(asked):
            raise TenantUnavailable("a statement took too long")

    handler.first = block

    drained = drain_all(drainer)

    assert drained.settled == {"applied": 38}
    assert (drained.delayed, drained.failed, drained.quarantined) == (2, 0, 0)
    assert {entry.event_id for entry in inbox.list(state=State.PARKED)} == stuck
    for _ in range(8):
        come_due()
        drain_all(drainer)
    assert {entry.state for entry in inbox.list() if entry.event_id in stuck} == {State.PARKED}
    stuck.clear()
    come_due()
    drain_all(drainer)
    assert inbox.lanes() == []


def test_a_tenant_that_goes_down_on_the_way_stops_its_lane(inbox, handler, drainer, park):
    """Two in a row fail alone: it is the tenant, and no event is blamed."""
    ids = [f"e{number:02d}" for number in range(40)]
    park(*ids)

    def go_down(asked):
        if len(handler.calls) > 1:
            raise DOWN

    handler.first = go_down

    drained = drain_all(drainer)

    assert (drained.settled, drained.delayed, drained.failed) == ({"applied": 16}, 0, 1)
    assert [len(call) for call in handler.calls] == [16, 24, 1, 1]
    assert inbox.lanes()[0].attempts == 1


def test_a_suspended_tenant_is_soon_not_asked_any_more(
    inbox, handler, drainer, park, come_due, wait_of
):
    """It is looked up anew, in case it was resumed in another process, and then left alone."""
    park("a")
    handler.answers["acme"] = TenantSuspended("tenant 'acme' is suspended")

    waits = []
    for _ in range(4):
        come_due()
        drain_all(drainer)
        waits.append(wait_of())

    assert [round(wait * 2) for wait in waits] == [1, 2, 4, 1800]
    assert handler.forgotten == ["acme"] * 4
    inbox.wake(["acme"])
    handler.answers.clear()
    assert drain_all(drainer).settled == {"applied": 1}


def test_a_resumed_tenant_is_not_taken_for_a_suspended_one(handler, drainer, park):
    """What this process remembered was old news."""
    park("a")
    handler.answers["acme"] = deque([TenantSuspended("suspended"), None])

    drained = drain_all(drainer)

    assert (drained.settled, drained.failed) == ({"applied": 1}, 0)


def test_a_lane_of_an_unknown_tenant_sleeps_until_it_is_woken(inbox, handler, drainer, park):
    """No worker looks at it in between."""
    park("a")
    handler.answers["acme"] = UnknownTenant("no tenant is registered under that id")

    found = [drain_all(drainer)]
    (lane,) = inbox.lanes()
    while lane.due_at is not None:
        assert lane.known
        found.append(drainer.drain(drainer.claim("acme")))
        (lane,) = inbox.lanes()

    assert [(drained.failed, drained.unknown) for drained in found] == [(1, 0)] * 3 + [(0, 1)]
    assert not lane.known
    assert drainer.claim() is None
    inbox.wake(["acme"])
    handler.answers.clear()
    assert drain_all(drainer).settled == {"applied": 1}


def test_an_announced_tenant_is_made_and_its_events_are_applied(inbox, handler, make_drainer, park):
    """The announcement may come after events, and far behind them."""
    park(*(f"e{number:02d}" for number in range(20)))
    park("announced", kind="tenant.created")
    handler.answers["acme"] = UnknownTenant("unknown")
    policy = Policy(handler)

    drained = drain_all(make_drainer(provisioning=policy))

    assert policy.made == ["acme"]
    assert (drained.provisioned, drained.settled) == (1, {"applied": 21})
    assert inbox.lanes() == []


@pytest.mark.parametrize(("announced", "allowed"), [(True, False), (False, True)])
def test_a_tenant_is_not_made_without_announcement_and_permission(
    handler, make_drainer, park, announced, allowed
):
    """Anybody can sign up at the provider."""
    park("a", kind="tenant.created" if announced else "member.joined")
    handler.answers["acme"] = UnknownTenant("unknown")
    policy = Policy(handler, allowed=allowed)

    drained = drain_all(make_drainer(provisioning=policy))

    assert (policy.made, drained.provisioned, drained.settled) == ([], 0, {})


def test_a_tenant_that_cannot_be_made_now_is_made_later(
    inbox, handler, make_drainer, park, wait_of
):
    """The policy says when: at most so many an hour."""
    park("a", kind="tenant.created")
    handler.answers["acme"] = UnknownTenant("unknown")
    error = TenantUnavailable("ten tenants were made within an hour")
    error.retry_in = 1234.0

    drained = drain_all(make_drainer(provisioning=Policy(handler, error=error)))

    assert (drained.failed, drained.unknown) == (1, 0)
    assert 1200 < wait_of() <= 1234
    assert inbox.lanes()[0].error == str(error)


def test_an_announced_tenant_is_strange_until_it_is_made(
    inbox, handler, make_drainer, park, come_due
):
    """A refusal leaves it so, whatever was thought before; being made ends that."""
    park("a", kind="tenant.created", known=True)
    handler.answers["acme"] = UnknownTenant("unknown")
    error = TenantUnavailable("ten tenants were made within an hour")
    for _ in range(5):
        drained = drain_all(make_drainer(provisioning=Policy(handler, error=error)))
        assert (drained.failed, drained.unknown) == (1, 0)
        (lane,) = inbox.lanes()
        assert (lane.known, lane.announced) == (False, True)
        come_due()
    assert inbox.totals().unknown == 1

    handler.answers["a"] = DOWN  # once it is made, it is down
    drain_all(make_drainer(provisioning=Policy(handler)))
    (lane,) = inbox.lanes()
    assert lane.known
    assert inbox.totals().unknown == 0


@pytest.mark.parametrize(
    ("result", "known"),
    [
        (DOWN, False),
        (TenantSuspended("it is suspended"), True),
        (HookFailed("its hook failed"), True),
        (RuntimeError("nobody foresaw it"), False),
    ],
)
def test_a_strangers_lane_is_known_once_its_tenant_was_found(
    inbox, handler, drainer, park, result, known
):
    """A database out of reach may be the one that says who is registered: it proves nothing."""
    park("a", known=False)
    handler.answers["a"] = result

    drainer.drain(drainer.claim("acme"))

    assert inbox.lanes()[0].known is known


def test_a_body_that_was_erased_is_settled_as_stale(inbox, handler, drainer, park, run):
    """The person was deleted for good; the tenant is not asked."""
    park("a")
    run("UPDATE inbox SET body = NULL")

    drained = drain_all(drainer)

    assert (drained.settled, handler.calls) == ({"stale": 1}, [])
    assert states(inbox) == {"a": State.APPLIED}


@pytest.mark.parametrize(
    "body", [b"{", body_of("member.joined", id="a", tenant="globex")], ids=["torn", "foreign"]
)
def test_what_cannot_be_this_tenants_event_is_quarantined(inbox, handler, drainer, park, body):
    """Another release may have parked it; nothing of it reaches the tenant."""
    park("a", body=body)
    park("b")

    drained = drain_all(drainer)

    assert (drained.quarantined, drained.settled) == (1, {"applied": 1})
    assert handler.calls == [["b"]]
    assert states(inbox) == {"a": State.QUARANTINED, "b": State.APPLIED}


def test_what_the_handler_cannot_read_is_quarantined_at_once(inbox, handler, drainer, park):
    """Four further tries would read the same."""
    park("a")
    handler.answers["a"] = Malformed("data.sub", "is missing")

    assert drain_all(drainer).quarantined == 1


def test_what_nobody_foresaw_is_logged_without_its_words(inbox, handler, drainer, park, caplog):
    """The class of the error is told; what it says may be somebody's name."""
    park("a")
    handler.answers["acme"] = ValueError("ann@example.test")

    with caplog.at_level(logging.DEBUG):
        drained = drain_all(drainer)

    assert (drained.failed, drained.error) == (1, "ValueError")
    (record,) = [each for each in caplog.records if each.message == "tenantsync.worker_failed"]
    assert record.error == "ValueError"
    assert all("ann@" not in str(vars(each)) for each in caplog.records)
    (lane,) = inbox.lanes()
    assert (lane.attempts, lane.held_by) == (1, None)
    assert "ann@" not in lane.error


def test_a_worker_that_was_away_too_long_settles_nothing(
    inbox, handler, make_drainer, park, come_due
):
    """The lease ran out while it applied, and somebody else drained the lane."""
    park("a", "b")
    late, other = make_drainer(owner="late"), make_drainer(owner="other")
    lane = late.claim()

    def be_late(ids):
        handler.first = lambda ids: None
        handler.answers = {"a": Outcome.APPLIED, "b": HookFailed("first")}
        come_due()
        assert drain_all(other).settled == {"applied": 1}
        handler.answers = {"a": Outcome.DUPLICATE, "b": Outcome.APPLIED}

    handler.first = be_late

    drained = late.drain(lane)

    assert (drained.lost, drained.error, drained.settled) == (1, "LeaseLost", {})
    found = {entry.event_id: (entry.state, entry.outcome) for entry in inbox.list()}
    assert found == {"a": (State.APPLIED, "applied"), "b": (State.PARKED, None)}


def test_a_lane_that_was_lost_is_lost_for_failures_as_well(
    inbox, handler, make_drainer, park, come_due
):
    """Who lost it does not put it off either."""
    park("a")
    late = make_drainer(owner="late")
    lane = late.claim()
    handler.answers["acme"] = DOWN
    come_due()
    assert make_drainer(owner="other").claim() is not None

    assert (late.drain(lane).lost, inbox.lanes()[0].held_by) == (1, "other")


def test_an_inbox_that_does_not_answer_is_the_callers_to_wait_for(
    control, handler, drainer, park, run
):
    """The lane comes free by itself when its lease ends."""
    park("a")
    handler.first = lambda ids: run("DROP TABLE inbox")

    with pytest.raises(ControlUnavailable):
        drain_all(drainer)


def test_other_lanes_have_their_turn(handler, make_drainer, park):
    """A backlog is drained between the others' ones and twos."""
    park(*(f"big{number:02d}" for number in range(60)), tenant="big")
    park("small", tenant="small")
    drainer = make_drainer(portions=1)

    lanes = []
    while (lane := drainer.claim()) is not None:
        lanes.append(lane.tenant_id)
        drained = drainer.drain(lane)
        assert drained.unfinished == (lane.tenant_id == "big" or drained.unfinished)

    assert lanes[:3] == ["big", "small", "big"]


def test_a_lane_is_left_after_a_while(handler, make_drainer, park):
    """Ten seconds by default, if its portions are slow."""
    now = [0.0]

    def work(ids):
        now[0] += 3

    handler.first = work
    park(*(f"e{number:03d}" for number in range(500)))

    drained = drain_all(make_drainer(clock=lambda: now[0]))

    assert (len(handler.calls), drained.unfinished) == (4, 1)


def test_stopping_finishes_the_portion_and_gives_the_lane_back(inbox, handler, drainer, park):
    """Nothing is left leased, and nothing more is begun."""
    park(*(f"e{number:03d}" for number in range(100)))
    handler.first = lambda ids: drainer.stopping.set()

    drained = drain_all(drainer)

    assert (drained.settled, drained.unfinished) == ({"applied": 16}, 1)
    (lane,) = inbox.lanes()
    assert (lane.waiting, lane.held_by) == (84, None)
    assert drainer.claim() is not None


def test_hooks_are_left_out_where_they_are_not_wanted(handler, make_drainer, park, monkeypatch):
    """The operator said so."""
    asked = []
    apply = handler.apply_parked

    def note(tenant_id, events, *, with_hooks):
        asked.append(with_hooks)
        return apply(tenant_id, events)

    monkeypatch.setattr(handler, "apply_parked", note)
    park("a")

    drain_all(make_drainer(with_hooks=False))

    assert asked == [False]


def test_the_moments_at_which_a_crash_must_do_no_harm_are_announced(
    handler, drainer, park, monkeypatch
):
    """Read, applied: between these and the settling a process may die."""
    seen = []
    monkeypatch.setattr(drain, "reach", lambda step: seen.append(step.value))
    handler.first = lambda ids: seen.append("apply")
    park("a")

    drain_all(drainer)

    assert seen == ["loaded", "apply", "drained", "loaded"]


def test_a_crash_after_the_tenants_commit_is_made_good(
    inbox, handler, drainer, park, come_due, monkeypatch
):
    """The inbox was not told; the next worker hears that the events are duplicates."""
    park("a", "b")

    def die(step):
        if step.value == "drained":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(drain, "reach", die)
        with suppress(KeyboardInterrupt):
            drain_all(drainer)
    assert set(states(inbox).values()) == {State.PARKED}
    handler.answers = {"a": Outcome.DUPLICATE, "b": Outcome.DUPLICATE}
    come_due()

    assert drain_all(drainer).settled == {"duplicate": 2}
    assert set(states(inbox).values()) == {State.APPLIED}
