"""Opens the control database: a SQLite file beside the configuration, or PostgreSQL."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Final, Self

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from tenantsync.control.tables import SCHEMA
from tenantsync.errors import TenantUnavailable
from tenantsync.tenancy.engines import READ_ONLY, answering, make_engine
from tenantsync.tenants import Placement, read_url

__all__ = ["ControlDatabase", "ControlMissing", "ControlUnavailable"]

_UNDEFINED_TABLE: Final = "42P01"
_GRACE: Final = 1.0
"""Seconds more than a statement may take, before a server that says nothing is given up."""
_SETTLE: Final = text(
    # LOCAL, all of it: nothing here may rely on the session, which a pooler shares.
    "SELECT set_config('search_path', :schema || ', pg_temp', true),"
    " set_config('statement_timeout', :limit, true),"
    " set_config('lock_timeout', :limit, true),"
    " set_config('synchronous_commit', 'on', true)"
)


class ControlUnavailable(TenantUnavailable):
    """The control database did not answer, or refused."""


class ControlMissing(ControlUnavailable):
    """The control database was not made yet: nothing was ever added or suspended."""


class ControlDatabase:
    """The control database. Nothing is opened before it is used; close it at the end.

    Args:
        url: Its URL. The SQLite file is never made here, only by `tenantsync.migrate.control`.
        connect_timeout: Seconds to wait for a connection.
        statement_timeout: Seconds that a statement may take, waiting for locks included. A server
            that hangs does not keep to it: a second later its connection is closed.
    """

    def __init__(
        self, url: str, *, connect_timeout: float = 2.0, statement_timeout: float = 5.0
    ) -> None:
        self._connect_timeout = connect_timeout
        self._statement_timeout = statement_timeout
        read = read_url(url)
        schema = SCHEMA if read.get_backend_name() == "postgresql" else None
        self.placement = Placement(read, schema)
        """Where it is; no tenant may live there."""

    @cached_property
    def _engine(self) -> Engine:
        return make_engine(
            self.placement.url,
            pool_size=2,
            connect_timeout=self._connect_timeout,
            lock_timeout=self._statement_timeout,
        )

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a transaction that is committed on leaving, and rolled back after an error.

        Raises:
            ControlMissing: It was not made yet.
            ControlUnavailable: It did not answer. A violated constraint comes out as it is.
        """
        with self._begun(reads=False) as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a transaction that writes nothing and waits for no writer.

        Raises:
            ControlMissing, ControlUnavailable: As `write`.
        """
        with self._begun(reads=True) as connection:
            yield connection

    def close(self) -> None:
        """Close its connections."""
        engine = self.__dict__.pop("_engine", None)
        if engine is not None:
            engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _begun(self, *, reads: bool) -> Iterator[Connection]:
        self._refuse_missing_file()
        try:
            with (
                self._connected(reads=reads) as connection,
                answering(connection, self._statement_timeout + _GRACE),
                connection.begin(),
            ):
                if self.placement.is_postgres:
                    limit = f"{max(1, round(self._statement_timeout * 1000))}ms"
                    connection.execute(_SETTLE, {"schema": SCHEMA, "limit": limit})
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            if _is_without_tables(error):
                raise ControlMissing("the control database has no tables yet") from error
            raise ControlUnavailable(
                f"the control database cannot be used now: {_short(error)}"
            ) from error

    def _connected(self, *, reads: bool) -> Connection:
        try:
            return self._engine.execution_options(**{READ_ONLY: reads}).connect()
        except ControlUnavailable:
            raise
        except TenantUnavailable as error:  # of a SQLite file
            raise ControlUnavailable(f"the control database cannot be used now: {error}") from error

    def _refuse_missing_file(self) -> None:
        # Asked before SQLite is: a folder that may not be read is no file that was never made.
        if self.placement.is_postgres:
            return
        file = Path(str(self.placement.url.database))
        try:
            os.stat(file)
        except FileNotFoundError:
            raise ControlMissing(f"the control database {file.name} was not made yet") from None
        except OSError as error:
            raise ControlUnavailable(
                f"the control database {file.name} cannot be reached: {error.strerror}"
            ) from None


def _is_without_tables(error: SQLAlchemyError) -> bool:
    cause = getattr(error, "orig", None)
    return getattr(cause, "sqlstate", None) == _UNDEFINED_TABLE or "no such table" in str(cause)


def _short(error: SQLAlchemyError) -> str:
    # SQLAlchemy repeats the statement with its parameters, which may hold a URL with a password;
    # the driver's first line does not.
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else None
    line = str(cause).strip().partition("\n")[0] if cause else ""
    return f"{type(cause or error).__name__}{': ' if line else ''}{line}"
