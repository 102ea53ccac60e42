"""What a configuration describes, part by part: databases, tenants, the inbox, the handler."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Final, TypedDict
from weakref import WeakMethod

from tenantsync.config import Settings
from tenantsync.control.catalog import Catalog
from tenantsync.control.database import ControlDatabase, ControlMissing
from tenantsync.control.directory import Directory
from tenantsync.control.inbox import Inbox, Totals
from tenantsync.control.profiles import TenantProfiles
from tenantsync.errors import ConfigError
from tenantsync.metrics import PrometheusObserver
from tenantsync.migrate.control import upgrade_control
from tenantsync.observe import LoggingObserver, Observer, OutcomeCounter
from tenantsync.sync.drift import DriftCounter
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.hooks import Hooks
from tenantsync.sync.parking import Parking
from tenantsync.sync.signals import Signals
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
from tenantsync.worker.loop import Worker
from tenantsync.worker.nats import NatsSignals
from tenantsync.worker.schedule import ReconcileSchedule

__all__ = ["Options", "Parts"]

_LONGEST_PATIENCE: Final = 20.0
"""Seconds: AuthVital's sender gives up after 30."""


class Options(TypedDict, total=False):
    """What a program may put in place of what the configuration says: see `TenantSync`."""

    source: TenantSource | AsyncTenantSource | None
    isolation: Isolation | None
    engine_factory: EngineFactory | None
    observers: Iterable[Observer]
    signals: Signals | None


class Parts:
    """The parts of a TenantSync; each is made when it is first looked at, and opens nothing then.

    Its arguments are those of TenantSync.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        source: TenantSource | AsyncTenantSource | None = None,
        isolation: Isolation | None = None,
        engine_factory: EngineFactory | None = None,
        observers: Iterable[Observer] = (),
        signals: Signals | None = None,
    ) -> None:
        self.settings = settings
        self.counter = OutcomeCounter()
        self.drift = DriftCounter()
        self._signals = signals
        self._source = source
        self._isolation = isolation
        self.engine_factory = engine_factory
        self._observers = tuple(observers)
        self._hooks = Hooks()
        self._inline: Worker | None = None
        self._forgetting: list[WeakMethod[Callable[[str, str], None]]] = []
        self._schedule: ReconcileSchedule | None = None

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

    def serving(self) -> Sequence[Tenant]:
        """Return the tenants that a worker looks after: one without a place stops nobody.

        Where all share one place and any tenant is accepted, one stands for all.

        Raises:
            TenantUnavailable: The control database does not answer.
        """
        if isinstance(self._source, TenantListing):
            return tuple(self._source.list())
        if self._accepts_any:
            return (Tenant("any", "any", self.isolation.place("any")),)
        return self.directory.sound()

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
    def inbox(self) -> Inbox:
        """What was accepted and cannot be applied yet."""
        return Inbox(self.control)

    @cached_property
    def profiles(self) -> TenantProfiles:
        """What AuthVital told of tenants: their names, and which were deleted there."""
        return TenantProfiles(self.control, prepare=self._prepare)

    @cached_property
    def parking(self) -> Parking:
        """The way into the inbox."""
        return Parking(self.inbox, prepare=self._prepare, parked=self._announce)

    @cached_property
    def signals(self) -> Signals | None:
        """What wakes workers in other processes; None where nothing was configured for it."""
        if self._signals is not None:
            return self._signals
        url = self.settings.worker.signals
        if url is None:
            return None
        return NatsSignals(url, name=self.settings.authvital.application_id)

    @cached_property
    def metrics(self) -> PrometheusObserver | None:
        """The counters for Prometheus; None where the extra `metrics` is not installed.

        One that is among the observers is taken for it.
        """
        given = [each for each in self._observers if isinstance(each, PrometheusObserver)]
        try:
            observer = given[0] if given else PrometheusObserver()
        except ConfigError:
            return None
        observer.watch(
            inbox=self.inbox_totals,
            breakers_open=lambda: self.handler.breakers_open,
            worker=self._worked,
            drift=self.drift.counts,
        )
        return observer

    def inbox_totals(self) -> Totals:
        """Return how much the inbox holds; nothing where there is no control database yet.

        Raises:
            ControlUnavailable: It does not answer.
        """
        try:
            return self.inbox.totals()
        except ControlMissing:
            return Totals()

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
    def resolver(self) -> TenantResolver:
        """What finds a tenant by AuthVital's id."""
        return TenantResolver(self._source or self._listed())

    @cached_property
    def handler(self) -> IdentitySyncHandler:
        """What applies events."""
        settings = self.settings.isolation
        return IdentitySyncHandler(
            self.resolver,
            isolation=self.isolation,
            registry=self.registry,
            default_app_access=self.settings.authvital.default_app_access,
            statement_timeout=settings.statement_timeout,
            patience=_patience(settings.connect_timeout + settings.statement_timeout),
            parking=self.parking,
            hooks=self._hooks,
            observers=self._listening(),
            changed=self._forget,
        )

    def _forget(self, tenant_id: str, sub: str) -> None:
        """Have whoever remembers a person look again: an event about them was taken."""
        for each in tuple(self._forgetting):
            forget = each()
            if forget is not None:
                forget(tenant_id, sub)

    def _listening(self) -> list[Observer]:
        observers: list[Observer] = [LoggingObserver(), self.counter, *self._observers]
        if self.metrics is not None and self.metrics not in observers:
            observers.append(self.metrics)
        return observers

    @property
    def _accepts_any(self) -> bool:
        isolation = self.settings.isolation
        return isolation.strategy == "single" and isolation.accept_any_tenant

    def _listed(self) -> TenantSource:
        return AnyTenant(self.isolation.place("any")) if self._accepts_any else self.directory

    def _suspend(self, key: str) -> None:
        if self._accepts_any:
            return  # one place for whoever comes: there is nobody to suspend
        self.directory.catalog.suspend(key)
        self.directory.forget()

    def _prepare(self) -> None:
        upgrade_control(self.control)

    def _worked(self) -> dict[str, int]:
        """Return what this process's worker did so far, for the counters."""
        return {} if self._inline is None else self._inline.totals().counts()

    def _announce(self, tenant_ids: frozenset[str]) -> None:
        """Tell workers, here and elsewhere, that there is something to apply."""
        worker, signals = self._inline, self.signals
        if worker is not None:
            for tenant_id in tenant_ids:
                worker.wake(tenant_id)
        if signals is not None:
            for tenant_id in tenant_ids:
                signals.publish(tenant_id)


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


def _patience(timeouts: float) -> float:
    """Return how long a sender waits for a tenant: time enough to fail for a reason."""
    return min(timeouts + 3.0, _LONGEST_PATIENCE)
