"""The door for system webhooks: what the provider says of its tenants as a whole."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from tenantsync.authvital.signatures import Claim, SystemVerifier
from tenantsync.errors import Malformed
from tenantsync.events import Dialect, Event, parse
from tenantsync.sync.system import SystemEventHandler
from tenantsync.web.answers import Answer
from tenantsync.web.door import MAX_READING, READ_TIMEOUT, Door, Errand

__all__ = ["SystemWebhookRouter"]


class SystemWebhookRouter(Door[Claim]):
    """Receives AuthVital's system webhooks: an ASGI application, and two functions.

    Its broker takes every 4xx for final and tries again after a 503, for 41 hours; without the
    broker nothing is ever sent twice (docs/reference/provider.md). Mount it at an exact path.

    Args:
        handler: Does what the events say.
        verifier: Checks signatures; its keys are those of the sync webhooks.
        read_timeout: Seconds in which a body must have arrived.
        max_reading: How many bodies that come in several pieces may be on their way at once.
    """

    name: ClassVar[str] = "system"

    def __init__(
        self,
        handler: SystemEventHandler,
        *,
        verifier: SystemVerifier,
        read_timeout: float = READ_TIMEOUT,
        max_reading: int = MAX_READING,
    ) -> None:
        super().__init__(
            observe=handler.handler.observe,
            headers=verifier.headers,
            read_timeout=read_timeout,
            max_reading=max_reading,
        )
        self._system = handler
        self._verifier = verifier

    def _ready(self, headers: Mapping[str, str]) -> bool:
        return self._verifier.ready(headers)

    def _vouch(self, headers: Mapping[str, str]) -> Claim:
        return self._verifier.claim(headers)

    def _judge(self, body: bytes, vouched: Claim, started: float) -> Answer | Errand:
        self._verifier.prove(vouched, body)
        try:
            event = _readable(body)
        except Malformed as error:
            keeper = self._system.handler
            return Errand(
                partial(keeper.quarantine, body, error, door=self.name),
                partial(keeper.quarantine_blocking, body, error, door=self.name),
                error,
            )
        return Errand(
            partial(self._system.handle, event, door=self.name, body=body),
            partial(self._system.handle_blocking, event, door=self.name, body=body),
        )


def _readable(body: bytes) -> Event:
    event = parse(body)
    if event.dialect is not Dialect.SYSTEM:
        raise Malformed("body", "is no system webhook: this URL takes no other channel")
    return event
