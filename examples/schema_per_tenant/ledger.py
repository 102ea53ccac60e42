"""A schema for each tenant: models, hooks and raw SQL name no schema, and find the tenant's."""

from pathlib import Path

from sqlalchemy import ForeignKey, MetaData, Numeric, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette

from tenantsync import Event, TenantSync
from tenantsync.models import NAMING_CONVENTION, IdentityMixin, IdentitySessionMixin

sync = TenantSync.from_toml(Path(__file__).with_name("tenantsync.toml"))


class Base(DeclarativeBase):
    """The base of all our tables. None of them names a schema: the place decides."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Identity(IdentityMixin, Base):
    """A person."""


class IdentitySession(IdentitySessionMixin, Base):
    """A person's session; here so that our base knows all tables that refer to people."""


class Account(Base):
    """A person's account with the tenant."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(
        ForeignKey("av_identities.id", ondelete="CASCADE"), unique=True
    )
    balance: Mapped[float] = mapped_column(Numeric(12, 2), server_default="0")
    label: Mapped[str | None] = mapped_column(Text())


@sync.on("member.joined")
def open_account(event: Event, session: Session) -> None:
    """Open an account, once. Raw SQL too runs in the tenant's schema, and in no other."""
    statement = text(
        "INSERT INTO accounts (owner_id, label)"
        " SELECT id, email FROM av_identities WHERE id = :sub"
        " ON CONFLICT (owner_id) DO NOTHING"
    )
    session.execute(statement, {"sub": event.sub})


def create_app(sync: TenantSync = sync) -> Starlette:
    """Return the application: `uvicorn --factory ledger:create_app`."""
    return Starlette(routes=sync.routes("/webhooks/authvital"), lifespan=sync.lifespan)
