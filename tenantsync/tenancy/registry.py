"""Which engines are open, who uses them, and how many connections a server may see.

Engines are cached per database, not per tenant: ten thousand schemas share one pool. They are
leased, and disposed only when nobody uses them: disposing one in the middle of a transaction would
turn a busy tenant into a failing one. What is bounded is connections, per server.
"""

import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from sqlalchemy import Connection, Engine, QueuePool

from tenantsync.errors import TenantUnavailable
from tenantsync.tenancy.engines import EngineFactory, answering, make_engine
from tenantsync.tenants import Placement

__all__ = ["EngineRegistry", "NoConnection"]


class NoConnection(TenantUnavailable):
    """No connection became free in time. It says nothing against the tenant's database."""


@dataclass(slots=True)
class _Held:
    """An engine that is open, and how many lease it."""

    engine: Engine
    server: str | None
    leases: int = 0

    @property
    def connections(self) -> int:
        """How many connections exist, or are about to."""
        pool = self.engine.pool
        existing = pool.checkedin() + pool.checkedout() if isinstance(pool, QueuePool) else 0
        return max(existing, self.leases)


class EngineRegistry:
    """Hands out connections to any tenant's database.

    Opens nothing until it is asked. Close it, or use it as a context manager; one that is thrown
    away with engines open says so with a ResourceWarning.

    Args:
        max_engines: How many databases may have an engine at once. A further one waits until one
            is unused, which is then disposed, the least recently used first.
        max_connections: How many connections this process may have to one PostgreSQL server, over
            all its databases, idle ones included. SQLite files are bounded by `max_engines`.
        per_database: How many of them one database may have, so that one that hangs leaves some
            to the others. By default half, or `idle` if that is more.
        idle: How many unused connections one engine keeps. Let it be `max_connections` where all
            tenants share a database, and 1 where each has its own.
        patience: Seconds that a caller waits for an engine or a connection to become free.
        factory: Makes an engine for a URL.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        max_engines: int = 64,
        max_connections: int = 10,
        per_database: int | None = None,
        idle: int = 1,
        patience: float = 5.0,
        factory: EngineFactory = make_engine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_engines = max_engines
        self._max_connections = max_connections
        self._idle = min(idle, max_connections)
        share = max(self._idle, -(-max_connections // 2)) if per_database is None else per_database
        self._per_database = min(share, max_connections)
        self._patience = patience
        self._factory = factory
        self._clock = clock
        self._changed = threading.Condition()
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()  # the least recently used first
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_held", None):
            warnings.warn(
                "an EngineRegistry was thrown away with engines open: close it, or let the "
                "application's lifespan do so",
                ResourceWarning,
                stacklevel=2,
            )

    @property
    def engines(self) -> int:
        """How many engines are open now."""
        with self._changed:
            return len(self._held)

    @contextmanager
    def connect(
        self, placement: Placement, *, answer_timeout: float | None = None
    ) -> Iterator[Connection]:
        """Lease a connection to the placement's database; bind it before you use it.

        The connection is returned on leaving, and what was not committed is rolled back.

        Args:
            placement: Whose database it is.
            answer_timeout: Seconds to wait for the answer to one statement before the connection
                is given up: a PostgreSQL server that hangs keeps none of its own timeouts. None
                waits for as long as it takes. An engine of the caller's own, or one whose factory
                does not use `make_engine`, is not bounded.

        Raises:
            NoConnection: No engine or connection became free in time.
            TenantUnavailable: The registry is closed. Errors of the driver, such as a refused
                connection, come out as they are.
        """
        if placement.engine is not None:
            with placement.engine.connect() as connection, _rolled_back(connection):
                yield connection
            return
        held = self._lease(placement)
        try:
            with (
                held.engine.connect() as connection,
                answering(connection, answer_timeout),
                _rolled_back(connection),
            ):
                yield connection
        finally:
            self._release(held)

    def close(self) -> None:
        """Dispose every engine. Leased ones are disposed when they come back."""
        with self._changed:
            self._closed = True
            for database, held in list(self._held.items()):
                if held.leases == 0:
                    self._dispose(database)
            self._changed.notify_all()

    def _lease(self, placement: Placement) -> _Held:
        deadline = self._clock() + self._patience
        with self._changed:
            while True:
                if self._closed:
                    raise TenantUnavailable("the application is stopping")
                held = self._find(placement)
                if held is not None and self._admit(held):
                    self._held.move_to_end(placement.database)
                    held.leases += 1
                    return held
                if not self._changed.wait(deadline - self._clock()):
                    raise NoConnection(
                        f"no connection became free within {self._patience:g} s: raise "
                        "max_connections or max_engines, or look for slow statements"
                    )

    def _find(self, placement: Placement) -> _Held | None:
        """Return the database's engine, made now if there is room; None where there is none."""
        held = self._held.get(placement.database)
        if held is None:
            if len(self._held) >= self._max_engines and not self._dispose_unused():
                return None
            engine = self._factory(placement.url, pool_size=self._idle)
            held = self._held[placement.database] = _Held(engine, placement.server)
        return held

    def _admit(self, held: _Held) -> bool:
        """Whether the engine's server may have one more connection in use."""
        if held.server is None:
            return True
        if held.leases >= self._per_database:
            return False
        opens = held.leases >= held.connections
        while self._connections(held.server) + opens > self._max_connections:
            if not self._dispose_unused(held.server, keep=held):
                return False
        return True

    def _connections(self, server: str) -> int:
        return sum(held.connections for held in self._held.values() if held.server == server)

    def _dispose_unused(self, server: str | None = None, keep: _Held | None = None) -> bool:
        for database, held in self._held.items():
            if held.leases == 0 and held is not keep and server in (None, held.server):
                self._dispose(database)
                return True
        return False

    def _dispose(self, database: Hashable) -> None:
        self._held.pop(database).engine.dispose()

    def _release(self, held: _Held) -> None:
        with self._changed:
            held.leases -= 1
            if held.leases == 0 and self._closed:
                self._dispose(next(key for key, other in self._held.items() if other is held))
            self._changed.notify_all()


@contextmanager
def _rolled_back(connection: Connection) -> Iterator[None]:
    """Roll back whatever is open after an error.

    SQLAlchemy takes a COMMIT that failed for the end of the transaction. SQLite does not: after a
    violated deferred constraint the transaction is still open, and would be pooled like that.
    """
    try:
        yield
    except BaseException:
        if not connection.invalidated:
            with suppress(Exception):  # a broken connection; the error under way says why
                connection.connection.rollback()
        raise
