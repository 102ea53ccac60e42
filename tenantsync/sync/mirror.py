"""What reconciliation does to a tenant's place: read its people a page at a time, take evidence.

Apart from the writers of live events: a place's lock keeps the two in turn, a portion at a time.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, TypeVar

from sqlalchemy import Connection

from tenantsync.events import Event
from tenantsync.sync.apply import (
    CommitFailed,
    Limits,
    PlaceFailed,
    Store,
    Weighed,
    Work,
    apply_evidence,
)
from tenantsync.sync.evidence import Evidence
from tenantsync.sync.failures import is_lost, is_silent, is_transient, translate
from tenantsync.sync.merge import Person
from tenantsync.sync.postgres import PostgresStore
from tenantsync.sync.sqlite import SqliteStore
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement

__all__ = ["Mirror"]

_TRIES: Final = 4
_T = TypeVar("_T")


class Mirror:
    """The mirrored people of any place.

    Every method raises a TenantSyncError where the place cannot be had now, or refuses.

    Args:
        registry: Where connections come from.
        isolation: Binds a transaction to a place and proves it.
        default_app_access: What `has_app_access` of a new row is.
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
        self.default_app_access: Final = default_app_access
        self._registry = registry
        self._postgres = PostgresStore(isolation)
        self._sqlite = SqliteStore(isolation)
        self._limits = Limits(None, statement_timeout)

    def people(self, placement: Placement, *, size: int = 500) -> Iterator[tuple[str, Person]]:
        """Yield everybody whom the place knows, with their id, by id.

        Each page is a transaction of its own, so that none is open for long: who comes or changes
        meanwhile may be seen as before or as after.

        Args:
            placement: Whose people.
            size: How many are read at once.
        """
        after = ""
        while page := self._page(placement, after, size):
            yield from page
            after = page[-1][0]
            if len(page) < size:
                break

    def buried(self, placement: Placement, subjects: Collection[str]) -> frozenset[str]:
        """Return which of some people were deleted for good."""
        store = self._store(placement)
        return self._tried(
            placement,
            lambda connection: store.buried(connection, placement, subjects, self._limits),
        )

    def take(
        self,
        placement: Placement,
        evidence: Sequence[Evidence],
        *,
        take_away: bool = True,
        changed: Callable[[str], object] | None = None,
    ) -> Weighed:
        """Apply evidence in one transaction, and return what it changed.

        Args:
            placement: Whose people.
            evidence: At most one for each of them, and a few hundred.
            take_away: Whether people may lose access by it; what would do so is left out otherwise.
            changed: Told of everybody whose row was changed, after the commit. Where it is not
                known whether it was, of everybody whom the evidence is about.

        Raises:
            EventRefused: A constraint or trigger of the application's own refuses some of it.
                Nothing of it was written.
        """
        store = self._store(placement)
        work = Work(placement, evidence=evidence)
        attempts = 0

        def apply(connection: Connection) -> Weighed:
            nonlocal attempts
            attempts += 1
            return apply_evidence(
                connection,
                store,
                work,
                self._limits,
                default_app_access=self.default_app_access,
                take_away=take_away,
            )

        touched: Iterable[str] = [each.sub for each in evidence]
        try:
            weighed = self._tried(placement, apply)
            if attempts == 1:
                touched = weighed.changes.people
            return weighed
        finally:
            # Also after an error: the COMMIT may have got through, and only its answer not.
            if changed is not None and attempts:
                for sub in touched:
                    changed(sub)

    def known(self, placement: Placement, events: Sequence[Event]) -> dict[str, Person]:
        """Return what is known now of those whom events are about; who has no row is not in it."""
        store = self._store(placement)

        def read(connection: Connection) -> dict[str, Person]:
            with store.begin(connection, self._limits):
                (held,) = store.read(connection, [Work(placement, events)], self._limits)
            people = {} if held is None else held.people
            return {sub: each for sub, each in people.items() if isinstance(each, Person)}

        return self._tried(placement, read)

    def _page(self, placement: Placement, after: str, size: int) -> list[tuple[str, Person]]:
        store = self._store(placement)
        return self._tried(
            placement,
            lambda connection: store.page(connection, placement, after, size, self._limits),
        )

    def _tried(self, placement: Placement, run: Callable[[Connection], _T]) -> _T:
        """Run in a connection; again where the server chose us as a victim, or went away.

        Evidence that was committed although it did not look so is unchanged the second time.
        """
        for remaining in reversed(range(_TRIES)):
            connected = False
            try:
                with self._registry.connect(
                    placement, answer_timeout=self._limits.answer
                ) as connection:
                    connected = True
                    return run(connection)
            except Exception as error:
                known = isinstance(error, PlaceFailed | CommitFailed)
                cause = error.__cause__ or error if known else error
                passing = (is_transient(cause) or is_lost(cause)) and not is_silent(cause)
                if not (remaining and connected and passing):
                    raise translate(cause, placement, alone=True) from cause
        raise AssertionError("unreachable")

    def _store(self, placement: Placement) -> Store:
        return self._postgres if placement.is_postgres else self._sqlite
