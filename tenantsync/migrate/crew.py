"""Threads that work through what they are given, and the tally of what became of it."""

import queue
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from tenantsync.migrate.report import Report, Row, State

__all__ = ["Crew", "Progress", "Tally"]

Progress = Callable[[Row, int, int], object]
"""Called after each tenant with its row, how many are done, and how many there are; never twice at
a time, but with several jobs from their threads."""

_AHEAD: Final = 4


class Hand(Protocol):
    """Somebody who works, with what is open for it."""

    def close(self) -> None:
        """Close what is open."""


_H = TypeVar("_H", bound=Hand)


class Tally:
    """What became of the tenants so far, and whether the run goes on.

    Args:
        total: How many tenants there are.
        on_progress: Is called for each row.
        keep_rows: Whether rows of tenants that are well are kept too.
        fail_fast: Whether the first failure ends the run.
        max_failures: How many failures there may be before the run ends; None for any number.
    """

    def __init__(
        self,
        total: int,
        on_progress: Progress | None,
        *,
        keep_rows: bool = True,
        fail_fast: bool = False,
        max_failures: int | None = None,
    ) -> None:
        self._total = total
        self._on_progress = on_progress
        self._keep_rows = keep_rows
        self._max_failures = 0 if fail_fast else max_failures
        self._lock = threading.Lock()
        self._rows: list[tuple[int, Row]] = []
        self._counts: Counter[State] = Counter()
        self._done = 0
        self.failures = 0
        self.stopped: str | None = None

    def add(self, index: int, row: Row, *, everywhere: bool = False) -> None:
        """Count one tenant.

        Args:
            index: Which one it is, in the order in which they were given.
            row: What became of it.
            everywhere: Whether that would happen to every tenant.
        """
        with self._lock:
            self._done += 1
            self._counts[row.state] += 1
            if self._keep_rows or not row.ok:
                self._rows.append((index, row))
            if not row.ok:
                self.failures += 1
                if everywhere:
                    self.stopped = row.error
                elif self._max_failures is not None and self.failures > self._max_failures:
                    self.stopped = f"{_times(self.failures)} failed"
            if self._on_progress:
                self._on_progress(row, self._done, self._total)

    def stop_if(self, limit: int, where: str) -> None:
        """Stop the run if more than so many failed so far."""
        with self._lock:
            if self.stopped is None and self.failures > limit:
                self.stopped = f"{_times(self.failures)} of {where} failed"

    def report(self, heads: tuple[str, ...]) -> Report:
        """Return the report of the run."""
        rows = tuple(row for _, row in sorted(self._rows, key=lambda pair: pair[0]))
        counts = {state: self._counts[state] for state in State if self._counts[state]}
        return Report(heads, rows, counts, self._total - self._done, self.stopped)


class Crew(Generic[_H]):
    """Some threads, each with a hand of its own; one job needs no thread.

    Args:
        jobs: How many work at once.
        hire: Makes a hand; called in the thread that it works in.
        ahead: How many errands may wait for each thread.
    """

    def __init__(self, jobs: int, hire: Callable[[], _H], *, ahead: int = _AHEAD) -> None:
        self._hire = hire
        self._jobs = jobs
        self._queue: queue.Queue[Callable[[_H], object] | None] = queue.Queue(jobs * ahead)
        self._threads: list[threading.Thread] = []
        self._own: _H | None = None
        self._failed: BaseException | None = None
        self._leaving = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Whoever is in the middle of a tenant finishes it; what waits is left.
        self._leaving = error is not None
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if self._own is not None:
            self._own.close()

    def give(self, errand: Callable[[_H], object]) -> None:
        """Have one hand do something, now or soon; waits while all have enough to do."""
        if self._jobs == 1:
            if self._own is None:
                self._own = self._hire()
            errand(self._own)
            return
        if len(self._threads) < self._jobs:
            thread = threading.Thread(target=self._work, name="tenantsync-migrate", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put(errand)

    def drain(self) -> None:
        """Wait until all is done.

        Raises:
            BaseException: What an errand raised; it should have told the tally instead.
        """
        self._queue.join()
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        hand = self._hire()
        try:
            while (errand := self._queue.get()) is not None:
                try:
                    if not self._leaving and self._failed is None:
                        errand(hand)
                except BaseException as error:  # it is raised again by `drain`
                    self._failed = error
                finally:
                    self._queue.task_done()
        finally:
            hand.close()


def _times(count: int) -> str:
    return "1 tenant" if count == 1 else f"{count} tenants"
