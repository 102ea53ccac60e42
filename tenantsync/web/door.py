"""What all doors have in common: from a request to an answer, with little work before trust.

What is to be refused is refused as early as it can be: the head before the body is read, the
sender's proof before anything is parsed. Until a sender is trusted it costs a bounded amount of
memory and time (docs/reference/http.md).
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, TypeVar

import msgspec
from starlette.types import Message, Receive, Scope, Send

from tenantsync.errors import Malformed, Rejected, TenantSyncError, Untrusted
from tenantsync.observe import Delivery, Outcome
from tenantsync.steps import Step, reach
from tenantsync.web.answers import (
    Answer,
    answer_error,
    answer_outcome,
    answer_quarantined,
)

__all__ = ["MAX_BODY_BYTES", "MAX_READING", "READ_TIMEOUT", "Door", "Errand", "NotFound"]

MAX_BODY_BYTES: Final = 256 * 1024
"""A larger webhook is answered 413; the provider's events stay far below."""

READ_TIMEOUT: Final = 20.0
"""Seconds in which a body must have arrived. The provider gives up after 30."""

MAX_READING: Final = 256
"""How many bodies that come in several pieces may be on their way at once."""

_JSON: Final = b"application/json"
_NOT_FOUND: Final = Answer(404, {"error": "not found", "reason": "the path is exact"})
_WRONG_METHOD: Final = Answer(405, {"error": "method not allowed", "reason": "use POST"})
_WRONG_TYPE: Final = Answer(415, {"error": "unsupported media type", "reason": "use JSON"})
_ENDED_EARLY: Final = Answer(400, {"error": "malformed", "reason": "the body ended early"})
_TOO_SLOW: Final = Answer(408, {"error": "too slow", "reason": "the body took too long"})
_TOO_MANY: Final = Answer(503, {"error": "unavailable", "reason": "too many bodies on their way"})
_MOST_DIGITS: Final = 12  # of a length; int() is slow with millions of them, and refuses thousands

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Errand:
    """What an authentic delivery asks for, for callers with and without an event loop.

    Args:
        handle: Does it.
        handle_blocking: Does it too.
        malformed: What is wrong with a body that is kept for an operator to look at.
    """

    handle: Callable[[], Awaitable[Outcome]]
    handle_blocking: Callable[[], Outcome]
    malformed: Malformed | None = None


