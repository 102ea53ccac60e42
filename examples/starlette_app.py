"""Starlette: mount the routes, give it the lifespan. Run `uvicorn starlette_app:app`."""

import logging

from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tenantsync import Event, TenantSync
from tenantsync.models import Identity

log = logging.getLogger(__name__)
sync = TenantSync.from_toml("tenantsync.toml")


@sync.on("member.joined")
def welcome(event: Event, session: Session) -> None:
    """Runs in the tenant's transaction, after the merge."""
    person = session.get_one(Identity, event.sub)
    log.info("%s has a new member: %s", event.tenant_id, person.id)


async def home(request: Request) -> PlainTextResponse:
    """Stand for the rest of the application."""
    return PlainTextResponse("hello")


app = Starlette(
    routes=[*sync.routes("/webhooks/authvital"), Route("/", home)], lifespan=sync.lifespan
)
