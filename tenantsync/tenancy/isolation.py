"""How places are made, how a transaction is put into one, and how it is proven to be there.

A statement for one tenant must never run where another's rows are. So the place is set for one
transaction, read back by a later statement, and refused if it is not the right one
(docs/explanation/isolation.md).
"""

import os
from collections.abc import Sequence
from typing import Any, Final, Protocol

from sqlalchemy import Connection, text
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.sql.ddl import CreateSchema

from tenantsync.config import fill
from tenantsync.errors import ConfigError, TenantNotIsolated
from tenantsync.tenants import Placement, check_schema, read_url

__all__ = ["DatabaseIsolation", "Isolation", "SchemaIsolation", "SingleIsolation", "schema_of"]

_BIND: Final = (
    # All of them LOCAL: a setting must die with this transaction. A plain SET rides the pooled
    # connection into the next tenant's hands. pg_temp comes last because PostgreSQL otherwise
    # looks into it first, and a temporary table could stand in for one of ours.
    "SELECT set_config('search_path', quote_ident(%s) || ', pg_temp', true),"
    " set_config('role', %s, true)"
)
_LOCATE: Final = "SELECT current_schema(), current_user, session_user, pg_current_xact_id()::text"


class Isolation(Protocol):
    """How places are made and bound.

    Inherit from one of the three strategies and override `place` to make places of your own; the
    other methods are what keeps tenants apart, and are seldom a good idea to replace.
    """

    def place(
        self,
        key: str,
        *,
        url: str | None = None,
        schema: str | None = None,
        role: str | None = None,
    ) -> Placement:
        """Return where the tenant with this key lives; what is given overrides the strategy.

        Raises:
            ConfigError: The resulting URL, schema or role is not allowed.
        """

    def bind(self, cursor: DBAPICursor, placement: Placement) -> None:
        """Put the cursor's open transaction into the place, for this transaction only."""

    def locate(self, cursor: DBAPICursor, placement: Placement) -> None:
        """Ask where the transaction is. The answer is the cursor's next row."""

    def confirm(self, answer: Sequence[Any] | None, placement: Placement) -> str:
        """Return the transaction's id if the answer to `locate` names the place.

        Raises:
            TenantNotIsolated: It names another place, or none.
        """

    def create(self, connection: Connection, placement: Placement) -> None:
        """Make the schema of the place if it is missing; its database is there already."""


class _Proven:
    """Binding and proof, the same for all three strategies."""

    def bind(self, cursor: DBAPICursor, placement: Placement) -> None:
        """Put the cursor's open transaction into the place, for this transaction only."""
        if placement.is_postgres:
            cursor.execute(_BIND, (schema_of(placement), placement.role or "none"))

    def locate(self, cursor: DBAPICursor, placement: Placement) -> None:
        """Ask where the transaction is. The answer is the cursor's next row."""
        cursor.execute(_LOCATE if placement.is_postgres else "PRAGMA database_list", ())

    def confirm(self, answer: Sequence[Any] | None, placement: Placement) -> str:
        """Return the transaction's id if the answer to `locate` names the place.

        Raises:
            TenantNotIsolated: It names another place, or none.
        """
        if answer is None:
            raise TenantNotIsolated(f"the database did not say where it is; wanted {placement}")
        if not placement.is_postgres:
            return _confirm_file(str(answer[2]), placement)
        schema, user, login, transaction = answer
        wanted = placement.role or login
        if schema != schema_of(placement):
            # current_schema() is NULL for a schema that does not exist, or that the role may not
            # use: PostgreSQL accepts such a search_path without a word.
            raise TenantNotIsolated(
                f"the transaction is in schema {schema!r} and not in {schema_of(placement)!r}; "
                "nothing was written"
            )
        if user != wanted:
            raise TenantNotIsolated(
                f"the transaction runs as {user!r} and not as {wanted!r}; nothing was written"
            )
        return str(transaction)

    def create(self, connection: Connection, placement: Placement) -> None:
        """Make the schema of the place if it is missing; its database is there already."""
        if placement.is_postgres:
            schema = schema_of(placement)
            present = connection.scalar(
                text("SELECT 1 FROM pg_namespace WHERE nspname = :name"), {"name": schema}
            )
            # Asked first: CREATE SCHEMA IF NOT EXISTS wants the right to create even where the
            # schema is there already.
            if not present:
                connection.execute(CreateSchema(schema, if_not_exists=True))


class DatabaseIsolation(_Proven):
    """Each tenant has a database of its own: a PostgreSQL database, or a SQLite file.

    Args:
        url: The database URL, with `{key}` where the tenant's key goes; None where every tenant
            brings its own.
        role: The role's name, with `{key}`, or None.
    """

    def __init__(self, url: str | None, *, role: str | None = None) -> None:
        self._url = url
        self._role = role

    def place(
        self,
        key: str,
        *,
        url: str | None = None,
        schema: str | None = None,
        role: str | None = None,
    ) -> Placement:
        """Return where the tenant with this key lives; what is given overrides the strategy."""
        template = url or self._url
        if template is None:
            raise ConfigError(f"tenant {key!r} has no url, and the isolation has no template")
        return Placement(read_url(fill(template, key)), schema, _filled(role or self._role, key))


class SchemaIsolation(_Proven):
    """Each tenant has a schema of its own in one PostgreSQL database.

    Args:
        url: The database URL.
        schema: The schema's name, with `{key}` where the tenant's key goes.
        role: The role's name, with `{key}`, or None.
    """

    def __init__(self, url: str, *, schema: str = "tenant_{key}", role: str | None = None) -> None:
        self._url = url
        self._schema = schema
        self._role = role

    def place(
        self,
        key: str,
        *,
        url: str | None = None,
        schema: str | None = None,
        role: str | None = None,
    ) -> Placement:
        """Return where the tenant with this key lives; what is given overrides the strategy."""
        return Placement(
            read_url(fill(url or self._url, key)),
            check_schema(fill(schema or self._schema, key)),
            _filled(role or self._role, key),
        )


class SingleIsolation(_Proven):
    """All tenants share one place: a person has one row, whose tenant is the latest.

    Args:
        url: The database URL.
        schema: The PostgreSQL schema, or None for `public`.
        role: The role's name, or None.
    """

    def __init__(self, url: str, *, schema: str | None = None, role: str | None = None) -> None:
        self._placement = Placement(read_url(url), schema, role)

    def place(
        self,
        key: str,
        *,
        url: str | None = None,
        schema: str | None = None,
        role: str | None = None,
    ) -> Placement:
        """Return the one place.

        Raises:
            ConfigError: The tenant wants a place of its own.
        """
        if url or schema or role:
            raise ConfigError(
                f'tenant {key!r} cannot have a place of its own: strategy is "single"'
            )
        return self._placement


def schema_of(placement: Placement) -> str:
    """Return the PostgreSQL schema of a placement; without one it is `public`."""
    return placement.schema or "public"


def _filled(template: str | None, key: str) -> str | None:
    return None if template is None else check_schema(fill(template, key))


def _confirm_file(file: str, placement: Placement) -> str:
    wanted = placement.url.database or ":memory:"
    in_memory = wanted == ":memory:"
    if file != ("" if in_memory else wanted) and (
        in_memory or os.path.realpath(file) != os.path.realpath(wanted)
    ):
        raise TenantNotIsolated(
            f"the connection has another file open than {placement}; nothing was written"
        )
    return file
