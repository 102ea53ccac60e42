"""`decide` turns events and what a place holds into what is to be written, once per event id."""

import itertools
from typing import Any

import pytest

from tenantsync.events import Dialect, Event
from tenantsync.observe import Outcome
from tenantsync.sync.apply import Changes, Known, decide
from tenantsync.sync.merge import EVERY_SESSION, Person, Tombstone, clock_of, merge

NOON = 1_787_378_400_000
NOTHING = Known(frozenset(), {})


def event(
    kind: str, event_id: str, at: int = NOON, *, sub: str | None = "u1", **data: Any
) -> Event:
    return Event(
        id=event_id,
        type=kind,
        timestamp=at,
        tenant_id="t1",
        application_id="app",
        sub=sub,
        data={"sub": sub, **data},
        dialect=Dialect.SYNC,
    )


def known(*events: Event, seen: tuple[str, ...] = ()) -> Known:
    """Return what a place holds once these events were applied; `seen` adds ids to the ledger."""
    people: dict[str, Person | Tombstone] = {}
    for one in events:
        people[one.sub] = merge(people.get(one.sub), one).state
    return Known(frozenset(one.id for one in events) | frozenset(seen), people)


def decided(events: list[Event], held: Known = NOTHING, **options: bool) -> Changes:
    return decide(events, held, **{"default_app_access": True, **options})


def test_nothing_comes_to_nothing():
    """Without events nothing is to be written."""
    assert Changes() == decided([])


def test_outcomes_come_in_the_order_of_the_events():
    """Each event gets its own outcome, at its own place."""
    held = known(event("member.joined", "e0"))

    changes = decided(
        [
            event("member.joined", "e0"),
            event("member.suspended", "e1"),
            event("member.joined", "e2", NOON - 1),
            event("invite.accepted", "e3"),
        ],
        held,
    )

    assert changes.outcomes == [
        Outcome.DUPLICATE,
        Outcome.APPLIED,
        Outcome.STALE,
        Outcome.IGNORED,
    ]


def test_the_ledger_takes_every_new_event_with_its_outcome():
    """Stale and ignored events are remembered as applied ones are; duplicates are there already."""
    held = known(event("member.joined", "e0"))
    events = [
        event("member.left", "e1"),
        event("member.joined", "e2", NOON - 1),
        event("invite.accepted", "e3"),
    ]

    changes = decided([event("member.joined", "e0"), *events], held)

    outcomes = [Outcome.APPLIED, Outcome.STALE, Outcome.IGNORED]
    assert list(zip(events, outcomes, strict=True)) == changes.ledger


def test_an_id_in_the_ledger_changes_nothing():
    """A repeated event writes nothing, even where it would win."""
    held = known(event("member.joined", "e0"), seen=("e1",))

    changes = decided([event("member.left", "e1", NOON + 1)], held)

    assert Changes(outcomes=[Outcome.DUPLICATE]) == changes


def test_an_id_twice_in_one_batch_counts_once():
    """The first of two equal ids is applied, the second is a duplicate."""
    told = event("member.joined", "e1")

    changes = decided([told, told])

    assert changes.outcomes == [Outcome.APPLIED, Outcome.DUPLICATE]
    assert [(told, Outcome.APPLIED)] == changes.ledger


def test_ids_that_differ_in_case_are_two():
    """Event ids and subjects are compared by their bytes."""
    changes = decided(
        [event("member.joined", "e1"), event("member.joined", "E1", sub="U1")],
    )

    assert changes.outcomes == [Outcome.APPLIED] * 2
    assert {"u1", "U1"} == changes.people.keys()


def test_events_of_one_person_are_folded_into_one_row():
    """A batch writes a person once, with all that its events say."""
    changes = decided(
        [
            event("member.joined", "e1", membership_id="m1"),
            event("app_access.granted", "e2", role_slug="editor"),
            event("subject.updated", "e3", NOON + 1, given_name="Ana"),
        ]
    )

    row = changes.people["u1"].values
    assert list(changes.people) == ["u1"]
    assert (row["membership_id"], row["app_role"], row["given_name"]) == ("m1", "editor", "Ana")


def test_the_events_of_several_people_do_not_meet():
    """Each person's row holds that person's events only."""
    changes = decided(
        [
            event("member.joined", "e1", given_name="Ana"),
            event("member.left", "e2", sub="u2", given_name="Ben"),
        ]
    )

    assert changes.people["u1"].values["given_name"] == "Ana"
    assert changes.people["u2"].values["membership_status"] == "left"


def test_a_person_who_did_not_change_is_not_written():
    """A stale event goes to the ledger alone."""
    held = known(event("subject.created", "e0", NOON - 1), event("member.joined", "e1"))
    told = event("member.activated", "e01")

    changes = decided([told], held)

    assert Changes([Outcome.STALE], [(told, Outcome.STALE)]) == changes


