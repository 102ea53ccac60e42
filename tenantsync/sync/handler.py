"""The one way from a trusted event to a tenant's rows: resolve, write, tell who listens."""

import hashlib
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Self, TypeVar, cast

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from tenantsync.errors import ConfigError, TenantSyncError, UnknownTenant
from tenantsync.events import Event
from tenantsync.observe import Delivery, LoggingObserver, Observer, Observers, Outcome
from tenantsync.sync.batch import Applier
from tenantsync.sync.hooks import Hook, Hooks
from tenantsync.sync.writer import Writer
from tenantsync.tenancy.isolation import DatabaseIsolation, Isolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenancy.resolver import (
    AnyTenant,
    AsyncTenantSource,
    TenantResolver,
    TenantSource,
)
from tenantsync.tenants import Placement, Tenant

__all__ = ["IdentitySyncHandler", "Place"]

Place = Placement | Engine | URL | str
_Answer = Tenant | Place | None
_Callable = Callable[[str], _Answer] | Callable[[str], Awaitable[_Answer]]
_HookT = TypeVar("_HookT", bound=Hook)


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
        hooks: Functions of the application, if they were collected elsewhere; see `on`.
        observers: Who is told what became of each event; by default the log.

    Raises:
        ConfigError: The resolver is none of these.
    """

    def __init__(
        self,
        resolver: "Place | _Callable | TenantSource | AsyncTenantSource | TenantResolver",
        *,
        isolation: Isolation | None = None,
        registry: EngineRegistry | None = None,
        default_app_access: bool = True,
        statement_timeout: float = 5.0,
        hooks: Hooks | None = None,
        observers: Iterable[Observer] | None = None,
    ) -> None:
        self._resolver = _resolver_from(resolver)
        self._registry = registry or EngineRegistry()
        self._owns_registry = registry is None
        self._hooks = hooks or Hooks()
        self._writer = Writer(
            Applier(
                self._registry,
                isolation or DatabaseIsolation(None),
                default_app_access=default_app_access,
                statement_timeout=statement_timeout,
            ),
            self._hooks,
        )
        self._observers = Observers([LoggingObserver()] if observers is None else observers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    async def handle(self, event: Event, *, door: str = "direct") -> Outcome:
        """Apply an event, and return what became of it once that is committed.

        Args:
            event: Authentic, and for this application: see `WebhookRouter` for both checks.
            door: How it came in, for the observers.

        Raises:
            UnknownTenant: No source knows its tenant.
            TenantSyncError: It could not be applied; `retry` says whether it may be, later.
        """
        started = time.monotonic()
        tenant = None
        try:
            if not self._concerns(event):
                return self._told(event, Outcome.IGNORED, door, started, reason="type")
            tenant = await self._resolver.resolve(event.tenant_id)
            outcome = await self._writer.write(event, tenant.placement)
        except TenantSyncError as error:
            self._failed(event, error, door, started, tenant)
            raise
        return self._told(event, outcome, door, started, tenant)

    def handle_blocking(self, event: Event, *, door: str = "direct") -> Outcome:
        """Apply an event, and return what became of it once that is committed.

        The same as `handle`, for a caller without an event loop.
        """
        started = time.monotonic()
        tenant = None
        try:
            if not self._concerns(event):
                return self._told(event, Outcome.IGNORED, door, started, reason="type")
            tenant = self._resolver.resolve_blocking(event.tenant_id)
            outcome = self._writer.write_blocking(event, tenant.placement)
        except TenantSyncError as error:
            self._failed(event, error, door, started, tenant)
            raise
        return self._told(event, outcome, door, started, tenant)

    def observe(self, delivery: Delivery) -> None:
        """Tell the observers of a delivery that a door answered by itself."""
        self._observers(delivery)

    def close(self) -> None:
        """Finish what is being written, and close the connections that are the handler's own."""
        self._writer.close()
        if self._owns_registry:
            self._registry.close()

    def _concerns(self, event: Event) -> bool:
        return event.mirrored or bool(self._hooks.matching(event.type))

    def _told(
        self,
        event: Event,
        outcome: Outcome,
        door: str,
        started: float,
        tenant: Tenant | None = None,
        *,
        reason: str | None = None,
        error: TenantSyncError | None = None,
    ) -> Outcome:
        self._observers(
            Delivery(
                event_id=event.id,
                event_type=event.type,
                tenant=None if tenant is None else tenant.key,
                outcome=None if error is not None else outcome,
                reason=reason,
                error=None if error is None else type(error).__name__,
                seconds=time.monotonic() - started,
                door=door,
            )
        )
        return outcome

    def _failed(
        self,
        event: Event,
        error: TenantSyncError,
        door: str,
        started: float,
        tenant: Tenant | None,
    ) -> None:
        if isinstance(error, UnknownTenant):
            self._told(event, Outcome.IGNORED, door, started, reason="unknown_tenant")
        else:
            self._told(event, Outcome.IGNORED, door, started, tenant, error=error)


class _AskedTenants:
    """A source that asks a function of the application."""

    def __init__(self, function: _Callable) -> None:
        self._function = function

    def find(self, tenant_id: str) -> Tenant | None:
        """Return what the function says; a coroutine where it is one, for the resolver to await."""
        answer = self._function(tenant_id)
        if inspect.isawaitable(answer):
            return cast("Tenant | None", self._awaited(tenant_id, answer))
        return _tenant(tenant_id, answer)

    async def _awaited(self, tenant_id: str, answer: Awaitable[_Answer]) -> Tenant | None:
        return _tenant(tenant_id, await answer)


def _tenant(tenant_id: str, answer: _Answer) -> Tenant | None:
    if answer is None or isinstance(answer, Tenant):
        return answer
    # A key is never taken from the wire; a digest names the tenant in logs all the same.
    digest = hashlib.sha256(tenant_id.encode("utf-8", "surrogatepass")).hexdigest()
    return Tenant(tenant_id, f"t_{digest[:12]}", Placement.of(answer))


def _resolver_from(resolver: object) -> TenantResolver:
    if isinstance(resolver, TenantResolver):
        return resolver
    if isinstance(resolver, Placement | Engine | URL | str):
        return TenantResolver(AnyTenant(Placement.of(resolver)))
    if hasattr(resolver, "find"):
        return TenantResolver(cast("TenantSource", resolver))
    if callable(resolver):
        return TenantResolver(_AskedTenants(cast("_Callable", resolver)))
    raise ConfigError(
        f"a {type(resolver).__name__} does not tell where tenants live: give a blocking SQLAlchemy "
        "Engine, a function from a tenant id to one, or a TenantSource"
    )
