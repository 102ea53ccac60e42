"""Asking AuthVital who belongs to a tenant: a blocking client of its integration API.

Used by reconciliation only, never on the way of a delivery. The endpoints and their quirks stand in
`docs/reference/provider.md`; how requests are repeated and answers bounded is in `exchange`.
"""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Self, TypeVar

import httpx2
import msgspec

from tenantsync.authvital.exchange import (
    Answer,
    Asked,
    Exchange,
    IntegrationForbidden,
    IntegrationNotFound,
    IntegrationRefused,
    IntegrationUnavailable,
)
from tenantsync.authvital.memberships import (
    ApplicationMembership,
    ApplicationMemberships,
    LicenseHolder,
    LicenseHolders,
    Membership,
    Role,
    Rows,
    Subject,
    TenantMemberships,
    TenantName,
    Wire,
)
from tenantsync.errors import ConfigError

__all__ = [
    "ApplicationMembership",
    "ApplicationMemberships",
    "IntegrationClient",
    "IntegrationForbidden",
    "IntegrationNotFound",
    "IntegrationRefused",
    "IntegrationUnavailable",
    "LicenseHolder",
    "LicenseHolders",
    "Membership",
    "Role",
    "Rows",
    "Subject",
    "TenantMemberships",
    "TenantName",
]

MAX_BYTES = 256 * 1024 * 1024
"""The longest list that is read by default: a membership takes 400 to 800 bytes."""

_EARLY = 60.0
"""Seconds before its end at which a token is no longer used; the call that it opens takes time."""

_SCOPE = "integration:read"

_Row = TypeVar("_Row", bound=msgspec.Struct)


class _TenantAnswer(Wire, frozen=True, gc=False):
    tenant_id: str
    memberships: list[msgspec.Raw]
    total_count: int


class _ApplicationAnswer(Wire, frozen=True, gc=False):
    application_id: str
    client_id: str
    memberships: list[msgspec.Raw]
    total_count: int


class _TokenAnswer(msgspec.Struct, frozen=True):
    access_token: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._~+/-]+=*$")]
    token_type: Annotated[str, msgspec.Meta(pattern=r"^[Bb]earer$")]
    expires_in: float = 0.0
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    until: float  # of the monotonic clock


