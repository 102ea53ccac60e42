"""Who writes: one writer at a time per place, which takes whatever queued meanwhile.

Speed comes from sharing commits. While one commit runs, events queue up; the next transaction takes
them all, without waiting for more. No timer: a lingering writer only adds latency. The places of
one database are dealt out to a few lanes with a writer each.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from tenantsync.errors import TenantSyncError, TenantUnavailable
from tenantsync.events import Event
from tenantsync.observe import Outcome
from tenantsync.sync.apply import Work
from tenantsync.sync.batch import Applier, Result
from tenantsync.sync.hooks import Hook, Hooks
from tenantsync.tenants import Placement

__all__ = ["Writer"]

_MOST_EVENTS: Final = 128
# A place's read takes about nine locks, and the server's table holds about 6,400 of them; nothing
# was gained by more places in one transaction.
_MOST_PLACES: Final = 32


@dataclass(slots=True, eq=False)
class _Job:
    event: Event
    placement: Placement
    hooks: tuple[Hook, ...]
    answer: "Future[Outcome] | asyncio.Future[Outcome]"


@dataclass(slots=True, eq=False)
class _Lane:
    """What waits for one writer."""

    jobs: deque[_Job] = field(default_factory=deque)


class Writer:
    """Applies events in batches, on a bounded pool of threads that starts with the first event.

    Args:
        applier: Applies a batch.
        hooks: Whose functions are called, and for what.
        threads: How many transactions run at once.
        per_database: How many of them in one PostgreSQL database; a place has always the same
            one. Two keep our own work and the server's going side by side; many more would cost
            the server more than they bring, because each backend loads each schema for itself.
        max_waiting: How many events may wait in one lane; a further one is refused, for the
            sender to try again.
    """

    def __init__(
        self,
        applier: Applier,
        hooks: Hooks,
        *,
        threads: int = 8,
        per_database: int = 2,
        max_waiting: int = 4096,
    ) -> None:
        self._applier = applier
        self._hooks = hooks
        self._threads = threads
        self._per_database = per_database
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._lanes: dict[Hashable, _Lane] = {}  # only those with a writer at work
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    async def write(self, event: Event, placement: Placement) -> Outcome:
        """Apply an event, and return once it is committed.

        Raises:
            TenantSyncError: It could not be applied; `retry` says whether it may be, later.
        """
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._submit(_Job(event, placement, self._hooks.matching(event.type), answer))
        return await answer

    def write_blocking(self, event: Event, placement: Placement) -> Outcome:
        """Apply an event, and return once it is committed.

        Raises:
            TenantSyncError: It could not be applied; `retry` says whether it may be, later.
        """
        answer: Future[Outcome] = Future()
        self._submit(_Job(event, placement, self._hooks.matching(event.type), answer))
        return answer.result()

    def close(self) -> None:
        """Finish what waits, refuse what comes, and end the threads."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _submit(self, job: _Job) -> None:
        placement = job.placement
        slot = hash(placement) % self._per_database if placement.is_postgres else 0
        key = (placement.database, slot)
        with self._lock:
            if self._closed:
                raise TenantUnavailable("the application is stopping; send the event again")
            lane = self._lanes.get(key)
            if lane is not None:
                if len(lane.jobs) >= self._max_waiting:
                    raise TenantUnavailable(
                        f"{self._max_waiting} events wait for {job.placement} already"
                    )
                lane.jobs.append(job)
                return
            lane = self._lanes[key] = _Lane(deque([job]))
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="tenantsync")
            self._pool.submit(self._drain, key, lane)

    def _drain(self, key: Hashable, lane: _Lane) -> None:
        """Write until nothing waits, giving way to other lanes after each transaction."""
        while True:
            with self._lock:
                jobs = _take(lane.jobs)
                if not jobs:
                    # Under the lock: a job that comes now starts a lane of its own.
                    del self._lanes[key]
                    return
            try:
                results = self._results(jobs)
            except BaseException as error:  # no sender may wait for ever
                results = [_failed(error) for _ in jobs]
            _settle(jobs, results)
            with self._lock:
                crowded = len(self._lanes) > self._threads
                if crowded and self._pool is not None:
                    self._pool.submit(self._drain, key, lane)
                    return

    def _results(self, jobs: Sequence[_Job]) -> list[Result]:
        if jobs[0].hooks:
            return [self._applier.apply_hooked(job.event, job.placement, job.hooks) for job in jobs]
        places: dict[Placement, list[int]] = {}
        for index, job in enumerate(jobs):
            places.setdefault(job.placement, []).append(index)
        works = [
            Work(placement, [jobs[index].event for index in indices])
            for placement, indices in places.items()
        ]
        answers = zip(places.values(), self._applier.apply(works), strict=True)
        by_index = {
            index: result
            for indices, results in answers
            for index, result in zip(indices, results, strict=True)
        }
        return [by_index[index] for index in range(len(jobs))]


def _take(waiting: deque[_Job]) -> list[_Job]:
    """Remove and return the next batch: one job with hooks, or many without."""
    taken: list[_Job] = []
    places: set[Placement] = set()
    while waiting and len(taken) < _MOST_EVENTS:
        job = waiting[0]
        if job.hooks and taken:
            break
        if job.placement not in places and len(places) == _MOST_PLACES:
            break
        places.add(job.placement)
        taken.append(waiting.popleft())
        if job.hooks:
            break
    return taken


def _failed(error: BaseException) -> TenantUnavailable:
    failure = TenantUnavailable(f"the writer failed unexpectedly ({type(error).__name__})")
    failure.__cause__ = error
    return failure


def _settle(jobs: Iterable[_Job], results: Iterable[Result]) -> None:
    """Answer all senders; those of one event loop with one call into it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Outcome], Result]]] = {}
    for job, result in zip(jobs, results, strict=True):
        if isinstance(job.answer, asyncio.Future):
            by_loop.setdefault(job.answer.get_loop(), []).append((job.answer, result))
        elif isinstance(result, TenantSyncError):
            job.answer.set_exception(result)
        else:
            job.answer.set_result(result)
    for loop, answers in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer, answers)
        except RuntimeError:
            # The loop was closed: nobody waits there any more, and the events are committed.
            continue


def _answer(answers: Iterable[tuple["asyncio.Future[Outcome]", Result]]) -> None:
    for future, result in answers:
        if future.done():  # the sender went away
            continue
        if isinstance(result, TenantSyncError):
            future.set_exception(result)
        else:
            future.set_result(result)
