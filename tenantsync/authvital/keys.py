"""The public keys of AuthVital: fetched as a JWKS, judged, held, and refreshed in time.

A key that is held never waits for the network. Why the ring behaves as it does stands in
`docs/explanation/trust.md`; the format is that of RFC 7517 and RFC 7518.
"""

import contextlib
import logging
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import httpx2
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import RSAAlgorithm
from jwt.exceptions import PyJWTError

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

MAX_JWKS_BYTES = 65_536
"""A longer JWKS is not read; AuthVital's holds a handful of keys of about 450 bytes."""

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


class FetchError(Exception):
    """The JWKS could not be had. The message is a clause that says why, without the URL."""


def fetch_jwks(
    url: str, *, no_cache: bool, timeout: float = 5.0, max_bytes: int = MAX_JWKS_BYTES
) -> bytes:
    """Return the JWKS at the URL. Redirects and compressed answers are refused.

    Proxies and credentials of the environment are not used; a deployment that needs them hands
    its own `Fetch` to the ring.

    Args:
        url: Where the JWKS is.
        no_cache: Whether to send `Cache-Control: no-cache`.
        timeout: Seconds for everything together, the lookup of the name included.
        max_bytes: The longest answer that is taken.

    Raises:
        FetchError: Not reached, not answered in time, not status 200, too long, or the URL holds
            a password.
    """
    download = _Download(url, no_cache=no_cache, timeout=timeout, max_bytes=max_bytes)
    threading.Thread(target=download.run, name="tenantsync-jwks-download", daemon=True).start()
    try:
        return download.answer.result(timeout)
    except TimeoutError:
        download.abandon()
        raise FetchError(f"it was not answered in full within {timeout:g} s") from None


class _Download:
    """One GET, run in a thread of its own.

    A socket's timeout starts anew with every byte, and the lookup of a name has none, so only
    a caller in another thread can keep time. The socket's own timeout is longer than the caller's
    and merely ends a thread whose peer has vanished.
    """

    def __init__(self, url: str, *, no_cache: bool, timeout: float, max_bytes: int) -> None:
        self.answer: Future[bytes] = Future()
        self._url = url
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if no_cache:
            self._headers["Cache-Control"] = "no-cache"
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._socket: socket.socket | None = None
        self._abandoned = False

    def run(self) -> None:
        try:
            self.answer.set_result(self._get())
        except FetchError as failure:
            self.answer.set_exception(failure)
        except Exception as error:  # a thread has nobody above it to tell
            # The text of a TransportError is that of the operating system or of OpenSSL.
            told = str(error) if isinstance(error, httpx2.TransportError) else type(error).__name__
            self.answer.set_exception(FetchError(f"it could not be reached ({told:.200})"))

    def abandon(self) -> None:
        """Make the thread end soon. It closes its own socket.

        Closing it here could hand its descriptor's number to another connection, from which
        the thread would then read.
        """
        self._abandoned = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _get(self) -> bytes:
        url = httpx2.URL(self._url)
        if url.userinfo:
            # The client logs URLs. Nobody needs a password for public keys.
            raise FetchError("its URL holds a user name or password; take it out")
        body = bytearray()
        with (
            httpx2.Client(trust_env=False, timeout=self._timeout + 1.0) as client,
            client.stream(
                "GET",
                url,
                headers=self._headers,
                follow_redirects=False,
                extensions={"trace": self._trace},
            ) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise FetchError(f"it was answered with status {response.status_code}, not 200")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise FetchError("it was answered compressed, which was not asked for")
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > self._max_bytes:
                    raise FetchError(f"its answer is longer than {self._max_bytes} bytes")
        return bytes(body)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event not in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            return
        # First the socket, then the flag; `abandon` does it the other way round. So one of the
        # two always sees the other, whoever comes first.
        connected: socket.socket = info["return_value"].get_extra_info("socket")
        self._socket = connected
        if self._abandoned:
            connected.close()  # the client forgets a connection whose trace raises
            raise FetchError("nobody waits for it any more")


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
    """Holds AuthVital's public keys for all threads of a process.

    Nothing is fetched before the first `refresh` or `find`.

    Args:
        url: Where the JWKS is, `{host}/.well-known/jwks.json`. No error repeats it.
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
        fetch: Fetch = fetch_jwks,
        clock: Callable[[], float] = time.monotonic,
        cooldown: float = 30.0,
        refresh_after: float = 600.0,
        max_stale: float = 86_400.0,
        spawn: Callable[[Callable[[], None]], None] = _in_daemon_thread,
    ) -> None:
        self._url = url
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

    def find(self, kid: str) -> RSAPublicKey:
        """Return the key with this key id.

        A key that is held is returned at once. For any other the keys are fetched, unless that
        was done within the cooldown; callers at the same time share one fetch and its result.

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
        found = self._fresh_set().keys.get(kid)
        if found is None:
            raise Untrusted(f"key id {kid[:48]!r} is not among the published keys of AuthVital")
        return found

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
                f"the JWKS of AuthVital cannot be used now: {outcome.reason}; "
                "check that authvital.host is right and can be reached from here"
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
