"""What a sender is told, for every outcome and every error that there is."""

import pytest

from tenantsync import errors
from tenantsync.observe import Outcome
from tenantsync.web.answers import (
    ACKNOWLEDGED,
    RETRY_AFTER,
    answer_error,
    answer_outcome,
    answer_quarantined,
)

SECRET = "postgresql://app:hunter2@db/main"
UNTOLD = dict.fromkeys(errors.__all__, 503) | {
    "Untrusted": 401,
    "Malformed": 400,
    "Rejected": 400,
    "UnknownTenant": 202,
}


def made(name):
    kind = getattr(errors, name)
    if name == "Malformed":
        return kind("data.sub", "is missing")
    return kind("acme", None, SECRET) if name == "MigrationFailed" else kind(SECRET)


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_a_2xx(outcome):
    """Only what is parked is not done yet: 202."""
    answer = answer_outcome(outcome)

    assert answer.status == (202 if outcome is Outcome.PARKED else 200)
    assert answer.body == {"outcome": outcome.value}
    assert answer.retry_after is None


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_has_a_status(name):
    """4xx is the sender's fault, 503 may succeed later and says when, 202 is none of ours."""
    answer = answer_error(made(name))

    assert answer.status == UNTOLD[name]
    assert answer.retry_after == (RETRY_AFTER if answer.status == 503 else None)


@pytest.mark.parametrize("name", [name for name, status in UNTOLD.items() if status == 503])
def test_what_went_wrong_inside_is_not_told(name):
    """The sender is a stranger: the class's name is all it hears of the inside."""
    assert answer_error(made(name)).body == {"error": "unavailable", "reason": name}


def test_a_malformed_event_names_its_field():
    """The sender can mend it."""
    assert answer_error(made("Malformed")).body == {
        "error": "malformed",
        "field": "data.sub",
        "reason": "is missing",
    }


def test_an_ignored_event_may_say_why():
    """A reason stands beside the outcome."""
    answer = answer_outcome(Outcome.IGNORED, reason="other application")

    assert answer.body == {"outcome": "ignored", "reason": "other application"}


def test_what_is_malformed_and_kept_names_its_field_too():
    """202, since it is not lost; a person at the other end can still mend it."""
    answer = answer_quarantined(errors.Malformed("data.sub", "is missing"))

    assert (answer.status, answer.retry_after) == (202, None)
    assert answer.body == {
        "outcome": "parked",
        "reason": "malformed",
        "field": "data.sub",
        "detail": "is missing",
    }


def test_an_acknowledgement_is_silent():
    """204 has no body (RFC 9110, section 15.3.5)."""
    assert (ACKNOWLEDGED.status, ACKNOWLEDGED.body) == (204, {})
