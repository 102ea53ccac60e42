"""The door for sync webhooks: size, signature, form, audience; then the handler."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
from starlette.types import Receive, Scope, Send

from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.signatures import Verifier
from tenantsync.errors import Malformed, Rejected, TenantSyncError
from tenantsync.events import Dialect, Event, parse
from tenantsync.observe import Delivery, Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.web.answers import Answer, answer_error, answer_outcome

__all__ = ["MAX_BODY_BYTES", "NotFound", "WebhookRouter"]

MAX_BODY_BYTES: Final = 256 * 1024
"""A larger body is answered 413; the provider's sync events stay far below."""

_DOOR: Final = "webhook"
_JSON: Final = b"application/json"
_NOT_FOUND: Final = Answer(404, {"error": "not found", "reason": "the path is exact"})
_TOO_LARGE: Final = Answer(413, {"error": "too large", "reason": f"at most {MAX_BODY_BYTES} bytes"})


class WebhookRouter:
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

    Raises:
        TypeError: Both or neither of `authvital_host` and `verifier` were given.
    """

    def __init__(
        self,
        handler: IdentitySyncHandler,
        *,
        application_id: str,
        authvital_host: str | None = None,
        verifier: Verifier | None = None,
        documented_dialect: bool = False,
    ) -> None:
        if (authvital_host is None) == (verifier is None):
            raise TypeError("give either authvital_host or verifier")
        if verifier is None:
            verifier = Verifier(KeyRing(f"{str(authvital_host).rstrip('/')}/.well-known/jwks.json"))
        self._handler = handler
        self._verifier = verifier
        self._application_id = application_id
        self._documented_dialect = documented_dialect
        self._fetching = ThreadPoolExecutor(1, thread_name_prefix="tenantsync-keys")

    async def handle(
        self, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str]]:
        """Take one delivery, and return the status and the JSON body to answer with.

        Args:
            body: The raw bytes of the request, exactly as they came: the signature is over them.
            headers: The request's headers; the case of their names does not matter.
        """
        answer = _TOO_LARGE
        if len(body) <= MAX_BODY_BYTES:
            answer = await self._answer(body, headers)
        return answer.status, answer.body

    def handle_blocking(
        self, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str]]:
        """Take one delivery, as `handle` does, for a framework without an event loop."""
        answer = _TOO_LARGE
        if len(body) <= MAX_BODY_BYTES:
            answer = self._answer_blocking(body, headers)
        return answer.status, answer.body

    def close(self) -> None:
        """End the thread that waits for keys, if there ever was one."""
        self._fetching.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError("the webhook speaks HTTP only")
        answer, body = await _read(scope, receive)
        if answer is None:
            answer = await self._answer(body, _headers(scope))
        await _respond(answer, send)

    async def _answer(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        started = time.monotonic()
        try:
            if self._verifier.ready(headers):
                event = self._admitted(body, headers)
            else:
                # The key must be fetched first. Known keys do not wait for that, and strangers who
                # make keys up take one thread and not all.
                loop = asyncio.get_running_loop()
                event = await loop.run_in_executor(self._fetching, self._admitted, body, headers)
        except TenantSyncError as error:
            return self._refused(error, started)
        if not self._is_ours(event):
            return self._foreign(event, started)
        try:
            return answer_outcome(await self._handler.handle(event, door=_DOOR))
        except TenantSyncError as error:
            return answer_error(error)

    def _answer_blocking(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        started = time.monotonic()
        try:
            event = self._admitted(body, headers)
        except TenantSyncError as error:
            return self._refused(error, started)
        if not self._is_ours(event):
            return self._foreign(event, started)
        try:
            return answer_outcome(self._handler.handle_blocking(event, door=_DOOR))
        except TenantSyncError as error:
            return answer_error(error)

    def _admitted(self, body: bytes, headers: Mapping[str, str]) -> Event:
        """Return the event if it is authentic and of a form that this door takes."""
        verified = self._verifier.verify(body, headers)
        event = parse(body, signed_at=verified.signed_at)
        if event.dialect is Dialect.DOCUMENTED and not self._documented_dialect:
            raise Malformed("body", "has the documented form, which documented_dialect switches on")
        if event.dialect not in (Dialect.SYNC, Dialect.DOCUMENTED):
            raise Malformed("body", "is no sync webhook: this URL takes no other channel")
        return event

    def _is_ours(self, event: Event) -> bool:
        if event.dialect is Dialect.DOCUMENTED and event.application_id is None:
            return True
        return event.application_id == self._application_id

    def _foreign(self, event: Event, started: float) -> Answer:
        self._handler.observe(
            Delivery(
                event_id=event.id,
                event_type=event.type,
                tenant=None,
                outcome=Outcome.IGNORED,
                reason="other_application",
                seconds=time.monotonic() - started,
                door=_DOOR,
            )
        )
        return answer_outcome(Outcome.IGNORED, reason="other application")

    def _refused(self, error: TenantSyncError, started: float) -> Answer:
        self._handler.observe(
            Delivery(
                event_id="",
                event_type="",
                tenant=None,
                outcome=None,
                reason="rejected" if isinstance(error, Rejected) else None,
                error=type(error).__name__,
                seconds=time.monotonic() - started,
                door=_DOOR,
            )
        )
        return answer_error(error)


class NotFound:
    """The door's neighbour: 404 at a path that a framework would else redirect to the door."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await _respond(_NOT_FOUND, send)


def _headers(scope: Scope) -> dict[str, str]:
    """Return the request's headers. One that is there twice has both values, and proves nothing."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


async def _read(scope: Scope, receive: Receive) -> tuple[Answer | None, bytes]:
    """Return the body, or the answer to a request that is refused before its body is read."""
    if scope["method"] != "POST":
        return Answer(405, {"error": "method not allowed", "reason": "use POST"}), b""
    headers = dict(scope["headers"])
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media_type != _JSON:
        return Answer(415, {"error": "unsupported media type", "reason": "use JSON"}), b""
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > MAX_BODY_BYTES:
        return _TOO_LARGE, b""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return Answer(400, {"error": "malformed", "reason": "the body ended early"}), b""
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            return _TOO_LARGE, b""
        parts.append(part)
        if not message.get("more_body", False):
            return None, b"".join(parts)


async def _respond(answer: Answer, send: Send) -> None:
    body = msgspec.json.encode(answer.body)
    headers = [(b"content-type", _JSON), (b"content-length", str(len(body)).encode())]
    if answer.retry_after is not None:
        headers.append((b"retry-after", str(answer.retry_after).encode()))
    if answer.status == 405:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
