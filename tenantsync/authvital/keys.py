"""The public keys of a sender: fetched as a JWKS, judged, held, and refreshed in time.

A key that is held never waits for the network. Why the ring behaves as it does stands in
`docs/explanation/trust.md`; the format is that of RFC 7517 and RFC 7518.
"""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import RSAAlgorithm
from jwt.exceptions import PyJWTError

from tenantsync.authvital.download import MAX_JWKS_BYTES, FetchError, fetch_jwks
from tenantsync.errors import KeysUnavailable, Untrusted

__all__ = [
    "MAX_JWKS_BYTES",
    "Fetch",
    "FetchError",
    "KeyRing",
    "fetch_jwks",
    "is_key_id",
    "read_jwks",
]

_KEY_ID = re.compile(r"[\x21-\x7e]{1,255}")
_MODULUS = re.compile(r"[A-Za-z0-9_-]{1,1400}")  # 8192 bits take 1,366
_EXPONENT = re.compile(r"[A-Za-z0-9_-]{1,16}")
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})
_MIN_BITS, _MAX_BITS = 2048, 8192
_MIN_EXPONENT, _MAX_EXPONENT = 65_537, 2**64  # OpenSSL's own bound for large moduli

_log = logging.getLogger(__name__)


class Fetch(Protocol):
    """Gets the JWKS. It must end by itself within seconds: callers with a new key wait for it."""

    def __call__(self, url: str, *, no_cache: bool) -> bytes:
        """Return the document at the URL, or raise any exception when it cannot.

        Args:
            url: Where the JWKS is.
            no_cache: Whether caches on the way must ask the origin (`Cache-Control: no-cache`).
        """
        ...


def is_key_id(text: str) -> bool:
    """Whether the text may be a key id: 1 to 255 visible ASCII characters."""
    return _KEY_ID.fullmatch(text) is not None


def read_jwks(document: bytes) -> dict[str, RSAPublicKey]:
    """Return the usable keys of a JWKS (RFC 7517) by key id.

    A key is usable when it is a public RSA key of 2048 to 8192 bits for RS256 signatures
    (`kty`, `use` and `alg` all say so) with a key id. Others are skipped, and so are usable keys
    that share one key id: which of them was meant is anybody's guess.

    Raises:
        FetchError: The document is too long, no JWKS, or has no usable key.
    """
    if len(document) > MAX_JWKS_BYTES:
        raise FetchError(f"its answer is longer than {MAX_JWKS_BYTES} bytes")
    try:
        content = msgspec.json.decode(document)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise FetchError("its answer is not JSON") from None
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise FetchError('its answer is no key set: the list "keys" is missing')
    usable = [found for entry in entries if (found := _read_key(entry)) is not None]
    uses = Counter(kid for kid, _ in usable)
    keys = {kid: key for kid, key in usable if uses[kid] == 1}
    if not keys:
        raise FetchError(
            "its answer holds no usable key: needed are RSA keys of 2048 to 8192 bits "
            "with a kid of their own, use sig and alg RS256"
        )
    return keys


def _read_key(entry: object) -> tuple[str, RSAPublicKey] | None:
    if not isinstance(entry, dict) or _PRIVATE_MEMBERS & entry.keys():
        # A key whose private half is published proves nothing.
        return None
    if (entry.get("kty"), entry.get("use"), entry.get("alg")) != ("RSA", "sig", "RS256"):
        return None
    kid, modulus, exponent = entry.get("kid"), entry.get("n"), entry.get("e")
    if not (isinstance(kid, str) and isinstance(modulus, str) and isinstance(exponent, str)):
        return None
    # PyJWT's decoder drops characters that are not base64url; here they spoil the key.
    if not (is_key_id(kid) and _MODULUS.fullmatch(modulus) and _EXPONENT.fullmatch(exponent)):
        return None
    try:
        key = RSAAlgorithm.from_jwk({"kty": "RSA", "n": modulus, "e": exponent})
    except (PyJWTError, ValueError, UnsupportedAlgorithm):
        return None
    if not isinstance(key, RSAPublicKey) or not _MIN_BITS <= key.key_size <= _MAX_BITS:
        return None
    numbers = key.public_numbers()
    odd = numbers.n & numbers.e & 1
    return (kid, key) if odd and _MIN_EXPONENT <= numbers.e < _MAX_EXPONENT else None


@dataclass(frozen=True, slots=True)
class _KeySet:
    keys: Mapping[str, RSAPublicKey]
    as_of: float  # when its fetch began: it says nothing of what was published later


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: str


def _in_daemon_thread(job: Callable[[], None]) -> None:
    threading.Thread(target=job, name="tenantsync-jwks-refresh", daemon=True).start()


