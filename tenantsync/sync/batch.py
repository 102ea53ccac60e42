"""How a batch of events is applied, and how it survives the failure of one of its places.

All together first, in a hurry: nobody waits long for another's lock. The place that holds the batch
up, or whose statement fails, is taken out by name, and the rest runs again at once. Who was taken
out is applied apart, with patience.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Final, TypeVar, cast

import msgspec
from sqlalchemy import Connection

from tenantsync.errors import (
    TenantNotIsolated,
    TenantNotMigrated,
    TenantSyncError,
)
from tenantsync.events import Event
from tenantsync.observe import Outcome
from tenantsync.steps import Step, reach
from tenantsync.sync.apply import (
    CommitFailed,
    Known,
    Limits,
    PlaceFailed,
    Store,
    Work,
    apply_batch,
    decide,
)
from tenantsync.sync.failures import (
    blames_event,
    is_locked,
    is_lost,
    is_silent,
    is_transient,
    is_waiting,
    translate,
)
from tenantsync.sync.hooks import Hook, run_hooks
from tenantsync.sync.merge import Tombstone
from tenantsync.sync.postgres import PostgresStore
from tenantsync.sync.sqlite import SqliteStore
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement

__all__ = ["Applier", "Result"]

Result = Outcome | TenantSyncError

_TRIES: Final = 4
_LOCK: Final = 0.1
"""Seconds that a shared transaction waits for a lock."""
_LEAST_LOCK: Final = 0.01
_STATEMENT: Final = 1.0
"""Seconds that one statement of a shared transaction may take."""
_T = TypeVar("_T")


class Applier:
    """Applies events to places, and answers for each of them.

    Args:
        registry: Where connections come from.
        isolation: Binds and proves.
        default_app_access: What `has_app_access` is until an event says something of it.
        statement_timeout: Seconds that one statement may take, waiting for locks included, in a
            transaction that holds up nobody else.
    """

    def __init__(
        self,
        registry: EngineRegistry,
        isolation: Isolation,
        *,
        default_app_access: bool = True,
        statement_timeout: float = 5.0,
    ) -> None:
        self._registry = registry
        self._isolation = isolation
        self._default_app_access = default_app_access
        self._postgres = PostgresStore(isolation)
        self._sqlite = SqliteStore(isolation)
        lock = min(_LOCK, statement_timeout)
        self._patient = Limits(None, statement_timeout)
        self._hooked_hurry = Limits(lock, statement_timeout)
        self._hurry = Limits(lock, min(_STATEMENT, statement_timeout))

    def apply(self, works: Sequence[Work]) -> list[list[Result] | None]:
        """Apply events that no hook wants, in a hurry, and return their results, place by place.

        Args:
            works: At most one per place, all of one database.

        Returns:
            The results of each place; None for one that held the others up, or failed for a reason
            that it is worth to look at apart: nothing of it was applied.
        """
        batch = _Batch(works)
        limits = replace(self._hurry, skip=len(works) > 1)
        last = False
        while batch.pending:
            try:
                batch.answer(self._together(batch.works, limits))
            except PlaceFailed as failure:
                cause = failure.__cause__ or failure
                batch.take_out(failure.index, cause)
                if limits.lock is not None and is_waiting(cause):
                    # When many places are locked, all of them together hold up the others little.
                    limits = replace(limits, lock=max(limits.lock / 2, _LEAST_LOCK))
            except CommitFailed as failure:
                self._part(batch, failure.__cause__ or failure)
                break
            except Exception as error:  # every sender gets an answer, whatever broke
                if not is_waiting(error):
                    batch.fail(error)
                    break
                if limits.skip or len(batch.pending) == 1:
                    break
                # The locks were not to be had in time; once more, without those that are held.
                limits, last = replace(self._hurry, skip=True), True
            else:
                if last or not limits.skip:
                    break
                # What is pending still is being written by another process, most likely, and
                # ready in a moment.
                limits = replace(self._hurry, skip=False)
        return batch.results

    def apply_apart(self, work: Work) -> list[Result]:
        """Apply one place's events with patience; where their data may be at fault, singly."""
        try:
            return self._alone(work)
        except (PlaceFailed, CommitFailed) as failure:
            cause = failure.__cause__ or failure
            single = blames_event(cause) or isinstance(failure, CommitFailed)
            if is_lost(cause) or not single:
                return _all_failed(work, cause)
        except Exception as error:  # every sender gets an answer, whatever broke
            return _all_failed(work, error)
        return self._singly(work, cause)

    def apply_hooked(
        self,
        event: Event,
        placement: Placement,
        hooks: tuple[Hook, ...],
        *,
        hurry: bool = False,
    ) -> Result | None:
        """Apply one event and call its hooks, in a transaction of their own.

        Alone, so that a hook that fails takes nothing with it but its event.

        Args:
            event: The event.
            placement: Where.
            hooks: What to call.
            hurry: Whether others wait: then None is returned, and nothing was applied, where a lock
                was not to be had at once.
        """
        limits = self._hooked_hurry if hurry else self._patient
        try:
            return self._tried(
                placement,
                limits,
                lambda connection: self._hooked(connection, event, placement, hooks, limits),
            )
        except Exception as error:  # the sender gets an answer, whatever broke
            known = isinstance(error, PlaceFailed | CommitFailed)
            cause = error.__cause__ or error if known else error
            if hurry and is_locked(cause):
                return None
            return translate(cause, placement, alone=True)

    def _together(self, works: Sequence[Work], limits: Limits) -> list[list[Outcome] | None]:
        placement = works[0].placement
        store = self._store(placement)
        return self._tried(
            placement,
            limits,
            lambda connection: apply_batch(
                connection, store, works, limits, default_app_access=self._default_app_access
            ),
        )

    def _tried(self, placement: Placement, limits: Limits, run: Callable[[Connection], _T]) -> _T:
        """Run in a connection; again where the server chose us as a victim, or went away."""
        # One server process that hangs is not the server: who is in a hurry asks another one.
        silences = 0 if limits.lock is None else 1
        for remaining in reversed(range(_TRIES)):
            connected = False
            try:
                with self._registry.connect(placement, answer_timeout=limits.answer) as connection:
                    connected = True
                    return run(connection)
            except Exception as error:
                cause = error.__cause__ if isinstance(error, PlaceFailed | CommitFailed) else error
                again = cause is not None and (is_transient(cause) or is_lost(cause))
                if cause is not None and is_silent(cause):
                    again = silences > 0
                    silences -= 1
                # Who cannot connect has waited long enough, and others wait behind.
                if not (remaining and again and connected):
                    raise
        raise AssertionError("unreachable")

    def _part(self, batch: "_Batch", error: BaseException) -> None:
        """Answer for a COMMIT that failed, which blames nobody."""
        if is_lost(error):
            batch.fail(error)
        elif len(batch.pending) > 1:
            for index in batch.pending:
                (batch.results[index],) = self.apply([batch.all[index]])

    def _alone(self, work: Work) -> list[Result]:
        (outcomes,) = self._together([work], self._patient)
        return list(outcomes or ())

    def _singly(self, work: Work, cause: BaseException) -> list[Result]:
        """Apply events one by one after they failed together."""
        if len(work.events) == 1:
            return [translate(cause, work.placement, alone=True)]
        results: list[Result] = []
        for index, event in enumerate(work.events):
            try:
                results += self._alone(Work(work.placement, [event]))
            except Exception as error:  # every sender gets an answer, whatever broke
                known = isinstance(error, PlaceFailed | CommitFailed)
                own = error.__cause__ or error if known else error
                if not (blames_event(own) or is_transient(own)):
                    # Not the event's fault, so the others need not find out one after the other.
                    rest = Work(work.placement, work.events[index:])
                    return results + _all_failed(rest, own)
                results.append(translate(own, work.placement, alone=True))
        return results

    def _hooked(
        self,
        connection: Connection,
        event: Event,
        placement: Placement,
        hooks: tuple[Hook, ...],
        limits: Limits,
    ) -> Outcome:
        store = self._store(placement)
        work = Work(placement, [event])
        with store.begin(connection, limits):
            (read,) = store.read(connection, [work], limits)
            known = cast("Known", read)
            reach(Step.READ)
            changes = decide([event], known, default_app_access=self._default_app_access)
            (outcome,) = changes.outcomes
            deleted = isinstance(known.people.get(event.sub or ""), Tombstone)
            if outcome is not Outcome.DUPLICATE:
                store.write(connection, [work], [changes], limits, commit=False)
                if not deleted:
                    stale = outcome is Outcome.STALE
                    shown = msgspec.structs.replace(event, stale=True) if stale else event
                    before = self._prove(connection, placement)
                    run_hooks(hooks, shown, connection, placement)
                    if self._prove(connection, placement) != before:
                        raise TenantNotIsolated(
                            f"the hooks for {event.type} left the transaction that they were given"
                        )
                    reach(Step.HOOKED)
        reach(Step.COMMITTED)
        return outcome

    def _prove(self, connection: Connection, placement: Placement) -> str:
        with closing(connection.connection.cursor()) as cursor:
            self._isolation.locate(cursor, placement)
            return self._isolation.confirm(cursor.fetchone(), placement)

    def _store(self, placement: Placement) -> Store:
        return self._postgres if placement.is_postgres else self._sqlite