def test_a_row_that_only_became_older_is_written():
    """A stale event from before the row's creation moves that back."""
    held = known(event("member.joined", "e1"))

    changes = decided([event("member.joined", "e0", NOON - 1)], held)

    assert changes.outcomes == [Outcome.STALE]
    assert changes.people["u1"].created == NOON - 1


def test_a_deletion_takes_back_the_row_of_its_batch():
    """A person who joins and is deleted in one batch gets a tombstone and no row."""
    join, deletion = event("member.joined", "e1"), event("subject.deleted", "e2", NOON - 1)
    for order in itertools.permutations([join, deletion]):
        changes = decided(list(order))

        assert changes.people == {}
        assert {"u1": clock_of(deletion)} == changes.tombstones


def test_a_deletion_removes_the_row_that_is_there():
    """A tombstone is to be written for a person who has a row, too."""
    deletion = event("subject.deleted", "e2")

    changes = decided([deletion], known(event("member.joined", "e1")))

    assert {"u1": clock_of(deletion)} == changes.tombstones


def test_a_deleted_person_stays_deleted():
    """Events of a person with a tombstone are stale and write nothing but the ledger."""
    held = known(event("subject.deleted", "e0"))
    told = [event("member.joined", "e1", NOON + 1), event("member.left", "e2", NOON + 2)]

    changes = decided(told, held)

    stale = [Outcome.STALE] * 2
    assert Changes(stale, list(zip(told, stale, strict=True))) == changes


def test_of_several_deletions_the_greatest_clock_is_kept():
    """The tombstone does not depend on the order of the deletions."""
    deletions = [event("subject.deleted", name) for name in ("a", "b", "B")]
    for order in itertools.permutations(deletions):
        assert {"u1": clock_of(deletions[1])} == decided(list(order)).tombstones


def test_the_same_events_in_any_order_come_to_the_same_people():
    """What is written does not depend on the order within a batch."""
    events = [
        event("subject.created", "e1", NOON - 2, given_name="Ana"),
        event("member.joined", "e2", NOON - 1, membership_id="m1"),
        event("app_access.revoked", "e3"),
        event("app_access.granted", "e4", role_slug="editor"),
    ]
    expected = decided(events).people

    for order in itertools.permutations(events):
        assert expected == decided(list(order)).people


def test_a_winning_denial_ends_every_session():
    """A denial that wins ends all sessions, and a stale one of the batch ends no fewer."""
    winning = event("member.left", "e2")
    stale = event("app_access.revoked", "e1", NOON - 5)
    held = known(event("app_access.granted", "e0", NOON - 1))

    for order in itertools.permutations([winning, stale]):
        assert decided(list(order), held).sessions == {"u1": EVERY_SESSION}


def test_of_several_stale_denials_the_latest_counts():
    """Sessions created before the latest of the stale denials end."""
    held = known(event("member.joined", "e0"))
    denials = [event("member.left", f"e{number}", NOON - number) for number in (1, 2, 3)]

    for order in itertools.permutations(denials):
        assert decided(list(order), held).sessions == {"u1": NOON - 1}


def test_a_stale_denial_that_changes_nothing_ends_sessions_all_the_same():
    """Sessions end although the row stays as it is."""
    held = known(event("subject.created", "e0"), event("app_access.granted", "e1", NOON - 9))
    revoked = event("app_access.revoked", "e2", NOON - 10)
    held = Known(held.seen, {"u1": merge(held.people["u1"], revoked).state})

    changes = decided([event("app_access.revoked", "e0.5", NOON - 10)], held)

    assert changes.outcomes == [Outcome.STALE]
    assert not changes.people
    assert changes.sessions == {"u1": NOON - 10}


def test_an_event_without_a_person_is_ignored():
    """A tenant's subscription concerns nobody in particular."""
    told = event("tenant.app.granted", "e1", sub=None)

    changes = decided([told])

    assert [(told, Outcome.IGNORED)] == changes.ledger
    assert not changes.people


@pytest.mark.parametrize("default_app_access", [True, False])
def test_a_new_row_starts_with_the_default_access(default_app_access):
    """The default is for rows that are made now; rows that are there keep theirs."""
    held = known(event("member.joined", "e0", sub="u0"))

    changes = decided(
        [event("member.left", "e1"), event("member.left", "e2", sub="u0")],
        held,
        default_app_access=default_app_access,
    )

    assert default_app_access is changes.people["u1"].values["has_app_access"]
    assert changes.people["u0"].values["has_app_access"] is True


def test_what_was_known_is_left_as_it_was():
    """A batch that fails is decided again from the same knowledge."""
    held = known(event("member.joined", "e0"))
    people, seen = dict(held.people), set(held.seen)

    decided([event("subject.deleted", "e1"), event("member.joined", "e2", sub="u2")], held)

    assert (people, seen) == (held.people, held.seen)
