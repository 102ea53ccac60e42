"""SQLAlchemy sessions whose every transaction is put into a tenant's place and proven to be there.

For who asks and writes in a tenant's database beside the events: an application's handlers. The
models are the application's own, without a schema; the place decides where their tables stand.
"""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Final

from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.orm import Session
from sqlalchemy.orm.session import JoinTransactionMode

from tenantsync.errors import TenantNotIsolated, TenantSuspended
from tenantsync.tenancy.engines import READ_ONLY
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenancy.registry import EngineRegistry, NoConnection
from tenantsync.tenants import Placement, Tenant

__all__ = ["TenantSessions", "bind_transactions", "bound_session", "place_of", "translate"]

# All of them LOCAL: nothing may be left on a pooled connection.
_LIMIT: Final = "set_config('statement_timeout', %s, true)"
_READS_ONLY: Final = "set_config('transaction_read_only', 'on', true)"
# As the isolation asks, but for the id: to ask a transaction for one gives it one, and who only
# reads should not use up the server's.
_LOOK: Final = (
    "SELECT current_schema(), current_user, session_user, pg_current_xact_id_if_assigned()::text"
)
_ANSWER_GRACE: Final = 1.0
"""Seconds for the answer to arrive, after the server has given a statement up."""


class TenantSessions:
    """Opens sessions that are bound to tenants; safe to use from any thread.

    Args:
        registry: Where connections come from.
        isolation: Binds a transaction to a place and proves it.
        limit: How many sessions may be open at once, over all tenants. Each holds a connection
            for as long as it is open; let it be less than the registry's `max_connections`, so
            that some are left for events.
        patience: Seconds that a caller waits for another's session to end.
        statement_timeout: Seconds that one statement may take on PostgreSQL, waiting for locks
            included; None leaves that to the server.
    """

    def __init__(
        self,
        registry: EngineRegistry,
        isolation: Isolation,
        *,
        limit: int = 5,
        patience: float = 5.0,
        statement_timeout: float | None = None,
    ) -> None:
        self._registry = registry
        self._isolation = isolation
        self._limit = limit
        self._free = threading.BoundedSemaphore(limit)
        self._patience = patience
        self._statement_timeout = statement_timeout

    @contextmanager
    def session(self, tenant: Tenant | Placement, *, read_only: bool = False) -> Iterator[Session]:
        """Give a session in the tenant's place.

        Each of its transactions, also after a commit or a rollback, is bound to the place before
        its first statement, and proven to be still there before it commits. What was not committed
        on leaving is rolled back. A session whose proof failed is closed for good.

        Args:
            tenant: The tenant, or the place.
            read_only: Whether it only reads: then the database refuses to write, and on SQLite it
                waits for no writer and holds none up.

        Raises:
            TenantSuspended: An operator suspended the tenant.
            NoConnection: No connection became free in time.
            TenantNotIsolated: The transaction is not in the tenant's place; nothing was written.
            Exception: What SQLAlchemy raises for a database that cannot be reached, as it is.
        """
        place = place_of(tenant)
        timeout = self._statement_timeout
        if not self._free.acquire(timeout=self._patience):
            raise NoConnection(
                f"no session became free within {self._patience:g} s: close sessions sooner, or "
                f"allow more than {self._limit}"
            )
        try:
            answer = None if timeout is None else timeout + _ANSWER_GRACE
            with self._registry.connect(place, answer_timeout=answer) as connection:
                bind_transactions(
                    connection,
                    self._isolation,
                    place,
                    read_only=read_only,
                    statement_timeout=timeout,
                )
                with (
                    _reading_only(connection, place, read_only=read_only),
                    closing(bound_session(connection, place, "control_fully")) as session,
                ):
                    yield session
        finally:
            self._free.release()


def place_of(tenant: Tenant | Placement) -> Placement:
    """Return where a tenant lives.

    Raises:
        TenantSuspended: An operator suspended it.
    """
    if isinstance(tenant, Placement):
        return tenant
    if tenant.suspended:
        raise TenantSuspended(f"tenant {tenant.key!r} is suspended: resume it to open a session")
    return tenant.placement


