"""A process that may start no more threads: senders have an answer, and later a good one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from guarding import ledger, make

from tenantsync.errors import TenantUnavailable
from tenantsync.observe import Outcome
from tenantsync.sync.batch import Applier
from tenantsync.sync.breaker import Breakers
from tenantsync.sync.hooks import Hooks
from tenantsync.sync.writer import Writer
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement

PLENTY = 30.0


@pytest.fixture
def hooks():
    return Hooks()


@pytest.fixture
def breakers():
    return Breakers(clock=lambda: 0.0)


@pytest.fixture
def writer(hooks, breakers):
    """A writer that must be able to close when the test is over."""
    with EngineRegistry() as registry:
        made = Writer(Applier(registry, DatabaseIsolation(None)), hooks, breakers=breakers)
        yield made
        closing = threading.Thread(target=made.close, daemon=True)
        closing.start()
        closing.join(PLENTY)
        assert not closing.is_alive(), "the writer waits for a lane that nobody works for"


@contextmanager
def no_threads(monkeypatch):
    """Have the process at its limit."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


def test_an_event_is_refused_and_the_next_one_written(writer, migrated_place, monkeypatch):
    """The lane that was meant for it does not stay behind without a writer."""
    with no_threads(monkeypatch):
        for number in range(2):
            with pytest.raises(TenantUnavailable, match="no more threads"):
                writer.write_blocking(
                    make("member.joined", id=f"e{number}"), migrated_place, timeout=PLENTY
                )
    outcome = writer.write_blocking(make("member.joined", id="e2"), migrated_place, timeout=PLENTY)

    assert outcome is Outcome.APPLIED
    assert ledger(migrated_place) == ["e2"]


def test_a_parked_event_is_refused_and_the_next_one_written(writer, migrated_place, monkeypatch):
    """The same for the places that are apart, which have threads of their own."""
    with no_threads(monkeypatch):
        results = writer.write_apart(
            [make("member.joined", id=name) for name in ("e0", "e1")], migrated_place
        )
    assert [type(result) for result in results] == [TenantUnavailable] * 2

    assert writer.write_apart([make("member.joined", id="e2")], migrated_place) == [Outcome.APPLIED]
    assert ledger(migrated_place) == ["e2"]


def test_a_probe_that_has_no_thread_is_made_later(writer, breakers, migrated_place, monkeypatch):
    """It says nothing of the place, and must not keep the next probe away."""
    now = [0.0]
    breakers._clock = lambda: now[0]
    for _ in range(3):
        breakers.failed(migrated_place)
    now[0] = 60.0
    with no_threads(monkeypatch), pytest.raises(TenantUnavailable, match="no more threads"):
        writer.write_blocking(make("member.joined", id="e0"), migrated_place, timeout=PLENTY)
    outcome = writer.write_blocking(make("member.joined", id="e1"), migrated_place, timeout=PLENTY)

    assert outcome is Outcome.APPLIED


def test_what_was_called_off_is_not_done_by_a_thread_that_comes_free(
    writer, hooks, migrated_place, monkeypatch
):
    """A call stays in a pool's queue although no thread was had for it: it finds nothing to do."""
    at_work, gate = threading.Event(), threading.Event()

    @hooks.on("member.left")
    def hold(event, session):
        at_work.set()
        assert gate.wait(PLENTY)

    elsewhere = Placement.of("sqlite:////nowhere/to/be/found.db")
    with ThreadPoolExecutor(1) as senders:
        held = senders.submit(
            writer.write_blocking, make("member.left", id="e0"), migrated_place, timeout=PLENTY
        )
        assert at_work.wait(PLENTY)
        with no_threads(monkeypatch), pytest.raises(TenantUnavailable, match="no more threads"):
            writer.write_blocking(make("member.joined", id="e1"), elsewhere, timeout=PLENTY)
        gate.set()
        assert held.result(PLENTY) in (Outcome.APPLIED, Outcome.STALE)

    outcome = writer.write_blocking(make("member.joined", id="e2"), migrated_place, timeout=PLENTY)
    assert outcome in (Outcome.APPLIED, Outcome.STALE)
    assert ledger(migrated_place) == ["e0", "e2"]


def test_a_mistake_of_our_own_keeps_no_sender_waiting(writer, breakers, migrated_place):
    """Not even where nothing was expected to go wrong."""

    def fail(place):
        raise ZeroDivisionError

    breakers.succeeded = fail
    for number in range(2):
        with pytest.raises(TenantUnavailable, match="ZeroDivisionError"):
            writer.write_blocking(
                make("member.joined", id=f"e{number}"), migrated_place, timeout=PLENTY
            )
    results = writer.write_apart([make("member.joined", id="e2")], migrated_place)
    assert [type(result) for result in results] == [TenantUnavailable]
    del breakers.succeeded

    outcome = writer.write_blocking(make("member.joined", id="e3"), migrated_place, timeout=PLENTY)
    assert outcome in (Outcome.APPLIED, Outcome.STALE)
