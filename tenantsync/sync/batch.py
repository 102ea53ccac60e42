"""How a batch of events is applied, and how it survives the failure of one of its places.

All together first. When a statement fails, the place that it was for is taken out and handled
alone, and the rest runs once more. Only a failed COMMIT, which blames nobody, makes everyone run
alone.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
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
from tenantsync.sync.apply import CommitFailed, PlaceFailed, Store, Work, apply_batch, decide
from tenantsync.sync.failures import blames_event, is_lost, is_transient, is_waiting, translate
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
_T = TypeVar("_T")


class Applier:
    """Applies events to places, and answers for each of them.

    Args:
        registry: Where connections come from.
        isolation: Binds and proves.
        default_app_access: What `has_app_access` is until an event says something of it.
        statement_timeout: Seconds that one statement may take, waiting for locks included.
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
        self._postgres = PostgresStore(isolation, statement_timeout=statement_timeout)
        self._sqlite = SqliteStore(isolation)

    def apply(self, works: Sequence[Work]) -> list[list[Result]]:
        """Apply events that no hook wants, and return their results, place by place.

        Args:
            works: At most one per place, all of one database.
        """
        try:
            return self._together(works)
        except PlaceFailed as failure:
            rest = [work for index, work in enumerate(works) if index != failure.index]
            results = self._once_more(rest) if rest else []
            results.insert(failure.index, self._alone(works[failure.index], failure.__cause__))
            return results
        except CommitFailed as failure:
            if is_lost(cast("Exception", failure.__cause__)):
                return _all_failed(works, failure.__cause__)
            return [self._alone(work) for work in works]
        except Exception as error:  # every sender gets an answer, whatever broke
            return self._blameless(works, error)

    def apply_hooked(self, event: Event, placement: Placement, hooks: tuple[Hook, ...]) -> Result:
        """Apply one event and call its hooks, in a transaction of their own.

        Alone, so that a hook that fails takes nothing with it but its event.
        """
        try:
            return self._tried(
                placement, lambda connection: self._hooked(connection, event, placement, hooks)
            )
        except (PlaceFailed, CommitFailed) as failure:
            return translate(failure.__cause__ or failure, placement)
        except Exception as error:  # the sender gets an answer, whatever broke
            return translate(error, placement)

    def _together(self, works: Sequence[Work]) -> list[list[Result]]:
        placement = works[0].placement
        store = self._store(placement)
        return self._tried(
            placement,
            lambda connection: cast(
                "list[list[Result]]",
                apply_batch(connection, store, works, default_app_access=self._default_app_access),
            ),
        )

    def _tried(self, placement: Placement, run: Callable[[Connection], _T]) -> _T:
        """Run in a connection; again where the server chose us as a victim, or went away."""
        for remaining in reversed(range(_TRIES)):
            connected = False
            try:
                with self._registry.connect(placement) as connection:
                    connected = True
                    return run(connection)
            except Exception as error:
                cause = error.__cause__ if isinstance(error, PlaceFailed | CommitFailed) else error
                again = cause is not None and (is_transient(cause) or is_lost(cause))
                # Who cannot connect has waited long enough, and others wait behind.
                if not (remaining and again and connected):
                    raise
        raise AssertionError("unreachable")

    def _once_more(self, works: Sequence[Work]) -> list[list[Result]]:
        try:
            return self._together(works)
        except PlaceFailed as failure:
            return [
                self._alone(work, failure.__cause__ if index == failure.index else None)
                for index, work in enumerate(works)
            ]
        except CommitFailed:
            return [self._alone(work) for work in works]
        except Exception as error:  # every sender gets an answer, whatever broke
            return self._blameless(works, error)

    def _blameless(self, works: Sequence[Work], error: Exception) -> list[list[Result]]:
        """Answer for a failure that names no place."""
        if len(works) > 1 and is_waiting(error):
            # One place's lock is held by somebody else, and all were asked for at once.
            return [self._alone(work) for work in works]
        return _all_failed(works, error)

    def _alone(self, work: Work, cause: BaseException | None = None) -> list[Result]:
        """Apply one place's events without company; then, if its data may be at fault, singly.

        Args:
            work: The place and its events.
            cause: What this place is known to have failed of; None if another one failed.
        """
        if isinstance(translate(cause or Exception(), work.placement), _CERTAIN):
            return _all_failed([work], cause)[0]
        try:
            return self._together([work])[0]
        except (PlaceFailed, CommitFailed) as failure:
            again = failure.__cause__ or failure
            if len(work.events) == 1 or not (
                blames_event(again) or isinstance(failure, CommitFailed)
            ):
                return _all_failed([work], again)[0]
            return [self._alone(Work(work.placement, [event]), again)[0] for event in work.events]
        except Exception as error:  # every sender gets an answer, whatever broke
            return _all_failed([work], error)[0]

    def _hooked(
        self, connection: Connection, event: Event, placement: Placement, hooks: tuple[Hook, ...]
    ) -> Outcome:
        store = self._store(placement)
        work = Work(placement, [event])
        with connection.begin():
            (known,) = store.read(connection, [work])
            changes = decide([event], known, default_app_access=self._default_app_access)
            (outcome,) = changes.outcomes
            deleted = isinstance(known.people.get(event.sub or ""), Tombstone)
            if outcome is not Outcome.DUPLICATE:
                store.write(connection, [work], [changes], commit=False)
                if not deleted:
                    stale = outcome is Outcome.STALE
                    shown = msgspec.structs.replace(event, stale=True) if stale else event
                    before = self._prove(connection, placement)
                    run_hooks(hooks, shown, connection, placement)
                    if self._prove(connection, placement) != before:
                        raise TenantNotIsolated(
                            f"the hooks for {event.type} left the transaction that they were given"
                        )
        return outcome

    def _prove(self, connection: Connection, placement: Placement) -> str:
        with closing(connection.connection.cursor()) as cursor:
            self._isolation.locate(cursor, placement)
            return self._isolation.confirm(cursor.fetchone(), placement)

    def _store(self, placement: Placement) -> Store:
        return self._postgres if placement.is_postgres else self._sqlite


_CERTAIN: Final = (TenantNotMigrated, TenantNotIsolated)


def _all_failed(works: Sequence[Work], error: BaseException | None) -> list[list[Result]]:
    """Return the same failure for every event: the place cannot take any of them now."""
    return [
        [translate(error or Exception(), work.placement) for _ in work.events] for work in works
    ]
