"""How threads are had, and how they answer who waits for them, blocking or in an event loop."""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Final, TypeVar

from tenantsync.errors import TenantSyncError

__all__ = ["NO_THREAD", "Answer", "answer_all", "begun"]

_T = TypeVar("_T")
_R = TypeVar("_R")

NO_THREAD: Final = "the process may start no more threads: raise its limit"

Answer = Future[_T] | asyncio.Future[_T]
"""What a caller waits for: blocking, or in an event loop."""


def answer_all(answers: Iterable[tuple[Answer[_T], _T | TenantSyncError]]) -> None:
    """Answer everybody; those of one event loop with one call into it.

    Args:
        answers: Who waits, and what for: an error is raised there.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Answer[_T], _T | TenantSyncError]]] = {}
    for answer, result in answers:
        if isinstance(answer, asyncio.Future):
            by_loop.setdefault(answer.get_loop(), []).append((answer, result))
        else:
            _answer_each([(answer, result)])
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer_each, waiting)
        except RuntimeError:
            # The loop was closed: nobody waits there any more, and what was done is done.
            continue


def begun(
    threads: Executor, function: Callable[..., _R], *arguments: object
) -> "Future[_R] | None":
    """Have a function called on one of the threads; None where that cannot be relied on.

    So it is where the process may have no more threads. The function may be called all the same,
    once another thread has nothing to do: it must find out that nobody counts on it any more.

    Args:
        threads: Whose.
        function: What to call.
        arguments: What it is called with.
    """
    try:
        return threads.submit(function, *arguments)
    except RuntimeError:
        # The executor puts the call into its queue before it starts a thread for it.
        return None


def _answer_each(answers: Iterable[tuple[Answer[_T], _T | TenantSyncError]]) -> None:
    for answer, result in answers:
        if not answer.done():  # else the caller went away, or was answered before
            if isinstance(result, TenantSyncError):
                answer.set_exception(result)
            else:
                answer.set_result(result)
