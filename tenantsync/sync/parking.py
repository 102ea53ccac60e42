"""Puts what cannot be applied now into the inbox, and answers once that is committed.

Speed comes from sharing commits, as with the tenants' own writers: one thread takes whatever queued
while its last commit ran. When a tenant is down, all its senders wait here for milliseconds.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from tenantsync.control.database import ControlMissing, ControlUnavailable
from tenantsync.control.inbox import Arrival, Inbox, Stored
from tenantsync.errors import TenantSyncError
from tenantsync.sync.futures import Answer, answer_all

__all__ = ["Parking"]

_MOST: Final = 128


@dataclass(slots=True, eq=False)
class _Job:
    arrival: Arrival
    readable: bool
    answer: Answer[Stored]


class Parking:
    """The way into the inbox, on one thread that starts with the first event.

    Args:
        inbox: Where events are kept.
        prepare: Makes the control database where there is none yet; called once, if at all.
        parked: Told the tenants' ids of what was just parked; must be quick, and never raises.
        max_waiting: How many events may wait for the thread; a further one is refused, for the
            sender to try again.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        prepare: Callable[[], object] | None = None,
        parked: Callable[[frozenset[str]], object] | None = None,
        max_waiting: int = 4096,
    ) -> None:
        self.inbox = inbox
        self._prepare = prepare
        self._parked = parked
        self._max_waiting = max_waiting
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
        self._submit(_Job(arrival, readable, answer))
        return await answer

    def park_blocking(self, arrival: Arrival, *, readable: bool = True) -> Stored:
        """Store an event as `park` does, for a caller without an event loop."""
        answer: Future[Stored] = Future()
        self._submit(_Job(arrival, readable, answer))
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
            self._waiting.append(job)
            if not self._at_work:
                self._at_work = True
                self._threads().submit(self._drain)

    def _in_thread(self, function: Callable[..., None], *arguments: object) -> "Future[None]":
        with self._lock:
            if self._closed:
                raise ControlUnavailable("the application is stopping; send the event again")
            return self._threads().submit(function, *arguments)

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="tenantsync-inbox")
        return self._pool

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

    def _store(self, jobs: Sequence[_Job], *, readable: bool) -> None:
        store = self.inbox.park if readable else self.inbox.quarantine
        arrivals = [job.arrival for job in jobs]
        results: Sequence[Stored | TenantSyncError]
        try:
            results = self._prepared(store, arrivals)
        except TenantSyncError as error:
            results = [error] * len(jobs)
        except Exception as error:  # no sender may wait for ever
            failure = ControlUnavailable(f"the inbox failed unexpectedly ({type(error).__name__})")
            failure.__cause__ = error
            results = [failure] * len(jobs)
        answer_all((job.answer, result) for job, result in zip(jobs, results, strict=True))
        self._tell(
            frozenset(
                arrival.tenant_id
                for arrival, result in zip(arrivals, results, strict=True)
                if result is Stored.PARKED and arrival.known
            )
        )

    def _prepared(
        self, store: Callable[[Sequence[Arrival]], Sequence[Stored]], arrivals: Sequence[Arrival]
    ) -> Sequence[Stored]:
        try:
            return store(arrivals)
        except ControlMissing:
            # Once only: a file that was there and is gone is a disk that is not mounted.
            prepare, self._prepare = self._prepare, None
            if prepare is None:
                raise
            prepare()
            return store(arrivals)

    def _tell(self, tenant_ids: frozenset[str]) -> None:
        if tenant_ids and self._parked is not None:
            self._parked(tenant_ids)
