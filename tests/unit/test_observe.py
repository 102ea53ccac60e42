"""Observers: what they see, what they count, and that they never get in the way."""

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from tenantsync.observe import Delivery, LoggingObserver, Observers, Outcome, OutcomeCounter


def delivery(
    outcome: Outcome | None = Outcome.APPLIED,
    *,
    reason: str | None = None,
    error: str | None = None,
) -> Delivery:
    return Delivery(
        event_id="e1",
        event_type="member.joined",
        tenant="acme",
        outcome=outcome,
        reason=reason,
        error=error,
        seconds=0.25,
        door="webhook",
    )


def test_outcomes_are_the_words_of_the_answers():
    """The outcomes are written as the answers of the door spell them."""
    assert [str(o) for o in Outcome] == ["applied", "duplicate", "stale", "ignored", "parked"]


@pytest.mark.parametrize(
    ("seen", "failed"),
    [
        (delivery(), False),
        (delivery(Outcome.PARKED), False),
        (delivery(None, error="Untrusted"), True),
        (delivery(Outcome.PARKED, error="TenantUnavailable"), True),
    ],
)
def test_a_delivery_knows_whether_it_failed(seen, failed):
    """No outcome, or an error, is a failure."""
    assert failed == seen.failed


def test_the_log_has_a_stable_name_and_the_fields(caplog):
    """A record is named `tenantsync.delivered` and carries the delivery's fields."""
    with caplog.at_level(logging.INFO, logger="tenantsync"):
        LoggingObserver()(delivery(Outcome.IGNORED, reason="other_application"))

    (record,) = caplog.records
    assert (
        record.name,
        record.message,
        record.levelno,
    ) == ("tenantsync", "tenantsync.delivered", logging.INFO)
    assert {
        "event_id": "e1",
        "event_type": "member.joined",
        "tenant": "acme",
        "outcome": "ignored",
        "reason": "other_application",
        "error": None,
        "seconds": 0.25,
        "door": "webhook",
    }.items() <= vars(record).items()


def test_a_failure_is_logged_as_a_warning(caplog):
    """A delivery that failed stands out in the log."""
    LoggingObserver(logging.getLogger("tenantsync.door"))(delivery(None, error="Untrusted"))

    (record,) = caplog.records
    assert (
        record.name,
        record.levelno,
        record.outcome,
    ) == ("tenantsync.door", logging.WARNING, None)


def test_counts_have_every_key_from_the_start():
    """A counter that saw nothing says zero for everything."""
    counter = OutcomeCounter()

    assert counter.counts() == {
        "applied": 0,
        "duplicate": 0,
        "stale": 0,
        "ignored": 0,
        "parked": 0,
        "failed": 0,
    }
    assert counter.reasons() == {}


def test_counts_are_by_outcome_and_by_reason():
    """Outcomes and reasons are counted; an error stands in for a reason that is missing."""
    counter = OutcomeCounter()
    for seen in (
        delivery(),
        delivery(),
        delivery(Outcome.IGNORED, reason="other_application"),
        delivery(None, error="Untrusted"),
        delivery(None, error="Malformed", reason="data.sub"),
    ):
        counter(seen)

    counts = counter.counts()
    assert (counts["applied"], counts["ignored"], counts["failed"]) == (2, 1, 2)
    assert counter.reasons() == {"other_application": 1, "Untrusted": 1, "data.sub": 1}


def test_reasons_that_vary_do_not_fill_the_memory():
    """Beyond 64 reasons the further ones are counted together."""
    counter = OutcomeCounter()
    for number in range(100):
        counter(delivery(Outcome.IGNORED, reason=f"reason {number}"))

    reasons = counter.reasons()
    assert (len(reasons), reasons["other"]) == (65, 36)


def test_what_is_returned_is_a_copy():
    """Whoever asks for the counts cannot change them."""
    counter = OutcomeCounter()
    counter.counts()["applied"] = 7
    counter.reasons()["other"] = 7

    assert (counter.counts()["applied"], counter.reasons()) == (0, {})


def test_counting_from_many_threads_loses_nothing():
    """Several threads count at once."""
    counter = OutcomeCounter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(counter, [delivery(reason="r")] * 4_000))

    assert (counter.counts()["applied"], counter.reasons()) == (4_000, {"r": 4_000})


def test_an_observer_that_raises_is_logged_and_the_others_are_told(caplog):
    """Watching a delivery never changes what becomes of it."""
    seen: list[Delivery] = []

    def broken(_delivery: Delivery) -> None:
        raise RuntimeError("no space left")

    told = delivery()
    Observers([broken, seen.append])(told)

    (record,) = caplog.records
    assert ([told], "tenantsync.observer_failed") == (seen, record.message)
    assert "broken" in record.observer


def test_no_observers_is_fine_too():
    """Nobody has to watch."""
    assert Observers()(delivery()) is None


def test_an_observer_of_a_class_is_named_by_its_class(caplog):
    """The log names the observer that raised, also where it is an object."""

    class Broken:
        def __call__(self, _delivery: Delivery) -> None:
            raise ValueError("broken")

    Observers([Broken()])(delivery())

    assert caplog.records[0].observer.endswith("Broken")
