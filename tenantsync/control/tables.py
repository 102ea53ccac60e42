"""The tables of the control database, for SQLAlchemy's expressions."""

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, MetaData, Table, Text
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.sql.expression import text

from tenantsync.models import NAMING_CONVENTION, Timestamp

__all__ = ["METADATA", "SCHEMA", "VERSION_TABLE", "changes", "now_of", "suspensions", "tenants"]

SCHEMA: Final = "tenantsync_control"
"""The schema that holds them on PostgreSQL; SQLite has a file of its own for them."""

VERSION_TABLE: Final = "tenantsync_control_version"
"""Where the control database keeps the revision that it stands at."""

METADATA: Final = MetaData(naming_convention=NAMING_CONVENTION)

_ID: Final = Text().with_variant(Text(collation="C"), "postgresql")

tenants: Final = Table(
    "tenants",
    METADATA,
    Column("key", _ID, primary_key=True),
    Column("id", _ID, nullable=False, unique=True),
    # What was given when it was added; NULL follows the configuration.
    Column("url", Text),
    Column("schema", Text),
    Column("role", Text),
    # Where that was then, in words that two tenants never share; NULL where all share one place.
    Column("place", _ID, unique=True),
    Column("made", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    Column("added_at", Timestamp, nullable=False),
    Column("changed", BigInteger, nullable=False, index=True),
)

suspensions: Final = Table(
    "suspensions",
    METADATA,
    Column("key", _ID, primary_key=True),
    Column("since", Timestamp, nullable=False),
)

changes: Final = Table(
    "changes",
    METADATA,
    Column("only", Boolean, primary_key=True),
    Column("made", BigInteger, nullable=False),
    Column("deleted", BigInteger, nullable=False),
)
"""One row. Whoever writes locks it first and counts up, so that changes become visible in the order
of their numbers, and a reader who knows number n misses nothing by asking for what comes after."""


def now_of(dialect: str) -> TextClause:
    """Return the database's own clock, as `Timestamp` keeps it."""
    return text("now()" if dialect == "postgresql" else "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))")
