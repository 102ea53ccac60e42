"""One transaction: read what is known, merge, write, commit. The only way from events to rows.

Many events share a transaction, each bound to and proven in its own place. What differs between
PostgreSQL and SQLite is behind `Store`; which events change what is decided here, once, by the
merge.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection

from tenantsync.events import Event
from tenantsync.observe import Outcome
from tenantsync.steps import Step, reach
from tenantsync.sync.evidence import Evidence
from tenantsync.sync.merge import Person, Tombstone, merge
from tenantsync.sync.standing import loses
from tenantsync.tenants import Placement

__all__ = [
    "Changes",
    "CommitFailed",
    "Known",
    "Limits",
    "PlaceFailed",
    "Store",
    "Weighed",
    "Work",
    "apply_batch",
    "apply_evidence",
    "decide",
    "weigh",
]


@dataclass(frozen=True, slots=True)
class Work:
    """The events of one place, or evidence for it.

    By place and not by tenant: under the `single` strategy tenants share rows, and two that were
    read apart and written one after the other would lose an update.
    """

    placement: Placement
    events: Sequence[Event] = ()
    evidence: Sequence[Evidence] = ()

    def subjects(self) -> list[str]:
        """Return whom it is about, everybody once."""
        subjects = {event.sub for event in self.events if event.sub}
        if self.evidence:
            subjects.update(each.sub for each in self.evidence)
        return list(subjects)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long one transaction may take, and so hold up those who wait behind it.

    Args:
        lock: Seconds to wait for a lock; None for as long as a statement may take.
        statement: Seconds that one statement may take, on PostgreSQL.
        skip: Whether a place whose advisory lock somebody else holds is left out at once.
    """

    lock: float | None
    statement: float
    skip: bool = False

    @property
    def answer(self) -> float:
        """Seconds to wait for a server that should long have ended the statement by itself."""
        return self.statement + 1.0


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
        advanced: Subject -> a row of which only clocks and the time of creation change: what is
            known was confirmed.
        tombstones: Subject -> clock; their rows go.
        sessions: Subject -> end the sessions created before this moment, in milliseconds since
            1970.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    ledger: list[tuple[Event, Outcome]] = field(default_factory=list)
    before: Mapping[str, Person | Tombstone] = field(default_factory=dict, compare=False)
    people: dict[str, Person] = field(default_factory=dict)
    advanced: dict[str, Person] = field(default_factory=dict)
    tombstones: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, int] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.ledger or self.people or self.advanced or self.sessions)


@dataclass(slots=True)
class Weighed:
    """What evidence changes in one place.

    Args:
        changes: What is to be written.
        added: How many people were not known.
        changed: Of how many something was different.
        unchanged: How many are as they were, or are known better from newer events.
        held_back: How many were left as they are because nothing may be taken away.
    """

    changes: Changes
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    held_back: int = 0


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

    def begin(self, connection: Connection, limits: Limits) -> AbstractContextManager[object]:
        """Return the transaction, begun: committed on leaving, or rolled back on an error."""

    def read(
        self, connection: Connection, works: Sequence[Work], limits: Limits
    ) -> list[Known | None]:
        """Lock, bind, read and prove all places; None for one that was left out.

        Raises:
            PlaceFailed: A statement for one place failed; its cause is the driver's error or
                TenantNotIsolated.
        """

    def write(
        self,
        connection: Connection,
        works: Sequence[Work],
        changes: Sequence[Changes],
        limits: Limits,
        *,
        commit: bool,
    ) -> None:
        """Write all places, and commit if asked to.

        Raises:
            PlaceFailed: A statement for one place failed.
        """

    def page(
        self, connection: Connection, placement: Placement, after: str, size: int, limits: Limits
    ) -> list[tuple[str, Person]]:
        """Return the next rows of a place by id, in a transaction of its own that locks nothing.

        Args:
            connection: In no transaction.
            placement: Whose rows.
            after: The last id of the page before; "" begins.
            size: How many rows at most.
            limits: How long it may take.
        """

    def buried(
        self,
        connection: Connection,
        placement: Placement,
        subjects: Collection[str],
        limits: Limits,
    ) -> frozenset[str]:
        """Return which of some people were deleted for good, likewise."""


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


