"""Sessions bound to tenants for applications with an event loop: `AsyncSession`.

Over psycopg's async connections and aiosqlite. Both, and greenlet, which SQLAlchemy needs for it,
come with the extra `async`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from tenantsync.errors import ConfigError, TenantUnavailable
from tenantsync.tenancy.engines import connect_arguments, watch_file
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenancy.registry import NoConnection
from tenantsync.tenancy.sessions import bind_transactions, place_of, translate
from tenantsync.tenants import Placement, Tenant

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

try:
    import aiosqlite  # SQLAlchemy looks for it later, when a file is opened
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
except ImportError:  # of greenlet, says SQLAlchemy, when its module for this is imported
    _INSTALLED = False
else:
    _INSTALLED = bool(aiosqlite.__name__)

__all__ = ["AsyncEngineFactory", "AsyncTenantSessions", "make_async_engine"]

_MOST_ENGINES: Final = 64


class AsyncEngineFactory(Protocol):
    """Makes the async engine of one database; give your own to fetch passwords, trace, or tune."""

    def __call__(self, url: URL, *, pool_size: int) -> "AsyncEngine":
        """Return an async engine for the database.

        Args:
            url: The database, as the placement has it.
            pool_size: How many connections may lie idle in its pool.
        """


def make_async_engine(
    url: URL,
    *,
    pool_size: int = 1,
    max_overflow: int = 64,
    connect_timeout: float = 2.0,
    lock_timeout: float = 5.0,
) -> "AsyncEngine":
    """Return an async engine as tenantsync wants it: as `make_engine` does. Nothing is opened yet.

    Args:
        url: The database.
        pool_size: How many connections may lie idle.
        max_overflow: How many more may be open at once; they are closed when returned.
        connect_timeout: Seconds to wait for a connection.
        lock_timeout: Seconds to wait for SQLite's write lock.

    Raises:
        ConfigError: The extra `async` is not installed, or the URL's `prepare_threshold` is neither
            a number nor `none`.
    """
    _require()
    bounds = {"pool_size": pool_size, "max_overflow": max_overflow, "pool_timeout": connect_timeout}
    if url.get_backend_name() != "sqlite":
        arguments = connect_arguments(url, connect_timeout)
        return create_async_engine(url, connect_args=arguments, pool_use_lifo=True, **bounds)
    # `rw`, so that a wrong path never becomes an empty database.
    file = URL.create(
        "sqlite+aiosqlite",
        database=f"file:{quote(str(Path(url.database or '').absolute()))}",
        query={"mode": "rw", "uri": "true"},
    )
    told = {"timeout": lock_timeout, "isolation_level": None}
    engine = create_async_engine(file, connect_args=told, pool_use_lifo=True, **bounds)

    @event.listens_for(engine.sync_engine, "connect")
    def tell(driver: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = driver.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    watch_file(engine.sync_engine, url)
    return engine


@dataclass(slots=True)
class _Held:
    """An engine that is open, and how many sessions use it."""

    engine: "AsyncEngine"
    leases: int = 0

    @property
    def connections(self) -> int:
        """How many connections exist, or are about to."""
        pool = self.engine.pool
        existing = pool.checkedin() + pool.checkedout() if isinstance(pool, QueuePool) else 0
        return max(existing, self.leases)


class AsyncTenantSessions:
    """Opens async sessions that are bound to tenants. Of one event loop; close it at the end.

    Args:
        isolation: Binds a transaction to a place and proves it.
        limit: How many sessions may be open at once, over all tenants: each holds a connection.
        idle: How many unused connections one database keeps. Let it be `limit` where all tenants
            share a database, and 1 where each has its own.
        patience: Seconds that a caller waits for another's session to end.
        statement_timeout: Seconds that one statement may take on PostgreSQL, waiting for locks
            included; None leaves that to the server.
        factory: Makes an engine for a URL.

    Raises:
        ConfigError: The extra `async` is not installed.
    """

    def __init__(
        self,
        isolation: Isolation,
        *,
        limit: int = 5,
        idle: int = 1,
        patience: float = 5.0,
        statement_timeout: float | None = None,
        factory: AsyncEngineFactory = make_async_engine,
    ) -> None:
        _require()
        self._isolation = isolation
        self._limit = limit
        self._idle = min(idle, limit)
        self._patience = patience
        self._statement_timeout = statement_timeout
        self._factory = factory
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()  # the least recently used first
        self._loop: asyncio.AbstractEventLoop | None = None
        self._free = asyncio.Semaphore(limit)

    @asynccontextmanager
    async def session(
        self, tenant: Tenant | Placement, *, read_only: bool = False
    ) -> "AsyncIterator[AsyncSession]":
        """Give an async session in the tenant's place; see `TenantSessions.session`.

        What it loaded stays loaded after a commit, because it could not be loaded again by itself.

        Args:
            tenant: The tenant, or the place.
            read_only: Whether it only reads; then the database refuses to write.

        Raises:
            ConfigError: The place has a blocking engine of the caller's own; or this is another
                event loop than before.
            TenantSuspended, NoConnection, TenantNotIsolated: As `TenantSessions.session`.
            TenantUnavailable: The SQLite file does not exist.
            Exception: What SQLAlchemy raises for a database that cannot be reached, as it is.
        """
        place = place_of(tenant)
        self._check(place)
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise NoConnection(
                f"no session became free within {self._patience:g} s: close sessions sooner, or "
                f"allow more than {self._limit}"
            ) from None
        try:
            held = await self._lease(place)
            try:
                async with (
                    held.engine.connect() as connection,
                    self._bound(connection, place, read_only=read_only) as session,
                ):
                    yield session
            finally:
                held.leases -= 1
        finally:
            self._free.release()

    async def close(self) -> None:
        """Close all connections; sessions that are open keep theirs until they end."""
        while self._held:
            _, held = self._held.popitem()
            await held.engine.dispose()
        self._loop = None

    @asynccontextmanager
    async def _bound(
        self, connection: "AsyncConnection", place: Placement, *, read_only: bool
    ) -> "AsyncIterator[AsyncSession]":
        blocking = connection.sync_connection
        if blocking is None:
            raise TenantUnavailable("the connection was closed before it was used")
        translate(blocking, place)
        bind_transactions(
            blocking,
            self._isolation,
            place,
            read_only=read_only,
            statement_timeout=self._statement_timeout,
        )
        refuses = read_only and not place.is_postgres
        if refuses:
            await self._tell(connection, "PRAGMA query_only = ON")
        try:
            async with AsyncSession(
                bind=connection, expire_on_commit=False, join_transaction_mode="control_fully"
            ) as session:
                yield session
        finally:
            if refuses and not (connection.closed or connection.invalidated):
                # The connection goes back to the pool, for somebody who writes.
                await self._tell(connection, "PRAGMA query_only = OFF")

    async def _tell(self, connection: "AsyncConnection", pragma: str) -> None:
        raw = await connection.get_raw_connection()
        driver = raw.driver_connection
        if driver is not None:
            await (await driver.execute(pragma)).close()

    def _check(self, place: Placement) -> None:
        if place.engine is not None:
            raise ConfigError(
                "this tenant's place has a blocking engine of its own: use the blocking session, "
                "or give the place as a URL"
            )
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise ConfigError(
                "these sessions belong to another event loop: close them there first, or make "
                "others here"
            )
        self._loop = loop
        if not place.is_postgres and not Path(str(place.url.database)).is_file():
            name = Path(str(place.url.database)).name
            raise TenantUnavailable(
                f"the SQLite file {name} does not exist: run `tenantsync migrate upgrade`"
            )

    async def _lease(self, place: Placement) -> _Held:
        held = self._held.get(place.database)
        if held is None:
            engine = self._factory(place.url, pool_size=self._idle)
            held = self._held[place.database] = _Held(engine)
        self._held.move_to_end(place.database)
        # Counted before anything is awaited, so that nobody disposes it meanwhile.
        held.leases += 1
        try:
            await self._make_room()
        except BaseException:
            held.leases -= 1
            raise
        return held

    async def _make_room(self) -> None:
        """Dispose what nobody uses while there is more open than allowed."""
        while (
            len(self._held) > _MOST_ENGINES
            or sum(held.connections for held in self._held.values()) > self._limit
        ):
            unused = next((key for key, held in self._held.items() if held.leases == 0), None)
            if unused is None:
                return
            with suppress(Exception):  # it was idle; that it does not close well harms nobody
                await self._held.pop(unused).engine.dispose()


def _require() -> None:
    if not _INSTALLED:
        raise ConfigError(
            "async sessions need greenlet and aiosqlite: install tenantsync[async], or use the "
            "blocking session"
        )
