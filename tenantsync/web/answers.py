"""What a sender is told: from an outcome or an error to a status and a JSON body.

The provider has one URL and one circuit breaker for all tenants, and takes every status outside
2xx as a failure of that URL. So only what the sender can mend, or what may succeed later, is
anything else (docs/reference/http.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tenantsync.errors import Malformed, Rejected, TenantSyncError, UnknownTenant, Untrusted
from tenantsync.observe import Outcome

__all__ = [
    "ACKNOWLEDGED",
    "RETRY_AFTER",
    "Answer",
    "answer_error",
    "answer_outcome",
    "answer_quarantined",
]

RETRY_AFTER: Final = 10
"""Seconds after which a sender may try again what could not be taken."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer.

    Args:
        status: The HTTP status.
        body: What the JSON body says.
    """

    status: int
    body: Mapping[str, str]

    @property
    def retry_after(self) -> int | None:
        """Seconds for the `Retry-After` header, or None."""
        return RETRY_AFTER if self.status == 503 else None


ACKNOWLEDGED: Final = Answer(204, {})
"""What Pub/Sub takes for an acknowledgement; it has no body."""


def answer_outcome(outcome: Outcome, *, reason: str | None = None) -> Answer:
    """Return the answer to an event that was accepted."""
    body = {"outcome": outcome.value}
    if reason is not None:
        body["reason"] = reason
    return Answer(202 if outcome is Outcome.PARKED else 200, body)


def answer_quarantined(error: Malformed, outcome: Outcome = Outcome.PARKED) -> Answer:
    """Return the answer to an authentic body that is no event: which field is odd.

    Args:
        error: What is wrong with it.
        outcome: What became of it: `PARKED` if it was kept, `IGNORED` if there was no room.
    """
    return Answer(
        202,
        {
            "outcome": outcome.value,
            "reason": "malformed",
            "field": error.field,
            "detail": error.reason,
        },
    )


def answer_error(error: TenantSyncError) -> Answer:
    """Return the answer to an event that was neither applied nor parked.

    What went wrong inside is not told to strangers: only a rejected delivery gets its reason.
    """
    if isinstance(error, UnknownTenant):
        return Answer(202, {"outcome": Outcome.IGNORED.value, "reason": "unknown tenant"})
    if isinstance(error, Malformed):
        return Answer(400, {"error": "malformed", "field": error.field, "reason": error.reason})
    if isinstance(error, Untrusted):
        return Answer(401, {"error": "untrusted", "reason": str(error)})
    if isinstance(error, Rejected):
        return Answer(400, {"error": "rejected", "reason": str(error)})
    return Answer(503, {"error": "unavailable", "reason": type(error).__name__})