def bound_session(
    connection: Connection,
    placement: Placement,
    join: JoinTransactionMode = "create_savepoint",
) -> Session:
    """Return a session on a connection, whose models live in the placement.

    Args:
        connection: The connection, in the place.
        placement: The place.
        join: Who rules the connection's transaction. By default its owner does, and what the
            session commits or rolls back is a savepoint.
    """
    translate(connection, placement)
    return Session(bind=connection, join_transaction_mode=join)


def translate(connection: Connection, placement: Placement) -> None:
    """Have tables without a schema stand in the placement's, in all that SQLAlchemy writes."""
    if placement.is_postgres:
        connection.execution_options(schema_translate_map={None: schema_of(placement)})


def bind_transactions(
    connection: Connection,
    isolation: Isolation,
    placement: Placement,
    *,
    read_only: bool = False,
    statement_timeout: float | None = None,
) -> None:
    """Have each transaction of a connection bound and proven as it begins, and before it commits.

    Args:
        connection: In no transaction yet.
        isolation: Binds and proves.
        placement: The place.
        read_only: Whether the transactions may only read.
        statement_timeout: Seconds that one statement may take on PostgreSQL; None sets nothing.
    """
    binding = _Binding(isolation, placement, read_only, statement_timeout)
    connection.execution_options(**{READ_ONLY: read_only})
    event.listen(connection, "begin", binding.enter)
    event.listen(connection, "commit", binding.leave)


class _Binding:
    """Listens to one connection's transactions."""

    def __init__(
        self,
        isolation: Isolation,
        placement: Placement,
        read_only: bool,
        statement_timeout: float | None,
    ) -> None:
        self._isolation = isolation
        self._placement = placement
        self._read_only = read_only
        self._statement_timeout = statement_timeout
        self._transaction = ""

    def enter(self, connection: Connection) -> None:
        """Bind the transaction that begins, and prove it."""
        try:
            with closing(connection.connection.cursor()) as cursor:
                if self._placement.is_postgres:
                    self._set(connection, cursor)
                self._isolation.bind(cursor, self._placement)
                self._transaction = self._prove(cursor)
        except BaseException:
            # For good: whoever catches this must not go on with a transaction that is nowhere.
            with suppress(Exception):  # a broken connection; the error under way says why
                connection.invalidate()
            connection.close()
            raise

    def leave(self, connection: Connection) -> None:
        """Prove that what is about to be committed is still the transaction that was bound."""
        with closing(connection.connection.cursor()) as cursor:
            if self._prove(cursor) != self._transaction:
                raise TenantNotIsolated(
                    "the session's transaction was ended behind its back: leave COMMIT and "
                    "ROLLBACK to the session"
                )

    def _set(self, connection: Connection, cursor: DBAPICursor) -> None:
        if getattr(connection.connection.driver_connection, "autocommit", False):
            raise TenantNotIsolated("the connection is in autocommit: give an engine without it")
        settings, values = [], []
        if self._statement_timeout is not None:
            settings.append(_LIMIT)
            values.append(f"{max(1, round(self._statement_timeout * 1000))}ms")
        if self._read_only:
            settings.append(_READS_ONLY)
        if settings:
            cursor.execute(f"SELECT {', '.join(settings)}", values)

    def _prove(self, cursor: DBAPICursor) -> str:
        if self._read_only and self._placement.is_postgres:
            cursor.execute(_LOOK, ())
        else:
            self._isolation.locate(cursor, self._placement)
        return self._isolation.confirm(cursor.fetchone(), self._placement)


@contextmanager
def _reading_only(
    connection: Connection, placement: Placement, *, read_only: bool
) -> Iterator[None]:
    """Have SQLite refuse to write; PostgreSQL is told so in each transaction."""
    if placement.is_postgres or not read_only:
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA query_only = ON").close()
    try:
        yield
    finally:
        # The connection goes back to the pool, for somebody who writes; unless it was given up.
        if not (connection.closed or connection.invalidated):
            driver.execute("PRAGMA query_only = OFF").close()