class Door(ABC, Generic[V]):
    """An ASGI application, and two functions, for one of the provider's channels.

    `V` is what the headers alone vouch for: a claim to be proven with the body, or a token.

    Args:
        observe: Told of deliveries that are refused here.
        headers: The headers that count, in small letters; no other is looked at.
        max_body: The longest body in bytes.
        read_timeout: Seconds in which a body must have arrived, all of it.
        max_reading: How many bodies may be on their way at once. Only those count that come in
            several pieces, so that whoever fills all places holds up no ordinary delivery.
        clock: Monotonic seconds.
    """

    name: ClassVar[str]
    """The door's name, for the observers."""

    def __init__(
        self,
        *,
        observe: Callable[[Delivery], None],
        headers: frozenset[str],
        max_body: int = MAX_BODY_BYTES,
        read_timeout: float = READ_TIMEOUT,
        max_reading: int = MAX_READING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observe = observe
        self._headers = {name.encode("ascii"): name for name in headers}
        self._max_body = max_body
        self._read_timeout = read_timeout
        self._max_reading = max_reading
        self._clock = clock
        self._reading = 0
        self._too_large = Answer(413, {"error": "too large", "reason": f"at most {max_body} bytes"})
        # Waits for keys. Known keys do not wait for it, and strangers who make keys up take one
        # thread and not all.
        self._fetching = ThreadPoolExecutor(1, thread_name_prefix="tenantsync-keys")

    async def handle(
        self, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str]]:
        """Take one delivery, and return the status and the JSON body to answer with.

        Args:
            body: The raw bytes of the request, exactly as they came.
            headers: The request's headers; the case of their names does not matter.
        """
        answer = self._too_large
        if len(body) <= self._max_body:
            started = self._clock()
            try:
                vouched = await self._vouched(headers)
            except TenantSyncError as error:
                answer = self._refused(error, started)
            else:
                answer = await self._answer(body, vouched, started)
        return answer.status, answer.body

    def handle_blocking(
        self, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str]]:
        """Take one delivery, as `handle` does, for a framework without an event loop."""
        answer = self._too_large
        if len(body) <= self._max_body:
            answer = self._answer_blocking(body, headers)
        return answer.status, answer.body

    def close(self) -> None:
        """End the thread that waits for keys, if there ever was one."""
        self._fetching.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError("this application speaks HTTP only")
        await _respond(await self._served(scope, receive), send)

    @abstractmethod
    def _ready(self, headers: Mapping[str, str]) -> bool:
        """Whether `_vouch` will decide without the network."""

    @abstractmethod
    def _vouch(self, headers: Mapping[str, str]) -> V:
        """Return what the headers vouch for; may wait for keys.

        Raises:
            Untrusted, KeysUnavailable: They vouch for nothing.
        """

    @abstractmethod
    def _judge(self, body: bytes, vouched: V, started: float) -> Answer | Errand:
        """Return what is to be done with a delivery, or the answer where nothing is. Never waits.

        Raises:
            Untrusted: The body is not what was vouched for.
        """

    def _accepted(self, outcome: Outcome) -> Answer:
        return answer_outcome(outcome)

    def _quarantined(self, error: Malformed, outcome: Outcome) -> Answer:
        return answer_quarantined(error, outcome)

    def _failed(self, error: TenantSyncError) -> Answer:
        return answer_error(error)

    async def _served(self, scope: Scope, receive: Receive) -> Answer:
        refusal = self._refusal(scope)
        if refusal is not None:
            return refusal
        started = self._clock()
        try:
            # Before the body: whoever is not even plausible gets nothing read, and a body never
            # waits in memory for a key.
            vouched = await self._vouched(self._picked(scope))
        except TenantSyncError as error:
            return self._refused(error, started)
        body = await self._read(receive)
        if isinstance(body, Answer):
            return body
        return await self._answer(body, vouched, started)

    async def _vouched(self, headers: Mapping[str, str]) -> V:
        if self._ready(headers):
            return self._vouch(headers)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._fetching, self._vouch, headers)

    async def _answer(self, body: bytes, vouched: V, started: float) -> Answer:
        try:
            errand = self._judge(body, vouched, started)
        except TenantSyncError as error:
            return self._refused(error, started)
        if isinstance(errand, Answer):
            return errand
        reach(Step.VERIFIED)
        try:
            outcome = await errand.handle()
        except TenantSyncError as error:
            return self._gave_up(errand, error, started)
        return self._done(errand, outcome)

    def _answer_blocking(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        started = self._clock()
        try:
            errand = self._judge(body, self._vouch(headers), started)
        except TenantSyncError as error:
            return self._refused(error, started)
        if isinstance(errand, Answer):
            return errand
        reach(Step.VERIFIED)
        try:
            outcome = errand.handle_blocking()
        except TenantSyncError as error:
            return self._gave_up(errand, error, started)
        return self._done(errand, outcome)

    def _done(self, errand: Errand, outcome: Outcome) -> Answer:
        reach(Step.ANSWERED)
        if errand.malformed is not None:
            return self._quarantined(errand.malformed, outcome)
        return self._accepted(outcome)

    def _gave_up(self, errand: Errand, error: TenantSyncError, started: float) -> Answer:
        if errand.malformed is not None:
            # The handler tells of events only; what could not be read or kept is ours to tell.
            return self._refused(error, started)
        return self._failed(error)

    def _refused(self, error: TenantSyncError, started: float) -> Answer:
        reason = "rejected" if isinstance(error, Rejected) else None
        self._tell(started, reason=reason, error=type(error).__name__)
        return self._failed(error)

    def _tell(
        self,
        started: float,
        *,
        event_id: str = "",
        event_type: str = "",
        outcome: Outcome | None = None,
        reason: str | None = None,
        error: str | None = None,
    ) -> None:
        self._observe(
            Delivery(
                event_id=event_id,
                event_type=event_type,
                tenant=None,
                outcome=outcome,
                reason=reason,
                error=error,
                seconds=self._clock() - started,
                door=self.name,
            )
        )

    def _refusal(self, scope: Scope) -> Answer | None:
        """Return the answer to a request whose head is wrong, whoever sent it."""
        if scope["method"] != "POST":
            return _WRONG_METHOD
        media_type = length = b""
        for name, value in scope["headers"]:
            if name == b"content-type":
                media_type = value
            elif name == b"content-length":
                length = value
        if media_type.partition(b";")[0].strip().lower() != _JSON:
            return _WRONG_TYPE
        if length and not (
            length.isdigit() and len(length) <= _MOST_DIGITS and int(length) <= self._max_body
        ):
            return self._too_large
        return None

    def _picked(self, scope: Scope) -> dict[str, str]:
        """Return the headers that count.

        Raises:
            Untrusted: One is there twice: nobody can say which of the two is meant.
        """
        picked: dict[str, str] = {}
        for raw_name, value in scope["headers"]:
            name = self._headers.get(raw_name)
            if name is None:
                continue
            if name in picked:
                raise Untrusted(f"{name} is there twice")
            picked[name] = value.decode("latin-1")
        return picked

    async def _read(self, receive: Receive) -> bytes | Answer:
        """Return the body, or the answer to one that does not come as it should."""
        try:
            async with asyncio.timeout(self._read_timeout):
                message = await receive()
                if message["type"] == "http.request" and not message.get("more_body", False):
                    body: bytes = message.get("body", b"")
                    return body if len(body) <= self._max_body else self._too_large
                if self._reading >= self._max_reading:
                    return _TOO_MANY
                self._reading += 1
                try:
                    return await self._pieces(message, receive)
                finally:
                    self._reading -= 1
        except TimeoutError:
            return _TOO_SLOW

    async def _pieces(self, message: Message, receive: Receive) -> bytes | Answer:
        # Grown in place: a list of pieces would cost many times their size if they are small.
        body = bytearray()
        while message["type"] == "http.request":
            piece = message.get("body", b"")
            if len(body) + len(piece) > self._max_body:
                return self._too_large
            body += piece
            if not message.get("more_body", False):
                return bytes(body)
            message = await receive()
        return _ENDED_EARLY


class NotFound:
    """The door's neighbour: 404 at a path that a framework would else redirect to the door."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await _respond(_NOT_FOUND, send)


async def _respond(answer: Answer, send: Send) -> None:
    headers: list[tuple[bytes, bytes]] = []
    body = b""
    if answer.status != 204:  # which has no body, and so neither type nor length (RFC 9110)
        body = msgspec.json.encode(answer.body)
        headers = [(b"content-type", _JSON), (b"content-length", str(len(body)).encode())]
    if answer.retry_after is not None:
        headers.append((b"retry-after", str(answer.retry_after).encode()))
    if answer.status == 405:
        headers.append((b"allow", b"POST"))
    if answer.status == 408:
        # Whoever dawdles may not go on with it (RFC 9110, section 15.5.9).
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
