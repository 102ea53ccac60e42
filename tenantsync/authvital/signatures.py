"""Proof that AuthVital sent a webhook: the signature over its exact bytes, and its clock.

Bodies are verified before anything parses them. What a signature proves, and what it does not,
stands in `docs/explanation/trust.md`; how the two channels sign in `docs/reference/provider.md`.
"""

import base64
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from tenantsync.authvital.keys import KeyRing, is_key_id
from tenantsync.errors import Untrusted

__all__ = ["Claim", "SystemVerifier", "Verified", "Verifier", "rsa_sha256_matches"]

SIGNATURE_HEADER: Final = "X-AuthVital-Signature"
KEY_ID_HEADER: Final = "X-AuthVital-Key-Id"
TIMESTAMP_HEADER: Final = "X-AuthVital-Timestamp"

SYSTEM_SIGNATURE_HEADER: Final = "X-Webhook-Signature"
SYSTEM_KEY_ID_HEADER: Final = "X-Webhook-Key-Id"

# int() would also take signs, spaces, underscores and the digits of other scripts.
_UNIX_SECONDS = re.compile(r"[0-9]{1,12}")
_MAX_SIGNATURE_TEXT = 1368  # the base64 of the 1024 bytes that an 8192-bit key makes


def rsa_sha256_matches(key: RSAPublicKey, signature: bytes, message: bytes) -> bool:
    """Whether the signature is that of the message: RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017)."""
    try:
        key.verify(signature, message, PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Verified:
    """What the signature vouches for, beside the body.

    Args:
        signed_at: When this delivery was signed, in unix seconds: each attempt is signed anew.
            None on the channel whose signature covers the body alone.
        kid: The id of the key that signed.
    """

    signed_at: int | None
    kid: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What the headers of a delivery claim: well formed and of a known key, but not proven.

    Args:
        kid: The id of the key.
        key: The key.
        signature: What is to match.
        timestamp: The signed time as it was written, or None where none is signed.
    """

    kid: str
    key: RSAPublicKey = field(repr=False)
    signature: bytes = field(repr=False)
    timestamp: str | None = None


class _Headers(ABC):
    """What the two channels have in common: a signature and a key id, each in one header.

    Args:
        keys: Where public keys come from.
        final: Whether AuthVital takes a refusal for final, see `KeyRing.find`.
        names: The headers that count: signature, key id, and what else is needed.
    """

    def __init__(self, keys: KeyRing, *, final: bool, names: tuple[str, ...]) -> None:
        self._keys = keys
        self._final = final
        self._signature_header, self._key_id_header = names[:2]
        self._names = {name.lower(): name for name in names}

    @property
    def headers(self) -> frozenset[str]:
        """The names, in small letters, of the headers that count; no other is looked at."""
        return frozenset(self._names)

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Verified:
        """Return what is proven of a delivery, or refuse it.

        Waits for the network only when the key was never seen, see `ready`.

        Args:
            body: The body exactly as received.
            headers: The request's headers; names in any case.

        Raises:
            Untrusted: A header is missing, malformed or double, the time is outside the window,
                the key is not AuthVital's, or the signature does not match.
            KeysUnavailable: The key was never seen, and the JWKS cannot be fetched now.
        """
        return self.prove(self.claim(headers), body)

    def claim(self, headers: Mapping[str, str]) -> Claim:
        """Return what the headers claim, with its key: all that can be judged without the body.

        Raises:
            Untrusted, KeysUnavailable: As `verify`.
        """
        kid, signature, timestamp = self._read(headers)
        return Claim(kid, self._keys.find(kid, final=self._final), signature, timestamp)

    def prove(self, claim: Claim, body: bytes) -> Verified:
        """Return what is proven of a body under a claim. Never waits.

        Raises:
            Untrusted: The signature does not match.
        """
        stamp = claim.timestamp
        message = body if stamp is None else b"%b.%b" % (stamp.encode("ascii"), body)
        if not rsa_sha256_matches(claim.key, claim.signature, message):
            what = "the body" if stamp is None else "the timestamp and the body"
            raise Untrusted(
                f"{self._signature_header} does not match {what} under key {claim.kid[:48]!r}: "
                f"{'it was' if stamp is None else 'they were'} changed on the way, or signed by "
                "somebody else"
            )
        return Verified(None if stamp is None else int(stamp), claim.kid)

    def ready(self, headers: Mapping[str, str]) -> bool:
        """Whether `verify` will decide without the network: the key is held, or the headers fail.

        An asynchronous server calls `verify` directly then, and in a thread otherwise.
        """
        try:
            kid, _, _ = self._read(headers)
        except Untrusted:
            return True
        return self._keys.holds(kid)

    def _read(self, headers: Mapping[str, str]) -> tuple[str, bytes, str | None]:
        values = self._pick(headers)
        timestamp = self._timestamp(values)
        kid = values[self._key_id_header]
        if not is_key_id(kid):
            raise Untrusted(f"{self._key_id_header} is not 1 to 255 visible ASCII characters")
        return kid, _decode(values[self._signature_header], self._signature_header), timestamp

    @abstractmethod
    def _timestamp(self, values: Mapping[str, str]) -> str | None:
        """Return the text of the signed time, if there is one and it is within the window."""

    def _pick(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers that count by their proper names; each must be there exactly once."""
        values: dict[str, str] = {}
        for name, value in headers.items():
            # Some other letters have ASCII ones as their lower case (U+212A and k).
            proper = self._names.get(name.lower()) if name.isascii() else None
            if proper is None:
                continue
            if proper in values:
                raise Untrusted(f"{proper} is there twice")
            if not isinstance(value, str):
                raise Untrusted(f"{proper} is not text")
            values[proper] = value
        for proper in self._names.values():
            if not values.get(proper):
                raise Untrusted(f"{proper} is missing")
        return values


class Verifier(_Headers):
    """Verifies deliveries of the sync-webhook channel.

    Args:
        keys: Where public keys come from.
        max_age: Seconds that the signed time may lie in the past.
        max_skew: Seconds that it may lie in the future.
        clock: Unix seconds.
    """

    def __init__(
        self,
        keys: KeyRing,
        *,
        max_age: int = 300,
        max_skew: int = 60,
        clock: Callable[[], float] = time.time,
    ) -> None:
        names = (SIGNATURE_HEADER, KEY_ID_HEADER, TIMESTAMP_HEADER)
        super().__init__(keys, final=False, names=names)
        self._max_age = max_age
        self._max_skew = max_skew
        self._clock = clock

    def _timestamp(self, values: Mapping[str, str]) -> str:
        timestamp = values[TIMESTAMP_HEADER]
        if not _UNIX_SECONDS.fullmatch(timestamp):
            raise Untrusted(f"{TIMESTAMP_HEADER} is not 1 to 12 digits of unix seconds")
        age = self._clock() - int(timestamp)
        if age > self._max_age:
            raise Untrusted(
                f"{TIMESTAMP_HEADER} is too old by {age - self._max_age:.0f} s: at most "
                f"{self._max_age} s are allowed; if this is frequent, check this machine's clock"
            )
        if -age > self._max_skew:
            raise Untrusted(
                f"{TIMESTAMP_HEADER} is too far in the future by {-age - self._max_skew:.0f} s: "
                f"at most {self._max_skew} s are allowed; if this is frequent, check this "
                "machine's clock"
            )
        return timestamp


class SystemVerifier(_Headers):
    """Verifies deliveries of the system-webhook channel.

    Their signature covers the body alone, whose time is that of the event and not of the attempt.
    So there is no window: a retry may come 41 hours later. And a refusal is final for AuthVital,
    so that a key is called unknown only after the JWKS was asked for it.

    Args:
        keys: Where public keys come from; share those of the sync webhooks, it is one JWKS.
    """

    def __init__(self, keys: KeyRing) -> None:
        super().__init__(keys, final=True, names=(SYSTEM_SIGNATURE_HEADER, SYSTEM_KEY_ID_HEADER))

    def _timestamp(self, values: Mapping[str, str]) -> None:
        return None


def _decode(text: str, header: str) -> bytes:
    """Return the bytes of canonical base64 (RFC 4648, section 4): one text per signature."""
    if len(text) > _MAX_SIGNATURE_TEXT:
        raise Untrusted(f"{header} is longer than {_MAX_SIGNATURE_TEXT} characters")
    try:
        signature = base64.b64decode(text, validate=True)
        canonical = base64.b64encode(signature).decode("ascii")
    except ValueError:
        canonical = None
    if canonical != text:
        raise Untrusted(f"{header} is not standard base64 with padding")
    return signature
