"""TenantSync: what an application holds in its hand."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from os import PathLike
from typing import Final, Self, TypeVar, Unpack
from uuid import uuid4

from tenantsync.app.parts import Options
from tenantsync.app.people import People
from tenantsync.authvital.keys import KeyRing
from tenantsync.config import Settings, load
from tenantsync.control.database import ControlUnavailable
from tenantsync.control.reconciliations import Reconciliations
from tenantsync.errors import KeysUnavailable
from tenantsync.events import Event
from tenantsync.migrate.provision import Provisioner
from tenantsync.observe import Outcome
from tenantsync.sync.hooks import Hook
from tenantsync.sync.ledger import LedgerPruner
from tenantsync.sync.stale_sessions import StaleSessions
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.worker.cleanup import ScheduledCleanup, SessionCleanup
from tenantsync.worker.drain import Drainer
from tenantsync.worker.loop import Worker
from tenantsync.worker.provisioning import TenantProvisioning
from tenantsync.worker.prune import Pruner, Retention
from tenantsync.worker.schedule import ReconcileSchedule

__all__ = ["TenantSync"]

_HookT = TypeVar("_HookT", bound=Hook)
_LOG: Final = logging.getLogger("tenantsync")
_CLOSED_IN_ORDER: Final = (
    *("webhook", "system_webhook", "pubsub", "handler", "parking", "signals", "registry"),
    "control",
)


class TenantSync(People):
    """Everything that a configuration describes, wired and ready, with nothing opened yet.

    Give its `lifespan` to the application, or call `close` yourself.

    Args:
        settings: The configuration.
        source: Where tenants come from, in place of the configuration's list. Give it `list` too
            (`TenantListing`), and the command line goes through them.
        isolation: How places are made and bound, in place of the configured strategy.
        engine_factory: Makes engines, in place of tenantsync's own.
        observers: Who else is told what became of each event, beside the log and the counters.
        signals: Wakes workers elsewhere, in place of the configured server.
    """

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

    def with_settings(self, settings: Settings) -> "TenantSync":
        """Return another one, of other settings, with the hooks that this one has by now.

        What is registered with either of them later is its own: so tests can have the
        application's hooks with databases of theirs.

        Args:
            settings: The configuration.
        """
        made = TenantSync(settings)
        made._hooks = self._hooks.copy()
        return made

    def on(self, pattern: str) -> Callable[[_HookT], _HookT]:
        """Return a decorator that registers a hook: see `IdentitySyncHandler.on`."""
        return self._hooks.on(pattern)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Hold what is open for as long as the application runs: Starlette's `lifespan`.

        The control database is made or migrated if need be. The keys are fetched on the way in,
        without waiting for them. Unless `[worker] inline` is false, parked events are applied by
        this process too.
        """
        await asyncio.to_thread(self.start)
        warming = asyncio.create_task(asyncio.to_thread(_warm, self.keys))
        try:
            yield
        finally:
            await warming
            if "async_sessions" in self.__dict__:
                await self.async_sessions.close()
            await asyncio.to_thread(self.close)

    def start(self) -> None:
        """Do what `lifespan` does on the way in, for an application without an event loop.

        It starts threads: call it in the process that serves, after all forks, and `close` at the
        end. Or let `tenantsync worker` run beside the application, and do not call it.

        Raises:
            ConfigError: The configuration's `[isolation]` is incomplete, or `[worker] signals`
                wants an extra that is not installed.
        """
        _ = self.signals  # what is wrong with them is said now, not when an event is parked
        try:
            self._prepare()
        except ControlUnavailable as error:
            # What is known serves on; what must be parked is answered 503 until it is back.
            _LOG.error("tenantsync.control_unavailable", extra={"reason": str(error)})
        if self.settings.worker.inline and self._inline is None:
            self._inline = self.worker()
            self._inline.start()
            self._schedule = self.schedule()
            if self._schedule is not None:
                self._schedule.start()

    def worker(self, *, threads: int = 2, with_hooks: bool = True) -> Worker:
        """Return a worker that applies what waits in the inbox; start it, and stop it at the end.

        Args:
            threads: How many tenants are drained at once.
            with_hooks: False leaves the application's hooks out, for good: an event that was
                applied without them does not come again.
        """
        settings = self.settings.worker
        drainer = Drainer(
            self.inbox,
            self.handler,
            provisioning=self._provisioning(),
            owner=_owner(),
            with_hooks=with_hooks,
        )
        isolation = self.settings.isolation
        pruner = Pruner(
            self.inbox,
            LedgerPruner(
                self.registry, self.isolation, statement_timeout=isolation.statement_timeout
            ),
            tenants=self.serving,
            retention=Retention(
                bodies=settings.retain_bodies,
                ids=settings.retain_ids,
                quarantine=settings.retain_quarantine,
            ),
            shared=isolation.strategy == "single",
        )
        return Worker(
            self.inbox,
            drainer,
            pruner,
            tenants=self.serving,
            signals=self.signals,
            chores=[self._cleanup().run],
            interval=settings.interval,
            threads=threads,
        )

    def schedule(self, *, with_hooks: bool = True) -> ReconcileSchedule | None:
        """Return what reconciles every tenant each `[reconcile] every`; start it, and stop it.

        None where `[authvital]` has no client_id and client_secret to ask AuthVital with, and where
        any tenant is accepted, so that nobody can say whose lists to ask for.

        Args:
            with_hooks: Whether the application's hooks hear of those who left.
        """
        trust = self.settings.authvital
        if trust.client_id is None or trust.client_secret is None or self._accepts_any:
            return None
        return ReconcileSchedule(
            Reconciliations(self.control, prepare=self._prepare),
            self.reconciler(),
            tenants=self.serving,
            owner=_owner(),
            every=self.settings.reconcile.every,
            with_hooks=with_hooks,
        )

    def wake(self, tenant_ids: Iterable[str]) -> int:
        """Have parked events of these tenants applied soon: they were registered, or repaired.

        Returns how many of them had any.

        Raises:
            ControlUnavailable: The control database does not answer.
        """
        woken = frozenset(tenant_ids)
        for tenant_id in woken:
            self.handler.forget(tenant_id)
        count = self.inbox.wake(woken)
        self._announce(woken)
        return count

    async def handle(self, event: Event) -> Outcome:
        """Apply an event that is known to be authentic: see `IdentitySyncHandler.handle`."""
        return await self.handler.handle(event)

    def handle_blocking(self, event: Event) -> Outcome:
        """Apply an event, as `handle` does, for a caller without an event loop."""
        return self.handler.handle_blocking(event)

    def close(self) -> None:
        """Finish what is being written, give leases back, and close all connections."""
        for work in (self._schedule, self._inline):
            if work is not None:
                work.stop()
        # Only what was ever made: looking at a cached property would make it.
        for name in _CLOSED_IN_ORDER:
            made = self.__dict__.get(name)
            if made is not None:
                made.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cleanup(self) -> ScheduledCleanup:
        limits = self.settings.isolation
        opened = TenantSessions(
            self.registry, self.isolation, limit=1, statement_timeout=limits.statement_timeout
        )
        return ScheduledCleanup(SessionCleanup(StaleSessions(opened)), tenants=self.serving)

    def _provisioning(self) -> TenantProvisioning | None:
        section = self.settings.provisioning
        if section.on_tenant_created == "ignore":
            return None
        provisioner = Provisioner.of(
            self.settings, self.directory, self.isolation, factory=self.engine_factory
        )
        return TenantProvisioning(
            self._policy,
            self.profiles,
            provisioner.add,
            suspend=self._suspend,
            max_per_hour=section.max_per_hour,
        )


def _owner() -> str:
    """Return who holds a lease, for people who look into the table."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid4().hex[:8]}"


def _warm(keys: KeyRing) -> None:
    try:
        keys.refresh()
    except KeysUnavailable as error:
        _LOG.warning("tenantsync.keys_unavailable", extra={"reason": str(error)})
