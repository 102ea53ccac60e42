"""A PostgreSQL role for each tenant: made, handed to the application's login, and taken away.

What the logins need for it is told in docs/how-to/least-privilege.md.
"""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tenantsync.errors import ConfigError
from tenantsync.tenancy.isolation import schema_of
from tenantsync.tenants import Placement

__all__ = ["drop_role", "grant_place", "grant_tables", "make_role"]

_OURS: Final = "made by tenantsync"
_ATTEMPTS: Final = 5
_RIGHTS_SINCE: Final = (16,)  # PostgreSQL's memberships can be told to inherit nothing
_PRIVILEGE: Final = "42501"
_IN_USE: Final = "2BP01"
# Roles belong to the whole server, and two databases of it can make or grant the same one at once:
# the loser is told that it exists, is a duplicate, or was "concurrently updated".
_RACES: Final = ("42710", "23505", "XX000")
_TABLES: Final = "SELECT, INSERT, UPDATE, DELETE"


def make_role(connection: Connection, role: str, logins: Sequence[str]) -> None:
    """Make a role that cannot log in, if it is missing, and let the logins take it.

    They get nothing by being its members, only by taking it (`SET ROLE`), from PostgreSQL 16 on;
    before, a login that is `NOINHERIT` is what does that.

    Args:
        connection: In autocommit, on any database of the server.
        role: The role's name.
        logins: Who takes it: the application's login, and the one that migrates.

    Raises:
        ConfigError: The connection's login may not; the message says what to grant or to run.
    """
    for attempt in range(_ATTEMPTS):
        try:
            _make(connection, role)
            for login in dict.fromkeys(logins):
                _let_take(connection, role, login)
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None)
            if state == _PRIVILEGE:
                raise ConfigError(_remedy(connection, role, logins)) from error
            if state not in _RACES or attempt == _ATTEMPTS - 1:
                raise
        else:
            return


def grant_place(connection: Connection, placement: Placement) -> None:
    """Let the tenant's role work in its schema, which is there, and make its tables in it."""
    schema, role = _names(connection, placement)
    connection.exec_driver_sql(f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}")


def grant_tables(connection: Connection, placement: Placement) -> None:
    """Let the tenant's role use the tables of its schema that the connection's login owns.

    Those that migrations make belong to the role itself; these are the others: made before there
    was a role, or by hand. The ones that this login makes later follow.
    """
    schema, role = _names(connection, placement)
    for kinds, rights, what in (
        (["r", "p", "v", "m", "f"], _TABLES, "TABLES"),
        (["S"], "USAGE, SELECT", "SEQUENCES"),
    ):
        found = connection.execute(
            text(
                "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " JOIN pg_roles r ON r.oid = c.relowner"
                " WHERE n.nspname = :schema AND r.rolname = session_user AND c.relkind = ANY (:k)"
            ),
            {"schema": schema_of(placement), "k": kinds},
        ).scalars()
        for name in found:
            thing = f"{schema}.{_quoted(connection, name)}"
            one = what.removesuffix("S")
            connection.exec_driver_sql(f"GRANT {rights} ON {one} {thing} TO {role}")
        connection.exec_driver_sql(
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT {rights} ON {what} TO {role}"
        )


def drop_role(connection: Connection, role: str) -> str | None:
    """Drop a role that `make_role` made; return None, or a sentence that says why it stays.

    Args:
        connection: In autocommit, on any database of the server.
        role: The role's name.
    """
    comment = connection.scalar(
        text(
            "SELECT coalesce(shobj_description(oid, 'pg_authid'), '') FROM pg_roles"
            " WHERE rolname = :role"
        ),
        {"role": role},
    )
    if comment is None:
        return None
    if comment != _OURS:
        return f"the role {role!r} stays: it was not made by tenantsync"
    try:
        connection.exec_driver_sql(f"DROP ROLE IF EXISTS {_quoted(connection, role)}")
    except DBAPIError as error:
        state = getattr(error.orig, "sqlstate", None)
        if state not in (_IN_USE, _PRIVILEGE):
            raise
        why = "it owns or may use something else" if state == _IN_USE else "no right to drop it"
        return f"the role {role!r} stays: {why}"
    return None


def _make(connection: Connection, role: str) -> None:
    there = connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role})
    if there is None:
        name = _quoted(connection, role)
        connection.exec_driver_sql(f"CREATE ROLE {name} NOLOGIN NOINHERIT")
        connection.exec_driver_sql(f"COMMENT ON ROLE {name} IS '{_OURS}'")


def _let_take(connection: Connection, role: str, login: str) -> None:
    modern = _is_modern(connection)
    kind = "SET" if modern else "MEMBER"
    may = connection.scalar(
        text("SELECT pg_has_role(:login, :role, :kind)"),
        {"login": login, "role": role, "kind": kind},
    )
    if not may:
        how = " WITH INHERIT FALSE, SET TRUE" if modern else ""
        connection.exec_driver_sql(
            f"GRANT {_quoted(connection, role)} TO {_quoted(connection, login)}{how}"
        )


def _is_modern(connection: Connection) -> bool:
    return (connection.dialect.server_version_info or ()) >= _RIGHTS_SINCE


def _remedy(connection: Connection, role: str, logins: Sequence[str]) -> str:
    name = _quoted(connection, role)
    takers = ", ".join(_quoted(connection, login) for login in dict.fromkeys(logins))
    return (
        f"the login may not make the role {role!r} or grant it: give it CREATEROLE, or let "
        f"somebody run: CREATE ROLE {name} NOLOGIN; GRANT {name} TO {takers}"
    )


def _names(connection: Connection, placement: Placement) -> tuple[str, str]:
    role = placement.role
    assert role is not None
    return _quoted(connection, schema_of(placement)), _quoted(connection, role)


def _quoted(connection: Connection, name: str) -> str:
    # A percent sign would start a parameter for the driver.
    return connection.dialect.identifier_preparer.quote_identifier(name).replace("%", "%%")
