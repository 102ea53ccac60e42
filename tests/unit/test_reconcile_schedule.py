"""Whose turn it is, who takes it, and what becomes of it; on both kinds of control database."""

import threading
from dataclasses import replace

import pytest
from sqlalchemy import select, text, update

from tenantsync.control.database import ControlDatabase, ControlMissing, ControlUnavailable
from tenantsync.control.inbox import LeaseLost
from tenantsync.control.moments import NOW
from tenantsync.control.reconciliations import (
    Reconciliations,
    reconciliations,
    seconds_until_turn,
)
from tenantsync.migrate.control import upgrade_control
from tenantsync.sync.drift import State, TenantReport
from tenantsync.sync.reconcile import Stopped
from tenantsync.tenants import Placement, Tenant
from tenantsync.worker.schedule import ReconcileSchedule

HOUR = 3600.0
NOWHERE = Placement.of("sqlite:////nowhere/tenant.db")


@pytest.fixture
def control(database_url):
    with ControlDatabase(database_url) as database:
        upgrade_control(database)
        yield database


@pytest.fixture
def books(control):
    return Reconciliations(control)


def all_due(control):
    """Let every tenant's turn, or lease, be over a second ago."""
    past = "now() - interval '1 second'"
    if not control.placement.is_postgres:
        past = "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-1 second')"
    with control.write() as connection:
        connection.execute(text(f"UPDATE reconciliations SET due_at = {past}"))


def wait_of(control, tenant_id):
    """Return in how many seconds anyone may claim a tenant, by the database's clock."""
    due_at = Reconciliations(control).list([tenant_id])[tenant_id].due_at
    with control.read() as connection:
        return (due_at - connection.scalar(select(NOW))).total_seconds()


class Reconciling:
    """Reconciles nothing, and answers what it is told to.

    Args:
        state: How every tenant ends.
    """

    def __init__(self, state=State.DONE):
        self.state = state
        self.asked = []
        self.during = lambda tenant: None
        self.closed = False

    def close(self):
        self.closed = True

    def reconcile_tenant(self, tenant, *, with_hooks=True, on_portion=None):
        self.asked.append((tenant.key, with_hooks))
        self.during(tenant)
        report = TenantReport(tenant=tenant.key, tenant_id=tenant.id, state=self.state, why="so")
        try:
            on_portion(1, 2)
        except Stopped:
            return replace(report, state=State.SKIPPED)
        except LeaseLost:
            return replace(report, state=State.FAILED)
        return report


def schedule(books, reconciling, *names, **options):
    """Return a schedule of these tenants."""
    tenants = [Tenant(f"id-{name}", name, NOWHERE) for name in names]
    return ReconcileSchedule(
        books,
        reconciling,
        **{"tenants": lambda: tenants, "owner": "me", "every": HOUR, "jitter": lambda: 0.5}
        | options,
    )


# -- the table


def test_the_newest_snapshot_is_remembered(books):
    """One that was asked for earlier and is done later does not go back."""
    assert books.previous("acme") is None
    books.record("acme", 5)
    books.record("acme", 9)
    books.record("acme", 7)

    assert (books.previous("acme"), books.previous("ACME")) == (9, None)
    assert books.list(["acme", "none"])["acme"].reconciled_at is not None


def test_nothing_is_known_where_there_is_no_control_database(tmp_path):
    """Reading is no reason to make it; the first write has it made, if it is said how."""
    with ControlDatabase(f"sqlite:///{tmp_path / 'none.db'}") as database:
        assert Reconciliations(database).previous("acme") is None
        with pytest.raises(ControlMissing):
            Reconciliations(database).record("acme", 1)
        books = Reconciliations(database, prepare=lambda: upgrade_control(database))
        books.record("acme", 1)

        assert books.previous("acme") == 1


def test_everybody_gets_a_turn_within_the_interval(books, control):
    """Once; who has one keeps it, and what was recorded stays."""
    books.record("b", 5)

    assert books.enrol(["a", "b", "c"], every=HOUR) == 3
    first = books.list(["a", "b", "c"])
    assert books.enrol(["a", "b", "c"], every=HOUR) == 0
    assert books.list(["a", "b", "c"]) == first
    assert first["b"].snapshot == 5
    assert len({each.due_at for each in first.values()}) == 3
    assert books.claim("me") is None
    assert books.enrol(["a", "b", "c"], every=1.0) == 3  # a shorter interval counts at once


