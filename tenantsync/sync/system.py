"""What the provider's system events do here: tenants get names, are announced, suspended, deleted.

They speak for the whole AuthVital instance and reach us once, if at all: a sender that is not its
broker does not try again. What they change is written before they are answered.
"""

import asyncio
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Literal

from tenantsync.control.database import ControlUnavailable
from tenantsync.control.profiles import TenantProfiles, is_storable
from tenantsync.errors import TenantSyncError, TenantUnavailable
from tenantsync.events import Event
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.hooks import Hooks
from tenantsync.sync.passage import Passage
from tenantsync.tenants import Tenant

__all__ = ["AnnouncementPolicy", "SystemEventHandler", "is_test", "key_of"]

_CREATED: Final = "tenant.created"
_UPDATED: Final = "tenant.updated"
_DELETED: Final = "tenant.deleted"
_SUSPENDED: Final = "tenant.suspended"
_APP_TYPES: Final = ("tenant.app.granted", "tenant.app.revoked")
_NAMING: Final = (_CREATED, _UPDATED, _DELETED, _SUSPENDED)
_PROVISIONING: Final = "provisioning"
_KEY_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class AnnouncementPolicy:
    """Which tenants get a place because the provider announced them.

    Anyone can sign up at the provider and make tenants there (docs/reference/provider.md), so that
    "always" is for instances where that is not so.

    Args:
        on_tenant_created: `"ignore"`, `"allowlist"` or `"always"`.
        allowlist: Ids of the tenants that may have one, with `"allowlist"`.
    """

    on_tenant_created: Literal["ignore", "allowlist", "always"] = "ignore"
    allowlist: Collection[str] = ()

    def allows(self, tenant_id: str) -> bool:
        """Whether this tenant gets a place."""
        if self.on_tenant_created == "allowlist":
            return tenant_id in self.allowlist
        return self.on_tenant_created == "always"


@dataclass(frozen=True, slots=True)
class _Course:
    """What is to be done with an event after the control database was asked.

    Args:
        outcome: What becomes of it where nothing is handed on.
        reason: Why, as one of a few stable words.
        hand_on: Whether the tenant's own database, or its hooks, get it.
        park: Whether it waits for a worker that makes the tenant.
        suspend: The key of the tenant that is to be suspended, once it was handed on.
        heed: What is to be remembered once that is done, `"suspended"` or `"deleted"`.
    """

    outcome: Outcome = Outcome.IGNORED
    reason: str | None = None
    hand_on: bool = False
    park: bool = False
    suspend: str | None = None
    heed: str | None = None


