"""What goes over the wire: a body's byte form, a signed delivery, an attempt, the retry ladders."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal

from tenantsync.testing.keys import SigningKey

__all__ = [
    "LADDERS",
    "TIMEOUT",
    "Attempt",
    "Delivery",
    "Mode",
    "VirtualClock",
    "iso",
    "jsonb",
    "sign",
    "sign_system",
]

Mode = Literal["broker", "legacy"]
"""Who delivers: AuthVital's separate broker, or its core. Their ladders and redirects differ."""

LADDERS: Mapping[Mode, tuple[float, ...]] = MappingProxyType(
    {"broker": (10.0, 30.0, 60.0, 300.0), "legacy": (60.0, 300.0, 900.0, 3600.0)}
)
"""Seconds before the second to fifth attempt; after the fifth, AuthVital gives an event up.

These are the earliest times: AuthVital looks only every 5 seconds (broker) or minute (legacy).
"""

TIMEOUT = 30.0
"""Seconds that AuthVital waits for a receiver."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request as AuthVital would send it.

    Args:
        body: The raw bytes that were signed.
        headers: Header names, as AuthVital spells them, and values.
    """

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of sending one delivery once.

    Args:
        number: 1 for the first attempt.
        at: When it began, in unix seconds of the emulator's clock.
        delivery: What was sent.
        status: The receiver's status, or None where no answer came.
        answer: The first 64 KiB of the answer's body as text.
        error: What went wrong where no answer came.
    """

    number: int
    at: float
    delivery: Delivery = field(repr=False)
    status: int | None = None
    answer: str = ""
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether AuthVital counts the event as delivered: any 2xx."""
        return self.status is not None and 200 <= self.status < 300


class VirtualClock:
    """A clock that stands still until told to move; its `sleep` takes no real time.

    A receiver that checks the age of signatures must be given the same clock.

    Args:
        now: Unix seconds to start at.
    """

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time in unix seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move the clock on by so many seconds."""
        self.now += seconds


def iso(milliseconds: int) -> str:
    """Return unix milliseconds as AuthVital writes times: UTC, three decimals, `Z`."""
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def jsonb(value: object, *, ordered: bool = True) -> bytes:
    """Return a JSON value in the bytes that AuthVital sends.

    AuthVital keeps a payload in a PostgreSQL `jsonb` column and serialises it anew for each
    attempt: keys ordered by their length in bytes, then by their bytes; no white space; raw UTF-8.

    Args:
        value: The JSON value.
        ordered: Whether it came out of that column. The legacy sender's system webhooks did not:
            their keys stand as they were written.

    Raises:
        ValueError: The column could not hold it: U+0000, a lone surrogate, NaN or an infinity.
        TypeError: It is no JSON value.
    """
    stored = _ordered(value)
    sent = stored if ordered else value
    text = json.dumps(sent, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def sign(
    body: bytes, key: SigningKey, *, signed_at: float, event_id: str, event_type: str
) -> Delivery:
    """Sign a sync event for one attempt.

    Args:
        body: The raw bytes to send.
        key: The key to sign with.
        signed_at: The time of the attempt, in unix seconds; fractions are cut off.
        event_id: The `X-AuthVital-Event-Id` header, which no signature covers.
        event_type: The `X-AuthVital-Event-Type` header, which no signature covers.
    """
    timestamp = str(int(signed_at))
    return Delivery(
        body,
        {
            "Content-Type": "application/json",
            "X-AuthVital-Signature": key.sign(timestamp.encode("ascii") + b"." + body),
            "X-AuthVital-Key-Id": key.kid,
            "X-AuthVital-Timestamp": timestamp,
            "X-AuthVital-Event-Id": event_id,
            "X-AuthVital-Event-Type": event_type,
        },
    )


def sign_system(body: bytes, key: SigningKey, *, event_type: str, timestamp: str) -> Delivery:
    """Sign as AuthVital signs system webhooks: the body alone, under other header names.

    Args:
        body: The raw bytes to send.
        key: The key to sign with.
        event_type: The `X-Webhook-Event` header.
        timestamp: The `X-Webhook-Timestamp` header, ISO 8601 as in the body.
    """
    return Delivery(
        body,
        {
            "Content-Type": "application/json",
            "X-Webhook-Signature": key.sign(body),
            "X-Webhook-Key-Id": key.kid,
            "X-Webhook-Event": event_type,
            "X-Webhook-Timestamp": timestamp,
        },
    )


def _ordered(value: object) -> object:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is no string: JSON knows no other keys")
        keys = sorted(value, key=lambda key: (len(_stored(key).encode()), key.encode()))
        return {key: _ordered(value[key]) for key in keys}
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    if isinstance(value, str):
        return _stored(value)
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)  # JavaScript has one kind of number and writes 1.0 as 1
    return value


def _stored(text: str) -> str:
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(
            "the text holds U+0000 or a lone surrogate, which AuthVital cannot store: it would "
            "lose this event; sign bytes of your own with Emulator.delivery() instead"
        )
    return text
