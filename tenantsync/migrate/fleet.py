"""One run over many tenants: who goes first, how many at once, and when it ends."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypedDict

from tenantsync.migrate.connections import Connections
from tenantsync.migrate.crew import Crew, Progress, Tally
from tenantsync.migrate.drift import Expected
from tenantsync.migrate.looks import Look, Looker
from tenantsync.migrate.mover import Handover, Mover, first_alone
from tenantsync.migrate.moves import Found, Kind, Limits, Move
from tenantsync.migrate.processes import Assistant, Orders
from tenantsync.migrate.recording import Recorder, Recording
from tenantsync.migrate.report import Report, Row, State, Stopped, sentence_about
from tenantsync.migrate.scripts import Scripts
from tenantsync.tenancy.engines import EngineFactory, make_engine
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenants import Placement, Tenant

__all__ = ["Fleet", "Pace", "Place", "Planned"]

_AT_ONCE: Final = 1000  # tenants that are looked at before the first of them is migrated
_DONE: Final = {
    Kind.UPGRADE: State.UPGRADED,
    Kind.DOWNGRADE: State.DOWNGRADED,
    Kind.STAMP: State.STAMPED,
}

_CLEAR: Final = (State.BEHIND, State.MISSING, State.UNVERSIONED, State.OK)

Place = Callable[[Tenant], Placement]
"""Says where, and with which login, a tenant's migrations run."""


class Pace(TypedDict, total=False):
    """How a run goes about its tenants.

    Attributes:
        jobs: How many tenants are migrated at once; 1. Each has a connection of its own.
        lock_timeout: Seconds to wait for a lock on a table, three times, with pauses of different
            lengths; 2. Meanwhile everybody else who wants that table queues up behind it.
        statement_timeout: Seconds that one statement may take; 0, for as long as it takes.
        wait: Seconds to wait for another run that is migrating the same tenant; 30. With 0 the
            tenant is left to that one and reported as skipped.
        fail_fast: Whether the first failure ends the run; False. Tenants that are being migrated
            then are finished.
        max_failures: The run ends when more than so many failed; None for any number.
        canary: How many tenants go first; 0. If one of them fails, the run ends.
        wave: How many tenants are migrated before it is looked whether to go on, which it is not
            when more than `max_failures` failed, or one where that is not given. An int is a
            number of tenants, a float between 0 and 1 a share of them.
        keep_rows: Whether the report has a row for every tenant, and not only for those that are
            not well; True.
        sleep: Waits some seconds.
    """

    jobs: int
    lock_timeout: float
    statement_timeout: float
    wait: float
    fail_fast: bool
    max_failures: int | None
    canary: int
    wave: int | float | None
    keep_rows: bool
    sleep: Callable[[float], object]


@dataclass(frozen=True, slots=True)
class Planned:
    """What would be done to all tenants that start from the same revisions.

    Args:
        recording: The way and the statements.
        tenants: How many there are.
        example: The key of one of them.
    """

    recording: Recording
    tenants: int
    example: str


@dataclass(frozen=True, slots=True)
class _Visit:
    """One tenant of a run.

    Args:
        index: Which one it is.
        tenant: The tenant.
        placement: Where its migrations run.
        known: The revisions that it stood at just now, if somebody looked.
    """

    index: int
    tenant: Tenant
    placement: Placement
    known: tuple[str, ...] | None = None


class _Hand:
    """What one worker has: a connection, and a process for Alembic once that is needed."""

    def __init__(self, fleet: "Fleet") -> None:
        self._connections = Connections(fleet.orders.factory)
        self.looker = Looker(
            fleet.orders.isolation, fleet.scripts, fleet.recorder, self._connections
        )
        self._mover = Mover(
            fleet.orders.isolation,
            fleet.scripts,
            fleet.recorder,
            fleet.orders.move,
            fleet.orders.limits,
            self._connections,
            fleet.sleep,
        )
        self._assistant = Assistant(fleet.orders) if fleet.hires else None

    def move(self, placement: Placement, known: tuple[str, ...] | None) -> Found:
        """Bring a place to the target, here or in the process."""
        # An engine of the caller's own cannot be given to a process.
        assistant = self._assistant if placement.engine is None else None
        try:
            return self._mover.move(placement, alembic=assistant is None, known=known)
        except Handover as handover:
            assert assistant is not None
            with first_alone(handover.recording):
                return assistant.move(placement)

    def close(self) -> None:
        """Close what is open."""
        self._connections.close()
        if self._assistant is not None:
            self._assistant.close()


