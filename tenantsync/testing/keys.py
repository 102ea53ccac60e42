"""The signing keys of a local AuthVital: rotation, passive keys, revocation, and the JWKS."""

import base64
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

__all__ = ["PASSIVE_LIFETIME", "Keys", "SigningKey"]

PASSIVE_LIFETIME = 192 * 3600.0
"""Seconds that a rotated key stays published, as AuthVital has it."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One RSA key pair with the id that AuthVital would give it.

    Args:
        kid: The key id, `key_<milliseconds>_<8 hex digits>`.
        private: The private half; it never leaves the process.
    """

    kid: str
    private: rsa.RSAPrivateKey = field(repr=False)

    @classmethod
    def generate(cls, at: float) -> "SigningKey":
        """Make a fresh 2048-bit key (50 to 200 milliseconds of work).

        Args:
            at: The time of making, in unix seconds; it becomes a part of the key id.
        """
        kid = f"key_{int(at * 1000)}_{secrets.token_hex(4)}"
        return cls(kid, rsa.generate_private_key(public_exponent=65537, key_size=2048))

    def sign(self, message: bytes) -> str:
        """Return the RSASSA-PKCS1-v1_5 signature with SHA-256, in standard base64 with padding."""
        signature = self.private.sign(message, padding.PKCS1v15(), SHA256())
        return base64.b64encode(signature).decode("ascii")

    def jwk(self) -> dict[str, str]:
        """Return the public half as a JSON Web Key (RFC 7517), with AuthVital's members."""
        numbers = self.private.public_key().public_numbers()
        return {
            "kty": "RSA",
            "n": _base64url(numbers.n),
            "e": _base64url(numbers.e),
            "kid": self.kid,
            "alg": "RS256",
            "use": "sig",
        }


class Keys:
    """The keys of one instance: one signs, the passive ones are still published.

    Every method may be called from any thread. No key is made before one is needed.

    Args:
        keys: Keys to begin with. The first one signs, the others are passive.
        clock: Unix seconds.
        generate: Makes a key for a time in unix seconds; tests pass ready keys through it.
    """

    def __init__(
        self,
        *keys: SigningKey,
        clock: Callable[[], float] = time.time,
        generate: Callable[[float], SigningKey] = SigningKey.generate,
    ) -> None:
        self._clock = clock
        self._generate = generate
        self._lock = threading.RLock()
        self._active = keys[0] if keys else None
        self._passive = [(key, clock() + PASSIVE_LIFETIME) for key in keys[1:]]

    @property
    def active(self) -> SigningKey:
        """The key that signs now."""
        with self._lock:
            if self._active is None:
                self._active = self._generate(self._clock())
            return self._active

    def rotate(self, key: SigningKey | None = None) -> SigningKey:
        """Let a new key sign from now on; the old one stays published for 192 hours.

        The new key was never published before it signs, just as with AuthVital: a receiver that
        caches the JWKS meets a key id that it does not know.

        Args:
            key: The new key; None makes one.

        Returns:
            The new key.
        """
        with self._lock:
            now = self._clock()
            new = key or self._generate(now)
            if self._active is not None:
                self._passive.append((self._active, now + PASSIVE_LIFETIME))
            self._active = new
            return new

    def revoke(self, kid: str | None = None) -> SigningKey:
        """Take a key out of the JWKS at once; if it was the signing key, a new one takes over.

        Args:
            kid: Which key; None means the one that signs.

        Returns:
            The revoked key, with which a test may go on signing.

        Raises:
            LookupError: No published key has this id.
        """
        with self._lock:
            active = self.active
            if kid is None or kid == active.kid:
                self._active = None
                return active
            for index, (key, _) in enumerate(self._passive):
                if key.kid == kid:
                    del self._passive[index]
                    return key
        raise LookupError(f"no published key has the id {kid!r}: look at jwks() for those that do")

    def published(self) -> list[SigningKey]:
        """Return the keys that the JWKS holds now: the signing one and unexpired passive ones."""
        with self._lock:
            now = self._clock()
            self._passive = [(key, until) for key, until in self._passive if until > now]
            return [self.active, *(key for key, _ in self._passive)]

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the JSON Web Key Set; the order of its keys means nothing."""
        return {"keys": [key.jwk() for key in self.published()]}


def _base64url(number: int) -> str:
    size = (number.bit_length() + 7) // 8
    return base64.urlsafe_b64encode(number.to_bytes(size, "big")).rstrip(b"=").decode("ascii")