class KeyRing:
    """Holds a sender's public keys, AuthVital's by default, for all threads of a process.

    Nothing is fetched before the first `refresh` or `find`.

    Args:
        url: Where the JWKS is, `{host}/.well-known/jwks.json`. No error repeats it.
        owner: Whose keys they are, for messages.
        setting: Where the URL comes from, for messages.
        fetch: Gets the document.
        clock: Monotonic seconds.
        cooldown: Seconds from the start of one fetch in which no other starts, whatever became
            of it.
        refresh_after: Age of the keys in seconds from which a lookup also refreshes them in the
            background.
        max_stale: Age of the keys in seconds beyond which they are no longer believed.
        spawn: Runs a job in the background. Losing the job does no harm.
    """

    def __init__(
        self,
        url: str,
        *,
        owner: str = "AuthVital",
        setting: str = "authvital.host",
        fetch: Fetch = fetch_jwks,
        clock: Callable[[], float] = time.monotonic,
        cooldown: float = 30.0,
        refresh_after: float = 600.0,
        max_stale: float = 86_400.0,
        spawn: Callable[[Callable[[], None]], None] = _in_daemon_thread,
    ) -> None:
        self._url = url
        self._owner = owner
        self._setting = setting
        self._fetch = fetch
        self._clock = clock
        self._cooldown = cooldown
        self._refresh_after = refresh_after
        self._max_stale = max_stale
        self._spawn = spawn
        # Guards what follows, for a few assignments at a time and never during a fetch.
        # `_set` is replaced as a whole and read without it.
        self._lock = threading.Lock()
        self._set: _KeySet | None = None
        self._last: _KeySet | _Failure | None = None
        self._tried_at = float("-inf")
        self._spawned_at = float("-inf")
        self._flight: Future[_KeySet | _Failure] | None = None

    def holds(self, kid: str) -> bool:
        """Whether `find` would return a key for this key id at once. Never waits."""
        return self._held(kid, self._clock()) is not None

    def find(self, kid: str, *, final: bool = False) -> RSAPublicKey:
        """Return the key with this key id.

        A key that is held is returned at once. For any other the keys are fetched, unless that
        was done within the cooldown; callers at the same time share one fetch and its result.

        Args:
            kid: The key id.
            final: Whether the sender takes a refusal for final. A key is then refused only after
                a fetch that began after this call: an earlier one may be from before the key.

        Raises:
            Untrusted: The keys are fresh, and this one is not among them.
            KeysUnavailable: The key is not held, and the keys cannot be fetched now.
        """
        now = self._clock()
        key = self._held(kid, now)
        if key is not None:
            self._refresh_if_old(now)
            return key
        if not is_key_id(kid):
            raise Untrusted("the key id is not 1 to 255 visible ASCII characters")
        fresh = self._fresh_set()
        found = fresh.keys.get(kid)
        if found is not None:
            return found
        if final and fresh.as_of < now:
            raise KeysUnavailable(
                f"key id {kid[:48]!r} was not among the keys of {self._owner} a moment ago, and "
                "they are not fetched again so soon; send it again later"
            )
        raise Untrusted(f"key id {kid[:48]!r} is not among the published keys of {self._owner}")

    def refresh(self) -> None:
        """Fetch the keys now, unless that was done within the cooldown. For warming up.

        Raises:
            KeysUnavailable: They cannot be fetched now. Keys that were held stay held.
        """
        self._fresh_set()

    def _held(self, kid: str, now: float) -> RSAPublicKey | None:
        current = self._set
        if current is None or now - current.as_of > self._max_stale:
            return None
        return current.keys.get(kid)

    def _fresh_set(self) -> _KeySet:
        outcome = self._refreshed()
        if isinstance(outcome, _Failure):
            raise KeysUnavailable(
                f"the JWKS of {self._owner} cannot be used now: {outcome.reason}; "
                f"check that {self._setting} is right and can be reached from here"
            )
        return outcome

    def _refreshed(self) -> _KeySet | _Failure:
        """Return what a fetch came to: the one under way, that of the cooldown, or a new one."""
        with self._lock:
            flight = self._flight
            now = self._clock()
            if flight is None and self._last is not None and self._cools_down(now):
                return self._last
            leads = flight is None
            if flight is None:
                flight = self._flight = Future()
                self._tried_at = now
        if leads:
            self._fly(flight, now)
        return flight.result()

    def _cools_down(self, now: float) -> bool:
        return now - self._tried_at < self._cooldown

    def _fly(self, flight: Future[_KeySet | _Failure], now: float) -> None:
        outcome: _KeySet | _Failure = _Failure("its fetch was interrupted")
        try:
            outcome = self._load(now)
        finally:
            # Also on KeyboardInterrupt: whoever waits must not wait for ever.
            with self._lock:
                self._last = outcome
                if isinstance(outcome, _KeySet):
                    self._set = outcome
                self._flight = None
            flight.set_result(outcome)

    def _load(self, now: float) -> _KeySet | _Failure:
        try:
            # Always past the caches: AuthVital signs with a new key at once and lets caches keep
            # the old set for an hour. A cached answer could undo a newer one, and make a key look
            # unknown that is only unknown to the cache.
            keys = read_jwks(self._fetch(self._url, no_cache=True))
        except FetchError as failure:
            reason = str(failure)
        except Exception as error:  # a Fetch may raise anything, and its text may hold the URL
            reason = f"fetching it raised {type(error).__name__}"
        else:
            return _KeySet(keys, now)
        _log.warning("tenantsync.jwks_unusable", extra={"reason": reason})
        return _Failure(reason)

    def _refresh_if_old(self, now: float) -> None:
        current = self._set
        if current is None or now - current.as_of < self._refresh_after:
            return
        with self._lock:
            asked = now - self._spawned_at < self._cooldown
            if asked or self._flight is not None or self._cools_down(now):
                return
            self._spawned_at = now
        # The flight begins when the job runs, not here: a job that is lost or late must not keep
        # those waiting who need a new key.
        try:
            self._spawn(self._refresh_quietly)
        except (
            Exception
        ) as error:  # the caller has its key; no thread to be had is no reason to fail
            _log.warning("tenantsync.jwks_unusable", extra={"reason": type(error).__name__})

    def _refresh_quietly(self) -> None:
        self._refreshed()
