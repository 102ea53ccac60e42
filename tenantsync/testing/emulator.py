"""A local AuthVital: it knows people, tells of them, serves keys and API, and fails on demand.

Written from the format in `docs/reference/provider.md`, not from our verifier, which it must never
import: what both agree on is then more than one person's reading.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.utils import formatdate
from types import TracebackType
from typing import Any, Self, TypeVar

from tenantsync.testing.actions import Actions, Future
from tenantsync.testing.api import BASE, IntegrationApi, discovery
from tenantsync.testing.delivery import (
    LADDERS,
    Attempt,
    Delivery,
    Mode,
    VirtualClock,
    iso,
    jsonb,
    sign,
    sign_system,
)
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.outbox import Emission, Outbox, Which
from tenantsync.testing.sending import Sender
from tenantsync.testing.server import Faults, Request, Response, Server
from tenantsync.testing.state import State
from tenantsync.testing.tokens import Tokens

__all__ = [
    "Attempt",
    "Delivery",
    "Emission",
    "Emulator",
    "Faults",
    "Keys",
    "Mode",
    "SigningKey",
    "VirtualClock",
]

Route = Callable[[Request], Response]
_Part = TypeVar("_Part")


class Emulator:
    """A local AuthVital.

    Bodies and signatures can be had from it at once. As a context manager it also serves its JWKS
    over HTTP, and delivers:

        with Emulator() as authvital:
            body = authvital.event("member.joined", tenant_id=..., application_id=..., data=...)
            attempts = authvital.deliver(body, "http://127.0.0.1:8000/webhooks/authvital")

    Args:
        keys: The signing keys; None makes one when it is first needed.
        host: Address to serve on.
        port: Port to serve on; 0 takes a free one.
        clock: Unix seconds, for timestamps of bodies, signatures and answers.
        sleep: Waits so many seconds between attempts. With a `VirtualClock`, pass its `sleep`.
        new_id: Makes event ids.
        token_keys: Keys that sign tokens; None lets `keys` sign them too, as AuthVital did before
            it parted the two. One JWKS holds both kinds, and nothing in it tells them apart.
        issuer: The `iss` of tokens; None is the base URL.
        future: Whether also those five sync types are sent that AuthVital knows and never sends;
            "one" tells of a person in one of their tenants, "each" (and True) in each.
        seed: Makes the ids of people, tenants and the rest reproducible.

    Attributes:
        state: Who and what there is; `actions` change it, and put what they tell into `outbox`.
        tokens: Mints tokens, honest ones and look-alikes.
        integration: The token endpoint and the integration API, with their throttle.
        keys, faults, routes, clock: The signing keys, what endpoints do wrong, what is answered by
            method and path, and unix seconds.
    """

    def __init__(
        self,
        *,
        keys: Keys | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        token_keys: Keys | None = None,
        issuer: str | None = None,
        future: bool | Future = False,
        seed: int | None = None,
    ) -> None:
        self.keys = keys or Keys(clock=clock)
        self._token_keys = token_keys
        self._issuer = issuer
        self.state = State(seed)
        self.outbox = Outbox()
        self.actions = Actions(
            self.state,
            self.outbox,
            clock=clock,
            new_id=new_id,
            future=("each" if future else None) if isinstance(future, bool) else future,
        )
        signing = token_keys or self.keys
        self.tokens = Tokens(signing, issuer=self._iss, state=self.state, clock=clock)
        self.integration = IntegrationApi(
            self.state, self.tokens, signing, issuer=self._iss, clock=clock
        )
        self.faults = Faults()
        self.routes: dict[tuple[str, str], Route] = {
            ("GET", "/.well-known/jwks.json"): self._serve_jwks,
            ("GET", "/.well-known/openid-configuration"): self._serve_discovery,
            ("POST", "/oauth/token"): self.integration.token,
        }
        self.clock = clock
        self._sleep = sleep
        self._new_id = new_id
        self._address = (host, port)
        self._server: Server | None = None
        self._sender = Sender(clock)
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        """Start serving."""
        self.jwks()  # keys are made here, lest the first request waits for them
        host, port = self._address
        self._closed.clear()
        self._server = Server(self._respond, host=host, port=port)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop serving; requests that hang are let go."""
        self._closed.set()
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self._sender.close()

    @property
    def url(self) -> str:
        """The base URL: what a receiver's configuration calls AuthVital's `host`.

        Raises:
            RuntimeError: The emulator is not running.
        """
        return _running(self._server).url

    @property
    def requests(self) -> list[Request]:
        """What was asked of the emulator since it runs, oldest first.

        Raises:
            RuntimeError: The emulator is not running.
        """
        return _running(self._server).requests

    @property
    def issuer(self) -> str:
        """The `iss` of tokens: what was given, or the base URL.

        Raises:
            RuntimeError: None was given, and the emulator is not running.
        """
        return self._issuer or self.url

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the JSON Web Key Set: signing and passive keys, of webhooks and of tokens."""
        both = [self.keys] if self._token_keys is None else [self.keys, self._token_keys]
        return {"keys": [key.jwk() for keys in both for key in keys.published()]}

    def freeze_jwks(self) -> None:
        """Go on serving the JWKS of this moment, as a cache before AuthVital may for an hour."""
        self.faults.body = _dump(self.jwks())

    def event(
        self,
        type: str,
        *,
        tenant_id: str,
        application_id: str,
        data: Mapping[str, Any],
        id: str | None = None,
        timestamp: int | str | None = None,
    ) -> bytes:
        """Return the body of a sync event in AuthVital's byte form.

        Args:
            type: The event type, such as `member.joined`; any text will do.
            tenant_id: The tenant in which it happened.
            application_id: The application whose webhook this is.
            data: The payload; `tenantsync.testing.people.payload` makes realistic ones.
            id: The event id; None makes a new one.
            timestamp: When it happened: unix milliseconds, or a text that is taken as it is; None
                is now.

        Raises:
            ValueError: AuthVital could not store such a payload: U+0000, a lone surrogate, NaN.
        """
        if timestamp is None:
            timestamp = int(self.clock() * 1000)
        return jsonb(
            {
                "id": self._new_id() if id is None else id,
                "type": type,
                "timestamp": timestamp if isinstance(timestamp, str) else iso(timestamp),
                "tenant_id": tenant_id,
                "application_id": application_id,
                "data": data,
            }
        )

    def delivery(
        self, body: bytes, *, key: SigningKey | None = None, signed_at: float | None = None
    ) -> Delivery:
        """Sign a body for one attempt.

        Args:
            body: Any bytes; the event headers are taken from it where it is a JSON object.
            key: The key to sign with; None is the one that signs now.
            signed_at: The time of the attempt in unix seconds; None is now.
        """
        try:
            envelope = json.loads(body)
        except (ValueError, RecursionError):
            envelope = None
        names = envelope if isinstance(envelope, dict) else {}
        return sign(
            body,
            key or self.keys.active,
            signed_at=self.clock() if signed_at is None else signed_at,
            event_id=_header(names.get("id")),
            event_type=_header(names.get("type")),
        )

    def send(
        self, delivery: Delivery, url: str, *, mode: Mode = "broker", number: int = 1
    ) -> Attempt:
        """Send a delivery once, exactly as it is.

        The broker takes a redirect for a failure; the legacy core follows it, and turns a 301, 302
        or 303 into a GET without a body, so that a receiver may "succeed" without seeing the event.

        Args:
            delivery: What to send.
            url: The receiver.
            mode: Who sends.
            number: The number of the attempt, for the report.

        Raises:
            RuntimeError: The emulator is not running.
        """
        _running(self._server)
        return self._sender.send(delivery, url, mode=mode, number=number)

    def deliver(self, body: bytes, url: str, *, mode: Mode = "broker") -> list[Attempt]:
        """Deliver a body, and again after each failure, until a 2xx or the fifth attempt.

        Every attempt is signed anew with the time of the emulator's clock. The waits between them
        go through the emulator's `sleep`.

        Args:
            body: The raw bytes.
            url: The receiver.
            mode: Whose ladder to climb: `broker` (10 s to 5 min) or `legacy` (1 min to 1 h).

        Returns:
            The attempts, in order; the last one says how it ended.

        Raises:
            RuntimeError: The emulator is not running.
        """
        attempts: list[Attempt] = []
        for number, wait in enumerate((0.0, *LADDERS[mode]), start=1):
            if wait:
                self._sleep(wait)
            attempts.append(self.send(self.delivery(body), url, mode=mode, number=number))
            if attempts[-1].ok:
                break
        return attempts

    def deliver_waiting(
        self, url: str | None = None, *, which: Which | None = None, mode: Mode = "broker"
    ) -> list[tuple[Emission, list[Attempt]]]:
        """Take what waits in the outbox and deliver it, one after the other.

        Sync events climb the ladder of `deliver`. System events go to every target that wants
        them, once: of what AuthVital repeats there, and when, see `ladders`.

        Args:
            url: Where sync events go whose application has no `webhook_url`.
            which: Chooses what to deliver; the rest waits on. None delivers all.
            mode: Who sends.

        Returns:
            Each emission with its attempts.

        Raises:
            RuntimeError: The emulator is not running.
            ValueError: An application has no `webhook_url`, and no other was given.
        """
        _running(self._server)
        done = []
        for emission in self.outbox.take(which):
            if emission.channel == "system":
                done.append((emission, self.send_system(emission, mode=mode)))
                continue
            to = self.state.applications[emission.application_id].webhook_url or url
            if to is None:
                raise ValueError("the application has no webhook_url: set it, or name a URL here")
            done.append((emission, self.deliver(emission.body(), to, mode=mode)))
        return done

    def system_delivery(
        self, emission: Emission, *, mode: Mode = "broker", headers: Mapping[str, str] | None = None
    ) -> Delivery:
        """Sign a system event.

        Args:
            emission: The event.
            mode: Who sends; the two order its keys differently, and sign what they send.
            headers: The target's own headers, which override AuthVital's.
        """
        timestamp = str(emission.event["timestamp"])
        body, key = emission.body(mode), self.keys.active
        plain = sign_system(body, key, event_type=emission.type, timestamp=timestamp)
        return replace(plain, headers={**plain.headers, **(headers or {})})

    def send_system(self, emission: Emission, *, mode: Mode = "broker") -> list[Attempt]:
        """Send a system event once to every target that wants its type.

        Raises:
            RuntimeError: The emulator is not running.
        """
        return [
            self.send(
                self.system_delivery(emission, mode=mode, headers=to.headers), to.url, mode=mode
            )
            for to in self.state.system_hooks
            if emission.type in to.events
        ]

    def _iss(self) -> str:
        return self.issuer

    def _respond(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        route = self.routes.get((method, request.path))
        if route is None and request.path.startswith(BASE):
            route = self.integration.integration
        if route is None:
            response = Response(404, b'{"message":"Not Found","statusCode":404}')
        else:
            response = route(request)
        spoil = self.faults.spoil.get(request.path)
        if spoil is not None:
            response = spoil(response)
        # What the API says is dated by the provider's clock, and a test's provider has this one.
        dated = {"Date": formatdate(self.clock(), usegmt=True)}
        return replace(response, headers={**dated, **response.headers})

    def _serve_jwks(self, request: Request) -> Response:
        if self.faults.hang:
            self._closed.wait()
        if self.faults.delay:
            self._closed.wait(self.faults.delay)
        body = self.faults.body
        return Response(
            self.faults.status or 200,
            _dump(self.jwks()) if body is None else body,
            {"Content-Type": "application/json", "Cache-Control": "public, max-age=3600"},
        )

    def _serve_discovery(self, request: Request) -> Response:
        return Response(
            200,
            _dump(discovery(self.issuer)),
            {"Content-Type": "application/json", "Cache-Control": "public, max-age=86400"},
        )


def _running(part: _Part | None) -> _Part:
    if part is None:
        raise RuntimeError("the emulator is not running: enter it with `with Emulator() as ...`")
    return part


def _dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _header(value: object) -> str:
    # AuthVital would put any text here; HTTP takes only visible ASCII without harm.
    return value if isinstance(value, str) and value.isascii() and value.isprintable() else "-"
