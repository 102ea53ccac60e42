"""The tables of the control database, for SQLAlchemy's expressions."""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
)
from sqlalchemy.sql.elements import TextClause
from sqlalchemy.sql.expression import text

from tenantsync.models import NAMING_CONVENTION, Timestamp

__all__ = [
    "IS_PARKED",
    "METADATA",
    "SCHEMA",
    "VERSION_TABLE",
    "changes",
    "inbox",
    "lanes",
    "now_of",
    "strangers",
    "suspensions",
    "tenants",
]

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

inbox: Final = Table(
    "inbox",
    METADATA,
    # SQLite counts up for ever only where it is told so; a number must not come back.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), Identity(), primary_key=True),
    Column("tenant_id", _ID, nullable=False),
    Column("event_id", _ID, nullable=False),
    Column("type", Text, nullable=False),
    Column("subject", _ID),
    Column("timestamp", BigInteger, nullable=False),
    Column("signed_at", BigInteger),
    Column("door", Text, nullable=False),
    Column("body", LargeBinary),
    Column("digest", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("received_at", Timestamp, nullable=False),
    Column("state", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    Column("due_at", Timestamp, nullable=False),
    Column("settled_at", Timestamp),
    Column("outcome", Text),
    UniqueConstraint("tenant_id", "event_id"),
    sqlite_autoincrement=True,
)

# A literal and no parameter: SQLite uses a partial index only for a condition that it can read.
IS_PARKED: Final = inbox.c.state == literal_column("'parked'")
"""The condition of the indexes of what waits."""

Index(
    "ix_inbox_due",
    *(inbox.c.tenant_id, inbox.c.due_at, inbox.c.number),
    postgresql_where=IS_PARKED,
    sqlite_where=IS_PARKED,
)
Index(
    "ix_inbox_waiting",
    *(inbox.c.tenant_id, inbox.c.received_at),
    postgresql_where=IS_PARKED,
    sqlite_where=IS_PARKED,
)
Index("ix_inbox_subject", inbox.c.tenant_id, inbox.c.subject)
# Without what is parked, as SQLite would take its state for a narrower search than a person; but
# with what an operator sent back, which is as old as that.
Index(
    "ix_inbox_settled",
    *(inbox.c.state, inbox.c.settled_at),
    postgresql_where=inbox.c.settled_at.is_not(None),
    sqlite_where=inbox.c.settled_at.is_not(None),
)
Index(
    "ix_inbox_bodies",
    inbox.c.settled_at,
    postgresql_where=(inbox.c.state == literal_column("'applied'")) & inbox.c.body.is_not(None),
    sqlite_where=(inbox.c.state == literal_column("'applied'")) & inbox.c.body.is_not(None),
)

lanes: Final = Table(
    "lanes",
    METADATA,
    Column("tenant_id", _ID, primary_key=True),
    Column("known", Boolean, nullable=False),
    Column("waiting", BigInteger, nullable=False),
    Column("quarantined", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    Column("since", Timestamp),
    # When anyone may claim it: a claim moves it to the end of its lease, so that becoming due and
    # losing a lease are one thing. NULL sleeps until it is woken.
    Column("due_at", Timestamp, index=True),
    Column("token", Text),
    Column("owner", Text),
    Column("woken", Boolean, nullable=False),
)
"""One row for each tenant with parked or quarantined events. Whoever changes an event of these
locks its lane first, several lanes in the order of `tenant_id`, and the row of `strangers` last."""

strangers: Final = Table(
    "strangers",
    METADATA,
    Column("only", Boolean, primary_key=True),
    Column("events", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)
"""One row: what the lanes of unknown tenants hold together, and the one of what names no tenant,
which both are bounded. Whoever compares it with that lane locks this row first."""


def now_of(dialect: str) -> TextClause:
    """Return the database's own clock, as `Timestamp` keeps it."""
    return text("now()" if dialect == "postgresql" else "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))")