def weigh(
    evidence: Iterable[Evidence],
    known: Known,
    *,
    default_app_access: bool,
    take_away: bool = True,
) -> Weighed:
    """Return what evidence changes. Pure.

    Args:
        evidence: At most one for each person.
        known: What the place holds about them.
        default_app_access: What `has_app_access` is until an event says something of it.
        take_away: Whether people may lose access by it; what would do so is left out otherwise.
    """
    weighed = Weighed(Changes(before=known.people))
    changes = weighed.changes
    for each in evidence:
        before = known.people.get(each.sub)
        if each.only_listed and before is None:
            continue
        merged = merge(before, each, default_app_access=default_app_access)
        after = merged.state
        if not take_away and loses(before, after, each.tenant_id):
            weighed.held_back += 1
            continue
        if merged.sessions_before is not None:
            changes.sessions[each.sub] = merged.sessions_before
        if after is before or not isinstance(after, Person):
            weighed.unchanged += 1
        elif isinstance(before, Person) and after.values == before.values:
            weighed.unchanged += 1
            changes.advanced[each.sub] = after
        else:
            weighed.added += before is None
            weighed.changed += before is not None
            changes.people[each.sub] = after
    return weighed


def apply_evidence(
    connection: Connection,
    store: Store,
    work: Work,
    limits: Limits,
    *,
    default_app_access: bool,
    take_away: bool = True,
) -> Weighed:
    """Apply evidence for one place in one transaction.

    Args:
        connection: Fresh from the registry: in no transaction.
        store: The kind of database it leads to.
        work: The place, and the evidence: at most one for each person.
        limits: How long it may take.
        default_app_access: As in `weigh`.
        take_away: As in `weigh`.

    Raises:
        PlaceFailed: A statement failed.
        CommitFailed: Everything was written, and then the COMMIT failed.
        Exception: The driver's error where the transaction could not be begun.
    """
    with store.begin(connection, limits):
        (held,) = store.read(connection, [work], limits)
        reach(Step.READ)
        weighed = weigh(
            work.evidence,
            held or Known(frozenset(), {}),
            default_app_access=default_app_access,
            take_away=take_away,
        )
        try:
            store.write(connection, [work], [weighed.changes], limits, commit=True)
        except PlaceFailed:
            raise
        except Exception as error:
            raise CommitFailed from error
    reach(Step.COMMITTED)
    return weighed


def apply_batch(
    connection: Connection,
    store: Store,
    works: Sequence[Work],
    limits: Limits,
    *,
    default_app_access: bool,
) -> list[list[Outcome] | None]:
    """Apply events without hooks in one transaction, and return their outcomes, place by place.

    None stands for a place that was left out because somebody else holds its lock.

    Args:
        connection: Fresh from the registry: in no transaction.
        store: The kind of database it leads to.
        works: At most one per place.
        limits: How long it may take.
        default_app_access: What `has_app_access` is until an event says something of it.

    Raises:
        PlaceFailed: A statement for one place failed.
        CommitFailed: Everything was written, and then the COMMIT failed.
        Exception: The driver's error where no place is to blame, such as a lock not granted.
    """
    with store.begin(connection, limits):
        known = store.read(connection, works, limits)
        reach(Step.READ)
        changes = [
            Changes()
            if held is None
            else decide(work.events, held, default_app_access=default_app_access)
            for work, held in zip(works, known, strict=True)
        ]
        try:
            store.write(connection, works, changes, limits, commit=True)
        except PlaceFailed:
            raise
        except Exception as error:
            raise CommitFailed from error
    reach(Step.COMMITTED)
    return [
        None if held is None else change.outcomes
        for held, change in zip(known, changes, strict=True)
    ]
