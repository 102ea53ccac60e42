"""A circuit breaker per place: who failed three times in a row is left alone for a while.

What it saves is not the failing tenant's time but everybody else's: an event for a place whose
breaker is open costs microseconds, and not the timeouts of a database that does not answer.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from tenantsync.errors import TenantUnavailable
from tenantsync.tenants import Placement

__all__ = ["Admission", "BreakerOpen", "Breakers", "backoff"]

_MOST_DOUBLINGS: Final = 62  # far beyond any `longest`, and no overflow
_MOST_PLACES: Final = 20_000


class BreakerOpen(TenantUnavailable):
    """The place failed several times in a row; it is asked again after a while."""


class Admission(Enum):
    """What a breaker says to a transaction that would begin."""

    GO = "go"
    """Nothing is known against the place."""
    PROBE = "probe"
    """The place failed; this one transaction finds out whether it still does."""
    REFUSED = "refused"
    """The place fails; it is not asked."""


@dataclass(slots=True)
class _Circuit:
    """What is known of a place that failed.

    Args:
        failures: How many of its transactions failed in a row.
        until: When the next transaction may ask; 0 while the breaker is closed.
        probing: Whether a probe is under way.
    """

    failures: int = 0
    until: float = 0.0
    probing: bool = False


class Breakers:
    """One breaker for each place. May be used from any thread.

    Args:
        threshold: After how many failed transactions in a row a place's breaker opens.
        first: Seconds until the first probe; doubled after each that fails.
        longest: Seconds between two probes at most.
        patience: Seconds after which a probe of which nothing was heard does not count any more.
        clock: Monotonic seconds.
        jitter: A random number from 0 to 1, so that many processes do not probe at once.
    """

    def __init__(
        self,
        *,
        threshold: int = 3,
        first: float = 1.0,
        longest: float = 900.0,
        patience: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._threshold = threshold
        self._first = first
        self._longest = longest
        self._patience = patience
        self._clock = clock
        self._jitter = jitter
        self._lock = threading.Lock()
        self._circuits: dict[Placement, _Circuit] = {}  # only places that failed

    def admit(self, place: Placement) -> Admission:
        """Say whether a transaction may begin; who is told PROBE has to tell the result."""
        if self.quiet:  # no lock, and no hash of the place
            return Admission.GO
        with self._lock:
            circuit = self._circuits.get(place)
            if circuit is None or circuit.failures < self._threshold:
                return Admission.GO
            now = self._clock()
            if now < circuit.until:
                return Admission.REFUSED
            circuit.probing = True
            # Until it is told how that went; and if it never is, a later one may go.
            circuit.until = now + self._patience
            return Admission.PROBE

    def failed(self, place: Placement) -> None:
        """Count a transaction that failed for a reason of the place."""
        with self._lock:
            circuit = self._circuits.get(place)
            if circuit is None:
                if len(self._circuits) >= _MOST_PLACES:  # of tenants that are gone, most likely
                    del self._circuits[next(iter(self._circuits))]
                circuit = self._circuits[place] = _Circuit()
            circuit.failures += 1
            circuit.probing = False
            over = circuit.failures - self._threshold
            if over >= 0:
                circuit.until = self._clock() + backoff(
                    over + 1, first=self._first, longest=self._longest, jitter=self._jitter
                )

    def abandoned(self, place: Placement) -> None:
        """Take back a probe that could not be made, for a reason that is not the place's."""
        with self._lock:
            circuit = self._circuits.get(place)
            if circuit is not None and circuit.probing:
                circuit.probing = False
                circuit.until = self._clock()

    def succeeded(self, place: Placement) -> bool:
        """Close the place's breaker, and return whether it was open."""
        if self.quiet:
            return False
        with self._lock:
            circuit = self._circuits.pop(place, None)
            return circuit is not None and circuit.failures >= self._threshold

    @property
    def quiet(self) -> bool:
        """Whether no place at all failed lately: then there is nothing to ask."""
        return not self._circuits

    def suspects(self, place: Placement) -> bool:
        """Whether the place's last transaction failed."""
        return place in self._circuits

    def is_open(self, place: Placement) -> bool:
        """Whether the place failed so often that it is asked by probes only."""
        if self.quiet:
            return False
        with self._lock:
            circuit = self._circuits.get(place)
            return circuit is not None and circuit.failures >= self._threshold

    @property
    def opened(self) -> int:
        """How many places are asked by probes only."""
        with self._lock:
            return sum(each.failures >= self._threshold for each in self._circuits.values())


def backoff(
    failures: int,
    *,
    first: float = 1.0,
    longest: float = 900.0,
    jitter: Callable[[], float] = random.random,
) -> float:
    """Return how many seconds to wait after so many failures in a row, at least one.

    Doubled with each failure up to `longest`; then something between half of that and all of it,
    so that those who failed together do not come back together.

    Args:
        failures: In a row, from 1.
        first: Seconds after the first failure.
        longest: Seconds at most.
        jitter: A random number from 0 to 1.
    """
    whole = min(longest, first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
    return whole * (1 + jitter()) / 2
