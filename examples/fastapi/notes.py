"""FastAPI: the webhook, and routes that only people with access get into."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, cast

from fastapi import APIRouter, Depends, FastAPI, Request
from sqlalchemy import ForeignKey, MetaData, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenantsync import TenantSync
from tenantsync.models import NAMING_CONVENTION, IdentityMixin, IdentitySessionMixin
from tenantsync.web.access import AccessControl

sync = TenantSync.from_toml(Path(__file__).with_name("tenantsync.toml"))
router = APIRouter()


class Base(DeclarativeBase):
    """The base of all our tables."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Identity(IdentityMixin, Base):
    """A person."""


class IdentitySession(IdentitySessionMixin, Base):
    """A person's session; here so that our base knows all tables that refer to people."""


class Note(Base):
    """A note, seen by everybody of the tenant."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[str] = mapped_column(
        ForeignKey("av_identities.id", ondelete="CASCADE"), index=True
    )
    text: Mapped[str] = mapped_column(Text())


async def enter(request: Request) -> Identity:
    """Return the person whose access token came with the request; 401 or 403 for all others."""
    access: AccessControl = request.app.state.access
    # Of the class that `create_app` named.
    return cast("Identity", await access.identity(request))


Person = Annotated[Identity, Depends(enter)]


@router.get("/me")
async def me(person: Person, request: Request) -> dict[str, str | None]:
    """Say who is asking, and in which tenant."""
    return {
        "sub": person.id,
        "email": person.email,
        "role": person.app_role,
        "tenant": request.state.tenant.key,
    }


@router.get("/notes")
def read(person: Person, request: Request) -> list[str]:
    """List the tenant's notes. A `def`, because the session is blocking: FastAPI gives a thread."""
    sync: TenantSync = request.app.state.sync
    with sync.session(request.state.tenant.key, read_only=True) as session:
        return list(session.scalars(select(Note.text).order_by(Note.id)))


@router.post("/notes", status_code=201)
def write(text: str, person: Person, request: Request) -> None:
    """Add a note."""
    sync: TenantSync = request.app.state.sync
    with sync.session(request.state.tenant.key) as session:
        session.add(Note(author_id=person.id, text=text))
        session.commit()


def create_app(sync: TenantSync = sync) -> FastAPI:
    """Return the application: `uvicorn --factory notes:create_app`."""
    access = sync.access(model=Identity)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with sync.lifespan(app):
            yield
        access.close()

    app = FastAPI(lifespan=lifespan)
    app.state.access = access
    app.state.sync = sync
    app.router.routes.extend(sync.routes("/webhooks/authvital"))
    app.include_router(router)
    return app
