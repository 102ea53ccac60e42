"""The tables in every tenant's place: people, their local sessions, the ledger, the tombstones.

Mixins for an application that adds columns, and ready-made models for one that does not. No table
names a schema: the place decides where it stands.
"""

from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import uuid4

from sqlalchemy import JSON, Boolean, DateTime, Dialect, ForeignKey, MetaData, Text, false, true
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeDecorator, TypeEngine

__all__ = [
    "NAMING_CONVENTION",
    "Base",
    "Identity",
    "IdentityMixin",
    "IdentitySession",
    "IdentitySessionMixin",
    "SyncEvent",
    "SyncEventMixin",
    "TextList",
    "Timestamp",
    "Tombstone",
    "TombstoneMixin",
]

NAMING_CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""How the migrations name constraints and indexes; give it to the `MetaData` of your own base."""


class Timestamp(TypeDecorator[datetime]):
    """An instant with a zone, kept to the millisecond in UTC on every database.

    PostgreSQL keeps it as `timestamptz(3)`. SQLite keeps it as text that sorts by time,
    `YYYY-MM-DD HH:MM:SS.ffffff`. Both give back an aware `datetime` in UTC.

    Raises:
        ValueError: A `datetime` without a zone was written; it names no instant.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type of this database."""
        if dialect.name == "postgresql":
            return postgresql.TIMESTAMP(timezone=True, precision=3)
        return DateTime()

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return what the driver stores: UTC, cut to the millisecond so that databases agree."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone names no instant: give it one, such as UTC")
        instant = value.astimezone(UTC)
        instant = instant.replace(microsecond=instant.microsecond // 1000 * 1000)
        return instant if dialect.name == "postgresql" else instant.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware time in UTC, whatever the zone of the connection."""
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


class TextList(TypeDecorator[list[str]]):
    """A list of texts: `TEXT[]` on PostgreSQL, a JSON array on SQLite. NULL reads as `[]`."""

    impl = postgresql.ARRAY(Text())
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type of this database."""
        if dialect.name == "postgresql":
            return postgresql.ARRAY(Text())
        return JSON(none_as_null=True)

    def process_result_value(self, value: list[str] | None, dialect: Dialect) -> list[str]:
        """Return the list; the provider's schema lets the column be NULL and means an empty one."""
        return [] if value is None else value


class _Now(ColumnElement[datetime]):
    """The database's own clock, written as `Timestamp` writes it."""

    inherit_cache = True
    type = Timestamp()


class _Empty(ColumnElement[Any]):
    """The literal of an empty `TextList`."""

    inherit_cache = True
    type = TextList()


@compiles(_Now, "postgresql")
def _now_postgresql(element: _Now, compiler: SQLCompiler, **options: object) -> str:
    return "now()"


@compiles(_Now, "sqlite")
def _now_sqlite(element: _Now, compiler: SQLCompiler, **options: object) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(_Empty, "postgresql")
def _empty_postgresql(element: _Empty, compiler: SQLCompiler, **options: object) -> str:
    return "'{}'"


@compiles(_Empty, "sqlite")
def _empty_sqlite(element: _Empty, compiler: SQLCompiler, **options: object) -> str:
    return "'[]'"


def _identifier() -> Text:
    """Return the type of the provider's ids: compared byte by byte on every database."""
    # SQLite compares by bytes unless told otherwise; PostgreSQL by the language of the database,
    # where two different ids may even sort apart from what a clock made of them says.
    text = Text()
    return text.with_variant(Text(collation="C"), "postgresql")


def _current_time() -> datetime:
    return datetime.now(UTC)


def _new_id() -> str:
    return str(uuid4())


