"""Merged in any order, with repetitions, the events come to what the independent fold says."""

from collections.abc import Iterable

from folding import Mirror, deliveries, fold, histories, is_mirrored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenantsync.events import Event
from tenantsync.observe import Outcome
from tenantsync.sync.apply import Known, decide
from tenantsync.sync.merge import (
    Person,
    Tombstone,
    clock_of,
    invert_clocks,
    merge,
    revert_clocks,
)

slow_machine = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def mirrored(people: dict[str, Person | Tombstone]) -> Mirror:
    """Return the people in the fold's form, less the ledger."""
    mirror = Mirror()
    for subject, state in people.items():
        if isinstance(state, Tombstone):
            mirror.tombstones[subject] = state.clock
        else:
            mirror.rows[subject] = {
                "id": subject,
                **state.values,
                "clocks": dict(state.clocks),
                "created_at": state.created,
            }
    return mirror


def merged(events: Iterable[Event], *, default_app_access: bool) -> dict[str, Person | Tombstone]:
    people: dict[str, Person | Tombstone] = {}
    for event in events:
        if event.mirrored and event.sub is not None:
            people[event.sub] = merge(
                people.get(event.sub), event, default_app_access=default_app_access
            ).state
    return people


def without_ledger(mirror: Mirror) -> Mirror:
    return Mirror(mirror.rows, mirror.tombstones)


@settings(slow_machine, max_examples=5_000)
@given(st.data(), st.booleans())
def test_any_order_comes_to_the_fold(data, default_app_access):
    """Merged one by one, in any order and some twice, the events come to what the fold says."""
    history = data.draw(histories())
    arriving = data.draw(deliveries(history))

    people = merged(arriving, default_app_access=default_app_access)

    expected = fold(history, default_app_access=default_app_access)
    assert without_ledger(expected) == mirrored(people)


@settings(slow_machine, max_examples=1_000)
@given(st.data(), st.booleans())
def test_applied_means_that_the_mirror_changed(data, default_app_access):
    """An event is applied if a register, a row or a tombstone differs afterwards, else stale."""
    history = data.draw(histories(max_size=8))
    arriving = data.draw(deliveries(history))
    people: dict[str, Person | Tombstone] = {}
    seen: list[Event] = []
    for event in arriving:
        if not event.mirrored or event.sub is None:
            continue
        before = fold(seen, default_app_access=default_app_access)
        seen.append(event)
        after = fold(seen, default_app_access=default_app_access)

        result = merge(people.get(event.sub), event, default_app_access=default_app_access)

        people[event.sub] = result.state
        assert (visible(before) != visible(after)) == result.applied
        assert event not in seen[:-1] or not result.applied


def visible(mirror: Mirror) -> object:
    """Return who is there, and which write each register holds."""
    return {subject: row["clocks"] for subject, row in mirror.rows.items()}, mirror.tombstones


@settings(slow_machine, max_examples=1_000)
@given(st.data(), st.booleans())
def test_batches_come_to_the_fold(data, default_app_access):
    """Decided in batches of any size, the events come to the fold, and each is counted once."""
    history = data.draw(histories())
    arriving = data.draw(deliveries(history))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(arriving)), max_size=3)))
    seen: frozenset[str] = frozenset()
    people: dict[str, Person | Tombstone] = {}
    ledger: list[tuple[Event, Outcome]] = []
    for start, end in zip([0, *cuts], [*cuts, len(arriving)], strict=True):
        batch = arriving[start:end]
        changes = decide(batch, Known(seen, people), default_app_access=default_app_access)

        assert len(batch) == len(changes.outcomes)
        assert not changes.people.keys() & changes.tombstones.keys()

        buried = {subject: Tombstone(clock) for subject, clock in changes.tombstones.items()}
        people = {**people, **changes.people, **buried}
        seen |= {event.id for event, _ in changes.ledger}
        ledger += changes.ledger

    expected = fold(history, default_app_access=default_app_access)
    assert without_ledger(expected) == mirrored(people)
    assert sorted(event.id for event in history) == sorted(event.id for event, _ in ledger)
    for event, outcome in ledger:
        assert is_mirrored(event) == (outcome is not Outcome.IGNORED)
    holding = held_clocks(expected)
    assert all(
        outcome is Outcome.APPLIED
        for event, outcome in ledger
        if is_mirrored(event) and clock_of(event) in holding.get(event.sub or "", ())
    )


def held_clocks(mirror: Mirror) -> dict[str, set[str]]:
    """Return subject -> the clocks that won."""
    held = {subject: set(row["clocks"].values()) for subject, row in mirror.rows.items()}
    return held | {subject: {clock} for subject, clock in mirror.tombstones.items()}


@settings(slow_machine)
@given(st.dictionaries(st.sampled_from(["email", "groups", "membership"]), st.text(min_size=1)))
def test_clocks_survive_being_inverted(clocks):
    """The inverted form of the clocks, which rows keep, loses nothing."""
    assert clocks == revert_clocks(invert_clocks(clocks))
