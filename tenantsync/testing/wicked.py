"""Deliveries that a receiver must refuse, ignore or bear: each function spoils one in one way."""

import json
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from tenantsync.testing.delivery import Delivery, iso, jsonb, sign_system
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import SigningKey

__all__ = [
    "FOREIGN_APPLICATION",
    "FOREIGN_TENANT",
    "WICKED",
    "delayed",
    "doubled",
    "duplicated",
    "foreign_application",
    "foreign_tenant",
    "forged",
    "future",
    "mislabelled",
    "missing_headers",
    "reordered",
    "retimed",
    "revoked_key",
    "stale",
    "system_scheme",
    "tampered",
    "unknown_kid",
]

FOREIGN_APPLICATION = "cforeignapplication000000"
"""An application id that is never yours."""

FOREIGN_TENANT = "00000000-0000-4000-8000-000000000000"
"""A tenant id that nobody registers."""

_HEADERS = ("X-AuthVital-Signature", "X-AuthVital-Key-Id", "X-AuthVital-Timestamp")


def tampered(emulator: Emulator, delivery: Delivery) -> Delivery:
    """Change the person's address after signing; the body stays readable."""
    return replace(delivery, body=_edit(delivery.body, data={"email": "mallory@example.test"}))


def stale(emulator: Emulator, delivery: Delivery, *, age: float = 600.0) -> Delivery:
    """Sign truly, but so many seconds ago: a delivery recorded then and replayed now."""
    return emulator.delivery(delivery.body, signed_at=emulator.clock() - age)


def future(emulator: Emulator, delivery: Delivery, *, ahead: float = 600.0) -> Delivery:
    """Sign truly, but so many seconds from now."""
    return emulator.delivery(delivery.body, signed_at=emulator.clock() + ahead)


def retimed(emulator: Emulator, delivery: Delivery) -> Delivery:
    """Keep an old signature and claim that it is of this moment."""
    old = stale(emulator, delivery)
    return _with(old, {"X-AuthVital-Timestamp": str(int(emulator.clock()))})


def unknown_kid(emulator: Emulator, delivery: Delivery) -> Delivery:
    """Name a key that was never published."""
    return _with(delivery, {"X-AuthVital-Key-Id": "key_1700000000000_deadbeef"})


def forged(emulator: Emulator, delivery: Delivery) -> Delivery:
    """Sign with a stranger's key under the name of the real one."""
    stranger = replace(SigningKey.generate(emulator.clock()), kid=emulator.keys.active.kid)
    return emulator.delivery(delivery.body, key=stranger)


def revoked_key(emulator: Emulator, delivery: Delivery) -> Delivery:
    """Sign with the emulator's key, which is revoked in the same moment.

    The emulator signs with a new key from then on. A receiver that fetched the JWKS before goes on
    trusting the old key until it fetches again.
    """
    return emulator.delivery(delivery.body, key=emulator.keys.revoke())


def missing_headers(
    emulator: Emulator, delivery: Delivery, *, names: Iterable[str] = _HEADERS
) -> Delivery:
    """Leave headers out; by default all three that a verifier needs."""
    gone = {name.lower() for name in names}
    kept = {name: text for name, text in delivery.headers.items() if name.lower() not in gone}
    return replace(delivery, headers=kept)


def system_scheme(emulator: Emulator, delivery: Delivery) -> Delivery:
    """Sign as system webhooks are signed: truly, but not in the way of this door."""
    return sign_system(
        delivery.body,
        emulator.keys.active,
        event_type=delivery.headers.get("X-AuthVital-Event-Type", "-"),
        timestamp=iso(int(emulator.clock() * 1000)),
    )


def mislabelled(emulator: Emulator, delivery: Delivery) -> Delivery:
    """Change the two headers that no signature covers; the event itself is authentic."""
    return _with(
        delivery,
        {"X-AuthVital-Event-Id": FOREIGN_TENANT, "X-AuthVital-Event-Type": "subject.deleted"},
    )


def foreign_application(emulator: Emulator, delivery: Delivery) -> Delivery:
    """Sign the same event truly for another application, as one key signs for all of them."""
    return emulator.delivery(_edit(delivery.body, application_id=FOREIGN_APPLICATION))


def foreign_tenant(emulator: Emulator, delivery: Delivery) -> Delivery:
    """Sign the same event truly for a tenant that nobody registered."""
    return emulator.delivery(_edit(delivery.body, tenant_id=FOREIGN_TENANT))


def delayed(emulator: Emulator, delivery: Delivery, *, seconds: float = 147_600.0) -> Delivery:
    """Deliver an event that happened long ago (41 hours) with a fresh signature: a legal retry."""
    moment = iso(int((emulator.clock() - seconds) * 1000))
    return emulator.delivery(_edit(delivery.body, timestamp=moment))


def doubled(emulator: Emulator, delivery: Delivery) -> Delivery:
    """Send the same content under a new event id, as AuthVital does for two subscriptions."""
    names = _read(delivery.body)
    body = emulator.event(
        names["type"],
        tenant_id=names["tenant_id"],
        application_id=names["application_id"],
        data=names["data"],
        timestamp=names["timestamp"],
    )
    return emulator.delivery(body)


def duplicated(
    deliveries: Iterable[Delivery], *, times: int = 2, rng: random.Random | None = None
) -> list[Delivery]:
    """Return every delivery so many times, one after the other, or scattered by a `rng`."""
    repeated = [delivery for delivery in deliveries for _ in range(times)]
    return reordered(repeated, rng=rng) if rng else repeated


def reordered(deliveries: Iterable[Delivery], *, rng: random.Random) -> list[Delivery]:
    """Return the deliveries in an order that the generator draws."""
    shuffled = list(deliveries)
    rng.shuffle(shuffled)
    return shuffled


def _one(spoil: Callable[[Emulator, Delivery], Delivery]) -> "Wicked":
    return lambda emulator, delivery: [spoil(emulator, delivery)]


Wicked = Callable[[Emulator, Delivery], list[Delivery]]

WICKED: Mapping[str, Wicked] = MappingProxyType(
    {
        "tampered": _one(tampered),
        "stale": _one(stale),
        "future": _one(future),
        "retimed": _one(retimed),
        "unknown-kid": _one(unknown_kid),
        "forged": _one(forged),
        "revoked-key": _one(revoked_key),
        "missing-headers": _one(missing_headers),
        "system-scheme": _one(system_scheme),
        "mislabelled": _one(mislabelled),
        "foreign-application": _one(foreign_application),
        "foreign-tenant": _one(foreign_tenant),
        "delayed": _one(delayed),
        "duplicated": lambda emulator, delivery: duplicated([delivery]),
        "doubled": lambda emulator, delivery: [delivery, doubled(emulator, delivery)],
    }
)
"""Each way by its name on the command line: from one delivery to those that are sent for it."""


def _read(body: bytes) -> dict[str, Any]:
    names = json.loads(body)
    if not isinstance(names, dict):
        raise TypeError("the body is no event: spoil a delivery of Emulator.event()")
    return names


def _edit(body: bytes, *, data: Mapping[str, Any] | None = None, **names: str) -> bytes:
    event = _read(body)
    return jsonb(event | names | {"data": event["data"] | (data or {})})


def _with(delivery: Delivery, headers: Mapping[str, str]) -> Delivery:
    return replace(delivery, headers={**delivery.headers, **headers})
