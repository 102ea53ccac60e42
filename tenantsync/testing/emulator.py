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
from tenantsync.testing.delivering import Delivering
from tenantsync.testing.delivery import Attempt, Delivery, Mode, VirtualClock, iso, jsonb
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.outbox import Emission
from tenantsync.testing.pubsub import CERTS, Google, PubSub
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


class Emulator(Delivering):
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
        push_keys: What Google signs the tokens of Pub/Sub pushes with; None makes one when it is
            first needed.

    Attributes:
        state: Who and what there is; `actions` change it, and put what they tell into `outbox`.
        tokens: Mints tokens, honest ones and look-alikes.
        integration: The token endpoint and the integration API, with their throttle.
        pubsub: The Pub/Sub topic and a push subscription to it.
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
        push_keys: Keys | None = None,
    ) -> None:
        super().__init__(
            keys=keys or Keys(clock=clock), state=State(seed), clock=clock, sleep=sleep
        )
        self._token_keys = token_keys
        self._issuer = issuer
        self.pubsub = PubSub(
            ids=self.state.ids,
            google=Google(push_keys, clock=clock),
            send=lambda delivery, url, number: self.send(delivery, url, number=number),
            clock=clock,
            sleep=sleep,
        )
        self.actions = Actions(
            self.state,
            self.outbox,
            clock=clock,
            new_id=new_id,
            topic=self.pubsub.topic,
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
            ("GET", CERTS): self.pubsub.google.serve,
        }
        self._new_id = new_id
        self._address = (host, port)
        self._server: Server | None = None
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

    @property
    def certs_url(self) -> str:
        """Where Google's keys are: what `[pubsub] jwks_url` of a receiver must say.

        Raises:
            RuntimeError: The emulator is not running.
        """
        return self.url + CERTS

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

    def _check_running(self) -> None:
        _running(self._server)

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
