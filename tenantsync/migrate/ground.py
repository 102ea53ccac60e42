"""Looks at, prepares and takes away the ground that a tenant's tables stand on."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.sql.ddl import DropSchema

from tenantsync.errors import ConfigError, TenantUnavailable
from tenantsync.migrate.places import has_schema
from tenantsync.migrate.prepared import EXISTS, maintained, side_files
from tenantsync.migrate.report import sentence_about
from tenantsync.migrate.roles import drop_role, grant_place, grant_tables, make_role
from tenantsync.tenancy.engines import EngineFactory
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenants import Placement

__all__ = ["Ground"]

_PRIVILEGE: Final = "42501"


class Ground:
    """What is done to places beside migrating them.

    Args:
        isolation: How places are bound and proven.
        factory: Makes engines.
        lock_timeout: Seconds to wait for somebody's lock.
    """

    def __init__(
        self, isolation: Isolation, factory: EngineFactory, *, lock_timeout: float = 5.0
    ) -> None:
        self._isolation = isolation
        self._factory = factory
        self._lock_timeout = lock_timeout

    def is_there(self, place: Placement) -> bool:
        """Return whether a place is there already: its file, its database, its schema.

        Raises:
            TenantUnavailable: Its server does not answer.
            ConfigError: It is a schema in a database that does not exist.
        """
        if not place.is_postgres:
            file = Path(str(place.url.database))
            return file.is_file() and file.stat().st_size > 0
        if place.schema is None:
            return self._has_database(place)
        try:
            with self.connected(place) as connection:
                return has_schema(connection, place)
        except TenantUnavailable as error:
            # Before a login there is no SQLSTATE to go by: the server's own list decides.
            if self._has_database(place):
                raise
            raise ConfigError(
                f"database {place.url.database!r} does not exist: make it, or correct the URL"
            ) from error

    def make_database(self, place: Placement) -> None:
        """Make an empty PostgreSQL database, unless somebody else just did.

        Raises:
            ConfigError: The login may not.
        """
        with maintained(place, self._factory) as connection:
            name = str(place.url.database)
            quoted = connection.dialect.identifier_preparer.quote_identifier(name)
            try:
                connection.exec_driver_sql(f"CREATE DATABASE {quoted}".replace("%", "%%"))
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                if state == _PRIVILEGE:
                    raise ConfigError(
                        f"database {name!r} cannot be made: make it, or give the login CREATEDB"
                    ) from error
                if state not in EXISTS:
                    raise

    def make_role(self, place: Placement, login: str | None) -> None:
        """Make the role of a place, for the application's login and the one that migrates.

        Args:
            place: The place, with the login that migrates. Its database is there.
            login: The application's login; None means the same one.
        """
        assert place.role is not None
        with self.connected(place, autocommit=True) as connection:
            own = str(connection.scalar(text("SELECT session_user")))
            make_role(connection, place.role, [login or own, own])
        with self._granting(place) as connection:
            if has_schema(connection, place):
                grant_place(connection, place)

    def grant_tables(self, place: Placement) -> None:
        """Let the role of a place use tables there that are not its own."""
        with self._granting(place) as connection:
            grant_tables(connection, place)

    def stranger(self, place: Placement, tenant_id: str) -> str | None:
        """Return the id of another tenant whose people are in a migrated place, or None."""
        query = text(
            "SELECT tenant_id FROM av_identities WHERE tenant_id <> :id"  # NULL is nobody's
            " LIMIT 1"
        )
        with self.connected(place) as connection, connection.begin():
            with closing(connection.connection.cursor()) as cursor:
                self._isolation.bind(cursor, place)
                self._isolation.locate(cursor, place)
                self._isolation.confirm(cursor.fetchone(), place)
            found: str | None = connection.scalar(query, {"id": tenant_id})
            return found

    def drop(self, place: Placement) -> str:
        """Take a place away with all that is in it, and return what that was; it may be gone.

        Raises:
            TenantUnavailable: It cannot be taken away now; nothing is half gone.
        """
        if not place.is_postgres:
            file = Path(str(place.url.database))
            # The log first: one that outlives its file would be replayed into the next one.
            for each in (*side_files(file), file):
                with suppress(FileNotFoundError):
                    each.unlink()
            return f"file {file.name}"
        with _said(f"{place} cannot be dropped"):
            if place.schema is None:
                name = str(place.url.database)
                with maintained(place, self._factory) as connection:
                    quoted = connection.dialect.identifier_preparer.quote_identifier(name)
                    statement = f"DROP DATABASE IF EXISTS {quoted} WITH (FORCE)"
                    connection.exec_driver_sql(statement.replace("%", "%%"))
                return f"database {name!r}"
            with self.connected(place) as connection, connection.begin():
                connection.execute(
                    text("SELECT set_config('lock_timeout', :wait, true)"),
                    {"wait": f"{max(1, round(self._lock_timeout * 1000))}ms"},
                )
                connection.execute(DropSchema(place.schema, cascade=True, if_exists=True))
            return f"schema {place.schema!r}"

    def drop_role(self, place: Placement) -> str | None:
        """Drop the role of a place that was taken away; return why it stays, or None."""
        if place.role is None:
            return None
        with maintained(place, self._factory) as connection:
            return drop_role(connection, place.role)

    @contextmanager
    def _granting(self, place: Placement) -> Iterator[Connection]:
        # PostgreSQL refuses one of two who grant on the same thing at once, whatever they grant.
        with self.connected(place) as connection, connection.begin():
            connection.execute(
                text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
                {"name": f"tenantsync grants {schema_of(place)}"},
            )
            yield connection

    def _has_database(self, place: Placement) -> bool:
        query = text("SELECT 1 FROM pg_database WHERE datname = :name")
        try:
            with maintained(place, self._factory) as connection:
                return connection.scalar(query, {"name": place.url.database}) is not None
        except OperationalError:  # not everybody may look there
            with self.connected(place):
                return True

    @contextmanager
    def connected(self, place: Placement, *, autocommit: bool = False) -> Iterator[Connection]:
        """Give a connection to a place's database, which is there.

        Raises:
            TenantUnavailable: It does not answer, or refuses the login.
        """
        engine = self._factory(place.url, pool_size=1)
        try:
            try:
                connection = engine.connect()
            except OperationalError as error:
                raise TenantUnavailable(
                    f"{place} cannot be reached: {sentence_about(error)}"
                ) from error
            with connection:
                if autocommit:
                    connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                yield connection
        finally:
            engine.dispose()


@contextmanager
def _said(what: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise TenantUnavailable(f"{what}: {sentence_about(error)}") from error
