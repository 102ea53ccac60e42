"""How an engine for a tenant's database is made, and what every connection of it is told."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from tenantsync.errors import ConfigError, TenantUnavailable

__all__ = [
    "READ_ONLY",
    "BoundedConnection",
    "EngineFactory",
    "ServerSilent",
    "answering",
    "connect_arguments",
    "make_engine",
    "watch_file",
]

READ_ONLY: Final = "tenantsync_read_only"
"""Execution option of a connection whose transactions take no write lock of SQLite."""

_NAME: Final = "tenantsync"
_FILE: Final = "tenantsync_file"
_THRESHOLD: Final = "prepare_threshold"
_TICK: Final = 0.1  # the driver looks up that often while it waits
_KEPT: Final = {"synchronous": (2,), "foreign_keys": (1,)}  # 2 is FULL
_T = TypeVar("_T")


class ServerSilent(psycopg.OperationalError):
    """The server took the connection and then did not answer in time; the connection is closed."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that does not wait for ever for a server that hangs.

    Such a server keeps none of its own timeouts, and acknowledges what is sent to it, so that TCP
    does not notice either.
    """

    answer_timeout: float | None = None
    """Seconds to wait for the answer to one statement; None for as long as it takes."""

    def wait(self, gen: PQGen[_T], interval: float = _TICK, timeout: float | None = None) -> _T:
        """Wait for what the driver does, but no longer than `answer_timeout`.

        Raises:
            ServerSilent: It took longer; the connection is closed.
        """
        if timeout is not None:  # the driver's own business, such as to cancel
            return super().wait(gen, interval, timeout)
        if self.answer_timeout is None:
            return super().wait(gen, interval)
        return super().wait(self._within(gen, self.answer_timeout), interval)

    def _within(self, gen: PQGen[_T], seconds: float) -> PQGen[_T]:
        deadline = time.monotonic() + seconds
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() >= deadline:
                    self.pgconn.finish()
                    raise ServerSilent(f"no answer within {seconds:g} s: the connection was closed")
                wanted = gen.send(ready)
        except StopIteration as done:
            value: _T = done.value
            return value


@contextmanager
def answering(connection: Connection, timeout: float | None) -> Iterator[None]:
    """Bound how long each statement of a connection may stay without an answer, for a while.

    A connection that is not of `make_engine` is left as it is.

    Args:
        connection: The connection.
        timeout: Seconds; None for as long as it takes.
    """
    driver = connection.connection.driver_connection
    if not isinstance(driver, BoundedConnection):
        yield
        return
    before, driver.answer_timeout = driver.answer_timeout, timeout
    try:
        yield
    finally:
        driver.answer_timeout = before


class EngineFactory(Protocol):
    """Makes the engine of one database; give your own to fetch passwords, trace, or tune."""

    def __call__(self, url: URL, *, pool_size: int) -> Engine:
        """Return a blocking engine for the database.

        Args:
            url: The database, as the placement has it.
            pool_size: How many connections may lie idle in its pool.
        """


def make_engine(
    url: URL,
    *,
    pool_size: int = 1,
    max_overflow: int = 64,
    connect_timeout: float = 2.0,
    lock_timeout: float = 5.0,
    create: bool = False,
) -> Engine:
    """Return an engine as tenantsync wants it. Nothing is opened yet.

    PostgreSQL: psycopg prepares nothing, unless the URL has a `prepare_threshold`.

    SQLite: WAL, `synchronous=FULL`, foreign keys on, and a missing file is an error, so that a
    wrong path never becomes an empty database that answers every question with "nobody".

    Args:
        url: The database.
        pool_size: How many connections may lie idle.
        max_overflow: How many more may be open at once; they are closed when returned.
        connect_timeout: Seconds to wait for a connection.
        lock_timeout: Seconds to wait for SQLite's write lock.
        create: Whether a missing SQLite file is made, with its folder.

    Raises:
        ConfigError: The URL's `prepare_threshold` is neither a number nor `none`.
    """
    bounds: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": max_overflow,
        "pool_timeout": connect_timeout,
        "pool_use_lifo": True,
    }
    if url.get_backend_name() != "sqlite":
        arguments = connect_arguments(url, connect_timeout)
        engine = create_engine(url, module=_Driver(), connect_args=arguments, **bounds)
        _bound(engine, connect_timeout)
        return engine
    engine = create_engine(
        url,
        creator=lambda: _open_file(url.database, lock_timeout, create=create),
        poolclass=QueuePool,
        **bounds,
    )

    watch_file(engine, url)
    return engine


def connect_arguments(url: URL, connect_timeout: float) -> dict[str, Any]:
    """Return what psycopg is told when it connects, beside what the URL says.

    Args:
        url: The database.
        connect_timeout: Seconds to wait for a connection.

    Raises:
        ConfigError: The URL's `prepare_threshold` is neither a number nor `none`.
    """
    defaults = {
        "application_name": _NAME,
        "connect_timeout": max(2, round(connect_timeout)),  # whole seconds; libpq takes 1 for 2
        # A server that vanished without a word must not hold a writer for hours.
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,  # milliseconds
    }
    # What the URL says wins over our defaults.
    return {k: v for k, v in defaults.items() if k not in url.query} | _preparing(url)


def watch_file(engine: Engine, url: URL) -> None:
    """Have an engine notice when its SQLite file is replaced, and begin with the lock it needs.

    Args:
        engine: The engine, whose driver begins no transactions by itself.
        url: The file.
    """

    # A file that was dropped and made anew has another identity. What a connection to the former
    # one commits would be nowhere.
    @event.listens_for(engine, "connect")
    def remember(_driver: object, record: ConnectionPoolEntry) -> None:
        record.info[_FILE] = _identity(url.database)

    @event.listens_for(engine, "checkout")
    def compare(_driver: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        if record.info.get(_FILE) != _identity(url.database):
            raise DisconnectionError("the SQLite file is another one now")

    # The driver's own transactions begin with the first write, which is too late: two readers
    # that both decided to write would deadlock. Ours begin with the lock, but for who says that it
    # only reads: in WAL mode such a one waits for nobody.
    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get(READ_ONLY, False)
        connection.exec_driver_sql("BEGIN DEFERRED" if reads else "BEGIN IMMEDIATE")


class _Driver:
    """psycopg, with connections that can be bounded.

    In place of the module, so that listeners for `do_connect`, which fetch passwords, are asked.
    """

    connect = BoundedConnection.connect

    def __getattr__(self, name: str) -> object:
        return getattr(psycopg, name)


def _bound(engine: Engine, connect_timeout: float) -> None:
    """Bound whatever SQLAlchemy asks a new connection: that is a part of connecting.

    After that it is for who uses the connection to say how long an answer may take: a migration
    has all the time in the world.
    """

    def begin(driver: object, _record: object) -> None:
        if isinstance(driver, BoundedConnection):
            driver.answer_timeout = connect_timeout

    def end(driver: object, _record: object) -> None:
        if isinstance(driver, BoundedConnection):
            driver.answer_timeout = None

    event.listen(engine, "connect", begin, insert=True)
    event.listen(engine, "connect", end)


def _preparing(url: URL) -> dict[str, int | None]:
    """Return after how many uses psycopg prepares a statement: never, unless the URL says so.

    A prepared statement belongs to a session. Behind a pooler the next transaction may be in
    another one; and while tenants are migrated, the same words mean other columns at the next
    tenant, which PostgreSQL refuses: `cached plan must not change result type`.

    Raises:
        ConfigError: The URL says something else than a number or `none`.
    """
    told = url.query.get(_THRESHOLD, "none")
    if told == "none":
        return {_THRESHOLD: None}
    if isinstance(told, str) and told.isascii() and told.isdigit():
        return {_THRESHOLD: int(told)}
    raise ConfigError(f"{_THRESHOLD} in a database URL must be a number or none")


def _identity(path: str | None) -> tuple[int, int] | None:
    try:
        file = os.stat(path or "")
    except OSError:
        return None
    return file.st_dev, file.st_ino


def _open_file(path: str | None, timeout: float, *, create: bool) -> sqlite3.Connection:
    if path in (None, "", ":memory:"):
        connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
    else:
        file = Path(str(path)).absolute()
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
        elif not file.is_file():
            raise TenantUnavailable(
                f"the SQLite file {file.name} does not exist: run `tenantsync migrate upgrade`"
            )
        connection = sqlite3.connect(
            f"file:{quote(str(file))}?mode={'rwc' if create else 'rw'}",
            uri=True,
            timeout=timeout,
            check_same_thread=False,
            isolation_level=None,
        )
    return _settled(connection, timeout)


def _settled(connection: sqlite3.Connection, timeout: float) -> sqlite3.Connection:
    try:
        log = _use_log(connection, timeout)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()
        _prove(connection, log)
    except BaseException:
        connection.close()
        raise
    return connection


def _prove(connection: sqlite3.Connection, log: str) -> None:
    # SQLite takes what it cannot do for a question, and answers with what it does instead.
    kept = [connection.execute(f"PRAGMA {name}").fetchone() for name in _KEPT]
    if log not in ("wal", "memory") or kept != list(_KEPT.values()):
        raise TenantUnavailable(
            f"SQLite does not keep this file as safely as it was told to (journal_mode {log}, "
            f"synchronous {kept[0][0]}, foreign_keys {kept[1][0]}): put it on a local disk"
        )


def _use_log(connection: sqlite3.Connection, timeout: float) -> str:
    # Of several that turn the log of a fresh file on, SQLite refuses all but one at once, without
    # heeding the timeout.
    deadline = time.monotonic() + timeout
    while True:
        try:
            ((mode,),) = connection.execute("PRAGMA journal_mode=WAL").fetchall()
        except sqlite3.Error as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return str(mode)
