"""Removes what is too old: ids from the tenants' ledgers, and what the inbox keeps."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tenantsync.control.database import ControlUnavailable
from tenantsync.control.inbox import Inbox
from tenantsync.sync.ledger import LedgerPruner
from tenantsync.tenants import Placement, Tenant

__all__ = ["PruneReport", "Pruner", "Retention"]

_LOG: Final = logging.getLogger("tenantsync")

_LONGEST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long things are kept, in seconds.

    Args:
        bodies: The body of an applied event.
        ids: The id of an applied event, in the inbox and in the tenants' ledgers.
        quarantine: An event in quarantine.
        expire: An event that could not be applied, before it goes to quarantine.
    """

    bodies: float = 7 * 86_400.0
    ids: float = 35 * 86_400.0
    quarantine: float = 90 * 86_400.0
    expire: float = 30 * 86_400.0


@dataclass(slots=True, kw_only=True)
class PruneReport:
    """What one round did.

    Args:
        tenants: How many tenants were gone through.
        ids: Ids removed from their ledgers.
        bodies: Applied events in the inbox that lost their body.
        forgotten: Events removed from the inbox.
        expired: Parked events that waited too long and went to quarantine.
        failed: Tenant key -> class name of what went wrong there.
    """

    tenants: int = 0
    ids: int = 0
    bodies: int = 0
    forgotten: int = 0
    expired: int = 0
    failed: dict[str, str] = field(default_factory=dict)


class Pruner:
    """Goes through the inbox and all tenants, and removes what is too old.

    Args:
        inbox: Is pruned itself, and says which ids it still holds.
        ledgers: Removes ids from a tenant's ledger.
        tenants: Returns all tenants there are now. Suspended ones are left alone.
        retention: How long things are kept.
        shared: Whether all tenants share one place, and so one ledger.
        spread: Seconds over which the tenants of one round are spread, about; each waits for its
            turn a second at most.
    """

    def __init__(
        self,
        inbox: Inbox,
        ledgers: LedgerPruner,
        *,
        tenants: Callable[[], Iterable[Tenant]],
        retention: Retention,
        shared: bool = False,
        spread: float = 1800.0,
    ) -> None:
        self._inbox = inbox
        self._ledgers = ledgers
        self._tenants = tenants
        self._retention = retention
        self._shared = shared
        self._spread = spread

    def run(self, stopping: threading.Event | None = None) -> PruneReport:
        """Prune everything once. What goes wrong at one tenant stays there, and is reported.

        Args:
            stopping: Set to end the round early.

        Raises:
            ControlUnavailable: The inbox does not answer.
            TenantSyncError: The tenants cannot be listed now.
        """
        stopping = stopping or threading.Event()
        report = PruneReport()
        self._prune_inbox(report, stopping)
        places: dict[Placement, list[Tenant]] = {}
        for tenant in self._tenants():
            places.setdefault(tenant.placement, []).append(tenant)
        pause = min(_LONGEST_PAUSE, self._spread / max(1, len(places)))
        for placement, tenants in places.items():
            if stopping.is_set():
                break
            if not all(tenant.suspended for tenant in tenants):
                self._prune_ledger(placement, tenants, report, stopping)
                stopping.wait(pause)
        _LOG.info(
            "tenantsync.pruned",
            extra={
                "tenants": report.tenants,
                "ids": report.ids,
                "bodies": report.bodies,
                "forgotten": report.forgotten,
                "expired": report.expired,
                "failed": len(report.failed),
            },
        )
        return report

    def _prune_inbox(self, report: PruneReport, stopping: threading.Event) -> None:
        keep = self._retention
        while not stopping.is_set():
            pruned = self._inbox.prune(
                bodies=keep.bodies, ids=keep.ids, quarantine=keep.quarantine, expire=keep.expire
            )
            report.bodies += pruned.bodies
            report.forgotten += pruned.ids + pruned.quarantined
            report.expired += pruned.expired
            if not pruned.more:
                return

    def _prune_ledger(
        self,
        placement: Placement,
        tenants: Sequence[Tenant],
        report: PruneReport,
        stopping: threading.Event,
    ) -> None:
        report.tenants += len(tenants)
        try:
            report.ids += self._ledgers.prune(
                placement,
                older_than=self._retention.ids,
                held=lambda: self._held(tenants),
                stopping=stopping.is_set,
            )
        except ControlUnavailable:
            raise  # without the inbox, nobody knows which ids must stay
        except Exception as error:  # whatever it is, the other tenants' turn comes
            name = type(error).__name__
            for tenant in tenants:
                report.failed[tenant.key] = name
                _LOG.warning("tenantsync.prune_failed", extra={"tenant": tenant.key, "error": name})

    def _held(self, tenants: Iterable[Tenant]) -> set[str]:
        """Return the ids of a place that the inbox holds, whoever's they are."""
        tenant_ids = {tenant.id for tenant in tenants}
        if self._shared:
            # The list may not name all who live in a place that takes anybody.
            tenant_ids.update(lane.tenant_id for lane in self._inbox.lanes())
        held: set[str] = set()
        for tenant_id in tenant_ids:
            held |= self._inbox.held(tenant_id)
        return held
