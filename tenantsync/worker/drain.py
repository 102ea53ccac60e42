"""Drains one lane: applies a tenant's parked events, and tells the inbox what became of each.

A crash between the tenant's commit and the inbox's is harmless: the events are applied again, and
the tenant's ledger says that they are duplicates. docs/explanation/inbox.md tells the rest.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tenantsync.control.database import ControlUnavailable
from tenantsync.control.inbox import Entry, Inbox, Lane, LeaseLost, Settlement, State
from tenantsync.errors import (
    Malformed,
    Rejected,
    TenantSuspended,
    TenantSyncError,
    TenantUnavailable,
    UnknownTenant,
)
from tenantsync.events import Event, parse
from tenantsync.observe import Outcome
from tenantsync.steps import Step, reach
from tenantsync.sync.breaker import backoff
from tenantsync.tenancy.resolver import TenantHalfMade
from tenantsync.worker.seams import Drained, ParkedEvents, Provisioning

__all__ = ["Drainer"]

_LOG: Final = logging.getLogger("tenantsync")

_LONGEST: Final = 900.0
_MOST_ATTEMPTS: Final = 5
# How often a tenant is soon looked up again that is said to be there, but is not, or is suspended:
# the news of who was registered or resumed may not have come to our source yet.
_LOOKED_UP: Final = 3
_LONGEST_SENTENCE: Final = 500
_ANNOUNCEMENT: Final = "tenant.created"
# The first portion of a lane is small: until one was applied, nobody knows how slow its hooks are,
# and a portion that outlives the lease is applied by two.
_FIRST_PORTION: Final = 16

Result = Outcome | TenantSyncError


@dataclass(slots=True)
class _Visit:
    """What is known of a lane while it is drained.

    Args:
        lane: The lane.
        drained: What became of it so far.
        size: How many events to apply next.
        proven: Whether the tenant took an event a moment ago.
        asked_anew: Whether the tenant was looked up without what is remembered.
        provisioned: Whether the tenant was made just now.
        found: Whether there is such a tenant, for certain; None leaves that open.
    """

    lane: Lane
    drained: Drained
    size: int
    proven: bool = False
    asked_anew: bool = False
    provisioned: bool = False
    found: Literal[True] | None = None


class Drainer:
    """Drains lanes that somebody claimed. Several threads may share one.

    Args:
        inbox: Where the events are.
        handler: Applies them.
        provisioning: Makes announced tenants, or None where that is nobody's wish.
        owner: Who drains, for people who look at the lanes.
        lease: Seconds that a claim lasts; renewed between portions.
        batch: How many events are applied at once, at most.
        portions: How many portions are applied before other lanes have their turn.
        patience: Seconds on one lane before others have their turn.
        with_hooks: Whether the application's hooks are called.
        stopping: Set when the worker stops: what is in flight is finished, and nothing more begun.
        clock: Monotonic seconds.
        jitter: A random number from 0 up to 1, 1 excluded.
    """

    def __init__(
        self,
        inbox: Inbox,
        handler: ParkedEvents,
        *,
        provisioning: Provisioning | None = None,
        owner: str,
        lease: float = 60.0,
        batch: int = 128,
        portions: int = 32,
        patience: float = 10.0,
        with_hooks: bool = True,
        stopping: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._inbox = inbox
        self._handler = handler
        self._provisioning = provisioning
        self._owner = owner
        self._lease = lease
        self._batch = batch
        self._portions = portions
        self._patience = patience
        self._with_hooks = with_hooks
        self.stopping = stopping or threading.Event()
        self._clock = clock
        self._jitter = jitter

    def claim(self, tenant_id: str | None = None) -> Lane | None:
        """Lease the lane that is due longest, or this tenant's; None where there is none to have.

        Raises:
            ControlUnavailable: The inbox does not answer.
        """
        return self._inbox.claim(self._owner, lease=self._lease, tenant_id=tenant_id)

    def drain(self, lane: Lane) -> Drained:
        """Apply what a lane holds, and give it back.

        Args:
            lane: Claimed, and not given back.

        Raises:
            ControlUnavailable: The inbox does not answer. The lane comes free when its lease ends.
        """
        drained = Drained(lanes=1)
        try:
            try:
                self._drain(lane, drained)
            except (ControlUnavailable, LeaseLost):
                raise
            except Exception as error:  # a worker outlives whatever a lane does to it
                self._survive(lane, drained, type(error).__name__)
        except LeaseLost as error:
            # Somebody else has the lane by now, and what they do counts.
            drained.lost += 1
            drained.error = type(error).__name__
        return drained

    def _drain(self, lane: Lane, drained: Drained) -> None:
        started = renewed = self._clock()
        first = 1 if lane.attempts else min(_FIRST_PORTION, self._batch)
        visit = _Visit(lane, drained, first)
        portions = 0
        while True:
            begun = self._clock()
            entries = self._take(visit)
            if not entries:
                # What is left is not due yet.
                self._inbox.release(lane, known=visit.found)
                return
            trouble = self._apply(visit, entries)
            if trouble is not None and not self._overcome(visit, trouble):
                return
            now = self._clock()
            portions += 1
            turn_over = portions >= self._portions or now - started >= self._patience
            if turn_over or self.stopping.is_set():
                drained.unfinished += 1
                self._inbox.release(lane, known=visit.found)
                return
            if now - renewed >= self._lease / 4:
                self._inbox.renew(lane, lease=self._lease)
                renewed = now
            if now - begun >= self._lease / 8:
                visit.size = max(1, visit.size // 4)
            elif visit.proven:
                visit.size = min(self._batch, visit.size * 2)

    def _take(self, visit: _Visit) -> Sequence[Entry]:
        if not visit.lane.attempts or visit.proven:
            entries = self._inbox.take(visit.lane, limit=visit.size)
        else:
            # The probe is any of the first few: were it always the first one, a single event that
            # waits for somebody's lock would hold up all that are behind it.
            several = self._inbox.take(visit.lane, limit=_FIRST_PORTION)
            chosen = int(self._jitter() * len(several))
            entries = several[chosen : chosen + 1]
        reach(Step.LOADED)
        return entries

    def _apply(self, visit: _Visit, entries: Sequence[Entry]) -> TenantSyncError | None:
        """Apply a portion and settle it; return what is the matter with the tenant, if anything."""
        settlements: list[Settlement] = []
        readable: list[tuple[Entry, Event]] = []
        for entry in entries:
            read = _read(entry, visit.lane)
            if isinstance(read, Settlement):
                settlements.append(read)
            else:
                readable.append((entry, read))
        trouble: TenantSyncError | None = None
        touched = False
        if readable:
            results = self._results(visit, [event for _, event in readable])
            reach(Step.DRAINED)
            for (entry, _), result in zip(readable, results, strict=True):
                settlement = self._judged(entry, result)
                if settlement is not None:
                    settlements.append(settlement)
                elif isinstance(result, TenantSyncError):
                    trouble = result
            if any(_finds(result) for result in results):
                visit.found = True
            # What is ignored says nothing of the tenant's database.
            touched = any(result is not Outcome.IGNORED for result in results)
        if settlements:
            self._inbox.settle(visit.lane, settlements)
        _count(visit.drained, settlements)
        if trouble is None and touched:
            visit.proven = True
        return trouble

    def _results(self, visit: _Visit, events: Sequence[Event]) -> Sequence[Result]:
        results = self._applied(visit.lane, events)
        suspicious = any(isinstance(result, TenantUnavailable) for result in results)
        if len(events) == 1 or not visit.proven or not suspicious:
            return results
        # The tenant took others a moment ago. One event that waits for a lock on its own rows must
        # not hold up a lane of thousands: see who fails alone.
        deadline = self._clock() + self._lease / 4
        singly: list[Result] = []
        blamed: set[int] = set()
        for index, event in enumerate(events):
            (result,) = self._applied(visit.lane, [event])
            singly.append(result)
            if isinstance(result, TenantSyncError) and not result.blames_event:
                blamed.add(index)
                if index - 1 in blamed or self._clock() >= deadline:
                    # Two in a row: it is the tenant after all. The rest was not tried.
                    return [*singly, *[result] * (len(events) - len(singly))]
        return [
            _Alone(str(result)) if index in blamed else result
            for index, result in enumerate(singly)
        ]

    def _applied(self, lane: Lane, events: Sequence[Event]) -> Sequence[Result]:
        try:
            return self._handler.apply_parked(lane.tenant_id, events, with_hooks=self._with_hooks)
        except TenantSyncError as error:
            return [error] * len(events)

    def _judged(self, entry: Entry, result: Result) -> Settlement | None:
        """Return what to tell the inbox of an event; None where its tenant is the trouble."""
        if isinstance(result, Outcome):
            return Settlement(number=entry.number, outcome=result.value)
        failures = entry.attempts + 1
        hopeless = result.blames_event and failures >= _MOST_ATTEMPTS
        if hopeless or isinstance(result, Rejected):
            return Settlement(number=entry.number, error=_sentence(result), quarantine=True)
        if result.blames_event or isinstance(result, _Alone):
            due_in = backoff(failures, longest=_LONGEST, jitter=self._jitter)
            return Settlement(number=entry.number, error=_sentence(result), due_in=due_in)
        return None

    def _overcome(self, visit: _Visit, trouble: TenantSyncError) -> bool:
        """Say whether to go on; otherwise the lane was given back."""
        lane, drained = visit.lane, visit.drained
        drained.error = type(trouble).__name__
        if not isinstance(trouble, UnknownTenant | TenantSuspended | TenantHalfMade):
            self._give_up(lane, drained, drained.error, _sentence(trouble), known=visit.found)
            return False
        if not visit.asked_anew:
            # Whoever registered or resumed it may have done so a moment ago, in another process.
            visit.asked_anew = True
            self._handler.forget(lane.tenant_id)
            return True
        if isinstance(trouble, TenantSuspended):
            retry_in = _LONGEST if lane.attempts >= _LOOKED_UP else None
            self._give_up(
                lane, drained, drained.error, _sentence(trouble), retry_in, known=visit.found
            )
            return False
        if visit.provisioned:
            sentence = "the tenant was made, but is not yet found"
            self._give_up(lane, drained, drained.error, sentence, known=True)
            return False
        # Half made, too: whoever was killed while it made the tenant held this lane, and so nobody
        # is at it now; what was begun is finished.
        if self._announced(lane) and self._provisioning is not None:
            try:
                self._provisioning.provision(lane.tenant_id)
            except (ControlUnavailable, LeaseLost):
                raise
            except TenantSyncError as error:
                retry_in = getattr(error, "retry_in", None)
                # Strange until it is made: else whoever may announce tenants had no bound.
                self._give_up(
                    *(lane, drained, type(error).__name__, _sentence(error), retry_in),
                    known=False,
                )
                return False
            drained.provisioned += 1
            visit.provisioned = visit.found = True
            self._handler.forget(lane.tenant_id)
            return True
        if isinstance(trouble, TenantHalfMade):
            self._give_up(lane, drained, drained.error, _sentence(trouble))
            return False
        if lane.known and lane.attempts < _LOOKED_UP:
            self._give_up(lane, drained, drained.error, _sentence(trouble))
            return False
        drained.unknown += 1
        self._inbox.release(lane, retry_in=None, error=_sentence(trouble), known=False)
        return False

    def _announced(self, lane: Lane) -> bool:
        """Whether the provider announced the tenant, and the operator lets that make it."""
        if self._provisioning is None:
            return False
        announced = self._inbox.list(
            tenant_id=lane.tenant_id, type=_ANNOUNCEMENT, state=State.PARKED, limit=1
        )
        return bool(announced) and self._provisioning.allows(lane.tenant_id)

    def _survive(self, lane: Lane, drained: Drained, name: str) -> None:
        # The class only: the words may repeat what the events say.
        _LOG.error("tenantsync.worker_failed", extra={"error": name})
        self._give_up(lane, drained, name, f"applying its events failed unexpectedly ({name})")

    def _give_up(
        self,
        lane: Lane,
        drained: Drained,
        name: str,
        sentence: str,
        retry_in: float | None = None,
        *,
        known: bool | None = None,
    ) -> None:
        """Give the lane back, to be tried again after a while, also if nobody knows the tenant."""
        if retry_in is None:
            retry_in = backoff(lane.attempts + 1, longest=_LONGEST, jitter=self._jitter)
        drained.error = name
        drained.failed += 1
        self._inbox.release(lane, retry_in=retry_in, error=sentence, known=known, announced=True)


class _Alone(TenantUnavailable):
    """The tenant's database took other events, but not this one, for reasons that pass."""


def _finds(result: Result) -> bool:
    """Whether there is a tenant, to be told so; a database out of reach may be its source's."""
    return isinstance(result, Outcome | TenantSuspended) or result.blames_event


def _read(entry: Entry, lane: Lane) -> Event | Settlement:
    if entry.body is None:
        # The person was deleted for good meanwhile; whatever it said is older than that.
        return Settlement(number=entry.number, outcome=Outcome.STALE.value)
    try:
        event = parse(entry.body, signed_at=entry.signed_at)
    except Malformed as error:
        return Settlement(number=entry.number, error=_sentence(error), quarantine=True)
    if event.tenant_id != lane.tenant_id:
        return Settlement(
            number=entry.number,
            error="the body names another tenant than the one whose lane it is in",
            quarantine=True,
        )
    return event


def _count(drained: Drained, settlements: Sequence[Settlement]) -> None:
    for settlement in settlements:
        if settlement.outcome is not None:
            drained.settled[settlement.outcome] += 1
        elif settlement.quarantine:
            drained.quarantined += 1
        else:
            drained.delayed += 1


def _sentence(error: TenantSyncError) -> str:
    return (str(error) or type(error).__name__)[:_LONGEST_SENTENCE]
