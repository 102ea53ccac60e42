"""The worker: threads that drain lanes as they come due, and two that keep the house."""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from tenantsync.control.database import ControlMissing, ControlUnavailable
from tenantsync.control.inbox import Inbox
from tenantsync.sync.signals import Signals
from tenantsync.tenants import Tenant
from tenantsync.worker.drain import Drainer
from tenantsync.worker.prune import Pruner
from tenantsync.worker.seams import Drained

__all__ = ["Worker"]

_LOG: Final = logging.getLogger("tenantsync")

_GREET_EVERY: Final = 15.0  # longer than it is remembered that there is no such tenant
_PRUNE_EVERY: Final = 3600.0
_WOKEN_AT_ONCE: Final = 500


class Worker:
    """Drains the inbox, wakes the lanes of tenants that are new, and prunes what is too old.

    Any number of them, in any number of processes and on any number of machines, may share one
    PostgreSQL control database. Nothing that happens to a lane, to the control database or to a
    tenant ends its threads.

    Args:
        inbox: Where parked events are.
        drainer: Drains one lane.
        pruner: Removes what is too old, or None to leave that to other workers.
        tenants: Returns all tenants there are now.
        signals: Wakes this worker; whoever made it closes it. None where nobody sends signals.
        chores: What else is done for as long as it runs, each on a thread of its own, until the
            event that it is given is set.
        interval: Seconds between two looks at the inbox, at most, when nobody wakes the worker.
        threads: How many lanes are drained at once.
        breath: Seconds after a look in vain before the next one, however often the worker is woken.
        soonest: Seconds between the first and the second look in vain; doubled up to `interval`.
        clock: Monotonic seconds.
        jitter: A random number from 0 up to 1, so that many workers do not ask at once.
    """

    def __init__(
        self,
        inbox: Inbox,
        drainer: Drainer,
        pruner: Pruner | None = None,
        *,
        tenants: Callable[[], Iterable[Tenant]],
        signals: Signals | None = None,
        chores: Iterable[Callable[[threading.Event], object]] = (),
        interval: float = 5.0,
        threads: int = 2,
        breath: float = 0.1,
        soonest: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._inbox = inbox
        self._drainer = drainer
        self._pruner = pruner
        self._tenants = tenants
        self._signals = signals
        self._chores = tuple(chores)
        self._interval = interval
        self._count = threads
        self._breath = breath
        self._soonest = min(soonest, interval)
        self._clock = clock
        self._jitter = jitter
        self._stopping = drainer.stopping
        self._changed = threading.Condition()
        self._wakes = 0
        self._totals = Drained()
        self._troubled = False
        self._listening = False
        self._threads: list[threading.Thread] = []
        self._known: frozenset[str] | None = None
        self._newcomers: frozenset[str] = frozenset()

    def start(self) -> None:
        """Start the threads, unless they run already."""
        if any(thread.is_alive() for thread in self._threads):
            return
        self._stopping.clear()
        if self._signals is not None and not self._listening:
            self._listening = True
            self._signals.listen(self.wake)
        tasks: list[tuple[str, Callable[[], object]]] = [
            (f"tenantsync-worker-{number}", self._drain) for number in range(self._count)
        ]
        tasks.append(("tenantsync-greeter", self._greet))
        if self._pruner is not None:
            tasks.append(("tenantsync-pruner", self._prune))
        tasks += [
            (f"tenantsync-chore-{number}", partial(chore, self._stopping))
            for number, chore in enumerate(self._chores)
        ]
        # Daemons: whoever does not end in time when the process does leaves a lease that runs out.
        self._threads = [
            threading.Thread(target=task, name=name, daemon=True) for name, task in tasks
        ]
        for thread in self._threads:
            thread.start()

    def wake(self, tenant_id: str | None = None) -> None:
        """Look into the inbox soon. Quick, never raises, and may be called from any thread.

        Args:
            tenant_id: Whose lane is the reason. It is only a hint: what is due is what the inbox
                says, so that no flood of signals makes a worker ask a tenant that is down.
        """
        with self._changed:
            self._wakes += 1
            # One is enough: who finds something wakes the next.
            self._changed.notify()

    def stop(self, *, timeout: float = 30.0) -> bool:
        """Finish the portions in flight, give the leases back, and end the threads.

        Args:
            timeout: Seconds to wait for that, in all.

        Returns:
            Whether all threads ended in time.
        """
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        deadline = self._clock() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
        return not any(thread.is_alive() for thread in self._threads)

    def run(self, stop: threading.Event) -> bool:
        """Work until the event is set, then stop; return whether all ended in time."""
        self.start()
        # With a timeout: Python's signal handlers run in this thread, and after a SIGCONT the
        # kernel may give the signal to another one, which does not end a wait for ever.
        while not stop.wait(1.0):
            pass
        return self.stop()

    def drain_now(
        self,
        tenant_ids: Iterable[str],
        *,
        told: Callable[[str, Drained], object] | None = None,
    ) -> dict[str, Drained]:
        """Drain these tenants' lanes on the calling thread, whether they are due or not.

        A tenant without a lane, or whose lane somebody else drains at this moment, is left out.

        Args:
            tenant_ids: As AuthVital spells them.
            told: Called after each lane, with the tenant id and what became of it.

        Returns:
            What became of each lane, by tenant id.

        Raises:
            ControlUnavailable: The inbox does not answer.
        """
        answers: dict[str, Drained] = {}
        for tenant_id in dict.fromkeys(tenant_ids):
            while (lane := self._drainer.claim(tenant_id)) is not None:
                drained = self._drainer.drain(lane)
                self._add(drained)
                answers.setdefault(tenant_id, Drained()).add(drained)
                if not drained.unfinished or self._stopping.is_set():
                    break
            if told is not None and tenant_id in answers:
                told(tenant_id, answers[tenant_id])
        return answers

    def drain_due(self) -> Drained:
        """Drain on the calling thread what is due now, and return what became of it all.

        Raises:
            ControlUnavailable: The inbox does not answer.
        """
        total = Drained()
        failed: set[str] = set()
        while not self._stopping.is_set() and (lane := self._drainer.claim()) is not None:
            drained = self._drainer.drain(lane)
            self._add(drained)
            total.add(drained)
            if lane.tenant_id in failed:
                # It came due again, and all that were due before had their turn.
                break
            if drained.failed:
                failed.add(lane.tenant_id)
        return total

    def totals(self) -> Drained:
        """Return what this worker did since it was made."""
        totals = Drained()
        with self._changed:
            totals.add(self._totals)
        return totals

    def _add(self, drained: Drained) -> None:
        with self._changed:
            self._totals.add(drained)

    def _drain(self) -> None:
        pause = self._soonest
        while not self._stopping.is_set():
            seen = self._wakes
            found: bool | None = None
            with self._surviving():
                found = self._drain_one()
            if found is None:
                self._stopping.wait(self._interval)
            elif found:
                pause = self._soonest
            else:
                # What failed or was parked a moment ago is due in a second, then in two, in four:
                # looking at growing intervals meets it, however long the longest of them is.
                woken = self._sleep(seen, pause)
                pause = self._soonest if woken else min(pause * 2, self._interval)

    def _drain_one(self) -> bool:
        lane = self._drainer.claim()
        self._troubled = False
        if lane is None:
            return False
        self.wake()
        self._add(self._drainer.drain(lane))
        return True

    def _sleep(self, seen: int, pause: float) -> bool:
        """Wait until there may be something to do; return whether somebody said so."""
        # While a tenant is down, each of its events wakes us, and in vain.
        if self._stopping.wait(self._breath):
            return False
        with self._changed:
            self._changed.wait_for(
                lambda: self._wakes != seen or self._stopping.is_set(),
                pause * (0.75 + self._jitter() / 2),
            )
            return self._wakes != seen

    def _greet(self) -> None:
        """Wake the lanes of tenants that were registered: nobody else looks at them."""
        while not self._stopping.is_set():
            with self._surviving():
                self._greet_newcomers()
            self._stopping.wait(_GREET_EVERY * (0.75 + self._jitter() / 2))

    def _greet_newcomers(self) -> None:
        known = frozenset(tenant.id for tenant in self._tenants() if not tenant.suspended)
        first = self._known is None
        newcomers = known - (self._known or frozenset())
        # Twice: a worker that still remembered that there was no such tenant may have put the lane
        # back to sleep after the first time.
        woken = self._wake_lanes(newcomers | (self._newcomers & known))
        self._known = known
        self._newcomers = frozenset() if first else newcomers
        if woken:
            self.wake()

    def _wake_lanes(self, tenant_ids: Iterable[str]) -> int:
        ids = sorted(tenant_ids)
        portions = (
            ids[start : start + _WOKEN_AT_ONCE] for start in range(0, len(ids), _WOKEN_AT_ONCE)
        )
        return sum(self._inbox.wake(portion) for portion in portions)

    def _prune(self) -> None:
        # Begun at a moment of its own, so that many workers that started together do not all go
        # through the same tenants at once.
        pause = _PRUNE_EVERY * self._jitter()
        while not self._stopping.wait(pause):
            with self._surviving():
                self._pruned()
            pause = _PRUNE_EVERY * (0.75 + self._jitter() / 2)

    def _pruned(self) -> None:
        if self._pruner is not None:
            self._pruner.run(self._stopping)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except ControlMissing:
            return  # nothing was ever parked
        except ControlUnavailable as error:
            self._complain(error)
        except Exception as error:  # a thread that ended in silence would drain nothing for ever
            _log_failure(error)

    def _complain(self, error: ControlUnavailable) -> None:
        if not self._troubled:
            self._troubled = True
            _LOG.warning("tenantsync.inbox_unreachable", extra={"error": str(error)})


def _log_failure(error: Exception) -> None:
    # The class only: the words may repeat what an event says.
    _LOG.error("tenantsync.worker_failed", extra={"error": type(error).__name__})
