"""The one way from a trusted event to a tenant's rows: resolve, write, tell who listens.

What cannot be written now is put into the inbox, so that a tenant's trouble never becomes the
sender's.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Self, TypeVar

from cachetools import LRUCache

from tenantsync.control.inbox import Arrival, Stored
from tenantsync.errors import (
    ConfigError,
    Malformed,
    TenantSuspended,
    TenantSyncError,
    TenantUnavailable,
    UnknownTenant,
)
from tenantsync.events import Event
from tenantsync.observe import Delivery, LoggingObserver, Observer, Observers, Outcome
from tenantsync.sync.batch import Applier, Result
from tenantsync.sync.hooks import Hook, Hooks
from tenantsync.sync.parking import Parking
from tenantsync.sync.passage import Passage, unreadable
from tenantsync.sync.writer import Writer
from tenantsync.tenancy.asked import AskingTenant, Place, resolver_from
from tenantsync.tenancy.isolation import DatabaseIsolation, Isolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenancy.resolver import AsyncTenantSource, TenantResolver, TenantSource
from tenantsync.tenants import MAX_ID_BYTES, Placement, Tenant

__all__ = ["IdentitySyncHandler"]

_HookT = TypeVar("_HookT", bound=Hook)

_WORKER: Final = "worker"
_SOON: Final = 1.0
"""Seconds until the first look at an event whose tenant had trouble."""
_LATE: Final = 900.0
"""Seconds between two looks at a suspended tenant; resuming it wakes its lane at once."""
_REMEMBERED: Final = 10_000
_CHANGING: Final = frozenset({Outcome.APPLIED, Outcome.PARKED})
_OUTCOMES: Final = {
    Stored.PARKED: Outcome.PARKED,
    Stored.QUARANTINED: Outcome.PARKED,
    Stored.APPLIED: Outcome.DUPLICATE,
    Stored.DISCARDED: Outcome.IGNORED,
}


class IdentitySyncHandler:
    """Applies events to the databases of their tenants.

    Opens nothing until the first event; `close` it, or use it as a context manager.

    Args:
        resolver: Where tenants live. One engine, URL or placement: a single database for all. Or
            a function, blocking or async, from AuthVital's tenant id to a placement, an engine, a
            URL or a Tenant; None means that there is no such tenant, and an exception that it
            cannot be said now. Or a TenantSource, or a TenantResolver.
        isolation: Binds transactions to places and proves it.
        registry: Where connections come from; one of its own by default, closed with the handler.
        default_app_access: What `has_app_access` of a new row is until an event says something of
            it; False for applications with licences per seat.
        statement_timeout: Seconds that one statement may take, waiting for locks included.
        patience: Seconds that a caller waits for a tenant's database. AuthVital waits 30.
        parking: Where what cannot be applied now goes; without it, that is an error.
        hooks: Functions of the application, if they were collected elsewhere; see `on`.
        observers: Who is told what became of each event; by default the log.
        changed: Told the tenant's id and the person's of each event that was applied or parked,
            after the commit and before the sender's answer; must be quick, and never raises.

    Raises:
        ConfigError: The resolver is none of these.
    """

    def __init__(
        self,
        resolver: "Place | AskingTenant | TenantSource | AsyncTenantSource | TenantResolver",
        *,
        isolation: Isolation | None = None,
        registry: EngineRegistry | None = None,
        default_app_access: bool = True,
        statement_timeout: float = 5.0,
        patience: float = 10.0,
        parking: Parking | None = None,
        hooks: Hooks | None = None,
        observers: Iterable[Observer] | None = None,
        changed: Callable[[str, str], object] | None = None,
    ) -> None:
        self._resolver = resolver_from(resolver)
        self._registry = registry or EngineRegistry()
        self._owns_registry = registry is None
        self._hooks = hooks or Hooks()
        self._patience = patience
        self._parking = parking
        self._lock = threading.Lock()
        self._held_up: LRUCache[Placement, frozenset[str]] = LRUCache(_REMEMBERED)
        self._writer = Writer(
            Applier(
                self._registry,
                isolation or DatabaseIsolation(None),
                default_app_access=default_app_access,
                statement_timeout=statement_timeout,
            ),
            self._hooks,
            recovered=self._recovered,
        )
        self._observers = Observers([LoggingObserver()] if observers is None else observers)
        self._changed = changed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def breakers_open(self) -> int:
        """How many places failed so often that their events are parked without an attempt."""
        return self._writer.breakers.opened

    def on(self, pattern: str) -> Callable[[_HookT], _HookT]:
        """Return a decorator that registers a hook: `hook(event, session)`.

        The hook runs in the tenant's transaction, after the merge. What it does in its session
        happens once per event id; the function itself may be called again after a retry.

        Args:
            pattern: A type (`"member.joined"`), all of a family (`"member.*"`), or all (`"*"`).

        Raises:
            ConfigError: The provider has no such type, or the function is a coroutine.
        """
        return self._hooks.on(pattern)

    async def handle(
        self,
        event: Event,
        *,
        door: str = "direct",
        body: bytes | None = None,
        signed_at: int | None = None,
    ) -> Outcome:
        """Apply an event, and return what became of it once that is committed.

        Args:
            event: Authentic, and for this application: see `WebhookRouter` for both checks.
            door: How it came in, for the observers.
            body: The bytes that it was read from, to be kept if it is parked.
            signed_at: The time that their signature covers, in seconds since 1970.

        Raises:
            UnknownTenant: No source knows its tenant, and the inbox takes no more such events.
            TenantSyncError: It could be neither applied nor parked; `retry` says whether it may be,
                later.
        """
        way = Passage(event, door, body, signed_at)
        if not self._concerns(event):
            return self._told(way, Outcome.IGNORED, reason="type")
        try:
            way.tenant = await self._resolver.resolve(event.tenant_id)
            outcome = await self._written(event, way.tenant)
            if way.erases and self._parking is not None:
                await self._parking.erase(way.tenant.id, str(event.sub))
        except TenantSyncError as error:
            return await self._parked(way, error)
        return self._told(way, outcome)

    def handle_blocking(
        self,
        event: Event,
        *,
        door: str = "direct",
        body: bytes | None = None,
        signed_at: int | None = None,
    ) -> Outcome:
        """Apply an event, and return what became of it once that is committed.

        The same as `handle`, for a caller without an event loop.
        """
        way = Passage(event, door, body, signed_at)
        if not self._concerns(event):
            return self._told(way, Outcome.IGNORED, reason="type")
        try:
            way.tenant = self._resolver.resolve_blocking(event.tenant_id)
            outcome = self._written_blocking(event, way.tenant)
            if way.erases and self._parking is not None:
                self._parking.erase_blocking(way.tenant.id, str(event.sub))
        except TenantSyncError as error:
            return self._parked_blocking(way, error)
        return self._told(way, outcome)

    async def park(
        self,
        event: Event,
        *,
        door: str,
        body: bytes,
        reason: str,
        known: bool = True,
        announced: bool = False,
    ) -> Outcome:
        """Store an event for a worker, without an attempt to apply it.

        Args:
            event: Authentic, and for this application.
            door: How it came in.
            body: The bytes that it was read from.
            reason: Why, in a word or two.
            known: Whether there is such a tenant. What others have in the inbox is bounded, and
                what is beyond the bound is ignored.
            announced: Whether a worker may make the tenant because of this event.

        Raises:
            ControlUnavailable: The inbox cannot take it now.
            ConfigError: There is no inbox.
        """
        way = Passage(event, door, body)
        arrival = way.arrival(reason=reason, known=known, announced=announced)
        return self._stored(way, await self._inbox.park(arrival), reason=reason)

    def park_blocking(
        self,
        event: Event,
        *,
        door: str,
        body: bytes,
        reason: str,
        known: bool = True,
        announced: bool = False,
    ) -> Outcome:
        """Store an event as `park` does, for a caller without an event loop."""
        way = Passage(event, door, body)
        arrival = way.arrival(reason=reason, known=known, announced=announced)
        return self._stored(way, self._inbox.park_blocking(arrival), reason=reason)

    async def quarantine(self, body: bytes, error: Malformed, *, door: str) -> Outcome:
        """Keep what is authentic and no event that we can read, for an operator to look at.

        Args:
            body: The bytes as they came.
            error: What is wrong with them.
            door: How they came in.

        Raises:
            Malformed: There is no inbox; it is the error that was given.
            ControlUnavailable: The inbox cannot take it now.
        """
        if self._parking is None:
            raise error
        way = Passage(unreadable(body), door, body)
        arrival = way.arrival(reason=str(error), known=False)
        return self._stored(way, await self._parking.park(arrival, readable=False), error=error)

    def quarantine_blocking(self, body: bytes, error: Malformed, *, door: str) -> Outcome:
        """Keep an unreadable body as `quarantine` does, for a caller without an event loop."""
        if self._parking is None:
            raise error
        way = Passage(unreadable(body), door, body)
        arrival = way.arrival(reason=str(error), known=False)
        return self._stored(way, self._parking.park_blocking(arrival, readable=False), error=error)

    def apply_parked(
        self,
        tenant_id: str,
        events: Sequence[Event],
        *,
        with_hooks: bool = True,
        door: str = _WORKER,
    ) -> list[Result]:
        """Apply events of one tenant that were parked before, and say what became of each.

        Blocking, on a connection apart from the one for what comes in; parks nothing.

        Args:
            tenant_id: AuthVital's id of the tenant.
            events: In any order.
            with_hooks: False leaves the application's hooks out.
            door: How they came, for the observers.
        """
        ways = [Passage(event, door) for event in events]
        results = self._applied(tenant_id, ways, with_hooks=with_hooks)
        for way, result in zip(ways, results, strict=True):
            if isinstance(result, TenantSyncError):
                self._failed(way, result)
            else:
                self._told(way, result)
        return results

    def forget(self, tenant_id: str) -> None:
        """Look a tenant up anew with its next event: it was registered, say, or moved."""
        self._resolver.forget(tenant_id)

    def observe(self, delivery: Delivery) -> None:
        """Tell the observers of a delivery that a door answered by itself."""
        self._observers(delivery)

    def close(self) -> None:
        """Finish what is being written, and close the connections that are the handler's own."""
        self._writer.close()
        self._resolver.close()
        if self._owns_registry:
            self._registry.close()

    @property
    def _inbox(self) -> Parking:
        if self._parking is None:
            raise ConfigError("this handler has no inbox: give it a `parking`")
        return self._parking

    def _concerns(self, event: Event) -> bool:
        return event.mirrored or bool(self._hooks.matching(event.type))

    async def _written(self, event: Event, tenant: Tenant) -> Outcome:
        try:
            async with asyncio.timeout(self._patience):
                return await self._writer.write(event, tenant.placement)
        except TimeoutError:
            raise self._too_slow(tenant) from None

    def _written_blocking(self, event: Event, tenant: Tenant) -> Outcome:
        try:
            return self._writer.write_blocking(event, tenant.placement, timeout=self._patience)
        except TimeoutError:
            raise self._too_slow(tenant) from None

    def _too_slow(self, tenant: Tenant) -> TenantUnavailable:
        # It may still be written: then the ledger knows it when it is drained.
        return TenantUnavailable(f"tenant {tenant.key!r} took longer than {self._patience:g} s")

    def _applied(
        self, tenant_id: str, ways: Sequence[Passage], *, with_hooks: bool
    ) -> list[Result]:
        try:
            tenant = self._resolver.resolve_blocking(tenant_id)
        except TenantSyncError as error:
            return [error] * len(ways)
        results: list[Result] = [Outcome.IGNORED] * len(ways)
        wanted = []
        for index, way in enumerate(ways):
            way.tenant = tenant
            if way.event.mirrored or (with_hooks and self._hooks.matching(way.event.type)):
                wanted.append(index)
        written = self._writer.write_apart(
            [ways[index].event for index in wanted], tenant.placement, with_hooks=with_hooks
        )
        for index, result in zip(wanted, written, strict=True):
            results[index] = result
            way = ways[index]
            if way.erases and self._parking and not isinstance(result, TenantSyncError):
                try:
                    self._parking.erase_blocking(tenant_id, str(way.event.sub))
                except TenantSyncError as error:
                    results[index] = error
        return results

    async def _parked(self, way: Passage, error: TenantSyncError) -> Outcome:
        try:
            arrival = self._arrival_after(way, error)
            stored = await self._inbox.park(arrival)
        except TenantSyncError as failure:
            self._failed(way, failure)
            raise
        return self._stored(way, stored, error=error)

    def _parked_blocking(self, way: Passage, error: TenantSyncError) -> Outcome:
        try:
            arrival = self._arrival_after(way, error)
            stored = self._inbox.park_blocking(arrival)
        except TenantSyncError as failure:
            self._failed(way, failure)
            raise
        return self._stored(way, stored, error=error)

    def _arrival_after(self, way: Passage, error: TenantSyncError) -> Arrival:
        """Return what is parked after an error, or raise that one if it cannot be helped so."""
        unknown = isinstance(error, UnknownTenant)
        tenant_id = way.event.tenant_id or ""
        storable = 0 < len(tenant_id.encode("utf-8", "surrogatepass")) <= MAX_ID_BYTES
        if self._parking is None or not storable or not (error.retry or unknown):
            raise error
        if way.tenant is not None and not error.blames_event:
            self._remember(way.tenant)
        due_in = _LATE if isinstance(error, TenantSuspended) else _SOON
        reason = type(error).__name__
        return way.arrival(reason=reason, known=not unknown, due_in=due_in)

    def _stored(
        self,
        way: Passage,
        stored: Stored,
        *,
        reason: str | None = None,
        error: TenantSyncError | None = None,
    ) -> Outcome:
        """Tell what became of an event that was given to the inbox."""
        if stored is Stored.FULL:
            self._told(way, Outcome.IGNORED, reason="inbox_full")
            if isinstance(error, UnknownTenant):
                raise error
            return Outcome.IGNORED
        if isinstance(error, UnknownTenant):
            reason, error = "unknown_tenant", None
        return self._told(way, _OUTCOMES[stored], reason=reason, error=error)

    def _remember(self, tenant: Tenant) -> None:
        with self._lock:
            known = self._held_up.get(tenant.placement, frozenset())
            self._held_up[tenant.placement] = known | {tenant.id}

    def _recovered(self, placement: Placement) -> None:
        """Have what was parked for a place applied, now that it answers again."""
        with self._lock:
            tenant_ids = self._held_up.pop(placement, frozenset())
        if self._parking is not None:
            self._parking.wake(tenant_ids)

    def _told(
        self,
        way: Passage,
        outcome: Outcome | None,
        *,
        reason: str | None = None,
        error: TenantSyncError | None = None,
    ) -> Outcome:
        event = way.event
        if self._changed is not None and outcome in _CHANGING and event.tenant_id and event.sub:
            self._changed(event.tenant_id, event.sub)
        self._observers(way.delivery(outcome, reason=reason, error=error))
        return outcome or Outcome.IGNORED

    def _failed(self, way: Passage, error: TenantSyncError) -> None:
        if isinstance(error, UnknownTenant):
            self._told(way, Outcome.IGNORED, reason="unknown_tenant")
        else:
            self._told(way, None, error=error)
