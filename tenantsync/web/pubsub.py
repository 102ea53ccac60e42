"""The door for Google Pub/Sub push: the bearer token says who sends, and the envelope what.

AuthVital signs nothing on this channel. What Google's token proves is that our own subscription
delivers; what stands in the topic is trusted as far as the right to publish there is.
"""

from base64 import b64decode
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Final

import msgspec

from tenantsync.authvital.tokens import TokenVerifier
from tenantsync.errors import Malformed, Rejected, TenantSyncError, UnknownTenant, Untrusted
from tenantsync.events import Dialect, Event, parse
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.system import SystemEventHandler
from tenantsync.web.answers import ACKNOWLEDGED, Answer, answer_error
from tenantsync.web.door import MAX_BODY_BYTES, MAX_READING, READ_TIMEOUT, Door, Errand

__all__ = ["MAX_PUSH_BYTES", "PubSubRouter"]

MAX_PUSH_BYTES: Final = -(-MAX_BODY_BYTES // 3) * 4 + 16 * 1024
"""What the longest webhook becomes in base64, and room for what Google adds around it."""

_AUTHORIZATION: Final = "authorization"
_SYNC: Final = "sync_event"
_SYSTEM: Final = "system_webhook"


class _WrongAccount(Rejected):
    """A valid token of Google's, but of another account than the configured one."""


class _Message(msgspec.Struct):
    data: str


class _Push(msgspec.Struct):
    message: _Message


class _Envelope(msgspec.Struct):
    event_source: Any = None


class PubSubRouter(Door[None]):
    """Receives a Pub/Sub push subscription: an ASGI application, and two functions.

    Google acknowledges on 204 and delivers again on everything else, so that everything accepted
    is answered 204: applied, known, not for us, parked, or unreadable and kept.

    Args:
        handler: Applies the events of the sync channel.
        system: Does what those of the system channel say.
        application_id: The application whose events are ours; all share one topic.
        tokens: Checks tokens: Google's keys and issuer, and the subscription's audience.
        service_account: The e-mail address of the account that the subscription pushes as.
        read_timeout: Seconds in which a body must have arrived.
        max_reading: How many bodies that come in several pieces may be on their way at once.
    """

    name: ClassVar[str] = "pubsub"

    def __init__(
        self,
        handler: IdentitySyncHandler,
        system: SystemEventHandler,
        *,
        application_id: str,
        tokens: TokenVerifier,
        service_account: str,
        read_timeout: float = READ_TIMEOUT,
        max_reading: int = MAX_READING,
    ) -> None:
        super().__init__(
            observe=handler.observe,
            headers=frozenset({_AUTHORIZATION}),
            max_body=MAX_PUSH_BYTES,
            read_timeout=read_timeout,
            max_reading=max_reading,
        )
        self._handler = handler
        self._system = system
        self._application_id = application_id
        self._tokens = tokens
        self._service_account = service_account

    def _ready(self, headers: Mapping[str, str]) -> bool:
        try:
            return self._tokens.ready(_bearer(headers))
        except Untrusted:
            return True

    def _vouch(self, headers: Mapping[str, str]) -> None:
        claims = self._tokens.verify(_bearer(headers), required=("email", "email_verified"))
        # Any Google account can have a token made for any audience: the account is what counts.
        if claims["email"] != self._service_account or claims["email_verified"] is not True:
            raise _WrongAccount(
                "the token is of another account than [pubsub] service_account names"
            )

    def _judge(self, body: bytes, vouched: None, started: float) -> Answer | Errand:
        try:
            # From here on the envelope is the body: what is parked is read in the same way again.
            envelope = _envelope(body)
            event, source = _readable(envelope)
        except Malformed as error:
            return Errand(
                partial(self._handler.quarantine, body, error, door=self.name),
                partial(self._handler.quarantine_blocking, body, error, door=self.name),
                error,
            )
        if source == _SYSTEM:
            return Errand(
                partial(self._system.handle, event, door=self.name, body=envelope),
                partial(self._system.handle_blocking, event, door=self.name, body=envelope),
            )
        if event.application_id != self._application_id:
            self._tell(
                started,
                event_id=event.id,
                event_type=event.type,
                outcome=Outcome.IGNORED,
                reason="other_application",
            )
            return ACKNOWLEDGED
        return Errand(
            partial(self._handler.handle, event, door=self.name, body=envelope),
            partial(self._handler.handle_blocking, event, door=self.name, body=envelope),
        )

    def _accepted(self, outcome: Outcome) -> Answer:
        return ACKNOWLEDGED

    def _quarantined(self, error: Malformed, outcome: Outcome) -> Answer:
        return ACKNOWLEDGED

    def _failed(self, error: TenantSyncError) -> Answer:
        if isinstance(error, UnknownTenant):
            return ACKNOWLEDGED
        if isinstance(error, _WrongAccount):
            return Answer(403, {"error": "forbidden", "reason": str(error)})
        return answer_error(error)


def _bearer(headers: Mapping[str, str]) -> str:
    """Return the one bearer token (RFC 6750, section 2.1)."""
    found = [
        value
        for name, value in headers.items()
        if name.isascii() and name.lower() == _AUTHORIZATION
    ]
    if len(found) != 1:
        raise Untrusted("Authorization is missing, or there twice")
    scheme, _, token = str(found[0]).partition(" ")
    if scheme.lower() != "bearer":
        raise Untrusted("Authorization holds no bearer token")
    return token.strip(" ")


def _envelope(body: bytes) -> bytes:
    """Return the envelope that a push holds."""
    try:
        message = msgspec.json.decode(body, type=_Push).message
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Malformed("message", "is missing: this URL takes Pub/Sub pushes only") from None
    try:
        return b64decode(message.data, validate=True)
    except ValueError:
        raise Malformed("message.data", "is not standard base64 with padding") from None


def _readable(envelope: bytes) -> tuple[Event, str]:
    """Return the event of an envelope, and the channel that it would else have come by."""
    event = parse(envelope)
    if event.dialect is not Dialect.PUBSUB:
        raise Malformed("event_type", "is missing: this is no envelope of the Pub/Sub channel")
    source = msgspec.json.decode(envelope, type=_Envelope).event_source
    if source not in (_SYNC, _SYSTEM):
        raise Malformed("event_source", f'must be "{_SYNC}" or "{_SYSTEM}"')
    return event, str(source)
