"""Puts what cannot be applied now into the inbox, and answers once that is committed.

Speed comes from sharing commits, as with the tenants' own writers: one thread takes whatever queued
while its last commit ran. When a tenant is down, all its senders wait here for milliseconds.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from tenantsync.control.database import ControlMissing, ControlUnavailable
from tenantsync.control.inbox import Arrival, Inbox, Stored
from tenantsync.errors import TenantSyncError
from tenantsync.sync.futures import NO_THREAD, Answer, answer_all, begun

__all__ = ["Parking"]

_R = TypeVar("_R")
_LOG: Final = logging.getLogger("tenantsync")

_MOST: Final = 128
_PATIENCE: Final = 5.0
"""Seconds after which an event is not tried any more, once one before it was not stored."""


@dataclass(slots=True, eq=False)
class _Job:
    arrival: Arrival
    readable: bool
    answer: Answer[Stored]
    since: float


class Parking:
    """The way into the inbox, on one thread that starts with the first event.

    Args:
        inbox: Where events are kept.
        prepare: Makes the control database where there is none yet; called until it succeeds, and
            never once there was one.
        parked: Told the tenants' ids of what was just parked; must be quick.
        max_waiting: How many events may wait for the thread; a further one is refused, for the
            sender to try again.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        prepare: Callable[[], object] | None = None,
        parked: Callable[[frozenset[str]], object] | None = None,
        max_waiting: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.inbox = inbox
        self._prepare = prepare
        self._parked = parked
        self._max_waiting = max_waiting
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[_Job] = deque()
        self._at_work = False
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    async def park(self, arrival: Arrival, *, readable: bool = True) -> Stored:
        """Store an event, and return once that is committed.

        Args:
            arrival: The event.
            readable: False for what no reader understands: it goes to quarantine.

        Raises:
            ControlUnavailable: It could not be stored.
        """
        answer: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._submit(_Job(arrival, readable, answer, self._clock()))
        return await answer

    def park_blocking(self, arrival: Arrival, *, readable: bool = True) -> Stored:
        """Store an event as `park` does, for a caller without an event loop."""
        answer: Future[Stored] = Future()
        self._submit(_Job(arrival, readable, answer, self._clock()))
        return answer.result()

    async def erase(self, tenant_id: str, subject: str) -> None:
        """Erase what the inbox holds of a person who was deleted.

        Raises:
            ControlUnavailable: The inbox could not be asked; the deletion must come again.
        """
        await asyncio.wrap_future(self._in_thread(self.erase_blocking, tenant_id, subject))

    def erase_blocking(self, tenant_id: str, subject: str) -> None:
        """Erase as `erase` does, for a caller without an event loop."""
        try:
            self.inbox.erase(tenant_id, subject)
        except ControlMissing:
            return  # nothing was ever stored

    def wake(self, tenant_ids: frozenset[str]) -> None:
        """Have the lanes of tenants drained soon; in the background, and not at all in an outage.

        Nothing depends on it: a lane that is not woken comes due by itself.
        """
        if tenant_ids:
            with suppress(ControlUnavailable):
                self._in_thread(self._wake, tenant_ids)

    def close(self) -> None:
        """Store what waits, refuse what comes, and end the thread."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)

    def _wake(self, tenant_ids: frozenset[str]) -> None:
        try:
            self.inbox.wake(tenant_ids)
        except ControlUnavailable:
            return
        self._tell(tenant_ids)

    def _submit(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                raise ControlUnavailable("the application is stopping; send the event again")
            if len(self._waiting) >= self._max_waiting:
                raise ControlUnavailable(f"{self._max_waiting} events wait for the inbox already")
            if not self._at_work:
                self._begun(self._drain)
                self._at_work = True
            self._waiting.append(job)

    def _in_thread(self, function: Callable[..., None], *arguments: object) -> "Future[None]":
        with self._lock:
            if self._closed:
                raise ControlUnavailable("the application is stopping; send the event again")
            return self._begun(function, *arguments)

    def _begun(self, function: Callable[..., _R], *arguments: object) -> "Future[_R]":
        """Have a function called on the thread; called with the lock held."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="tenantsync-inbox")
        future = begun(self._pool, function, *arguments)
        if future is None:
            self._pool = None  # without its thread, nobody ever looks into its queue
            raise ControlUnavailable(NO_THREAD)
        return future

    def _drain(self) -> None:
        while True:
            with self._lock:
                jobs = [self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))]
                if not jobs:
                    # Under the lock: a job that comes now finds nobody at work.
                    self._at_work = False
                    return
            for readable in (True, False):
                chosen = [job for job in jobs if job.readable is readable]
                if chosen:
                    self._store(chosen, readable=readable)
            with self._lock:
                # Who wants something else of the thread has their turn between two batches.
                if self._pool is not None and begun(self._pool, self._drain) is not None:
                    return

    def _store(self, jobs: Sequence[_Job], *, readable: bool) -> None:
        store = self.inbox.park if readable else self.inbox.quarantine
        arrivals = [job.arrival for job in jobs]
        results: Sequence[Stored | TenantSyncError]
        try:
            results = self._prepared(store, arrivals)
        except TenantSyncError as error:
            results = self._given_up(jobs, error)
        except BaseException as error:  # no sender may wait for ever
            failure = ControlUnavailable(f"the inbox failed unexpectedly ({type(error).__name__})")
            failure.__cause__ = error
            results = self._given_up(jobs, failure)
        answer_all((job.answer, result) for job, result in zip(jobs, results, strict=True))
        self._tell(
            frozenset(
                arrival.tenant_id
                for arrival, result in zip(arrivals, results, strict=True)
                if result is Stored.PARKED and (arrival.known or arrival.announced)
            )
        )

    def _given_up(
        self, jobs: Sequence[_Job], error: TenantSyncError
    ) -> list[Stored | TenantSyncError]:
        """Return the answers to jobs that failed, and give them to who waits for long already.

        Each attempt at a control database that says nothing takes seconds: the last in a long
        queue would hear of it when its sender has gone away.
        """
        oldest = self._clock() - _PATIENCE
        late: list[tuple[Answer[Stored], Stored | TenantSyncError]] = []
        with self._lock:
            while self._waiting and self._waiting[0].since <= oldest:
                late.append((self._waiting.popleft().answer, error))
        answer_all(late)
        return [error] * len(jobs)

    def _prepared(
        self, store: Callable[[Sequence[Arrival]], Sequence[Stored]], arrivals: Sequence[Arrival]
    ) -> Sequence[Stored]:
        try:
            stored = store(arrivals)
        except ControlMissing:
            if self._prepare is None:
                raise
            self._prepare()
            stored = store(arrivals)
        # Never again: a file that was there and is gone is a disk that is not mounted.
        self._prepare = None
        return stored

    def _tell(self, tenant_ids: frozenset[str]) -> None:
        if tenant_ids and self._parked is not None:
            try:
                self._parked(tenant_ids)
            except BaseException as error:  # a worker finds by itself what it is not told of
                # The class only: the words may be anything, and hold a URL with a password.
                _LOG.error("tenantsync.parked_failed", extra={"error": type(error).__name__})
