"""A hundred tenants of which one will go bad: their databases, and what is sent to them."""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from places import make
from workload import APPLICATION, Named, events, signed_requests, tenant_id

from tenantsync.testing.delivery import iso, jsonb
from tenantsync.testing.keys import Keys
from tenantsync.testing.people import Person, payload
from tenantsync.testing.server import Response, Server

sys.path.insert(0, str(Path(__file__).parents[1]))
import postgres

OTHERS = 99
BAD = tenant_id(OTHERS)
_SETTINGS = {"synchronous_commit": "on", "shared_buffers": "256MB", "max_connections": "100"}
PEOPLE = 100
_START = 1_793_000_400_000
_UPDATES = (
    *("subject.updated", "member.role_changed", "member.suspended", "member.activated"),
    *("app_access.granted", "app_access.role_changed", "app_access.revoked"),
)
_CHUNK = 250


class Town:
    """The server with the other 99 tenants, and whatever all scenarios share.

    Args:
        folder: For configurations and requests.
        arguments: The command line.
        stack: Ends what is begun here.
    """

    def __init__(self, folder: Path, arguments: argparse.Namespace, stack: ExitStack) -> None:
        self.folder = folder
        self.arguments = arguments
        self.postgres = postgres.start(folder / "pg", fsync=True, settings=_SETTINGS)
        stack.callback(self.postgres.stop)
        keys = Keys()
        jwks = Server(lambda request: Response(200, json.dumps(keys.jwks()).encode()))
        stack.callback(jwks.close)
        key = keys.active
        pem = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._pool = stack.enter_context(ProcessPoolExecutor(os.cpu_count(), get_context("spawn")))
        self._sign = partial(signed_requests, kid=key.kid, pem=pem, signed_at=time.time())
        self._numbers = count(1)
        url = self.database("tenants")
        self.config = make(folder / "others", OTHERS, host=jwks.url, url=url, max_engines=64)

    def database(self, name: str) -> str:
        """Make a database and return its URL."""
        with self.postgres.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.postgres.url(name)

    def number(self) -> int:
        """Return a number that was not there before."""
        return next(self._numbers)

    def of_others(self, wanted: int, seed: int) -> list[Named]:
        """Return events that are new; those of equal seeds are alike in everything but ids."""
        return list(islice(events(OTHERS, run=self.number(), seed=seed), wanted))

    def signed(self, named: list[Named]) -> list[bytes]:
        """Return requests that deliver these events."""
        chunks = [named[start : start + _CHUNK] for start in range(0, len(named), _CHUNK)]
        return [request for signed in self._pool.map(self._sign, chunks) for request in signed]


def bad_lives() -> Iterator[Named]:
    """Yield events of the bad tenant: so many people who join, and then updates of them for ever.

    All of its events write rows that are there: a transaction that holds these holds up each of
    them.
    """
    chance = random.Random(0)  # noqa: S311 - made-up data, not a secret
    people = [Person.named(f"person.{n}@example.test", tenant_id=BAD) for n in range(PEOPLE)]
    for number in count():
        person, kind = chance.choice(people), chance.choice(_UPDATES)
        if number < PEOPLE:
            person, kind = people[number], "member.joined"
        data = payload(kind, person)
        if "role_slug" in data:
            data["role_slug"] = chance.choice(("admin", "editor", "viewer"))
        event_id = f"badbadba-0000-4000-8000-{number:012x}"
        body = {"id": event_id, "type": kind, "timestamp": iso(_START + number * 7)}
        body |= {"tenant_id": BAD, "application_id": APPLICATION, "data": data}
        yield event_id, kind, jsonb(body)
