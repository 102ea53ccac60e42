"""The door for sync webhooks: size, signature, form, audience; then the handler."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.signatures import Claim, Verifier
from tenantsync.errors import Malformed
from tenantsync.events import Dialect, Event, parse
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.web.answers import Answer, answer_outcome
from tenantsync.web.door import (
    MAX_BODY_BYTES,
    MAX_READING,
    READ_TIMEOUT,
    Door,
    Errand,
    NotFound,
)

__all__ = ["MAX_BODY_BYTES", "NotFound", "WebhookRouter"]


class WebhookRouter(Door[Claim]):
    """Receives AuthVital's sync webhooks: an ASGI application, and two functions.

    Mount it at an exact path, and let nothing redirect to it: the provider's sender turns a
    redirected POST into a GET, and takes its answer for success (docs/reference/provider.md).

    Args:
        handler: Applies the events.
        authvital_host: Base URL of AuthVital; its keys are at `/.well-known/jwks.json` there. One
            of this and `verifier` is needed.
        application_id: The application whose events are ours. The signature names no receiver, so
            another application's delivery could be replayed here; it is answered `ignored`.
        verifier: Checks signatures; give your own to share its keys or to tune its clocks.
        documented_dialect: Whether to accept the bodies that AuthVital's guide prints, which no
            server sends, too. They name no application.
        read_timeout: Seconds in which a body must have arrived.
        max_reading: How many bodies that come in several pieces may be on their way at once.

    Raises:
        TypeError: Both or neither of `authvital_host` and `verifier` were given.
    """

    name: ClassVar[str] = "webhook"

    def __init__(
        self,
        handler: IdentitySyncHandler,
        *,
        application_id: str,
        authvital_host: str | None = None,
        verifier: Verifier | None = None,
        documented_dialect: bool = False,
        read_timeout: float = READ_TIMEOUT,
        max_reading: int = MAX_READING,
    ) -> None:
        if (authvital_host is None) == (verifier is None):
            raise TypeError("give either authvital_host or verifier")
        if verifier is None:
            verifier = Verifier(KeyRing(f"{str(authvital_host).rstrip('/')}/.well-known/jwks.json"))
        super().__init__(
            observe=handler.observe,
            headers=verifier.headers,
            read_timeout=read_timeout,
            max_reading=max_reading,
        )
        self._handler = handler
        self._verifier = verifier
        self._application_id = application_id
        self._documented_dialect = documented_dialect

    def _ready(self, headers: Mapping[str, str]) -> bool:
        return self._verifier.ready(headers)

    def _vouch(self, headers: Mapping[str, str]) -> Claim:
        return self._verifier.claim(headers)

    def _judge(self, body: bytes, vouched: Claim, started: float) -> Answer | Errand:
        verified = self._verifier.prove(vouched, body)
        try:
            event = self._readable(body, verified.signed_at)
        except Malformed as error:
            return Errand(
                partial(self._handler.quarantine, body, error, door=self.name),
                partial(self._handler.quarantine_blocking, body, error, door=self.name),
                error,
            )
        if not self._is_ours(event):
            self._tell(
                started,
                event_id=event.id,
                event_type=event.type,
                outcome=Outcome.IGNORED,
                reason="other_application",
            )
            return answer_outcome(Outcome.IGNORED, reason="other application")
        at = verified.signed_at
        return Errand(
            partial(self._handler.handle, event, door=self.name, body=body, signed_at=at),
            partial(self._handler.handle_blocking, event, door=self.name, body=body, signed_at=at),
        )

    def _readable(self, body: bytes, signed_at: int | None) -> Event:
        """Return the event if it is of a form that this door takes."""
        event = parse(body, signed_at=signed_at)
        if event.dialect is Dialect.DOCUMENTED and not self._documented_dialect:
            raise Malformed("body", "has the documented form, which documented_dialect switches on")
        if event.dialect not in (Dialect.SYNC, Dialect.DOCUMENTED):
            raise Malformed("body", "is no sync webhook: this URL takes no other channel")
        return event

    def _is_ours(self, event: Event) -> bool:
        if event.dialect is Dialect.DOCUMENTED and event.application_id is None:
            return True
        return event.application_id == self._application_id
