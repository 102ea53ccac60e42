"""What a worker wants of others, and what it tells of its work."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from tenantsync.errors import TenantSyncError
from tenantsync.events import Event
from tenantsync.observe import Outcome

__all__ = ["Drained", "ParkedEvents", "Provisioning"]

_SETTLED: Final = ("applied", "duplicate", "stale", "ignored")


class ParkedEvents(Protocol):
    """What applies parked events: `IdentitySyncHandler` does."""

    def apply_parked(
        self, tenant_id: str, events: Sequence[Event], *, with_hooks: bool = True
    ) -> list[Outcome | TenantSyncError]:
        """Apply events of one tenant, and return a result for each. Blocking; parks nothing."""

    def forget(self, tenant_id: str) -> None:
        """Look the tenant up anew from now on."""


class Provisioning(Protocol):
    """Makes tenants that the provider announced: `worker.provisioning.TenantProvisioning`."""

    def allows(self, tenant_id: str) -> bool:
        """Whether the operator lets an announcement make this tenant."""

    def provision(self, tenant_id: str) -> object:
        """Make the tenant. May be called again after a crash.

        Raises:
            TenantSyncError: It could not be made now; a `retry_in` says after how many seconds
                it may be.
        """


@dataclass(slots=True, kw_only=True)
class Drained:
    """What became of one lane, or of several.

    Args:
        lanes: How many were claimed.
        settled: How many events the tenant has now, by outcome.
        delayed: Events that failed for a reason of their own, and are tried again later.
        quarantined: Events given up on until an operator looks at them.
        failed: Lanes given back because the tenant cannot be had now.
        unknown: Lanes that sleep until their tenant is registered.
        provisioned: Tenants made.
        lost: Lanes whose lease ran out, so that another worker has them now.
        unfinished: Lanes given back with more to do, because others wait or the worker stops.
        error: Class name of the last failure, or None.
    """

    lanes: int = 0
    settled: Counter[str] = field(default_factory=Counter)
    delayed: int = 0
    quarantined: int = 0
    failed: int = 0
    unknown: int = 0
    provisioned: int = 0
    lost: int = 0
    unfinished: int = 0
    error: str | None = None

    def add(self, other: "Drained") -> None:
        """Count what became of further lanes."""
        self.lanes += other.lanes
        self.settled.update(other.settled)
        self.delayed += other.delayed
        self.quarantined += other.quarantined
        self.failed += other.failed
        self.unknown += other.unknown
        self.provisioned += other.provisioned
        self.lost += other.lost
        self.unfinished += other.unfinished
        self.error = other.error or self.error

    def counts(self) -> dict[str, int]:
        """Return the numbers by a few fixed names, every name always there: for metrics."""
        return {
            "lanes": self.lanes,
            **{name: self.settled[name] for name in _SETTLED},
            "delayed": self.delayed,
            "quarantined": self.quarantined,
            "failed": self.failed,
            "unknown": self.unknown,
            "provisioned": self.provisioned,
            "lost": self.lost,
            "unfinished": self.unfinished,
        }
