"""The words for tenants: a tenant, its placement, and which names they may have. No I/O."""

import re
from collections.abc import Hashable
from dataclasses import dataclass, field

from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError

from tenantsync.errors import ConfigError

__all__ = ["MAX_ID_BYTES", "Placement", "Tenant", "check_key", "check_schema", "read_url"]

MAX_ID_BYTES = 255
"""Ids of the provider that are longer, in UTF-8 bytes, are never stored or cached."""

_KEY = re.compile(r"[a-z][a-z0-9_]{0,47}")
_MAX_NAME_BYTES = 63  # PostgreSQL cuts longer identifiers off, silently
_DIALECTS = ("postgresql+psycopg", "sqlite")


def check_key(key: str) -> str:
    """Return the tenant key unchanged if it may be one.

    Raises:
        ConfigError: The key does not match `[a-z][a-z0-9_]{0,47}`.
    """
    if not _KEY.fullmatch(key):
        raise ConfigError(
            f"tenant key {key!r} is not allowed: use a small letter, then at most 47 small "
            "letters, digits or underscores"
        )
    return key


def check_schema(schema: str) -> str:
    """Return the schema or role name unchanged if PostgreSQL keeps it as it is.

    Raises:
        ConfigError: It is empty, longer than 63 bytes, holds U+0000, or is one of PostgreSQL's own.
    """
    size = len(schema.encode("utf-8", "surrogatepass"))
    if not schema or size > _MAX_NAME_BYTES or "\x00" in schema:
        raise ConfigError(f"name {schema[:80]!r} is not allowed: use 1 to {_MAX_NAME_BYTES} bytes")
    if schema.startswith("pg_") or schema == "information_schema":
        raise ConfigError(f"name {schema!r} is not allowed: PostgreSQL keeps it for itself")
    return schema


def read_url(text: str) -> URL:
    """Return a database URL that tenantsync can use.

    Raises:
        ConfigError: It is no URL, or not of PostgreSQL through psycopg or of SQLite. The message
            never repeats the URL, which may hold a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise ConfigError(
            'this is no database URL: write "postgresql+psycopg://user@host/database" or '
            '"sqlite:///file.db"'
        ) from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in _DIALECTS:
        raise ConfigError(
            f"database {url.drivername!r} is not supported: use postgresql+psycopg or sqlite"
        )
    return url


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tenant's rows live.

    Args:
        url: The database. For SQLite, its file.
        schema: The PostgreSQL schema; None means `public` there, and is all that SQLite knows.
        role: The PostgreSQL role that every transaction takes with `SET LOCAL ROLE`, or None.
        engine: An engine of the caller's own to use instead of one made from `url`.
    """

    url: URL
    schema: str | None = None
    role: str | None = None
    engine: Engine | None = field(default=None, repr=False)
    database: tuple[Hashable, ...] = field(init=False, repr=False, compare=False)
    """Equal for placements of one database: they share its connections and its writer."""

    def __post_init__(self) -> None:
        url = self.url
        # Made once: a URL renders itself whenever it is hashed, and every event looks this up.
        database = (
            None if self.engine is None else id(self.engine),
            url.drivername,
            url.username,
            url.password,
            url.host,
            url.port,
            url.database,
            tuple(sorted(url.query.items())),
        )
        object.__setattr__(self, "database", database)
        for name in (self.schema, self.role):
            if name is not None:
                check_schema(name)
        if self.schema is not None and not self.is_postgres:
            raise ConfigError("SQLite has no schemas: leave the schema out, or use PostgreSQL")

    def __hash__(self) -> int:
        return hash((self.database, self.schema, self.role))

    @classmethod
    def of(cls, place: "Placement | Engine | URL | str", schema: str | None = None) -> "Placement":
        """Return the placement that an engine, a URL or a placement stands for.

        Raises:
            ConfigError: The argument is something else, or its database is not supported.
        """
        if isinstance(place, Placement):
            return place
        if isinstance(place, Engine):
            return cls(
                read_url(place.url.render_as_string(hide_password=False)), schema, engine=place
            )
        if isinstance(place, URL):
            return cls(read_url(place.render_as_string(hide_password=False)), schema)
        if isinstance(place, str):
            return cls(read_url(place), schema)
        raise ConfigError(
            f"a {type(place).__name__} is no place for a tenant: give a blocking SQLAlchemy "
            "Engine, a database URL, or a Placement"
        )

    @property
    def is_postgres(self) -> bool:
        """Whether the place is in PostgreSQL; otherwise it is a SQLite file."""
        return self.url.get_backend_name() == "postgresql"

    @property
    def server(self) -> str | None:
        """Host and port that bound connections are counted for; None for SQLite."""
        if not self.is_postgres:
            return None
        return (
            f"{self.url.host or self.url.query.get('host') or 'localhost'}:{self.url.port or 5432}"
        )

    def __str__(self) -> str:
        """The place for people and logs: no password, ever."""
        place = self.url.render_as_string(hide_password=True)
        return f"{place} schema {self.schema}" if self.schema else place


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant of the application.

    Args:
        id: AuthVital's opaque tenant id, compared byte by byte.
        key: The short local name, never taken from the wire.
        placement: Where its rows live.
        suspended: Whether an operator suspended it; nothing is applied to it then.
    """

    id: str
    key: str
    placement: Placement
    suspended: bool = False

    def __post_init__(self) -> None:
        check_key(self.key)
        if not self.id or len(self.id.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
            raise ConfigError(
                f"tenant {self.key!r}: its id must be 1 to {MAX_ID_BYTES} bytes of UTF-8"
            )
