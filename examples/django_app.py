# mypy: disable-error-code="import-untyped,untyped-decorator"
# Django ships no types.
"""Django in one file: a blocking view. Run `gunicorn django_app:application`."""

import atexit
import logging

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from sqlalchemy.orm import Session

from tenantsync import Event, TenantSync
from tenantsync.models import Identity

log = logging.getLogger(__name__)
sync = TenantSync.from_toml("tenantsync.toml")
atexit.register(sync.close)

if not settings.configured:
    settings.configure(
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["127.0.0.1", "localhost"],
        # AuthVital may take what it finds behind a redirect for success.
        APPEND_SLASH=False,
    )


@sync.on("member.joined")
def welcome(event: Event, session: Session) -> None:
    """Runs in the tenant's transaction, after the merge."""
    person = session.get_one(Identity, event.sub)
    log.info("%s has a new member: %s", event.tenant_id, person.id)


@csrf_exempt  # the signature proves who sends; there is no browser and no cookie
@require_POST
def authvital(request: HttpRequest) -> JsonResponse:
    """Hand the raw body over: the signature is over its bytes, so nobody may parse it before."""
    status, body = sync.webhook.handle_blocking(request.body, dict(request.headers))
    headers = {"Retry-After": "10"} if status == 503 else {}
    return JsonResponse(dict(body), status=status, headers=headers)


urlpatterns = [path("webhooks/authvital", authvital)]
application = get_wsgi_application()
