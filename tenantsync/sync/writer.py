"""Who writes: one writer at a time per place, which takes whatever queued meanwhile.

Speed comes from sharing commits. While one commit runs, events queue up; the next transaction takes
them all, without waiting for more. No timer: a lingering writer only adds latency. The places of
one database are dealt out to a few lanes with a writer each. A place that fails or holds the others
up leaves them for a lane of its own, until a transaction there succeeds.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from tenantsync.errors import TenantSyncError, TenantUnavailable
from tenantsync.events import Event
from tenantsync.observe import Outcome
from tenantsync.steps import Step, reach
from tenantsync.sync.apart import ApartLane, ApartLanes
from tenantsync.sync.apply import Work
from tenantsync.sync.batch import Applier, Result
from tenantsync.sync.breaker import Admission, Breakers
from tenantsync.sync.futures import NO_THREAD, answer_all, begun
from tenantsync.sync.hooks import Hooks
from tenantsync.sync.jobs import (
    Answers,
    Job,
    broken,
    failure_in,
    judge,
    paired,
    refused_late,
    refused_open,
    result_of,
    stopping,
    take,
)
from tenantsync.tenants import Placement

__all__ = ["Writer"]

_LOG: Final = logging.getLogger("tenantsync")

_MOST_APART: Final = 256
"""Events that may wait for one place that is apart."""
_PATIENCE: Final = 5.0
"""Seconds that an event may wait for its turn apart."""
_SLOW: Final = 0.5
"""Seconds after which a transaction of one place is too slow to have company."""


@dataclass(slots=True, eq=False)
class _Lane:
    """What waits for one writer, and whether one was asked for that has not come yet."""

    jobs: deque[Job] = field(default_factory=deque)
    due: bool = True


class Writer:
    """Applies events in batches, on bounded pools of threads that start with the first event.

    Args:
        applier: Applies a batch.
        hooks: Whose functions are called, and for what.
        breakers: What is known of places that fail; one set of its own by default.
        recovered: Told the place whose breaker closed again; must be quick.
        threads: How many shared transactions run at once.
        threads_apart: How many transactions of places in trouble run at once, beside those.
        per_database: How many of each kind in one PostgreSQL database; a place has always the same
            shared one. Two keep our own work and the server's going side by side; many more would
            cost the server more than they bring, because each backend loads each schema for itself.
        max_waiting: How many events may wait in one shared lane; a further one is refused, for the
            sender to try again.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        applier: Applier,
        hooks: Hooks,
        *,
        breakers: Breakers | None = None,
        recovered: Callable[[Placement], None] | None = None,
        threads: int = 8,
        threads_apart: int = 4,
        per_database: int = 2,
        max_waiting: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.breakers = breakers or Breakers()
        self._applier = applier
        self._hooks = hooks
        self._recovered = recovered
        self._threads = threads
        self._threads_apart = threads_apart
        self._per_database = per_database
        self._max_waiting = max_waiting
        self._clock = clock
        self._lock = threading.Condition()  # notified when a lane ends, for `close`
        self._lanes: dict[Hashable, _Lane] = {}  # only those with a writer at work
        self._apart: ApartLanes[Job] = ApartLanes(self._start_turn, per_database=per_database)
        self._slow: set[Placement] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_apart: ThreadPoolExecutor | None = None
        self._closed = False

    async def write(self, event: Event, placement: Placement) -> Outcome:
        """Apply an event, and return once it is committed.

        Raises:
            BreakerOpen: The place failed several times in a row; it was not asked.
            TenantSyncError: It could not be applied; `retry` says whether it may be, later.
        """
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._submit(Job(event, placement, self._hooks.matching(event.type), answer))
        return await answer

    def write_blocking(
        self, event: Event, placement: Placement, *, timeout: float | None = None
    ) -> Outcome:
        """Apply an event, and return once it is committed.

        Args:
            event: The event.
            placement: Where it belongs.
            timeout: Seconds to wait; None for as long as it takes.

        Raises:
            BreakerOpen: The place failed several times in a row; it was not asked.
            TenantSyncError: It could not be applied; `retry` says whether it may be, later.
            TimeoutError: It is not known yet; it may still be applied.
        """
        answer: Future[Outcome] = Future()
        self._submit(Job(event, placement, self._hooks.matching(event.type), answer))
        return answer.result(timeout)

    def write_apart(
        self, events: Sequence[Event], placement: Placement, *, with_hooks: bool = True
    ) -> list[Result]:
        """Apply events of one place in its own lane, and return their results in their order.

        Never refused: a place whose breaker is open is asked all the same, and the breaker learns
        what it said. Once the place fails, the rest of the events is not tried any more.

        Args:
            events: At most a few hundred.
            placement: Where they belong.
            with_hooks: Whether the application's hooks are called.
        """
        jobs = [
            Job(
                event,
                placement,
                self._hooks.matching(event.type) if with_hooks else (),
                Future(),
                forced=True,
            )
            for event in events
        ]
        with self._lock:
            if self._closed:
                return [stopping()] * len(events)
            for job in jobs:
                try:
                    self._queue_apart(job)
                except TenantSyncError as error:
                    answer_all([(job.answer, error)])
        return [result_of(job.answer) for job in jobs]

    def close(self) -> None:
        """Finish what waits, refuse what comes, and end the threads."""
        with self._lock:
            self._closed = True
            while self._lanes or len(self._apart):
                self._lock.wait()
            pools = (self._pool, self._pool_apart)
            self._pool = self._pool_apart = None
        for pool in pools:
            if pool is not None:
                pool.shutdown(wait=True)

    # Every method down to the next comment is called with the lock held.

    def _is_apart(self, place: Placement) -> bool:
        """Whether the place's events keep away from the others."""
        if self.breakers.quiet and not self._slow and not len(self._apart):
            return False  # nobody is, most of the time: no hash of the place
        if place in self._apart or place in self._slow:
            return True
        if not self.breakers.suspects(place):
            return False
        # After an outage of the whole database all its places are suspects: those that find no
        # room have company, as long as their breakers are closed.
        return self._apart.has_room(place) or self.breakers.is_open(place)

    def _queue(self, job: Job) -> None:
        placement = job.placement
        slot = hash(placement) % self._per_database if placement.is_postgres else 0
        key = (placement.database, slot)
        lane = self._lanes.get(key)
        if lane is not None:
            if len(lane.jobs) >= self._max_waiting:
                raise TenantUnavailable(
                    f"{self._max_waiting} events wait for {job.placement} already"
                )
            lane.jobs.append(job)
            return
        lane = _Lane(deque([job]))
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tenantsync")
        if begun(self._pool, self._drain, key, lane) is None:
            lane.due = False
            if not self._lanes:
                self._pool = None  # without a thread, nobody ever looks into its queue
            raise TenantUnavailable(NO_THREAD)
        self._lanes[key] = lane

    def _admit_apart(self, job: Job) -> None:
        """Queue a job in its place's own lane, if there is room and the breaker lets it."""
        lane = self._apart.get(job.placement)
        if lane is None and not self._apart.has_room(job.placement):
            raise TenantUnavailable(f"too many places like {job.placement} are in trouble already")
        if lane is not None and len(lane.jobs) >= _MOST_APART:
            raise TenantUnavailable(f"{_MOST_APART} events wait for {job.placement} already")
        admission = self.breakers.admit(job.placement)
        if admission is Admission.REFUSED:
            raise refused_open(job.placement)
        job.forced = admission is Admission.PROBE
        self._queue_apart(job)

    def _queue_apart(self, job: Job) -> None:
        job.since = self._clock()
        lane = self._apart.get(job.placement)
        if lane is not None:
            lane.jobs.append(job)
        elif not self._apart.open(job.placement, job):
            self.breakers.abandoned(job.placement)
            raise TenantUnavailable(NO_THREAD)

    def _start_turn(self, lane: ApartLane[Job]) -> bool:
        if self._pool_apart is None:
            self._pool_apart = ThreadPoolExecutor(
                self._threads_apart, thread_name_prefix="tenantsync-apart"
            )
        if begun(self._pool_apart, self._turn, lane) is not None:
            return True
        if not len(self._apart):
            self._pool_apart = None  # it has no thread either
        return False

    def _take_shared(self, lane: _Lane) -> tuple[list[Job], Answers]:
        """Return the next batch, and who is refused; who is apart by now goes there."""
        jobs: list[Job] = []
        refused: Answers = []
        for job in take(lane.jobs):
            if not self._is_apart(job.placement):
                jobs.append(job)
                continue
            try:
                self._admit_apart(job)
            except TenantSyncError as error:
                refused.append((job.answer, error))
        return jobs, refused

    def _take_apart(self, lane: ApartLane[Job]) -> tuple[list[Job], Answers]:
        """Return the next batch of a place that is apart, and who is refused."""
        refused: Answers = []
        oldest = self._clock() - _PATIENCE
        while lane.jobs and lane.jobs[0].since < oldest and not lane.jobs[0].forced:
            refused.append((lane.jobs.popleft().answer, refused_late(lane.place, _PATIENCE)))
        known = not lane.jobs or any(job.forced for job in lane.jobs)
        if not known and self.breakers.admit(lane.place) is Admission.REFUSED:
            refused += [(job.answer, refused_open(lane.place)) for job in lane.jobs]
            lane.jobs.clear()
        return take(lane.jobs), refused

    # From here on the lock is not held.

    def _submit(self, job: Job) -> None:
        with self._lock:
            if self._closed:
                raise stopping()
            if self._is_apart(job.placement):
                self._admit_apart(job)
            else:
                self._queue(job)

    def _drain(self, key: Hashable, lane: _Lane) -> None:
        """Write until nothing waits, giving way to other lanes after each transaction."""
        with self._lock:
            if not lane.due:
                return  # called off: no thread could be had when it was wanted
            lane.due = False
        while True:
            with self._lock:
                if not lane.jobs:
                    # Under the lock: a job that comes now starts a lane of its own.
                    del self._lanes[key]
                    self._lock.notify_all()
                    return
                jobs, refused = self._take_shared(lane)
            answer_all(refused)
            try:
                if jobs:
                    self._write_shared(jobs)
            except BaseException as error:  # no sender may wait for ever
                answer_all((job.answer, broken(error)) for job in jobs)
            with self._lock:
                if len(self._lanes) > self._threads and self._pool is not None:
                    lane.due = begun(self._pool, self._drain, key, lane) is not None
                    if lane.due:
                        return

    def _write_shared(self, jobs: Sequence[Job]) -> None:
        reach(Step.TAKEN)
        places: dict[Placement, list[Job]] = {}
        for job in jobs:
            places.setdefault(job.placement, []).append(job)
        results: Sequence[list[Result] | None]
        try:
            results = self._apply_shared(places)
        except BaseException as error:  # no sender may wait for ever
            results = [[broken(error)] * len(group) for group in places.values()]
        recovered = []
        answers: Answers = []
        for (place, group), told in zip(places.items(), results, strict=True):
            if told is None:
                answers += self._set_apart(group)
                continue
            answers += paired(group, told)
            if judge(self.breakers, place, told):
                recovered.append(place)
        answer_all(answers)
        for place in recovered:
            self._tell(place)

    def _apply_shared(self, places: dict[Placement, list[Job]]) -> Sequence[list[Result] | None]:
        (first, *_), *_ = places.values()
        if not first.hooks:
            return self._applier.apply(
                [Work(place, [job.event for job in jobs]) for place, jobs in places.items()]
            )
        started = self._clock()
        result = self._applier.apply_hooked(first.event, first.placement, first.hooks, hurry=True)
        if self._clock() - started > _SLOW:
            with self._lock:
                self._slow.add(first.placement)
        return [None if result is None else [result]]

    def _set_apart(self, jobs: Iterable[Job]) -> Answers:
        """Move the jobs of a place that holds others up, and return who is refused."""
        refused: Answers = []
        with self._lock:
            for job in jobs:
                try:
                    self._admit_apart(job)
                except TenantSyncError as error:
                    refused.append((job.answer, error))
        return refused

    def _turn(self, lane: ApartLane[Job]) -> None:
        """Write one batch of a place that is apart, and more where there is no other thread."""
        with self._lock:
            if not lane.due:
                return  # called off, or another thread was quicker
            lane.due = False
        following: ApartLane[Job] | None = lane
        while following is not None:
            following = self._take_turn(following)

    def _take_turn(self, lane: ApartLane[Job]) -> ApartLane[Job] | None:
        """Write one batch, and return the lane that this thread has to take after it."""
        recovered = False
        with self._lock:
            jobs, refused = self._take_apart(lane)
        answer_all(refused)
        try:
            recovered = bool(jobs) and self._write_apart(lane, jobs)
        except BaseException as error:  # no sender may wait for ever
            answer_all((job.answer, broken(error)) for job in jobs)
        with self._lock:
            following = self._apart.pass_on(lane)
            self._lock.notify_all()
        if recovered:
            self._tell(lane.place)
        return following

    def _write_apart(self, lane: ApartLane[Job], jobs: Sequence[Job]) -> bool:
        """Write, answer, and return whether the place's breaker closed again."""
        reach(Step.TAKEN)
        started = self._clock()
        try:
            results = self._apply_apart(lane.place, jobs)
        except BaseException as error:  # no sender may wait for ever
            results = [broken(error)] * len(jobs)
        answers = paired(jobs, results)
        slow = self._clock() - started > _SLOW
        recovered = judge(self.breakers, lane.place, results)
        failure = failure_in(results)
        with self._lock:
            if slow:
                self._slow.add(lane.place)
            else:
                self._slow.discard(lane.place)
            if failure is not None:
                # A worker has no use for the same failure once more; a live event has its chance.
                answers += [(job.answer, failure) for job in lane.jobs if job.forced]
                lane.jobs = deque(job for job in lane.jobs if not job.forced)
        answer_all(answers)
        return recovered

    def _apply_apart(self, place: Placement, jobs: Sequence[Job]) -> list[Result]:
        first = jobs[0]
        if not first.hooks:
            return self._applier.apply_apart(Work(place, [job.event for job in jobs]))
        result = self._applier.apply_hooked(first.event, place, first.hooks)
        return [
            broken(RuntimeError("a place apart waits for nobody")) if result is None else result
        ]

    def _tell(self, place: Placement) -> None:
        if self._recovered is not None:
            try:
                self._recovered(place)
            except Exception:
                _LOG.exception("tenantsync.recovered_failed")
