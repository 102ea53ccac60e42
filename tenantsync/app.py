"""TenantSync: the one place where the collaborators are wired together."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import cached_property, partial
from os import PathLike
from typing import Final, Self, TypedDict, TypeVar, Unpack

from starlette.routing import Route

from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.signatures import Verifier
from tenantsync.config import Settings, load
from tenantsync.control.catalog import Catalog
from tenantsync.control.database import ControlDatabase
from tenantsync.control.directory import Directory
from tenantsync.errors import ConfigError, KeysUnavailable
from tenantsync.events import Event
from tenantsync.observe import LoggingObserver, Observer, Outcome, OutcomeCounter
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.hooks import Hook, Hooks
from tenantsync.tenancy.engines import EngineFactory, make_engine
from tenantsync.tenancy.isolation import (
    DatabaseIsolation,
    Isolation,
    SchemaIsolation,
    SingleIsolation,
)
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenancy.resolver import (
    AnyTenant,
    AsyncTenantSource,
    TenantListing,
    TenantResolver,
    TenantSource,
)
from tenantsync.tenants import Tenant
from tenantsync.web.webhook import NotFound, WebhookRouter

__all__ = ["TenantSync"]

_HookT = TypeVar("_HookT", bound=Hook)
_LOG: Final = logging.getLogger("tenantsync")


class Options(TypedDict, total=False):
    """What a program may put in place of what the configuration says: see `TenantSync`."""

    source: TenantSource | AsyncTenantSource | None
    isolation: Isolation | None
    engine_factory: EngineFactory | None
    observers: Iterable[Observer]


class TenantSync:
    """Everything that a configuration describes, wired and ready, with nothing opened yet.

    Give its `lifespan` to the application, or call `close` yourself.

    Args:
        settings: The configuration.
        source: Where tenants come from, in place of the configuration's list. Give it `list` too
            (`TenantListing`), and the command line goes through them.
        isolation: How places are made and bound, in place of the configured strategy.
        engine_factory: Makes engines, in place of tenantsync's own.
        observers: Who else is told what became of each event, beside the log and the counter.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        source: TenantSource | AsyncTenantSource | None = None,
        isolation: Isolation | None = None,
        engine_factory: EngineFactory | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self.settings = settings
        self.counter = OutcomeCounter()
        self._source = source
        self._isolation = isolation
        self.engine_factory = engine_factory
        self._observers: tuple[Observer, ...] = (LoggingObserver(), self.counter, *observers)
        self._hooks = Hooks()

    @classmethod
    def from_toml(
        cls, path: str | PathLike[str] = "tenantsync.toml", **options: Unpack[Options]
    ) -> Self:
        """Return what a configuration file describes.

        Args:
            path: The file; docs/reference/config.md lists its keys.
            options: As the constructor's.

        Raises:
            ConfigError: The file is missing or wrong; the message says which key and what is
                allowed.
        """
        return cls(load(path), **options)

    @cached_property
    def isolation(self) -> Isolation:
        """How places are made, bound and proven."""
        return self._isolation or _isolation_from(self.settings)

    @property
    def tenants(self) -> tuple[Tenant, ...]:
        """All tenants in service, looked up anew: those of the file and of the control database.

        With a source of its own that can list them: the source's.

        Raises:
            TenantUnavailable: The control database does not answer.
        """
        if isinstance(self._source, TenantListing):
            return tuple(self._source.list())
        return tuple(self.directory.list())

    @cached_property
    def control(self) -> ControlDatabase:
        """Where tenants added at run time and suspensions are kept; opened when it is used."""
        isolation = self.settings.isolation
        return ControlDatabase(
            self.settings.control.url,
            connect_timeout=isolation.connect_timeout,
            statement_timeout=isolation.statement_timeout,
        )

    @cached_property
    def directory(self) -> Directory:
        """The one list of the file's tenants and of those that were added at run time."""
        return Directory(
            [
                Tenant(
                    tenant.id,
                    key,
                    self.isolation.place(
                        key, url=tenant.url, schema=tenant.schema, role=tenant.role
                    ),
                )
                for key, tenant in self.settings.tenants.items()
            ],
            Catalog(self.control),
            self.isolation,
            shared=self.settings.isolation.strategy == "single",
        )

    @cached_property
    def registry(self) -> EngineRegistry:
        """The open engines."""
        settings = self.settings.isolation
        factory = self.engine_factory or partial(
            make_engine,
            connect_timeout=settings.connect_timeout,
            lock_timeout=settings.statement_timeout,
        )
        return EngineRegistry(
            max_engines=settings.max_engines,
            max_connections=settings.max_connections,
            # Where each tenant has a database, a spare connection per tenant would soon be all
            # that the server has.
            idle=1 if settings.strategy == "database" else settings.max_connections,
            patience=settings.statement_timeout,
            factory=factory,
        )

    @cached_property
    def handler(self) -> IdentitySyncHandler:
        """What applies events."""
        return IdentitySyncHandler(
            TenantResolver(self._source or self._listed()),
            isolation=self.isolation,
            registry=self.registry,
            default_app_access=self.settings.authvital.default_app_access,
            statement_timeout=self.settings.isolation.statement_timeout,
            hooks=self._hooks,
            observers=self._observers,
        )

    @cached_property
    def keys(self) -> KeyRing:
        """AuthVital's public keys."""
        return KeyRing(f"{self.settings.authvital.host}/.well-known/jwks.json")

    @cached_property
    def webhook(self) -> WebhookRouter:
        """The door for sync webhooks."""
        settings = self.settings.authvital
        return WebhookRouter(
            self.handler,
            application_id=settings.application_id,
            verifier=Verifier(self.keys, max_age=settings.max_age, max_skew=settings.max_skew),
            documented_dialect=settings.documented_dialect,
        )

    def on(self, pattern: str) -> Callable[[_HookT], _HookT]:
        """Return a decorator that registers a hook: see `IdentitySyncHandler.on`."""
        return self._hooks.on(pattern)

    def routes(self, path: str = "/webhooks/authvital") -> list[Route]:
        """Return the routes to mount, at exactly this path.

        With a slash more, or less, there is a plain 404: where nothing is, frameworks redirect,
        and AuthVital may take what it finds there for success.

        Raises:
            ConfigError: The configuration's `[authvital]` or `[isolation]` is incomplete.
        """
        sibling = path.removesuffix("/") if path.endswith("/") else f"{path}/"
        routes = [Route(path, self.webhook)]
        return [*routes, Route(sibling, NotFound())] if sibling else routes

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Hold what is open for as long as the application runs: Starlette's `lifespan`.

        The keys are fetched on the way in, without waiting for them.
        """
        for key in self.settings.unused:
            _LOG.warning("tenantsync.unused_key", extra={"key": key})
        warming = asyncio.create_task(asyncio.to_thread(_warm, self.keys))
        try:
            yield
        finally:
            await warming
            await asyncio.to_thread(self.close)

    async def handle(self, event: Event) -> Outcome:
        """Apply an event that is known to be authentic: see `IdentitySyncHandler.handle`."""
        return await self.handler.handle(event)

    def handle_blocking(self, event: Event) -> Outcome:
        """Apply an event, as `handle` does, for a caller without an event loop."""
        return self.handler.handle_blocking(event)

    def close(self) -> None:
        """Finish what is being written, and close all connections."""
        # Only what was ever made: looking at a cached property would make it.
        for name in ("webhook", "handler", "registry", "control"):
            made = self.__dict__.get(name)
            if made is not None:
                made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _listed(self) -> TenantSource:
        isolation = self.settings.isolation
        if isolation.strategy == "single" and isolation.accept_any_tenant:
            return AnyTenant(self.isolation.place("any"))
        return self.directory


def _isolation_from(settings: Settings) -> Isolation:
    section = settings.isolation
    if section.strategy == "database":
        return DatabaseIsolation(section.url, role=section.role)
    if section.url is None:
        raise ConfigError(f"{settings.path.name}: [isolation] url: is missing; give a database URL")
    if section.strategy == "schema":
        schema = section.schema or "tenant_{key}"
        return SchemaIsolation(section.url, schema=schema, role=section.role)
    return SingleIsolation(section.url, schema=section.schema, role=section.role)


def _warm(keys: KeyRing) -> None:
    try:
        keys.refresh()
    except KeysUnavailable as error:
        _LOG.warning("tenantsync.keys_unavailable", extra={"reason": str(error)})
