"""Proof that a JSON Web Token is whose it says: its signature, its issuer, its audience, its time.

One core for every kind of token (RFC 7519, and the advice of RFC 8725); whoever uses it judges the
claims of its own kind.
"""

import base64
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from jwt import PyJWS
from jwt.exceptions import PyJWTError

from tenantsync.authvital.keys import KeyRing
from tenantsync.errors import ConfigError, Untrusted
from tenantsync.tenants import MAX_ID_BYTES

__all__ = [
    "GOOGLE_ISSUER",
    "MAX_TOKEN_CHARACTERS",
    "AccessClaims",
    "AccessTokens",
    "TokenVerifier",
    "google_issuers",
]

GOOGLE_ISSUER: Final = "https://accounts.google.com"
"""The `iss` of the tokens that Google makes for push subscriptions."""

MAX_TOKEN_CHARACTERS: Final = 16_384
"""A longer token is not read."""

_ALGORITHM: Final = "RS256"
_SHAPE: Final = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_LAST_SECOND: Final = 253_402_300_799  # the year 9999
_OTHER_KINDS: Final = ("token_type", "type", "session_start")
"""Claims that an access token never has, and what looks like one has one of."""


def google_issuers(issuer: str) -> frozenset[str]:
    """Return the `iss` values that stand for an issuer: Google writes its own without scheme too.

    The two spellings are documented under "Authenticate with a backend server" in Google's
    Identity documentation.
    """
    return frozenset((issuer, "accounts.google.com") if issuer == GOOGLE_ISSUER else (issuer,))


class _Header(msgspec.Struct):
    alg: str
    kid: str


