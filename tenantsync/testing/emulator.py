"""A local AuthVital: it signs and delivers sync events, serves its JWKS, and fails on demand.

Written from the format in `docs/reference/provider.md`, not from our verifier, which it must never
import: what both agree on is then more than one person's reading.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from tenantsync.testing.delivery import (
    LADDERS,
    TIMEOUT,
    Attempt,
    Delivery,
    Mode,
    VirtualClock,
    iso,
    jsonb,
    sign,
)
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.server import Request, Response, Server

__all__ = [
    "Attempt",
    "Delivery",
    "Emulator",
    "Faults",
    "Keys",
    "Mode",
    "SigningKey",
    "VirtualClock",
]

_MAX_ANSWER = 64 * 1024
_MAX_REDIRECTS = 20  # as many as Node's fetch follows

Route = Callable[[Request], Response]
_Part = TypeVar("_Part")


@dataclass(slots=True)
class Faults:
    """What the JWKS endpoint does wrong. Set the fields while the emulator runs.

    Args:
        status: Answer with this status in place of 200.
        delay: Wait so many seconds before answering.
        hang: Never answer.
        body: Serve these bytes in place of the JWKS: garbage, or a set that a cache kept.
    """

    status: int | None = None
    delay: float = 0.0
    hang: bool = False
    body: bytes | None = None

    def clear(self) -> None:
        """Make the endpoint behave again."""
        self.status, self.delay, self.hang, self.body = None, 0.0, False, None


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
        clock: Unix seconds, for timestamps of bodies and signatures.
        sleep: Waits so many seconds between attempts. With a `VirtualClock`, pass its `sleep`.
        new_id: Makes event ids.
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
    ) -> None:
        self.keys = keys or Keys(clock=clock)
        self.faults = Faults()
        self.routes: dict[tuple[str, str], Route] = {
            ("GET", "/.well-known/jwks.json"): self._serve_jwks,
            ("GET", "/.well-known/openid-configuration"): self._serve_discovery,
        }
        self.clock = clock
        self._sleep = sleep
        self._new_id = new_id
        self._address = (host, port)
        self._server: Server | None = None
        self._client: httpx2.Client | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Start serving."""
        self.keys.active  # noqa: B018 - made here, lest the first request waits for it
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
        server, client = self._server, self._client
        self._server = self._client = None
        if server is not None:
            server.close()
        if client is not None:
            client.close()

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

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the JSON Web Key Set that holds the signing key and the passive ones."""
        return self.keys.jwks()

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
        client = self._http()
        began = self.clock()
        try:
            response = client.post(
                url,
                content=delivery.body,
                headers=dict(delivery.headers),
                follow_redirects=mode == "legacy",
            )
        except httpx2.HTTPError as error:
            reason = str(error) or "no answer in time"
            return Attempt(number, began, delivery, error=f"{type(error).__name__}: {reason}")
        answer = response.content[:_MAX_ANSWER].decode("utf-8", "replace")
        return Attempt(number, began, delivery, response.status_code, answer)

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

    def _http(self) -> httpx2.Client:
        _running(self._server)
        with self._lock:
            if self._client is None:
                self._client = httpx2.Client(
                    timeout=TIMEOUT,
                    # The receiver is local, or named by the user: no proxy of the environment.
                    trust_env=False,
                    max_redirects=_MAX_REDIRECTS,
                    headers={"User-Agent": "node"},
                    limits=httpx2.Limits(max_connections=256, max_keepalive_connections=64),
                )
            return self._client

    def _respond(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        route = self.routes.get((method, request.path))
        if route is None:
            return Response(404, b'{"message":"Not Found","statusCode":404}')
        return route(request)

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
        issuer = self.url
        document = {
            "issuer": issuer,
            "authorization_endpoint": f"{issuer}/oauth/authorize",
            "token_endpoint": f"{issuer}/oauth/token",
            "userinfo_endpoint": f"{issuer}/oauth/userinfo",
            "jwks_uri": f"{issuer}/.well-known/jwks.json",
            "revocation_endpoint": f"{issuer}/oauth/revoke",
            "introspection_endpoint": f"{issuer}/oauth/introspect",
            "end_session_endpoint": f"{issuer}/oauth/logout",
            "check_session_iframe": f"{issuer}/oauth/check-session",
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
            "code_challenge_methods_supported": ["S256"],
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
            "claims_supported": ["sub", "email", "name", "given_name", "family_name", "picture"],
        }
        return Response(
            200,
            _dump(document),
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
