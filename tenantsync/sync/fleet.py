"""Reconciles many tenants, some at once: one tenant's trouble stays its own.

Only where the provider has nothing for anybody are those who are left not asked for.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from tenantsync.errors import TenantSyncError
from tenantsync.sync.drift import Report, State, TenantReport
from tenantsync.tenants import Tenant

__all__ = ["ReconcilesOne", "Stopped", "reconcile_all", "skipped"]

_ENDED: Final = "the run was stopped"
_STRIKES: Final = 5
"""So many tenants in a row for which the provider failed, and the others are not asked for."""


class Stopped(TenantSyncError):
    """Raised by who listens to portions, to end the run."""


class ReconcilesOne(Protocol):
    """What reconciles one tenant."""

    def __call__(
        self, tenant: Tenant, on_portion: Callable[[int, int], object], /
    ) -> tuple[TenantReport, bool]:
        """Return what became of it, and whether the provider would fail for any tenant."""


def reconcile_all(
    reconcile: ReconcilesOne,
    tenants: Sequence[Tenant],
    *,
    jobs: int,
    on_progress: Callable[[TenantReport, int, int], object] | None,
    on_portion: Callable[[str, int, int], object] | None,
    stopping: threading.Event,
) -> Report:
    """Reconcile tenants, and say what became of each, in their order.

    Args:
        reconcile: Reconciles one, on the calling thread; lets no error out.
        tenants: Which.
        jobs: How many at once.
        on_progress: As in `Reconciler.reconcile`.
        on_portion: As in `Reconciler.reconcile`.
        stopping: Set to begin no further tenant, and to leave those under way soon.
    """
    done, strikes = 0, 0
    lock = threading.Lock()

    def one(tenant: Tenant) -> TenantReport:
        nonlocal done, strikes

        def portion(now: int, total: int) -> None:
            if on_portion is not None:
                on_portion(tenant.key, now, total)
            if stopping.is_set():
                raise Stopped(_ENDED)

        if stopping.is_set():
            report = skipped(tenant, _ENDED)
        elif strikes >= _STRIKES:
            report = skipped(tenant, f"AuthVital failed for {_STRIKES} tenants in a row")
        else:
            report, blames_provider = reconcile(tenant, portion)
            with lock:
                strikes = strikes + 1 if blames_provider else 0
        with lock:
            done += 1
            if on_progress is not None:
                on_progress(report, done, len(tenants))
        return report

    with ThreadPoolExecutor(max(1, jobs), thread_name_prefix="tenantsync-reconcile") as pool:
        return Report(list(pool.map(one, tenants)))


def skipped(tenant: Tenant, why: str) -> TenantReport:
    """Return the report of a tenant that was not begun."""
    return TenantReport(tenant=tenant.key, tenant_id=tenant.id, state=State.SKIPPED, why=why)
