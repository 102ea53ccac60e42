"""How an application tells where tenants live: a place for all, or a function to ask."""

import hashlib
import inspect
from collections.abc import Awaitable, Callable
from typing import cast

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from tenantsync.errors import ConfigError
from tenantsync.tenancy.resolver import AnyTenant, TenantResolver, TenantSource
from tenantsync.tenants import Placement, Tenant

__all__ = ["AskingTenant", "Place", "resolver_from"]

Place = Placement | Engine | URL | str
_Answer = Tenant | Place | None
AskingTenant = Callable[[str], _Answer] | Callable[[str], Awaitable[_Answer]]


class _AskedTenants:
    """A source that asks a function of the application."""

    def __init__(self, function: AskingTenant) -> None:
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


def resolver_from(resolver: object) -> TenantResolver:
    """Return the resolver that an application's way of telling amounts to.

    Args:
        resolver: A place: all tenants live there. A function, blocking or async, from AuthVital's
            tenant id to a place, a Tenant or None. A source, or a resolver.

    Raises:
        ConfigError: It is none of these.
    """
    if isinstance(resolver, TenantResolver):
        return resolver
    if isinstance(resolver, Placement | Engine | URL | str):
        return TenantResolver(AnyTenant(Placement.of(resolver)))
    if hasattr(resolver, "find"):
        return TenantResolver(cast("TenantSource", resolver))
    if callable(resolver):
        return TenantResolver(_AskedTenants(cast("AskingTenant", resolver)))
    raise ConfigError(
        f"a {type(resolver).__name__} does not tell where tenants live: give a blocking SQLAlchemy "
        "Engine, a function from a tenant id to one, or a TenantSource"
    )
