"""What the doctor asks the provider: are its keys to be had, and do our clocks agree?"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import httpx2

from tenantsync.authvital.keys import FetchError, fetch_jwks, read_jwks
from tenantsync.config import AuthVital
from tenantsync.doctor.report import Finding, Level

__all__ = ["Dated", "ask_date", "examine_provider", "jwks_url"]

_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_PART: Final = 4  # a fourth of what is allowed is worth a word
_BLUR: Final = 2.0  # seconds that no clock is set for


@dataclass(frozen=True, slots=True)
class Dated:
    """The times of one answer, in unix seconds.

    Args:
        date: What its header `Date` says, in whole seconds; None without one.
        sent: When we asked, by our clock.
        received: When its head was there, by our clock.
    """

    date: float | None
    sent: float
    received: float

    @property
    def offset(self) -> float | None:
        """How far the other clock is ahead of ours, at least, in seconds; negative behind."""
        if self.date is None:
            return None
        # The header is cut to whole seconds, and was written at some time between the two.
        least, most = self.date - self.received, self.date + 1.0 - self.sent
        return least if least > 0 else min(most, 0.0)


def jwks_url(settings: AuthVital) -> str:
    """Return where AuthVital's public keys are."""
    return f"{settings.host}/.well-known/jwks.json"


def ask_date(
    url: str, *, timeout: float = 5.0, clock: Callable[[], float] = time.time
) -> Dated | None:
    """Return when an answer was given, or None where there was none.

    Args:
        url: Whom to ask.
        timeout: Seconds to wait for each part of the answer.
        clock: Unix seconds.
    """
    headers = {"Cache-Control": "no-cache"}  # a cache would tell an older date
    sent = clock()
    try:
        with (
            httpx2.Client(trust_env=False, timeout=timeout) as client,
            client.stream("GET", url, headers=headers, follow_redirects=False) as response,
        ):
            received = clock()
            return Dated(_date(response.headers), sent, received)
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return None


def examine_provider(
    settings: AuthVital,
    *,
    fetch: Callable[[str], bytes] = lambda url: fetch_jwks(url, no_cache=True),
    ask: Callable[[str], Dated | None] = ask_date,
) -> list[Finding]:
    """Return what was found of AuthVital's keys, and of our clock.

    Args:
        settings: Whom to trust.
        fetch: Gets the JWKS, or raises FetchError.
        ask: Gets the times of an answer.
    """
    url = jwks_url(settings)
    try:
        keys = read_jwks(fetch(url))
    except FetchError as failure:
        return [
            Finding(
                "keys",
                Level.ERROR,
                f"the keys at {url} cannot be used: {failure}",
                "look whether [authvital] host is right and can be reached from here; until then "
                "deliveries are answered 503",
            )
        ]
    count = "1 key" if len(keys) == 1 else f"{len(keys)} keys"
    found = [Finding("keys", Level.OK, f"{count} at {url}")]
    parts = urlsplit(settings.host)
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        found.append(
            Finding(
                "keys",
                Level.WARNING,
                "the keys are fetched unencrypted: whoever is on the way can put others in place",
                "write https:// in [authvital] host",
            )
        )
    return [*found, _compare(ask(url), settings)]


def _compare(dated: Dated | None, settings: AuthVital) -> Finding:
    offset = None if dated is None else dated.offset
    if offset is None:
        return Finding(
            "clock", Level.WARNING, "AuthVital's answer has no date to compare our clock with"
        )
    # Ahead of ours, its signatures come from the future; behind, they seem to be old.
    allowed = settings.max_skew if offset > 0 else settings.max_age
    key = "max_skew" if offset > 0 else "max_age"
    away = abs(offset)
    direction = "behind" if offset > 0 else "ahead of"
    told = f"our clock is {away:.0f} s {direction} AuthVital's"
    remedy = "set the clock of this machine by NTP, or look whose clock is wrong"
    if away > allowed:
        return Finding(
            "clock",
            Level.ERROR,
            f"{told}, and {key} allows {allowed} s: deliveries are refused with 401",
            remedy,
        )
    if away > max(_BLUR, allowed / _PART):
        return Finding("clock", Level.WARNING, f"{told}; {key} allows {allowed} s", remedy)
    return Finding("clock", Level.OK, "our clock agrees with AuthVital's")


def _date(headers: httpx2.Headers) -> float | None:
    try:
        date = parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        return None
    age = headers.get("Age", "0")
    waited = int(age) if age.isascii() and age.isdigit() else 0
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() + waited
