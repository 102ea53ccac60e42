"""The way in for people: from a bearer token to the person's row, or to an answer that says no.

For Starlette's AuthenticationMiddleware, as a dependency of FastAPI, or called in a handler.
Answers follow RFC 6750; see docs/how-to/authorise.md.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, cast

from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
)
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

from tenantsync.authvital.tokens import AccessClaims, AccessTokens
from tenantsync.errors import TenantSyncError, Untrusted
from tenantsync.models import IdentityMixin
from tenantsync.sync.authorise import Authoriser, Denied
from tenantsync.tenants import Tenant
from tenantsync.web.answers import RETRY_AFTER

__all__ = ["Access", "AccessControl", "AccessRefused", "Dependency"]

AUTHENTICATED: Final = "authenticated"
"""The scope that Starlette's `@requires("authenticated")` asks for."""

_NOTED: Final = "tenantsync.access"
_UNAVAILABLE: Final = "It cannot be said now whether you have access. Try again in a moment."
_ANONYMOUS: Final = "An access token is needed."
_LOG: Final = logging.getLogger("tenantsync")

Dependency = Callable[[HTTPConnection], Awaitable[IdentityMixin]]
"""A function of the request that returns the person, or raises AccessRefused."""


class AccessRefused(HTTPException, AuthenticationError):
    """Nobody comes in with this request; Starlette and FastAPI answer it by themselves.

    Args:
        status_code: 401, 403 or 503.
        error: What is the matter, in one word.
        reason: What the person is told.
        headers: `WWW-Authenticate`, or `Retry-After`.
    """

    def __init__(self, status_code: int, error: str, reason: str, headers: dict[str, str]) -> None:
        super().__init__(status_code, reason, headers)
        self.error = error
        self.reason = reason

    @property
    def body(self) -> dict[str, str]:
        """What a JSON answer says."""
        return {"error": self.error, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Access:
    """Who came in, and with what.

    Args:
        identity: The person's row in the tenant's database, loaded and not attached to a session.
        tenant: The tenant.
        claims: What the token says.
    """

    identity: IdentityMixin
    tenant: Tenant
    claims: AccessClaims


class AccessControl:
    """Lets people in who have an access token and, in the tenant's own database, access.

    Args:
        tokens: Tells access tokens from all others.
        authoriser: Asks the tenant's database.
        realm: What the challenge of a 401 calls this application.
    """

    def __init__(
        self, tokens: AccessTokens, authoriser: Authoriser, *, realm: str = "tenantsync"
    ) -> None:
        self._tokens = tokens
        self._authoriser = authoriser
        self._realm = _printable(realm)
        # Waits for keys. Known keys do not wait for it, and strangers who make keys up take one
        # thread and not all.
        self._fetching = ThreadPoolExecutor(1, thread_name_prefix="tenantsync-keys")

    async def admit(self, authorization: str | None) -> Access:
        """Return who comes in with an `Authorization` header.

        Args:
            authorization: The header's value; None where there is none.

        Raises:
            AccessRefused: Nobody does.
        """
        token = self._token(authorization)
        try:
            if self._tokens.ready(token):
                claims = self._tokens.verify(token)
            else:
                loop = asyncio.get_running_loop()
                claims = await loop.run_in_executor(self._fetching, self._tokens.verify, token)
            admitted = await self._authoriser.authorise(claims.tenant_id, claims.sub)
        except TenantSyncError as error:
            raise self._refused(error) from error
        return Access(admitted.identity, admitted.tenant, claims)

    def admit_blocking(self, authorization: str | None) -> Access:
        """Return who comes in, as `admit` does, for a framework without an event loop."""
        token = self._token(authorization)
        try:
            claims = self._tokens.verify(token)
            admitted = self._authoriser.authorise_blocking(claims.tenant_id, claims.sub)
        except TenantSyncError as error:
            raise self._refused(error) from error
        return Access(admitted.identity, admitted.tenant, claims)

    async def identity(self, request: HTTPConnection) -> IdentityMixin:
        """Return the person who sent a request: a dependency, `Depends(access.identity)`.

        `request.state.tenant` is the tenant then.

        Args:
            request: The request, or the WebSocket.

        Raises:
            AccessRefused: Nobody comes in with it.
        """
        return (await self.enter(request)).identity

    def require(self, *scopes: str) -> Dependency:
        """Return a dependency as `identity`, for which the token must have these scopes too.

        Args:
            scopes: All of them are needed.
        """

        async def person(request: HTTPConnection) -> IdentityMixin:
            access = await self.enter(request)
            if not set(scopes) <= set(access.claims.scopes):
                reason = "The access token lacks a scope."
                challenge = self._challenge("insufficient_scope", reason, scopes)
                raise AccessRefused(403, "forbidden", reason, challenge)
            return access.identity

        return person

    async def enter(self, request: HTTPConnection) -> Access:
        """Return who comes in with a request; asked once for each request.

        Args:
            request: The request, or the WebSocket.

        Raises:
            AccessRefused: Nobody does.
        """
        by, noted = request.scope.get(_NOTED, (None, None))
        # Another one may ask for another audience, or for another application's people.
        if by is self and isinstance(noted, Access):
            return noted
        given = request.headers.getlist("authorization")
        if len(given) > 1:
            raise self._refused(Untrusted("the authorization header is there twice"))
        access = await self.admit(given[0] if given else None)
        request.scope[_NOTED] = (self, access)
        request.state.tenant = access.tenant
        return access

    @property
    def backend(self) -> AuthenticationBackend:
        """The backend for Starlette's AuthenticationMiddleware; give it `on_error` too."""
        return _Backend(self)

    def middleware(self) -> Middleware:
        """Return Starlette's AuthenticationMiddleware with `backend` and `on_error`."""
        return Middleware(AuthenticationMiddleware, backend=self.backend, on_error=self.on_error)

    def on_error(self, _request: HTTPConnection, error: AuthenticationError) -> Response:
        """Return the answer to a request with which nobody comes in."""
        if isinstance(error, AccessRefused):
            return JSONResponse(error.body, error.status_code, error.headers)
        return JSONResponse({"error": "unauthorized", "reason": str(error)}, 401)

    def forget(self, tenant_id: str, sub: str) -> None:
        """Look a person up anew from now on; for a cache: see `Authoriser.forget`."""
        self._authoriser.forget(tenant_id, sub)

    def close(self) -> None:
        """End its threads, if there ever were any."""
        self._fetching.shutdown(wait=False, cancel_futures=True)
        self._authoriser.close()

    def _token(self, authorization: str | None) -> str:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise AccessRefused(401, "unauthorized", _ANONYMOUS, self._challenge())
        return token.strip(" ")

    def _refused(self, error: TenantSyncError) -> AccessRefused:
        if isinstance(error, Denied):
            reason = error.denial.reason
            _note(logging.INFO, error.denial.value)
            # The one code of RFC 6750 for who is known and may not.
            challenge = self._challenge("insufficient_scope", reason)
            return AccessRefused(403, "forbidden", reason, challenge)
        if isinstance(error, Untrusted):
            _note(logging.INFO, type(error).__name__)
            reason = str(error)
            return AccessRefused(
                401, "unauthorized", reason, self._challenge("invalid_token", reason)
            )
        _note(logging.WARNING, type(error).__name__)
        return AccessRefused(503, "unavailable", _UNAVAILABLE, {"Retry-After": str(RETRY_AFTER)})

    def _challenge(
        self, error: str | None = None, reason: str = "", scopes: tuple[str, ...] = ()
    ) -> dict[str, str]:
        parts = [f'Bearer realm="{self._realm}"']
        if error is not None:
            parts += [f'error="{error}"', f'error_description="{_printable(reason)}"']
        if scopes:
            parts.append(f'scope="{_printable(" ".join(scopes))}"')
        return {"WWW-Authenticate": ", ".join(parts)}


class _Backend(AuthenticationBackend):
    """Asks an AccessControl; a request without a bearer token is nobody's, and goes on."""

    def __init__(self, access: AccessControl) -> None:
        self._access = access

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """Return the token's scopes and the person; None for a request without a bearer token.

        Raises:
            AccessRefused: There is one, and nobody comes in with it.
        """
        given = conn.headers.getlist("authorization")
        if not any(value.partition(" ")[0].lower() == "bearer" for value in given):
            return None
        access = await self._access.enter(conn)
        identity = access.identity
        # What Starlette's BaseUser has and a row has not. A column of the application's own with
        # such a name stays what it is.
        for name, value in (("is_authenticated", True), ("identity", identity.id)):
            if not hasattr(type(identity), name):
                vars(identity)[name] = value
        scopes = [AUTHENTICATED, *access.claims.scopes]
        return AuthCredentials(scopes), cast("BaseUser", identity)


def _printable(text: str) -> str:
    """Return what may stand in a quoted value of the challenge (RFC 6750, section 3)."""
    allowed = (c if " " <= c <= "~" and c not in '"\\' else "'" for c in text[:200])
    return "".join(allowed)


def _note(level: int, reason: str) -> None:
    _LOG.log(level, "tenantsync.access_refused", extra={"reason": reason})