class TokenVerifier:
    """Verifies tokens against a key ring.

    Args:
        keys: Where public keys come from.
        issuers: The `iss` values that a token may have, exactly.
        audience: The `aud` values that a token may have. One with several must have no other.
        leeway: Seconds by which clocks may differ.
        clock: Unix seconds.
    """

    def __init__(
        self,
        keys: KeyRing,
        *,
        issuers: Collection[str],
        audience: Collection[str],
        leeway: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._issuers = frozenset(issuers)
        self._audience = frozenset(audience)
        self._leeway = leeway
        self._clock = clock
        self._signatures = PyJWS(algorithms=[_ALGORITHM])

    def ready(self, token: str) -> bool:
        """Whether `verify` will decide without the network: the key is held, or the token fails."""
        try:
            return self._keys.holds(_key_id(token))
        except Untrusted:
            return True

    def verify(self, token: str, *, required: Collection[str] = ()) -> Mapping[str, Any]:
        """Return the claims of a token that is authentic, meant for us, and valid now.

        Args:
            token: As it came, in the compact form.
            required: Claims that must be there, beside `iss`, `aud`, `iat` and `exp`.

        Raises:
            Untrusted: It is not. The message repeats no claim.
            KeysUnavailable: Its key was never seen, and the JWKS cannot be fetched now.
        """
        key = self._keys.find(_key_id(token))
        try:
            # The one algorithm is ours to say, never the token's.
            proven = self._signatures.decode_complete(token, key, algorithms=[_ALGORITHM])
        except (PyJWTError, ValueError, TypeError, RecursionError):
            raise Untrusted("the token's signature does not match its key") from None
        try:
            claims = msgspec.json.decode(proven["payload"], type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise Untrusted("the token's claims are no JSON object") from None
        self._judge(claims, required)
        return claims

    def _judge(self, claims: Mapping[str, Any], required: Collection[str]) -> None:
        for name in ("iss", "aud", "iat", "exp", *required):
            if claims.get(name) is None:
                raise Untrusted(f"the token has no claim {name!r}")
        issuer, audience = claims["iss"], claims["aud"]
        if not isinstance(issuer, str) or issuer not in self._issuers:
            raise Untrusted("the token is of another issuer")
        audiences = audience if isinstance(audience, list) else [audience]
        if not audiences or not all(
            isinstance(each, str) and each in self._audience for each in audiences
        ):
            raise Untrusted("the token is meant for another audience")
        now = self._clock()
        if now - self._leeway >= _seconds(claims, "exp"):
            raise Untrusted(
                "the token has expired; if this is frequent, check this machine's clock"
            )
        for name in ("iat", "nbf"):
            if claims.get(name) is not None and _seconds(claims, name) > now + self._leeway:
                raise Untrusted(
                    f"the token's {name!r} lies in the future; if this is frequent, check this "
                    "machine's clock"
                )


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What an access token says; that the person is a member of the tenant is not proven by it.

    Args:
        sub: The person, by the provider's id.
        tenant_id: The provider's id of the tenant that the token is for.
        scopes: What the token may be used for.
        claims: All claims.
    """

    sub: str
    tenant_id: str
    scopes: tuple[str, ...]
    claims: Mapping[str, Any] = field(repr=False)


class AccessTokens:
    """Tells AuthVital's access tokens for this application from all that looks like them.

    The same keys also sign ID tokens, refresh tokens, machine tokens and the sessions of
    AuthVital's own console, with the same issuer; `docs/explanation/authorisation.md` says what
    gives each of them away.

    Args:
        keys: AuthVital's public keys.
        issuer: The exact `iss`.
        audience: The client ids of this application: the `aud` that a token may have.
        leeway: Seconds by which clocks may differ.
        clock: Unix seconds.

    Raises:
        ConfigError: There is no audience, so that no token could ever be accepted.
    """

    def __init__(
        self,
        keys: KeyRing,
        *,
        issuer: str,
        audience: Collection[str],
        leeway: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not audience:
            raise ConfigError(
                "[authvital] audience: is empty; list the client ids whose access tokens this "
                "application accepts"
            )
        self._tokens = TokenVerifier(
            keys, issuers=[issuer], audience=audience, leeway=leeway, clock=clock
        )

    def ready(self, token: str) -> bool:
        """Whether `verify` will decide without the network: the key is held, or the token fails."""
        return self._tokens.ready(token)

    def verify(self, token: str) -> AccessClaims:
        """Return what an access token says, if it is one, for us, for a tenant, and valid now.

        Args:
            token: As it came, in the compact form.

        Raises:
            Untrusted: It is not. The message repeats no claim.
            KeysUnavailable: Its key was never seen, and the JWKS cannot be fetched now.
        """
        claims = self._tokens.verify(token, required=("sub", "scope", "tenant_id"))
        for name in _OTHER_KINDS:
            if name in claims:
                raise Untrusted(f"the token is no access token: it has a claim {name!r}")
        scope = claims["scope"]
        if not isinstance(scope, str):
            raise Untrusted("the token's 'scope' is no text")
        sub, tenant_id = _identifier(claims, "sub"), _identifier(claims, "tenant_id")
        return AccessClaims(sub, tenant_id, tuple(scope.split()), claims)


def _identifier(claims: Mapping[str, Any], name: str) -> str:
    """Return a claim that is an id: a text that every database can be asked for."""
    value = claims[name]
    try:
        size = len(value.encode()) if isinstance(value, str) and "\x00" not in value else 0
    except UnicodeEncodeError:  # half a surrogate pair
        size = 0
    if not 0 < size <= MAX_ID_BYTES:
        raise Untrusted(f"the token's {name!r} is not a text of 1 to {MAX_ID_BYTES} bytes")
    return str(value)


def _key_id(token: str) -> str:
    """Return the key id that a token's header names, which nothing has proven yet."""
    shape = _SHAPE.fullmatch(token) if len(token) <= MAX_TOKEN_CHARACTERS else None
    if shape is None:
        raise Untrusted("the token is no JSON Web Token in the compact form")
    encoded = shape[1]
    try:
        raw = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        header = msgspec.json.decode(raw, type=_Header)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Untrusted("the token's header names no algorithm and no key") from None
    if header.alg != _ALGORITHM:
        raise Untrusted(f"the token is not signed with {_ALGORITHM}")
    return header.kid


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    # A bool is an int to Python, and no time. NaN is within no bounds.
    if type(value) not in (int, float) or not 0 <= value <= _LAST_SECOND:
        raise Untrusted(f"the token's {name!r} is no time")
    return float(value)