@pytest.mark.parametrize("every", [60.0, HOUR, 6 * HOUR, 30 * 24 * HOUR])
def test_turns_are_spread_over_the_interval_and_stay_where_they_are(every):
    """A tenth of the interval has about a tenth of the tenants, whenever one looks."""
    names = [f"id-{number}" for number in range(2000)]
    for now in (0.0, 1_795_405_281.5):
        waits = [seconds_until_turn(name, now, every) for name in names]
        tenths = [sum(int(wait / every * 10) == n for wait in waits) for n in range(10)]

        assert all(0 < wait <= every for wait in waits)
        assert all(150 < count < 250 for count in tenths)
    late = seconds_until_turn("id-1", 1_000.0, every)
    again = seconds_until_turn("id-1", 1_000.0 + late, every)
    assert again == pytest.approx(every, abs=1e-3) or again == pytest.approx(0, abs=1e-3)


def test_a_turn_is_leased_to_one(books, control):
    """Whoever has waited longest is first; a lease that ran out is another's, with a new token."""
    books.enrol(["a", "b"], every=HOUR)
    all_due(control)

    claims = [books.claim("me"), books.claim("me"), books.claim("me")]

    assert {claims[0].tenant_id, claims[1].tenant_id} == {"a", "b"}
    assert claims[2] is None
    all_due(control)
    other = next(each for each in (books.claim("you"), books.claim("you")) if each.tenant_id == "a")
    mine = next(each for each in claims[:2] if each.tenant_id == "a")
    for late in (
        lambda: books.renew(mine),
        lambda: books.finish(mine, every=HOUR),
        lambda: books.postpone(mine, retry_in=1.0, error="x"),
        lambda: books.forget(mine),
    ):
        with pytest.raises(LeaseLost):
            late()
    books.renew(other)
    books.finish(other, every=HOUR)
    with pytest.raises(LeaseLost):
        books.finish(other, every=HOUR)


