"""One event on its way through the handler: how it came, and where it belongs."""

import hashlib
import time
from dataclasses import dataclass, field

from tenantsync.control.inbox import Arrival
from tenantsync.errors import TenantSyncError
from tenantsync.events import Dialect, Event, encode
from tenantsync.observe import Delivery, Outcome
from tenantsync.tenants import Tenant

__all__ = ["Passage", "unreadable"]


@dataclass(slots=True)
class Passage:
    """One event on its way.

    Args:
        event: The event.
        door: How it came in, such as `"webhook"`.
        body: The bytes that it was read from, or None.
        signed_at: The time that their signature covers, in seconds since 1970, or None.
        tenant: Whose it is, once that is known.
        started: When it came in, in monotonic seconds.
    """

    event: Event
    door: str
    body: bytes | None = None
    signed_at: int | None = None
    tenant: Tenant | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def erases(self) -> bool:
        """Whether the person is gone for good once the event is applied."""
        return self.event.type == "subject.deleted" and self.event.sub is not None

    def arrival(
        self, *, reason: str, known: bool, announced: bool = False, due_in: float = 0.0
    ) -> Arrival:
        """Return what the inbox stores of the event.

        Args:
            reason: Why it is not applied now, in a word or two.
            known: Whether there is such a tenant.
            announced: Whether a worker may make it because of this event.
            due_in: Seconds until a worker may look at it.
        """
        event = self.event
        return Arrival(
            tenant_id=event.tenant_id or "",
            event_id=event.id,
            type=event.type,
            subject=event.sub,
            timestamp=event.timestamp,
            body=encode(event) if self.body is None else self.body,
            signed_at=self.signed_at,
            door=self.door,
            reason=reason,
            known=known,
            announced=announced,
            due_in=due_in,
        )

    def delivery(
        self,
        outcome: Outcome | None,
        *,
        reason: str | None = None,
        error: TenantSyncError | None = None,
    ) -> Delivery:
        """Return what observers are told.

        Args:
            outcome: What became of the event; None where it failed.
            reason: Why, as one of a few stable words.
            error: What went wrong.
        """
        return Delivery(
            event_id=self.event.id,
            event_type=self.event.type,
            tenant=None if self.tenant is None else self.tenant.key,
            outcome=outcome,
            reason=reason,
            error=None if error is None else type(error).__name__,
            seconds=time.monotonic() - self.started,
            door=self.door,
        )


def unreadable(body: bytes) -> Event:
    """Return what stands for a body that is no event: its digest."""
    return Event(
        id=hashlib.sha256(body).hexdigest(),
        type="",
        timestamp=0,
        tenant_id=None,
        application_id=None,
        sub=None,
        data={},
        dialect=Dialect.SYNC,
    )
