"""Lets those leave whom two lists in a row did not have: by events, with all that belongs to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tenantsync.errors import TenantSyncError
from tenantsync.events import Event
from tenantsync.observe import Outcome
from tenantsync.sync.batch import Result
from tenantsync.sync.evidence import departure
from tenantsync.sync.mirror import Mirror
from tenantsync.sync.standing import is_missing
from tenantsync.sync.survey import portions
from tenantsync.tenants import Tenant

__all__ = ["Departing", "Departures"]

_DOOR: Final = "reconcile"
_PORTION: Final = 100


class Departures(Protocol):
    """What applies events of one tenant with all that belongs to it: `IdentitySyncHandler` does."""

    def apply_parked(
        self,
        tenant_id: str,
        events: Sequence[Event],
        *,
        with_hooks: bool = True,
        door: str = ...,
    ) -> list[Result]:
        """Apply events of one tenant, and return a result for each. Blocking; parks nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Departing:
    """Lets people of one tenant leave.

    Args:
        departures: Applies the `member.left`, with hooks.
        mirror: The mirrored people.
        tenant: Whose people.
        application_id: Our application.
        previous: When the list before was taken, in milliseconds since 1970.
        taken_at: When the second list was, in which they are missing too.
        shared: Whether all tenants share one place.
        with_hooks: Whether the application's hooks hear of it.
    """

    departures: Departures
    mirror: Mirror
    tenant: Tenant
    application_id: str
    previous: int
    taken_at: int
    shared: bool
    with_hooks: bool

    def let_go(
        self, missing: Sequence[tuple[str, str | None]], done: Callable[[], object]
    ) -> tuple[int, TenantSyncError | None]:
        """Return how many left, and the first failure. It keeps nobody else in.

        Args:
            missing: Who: their id, and that of their membership.
            done: Told after each portion.
        """
        left = 0
        failure: TenantSyncError | None = None
        for portion in portions(missing, _PORTION):
            for result in self._let_go(portion):
                if isinstance(result, TenantSyncError):
                    failure = failure or result
                else:
                    left += result is Outcome.APPLIED
            done()
        return left, failure

    def _let_go(self, portion: Sequence[tuple[str, str | None]]) -> list[Result]:
        tenant = self.tenant
        events = [
            departure(tenant.id, self.application_id, sub, membership_id, self.taken_at)
            for sub, membership_id in portion
        ]
        # They were found missing before the list was taken. Who was heard of since is not.
        known = self.mirror.known(tenant.placement, events)
        events = [
            event
            for event in events
            if (person := known.get(event.sub or "")) is not None
            and is_missing(person, tenant.id, previous=self.previous, shared=self.shared)
        ]
        if not events:
            return []
        return self.departures.apply_parked(
            tenant.id, events, with_hooks=self.with_hooks, door=_DOOR
        )
