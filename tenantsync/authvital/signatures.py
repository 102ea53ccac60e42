"""Proof that AuthVital sent a sync webhook: the signature over its exact bytes, and its clock.

Bodies are verified before anything parses them. What a signature proves, and what it does not,
stands in `docs/explanation/trust.md`.
"""

import base64
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from tenantsync.authvital.keys import KeyRing, is_key_id
from tenantsync.errors import Untrusted

__all__ = ["Verified", "Verifier", "rsa_sha256_matches"]

SIGNATURE_HEADER = "X-AuthVital-Signature"
KEY_ID_HEADER = "X-AuthVital-Key-Id"
TIMESTAMP_HEADER = "X-AuthVital-Timestamp"

_NAMES = {name.lower(): name for name in (SIGNATURE_HEADER, KEY_ID_HEADER, TIMESTAMP_HEADER)}
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
        signed_at: When this delivery was signed, in unix seconds. Each attempt is signed anew.
        kid: The id of the key that signed.
    """

    signed_at: int
    kid: str


@dataclass(frozen=True, slots=True)
class _Claim:
    """The headers of a delivery, well formed but not proven."""

    signature: bytes
    kid: str
    timestamp: str


class Verifier:
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
        self._keys = keys
        self._max_age = max_age
        self._max_skew = max_skew
        self._clock = clock

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
        claim = self._read(headers)
        key = self._keys.find(claim.kid)
        message = b"%b.%b" % (claim.timestamp.encode("ascii"), body)
        if not rsa_sha256_matches(key, claim.signature, message):
            raise Untrusted(
                f"{SIGNATURE_HEADER} does not match the timestamp and the body under key "
                f"{claim.kid[:48]!r}: they were changed on the way, or signed by somebody else"
            )
        return Verified(int(claim.timestamp), claim.kid)

    def ready(self, headers: Mapping[str, str]) -> bool:
        """Whether `verify` will decide without the network: the key is held, or the headers fail.

        An asynchronous server calls `verify` directly then, and in a thread otherwise.
        """
        try:
            claim = self._read(headers)
        except Untrusted:
            return True
        return self._keys.holds(claim.kid)

    def _read(self, headers: Mapping[str, str]) -> _Claim:
        values = _pick(headers)
        timestamp = values[TIMESTAMP_HEADER]
        if not _UNIX_SECONDS.fullmatch(timestamp):
            raise Untrusted(f"{TIMESTAMP_HEADER} is not 1 to 12 digits of unix seconds")
        self._check_time(int(timestamp))
        kid = values[KEY_ID_HEADER]
        if not is_key_id(kid):
            raise Untrusted(f"{KEY_ID_HEADER} is not 1 to 255 visible ASCII characters")
        return _Claim(_decode(values[SIGNATURE_HEADER]), kid, timestamp)

    def _check_time(self, signed_at: int) -> None:
        age = self._clock() - signed_at
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


def _pick(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the three headers by their proper names; each must be there exactly once."""
    values: dict[str, str] = {}
    for name, value in headers.items():
        # Some other letters have ASCII ones as their lower case (U+212A and k).
        proper = _NAMES.get(name.lower()) if name.isascii() else None
        if proper is None:
            continue
        if proper in values:
            raise Untrusted(f"{proper} is there twice")
        if not isinstance(value, str):
            raise Untrusted(f"{proper} is not text")
        values[proper] = value
    for proper in _NAMES.values():
        if not values.get(proper):
            raise Untrusted(f"{proper} is missing")
    return values


def _decode(text: str) -> bytes:
    """Return the bytes of canonical base64 (RFC 4648, section 4): one text per signature."""
    if len(text) > _MAX_SIGNATURE_TEXT:
        raise Untrusted(f"{SIGNATURE_HEADER} is longer than {_MAX_SIGNATURE_TEXT} characters")
    try:
        signature = base64.b64decode(text, validate=True)
        canonical = base64.b64encode(signature).decode("ascii")
    except ValueError:
        canonical = None
    if canonical != text:
        raise Untrusted(f"{SIGNATURE_HEADER} is not standard base64 with padding")
    return signature
