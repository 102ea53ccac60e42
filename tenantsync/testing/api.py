"""What a local AuthVital answers: machine tokens, and the integration API that tells who is where.

Guards come in the provider's order: token, scope, missing parameter, tenant.
"""

import json
import math
import threading
from collections.abc import Callable
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qs

import jwt

from tenantsync.testing.calls import Call, Refused
from tenantsync.testing.keys import Keys
from tenantsync.testing.listing import Listing
from tenantsync.testing.server import Request, Response
from tenantsync.testing.state import State
from tenantsync.testing.tables import READ
from tenantsync.testing.tokens import Tokens

__all__ = ["BASE", "IntegrationApi", "Throttle", "discovery"]

BASE = "/api/integration/"

_WINDOW = 60.0
_TOKEN_LIMIT, _LIMIT = 30, 100
_PHRASES = MappingProxyType(
    {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
)


class Throttle:
    """Counts requests in windows of a minute, by address and path. Off until switched on.

    Args:
        clock: Unix seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.on = False
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], tuple[float, int]] = {}

    def count(self, request: Request, limit: int) -> tuple[dict[str, str], bool]:
        """Count a request.

        Args:
            request: The request.
            limit: How many are let through in a window.

        Returns:
            The headers that every answer carries, and whether the request is over the limit.
        """
        with self._lock:
            now = self._clock()
            began, count = self._counts.get((request.client, request.path), (now, 0))
            if not self.on or now - began >= _WINDOW:
                began, count = now, 0
            count += 1
            self._counts[request.client, request.path] = (began, count)
        left = max(1, math.ceil(began + _WINDOW - now))
        if count > limit:
            return {"Retry-After": str(left)}, True
        return {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(limit - count),
            "X-RateLimit-Reset": str(left),
        }, False


class IntegrationApi:
    """The token endpoint and the integration API.

    Args:
        state: The tables.
        tokens: Mints machine tokens.
        keys: What tokens are checked with.
        issuer: Returns the `iss`.
        clock: Unix seconds.
    """

    def __init__(
        self,
        state: State,
        tokens: Tokens,
        keys: Keys,
        *,
        issuer: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self.throttle = Throttle(clock)
        self._state = state
        self._tokens = tokens
        self._keys = keys
        self._issuer = issuer
        self._clock = clock
        self._listing = Listing(state, clock)

    def token(self, request: Request) -> Response:
        """Answer `POST /oauth/token`."""
        return self._limited(request, _TOKEN_LIMIT, self._token)

    def integration(self, request: Request) -> Response:
        """Answer `GET /api/integration/...`."""
        return self._limited(request, _LIMIT, self._integration)

    def _limited(
        self, request: Request, limit: int, answer: Callable[[Request], object]
    ) -> Response:
        headers, over = self.throttle.count(request, limit)
        if over:
            document = {"statusCode": 429, "message": "ThrottlerException: Too Many Requests"}
            response = _json(429, document)
        else:
            try:
                with self._state.lock:
                    response = _json(200, answer(request))
            except Refused as refused:
                response = _refusal(refused)
        return Response(response.status, response.body, {**response.headers, **headers})

    # -- tokens

    def _token(self, request: Request) -> object:
        form = _form(request)
        if form.get("grant_type") != "client_credentials":
            raise Refused(400, "Unsupported grant_type")
        client_id, secret = form.get("client_id"), form.get("client_secret")
        if not client_id or not secret:
            raise Refused(400, "client_id and client_secret are required")
        found = self._state.credential(client_id)
        if found is None or not found[1].enabled:
            raise Refused(401, "Invalid client_id")
        credential = found[1]
        if credential.secret is None:
            raise Refused(401, "Client has no secret configured")
        if secret != credential.secret:
            raise Refused(401, "Invalid client_secret")
        asked = (form.get("scope") or "").split() or list(credential.scopes)
        wrong = [scope for scope in asked if scope not in credential.scopes]
        if wrong:
            raise Refused(400, f"invalid_scope: {' '.join(wrong)}")
        scope = " ".join(asked)
        return {
            "access_token": self._tokens.machine(client_id, scope=scope),
            "token_type": "Bearer",
            "expires_in": credential.lifetime,
            "scope": scope,
        }

    def _guarded(self, request: Request) -> Call:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind != "Bearer" or not token:
            raise Refused(401, "Missing Authorization header. Use: Bearer <access_token>")
        claims = self._verified(token)
        if claims.get("token_type") != "m2m":
            raise Refused(401, "Invalid token")
        found = self._state.credential(str(claims.get("client_id")))
        if found is None or not found[1].enabled:
            raise Refused(401, "Invalid token")
        if READ not in str(claims.get("scope", "")).split():
            raise Refused(403, f"insufficient_scope: requires [{READ}]")
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        return Call(found[1], query)

    def _verified(self, token: str) -> dict[str, Any]:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            published = {key.kid: key for key in self._keys.published()}
            if kid not in published:
                raise Refused(401, "Invalid token")
            claims: dict[str, Any] = jwt.decode(
                token,
                published[kid].private.public_key(),
                algorithms=["RS256"],
                issuer=self._issuer(),
                # By the emulator's clock, below.
                options={"verify_aud": False, "verify_exp": False, "verify_iat": False},
            )
        except jwt.PyJWTError:
            raise Refused(401, "Invalid token") from None
        if claims.get("exp", 0) <= self._clock():
            raise Refused(401, "Invalid token")
        return claims

    # -- endpoints

    def _integration(self, request: Request) -> object:
        name = request.path.removeprefix(BASE)
        if not self._listing.knows(name) or request.method not in ("GET", "HEAD"):
            raise Refused(404, f"Cannot {request.method} {request.path}")
        call = self._guarded(request)
        return self._listing.answer(name, call)


def discovery(issuer: str) -> dict[str, object]:
    """Return the document at `/.well-known/openid-configuration`.

    Args:
        issuer: The base URL as it is, without a change.
    """
    return {
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


def _form(request: Request) -> dict[str, str]:
    """Return the parameters of a token request, which may also come as JSON."""
    if request.headers.get("content-type", "").partition(";")[0] == "application/json":
        try:
            document = json.loads(request.body)
        except ValueError:
            raise Refused(400, "Unexpected end of JSON input") from None
        names = document if isinstance(document, dict) else {}
        return {name: value for name, value in names.items() if isinstance(value, str)}
    return {name: values[0] for name, values in parse_qs(request.body.decode("latin-1")).items()}


def _json(status: int, document: object) -> Response:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(status, body, {"Content-Type": "application/json; charset=utf-8"})


def _refusal(refused: Refused) -> Response:
    document: dict[str, object] = {"message": refused.message}
    if refused.status in _PHRASES:
        document["error"] = _PHRASES[refused.status]
    return _json(refused.status, document | {"statusCode": refused.status})