def test_many_workers_share_the_turns(books, control):
    """Each tenant is claimed once, however many ask at the same time."""
    names = [f"id-{number}" for number in range(40)]
    books.enrol(names, every=HOUR)
    all_due(control)
    claimed, lock = [], threading.Lock()

    def work():
        while (claim := books.claim("me")) is not None:
            with lock:
                claimed.append(claim.tenant_id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(claimed) == sorted(names)


# -- the schedule


def test_a_turn_is_taken_and_comes_again(books, control):
    """Within the interval, at the tenant's own moment."""
    reconciling = Reconciling()
    working = schedule(books, reconciling, "a", "b", with_hooks=False)
    assert working.run_due() == []
    all_due(control)

    reports = working.run_due()

    assert sorted(reconciling.asked) == [("a", False), ("b", False)]
    assert [each.state for each in reports] == [State.DONE] * 2
    assert working.run_due() == []
    found = books.list(["id-a", "id-b"]).values()
    assert all(each.attempts == 0 and each.error is None for each in found)
    assert all(each.due_at is not None for each in found)


@pytest.mark.parametrize("state", [State.FAILED, State.REFUSED])
def test_what_failed_is_tried_again_later_and_later(books, control, state):
    """After a minute, then two, up to the interval; with the reason. Success forgets it."""
    reconciling = Reconciling(state)
    working = schedule(books, reconciling, "a", jitter=lambda: 1.0)
    working.run_due()
    waits, told = [], []
    for _ in range(9):
        all_due(control)
        working.run_due()
        found = books.list(["id-a"])["id-a"]
        told.append((found.attempts, found.error))
        waits.append(wait_of(control, "id-a"))

    assert told == [(number, "so") for number in range(1, 10)]
    # What the test itself took is gone from them.
    assert waits == pytest.approx([60, 120, 240, 480, 960, 1920, HOUR, HOUR, HOUR], abs=20)
    reconciling.state = State.DONE
    all_due(control)
    working.run_due()
    found = books.list(["id-a"])["id-a"]
    assert (found.attempts, found.error) == (0, None)


def test_what_was_held_back_waits_for_its_next_turn(books, control):
    """Asking again in a minute would say the same."""
    working = schedule(books, Reconciling(State.HELD_BACK), "a")
    working.run_due()
    all_due(control)
    working.run_due()

    assert books.list(["id-a"])["id-a"].attempts == 0


def test_a_tenant_that_is_none_any_more_is_forgotten(books, control):
    """And one that was added a moment ago is not."""
    tenants = [Tenant("id-a", "a", NOWHERE)]
    reconciling = Reconciling()
    working = schedule(books, reconciling, tenants=lambda: list(tenants))
    working.run_due()
    books.enrol(["id-gone", "id-new"], every=HOUR)
    tenants.append(Tenant("id-new", "new", NOWHERE))
    all_due(control)

    working.run_due()

    assert sorted(key for key, _ in reconciling.asked) == ["a", "new"]
    assert books.list(["id-a", "id-gone", "id-new"]).keys() == {"id-a", "id-new"}


@pytest.mark.parametrize("change", ["suspended", "moved", "gone"])
def test_what_an_operator_does_counts_while_others_are_due(books, control, change):
    """After a minute at most, however long the worker has had turns to take without a pause."""
    tenants = [Tenant("id-a", "a", NOWHERE), Tenant("id-b", "b", NOWHERE)]
    elsewhere = Placement.of("sqlite:////nowhere/else.db")
    seen, now = [], [1000.0]
    reconciling = Reconciling()

    def act(tenant):
        seen.append(tenant)
        if len(seen) > 1:
            return
        now[0] += 61.0
        (other,) = (each for each in tenants if each != tenant)
        tenants.remove(other)
        if change == "suspended":
            tenants.append(replace(other, suspended=True))
        elif change == "moved":
            tenants.append(replace(other, placement=elsewhere))

    reconciling.during = act
    working = schedule(books, reconciling, tenants=lambda: list(tenants), clock=lambda: now[0])
    books.enrol(["id-a", "id-b"], every=HOUR)
    all_due(control)

    working.run_due()

    if change == "gone":
        assert len(seen) == 1
        assert books.list(["id-a", "id-b"]).keys() == {seen[0].id}
    else:
        assert seen[1] == tenants[1]
        assert (seen[1].suspended, seen[1].placement == elsewhere) == (
            change == "suspended",
            change == "moved",
        )


def test_the_tenants_are_listed_once_a_minute(books, control):
    """Not for each turn: the list may be long, and in a database."""
    names = [f"t{number}" for number in range(5)]
    tenants = [Tenant(f"id-{name}", name, NOWHERE) for name in names]
    listed = []

    def list_them():
        listed.append(True)
        return tenants

    reconciling = Reconciling()
    working = schedule(books, reconciling, tenants=list_them, clock=lambda: 1000.0)
    books.enrol([tenant.id for tenant in tenants], every=HOUR)
    all_due(control)

    working.run_due()

    assert len(reconciling.asked) == len(names)
    assert len(listed) == 1


def test_a_tenant_whose_worker_was_killed_is_tried_again_after_a_quarter_of_an_hour(books, control):
    """Nothing gives its lease back; until it ends, nobody else begins with the tenant."""

    class Killed(BaseException):
        pass

    def die(tenant):
        raise Killed

    reconciling = Reconciling()
    reconciling.during = die
    working = schedule(books, reconciling, "a")
    working.run_due()
    all_due(control)

    with pytest.raises(Killed):
        working.run_due()

    assert wait_of(control, "id-a") == pytest.approx(900, abs=20)
    assert books.claim("you") is None
    all_due(control)
    claim = books.claim("you")
    assert claim is not None
    assert (claim.tenant_id, claim.attempts) == ("id-a", 0)


def test_a_worker_whose_lease_ran_out_changes_nothing(books, control):
    """Another one has the tenant by then."""
    reconciling = Reconciling()
    working = schedule(books, reconciling, "a")
    working.run_due()
    all_due(control)
    stolen = []

    def steal(tenant):
        all_due(control)
        stolen.append(books.claim("you"))

    reconciling.during = steal
    assert working.run_due() == []
    books.finish(stolen[0], every=HOUR)


def test_stopping_gives_the_tenant_back_at_once(books, control):
    """Its turn is not over: another worker goes on, or this one when it is back."""
    reconciling = Reconciling()
    working = schedule(books, reconciling, "a", pause=0.01)
    books.enrol(["id-a"], every=HOUR)
    all_due(control)
    begun, go = threading.Event(), threading.Event()

    def wait(tenant):
        begun.set()
        assert go.wait(30)

    reconciling.during = wait
    working.start()
    assert begun.wait(30)
    stopper = threading.Thread(target=working.stop)
    stopper.start()
    assert working._stopping.wait(30)
    go.set()
    stopper.join(30)

    assert not any(thread.is_alive() for thread in working._threads)
    assert reconciling.closed
    working.start()  # it is over
    assert working.stop()
    claim = books.claim("you")
    assert claim is not None
    assert (claim.tenant_id, claim.attempts) == ("id-a", 0)


def test_the_thread_survives_an_outage_of_the_control_database(books, control):
    """And takes the turns when it is back."""
    reconciling = Reconciling()
    outage = threading.Semaphore(2)

    class Shaky(Reconciliations):
        def claim(self, owner, *, lease=300.0):
            if outage.acquire(blocking=False):
                raise ControlUnavailable("gone") if outage._value else RuntimeError("odd")
            return super().claim(owner, lease=lease)

    done = threading.Event()
    reconciling.during = lambda tenant: done.set()
    working = schedule(Shaky(control), reconciling, "a", pause=0.01)
    books.enrol(["id-a"], every=HOUR)
    all_due(control)
    working.start()
    working.start()  # once is enough

    assert done.wait(30)
    assert working.stop()


def test_the_table_is_what_the_migration_made(control):
    """The columns that the statements name are there."""
    with control.write() as connection:
        connection.execute(update(reconciliations).values(due_at=None))
