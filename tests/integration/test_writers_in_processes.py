"""Several processes write to one place: it converges, and a delete that races a join is final."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import msgspec
import pytest
from folding import EVENT_IDS, clear, deliveries, fold, histories, is_mirrored, stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenantsync.events import Dialect, Event
from tenantsync.observe import Outcome
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement

# Writes the events of each line of its input, and answers with a line of outcomes.
PROGRAM = """
import sys
import msgspec
from tenantsync.events import Event
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenants import Placement

place = Placement.of(sys.argv[1], sys.argv[2] or None)
with IdentitySyncHandler(place, observers=[]) as handler:
    for line in sys.stdin.buffer:
        events = msgspec.json.decode(line, type=list[Event])
        outcomes = [handler.handle_blocking(event) for event in events]
        sys.stdout.buffer.write(msgspec.json.encode(outcomes) + b"\\n")
        sys.stdout.buffer.flush()
"""
PROCESSES = 3
ROUNDS = 60
RACERS = 8

per_example = settings(
    deadline=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,  # each example empties the place itself
    ],
)


class Writers:
    """Processes that write to one place at the same time.

    Args:
        place: Where they write.
        stack: Ends the processes.
    """

    def __init__(self, place: Placement, stack: ExitStack) -> None:
        self.place = place
        self.registry = stack.enter_context(EngineRegistry())
        url = place.url.render_as_string(hide_password=False)
        command = [sys.executable, "-c", PROGRAM, url, place.schema or ""]
        self._processes = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            for _ in range(PROCESSES)
        ]

    def write(self, dealt: Sequence[Sequence[Event]]) -> list[list[Outcome]]:
        """Have each process write its events, all at once, and return their outcomes."""
        for process, events in zip(self._processes, dealt, strict=True):
            process.stdin.write(msgspec.json.encode(events) + b"\n")
        for process in self._processes:
            process.stdin.flush()
        return [
            msgspec.json.decode(process.stdout.readline(), type=list[Outcome])
            for process in self._processes
        ]


@pytest.fixture
def writers(migrated_place: Placement) -> Iterator[Writers]:
    """Give writers that are ready; they end when their input does."""
    with ExitStack() as stack:
        started = Writers(migrated_place, stack)
        started.write([[]] * PROCESSES)
        yield started


@settings(per_example, max_examples=60)
@given(data=st.data())
def test_processes_come_to_the_fold(writers, data):
    """Written by several processes at once, the events come to the fold, each counted once."""
    history = data.draw(histories(max_size=len(EVENT_IDS)))
    arriving = data.draw(deliveries(history))
    clear(writers.registry, writers.place)

    told = writers.write([arriving[index::PROCESSES] for index in range(PROCESSES)])

    assert fold(history) == stored(writers.registry, writers.place)
    counted = [outcome for outcomes in told for outcome in outcomes]
    fresh = counted.count(Outcome.APPLIED) + counted.count(Outcome.STALE)
    assert sum(map(is_mirrored, history)) == fresh


def test_a_delete_that_races_a_join_is_final(writers):
    """However a delete, a join and an update race, a tombstone is left and never a row."""
    everything: list[Event] = []
    outcomes: set[Outcome] = set()
    for number in range(ROUNDS):
        people = [f"{number}-{racer}" for racer in range(RACERS)]
        # The later the join, the stronger its claim; a deletion is final all the same.
        joins = [event("member.joined", person, 3) for person in people]
        deletes = [event("subject.deleted", person, 2) for person in reversed(people)]
        updates = [event("subject.updated", person, 1) for person in people[::2] + people[1::2]]
        everything += [*joins, *deletes, *updates]

        told = writers.write([joins, deletes, updates])

        mirror = stored(writers.registry, writers.place)
        assert not mirror.rows
        assert mirror.tombstones.keys() >= set(people)
        outcomes.update(told[0])
    assert fold(everything) == stored(writers.registry, writers.place)
    # Otherwise nothing raced: some joins came before the deletion of their person, some after.
    assert {Outcome.APPLIED, Outcome.STALE} == outcomes


def test_the_same_first_event_is_applied_once(writers):
    """Where all processes get a person's first events at once, each event is applied once."""
    everything: list[Event] = []
    for number in range(ROUNDS):
        first = [event("member.joined", f"{number}-{racer}", 1) for racer in range(RACERS)]
        everything += first

        told = writers.write([first] * PROCESSES)

        for outcomes in zip(*told, strict=True):
            assert sorted(outcomes) == [Outcome.APPLIED] + [Outcome.DUPLICATE] * (PROCESSES - 1)
    assert fold(everything) == stored(writers.registry, writers.place)


def event(kind: str, subject: str, timestamp: int) -> Event:
    return Event(
        id=f"{kind} {subject}",
        type=kind,
        timestamp=timestamp,
        tenant_id="t1",
        application_id="app",
        sub=subject,
        data={"sub": subject, "email": f"{subject}@harbourclinic.test"},
        dialect=Dialect.SYNC,
    )
