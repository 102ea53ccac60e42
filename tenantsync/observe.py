"""What became of each event: one Delivery record, and those who listen to it.

Logging and counting live here; metrics and tracing are further listeners. A record names the event,
the tenant's key and the outcome; it never holds a body, a claim or anybody's name.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

__all__ = [
    "Delivery",
    "LoggingObserver",
    "Observer",
    "Observers",
    "Outcome",
    "OutcomeCounter",
]

_MAX_REASONS = 64  # a counter lives as long as the process; a reason that varies must not fill it
_OTHER = "other"
_FAILED = "failed"


class Outcome(StrEnum):
    """What became of an event that was accepted."""

    APPLIED = "applied"
    """At least one value of it won, or a row or tombstone was made."""

    DUPLICATE = "duplicate"
    """The tenant's database has seen its id before."""

    STALE = "stale"
    """All that it says is older than what the row holds."""

    IGNORED = "ignored"
    """It is none of ours, or of a type that changes nothing."""

    PARKED = "parked"
    """It is stored durably and will be applied later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What became of one event: the only thing that observers ever see.

    Args:
        event_id: The event's id, at most 255 bytes of UTF-8; empty where none could be read.
        event_type: Its type, such as `"member.joined"`; empty where none could be read.
        tenant: The tenant's key, or None where no tenant was found.
        outcome: What became of it, or None where it was refused or failed.
        reason: Why, as one of a few stable words such as `"other_application"`, or None.
        error: Class name of the error where it was refused or failed, else None.
        seconds: Time from its arrival to its answer.
        door: How it came in, such as `"webhook"`.
    """

    event_id: str
    event_type: str
    tenant: str | None
    outcome: Outcome | None
    reason: str | None = None
    error: str | None = None
    seconds: float
    door: str

    @property
    def failed(self) -> bool:
        """Whether the event was refused or could not be handled."""
        return self.outcome is None or self.error is not None


class Observer(Protocol):
    """Anything that wants to know what became of each event.

    It is called on the thread that handled the event, after the commit: it should be quick, and it
    must be safe to call from several threads at once.
    """

    def __call__(self, delivery: Delivery, /) -> None:
        """Take note of one delivery."""


class LoggingObserver:
    """Writes one log record per delivery, named `tenantsync.delivered`.

    The fields of the delivery are attributes of the record (`extra`), for a structured formatter.
    The level is INFO, and WARNING where the event was refused or failed.

    Args:
        logger: Where to write; the logger `tenantsync` by default.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("tenantsync")

    def __call__(self, delivery: Delivery, /) -> None:
        """Write the record."""
        self._logger.log(
            logging.WARNING if delivery.failed else logging.INFO,
            "tenantsync.delivered",
            extra={
                "event_id": delivery.event_id,
                "event_type": delivery.event_type,
                "tenant": delivery.tenant,
                "outcome": None if delivery.outcome is None else delivery.outcome.value,
                "reason": delivery.reason,
                "error": delivery.error,
                "seconds": delivery.seconds,
                "door": delivery.door,
            },
        )


class OutcomeCounter:
    """Counts deliveries by outcome and by reason, since it was made; safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def __call__(self, delivery: Delivery, /) -> None:
        """Count one delivery."""
        outcome = _FAILED if delivery.outcome is None else delivery.outcome.value
        reason = delivery.reason or delivery.error
        with self._lock:
            self._outcomes[outcome] += 1
            if reason is not None:
                known = reason in self._reasons or len(self._reasons) < _MAX_REASONS
                self._reasons[reason if known else _OTHER] += 1

    def counts(self) -> dict[str, int]:
        """Return how many there were of each outcome: every key is always there.

        The keys are the values of `Outcome`, and `"failed"` for those without one.
        """
        with self._lock:
            return {key: self._outcomes[key] for key in (*map(str, Outcome), _FAILED)}

    def reasons(self) -> dict[str, int]:
        """Return how many there were of each reason, or of each error where no reason was given.

        Beyond 64 different reasons, further ones are counted as `"other"`.
        """
        with self._lock:
            return dict(self._reasons)


class Observers:
    """Tells several observers; itself an observer.

    An observer that raises is logged and the others are still told: watching a delivery never
    changes what becomes of it.

    Args:
        observers: Whom to tell, in this order.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)
        self._logger = logging.getLogger("tenantsync")

    def __call__(self, delivery: Delivery, /) -> None:
        """Tell every observer."""
        for observer in self._observers:
            try:
                observer(delivery)
            except Exception:
                self._logger.exception(
                    "tenantsync.observer_failed",
                    extra={"observer": _name_of(observer), "event_id": delivery.event_id},
                )


def _name_of(observer: Observer) -> str:
    return getattr(observer, "__qualname__", type(observer).__qualname__)
