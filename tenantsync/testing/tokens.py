"""The tokens that AuthVital mints with one set of keys: access tokens, and what looks like them.

Signed with PyJWT from the written format; nothing here knows how a receiver checks them.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.state import State
from tenantsync.testing.tables import Credential

__all__ = ["Tokens"]

_ALL_SCOPES = "openid profile email offline_access"
_HOUR, _WEEK = 3600, 7 * 86_400


class Tokens:
    """Mints tokens.

    Every method takes further claims by keyword, which replace those that it would write; `without`
    names claims to leave out; `key` signs in place of the active one; `lifetime` is in seconds, and
    one below zero makes a token that has expired.

    Args:
        keys: The keys; the active one signs.
        issuer: Returns the `iss`.
        state: Who people are, and which credentials there are.
        clock: Unix seconds.
    """

    def __init__(
        self,
        keys: Keys,
        *,
        issuer: Callable[[], str],
        state: State,
        clock: Callable[[], float],
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._state = state
        self._clock = clock

    def access(
        self,
        sub: str,
        tenant_id: str | None = None,
        *,
        client_id: str | None = None,
        scope: str = _ALL_SCOPES,
        lifetime: int = _HOUR,
        key: SigningKey | None = None,
        without: Iterable[str] = (),
        **claims: object,
    ) -> str:
        """Mint an access token as the code exchange does.

        The real one checks that the membership is active; this one does not, so that a test may
        hold the token of someone who left. What the emulator knows of the person is in it.

        Args:
            sub: The person; they need not exist.
            tenant_id: The tenant that the token is for, or None for a token without one.
            client_id: The `aud`; None is the first application's `SPA` credential.
            scope: Scopes, with spaces between.
            lifetime: Seconds.
            key: The key to sign with; None is the active one.
            without: Names of claims to leave out.
            claims: Claims to add or replace.
        """
        made = self._access(sub, tenant_id, client_id, scope, lifetime)
        return self.sign(_edited(made, without, claims), key=key)

    def refreshed(
        self, sub: str, tenant_id: str, *, client_id: str | None = None, **claims: object
    ) -> str:
        """Mint an access token as the cookie refresh does: without looking at the membership.

        Whoever has left keeps `tenant_id` and `tenant_subdomain`; only the claims of roles go.
        """
        without = {"license", "mfa_grace_expires_at"}
        membership = self._state.membership(tenant_id, sub)
        if membership is None or membership.status != "ACTIVE":
            without |= {"tenant_roles", "tenant_permissions", "app_roles"}
        made = self._access(sub, tenant_id, client_id, _ALL_SCOPES, _HOUR)
        return self.sign(_edited(made, without, claims))

    def id(self, sub: str, *, client_id: str | None = None, **claims: object) -> str:
        """Mint an ID token: the same `aud`, no `scope`, no tenant."""
        made = {
            **self._begun(sub, _HOUR),
            "aud": client_id or self._audience(),
            "amr": ["pwd"],
            "auth_time": int(self._clock()),
            "nonce": "n-0S6_WzA2Mj",
            **self._profile(sub, _ALL_SCOPES),
        }
        return self.sign(made | claims)

    def refresh(
        self,
        sub: str,
        tenant_id: str | None = None,
        *,
        client_id: str | None = None,
        **claims: object,
    ) -> str:
        """Mint a refresh token: as an access token, but for `token_type`, `sid` and its week."""
        made = {
            **self._begun(sub, _WEEK),
            "aud": client_id or self._audience(),
            "scope": _ALL_SCOPES,
            "token_type": "refresh",
            "sid": self._state.ids.uuid(),
        }
        if tenant_id is not None:
            made["tenant_id"] = tenant_id
            made["tenant_subdomain"] = self._subdomain(tenant_id)
        return self.sign(made | claims)

    def machine(
        self,
        client_id: str | None = None,
        *,
        scope: str | None = None,
        lifetime: int | None = None,
        **claims: object,
    ) -> str:
        """Mint a machine token, as client credentials give it."""
        client_id = client_id or self._first("MACHINE")
        found = self._state.credential(client_id)
        credential = found[1] if found else Credential(client_id, "MACHINE")
        made = {
            **self._begun(f"app:{client_id}", lifetime or credential.lifetime),
            "aud": client_id,
            "client_id": client_id,
            "scope": " ".join(credential.scopes) if scope is None else scope,
            "token_type": "m2m",
        }
        return self.sign(made | claims)

    def console(self, sub: str, **claims: object) -> str:
        """Mint a session of AuthVital's own console: no `aud`."""
        now = int(self._clock())
        return self.sign({**self._begun(sub, _HOUR), "session_start": now} | claims)

    def super_admin(self, sub: str, **claims: object) -> str:
        """Mint a super-admin's session: no `aud`, a `type`."""
        return self.sign({**self._begun(sub, _HOUR), "type": "super_admin"} | claims)

    def mfa_challenge(self, sub: str, **claims: object) -> str:
        """Mint what stands between password and second factor: no `aud`, a `type`."""
        return self.sign({**self._begun(sub, 300), "type": "mfa_challenge"} | claims)

    def mfa_resume(self, sub: str, **claims: object) -> str:
        """Mint what resumes a sign-in after the second factor: no `aud`, a `type`."""
        return self.sign({**self._begun(sub, 300), "type": "mfa_resume"} | claims)

    # -- by other hands

    def sign(self, claims: Mapping[str, Any], *, key: SigningKey | None = None) -> str:
        """Sign any claims with RS256, under AuthVital's header.

        Args:
            claims: The whole payload.
            key: The key; None is the active one.
        """
        key = key or self._keys.active
        # Not through PyJWT's `iss` and `exp` checks, which would refuse what tests want wrong.
        return jwt.api_jws.encode(
            json.dumps(dict(claims), separators=(",", ":")).encode(),
            key.private,
            algorithm="RS256",
            headers={"kid": key.kid},
        )

    def unsigned(self, claims: Mapping[str, Any]) -> str:
        """Return claims under `alg: none`."""
        return f"{_part({'alg': 'none', 'typ': 'JWT'})}.{_part(claims)}."

    def confused(self, claims: Mapping[str, Any]) -> str:
        """Return claims under HS256, with the published key's PEM for a secret."""
        key = self._keys.active
        secret = key.private.public_key().public_bytes(
            Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        )
        head = {"alg": "HS256", "kid": key.kid, "typ": "JWT"}
        signed = f"{_part(head)}.{_part(claims)}"
        return f"{signed}.{_base64url(hmac.digest(secret, signed.encode(), hashlib.sha256))}"

    def forged(self, claims: Mapping[str, Any]) -> str:
        """Sign claims with a stranger's key under the active key's id."""
        stranger = SigningKey.generate(self._clock())
        return self.sign(claims, key=SigningKey(self._keys.active.kid, stranger.private))

    @staticmethod
    def claims(token: str) -> dict[str, Any]:
        """Return a token's payload without checking anything, so that it can be spoilt."""
        found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
        return found

    def _begun(self, sub: str, lifetime: int) -> dict[str, Any]:
        now = int(self._clock())
        # A token that is past has also begun in the past.
        begun = now if lifetime >= 0 else now + 2 * lifetime
        return {"sub": sub, "iss": self._issuer(), "iat": begun, "exp": now + lifetime}

    def _access(
        self, sub: str, tenant_id: str | None, client_id: str | None, scope: str, lifetime: int
    ) -> dict[str, Any]:
        audience = client_id or self._audience()
        return {
            **self._begun(sub, lifetime),
            "aud": audience,
            "scope": scope,
            "amr": ["pwd"],
            **self._profile(sub, scope),
            **self._tenant(sub, tenant_id, audience),
        }

    def _audience(self) -> str:
        return self._first("SPA")

    def _first(self, kind: str) -> str:
        for application in self._state.applications.values():
            if kind in application.credentials:
                return application.credentials[kind].client_id
        raise LookupError(
            f"no application has a {kind} credential: name a client_id, or add_application() one"
        )

    def _profile(self, sub: str, scope: str) -> dict[str, Any]:
        user, scopes = self._state.users.get(sub), scope.split()
        made: dict[str, Any] = {}
        if "email" in scopes:
            made["email"] = user.email if user else None
        if "profile" in scopes:
            made["given_name"] = user.given_name if user else None
            made["family_name"] = user.family_name if user else None
        return made

    def _subdomain(self, tenant_id: str) -> str:
        tenant = self._state.tenants.get(tenant_id)
        return tenant.slug if tenant else "tenant"

    def _tenant(self, sub: str, tenant_id: str | None, client_id: str) -> dict[str, Any]:
        if tenant_id is None:
            return {}
        membership = self._state.membership(tenant_id, sub)
        slugs = membership.tenant_roles if membership else ["member"]
        catalogue = self._state.tenant_roles
        allowed = {name for slug in slugs if slug in catalogue for name in _rights(catalogue, slug)}
        made: dict[str, Any] = {
            "tenant_id": tenant_id,
            "tenant_subdomain": self._subdomain(tenant_id),
            "tenant_roles": list(slugs),
            "tenant_permissions": sorted(allowed),
        }
        found = self._state.credential(client_id)
        if membership is not None and found is not None:
            application = found[0]
            slugs = [
                application.roles[role_id].slug
                for role_id in membership.role_ids
                if role_id in application.roles
            ]
            if slugs:
                made["app_roles"] = slugs
            for seat in self._state.seats.values():
                wanted = (tenant_id, sub, application.id)
                if (seat.tenant_id, seat.user_id, seat.application_id) == wanted:
                    kind = self._state.license_types[seat.license_type_id]
                    made["license"] = {
                        "type": kind.slug,
                        "name": kind.name,
                        "features": list(kind.features),
                    }
        return made


def _rights(catalogue: Mapping[str, Any], slug: str) -> Iterable[str]:
    # An owner's wildcard is spelt out.
    if slug != "owner":
        return tuple(catalogue[slug].permissions)
    return {name for role in catalogue.values() for name in role.permissions if "*" not in name}


def _edited(
    made: Mapping[str, Any], without: Iterable[str], claims: Mapping[str, Any]
) -> dict[str, Any]:
    gone = set(without)
    return {name: value for name, value in made.items() if name not in gone} | dict(claims)


def _part(document: Mapping[str, Any]) -> str:
    return _base64url(json.dumps(dict(document), separators=(",", ":")).encode())


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")