class IdentityMixin:
    """The columns of `av_identities`: one row per person whom this tenant knows.

    Columns and names are those that the provider publishes, so that its guides and queries apply;
    `docs/reference/tables.md` tells what each one holds. An application that wants columns of its
    own makes a class of this mixin and its own base and adds them. Columns that it adds must be
    nullable or have a server default, because tenantsync inserts rows that do not mention them.
    """

    __tablename__: Any = "av_identities"

    id: Mapped[str] = mapped_column(_identifier(), primary_key=True)
    username: Mapped[str | None] = mapped_column(Text(), index=True)
    display_name: Mapped[str | None] = mapped_column(Text())
    given_name: Mapped[str | None] = mapped_column(Text())
    family_name: Mapped[str | None] = mapped_column(Text())
    middle_name: Mapped[str | None] = mapped_column(Text())
    nickname: Mapped[str | None] = mapped_column(Text())
    picture_url: Mapped[str | None] = mapped_column(Text())
    website: Mapped[str | None] = mapped_column(Text())
    gender: Mapped[str | None] = mapped_column(Text())
    birthdate: Mapped[str | None] = mapped_column(Text())
    zoneinfo: Mapped[str | None] = mapped_column(Text())
    locale: Mapped[str | None] = mapped_column(Text())
    # People swap and reuse these three; a unique constraint would refuse the truth.
    email: Mapped[str | None] = mapped_column(Text(), index=True)
    email_verified: Mapped[bool] = mapped_column(Boolean(), server_default=false())
    phone: Mapped[str | None] = mapped_column(Text(), index=True)
    phone_verified: Mapped[bool] = mapped_column(Boolean(), server_default=false())
    tenant_id: Mapped[str | None] = mapped_column(_identifier(), index=True)
    app_role: Mapped[str | None] = mapped_column(Text())
    groups: Mapped[list[str]] = mapped_column(TextList(), nullable=True, server_default=_Empty())
    is_active: Mapped[bool] = mapped_column(Boolean(), server_default=true())
    has_app_access: Mapped[bool] = mapped_column(Boolean(), server_default=true())
    synced_at: Mapped[datetime] = mapped_column(Timestamp(), server_default=_Now())
    created_at: Mapped[datetime] = mapped_column(Timestamp(), server_default=_Now())
    updated_at: Mapped[datetime] = mapped_column(
        Timestamp(), server_default=_Now(), onupdate=_current_time
    )
    subject_type: Mapped[str | None] = mapped_column(Text())
    membership_id: Mapped[str | None] = mapped_column(_identifier())
    membership_status: Mapped[str | None] = mapped_column(Text())
    tenant_roles: Mapped[list[str]] = mapped_column(TextList(), server_default=_Empty())
    clocks: Mapped[dict[str, Any]] = mapped_column(
        # jsonb, because a table with a json column cannot be asked for DISTINCT or UNION.
        JSON().with_variant(postgresql.JSONB(), "postgresql"),
        server_default="{}",
    )


class IdentitySessionMixin:
    """The columns of `av_identity_sessions`: the application's own sessions of a person."""

    __tablename__: Any = "av_identity_sessions"

    id: Mapped[str] = mapped_column(_identifier(), primary_key=True, default=_new_id)

    # The session goes when the row of the person goes.
    identity_id: Mapped[str] = mapped_column(
        _identifier(),
        ForeignKey(
            "av_identities.id",
            name="fk_av_identity_sessions_identity_id_av_identities",
            ondelete="CASCADE",
            onupdate="CASCADE",
        ),
        index=True,
    )
    auth_session_id: Mapped[str | None] = mapped_column(_identifier(), index=True)
    device_info: Mapped[str | None] = mapped_column(Text())
    ip_address: Mapped[str | None] = mapped_column(Text())
    user_agent: Mapped[str | None] = mapped_column(Text())
    created_at: Mapped[datetime] = mapped_column(Timestamp(), server_default=_Now())
    last_active_at: Mapped[datetime] = mapped_column(Timestamp(), server_default=_Now())
    expires_at: Mapped[datetime] = mapped_column(Timestamp())
    revoked_at: Mapped[datetime | None] = mapped_column(Timestamp())


class SyncEventMixin:
    """The columns of `av_sync_events`, the ledger: event ids already applied, without payload."""

    __tablename__: Any = "av_sync_events"

    event_id: Mapped[str] = mapped_column(_identifier(), primary_key=True)
    type: Mapped[str] = mapped_column(Text())
    subject: Mapped[str | None] = mapped_column(_identifier())
    occurred_at: Mapped[datetime] = mapped_column(Timestamp())
    received_at: Mapped[datetime] = mapped_column(Timestamp(), server_default=_Now(), index=True)
    outcome: Mapped[str] = mapped_column(Text())


class TombstoneMixin:
    """The columns of `av_identity_tombstones`: people deleted for good; nothing personal."""

    __tablename__: Any = "av_identity_tombstones"

    id: Mapped[str] = mapped_column(_identifier(), primary_key=True)
    clock: Mapped[str] = mapped_column(_identifier())


class Base(DeclarativeBase):
    """The base of the ready-made models."""

    metadata: ClassVar[MetaData] = MetaData(naming_convention=NAMING_CONVENTION)


class Identity(IdentityMixin, Base):
    """A person whom the tenant knows, as the provider last told us."""

    sessions: Mapped[list["IdentitySession"]] = relationship(
        back_populates="identity", cascade="all", passive_deletes=True
    )


class IdentitySession(IdentitySessionMixin, Base):
    """One of the application's own sessions of a person."""

    identity: Mapped[Identity] = relationship(back_populates="sessions")


class SyncEvent(SyncEventMixin, Base):
    """One event id that the tenant's database has seen."""


class Tombstone(TombstoneMixin, Base):
    """A person who was deleted at the provider, never to come back."""
