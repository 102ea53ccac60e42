"""All tenants in one database: every table of our own says whose its rows are."""

from datetime import datetime
from pathlib import Path

from sqlalchemy import ForeignKey, MetaData, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette

from tenantsync import Event, TenantSync
from tenantsync.models import (
    NAMING_CONVENTION,
    IdentityMixin,
    IdentitySessionMixin,
    Timestamp,
)

sync = TenantSync.from_toml(Path(__file__).with_name("tenantsync.toml"))


class Base(DeclarativeBase):
    """The base of all our tables."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Identity(IdentityMixin, Base):
    """A person. There is one row of each, with the tenant that AuthVital named last."""


class IdentitySession(IdentitySessionMixin, Base):
    """A person's session; here so that our base knows all tables that refer to people."""


class Visit(Base):
    """That somebody came to a tenant. Nothing but `tenant_id` keeps one tenant's from another's."""

    __tablename__ = "visits"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text(), index=True)
    person_id: Mapped[str] = mapped_column(
        ForeignKey("av_identities.id", ondelete="CASCADE"), index=True
    )
    at: Mapped[datetime] = mapped_column(Timestamp())


@sync.on("member.joined")
def note(event: Event, session: Session) -> None:
    """Remember each joining, with the tenant that it was in."""
    if session.get(Identity, event.sub) is not None:
        session.add(Visit(tenant_id=event.tenant_id, person_id=event.sub, at=event.occurred_at))


def create_app(sync: TenantSync = sync) -> Starlette:
    """Return the application: `uvicorn --factory members:create_app`."""
    return Starlette(routes=sync.routes("/webhooks/authvital"), lifespan=sync.lifespan)
