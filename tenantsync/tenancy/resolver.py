"""From AuthVital's tenant id to the tenant, remembered for a while.

Where tenants come from is a TenantSource. "I cannot look it up" is never "there is no such tenant":
a source that raises is answered with what was last known, or with TenantUnavailable.
"""

import asyncio
import contextvars
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol, cast, runtime_checkable

from cachetools import LRUCache, TTLCache

from tenantsync.errors import (
    ConfigError,
    TenantSuspended,
    TenantSyncError,
    TenantUnavailable,
    UnknownTenant,
)
from tenantsync.tenants import MAX_ID_BYTES, Placement, Tenant

__all__ = [
    "AnyTenant",
    "AsyncTenantSource",
    "ListedTenants",
    "TenantHalfMade",
    "TenantListing",
    "TenantResolver",
    "TenantSource",
]

_REMEMBERED: Final = 20_000
_THREADS: Final = 8
_MOST_ASKING: Final = 256
"""Look-ups of a blocking source that may be under way at once."""
_SLOW_FOR: Final = 5.0
"""Seconds after a look-up took too long, in which nobody waits who is known from before."""


class TenantHalfMade(TenantUnavailable):
    """The tenant's place is being made, or whoever made it was interrupted."""


class TenantSource(Protocol):
    """Where tenants come from: a file, a table, a secrets manager."""

    def find(self, tenant_id: str) -> Tenant | None:
        """Return the tenant with AuthVital's id, or None if there is none.

        Args:
            tenant_id: As it came over the wire: hostile until it is found. At most 255 bytes.

        Raises:
            Exception: It could not be looked up; the event is kept for later.
        """


class AsyncTenantSource(Protocol):
    """A source whose look-up is a coroutine."""

    async def find(self, tenant_id: str) -> Tenant | None:
        """Return the tenant with AuthVital's id, or None if there is none."""


@runtime_checkable
class TenantListing(Protocol):
    """A source that can also say who is there: what migrations go through."""

    def list(self) -> Iterable[Tenant]:
        """Return all tenants, suspended ones too."""


class ListedTenants:
    """Tenants from a list: the ones of the configuration file.

    Args:
        tenants: All of them.

    Raises:
        ConfigError: Two of them have one id or one key.
    """

    def __init__(self, tenants: Iterable[Tenant]) -> None:
        self._by_id: dict[str, Tenant] = {}
        keys: set[str] = set()
        for tenant in tenants:
            if tenant.id in self._by_id or tenant.key in keys:
                raise ConfigError(f"tenant {tenant.key!r} has the key or the id of another tenant")
            self._by_id[tenant.id] = tenant
            keys.add(tenant.key)

    def find(self, tenant_id: str) -> Tenant | None:
        """Return the tenant with AuthVital's id, or None if there is none."""
        return self._by_id.get(tenant_id)