class SystemEventHandler:
    """Takes system events, from whatever door.

    `handle` is for an event loop, `handle_blocking` for everybody else; they do the same.

    Args:
        handler: Applies what belongs into a tenant's database, and parks what must wait.
        profiles: What is remembered of tenants.
        application_id: The application whose grants are ours.
        find: The tenant with an id in service or suspended, or None: `Directory.find`. It raises
            ControlUnavailable where it cannot say, TenantUnavailable where the tenant is not ready.
        suspend: Suspends the tenant with a key, for good until an operator resumes it, and may be
            called again: `Catalog.suspend`, with the caches over it emptied.
        hooks: The application's hooks, as the handler has them; a tenant is told of its system
            events only where one of them wants to hear.
        policy: Which announced tenants get a place.
    """

    def __init__(
        self,
        handler: IdentitySyncHandler,
        profiles: TenantProfiles,
        *,
        application_id: str,
        find: Callable[[str], Tenant | None],
        suspend: Callable[[str], object],
        hooks: Hooks | None = None,
        policy: AnnouncementPolicy | None = None,
    ) -> None:
        self.handler = handler
        self._profiles = profiles
        self._application_id = application_id
        self._find = find
        self._suspend = suspend
        self._hooks = hooks or Hooks()
        self._policy = policy or AnnouncementPolicy()

    async def handle(self, event: Event, *, door: str, body: bytes) -> Outcome:
        """Do what an event says, and return what became of it once that is committed.

        Args:
            event: Authentic, of the system channel.
            door: How it came in, for the observers.
            body: The bytes that it was read from, to be kept if it is parked.

        Raises:
            TenantSyncError: It could not be done now; `retry` says whether it may be, later.
        """
        way = Passage(event, door, body)
        try:
            course = await asyncio.to_thread(self._plan, event)
            outcome = course.outcome
            if course.park:
                return await self.handler.park(
                    event, door=door, body=body, reason=_PROVISIONING, known=False, announced=True
                )
            if course.hand_on:
                handed = await self.handler.handle(event, door=door, body=body)
                outcome = _both(handed, outcome)
            if course.heed is not None:
                await asyncio.to_thread(self._finish, event, course)
        except TenantSyncError as error:
            self._tell_failure(way, error)
            raise
        return self._told(way, course, outcome)

    def handle_blocking(self, event: Event, *, door: str, body: bytes) -> Outcome:
        """Do what an event says, as `handle` does, for a caller without an event loop."""
        way = Passage(event, door, body)
        try:
            course = self._plan(event)
            outcome = course.outcome
            if course.park:
                return self.handler.park_blocking(
                    event, door=door, body=body, reason=_PROVISIONING, known=False, announced=True
                )
            if course.hand_on:
                handed = self.handler.handle_blocking(event, door=door, body=body)
                outcome = _both(handed, outcome)
            if course.heed is not None:
                self._finish(event, course)
        except TenantSyncError as error:
            self._tell_failure(way, error)
            raise
        return self._told(way, course, outcome)

    def _plan(self, event: Event) -> _Course:
        """Say what is to be done; remembers names on the way. Asks the control database."""
        tenant_id = event.tenant_id
        if is_test(event):
            return _Course(reason="test")
        if event.type in _APP_TYPES:
            return self._grant(event)
        if event.mirrored or tenant_id is None or not is_storable(tenant_id):
            # A mirrored type belongs to the other channel, which proves for whom it is.
            return _Course(reason="type")
        if event.type not in _NAMING:
            return self._for_hooks(event)
        fresh = self._learn(event, tenant_id)
        if event.type == _CREATED:
            return self._announced(event, tenant_id)
        if event.type == _UPDATED:
            wanted = self._wants(event) and self._known(tenant_id) is not None
            return _Course(Outcome.APPLIED if fresh else Outcome.STALE, hand_on=wanted)
        return self._ended(event, tenant_id)

    def _grant(self, event: Event) -> _Course:
        if event.application_id != self._application_id:
            return _Course(reason="other_application")
        if event.mirrored:
            return _Course(hand_on=True)
        return self._for_hooks(event)  # a subscription, or an invitation: no access of anybody

    def _for_hooks(self, event: Event) -> _Course:
        tenant_id = event.tenant_id or ""
        if is_storable(tenant_id) and self._wants(event) and self._known(tenant_id) is not None:
            return _Course(hand_on=True)
        return _Course(reason="type")

    def _wants(self, event: Event) -> bool:
        return bool(self._hooks.matching(event.type))

    def _announced(self, event: Event, tenant_id: str) -> _Course:
        known = self._known(tenant_id)
        if isinstance(known, Tenant):
            return _Course(reason="tenant_exists", hand_on=self._wants(event))
        if not self._policy.allows(tenant_id):
            return _Course(reason="not_provisioned")
        profile = self._profiles.find(tenant_id)
        if profile is None:
            return _Course(reason="too_many_tenants")
        if profile.deleted:
            return _Course(reason="tenant_deleted")
        if profile.provisioned and known is None:
            return _Course(reason="tenant_removed")
        return _Course(Outcome.PARKED, park=True)

    def _ended(self, event: Event, tenant_id: str) -> _Course:
        what = "deleted" if event.type == _DELETED else "suspended"
        if self._profiles.heeded(tenant_id, what, _clock(event)):
            # Whoever resumed the tenant since then is not overruled by a repetition.
            return _Course(Outcome.DUPLICATE)
        known = self._known(tenant_id)
        if not isinstance(known, Tenant):
            return _Course(Outcome.APPLIED, heed=what)
        return _Course(
            Outcome.APPLIED,
            hand_on=self._wants(event) and not known.suspended,
            suspend=None if known.suspended else known.key,
            heed=what,
        )

    def _finish(self, event: Event, course: _Course) -> None:
        tenant_id = str(event.tenant_id)
        # First the deed, then the note of it: who is killed in between does it again.
        if course.suspend is not None:
            self._suspend(course.suspend)
            self.handler.forget(tenant_id)
        if course.heed == "suspended":
            self._profiles.mark_suspended(tenant_id, _clock(event))
            return
        self._profiles.mark_deleted(tenant_id, _clock(event))
        # A worker may be making it: it looks for the mark when it is done, and we look for it now.
        # So one of the two sees the other, whoever comes first.
        if course.suspend is None and self._profiles.is_booked(tenant_id):
            self._suspend(key_of(tenant_id))
            self.handler.forget(tenant_id)

    def _known(self, tenant_id: str) -> Tenant | TenantUnavailable | None:
        """Return the tenant, why it is not ready, or None where there is none."""
        try:
            return self._find(tenant_id)
        except ControlUnavailable:
            raise
        except TenantUnavailable as error:
            return error

    def _learn(self, event: Event, tenant_id: str) -> bool:
        data = event.data
        return self._profiles.learn(
            tenant_id,
            _clock(event),
            # The latter of each pair is how releases before August 2026 wrote it.
            name=_text(data.get("name"), data.get("tenant_name")),
            slug=_text(data.get("slug"), data.get("tenant_slug")),
        )

    def _told(self, way: Passage, course: _Course, outcome: Outcome) -> Outcome:
        if not course.hand_on:  # what was handed on, the handler has told of
            self.handler.observe(way.delivery(outcome, reason=course.reason))
        return outcome

    def _tell_failure(self, way: Passage, error: TenantSyncError) -> None:
        self.handler.observe(way.delivery(None, error=error))


def key_of(tenant_id: str) -> str:
    """Return the key of an announced tenant: a digest, since no name comes from the wire."""
    digest = hashlib.sha256(tenant_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"t_{digest[:_KEY_DIGITS]}"


def is_test(event: Event) -> bool:
    """Whether this is what the provider's "send a test" button sends: authentic, about nobody."""
    return event.type == _CREATED and (event.data.get("test") is True or event.tenant_id is None)


def _both(handed: Outcome, own: Outcome) -> Outcome:
    """Return one outcome for what a tenant's database and the control database did."""
    if handed is Outcome.PARKED or own is Outcome.IGNORED:
        return handed
    return own


def _clock(event: Event) -> str:
    # Thirteen digits last until the year 2286, beyond which `parse` takes no event.
    return f"{event.timestamp:013d}{event.id}"


def _text(*values: object) -> str | None:
    return next((value for value in values if isinstance(value, str) and value), None)
