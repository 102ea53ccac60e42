"""One question to AuthVital and its answer: repeated within bounds, read within bounds.

What the provider says of an error becomes one sentence here, without secrets and addresses.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
import msgspec

from tenantsync.errors import ConfigError, Unavailable

__all__ = [
    "Answer",
    "Asked",
    "Exchange",
    "IntegrationForbidden",
    "IntegrationNotFound",
    "IntegrationRefused",
    "IntegrationUnavailable",
]

_MAX_ERROR_BYTES = 16 * 1024
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
_PASSING = frozenset({408, 425, 429})
_ADDRESS = re.compile(r"\S+@\S+")
_NOT_FOUND = re.compile(r"(?:Tenant|Application|User) not found\.?")

_log = logging.getLogger(__name__)

_Kind = TypeVar("_Kind")


class IntegrationRefused(ConfigError):
    """AuthVital refuses what we ask: the credential, its scope, its tenants, or the address."""


class IntegrationForbidden(IntegrationRefused):
    """AuthVital refuses what was asked about one tenant, and may answer for others."""


class IntegrationNotFound(IntegrationRefused):
    """AuthVital has no such tenant or application."""


class IntegrationUnavailable(Unavailable):
    """AuthVital gave no answer that can be used, in time; asking again later may help."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request.

    Args:
        name: The endpoint's name in messages and logs.
        method: `GET` or `POST`.
        url: Where to.
        query: The query's names and values.
        form: A form to send, or None. It may hold secrets.
        headers: Further headers. They may hold secrets.
        retry_refused: Whether a 401 is answered None rather than raised.
        of_tenant: Whether it asks about one tenant.
    """

    name: str
    method: str
    url: str
    query: Mapping[str, str] | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    retry_refused: bool = False
    of_tenant: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A 200, read to its end.

    Args:
        name: The endpoint's name.
        body: Its bytes.
        date_header: Its `Date`, or None.
        waited: Milliseconds from asking to the answer's first byte.
    """

    name: str
    body: bytearray = field(repr=False)
    date_header: str | None
    waited: int

    @property
    def date(self) -> int:
        """When it was given by the provider's clock, in unix milliseconds.

        Raises:
            IntegrationUnavailable: The answer does not say.
        """
        moment = _read_date(self.date_header)
        if moment is None:
            raise IntegrationUnavailable(
                f"AuthVital's answer to {self.name} has no Date header that can be read: without "
                "the provider's time it is no evidence; see whether a proxy takes it out"
            )
        return int(moment * 1000)

    def read(self, kind: type[_Kind]) -> _Kind:
        """Return the body as a type.

        Raises:
            IntegrationUnavailable: It is no JSON, cut off, or of another shape.
        """
        with self.judged():
            return msgspec.json.decode(self.body, type=kind)
        raise AssertionError("judged() lets no error pass silently")  # pragma: no cover

    @contextlib.contextmanager
    def judged(self) -> Iterator[None]:
        """Turn what the decoder says into a sentence without the answer's content.

        Raises:
            IntegrationUnavailable: The decoder was not content.
        """
        try:
            yield
        except msgspec.ValidationError as error:
            # The decoder names types and paths, and no values.
            told = str(error)
            raise IntegrationUnavailable(
                f"AuthVital's answer to {self.name} has another shape than it should: {told:.200}"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise IntegrationUnavailable(
                f"AuthVital's answer to {self.name} is cut off, or no JSON ({len(self.body)} "
                "bytes); nothing of it is used"
            ) from None


@dataclass(frozen=True, slots=True)
class _Failure:
    """What came of one attempt that failed, and may be made again."""

    reason: str
    wait: float = 0.0  # seconds that the provider asks for


class Exchange:
    """Sends requests, and again where that may help.

    Repeated are: transport errors, 408, 425, 429 and 5xx; with waits of half a second, doubled each
    time up to 30 s and spread, or what `Retry-After` asks for if that is longer. A `Retry-After`
    beyond the deadline ends the matter at once. Answers that are no JSON are not asked for again.

    Args:
        http: The HTTP client.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
        jitter: A number from 0 to 1.
        attempts: How often a request is sent at most.
        timeout: Seconds to wait for each next byte.
        max_bytes: The longest answer that is read.
        secrets: What no message may repeat.
    """

    def __init__(
        self,
        http: httpx2.Client,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        jitter: Callable[[], float],
        attempts: int,
        timeout: float,
        max_bytes: int,
        secrets: Sequence[str],
    ) -> None:
        self._http = http
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._attempts = attempts
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._secrets = tuple(secrets)

    def ask(self, asked: Asked, until: float, *, secret: str = "") -> Answer | None:
        """Return the answer, or None for a 401 where the request says so.

        Args:
            asked: The request.
            until: When to give up, of the clock.
            secret: One more text that no message may repeat.

        Raises:
            IntegrationRefused: A 4xx or a redirect.
            IntegrationUnavailable: No 200 in time, or one that is too long.
        """
        failure = _Failure("there was no time left to ask")
        for number in range(self._attempts):
            if self._clock() >= until:
                break
            outcome = self._attempt(asked, until, secret)
            if not isinstance(outcome, _Failure):
                return outcome
            failure = outcome
            wait = max(self._backoff(number), failure.wait)
            last = number + 1 == self._attempts
            if last or self._clock() + wait >= until:
                break
            _log.info(
                "tenantsync.integration_retry",
                extra={"endpoint": asked.name, "reason": failure.reason, "wait": wait},
            )
            self._sleep(wait)
        asks = f", and asks to wait {failure.wait:.0f} s" if failure.wait else ""
        raise IntegrationUnavailable(
            f"AuthVital's {asked.name} cannot be had now: {failure.reason}{asks}; try again later, "
            "and see that authvital.host is right and can be reached from here"
        )

    def _backoff(self, number: int) -> float:
        # At least half of it, so that the provider has some peace after each failure.
        longest = min(_FIRST_WAIT * 2.0**number, _LONGEST_WAIT)
        return longest * (0.5 + self._jitter() / 2)

    def _attempt(self, asked: Asked, until: float, secret: str) -> Answer | _Failure | None:
        began = self._clock()
        try:
            with self._http.stream(
                asked.method,
                asked.url,
                params=asked.query,
                data=asked.form,
                headers={
                    "Accept": "application/json",
                    # The bound is one on bytes that arrive; a cache must not date the answer.
                    "Accept-Encoding": "identity",
                    "Cache-Control": "no-cache",
                    **asked.headers,
                },
                follow_redirects=False,
                timeout=max(0.001, min(self._timeout, until - began)),
            ) as response:
                waited = int((self._clock() - began) * 1000)
                if response.status_code == httpx2.codes.OK:
                    body = self._read(asked, response, until)
                    return Answer(asked.name, body, response.headers.get("Date"), waited)
                return self._refusal(asked, response, until, secret)
        except httpx2.TransportError as error:
            # The texts of these are the operating system's; some would repeat what was sent.
            return _Failure(f"it could not be reached ({type(error).__name__})")
        except httpx2.InvalidURL:
            raise IntegrationRefused("authvital.host is no URL that can be asked") from None

    def _read(self, asked: Asked, response: httpx2.Response, until: float) -> bytearray:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise IntegrationUnavailable(
                f"AuthVital's answer to {asked.name} is compressed, which was not asked for"
            )
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > self._max_bytes:
                raise IntegrationUnavailable(
                    f"AuthVital's answer to {asked.name} is longer than {self._max_bytes} bytes; "
                    "nothing of it is used"
                )
            if self._clock() >= until:
                raise IntegrationUnavailable(
                    f"AuthVital's answer to {asked.name} did not end in time; nothing of it is used"
                )
        return body

    def _refusal(
        self, asked: Asked, response: httpx2.Response, until: float, secret: str
    ) -> _Failure | None:
        status = response.status_code
        if status == httpx2.codes.UNAUTHORIZED and asked.retry_refused:
            return None
        told = self._told(response, until, secret)
        said = f"status {status}" + (f": {told}" if told else "")
        if status >= 500 or status in _PASSING:
            return _Failure(f"it answers with {said}", _retry_after(response.headers))
        if status < 400:
            raise IntegrationRefused(
                f"AuthVital's {asked.name} is answered with a redirect (status {status}): set "
                "authvital.host to the address that it leads to"
            )
        if status == httpx2.codes.NOT_FOUND and _NOT_FOUND.fullmatch(told):
            raise IntegrationNotFound(
                f"AuthVital knows nothing of what {asked.name} was asked about ({said}): compare "
                "the tenant's id, the application's id and authvital.client_id with AuthVital"
            )
        forbids = asked.of_tenant and status == httpx2.codes.FORBIDDEN
        raise (IntegrationForbidden if forbids else IntegrationRefused)(
            f"AuthVital refuses {asked.name} ({said}): check authvital.client_id and "
            f"client_secret, and that this MACHINE credential has the scope integration:read and "
            "is trusted for the tenant"
        )

    def _told(self, response: httpx2.Response, until: float, secret: str) -> str:
        """Return what the provider says of an error, without secrets, addresses and line ends."""
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MAX_ERROR_BYTES or self._clock() >= until:
                return ""
        try:
            names = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ""
        # The framework puts a text or a list of texts here; RFC 6749 has other members.
        told = names.get("message") or names.get("error") if isinstance(names, dict) else None
        parts = told if isinstance(told, list) else [told]
        text = "; ".join(part for part in parts if isinstance(part, str))
        for hidden in (*self._secrets, secret):
            if hidden:
                text = text.replace(hidden, "...")
        text = "".join(letter if letter.isprintable() else " " for letter in text)
        return _ADDRESS.sub("...", text)[:200].strip()


def _retry_after(headers: httpx2.Headers) -> float:
    """Return the seconds that a `Retry-After` (RFC 9110, section 10.2.3) asks for, or 0."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    moment, now = _read_date(text), _read_date(headers.get("Date"))
    # Both are of the provider's clock, so that ours does not matter.
    return max(0.0, moment - now) if moment is not None and now is not None else 0.0


def _read_date(text: str | None) -> float | None:
    """Return an HTTP date in unix seconds, or None where it is none."""
    try:
        moment = parsedate_to_datetime(text or "")
    except (ValueError, TypeError, OverflowError):
        return None
    if not isinstance(moment, datetime):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