class Fleet:
    """One run over many tenants: the revisions read once, and written down once."""

    def __init__(
        self,
        isolation: Isolation,
        place: Place | None,
        locations: Sequence[Path | str],
        factory: EngineFactory | None,
        move: Move,
        pace: Pace,
        on_progress: Progress | None,
        clock: Callable[[], float],
        *,
        may_drop: bool = True,
    ) -> None:
        limits = Limits(
            lock=pace.get("lock_timeout", 2.0),
            statement=pace.get("statement_timeout", 0.0),
            wait=pace.get("wait", 30.0),
        )
        self.scripts = Scripts(locations)
        self.scripts.check(move)
        self.recorder = Recorder(self.scripts, move, may_drop=may_drop)
        made = factory or partial(make_engine, lock_timeout=limits.lock)
        self.orders = Orders(isolation, made, self.scripts.locations, move, limits)
        self.sleep = pace.get("sleep", time.sleep)
        self._jobs = pace.get("jobs", 1)
        self.hires = self._jobs > 1 and self.orders.portable()
        self._place = place or (lambda tenant: tenant.placement)
        self._pace = pace
        self._on_progress = on_progress
        self._clock = clock

    def run(self, tenants: list[Tenant]) -> Report:
        """Move all tenants."""
        tally = self._tally(len(tenants))
        with closing(_Hand(self)) as scout, Crew(self._jobs, lambda: _Hand(self)) as crew:
            for wave, limit, name in self._waves(len(tenants)):
                for some in _portions(wave):
                    self._begin(scout.looker, crew, tally, tenants, some)
                crew.drain()
                if limit is not None:
                    tally.stop_if(limit, name)
                if tally.stopped is not None:
                    break
        return tally.report(self.scripts.heads)

    def status(self, tenants: list[Tenant]) -> Report:
        """Look at all tenants."""
        tally = self._tally(len(tenants))

        def note(visit: _Visit, look: Look, seconds: float) -> None:
            tally.add(visit.index, _row(visit, look, seconds))

        self._look(tenants, note, tally)
        return tally.report(self.scripts.heads)

    def check(self, tenants: list[Tenant]) -> Report:
        """Look at all tenants, and compare the tables of those that are at head."""
        tally = self._tally(len(tenants))
        expected = Expected(self.orders.isolation, self.scripts, self.orders.factory)

        def note(visit: _Visit, look: Look, seconds: float) -> None:
            tally.add(visit.index, _row(visit, look, seconds))

        self._look(tenants, note, tally, expected)
        return tally.report(self.scripts.heads)

    def plan(self, tenants: list[Tenant]) -> tuple[list[Planned], Report]:
        """Look at all tenants, and say what would be done."""
        tally = self._tally(len(tenants))
        lock = threading.Lock()
        starts: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}

        def note(visit: _Visit, look: Look, seconds: float) -> None:
            tally.add(visit.index, _row(visit, look, seconds))
            if look.state in _CLEAR:
                dialect = "postgresql" if visit.placement.is_postgres else "sqlite"
                with lock:
                    # The example is the first one given: who was looked at first is chance.
                    count, first = starts.get((dialect, look.versions), (0, visit.index))
                    starts[dialect, look.versions] = (count + 1, min(first, visit.index))

        self._look(tenants, note, tally)
        planned = [
            Planned(self.recorder.recording(*start), count, tenants[first].key)
            for start, (count, first) in sorted(starts.items())
        ]
        return planned, tally.report(self.scripts.heads)

    def _tally(self, total: int) -> Tally:
        return Tally(
            total,
            self._on_progress,
            keep_rows=self._pace.get("keep_rows", True),
            fail_fast=self._pace.get("fail_fast", False),
            max_failures=self._pace.get("max_failures"),
        )

    def _begin(
        self,
        scout: Looker,
        crew: Crew[_Hand],
        tally: Tally,
        tenants: Sequence[Tenant],
        some: range,
    ) -> None:
        """Give the crew all of some tenants for whom there is something to do."""
        for visits in self._by_database(tenants, some, tally):
            waiting = visits
            if len(visits) > 1 and visits[0].placement.is_postgres:
                looks = scout.look([visit.placement for visit in visits])
                waiting = []
                for visit, look in zip(visits, looks, strict=True):
                    # Each tenant would wait for a server that does not answer all over again.
                    if look.state in (State.OK, State.UNREACHABLE):
                        tally.add(visit.index, _row(visit, look, 0.0))
                    else:
                        waiting.append(replace(visit, known=look.versions))
            for visit in waiting:
                if tally.stopped is not None:
                    return
                crew.give(partial(self._visit, tally, visit))

    def _visit(self, tally: Tally, visit: _Visit, hand: _Hand) -> None:
        if tally.stopped is not None:
            return
        started = self._clock()
        key = visit.tenant.key
        try:
            found = hand.move(visit.placement, visit.known)
        except Stopped as stopped:
            at = _joined(stopped.at)
            row = Row(key, at, at, stopped.state, self._clock() - started, stopped.reason)
            tally.add(visit.index, row, everywhere=stopped.everywhere)
            return
        state = State.OK if found.before == found.after else _DONE[self.orders.move.kind]
        before, after = _joined(found.before), _joined(found.after)
        tally.add(visit.index, Row(key, before, after, state, self._clock() - started))

    def _look(
        self,
        tenants: list[Tenant],
        note: Callable[[_Visit, Look, float], object],
        tally: Tally,
        expected: Expected | None = None,
    ) -> None:
        def look(visits: list[_Visit], hand: _Hand) -> None:
            started = self._clock()
            looks = hand.looker.look([visit.placement for visit in visits], expected)
            seconds = (self._clock() - started) / len(visits)
            for visit, found in zip(visits, looks, strict=True):
                note(visit, found, seconds)

        # An errand may be a thousand tenants here, so few of them wait.
        with Crew(self._jobs, lambda: _Hand(self), ahead=1) as crew:
            for some in _portions(range(len(tenants))):
                for visits in self._by_database(tenants, some, tally):
                    crew.give(partial(look, visits))
            crew.drain()

    def _by_database(
        self, tenants: Sequence[Tenant], some: range, tally: Tally
    ) -> Iterator[list[_Visit]]:
        """Yield some tenants with those in the same database together."""
        groups: dict[object, list[_Visit]] = {}
        for index in some:
            tenant = tenants[index]
            try:
                placement = self._place(tenant)
            except Exception as error:  # whatever it is, the other tenants come next
                row = Row(tenant.key, None, None, State.FAILED, 0.0, sentence_about(error))
                tally.add(index, row)
                continue
            visit = _Visit(index, tenant, placement)
            groups.setdefault(placement.database, []).append(visit)
        yield from groups.values()

    def _waves(self, total: int) -> Iterator[tuple[range, int | None, str]]:
        """Yield who is migrated before it is looked how many failed, how many may, and its name."""
        canaries, wave = min(self._pace.get("canary", 0), total), self._pace.get("wave")
        if canaries:
            yield range(canaries), 0, "the first"
        if wave is None:
            yield range(canaries, total), None, ""
            return
        size = max(1, math.ceil(total * wave) if isinstance(wave, float) else wave)
        allowed = self._pace.get("max_failures") or 0
        for start in range(canaries, total, size):
            end = min(start + size, total)
            yield range(start, end), allowed, f"the first {end}"


def _portions(wave: range) -> Iterator[range]:
    """Yield a wave in portions: only of one at a time is there more than the tenants."""
    for start in range(wave.start, wave.stop, _AT_ONCE):
        yield range(start, min(start + _AT_ONCE, wave.stop))


def _row(visit: _Visit, look: Look, seconds: float) -> Row:
    at = _joined(look.versions)
    return Row(visit.tenant.key, at, at, look.state, seconds, look.error)


def _joined(revisions: tuple[str, ...]) -> str | None:
    return ", ".join(revisions) or None
