"""A blog and a shop for each tenant: people with a column of ours, their posts, their orders."""

from pathlib import Path

from sqlalchemy import ForeignKey, MetaData, Text, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from starlette.applications import Starlette

from tenantsync import Event, TenantSync
from tenantsync.models import NAMING_CONVENTION, IdentityMixin, IdentitySessionMixin

sync = TenantSync.from_toml(Path(__file__).with_name("tenantsync.toml"))


class Base(DeclarativeBase):
    """The base of all our tables, with constraints named as the migrations name them."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Identity(IdentityMixin, Base):
    """A person, with what AuthVital does not know of them."""

    signature: Mapped[str | None] = mapped_column(Text())
    """Under each post. Nullable: tenantsync makes rows that do not mention it."""

    posts: Mapped[list["Post"]] = relationship(back_populates="author", passive_deletes=True)
    orders: Mapped[list["Order"]] = relationship(back_populates="buyer", passive_deletes=True)


class IdentitySession(IdentitySessionMixin, Base):
    """A person's session; here so that our base knows all tables that refer to people."""


class Post(Base):
    """Goes with its author, when AuthVital deletes the account."""

    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[str] = mapped_column(
        ForeignKey("av_identities.id", ondelete="CASCADE"), index=True
    )
    title: Mapped[str] = mapped_column(Text())
    author: Mapped[Identity] = relationship(back_populates="posts")


class Order(Base):
    """Stays when the buyer's account is deleted, without a name: books must be kept."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    buyer_id: Mapped[str | None] = mapped_column(
        ForeignKey("av_identities.id", ondelete="SET NULL"), index=True
    )
    state: Mapped[str] = mapped_column(Text(), server_default="open")
    buyer: Mapped[Identity | None] = relationship(back_populates="orders")


@sync.on("member.joined")
def introduce(event: Event, session: Session) -> None:
    """Write a first post, in the transaction that makes the row."""
    person = session.get(Identity, event.sub)
    # The row is asked and not the event: what happened later may have come earlier.
    if person is None or person.membership_status != "active":
        return
    if session.scalar(select(Post.id).where(Post.author_id == person.id).limit(1)) is None:
        session.add(Post(author_id=person.id, title=f"{person.given_name or 'Somebody'} is here"))


@sync.on("member.*")
def cancel(event: Event, session: Session) -> None:
    """Cancel the open orders of whoever left."""
    person = session.get(Identity, event.sub)
    if person is not None and person.membership_status == "left":
        waiting = update(Order).where(Order.buyer_id == person.id, Order.state == "open")
        session.execute(waiting.values(state="cancelled"))


def create_app(sync: TenantSync = sync) -> Starlette:
    """Return the application: `uvicorn --factory blog:create_app`."""
    return Starlette(routes=sync.routes("/webhooks/authvital"), lifespan=sync.lifespan)
