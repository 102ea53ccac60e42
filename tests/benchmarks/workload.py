"""The events of the benchmark: people who are new, and people of whom more becomes known."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tenantsync.testing.delivery import iso, jsonb, sign
from tenantsync.testing.keys import SigningKey
from tenantsync.testing.people import APP_ROLES, Person, payload

APPLICATION = "benchmark-application"
PATH = "/webhooks/authvital"
RUN_LENGTH = 8
"""How many hexadecimal digits at the start of every id tell one run of the events from another."""

_START = 1_793_000_400_000
_NEW = 0.2
_UPDATES = (
    "subject.updated",
    "member.role_changed",
    "member.suspended",
    "member.activated",
    "app_access.granted",
    "app_access.role_changed",
    "app_access.revoked",
)
_CHUNK = 250

Named = tuple[str, str, bytes]
"""An event's id, its type, and its body."""


def tenant_id(index: int) -> str:
    """Return the provider's id of a tenant of the benchmark."""
    return f"00000000-0000-4000-8000-{index:012d}"


def run_token(run: int) -> str:
    """Return what all ids of a run begin with."""
    return f"{run:0{RUN_LENGTH}x}"


def events(tenants: int, *, run: int, seed: int = 0) -> Iterator[Named]:
    """Yield events without end: one in five makes a person, the others update one.

    Args:
        tenants: How many tenants; each event is for any of them, all equally often.
        run: Other runs have other ids, and are alike in everything else.
        seed: Other seeds make other events.
    """
    rng = random.Random(f"{tenants}/{seed}")  # noqa: S311 - made-up data, not a secret
    token = run_token(run)
    people: list[list[Person]] = [[] for _ in range(tenants)]
    roles = tuple(APP_ROLES)
    number = 0
    while True:
        index = rng.randrange(tenants)
        known = people[index]
        if not known or rng.random() < _NEW:
            person = _person(token, number, rng)
            known.append(person)
            event_type = "member.joined"
        else:
            person = rng.choice(known)
            event_type = rng.choice(_UPDATES)
        data = payload(event_type, person)
        if "role_slug" in data:
            data["role_slug"] = rng.choice(roles)
        event_id = f"{token}-{rng.getrandbits(16):04x}-4000-8000-{number:012x}"
        body = jsonb(
            {
                "id": event_id,
                "type": event_type,
                "timestamp": iso(_START + number * 7),
                "tenant_id": tenant_id(index),
                "application_id": APPLICATION,
                "data": data,
            }
        )
        yield event_id, event_type, body
        number += 1


class Requests:
    """Signed HTTP requests, made ahead of their time: a signature costs more than all the rest.

    Args:
        tenants: How many tenants they are for.
        key: Signs them.
        pem: The key's private half, for the processes that sign.
        pool: Those processes.
        signed_at: Unix seconds that all of them are signed at.
    """

    def __init__(
        self,
        tenants: int,
        key: SigningKey,
        pem: bytes,
        pool: ProcessPoolExecutor,
        signed_at: float,
    ) -> None:
        self._events = events(tenants, run=0xFACE)
        self._sign = partial(signed_requests, kid=key.kid, pem=pem, signed_at=signed_at)
        self._pool = pool
        self._made: list[bytes] = []

    def first(self, count: int) -> list[bytes]:
        """Return so many requests from the beginning."""
        missing = count - len(self._made)
        if missing > 0:
            chunks = [
                [next(self._events) for _ in range(_CHUNK)] for _ in range(-(-missing // _CHUNK))
            ]
            for signed in self._pool.map(self._sign, chunks):
                self._made.extend(signed)
        return self._made[:count]


def signed_requests(
    named: Sequence[Named], *, kid: str, pem: bytes, signed_at: float
) -> list[bytes]:
    """Return the bytes of whole HTTP/1.1 requests."""
    private = load_pem_private_key(pem, None)
    key = SigningKey(kid, private)  # type: ignore[arg-type] # the PEM holds an RSA key
    requests = []
    for event_id, event_type, body in named:
        delivery = sign(body, key, signed_at=signed_at, event_id=event_id, event_type=event_type)
        lines = [
            f"POST {PATH} HTTP/1.1",
            "Host: 127.0.0.1",
            "Accept: */*",
            "User-Agent: benchmark",
            *(f"{name}: {value}" for name, value in delivery.headers.items()),
            f"Content-Length: {len(body)}",
        ]
        requests.append("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return requests


def _person(token: str, number: int, rng: random.Random) -> Person:
    return Person(
        sub=f"{token}-0000-4000-8000-{number:012x}",
        email=f"person.{number}@example.test",
        given_name=rng.choice(("Ada", "Femi", "Gül", "Jun")),
        family_name=rng.choice(("Lindqvist", "Okafor", "Müller", "Duarte")),
        membership_id=f"c{number:024d}",
        tenant_roles=(rng.choice(("member", "admin")),),
        role=rng.choice(tuple(APP_ROLES)),
    )
