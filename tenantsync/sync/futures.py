"""How threads answer those who wait for them: many at once, whether they block or await."""

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TypeVar

from tenantsync.errors import TenantSyncError

__all__ = ["Answer", "answer_all"]

_T = TypeVar("_T")

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
            _answer(answer, result)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer_each, waiting)
        except RuntimeError:
            # The loop was closed: nobody waits there any more, and what was done is done.
            continue


def _answer_each(answers: Iterable[tuple[Answer[_T], _T | TenantSyncError]]) -> None:
    for answer, result in answers:
        if not answer.done():  # else the caller went away
            _answer(answer, result)


def _answer(answer: Answer[_T], result: _T | TenantSyncError) -> None:
    if isinstance(result, TenantSyncError):
        answer.set_exception(result)
    else:
        answer.set_result(result)
