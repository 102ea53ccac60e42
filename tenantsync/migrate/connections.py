"""The connection that one worker of a run has: kept while the tenants share a database."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from tenantsync.errors import TenantSyncError
from tenantsync.migrate.places import find_file, made_database
from tenantsync.migrate.report import State, Stopped, sentence_about
from tenantsync.migrate.schemas import is_contention
from tenantsync.tenancy.engines import EngineFactory
from tenantsync.tenancy.isolation import schema_of
from tenantsync.tenancy.pooler import Pooling, find_pooling
from tenantsync.tenants import Placement

__all__ = ["Connections"]

_ROLE: Final = "role"


class Connections:
    """Hands out a connection to any tenant's database, one at a time; for one thread.

    Args:
        factory: Makes the engine of a database.
    """

    def __init__(self, factory: EngineFactory) -> None:
        self._factory = factory
        self._open: tuple[Placement, Engine, Connection] | None = None
        self._direct = False  # whether the open one was found to be so

    @contextmanager
    def use(
        self, placement: Placement, *, make: bool, direct: bool = False
    ) -> Iterator[Connection]:
        """Give a connection to the placement's database, in no transaction.

        Args:
            placement: The place.
            make: Whether a missing SQLite file, or a tenant's own database, is made.
            direct: Whether a pooler that shares sessions is refused.

        Raises:
            Stopped: It cannot be had.
        """
        if placement.engine is not None:
            with self._connected(placement, placement.engine, make=make) as connection:
                if direct:
                    _refuse_sharing(placement, placement.engine, connection)
                yield connection
            return
        connection = self._kept(placement, make=make)
        try:
            if direct and not self._direct and self._open is not None:
                _refuse_sharing(placement, self._open[1], connection)
                self._direct = True
            yield connection
        except BaseException:
            if not _is_idle(connection):  # it may be broken, or in the middle of something
                self.close()
            raise

    @contextmanager
    def alone(self, placement: Placement) -> Iterator[Connection]:
        """Give a new connection whose whole session is in the place, and close it afterwards.

        Revisions that cannot be in a transaction lose all that is set for one.
        """
        if placement.engine is not None:
            with placement.engine.connect() as connection:
                try:
                    yield connection
                finally:
                    connection.invalidate()  # what was set must not reach the next one's hands
            return
        settings = {"search_path": _quoted(schema_of(placement)) + ", pg_temp"}
        if placement.role is not None:
            settings[_ROLE] = placement.role
        given = placement.url.query.get("options", ())
        options = [given] if isinstance(given, str) else list(given)
        # Set for the session as it starts, and not by SET: a pooler that shares sessions refuses
        # this, and would hand on that.
        options += [f"-c{name}={_escaped(value)}" for name, value in settings.items()]
        url = placement.url.update_query_dict({"options": " ".join(options)})
        engine = self._factory(url, pool_size=1)
        try:
            with self._connected(replace(placement, url=url), engine, make=False) as connection:
                yield connection
        finally:
            engine.dispose()

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            _, engine, connection = self._open
            self._open = None
            self._direct = False
            with suppress(Exception):  # a broken connection cannot even be given back
                connection.close()
            engine.dispose()

    def _kept(self, placement: Placement, *, make: bool) -> Connection:
        if self._open is not None:
            former, _, connection = self._open
            if former.database == placement.database and not connection.closed:
                return connection
            self.close()
        if not placement.is_postgres:
            find_file(placement, make=make)
        engine = self._factory(placement.url, pool_size=1)
        try:
            connection = self._connect(placement, engine, make=make)
        except BaseException:
            engine.dispose()
            raise
        self._open = (placement, engine, connection)
        return connection

    @contextmanager
    def _connected(
        self, placement: Placement, engine: Engine, *, make: bool
    ) -> Iterator[Connection]:
        with self._connect(placement, engine, make=make) as connection:
            yield connection

    def _connect(self, placement: Placement, engine: Engine, *, make: bool) -> Connection:
        try:
            return engine.connect()
        except (SQLAlchemyError, TenantSyncError) as error:
            if is_contention(error):
                raise
            if not made_database(placement, self._factory, make=make):
                raise Stopped(State.UNREACHABLE, sentence_about(error)) from error
        return engine.connect()


def _refuse_sharing(placement: Placement, engine: Engine, connection: Connection) -> None:
    # Where every transaction may be in another session, so may a lock that outlives one.
    if placement.is_postgres and find_pooling(connection, engine.connect) is Pooling.TRANSACTION:
        raise Stopped(
            State.FAILED,
            "its URL leads to a pooler that shares sessions between transactions, and migrating "
            "needs a direct connection: set [isolation] migration_url",
        )


def _is_idle(connection: Connection) -> bool:
    if connection.closed or connection.invalidated or connection.in_transaction():
        return False
    raw = connection.connection.driver_connection
    return isinstance(raw, psycopg.Connection) and (
        raw.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
    )


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")
