"""The breaker: when it opens, who may probe, how long it waits, when it closes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tenantsync.errors import TenantUnavailable
from tenantsync.sync.breaker import Admission, BreakerOpen, Breakers, backoff
from tenantsync.tenants import Placement

PLACE = Placement.of("sqlite:///one.db")
OTHER = Placement.of("sqlite:///other.db")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breakers(clock: Clock) -> Breakers:
    """Give breakers whose backoff is always all that it may be."""
    return Breakers(first=1.0, longest=8.0, patience=60.0, clock=clock, jitter=lambda: 1.0)


def fail(breakers, times, place=PLACE):
    for _ in range(times):
        breakers.failed(place)


def test_nobody_is_refused_who_never_failed(breakers):
    """A place of which nothing is known may go, and is not open."""
    assert breakers.quiet
    assert breakers.admit(PLACE) is Admission.GO
    assert not breakers.is_open(PLACE)
    assert not breakers.suspects(PLACE)
    assert breakers.succeeded(PLACE) is False


def test_the_third_failure_in_a_row_opens_it(breakers):
    """Two failures make a suspect, the third one opens; other places are not concerned."""
    fail(breakers, 2)
    assert breakers.suspects(PLACE)
    assert (breakers.admit(PLACE), breakers.is_open(PLACE)) == (Admission.GO, False)

    breakers.failed(PLACE)

    assert (breakers.admit(PLACE), breakers.is_open(PLACE)) == (Admission.REFUSED, True)
    assert (breakers.admit(OTHER), breakers.is_open(OTHER)) == (Admission.GO, False)
    breakers.failed(OTHER)
    assert breakers.opened == 1
    assert breakers.suspects(OTHER)


def test_a_success_between_failures_starts_the_count_anew(breakers):
    """Only failures in a row count; closing what was not open is no recovery."""
    fail(breakers, 2)
    assert breakers.succeeded(PLACE) is False
    fail(breakers, 2)

    assert not breakers.is_open(PLACE)


def test_after_the_backoff_exactly_one_may_probe(breakers, clock):
    """The first to come after the backoff is the probe; who comes while it runs is refused."""
    fail(breakers, 3)
    clock.now += 0.999
    assert breakers.admit(PLACE) is Admission.REFUSED
    clock.now += 0.001

    assert breakers.admit(PLACE) is Admission.PROBE
    assert breakers.admit(PLACE) is Admission.REFUSED
    assert breakers.is_open(PLACE)


def test_of_many_threads_one_probes(breakers, clock):
    """Whoever asks at the same moment, one is told to probe."""
    fail(breakers, 3)
    clock.now += 1
    start = threading.Barrier(8)

    def ask(_):
        start.wait(30)
        return breakers.admit(PLACE)

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(ask, range(8)))

    assert sorted(admission.value for admission in told) == ["probe"] + ["refused"] * 7


def test_a_probe_that_succeeds_closes_it(breakers, clock):
    """Then it is as if nothing had been, and who closed it is told so, once."""
    fail(breakers, 3)
    clock.now += 1
    breakers.admit(PLACE)

    assert [breakers.succeeded(PLACE) for _ in range(2)] == [True, False]
    assert breakers.quiet
    assert breakers.admit(PLACE) is Admission.GO


def test_each_probe_that_fails_doubles_the_wait(breakers, clock):
    """One second, two, four, eight, and no more than the longest."""
    fail(breakers, 3)
    for wait in (1, 2, 4, 8, 8, 8):
        clock.now += wait - 0.001
        assert breakers.admit(PLACE) is Admission.REFUSED
        clock.now += 0.001
        assert breakers.admit(PLACE) is Admission.PROBE
        breakers.failed(PLACE)


def test_a_probe_that_was_not_made_may_be_made_by_another(breakers, clock):
    """No connection was free: nothing is known, so the next one may ask at once."""
    fail(breakers, 3)
    clock.now += 1
    breakers.admit(PLACE)
    breakers.abandoned(PLACE)

    assert breakers.admit(PLACE) is Admission.PROBE


def test_what_is_abandoned_without_a_probe_opens_nothing(breakers):
    """A transaction that says nothing of the place leaves an open breaker open."""
    breakers.abandoned(PLACE)
    fail(breakers, 3)
    breakers.abandoned(PLACE)

    assert breakers.admit(PLACE) is Admission.REFUSED


def test_a_probe_of_which_nothing_is_heard_does_not_count_for_ever(breakers, clock):
    """Whoever was to tell died: after the patience another one may probe."""
    fail(breakers, 3)
    clock.now += 1
    breakers.admit(PLACE)
    clock.now += 59.9
    assert breakers.admit(PLACE) is Admission.REFUSED
    clock.now += 0.1

    assert breakers.admit(PLACE) is Admission.PROBE


@pytest.mark.parametrize(
    ("failures", "jitter", "expected"),
    [
        (1, 0.0, 0.5),
        (1, 1.0, 1.0),
        (2, 1.0, 2.0),
        (10, 1.0, 512.0),
        (11, 0.0, 450.0),
        (11, 1.0, 900.0),
        (10_000, 1.0, 900.0),
    ],
)
def test_the_backoff_doubles_up_to_a_bound_and_is_spread(failures, jitter, expected):
    """Between half and all of one second, two, four, and at last of a quarter of an hour."""
    assert backoff(failures, jitter=lambda: jitter) == expected


def test_an_open_breaker_is_an_unavailable_tenant():
    """Who handles unavailable tenants need not know of breakers; the event may succeed later."""
    assert issubclass(BreakerOpen, TenantUnavailable)
    assert BreakerOpen.retry
    assert not BreakerOpen.blames_event


def test_the_places_of_gone_tenants_do_not_pile_up(clock):
    """Beyond a bound the place that failed first is forgotten."""
    breakers = Breakers(threshold=1, clock=clock)
    places = [Placement.of(f"sqlite:///{number}.db") for number in range(20_001)]
    for place in places:
        breakers.failed(place)

    assert not breakers.is_open(places[0])
    assert breakers.is_open(places[1])
    assert breakers.is_open(places[-1])
