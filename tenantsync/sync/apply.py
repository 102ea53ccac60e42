"""One transaction: read what is known, merge, write, commit. The only way from events to rows.

Many events share a transaction, each bound to and proven in its own place. What differs between
PostgreSQL and SQLite is behind `Store`; which events change what is decided here, once, by the
merge.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection

from tenantsync.events import Event
from tenantsync.observe import Outcome
from tenantsync.sync.merge import Person, Tombstone, merge
from tenantsync.tenants import Placement

__all__ = [
    "Changes",
    "CommitFailed",
    "Known",
    "PlaceFailed",
    "Store",
    "Work",
    "apply_batch",
    "decide",
]


@dataclass(frozen=True, slots=True)
class Work:
    """The events of one place.

    By place and not by tenant: under the `single` strategy tenants share rows, and two that were
    read apart and written one after the other would lose an update.
    """

    placement: Placement
    events: Sequence[Event]


@dataclass(frozen=True, slots=True)
class Known:
    """What a place held about a few events and people, read under its lock.

    Args:
        seen: Which of the event ids the ledger has.
        people: Subject -> what is known; who was never mentioned is not in it.
    """

    seen: frozenset[str]
    people: dict[str, Person | Tombstone]


@dataclass(slots=True)
class Changes:
    """What is to be written to one place.

    Args:
        outcomes: One per event, in their order.
        ledger: The events that are new, each with its outcome.
        before: Subject -> what was known of the person before.
        people: Subject -> the row it shall have.
        tombstones: Subject -> clock; their rows go.
        sessions: Subject -> end the sessions created before this moment, in milliseconds since
            1970.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    ledger: list[tuple[Event, Outcome]] = field(default_factory=list)
    before: Mapping[str, Person | Tombstone] = field(default_factory=dict, compare=False)
    people: dict[str, Person] = field(default_factory=dict)
    tombstones: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, int] = field(default_factory=dict)


class PlaceFailed(Exception):
    """A statement for one place failed; the transaction is lost, the other places are not to blame.

    Args:
        index: Which of the batch's works it was.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class CommitFailed(Exception):
    """The COMMIT failed, and blames no place; its cause is the driver's error."""


class Store(Protocol):
    """How one kind of database is read and written. Every method runs in the open transaction."""

    def read(self, connection: Connection, works: Sequence[Work]) -> list[Known]:
        """Lock, bind, read and prove all places.

        Raises:
            PlaceFailed: A statement for one place failed; its cause is the driver's error or
                TenantNotIsolated.
        """

    def write(
        self,
        connection: Connection,
        works: Sequence[Work],
        changes: Sequence[Changes],
        *,
        commit: bool,
    ) -> None:
        """Write all places, and commit if asked to.

        Raises:
            PlaceFailed: A statement for one place failed.
        """


def decide(events: Iterable[Event], known: Known, *, default_app_access: bool) -> Changes:
    """Return what the events change. Pure.

    Args:
        events: In any order; the result does not depend on it.
        known: What the place holds about their ids and subjects.
        default_app_access: What `has_app_access` is until an event says something of it.
    """
    changes = Changes(before=known.people)
    seen = set(known.seen)
    people = dict(known.people)
    for event in events:
        outcome = Outcome.IGNORED
        if event.id in seen:
            changes.outcomes.append(Outcome.DUPLICATE)
            continue
        seen.add(event.id)
        subject = event.sub
        if event.mirrored and subject is not None:
            before = people.get(subject)
            merged = merge(before, event, default_app_access=default_app_access)
            outcome = Outcome.APPLIED if merged.applied else Outcome.STALE
            if merged.state is not before:
                people[subject] = merged.state
                if isinstance(merged.state, Tombstone):
                    changes.tombstones[subject] = merged.state.clock
                    changes.people.pop(subject, None)
                else:
                    changes.people[subject] = merged.state
            if merged.sessions_before is not None:
                changes.sessions[subject] = max(
                    merged.sessions_before, changes.sessions.get(subject, 0)
                )
        changes.outcomes.append(outcome)
        changes.ledger.append((event, outcome))
    return changes


def apply_batch(
    connection: Connection, store: Store, works: Sequence[Work], *, default_app_access: bool
) -> list[list[Outcome]]:
    """Apply events without hooks in one transaction, and return their outcomes, place by place.

    Args:
        connection: Fresh from the registry: in no transaction.
        store: The kind of database it leads to.
        works: At most one per place.
        default_app_access: What `has_app_access` is until an event says something of it.

    Raises:
        PlaceFailed: A statement for one place failed.
        CommitFailed: Everything was written, and then the COMMIT failed.
        Exception: The driver's error where no place is to blame, such as a lock not granted.
    """
    with connection.begin():
        known = store.read(connection, works)
        changes = [
            decide(work.events, held, default_app_access=default_app_access)
            for work, held in zip(works, known, strict=True)
        ]
        try:
            store.write(connection, works, changes, commit=True)
        except PlaceFailed:
            raise
        except Exception as error:
            raise CommitFailed from error
    return [change.outcomes for change in changes]