class AnyTenant:
    """All tenants in one place: whoever the event names is accepted.

    Args:
        placement: The place.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    def find(self, tenant_id: str) -> Tenant | None:
        """Return the tenant, whoever it is."""
        return Tenant(tenant_id, "any", self._placement)


class TenantResolver:
    """Finds tenants by AuthVital's id, through a cache.

    Args:
        source: Where tenants come from.
        ttl: Seconds that a tenant is remembered.
        negative_ttl: Seconds that it is remembered that there is no such tenant.
        patience: Seconds that `resolve` waits for the source where it knows nothing of the tenant.
        hurry: Seconds that it waits for news of a tenant that it knows from before.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        source: TenantSource | AsyncTenantSource,
        *,
        ttl: float = 30.0,
        negative_ttl: float = 5.0,
        patience: float = 10.0,
        hurry: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._patience = patience
        self._hurry = hurry
        self._clock = clock
        self._slow_until = clock()
        self._asking = 0
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._known: TTLCache[str, Tenant] = TTLCache(_REMEMBERED, ttl, timer=clock)
        self._missing: TTLCache[str, None] = TTLCache(_REMEMBERED, negative_ttl, timer=clock)
        self._last_known: LRUCache[str, Tenant] = LRUCache(_REMEMBERED)
        self._forgotten = 0

    def remembered(self, tenant_id: str | None) -> Tenant | None:
        """Return the tenant if that needs no look-up, else None.

        Raises:
            UnknownTenant: It is remembered, or obvious, that there is no such tenant.
            TenantSuspended: An operator suspended it.
        """
        if not tenant_id or len(tenant_id.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
            raise UnknownTenant(
                f"the event names no tenant, or one longer than {MAX_ID_BYTES} bytes"
            )
        with self._lock:
            tenant = self._known.get(tenant_id)
            if tenant is None and tenant_id in self._missing:
                raise _unknown()
        return None if tenant is None else _in_service(tenant)

    async def resolve(self, tenant_id: str | None) -> Tenant:
        """Return the tenant. A blocking source is asked in a thread, which is none of the loop's.

        A source that does not answer in time counts as one that cannot say.

        Raises:
            UnknownTenant: No source knows it.
            TenantSuspended: An operator suspended it.
            TenantUnavailable: It could not be looked up, and was never known.
        """
        tenant = self.remembered(tenant_id)
        if tenant is not None:
            return tenant
        wanted = cast("str", tenant_id)
        before = self._forgotten
        known = self._last_known.get(wanted) is not None
        if known and self._clock() < self._slow_until:
            return self._fall_back(wanted, TimeoutError())
        try:
            async with asyncio.timeout(self._hurry if known else self._patience) as limit:
                # Shielded: what a thread has begun goes on, and is counted until it ends.
                found = await asyncio.shield(asyncio.wrap_future(self._asked(wanted)))
                if inspect.isawaitable(found):
                    found = await found
            _check(found)
        except TimeoutError as error:
            if known and limit.expired():
                self._slow_until = self._clock() + _SLOW_FOR
            return self._fall_back(wanted, error)
        except Exception as error:  # whatever a source raises means "cannot say"
            return self._fall_back(wanted, error)
        return self._remember(wanted, found, before)

    def resolve_blocking(self, tenant_id: str | None) -> Tenant:
        """Return the tenant. A source with a coroutine runs in an event loop of its own.

        Raises:
            UnknownTenant, TenantSuspended, TenantUnavailable: As `resolve`.
        """
        tenant = self.remembered(tenant_id)
        if tenant is not None:
            return tenant
        wanted = cast("str", tenant_id)
        before = self._forgotten
        try:
            found = self._find_blocking(wanted)
        except Exception as error:  # whatever a source raises means "cannot say"
            return self._fall_back(wanted, error)
        return self._remember(wanted, found, before)

    def find_blocking(self, tenant_id: str) -> Tenant | None:
        """Return the tenant, suspended or not, or None where there is none. Asks anew.

        Raises:
            TenantUnavailable: It could not be looked up, or is not ready.
        """
        try:
            return self._find_blocking(tenant_id)
        except TenantUnavailable:
            raise
        except Exception as error:  # whatever a source raises means "cannot say"
            raise TenantUnavailable(
                f"the tenant could not be looked up: {type(error).__name__}"
            ) from error

    def forget(self, tenant_id: str) -> None:
        """Look a tenant up anew from now on; what was last known stays for outages."""
        with self._lock:
            self._forgotten += 1
            self._slow_until = self._clock()
            self._known.pop(tenant_id, None)
            self._missing.pop(tenant_id, None)

    def close(self) -> None:
        """End the threads that ask; whoever resolves after that starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)

    def _asked(self, tenant_id: str) -> "Future[Any]":
        """Have the source asked on a thread of ours: one that hangs takes none of the loop's."""

        def ask() -> object:
            try:
                return self._source.find(tenant_id)
            finally:
                with self._lock:
                    self._asking -= 1

        context = contextvars.copy_context()
        with self._lock:
            if self._asking >= _MOST_ASKING:
                raise TenantUnavailable(f"{_MOST_ASKING} look-ups are under way already")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tenantsync-tenants")
            try:
                future = self._pool.submit(context.run, ask)
            except RuntimeError:  # no thread can be started: nobody may ever look into its queue
                self._pool = None
                raise
            self._asking += 1
            return future

    def _find_blocking(self, tenant_id: str) -> Tenant | None:
        found = self._source.find(tenant_id)
        if inspect.isawaitable(found):
            found = asyncio.run(_awaited(found))
        _check(found)
        return found

    def _remember(self, tenant_id: str, tenant: Tenant | None, before: int) -> Tenant:
        with self._lock:
            # Somebody said meanwhile that tenants are to be looked up anew: what was found is from
            # before that, and good for its own event only.
            outdated = self._forgotten != before
            if tenant is None:
                if not outdated:
                    self._missing[tenant_id] = None
                    self._known.pop(tenant_id, None)
                    self._last_known.pop(tenant_id, None)
                raise _unknown()
            if not outdated:
                self._missing.pop(tenant_id, None)
                self._known[tenant_id] = self._last_known[tenant_id] = tenant
        return _in_service(tenant)

    def _fall_back(self, tenant_id: str, error: Exception) -> Tenant:
        with self._lock:
            tenant = self._last_known.get(tenant_id)
        if tenant is None:
            if isinstance(error, TenantHalfMade):
                raise error
            retry = isinstance(error, TenantSyncError) and error.retry
            raise TenantUnavailable(
                f"the tenant could not be looked up: {error if retry else type(error).__name__}"
            ) from error
        return _in_service(tenant)


def _unknown() -> UnknownTenant:
    return UnknownTenant("no tenant is registered under the event's tenant id")


def _check(found: object) -> None:
    if found is not None and not isinstance(found, Tenant):
        raise TypeError(f"a source answers with a Tenant or None, not {type(found).__name__}")


def _in_service(tenant: Tenant) -> Tenant:
    if tenant.suspended:
        raise TenantSuspended(f"tenant {tenant.key!r} is suspended: resume it to apply its events")
    return tenant


async def _awaited(found: Awaitable[Tenant | None]) -> Tenant | None:
    return await found
