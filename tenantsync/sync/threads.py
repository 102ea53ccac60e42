"""A few threads for many tenants, of which no tenant gets more than its share."""

import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tenantsync.errors import TenantUnavailable
from tenantsync.sync.futures import NO_THREAD, begun

__all__ = ["FairThreads"]

_T = TypeVar("_T")


@dataclass(slots=True, eq=False)
class _Job(Generic[_T]):
    function: Callable[[], _T]
    answer: "Future[_T]"
    taken: bool = False


@dataclass(slots=True, eq=False)
class _Queue:
    running: int = 0
    waiting: "deque[_Job[Any]]" = field(default_factory=deque)


class FairThreads:
    """Runs blocking functions on threads of its own, which start when they are needed.

    A tenant whose database hangs holds its share of the threads and no more; its further callers
    wait behind each other, and those of other tenants pass them by.

    Args:
        threads: How many functions run at once.
        share: How many of them may be for one tenant.
        max_waiting: How many more may wait for one tenant; a further one is refused.
        name: What the threads are called.
    """

    def __init__(
        self, threads: int, *, share: int, max_waiting: int = 256, name: str = "tenantsync"
    ) -> None:
        self._share = share
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._queues: dict[Hashable, _Queue] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._closed = False

    def submit(self, tenant: Hashable, function: Callable[[], _T]) -> "Future[_T]":
        """Run a function soon, and return where its answer will be. A cancelled one may not run.

        Args:
            tenant: For whom.
            function: What to call.

        Raises:
            TenantUnavailable: Too many wait for this tenant, no thread is to be had, or it is
                closed.
        """
        job = _Job(function, Future())
        with self._lock:
            if self._closed:
                raise TenantUnavailable("the application is stopping")
            queue = self._queues.setdefault(tenant, _Queue())
            if queue.running < self._share:
                if begun(self._pool, self._run, tenant, queue, job) is None:
                    job.taken = True
                    if not queue.running:
                        del self._queues[tenant]
                    raise TenantUnavailable(NO_THREAD)
                queue.running += 1
            elif len(queue.waiting) < self._max_waiting:
                queue.waiting.append(job)
            else:
                raise TenantUnavailable(
                    f"{self._max_waiting} callers wait for this tenant's database already"
                )
        return job.answer

    def close(self) -> None:
        """Refuse what comes, give up what waits, and end the threads when they are done."""
        with self._lock:
            self._closed = True
            waiting = [job for queue in self._queues.values() for job in queue.waiting]
            for queue in self._queues.values():
                queue.waiting.clear()
        for job in waiting:
            if job.answer.set_running_or_notify_cancel():
                job.answer.set_exception(TenantUnavailable("the application is stopping"))
        self._pool.shutdown(wait=True)

    def _run(self, tenant: Hashable, queue: _Queue, job: _Job[Any]) -> None:
        with self._lock:
            if job.taken:
                return  # called off, or taken by who could not have another thread for it
            job.taken = True
        following: _Job[Any] | None = job
        while following is not None:
            _answer(following)
            following = self._pass_on(tenant, queue)

    def _pass_on(self, tenant: Hashable, queue: _Queue) -> _Job[Any] | None:
        """Return the job that this thread has to take itself, where there is no other one."""
        with self._lock:
            if not queue.waiting:
                queue.running -= 1
                if not queue.running:
                    del self._queues[tenant]
                return None
            job = queue.waiting.popleft()
            # At the end of the pool's queue, so that other tenants get their turn before.
            if begun(self._pool, self._run, tenant, queue, job) is not None:
                return None
            job.taken = True
            return job


def _answer(job: _Job[Any]) -> None:
    if not job.answer.set_running_or_notify_cancel():
        return
    try:
        result = job.function()
    except BaseException as error:  # whoever waits gets an answer, whatever broke
        job.answer.set_exception(error)
    else:
        job.answer.set_result(result)
