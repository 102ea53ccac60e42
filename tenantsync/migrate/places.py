"""Finding and making where a tenant lives: its SQLite file, its database, its schema."""

from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tenantsync.migrate.report import State, Stopped
from tenantsync.tenancy.engines import EngineFactory
from tenantsync.tenancy.isolation import schema_of
from tenantsync.tenants import Placement

__all__ = ["find_file", "has_schema", "let_in", "made_database"]


def find_file(placement: Placement, *, make: bool) -> None:
    """Return if the SQLite file is there, or was made now, with its folder.

    Raises:
        Stopped: It is missing, and is not or cannot be made.
    """
    name = placement.url.database
    if not name or name == ":memory:":
        raise Stopped(
            State.FAILED, "a database in memory cannot be migrated from outside: give its engine"
        )
    file = Path(name)
    if file.is_file():
        return
    if not make:
        raise Stopped(
            State.MISSING, f"file {name} does not exist: run `tenantsync migrate upgrade`"
        )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise Stopped(State.UNREACHABLE, f"file {name} cannot be made: {error.strerror}") from error


def made_database(placement: Placement, factory: EngineFactory, *, make: bool) -> bool:
    """Return whether the database was missing and is there now; False if that is not the trouble.

    Only a database that is one tenant's own is made: a shared one that is missing is a wrong URL.

    Raises:
        Stopped: It is missing, and is not made.
    """
    name = placement.url.database
    if not placement.is_postgres or placement.engine is not None or not name:
        return False
    engine = factory(placement.url.set(database="postgres"), pool_size=1)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            there = connection.scalar(
                text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name}
            )
            if there:
                return False
            if placement.schema is not None:
                raise _without(name, "make it, or correct the URL")
            if not make:
                raise _without(name, "run `tenantsync migrate upgrade`")
            quote = connection.dialect.identifier_preparer.quote_identifier
            connection.exec_driver_sql(f"CREATE DATABASE {quote(name)}")
            return True
    except DBAPIError as error:
        match getattr(error.orig, "sqlstate", None):
            case "42501":  # insufficient privilege
                raise _without(name, "make it, or give the login CREATEDB") from error
            case "42P04":  # somebody else made it just now
                return True
            case _:
                return False
    finally:
        engine.dispose()


def has_schema(connection: Connection, placement: Placement) -> bool:
    """Return whether the PostgreSQL schema is there."""
    found = connection.scalar(
        text("SELECT 1 FROM pg_namespace WHERE nspname = :name"), {"name": schema_of(placement)}
    )
    return found is not None


def let_in(connection: Connection, placement: Placement) -> None:
    """Let the tenant's role use the schema that was just made for it, and make tables there."""
    if placement.role is not None:
        quote = connection.dialect.identifier_preparer.quote_identifier
        schema, role = quote(schema_of(placement)), quote(placement.role)
        connection.exec_driver_sql(f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}")


def _without(database: str, remedy: str) -> Stopped:
    return Stopped(State.MISSING, f"database {database!r} does not exist: {remedy}")