_CERTAIN: Final = (TenantNotMigrated, TenantNotIsolated)


class _Batch:
    """What became of the places of one batch so far.

    Args:
        works: At most one per place.
    """

    def __init__(self, works: Sequence[Work]) -> None:
        self.all = works
        self.results: list[list[Result] | None] = [None] * len(works)
        self.pending = list(range(len(works)))

    @property
    def works(self) -> Sequence[Work]:
        """The works that are to be tried now."""
        if len(self.pending) == len(self.all):
            return self.all
        return [self.all[index] for index in self.pending]

    def answer(self, outcomes: Sequence[Sequence[Outcome] | None]) -> None:
        """Take the outcomes of what was pending; what was left out stays so."""
        left_out = []
        for index, told in zip(self.pending, outcomes, strict=True):
            if told is None:
                left_out.append(index)
            else:
                self.results[index] = list(told)
        self.pending = left_out

    def take_out(self, position: int, error: BaseException) -> None:
        """Take out the place of a pending work; answer for it where the reason leaves no doubt."""
        index = self.pending.pop(position)
        work = self.all[index]
        if isinstance(translate(error, work.placement), _CERTAIN):
            self.results[index] = _all_failed(work, error)

    def fail(self, error: BaseException) -> None:
        """Answer for everything pending with a failure that names no place."""
        for index in self.pending:
            self.results[index] = _all_failed(self.all[index], error)
        self.pending = []


def _all_failed(work: Work, error: BaseException) -> list[Result]:
    """Return the same failure for every event: the place cannot take any of them now."""
    return [translate(error, work.placement) for _ in work.events]
