"""On both databases, written over several connections at once, the rows equal the fold's."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from folding import (
    EVENT_IDS,
    TENANTS,
    Mirror,
    clear,
    deliveries,
    fold,
    histories,
    is_mirrored,
    stored,
    two_places,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from tenantsync.events import Event
from tenantsync.observe import Delivery, Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement

HANDLERS = 3
SENDERS = 2  # of each handler, so that some events share a transaction and others race for it


class Neighbours:
    """Two places and the writers that they share; tenants whose ids differ in case, apart.

    Args:
        places: Two places, of which the first is also the third tenant's.
        own_engines: Whether the application brings engines of its own, made without our care.
        stack: Closes what was opened.
    """

    def __init__(self, places: Sequence[Placement], stack: ExitStack, *, own_engines: bool) -> None:
        self._stack = stack
        self._own_engines = own_engines
        self.homes = dict(zip(TENANTS, [*places, places[0]], strict=True))
        self.places = tuple(places)
        self.registry = stack.enter_context(EngineRegistry())
        self._deliveries: list[Delivery] = []
        # Each handler has a registry of its own, and so connections of its own.
        self._handlers = {
            default: [stack.enter_context(self._handler(default)) for _ in range(HANDLERS)]
            for default in (True, False)
        }
        self._pool = stack.enter_context(ThreadPoolExecutor(HANDLERS * SENDERS))

    def _handler(self, default_app_access: bool) -> IdentitySyncHandler:
        homes = self.homes
        if self._own_engines:
            engines = {place: create_engine(place.url) for place in self.places}
            for engine in engines.values():
                self._stack.callback(engine.dispose)
            homes = {tenant: Placement.of(engines[place]) for tenant, place in homes.items()}
        return IdentitySyncHandler(
            homes.get,
            default_app_access=default_app_access,
            observers=[self._deliveries.append],
        )

    def send(self, arriving: Sequence[Event], *, default_app_access: bool) -> None:
        """Deal the events to the senders, who all start at once."""
        self._deliveries.clear()
        barrier = threading.Barrier(HANDLERS * SENDERS)
        handlers = self._handlers[default_app_access] * SENDERS

        def deliver(index: int) -> None:
            barrier.wait()
            for event in arriving[index :: len(handlers)]:
                handlers[index].handle_blocking(event)

        list(self._pool.map(deliver, range(len(handlers))))

    def told(self, outcome: Outcome) -> list[str]:
        """Return the ids of the events with this outcome, once for each delivery of them."""
        assert not any(delivery.failed for delivery in self._deliveries)
        return [delivery.event_id for delivery in self._deliveries if delivery.outcome is outcome]

    def living_at(self, place: Placement, events: Sequence[Event]) -> list[Event]:
        """Return the events of the tenants that live at the place."""
        return [event for event in events if self.homes[event.tenant_id or ""] is place]


@pytest.fixture(params=["sqlite", "postgresql", "sqlite with own engines"])
def neighbours(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Neighbours]:
    """Give two files, or two schemas of one database."""
    with ExitStack() as stack:
        own_engines = request.param.endswith("own engines")
        yield Neighbours(two_places(request, tmp_path), stack, own_engines=own_engines)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,  # each example empties the places itself
    ],
)
@given(data=st.data(), default_app_access=st.booleans())
def test_concurrent_writers_come_to_the_fold(neighbours, data, default_app_access):
    """Whatever order several connections interleave them in, the events come to the fold."""
    history = data.draw(histories(max_size=len(EVENT_IDS)))
    arriving = data.draw(deliveries(history))
    for place in neighbours.places:
        clear(neighbours.registry, place)

    neighbours.send(arriving, default_app_access=default_app_access)

    for place in neighbours.places:
        expected = fold(neighbours.living_at(place, history), default_app_access=default_app_access)
        assert expected == stored(neighbours.registry, place)
        assert holding(expected) <= set(neighbours.told(Outcome.APPLIED))
    mirrored = {event.id for event in arriving if is_mirrored(event)}
    assert Counter(event.id for event in arriving if event.id not in mirrored) == Counter(
        neighbours.told(Outcome.IGNORED)
    )
    assert sorted(mirrored) == sorted(
        [*neighbours.told(Outcome.APPLIED), *neighbours.told(Outcome.STALE)]
    )


def holding(mirror: Mirror) -> set[str]:
    """Return the ids of the events whose writes stand in the end."""
    clocks = [clock for row in mirror.rows.values() for clock in row["clocks"].values()]
    return {clock[14:] for clock in [*clocks, *mirror.tombstones.values()]}
