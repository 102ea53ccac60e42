"""Reconciles every tenant once an interval, shared between any number of workers.

Each tenant has its own moment of the interval, so that the provider is asked evenly. The worker
that is first leases the tenant in the control database.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from tenantsync.control.database import ControlUnavailable
from tenantsync.control.inbox import LeaseLost
from tenantsync.control.reconciliations import Claim, Reconciliations
from tenantsync.sync.breaker import backoff
from tenantsync.sync.drift import State, TenantReport
from tenantsync.sync.reconcile import Stopped
from tenantsync.tenants import Tenant

__all__ = ["ReconcileSchedule", "ReconcilesTenants"]

_LOG: Final = logging.getLogger("tenantsync")

_ENROL_EVERY: Final = 60.0
_FIRST_RETRY: Final = 60.0
_LEASE: Final = 900.0
"""Seconds: fetching a list may take minutes, in which nobody renews it. And a list that kills
whoever reads it must not kill a worker each minute."""


class ReconcilesTenants(Protocol):
    """What reconciles one tenant: `Reconciler` does."""

    def reconcile_tenant(
        self,
        tenant: Tenant,
        *,
        with_hooks: bool = True,
        on_portion: Callable[[int, int], object] | None = None,
    ) -> TenantReport:
        """Reconcile one tenant on the calling thread, and say what became of it."""

    def close(self) -> None:
        """Close the connections to the provider."""


class ReconcileSchedule:
    """Reconciles tenants when their turn comes, in threads of its own.

    Args:
        reconciliations: Whose turn it is.
        reconciler: Reconciles; closed when this is stopped.
        tenants: Returns all tenants there are now.
        owner: Who this is, for people who look into the table.
        every: Seconds between two turns of a tenant.
        with_hooks: Whether the application's hooks hear of those who left.
        threads: How many tenants are reconciled at once.
        lease: Seconds after which a tenant whose worker died is another's.
        pause: Seconds between two looks at whose turn it is.
        clock: Monotonic seconds.
        jitter: A random number from 0 up to 1, so that many workers do not ask at once.
    """

    def __init__(
        self,
        reconciliations: Reconciliations,
        reconciler: ReconcilesTenants,
        *,
        tenants: Callable[[], Iterable[Tenant]],
        owner: str,
        every: float,
        with_hooks: bool = True,
        threads: int = 1,
        lease: float = _LEASE,
        pause: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._reconciliations = reconciliations
        self._reconciler = reconciler
        self._tenants = tenants
        self._owner = owner
        self._every = every
        self._with_hooks = with_hooks
        self._count = threads
        self._lease = lease
        self._pause = min(pause, every / 2)
        self._clock = clock
        self._jitter = jitter
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._enrolled_at: float | None = None
        self._known: dict[str, Tenant] = {}
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads, unless they were started already."""
        if self._threads or self._stopping.is_set():
            return
        # Daemons: whoever does not end in time when the process does leaves a lease that runs out.
        self._threads = [
            threading.Thread(target=self._work, name=f"tenantsync-reconcile-{number}", daemon=True)
            for number in range(self._count)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, *, timeout: float = 30.0) -> bool:
        """Leave the tenants under way after their portion, give the leases back, end the threads.

        For good: make another one to go on.

        Args:
            timeout: Seconds to wait for that, in all.

        Returns:
            Whether all threads ended in time.
        """
        self._stopping.set()
        deadline = self._clock() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
        ended = not any(thread.is_alive() for thread in self._threads)
        if ended:
            self._reconciler.close()
        return ended

    def run_due(self) -> list[TenantReport]:
        """Reconcile on the calling thread everybody whose turn it is now.

        Raises:
            TenantSyncError: The control database does not answer, or the tenants cannot be listed.
        """
        reports = []
        while not self._stopping.is_set():
            # Before each turn: after an outage all are due, and by the last one's turn the first
            # look at who is suspended, and where, would be hours old.
            self._enrol()
            claim = self._reconciliations.claim(self._owner, lease=self._lease)
            if claim is None:
                break
            report = self._turn(claim)
            if report is not None:
                reports.append(report)
        return reports

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self.run_due()
            except ControlUnavailable as error:
                _LOG.warning("tenantsync.schedule_unreachable", extra={"error": str(error)})
            except Exception as error:  # a thread that ended in silence would never ask again
                # The class only: the words may repeat what a list says.
                _LOG.error("tenantsync.schedule_failed", extra={"error": type(error).__name__})
            self._stopping.wait(self._pause * (0.75 + self._jitter() / 2))

    def _enrol(self) -> None:
        """Give every tenant its turn, now and then; and learn who is one."""
        with self._lock:
            now = self._clock()
            if self._enrolled_at is not None and now - self._enrolled_at < _ENROL_EVERY:
                return
            self._known = {tenant.id: tenant for tenant in self._tenants()}
            self._reconciliations.enrol(self._known, every=self._every)
            self._enrolled_at = now

    def _turn(self, claim: Claim) -> TenantReport | None:
        """Reconcile a tenant that was claimed, and give it back."""
        tenant = self._known.get(claim.tenant_id)
        try:
            if tenant is None and (tenant := self._looked_up(claim.tenant_id)) is None:
                self._reconciliations.forget(claim)
                return None
            renewing = _Renewing(self._reconciliations, claim, self._lease, self._stopping)
            report = self._reconciler.reconcile_tenant(
                tenant, with_hooks=self._with_hooks, on_portion=renewing
            )
            self._give_back(claim, report)
        except LeaseLost:
            _LOG.warning("tenantsync.reconcile_lease_lost", extra={"tenant": claim.tenant_id})
            return None
        return report

    def _looked_up(self, tenant_id: str) -> Tenant | None:
        """Return a tenant that may have been added a moment ago."""
        with self._lock:
            self._enrolled_at = None
        self._enrol()
        return self._known.get(tenant_id)

    def _give_back(self, claim: Claim, report: TenantReport) -> None:
        if self._stopping.is_set() and report.state is State.SKIPPED:
            self._reconciliations.postpone(claim, retry_in=0.0, error=None)
        elif report.state in (State.FAILED, State.REFUSED):
            # Not soon: the provider may be what is in trouble, and it is asked for all tenants.
            wait = backoff(
                claim.attempts + 1, first=_FIRST_RETRY, longest=self._every, jitter=self._jitter
            )
            self._reconciliations.postpone(claim, retry_in=wait, error=report.why or "")
        else:
            self._reconciliations.finish(claim, every=self._every)


class _Renewing:
    """Renews a lease after each portion, and ends the work when it is lost or the worker stops."""

    def __init__(
        self,
        reconciliations: Reconciliations,
        claim: Claim,
        lease: float,
        stopping: threading.Event,
    ) -> None:
        self._reconciliations = reconciliations
        self._claim = claim
        self._lease = lease
        self._stopping = stopping

    def __call__(self, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise Stopped("the worker stops")
        self._reconciliations.renew(self._claim, lease=self._lease)
