"""The events that wait for a writer: how they are taken in batches, and what is said of them."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, cast

from tenantsync.errors import TenantSyncError, TenantUnavailable
from tenantsync.events import Event
from tenantsync.observe import Outcome
from tenantsync.sync.batch import Result
from tenantsync.sync.breaker import BreakerOpen, Breakers
from tenantsync.sync.failures import blames_place
from tenantsync.sync.futures import Answer
from tenantsync.sync.hooks import Hook
from tenantsync.tenants import Placement

__all__ = [
    "Answers",
    "Job",
    "broken",
    "failure_in",
    "judge",
    "paired",
    "refused_late",
    "refused_open",
    "result_of",
    "stopping",
    "take",
]

_MOST_EVENTS: Final = 128
# A place's read takes about nine locks, and the server's table holds about 6,400 of them; nothing
# was gained by more places in one transaction.
_MOST_PLACES: Final = 32


@dataclass(slots=True, eq=False)
class Job:
    """An event that waits to be written, and who waits for it.

    Args:
        event: The event.
        placement: Where it belongs.
        hooks: What is to be called for it.
        answer: Where its outcome goes.
        forced: Whether it is tried even where the breaker is open: a probe, or a worker's.
        since: When it came to its place's own lane, in seconds of the writer's clock.
    """

    event: Event
    placement: Placement
    hooks: tuple[Hook, ...]
    answer: Answer[Outcome]
    forced: bool = False
    since: float = 0.0


Answers = list[tuple[Answer[Outcome], Result]]
"""Who is to be answered, and what."""


def take(waiting: deque[Job]) -> list[Job]:
    """Remove and return the next batch: one job with hooks, or many without."""
    taken: list[Job] = []
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


def failure_in(results: Sequence[Result]) -> TenantSyncError | None:
    """Return why the place took nothing; None if it did, or had a word to say on an event."""
    failure = None
    for result in results:
        if not isinstance(result, TenantSyncError) or result.blames_event:
            return None
        failure = result
    return failure


def judge(breakers: Breakers, place: Placement, results: Sequence[Result]) -> bool:
    """Tell the place's breaker of one transaction, and return whether that closed it."""
    failure = failure_in(results)
    if failure is None:
        return breakers.succeeded(place)
    if blames_place(failure):
        breakers.failed(place)
    else:
        breakers.abandoned(place)
    return False


def paired(jobs: Sequence[Job], results: Sequence[Result]) -> Answers:
    """Return who is to be answered with what, in their order."""
    return [(job.answer, result) for job, result in zip(jobs, results, strict=True)]


def result_of(answer: Answer[Outcome]) -> Result:
    """Wait for a blocking answer; an error of ours is returned, not raised."""
    try:
        return cast("Future[Outcome]", answer).result()
    except TenantSyncError as error:
        return error


def broken(error: BaseException) -> TenantUnavailable:
    """Return what senders are told of a mistake of our own."""
    failure = TenantUnavailable(f"the writer failed unexpectedly ({type(error).__name__})")
    failure.__cause__ = error
    return failure


def stopping() -> TenantUnavailable:
    """Return what senders are told once the writer is closed."""
    return TenantUnavailable("the application is stopping; send the event again")


def refused_open(place: Placement) -> BreakerOpen:
    """Return what senders are told while the place's breaker is open."""
    return BreakerOpen(f"{place} failed several times in a row: it is asked again after a while")


def refused_late(place: Placement, seconds: float) -> TenantUnavailable:
    """Return what senders are told whose event waited so long for its turn."""
    return TenantUnavailable(f"{place} is too slow: the event waited {seconds:g} s for its turn")
