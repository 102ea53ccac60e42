"""FastAPI: the same routes and the same lifespan. Run `uvicorn fastapi_app:app`."""

import logging

from fastapi import FastAPI
from sqlalchemy.orm import Session

from tenantsync import Event, TenantSync
from tenantsync.models import Identity

log = logging.getLogger(__name__)
sync = TenantSync.from_toml("tenantsync.toml")
app = FastAPI(lifespan=sync.lifespan)
app.router.routes.extend(sync.routes("/webhooks/authvital"))


@sync.on("member.joined")
def welcome(event: Event, session: Session) -> None:
    """Runs in the tenant's transaction, after the merge."""
    person = session.get_one(Identity, event.sub)
    log.info("%s has a new member: %s", event.tenant_id, person.id)


@app.get("/")
async def home() -> str:
    """Stand for the rest of the application."""
    return "hello"