class IntegrationClient:
    """A client of AuthVital's integration API for one machine credential.

    Any number of threads may share one. A token is fetched when it is first needed, kept until 60 s
    before its end, and fetched once more when the provider refuses it. Nothing is sent by making
    one. Close it, or use it as a context manager.

    Every method raises:
        IntegrationRefused: The credential, or what it may do, is wrong. A `ConfigError`.
        IntegrationForbidden: It may not ask about this tenant; about others it may. An
            `IntegrationRefused`.
        IntegrationNotFound: The provider has no such tenant or application. An
            `IntegrationRefused`.
        IntegrationUnavailable: No usable answer was had in time. An `Unavailable`.

    Args:
        host: AuthVital's base URL.
        client_id: The `MACHINE` credential's client id.
        client_secret: Its secret. Sent in the body only: AuthVital advertises HTTP Basic for it and
            does not implement it.
        http: The HTTP client to use, which the caller closes; None makes one that knows no proxy of
            the environment and follows no redirect.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
        jitter: A number from 0 to 1, for spreading repetitions.
        attempts: How often a request is sent at most.
        deadline: Seconds for one call, with its token, its repetitions and their waits.
        timeout: Seconds to wait for each next byte.
        max_bytes: The longest answer that is read.

    Raises:
        ConfigError: The host is no http(s) URL, or holds a user name or password.
    """

    def __init__(
        self,
        host: str,
        client_id: str,
        client_secret: str,
        *,
        http: httpx2.Client | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        attempts: int = 5,
        deadline: float = 300.0,
        timeout: float = 30.0,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._base = _base_url(host)
        self._credential = {"client_id": client_id, "client_secret": client_secret}
        self._clock = clock
        self._deadline = deadline
        self._owns = http is None
        self._http = httpx2.Client(trust_env=False) if http is None else http
        self._exchange = Exchange(
            self._http,
            clock=clock,
            sleep=sleep,
            jitter=jitter,
            attempts=attempts,
            timeout=timeout,
            max_bytes=max_bytes,
            secrets=(client_secret,),
        )
        # Guards the two below, never held while a request is under way.
        self._lock = threading.Lock()
        self._token: _Token | None = None
        self._flight: Future[_Token] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, unless the caller handed in the HTTP client."""
        if self._owns:
            self._http.close()

    def tenant_memberships(self, tenant_id: str) -> TenantMemberships:
        """Return every membership of a tenant, whatever its status, with application roles.

        Args:
            tenant_id: AuthVital's id of the tenant.
        """
        # Without the literal `true`, every list of roles comes back empty.
        answer = self._get("tenant-memberships", {"tenantId": tenant_id, "includeRoles": "true"})
        found = answer.read(_TenantAnswer)
        return TenantMemberships(
            tenant_id=found.tenant_id,
            total_count=found.total_count,
            memberships=_rows(answer, found.memberships, Membership),
            date=answer.date,
            waited=answer.waited,
        )

    def application_memberships(self, client_id: str) -> ApplicationMemberships:
        """Return the memberships of all tenants that have a role in an application.

        The machine credential must be trusted for all tenants. People with access but without a
        role are not in the list.

        Args:
            client_id: The client id of any credential of the application.
        """
        answer = self._get("application-memberships", {"clientId": client_id})
        found = answer.read(_ApplicationAnswer)
        return ApplicationMemberships(
            application_id=found.application_id,
            client_id=found.client_id,
            total_count=found.total_count,
            memberships=_rows(answer, found.memberships, ApplicationMembership),
            date=answer.date,
            waited=answer.waited,
        )

    def license_holders(self, tenant_id: str, application_id: str) -> LicenseHolders:
        """Return who holds a seat of an application in a tenant.

        Args:
            tenant_id: AuthVital's id of the tenant.
            application_id: The application's id, not a client id.
        """
        answer = self._get(
            "license-holders", {"tenantId": tenant_id, "applicationId": application_id}
        )
        raws = answer.read(list[msgspec.Raw])
        return LicenseHolders(
            holders=_rows(answer, raws, LicenseHolder), date=answer.date, waited=answer.waited
        )

    def _get(self, endpoint: str, query: dict[str, str]) -> Answer:
        until = self._clock() + self._deadline
        token = self._bearer(until)
        for again in (True, False):
            asked = Asked(
                endpoint,
                "GET",
                f"{self._base}/api/integration/{endpoint}",
                query=query,
                headers={"Authorization": f"Bearer {token.text}"},
                retry_refused=again,
                of_tenant="tenantId" in query,
            )
            answer = self._exchange.ask(asked, until, secret=token.text)
            if answer is not None:
                return answer
            # Revoked, or signed with a key that is gone: a new token may do.
            self._forget(token)
            token = self._bearer(until)
        raise AssertionError("the second refusal raises")  # pragma: no cover

    def _forget(self, token: _Token) -> None:
        with self._lock:
            # Another thread may have met the same refusal, and fetched anew already.
            if self._token is token:
                self._token = None

    def _bearer(self, until: float) -> _Token:
        """Return the token: the one that is kept, the one being fetched, or a new one."""
        with self._lock:
            if self._token is not None and self._clock() < self._token.until:
                return self._token
            flight, leads = self._flight, self._flight is None
            if flight is None:
                flight = self._flight = Future()
        if leads:
            self._fly(flight, until)
        return flight.result()

    def _fly(self, flight: "Future[_Token]", until: float) -> None:
        token: _Token | None = None
        failure: BaseException = IntegrationUnavailable("fetching a token was interrupted")
        try:
            token = self._fetch_token(until)
        except Exception as error:
            failure = error
        finally:
            # Also on KeyboardInterrupt: whoever waits must not wait for ever.
            with self._lock:
                self._token, self._flight = token, None
            if token is None:
                flight.set_exception(failure)
            else:
                flight.set_result(token)

    def _fetch_token(self, until: float) -> _Token:
        asked = Asked(
            "token",
            "POST",
            f"{self._base}/oauth/token",
            form={"grant_type": "client_credentials", **self._credential, "scope": _SCOPE},
        )
        began = self._clock()
        answer = self._exchange.ask(asked, until)
        if answer is None:
            raise AssertionError("only a retry_refused request has no answer")  # pragma: no cover
        found = answer.read(_TokenAnswer)
        if found.scope is not None and _SCOPE not in found.scope.split():
            raise IntegrationRefused(
                f"the machine credential may not use the scope {_SCOPE}: allow it in AuthVital, at "
                "the application's MACHINE credential"
            )
        return _Token(found.access_token, began + found.expires_in - _EARLY)


def _rows(answer: Answer, raws: list[msgspec.Raw], kind: type[_Row]) -> Rows[_Row]:
    decoder = msgspec.json.Decoder(kind)
    with answer.judged():
        for raw in raws:
            decoder.decode(raw)
    return Rows(raws, decoder)


def _base_url(host: str) -> str:
    try:
        url = httpx2.URL(host)
    except (httpx2.InvalidURL, TypeError):
        url = None
    if url is None or url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("authvital.host is no URL: write it like https://auth.example.com")
    if url.userinfo or url.query or url.fragment:
        raise ConfigError(
            "authvital.host holds more than scheme, host, port and path: take the rest out"
        )
    return host.rstrip("/")
