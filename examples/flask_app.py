"""Flask: a blocking view around `handle_blocking`. Run `flask --app flask_app run`."""

import atexit
import logging

from flask import Flask, Response, jsonify, request
from sqlalchemy.orm import Session

from tenantsync import Event, TenantSync
from tenantsync.models import Identity

log = logging.getLogger(__name__)
sync = TenantSync.from_toml("tenantsync.toml")
atexit.register(sync.close)

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 1024 * 1024


@sync.on("member.joined")
def welcome(event: Event, session: Session) -> None:
    """Runs in the tenant's transaction, after the merge."""
    person = session.get_one(Identity, event.sub)
    log.info("%s has a new member: %s", event.tenant_id, person.id)


@app.post("/webhooks/authvital")
def authvital() -> Response:
    """Hand the raw body over: the signature is over its bytes, so nobody may parse it before."""
    status, body = sync.webhook.handle_blocking(request.get_data(), dict(request.headers))
    answer = jsonify(body)
    answer.status_code = status
    if status == 503:
        answer.headers["Retry-After"] = "10"
    return answer
