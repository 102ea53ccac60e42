"""What a running AuthVital really sent comes to the same rows in whatever order it arrives."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from folding import Mirror, clear, fold, stored, two_places

from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.signatures import Verifier
from tenantsync.events import Event, parse
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement
from tenantsync.web.webhook import WebhookRouter

DATA = Path(__file__).parents[1] / "data"
LINES = [
    line
    for line in map(json.loads, (DATA / "webhooks-broker.jsonl").read_text("utf-8").splitlines())
    if line["channel"] == "sync"
]
APPLICATION = "cmwspxuxh0007ny7dn277ejhn"
EVENTS = [
    event
    for event in (parse(line["body"].encode()) for line in LINES)
    if event.application_id == APPLICATION
]
TENANTS = ("8aa2aa5f-234f-4bb8-b7f2-9b3bd69d8573", "c598b231-a90e-4479-9fd1-09ccc144710c")
EXPECTED = [fold(event for event in EVENTS if event.tenant_id == tenant) for tenant in TENANTS]


class House:
    """The two tenants' places, and a handler that writes to them.

    Args:
        places: One per tenant.
        stack: Closes what was opened.
    """

    def __init__(self, places: Sequence[Placement], stack: ExitStack) -> None:
        self.places = places
        self.handler = stack.enter_context(
            IdentitySyncHandler(dict(zip(TENANTS, places, strict=True)).get, observers=[])
        )
        self._registry = stack.enter_context(EngineRegistry())

    def clear(self) -> None:
        for place in self.places:
            clear(self._registry, place)

    def stored(self) -> list[Mirror]:
        return [stored(self._registry, place) for place in self.places]


@pytest.fixture(params=["sqlite", "postgresql"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[House]:
    """Give two files, or two schemas of one database."""
    with ExitStack() as stack:
        yield House(two_places(request, tmp_path), stack)


def test_the_recording_is_what_it_was():
    """The stream has 186 sync events, 121 of them for the busiest application."""
    assert len(LINES) == 186
    assert len(EVENTS) == 121
    assert {*TENANTS} == {event.tenant_id for event in EVENTS}
    assert all(mirror.rows for mirror in EXPECTED)


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "reversed"])
def test_one_by_one_it_comes_to_the_fold(house, order):
    """Handled one after the other, forwards or backwards, the stream comes to the fold."""
    outcomes = Counter(house.handler.handle_blocking(event) for event in EVENTS[::order])

    assert house.stored() == EXPECTED
    mirrored = sum(event.mirrored for event in EVENTS)
    assert outcomes[Outcome.APPLIED] + outcomes[Outcome.STALE] == mirrored
    assert outcomes[Outcome.IGNORED] == len(EVENTS) - mirrored


def test_in_fifty_random_orders_with_every_event_twice_it_comes_to_the_fold(house):
    """In 50 random orders, with every event twice, the rows are the same."""
    for seed in range(50):
        house.clear()
        arriving = EVENTS * 2
        random.Random(seed).shuffle(arriving)  # noqa: S311 - an order that can be repeated

        outcomes = Counter(asyncio.run(handle_all(house.handler, arriving)))

        assert house.stored() == EXPECTED
        assert outcomes[Outcome.DUPLICATE] == sum(event.mirrored for event in EVENTS)


def test_it_comes_through_the_door_with_its_own_signatures(house):
    """Verified with the recorded key at the recorded times, 121 are ours and 65 another's."""
    now = 0.0
    keys = KeyRing(
        "https://auth.harbourclinic.test/.well-known/jwks.json",
        fetch=lambda url, *, no_cache: (DATA / "recorded-jwks.json").read_bytes(),
    )
    router = WebhookRouter(
        house.handler,
        application_id=APPLICATION,
        verifier=Verifier(keys, clock=lambda: now),
    )
    answers: list[tuple[int, Any]] = []
    for line in LINES:
        now = line["received_at"]
        answers.append(router.handle_blocking(line["body"].encode(), line["headers"]))

    assert {status for status, _ in answers} == {200}
    told = Counter((body["outcome"], body.get("reason")) for _, body in answers)
    assert told["ignored", "other application"] == 65
    assert told["applied", None] + told["stale", None] + told["ignored", None] == 121
    assert house.stored() == EXPECTED


async def handle_all(handler: IdentitySyncHandler, arriving: Sequence[Event]) -> list[Outcome]:
    return await asyncio.gather(*map(handler.handle, arriving))
