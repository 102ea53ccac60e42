"""People: who may come in, sessions in a tenant's database, and the provider's own lists."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Final
from weakref import WeakMethod

from sqlalchemy.orm import Session

from tenantsync.app.doors import Doors
from tenantsync.authvital.tokens import AccessTokens
from tenantsync.control.denials import Denials
from tenantsync.errors import UnknownTenant
from tenantsync.models import Identity, IdentityMixin
from tenantsync.sync.authorise import DENIALS, Authoriser
from tenantsync.sync.reconcile import Reconciler
from tenantsync.sync.reconciling import reconciler_of
from tenantsync.tenancy.async_sessions import AsyncTenantSessions
from tenantsync.tenancy.resolver import TenantListing
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.tenants import Tenant
from tenantsync.web.access import AccessControl

if TYPE_CHECKING:  # it needs greenlet, which comes with an extra
    from sqlalchemy.ext.asyncio import AsyncSession

__all__ = ["People"]

_SESSIONS: Final = 0.4
_LOOKS: Final = 0.2
"""Shares of `max_connections` for the application's sessions, and for looking people up. The rest
is for events, which nobody's open session may hold up."""


class People(Doors):
    """The parts and doors of a TenantSync, and what an application asks of the mirror."""

    @cached_property
    def sessions(self) -> TenantSessions:
        """What opens sessions in tenants' databases."""
        return TenantSessions(self.registry, self.isolation, limit=self._share(_SESSIONS))

    @cached_property
    def async_sessions(self) -> AsyncTenantSessions:
        """What opens async sessions; needs the extra `async`.

        Raises:
            ConfigError: It is not installed.
        """
        limit = self._share(_SESSIONS)
        # Where each tenant has a database, a spare connection per tenant would soon be all.
        idle = 1 if self.settings.isolation.strategy == "database" else limit
        return AsyncTenantSessions(self.isolation, limit=limit, idle=idle)

    @contextmanager
    def session(self, key: str, *, read_only: bool = False) -> Iterator[Session]:
        """Give a session in a tenant's database: see `TenantSessions.session`.

        Args:
            key: The tenant's key.
            read_only: Whether it only reads.

        Raises:
            UnknownTenant: There is no tenant with this key.
            TenantSyncError: The tenant cannot be had now.
        """
        with self.sessions.session(self._named(key), read_only=read_only) as session:
            yield session

    @asynccontextmanager
    async def async_session(
        self, key: str, *, read_only: bool = False
    ) -> AsyncIterator["AsyncSession"]:
        """Give an async session in a tenant's database: see `AsyncTenantSessions.session`.

        Its arguments and errors are those of `session`.
        """
        # It may ask the control database.
        tenant = await asyncio.to_thread(self._named, key)
        async with self.async_sessions.session(tenant, read_only=read_only) as session:
            yield session

    def access(self, *, model: type[IdentityMixin] = Identity, cache: float = 0.0) -> AccessControl:
        """Return what lets people in: a Starlette backend and dependencies. Close it at the end.

        Args:
            model: The class of `av_identities`: the application's own, if it has one.
            cache: Seconds for which who was let in is let in again without a look.

        Raises:
            ConfigError: `[authvital] audience` is empty.
        """
        trust = self.settings.authvital
        looks = TenantSessions(
            self.registry,
            self.isolation,
            limit=self._share(_LOOKS),
            statement_timeout=self.settings.isolation.statement_timeout,
        )
        authoriser = Authoriser(
            self.resolver,
            looks,
            denials=Denials(self.control, DENIALS),
            model=model,
            shared=self.settings.isolation.strategy == "single",
            cache=cache,
            threads=self._share(_LOOKS),
        )
        if cache:
            # Weak: who makes one for each test or request must not leave them all here.
            self._forgetting = [each for each in self._forgetting if each() is not None]
            self._forgetting.append(WeakMethod(authoriser.forget))
        tokens = AccessTokens(self.keys, issuer=trust.issuer, audience=trust.audience)
        return AccessControl(tokens, authoriser)

    def reconciler(self) -> Reconciler:
        """Return what compares the mirror with AuthVital's lists. Close it at the end.

        Raises:
            ConfigError: `[authvital]` has no client_id or no client_secret.
        """
        return reconciler_of(self, prepare=self._prepare, observer=self.drift, changed=self._forget)

    def _share(self, of: float) -> int:
        return max(1, round(self.settings.isolation.max_connections * of))

    def _named(self, key: str) -> Tenant:
        if isinstance(self._source, TenantListing):
            found = next((tenant for tenant in self._source.list() if tenant.key == key), None)
        else:
            found = self.directory.named(key)
        if found is None:
            raise UnknownTenant(f"there is no tenant {key!r}: see `tenantsync tenants list`")
        return found
