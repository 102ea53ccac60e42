"""When a list is believed, what its lines say, and what is made of it. Pure, by table."""

import pytest
from listing import as_list, row

from tenantsync.events import Dialect, Event
from tenantsync.sync.apply import Known, weigh
from tenantsync.sync.evidence import MARGIN, Brake, Evidence, ListRefused, Snapshot, departure
from tenantsync.sync.merge import EVERY_SESSION, Person, Tombstone, clock_of, merge
from tenantsync.sync.standing import is_missing, loses, may_enter

AT = 1_795_405_281_000
OURS = "ours"


def snapshot(rows, *, tenant_id="acme", now=AT, **answer):
    """Return what is made of a list that was answered at AT."""
    told = as_list(answer.pop("said", "acme"), rows, date=answer.pop("date", AT), **answer)
    return Snapshot(told, tenant_id=tenant_id, application_id=OURS, now=now)


def evidence(sub="zoe", **changes):
    """Return evidence of an active member, taken at AT."""
    facts = {
        "timestamp": AT,
        "tenant_id": "acme",
        "membership_id": "m-zoe",
        "status": "active",
        "app_role": "editor",
        "claims": {"email": "zoe@corp.test"},
    }
    return Evidence(sub=sub, **(facts | changes))


def event(kind, at, *, event_id="e", **data):
    """Return an event about zoe."""
    return Event(
        id=event_id,
        type=kind,
        timestamp=at,
        tenant_id="acme",
        application_id=OURS,
        sub="zoe",
        data={"sub": "zoe", **data},
        dialect=Dialect.SYNC,
    )


def person(*facts, default=True):
    """Return what is known after some facts."""
    state = None
    for fact in facts:
        state = merge(state, fact, default_app_access=default).state
    return state


JOINED = event("member.joined", AT - 9_000, membership_id="m-zoe")
GRANTED = event("app_access.granted", AT - 9_000, event_id="g", role_slug="editor")


@pytest.mark.parametrize(
    ("rows", "answer", "reason"),
    [
        pytest.param([], {}, "empty", id="empty"),
        pytest.param([row("a")], {"total_count": 2}, "says that it has 2", id="cut short"),
        pytest.param([row("a")], {"total_count": 0}, "says that it has 0", id="too long"),
        pytest.param([row("a")], {"said": "globex"}, "another tenant", id="another tenant"),
        pytest.param([row("a")], {"said": "ACME"}, "another tenant", id="another case"),
        pytest.param([row("a")], {"date": AT + 300_001}, "in the future", id="future"),
        pytest.param([row("a")], {"date": 1}, "at a time", id="before time"),
        pytest.param(
            [row("a"), row("a", status="SUSPENDED")], {}, "two different things", id="status twice"
        ),
        pytest.param(
            [row("a"), row("b"), row("a", membership="x")], {}, "two different", id="joined twice"
        ),
        pytest.param(
            [row("a", membership="x"), row("b", membership="x")], {}, "same membership", id="shared"
        ),
        pytest.param([row("a", status="GONE")], {}, "status", id="unknown status"),
        pytest.param([row("a", status="active")], {}, "status", id="small letters"),
        pytest.param([row("a\x00")], {}, "character U", id="null in an id"),
        pytest.param([row("a", email="\x00")], {}, "character U", id="null in an address"),
        pytest.param([row("a", roles=[(OURS, "\x00")])], {}, "character U", id="null in a role"),
        pytest.param([row("ü" * 128)], {}, "255 bytes", id="long id"),
    ],
)
def test_a_list_that_cannot_be_right_is_refused_whole(rows, answer, reason):
    """Whatever is wrong in one place, nothing of it is used; and nobody is named."""
    with pytest.raises(ListRefused, match=reason) as refused:
        snapshot(rows, **answer)

    assert "corp.test" not in str(refused.value)


def test_a_line_that_is_repeated_word_for_word_counts_once():
    """The same line twice contradicts nothing."""
    found = snapshot([row("a"), row("b"), row("a")])

    assert list(found) == ["a", "b"]
    assert len(found) == 2


@pytest.mark.parametrize(
    ("waited", "age"), [(0, 5_000), (4_999, 5_000), (5_000, 5_000), (42_000, 42_000)]
)
def test_a_list_is_taken_for_older_than_its_date(waited, age):
    """By five seconds, or by as long as the provider took to answer."""
    assert AT - age == snapshot([row("a")], waited=waited).taken_at


def test_a_line_says_who_is_what():
    """Names that are missing or empty are not told; of roles, the first of our application is."""
    found = snapshot(
        [
            row("a", roles=[("theirs", "x"), (OURS, "editor"), (OURS, "admin")], givenName="Ann"),
            row("b", status="SUSPENDED", email=None, familyName="", roles=[("theirs", "x")]),
            row("c", status="INVITED", roles=[(OURS, "")]),
        ]
    )

    assert found["a"] == Evidence(
        "a",
        AT - MARGIN,
        "acme",
        "m-a",
        "active",
        "editor",
        {"email": "a@corp.test", "given_name": "Ann"},
    )
    assert found["b"] == Evidence("b", AT - MARGIN, "acme", "m-b", "suspended", None, {})
    assert (found["c"].status, found["c"].app_role) == ("invited", None)
    assert ["d" in found, "a" in found] == [False, True]


def test_evidence_is_merged_like_an_event():
    """It wins over what is older and loses against what is newer, register by register."""
    before = person(
        event("member.suspended", AT - 1, event_id="1"),
        event("app_access.role_changed", AT + 1, event_id="2", role_slug="admin"),
    )

    after = merge(before, evidence()).state

    assert tuple(after.values[name] for name in ("membership_status", "app_role", "email")) == (
        "active",
        "admin",
        "zoe@corp.test",
    )


def test_of_one_instant_a_denial_stands():
    """A list that was taken as somebody was suspended does not let them in again."""
    suspended = event("member.suspended", AT)

    for facts in ([suspended, evidence()], [evidence(), suspended]):
        assert person(*facts).values["membership_status"] == "suspended"


def test_two_lists_of_one_second_that_differ_have_two_clocks():
    """Else what is mirrored would depend on which came first."""
    one, other = evidence(), evidence(app_role="admin")

    assert clock_of(one) != clock_of(other)
    assert person(one, other) == person(other, one)
    assert clock_of(one) == clock_of(evidence())


def test_a_tombstone_stays():
    """Who was deleted does not come back by a list."""
    grave = Tombstone("x")

    weighed = weigh([evidence()], Known(frozenset(), {"zoe": grave}), default_app_access=True)

    assert merge(grave, evidence()).state is grave
    assert weighed.changes.empty
    assert weighed.unchanged == 1


def test_evidence_that_changes_nothing_only_moves_clocks():
    """The row is confirmed, not written anew."""
    known = person(JOINED, GRANTED, evidence(timestamp=AT - 1_000))

    weighed = weigh([evidence()], Known(frozenset(), {"zoe": known}), default_app_access=True)

    assert (weighed.unchanged, weighed.changed, weighed.added) == (1, 0, 0)
    assert weighed.changes.people == {}
    moved = weighed.changes.advanced["zoe"]
    assert moved.values == known.values
    assert moved.clocks["membership"] == moved.clocks["email"] == clock_of(evidence())


def test_evidence_that_is_older_than_all_writes_nothing():
    """A list that comes late is no reason to touch a row."""
    known = person(evidence(timestamp=AT + 1))

    weighed = weigh(
        [evidence(timestamp=AT + 1)], Known(frozenset(), {"zoe": known}), default_app_access=True
    )

    assert weighed.changes.empty


@pytest.mark.parametrize("status", ["suspended", "invited"])
def test_evidence_of_a_denial_ends_sessions(status):
    """As an event would: those of before, where something newer stands; else all."""
    won = merge(person(JOINED), evidence(status=status))
    lost = merge(
        person(event("member.activated", AT + 1, event_id="later")), evidence(status=status)
    )

    assert won.sessions_before == EVERY_SESSION
    assert lost.sessions_before == AT
    assert merge(person(JOINED), evidence()).sessions_before is None


def test_nothing_is_taken_away_where_that_is_forbidden():
    """Who would lose access or role stays as they are, names included; the others do not."""
    known = Known(frozenset(), {"zoe": person(JOINED, GRANTED)})
    for worse in (
        evidence(status="suspended"),
        evidence(status="invited"),
        evidence(app_role=None),
    ):
        weighed = weigh([worse], known, default_app_access=True, take_away=False)

        assert (weighed.held_back, weighed.changes.empty) == (1, True)
    weighed = weigh(
        [evidence(app_role="admin"), evidence("new")],
        known,
        default_app_access=True,
        take_away=False,
    )
    assert {"zoe", "new"} == weighed.changes.people.keys()


@pytest.mark.parametrize(
    ("people", "losing", "holds"),
    [
        (0, 0, False),
        (4, 4, False),
        (5, 5, True),
        (25, 5, False),
        (24, 5, True),
        (100, 20, False),
        (100, 21, True),
    ],
)
def test_the_brake_holds_beyond_a_fifth_and_from_five_people(people, losing, holds):
    """Both must be so."""
    assert holds is Brake(0.2, people, losing).holds


@pytest.mark.parametrize(
    ("facts", "default", "enters"),
    [
        ([JOINED], True, True),
        ([JOINED], False, False),
        ([GRANTED], False, True),
        ([event("subject.created", AT)], True, False),
        ([JOINED, GRANTED, event("member.suspended", AT)], True, False),
        ([JOINED, GRANTED, event("member.left", AT)], True, False),
        ([JOINED, GRANTED, event("app_access.revoked", AT)], True, False),
        ([JOINED, GRANTED, event("subject.deactivated", AT)], True, False),
        ([JOINED, GRANTED, event("subject.deleted", AT)], True, False),
        ([evidence()], True, True),
        ([evidence(tenant_id="globex")], True, False),
        ([evidence(status="invited")], True, False),
    ],
)
def test_who_has_access_is_asked_as_at_the_door(facts, default, enters):
    """Membership decides; a grant stands in where there never was one, a default does not."""
    assert enters is may_enter(person(*facts, default=default), "acme")


def test_losing_is_to_have_had():
    """Nobody loses what they did not have; a role that is another one is none that is lost."""
    member = person(JOINED, GRANTED)

    assert loses(member, person(JOINED, GRANTED, evidence(status="suspended")), "acme")
    assert loses(member, person(JOINED, GRANTED, evidence(app_role=None)), "acme")
    assert not loses(member, person(JOINED, GRANTED, evidence(app_role="admin")), "acme")
    assert not loses(None, None, "acme")
    gone = person(JOINED, GRANTED, event("member.left", AT))
    assert not loses(gone, person(JOINED, GRANTED, evidence(status="suspended")), "acme")


@pytest.mark.parametrize(
    ("facts", "shared", "missing"),
    [
        pytest.param([JOINED], False, True, id="member"),
        pytest.param([evidence(timestamp=AT - 1, status="invited")], False, True, id="invited"),
        pytest.param([evidence(timestamp=AT)], False, False, id="in the list before"),
        pytest.param([evidence(timestamp=AT - 1)], False, True, id="in the one before that"),
        pytest.param([event("member.joined", AT)], False, False, id="joined as it was taken"),
        pytest.param([event("member.joined", AT + 1)], False, False, id="joined since"),
        pytest.param([event("member.left", AT - 9)], False, False, id="left"),
        pytest.param([JOINED, event("app_access.granted", AT)], False, False, id="granted since"),
        pytest.param([JOINED, event("app_access.granted", AT - 1)], False, True, id="granted"),
        pytest.param([JOINED, evidence().sighting()], False, False, id="only listed before"),
        pytest.param(
            [JOINED, event("subject.updated", AT, email="z@corp.test")], True, False, id="renamed"
        ),
        pytest.param([GRANTED], False, True, id="never a member"),
        pytest.param([event("app_access.granted", AT)], False, False, id="heard of since"),
        pytest.param([event("subject.created", AT + 1)], False, False, id="created since"),
        pytest.param([JOINED], True, True, id="shared: ours"),
        pytest.param([GRANTED], True, False, id="shared: never said whose"),
        pytest.param([evidence(timestamp=1, tenant_id="x")], False, False, id="another tenant's"),
    ],
)
def test_missing_is_who_missed_two_lists_and_was_not_heard_of_since(facts, shared, missing):
    """Of two lists, that of AT is the first; the second one they are not in."""
    assert missing is is_missing(person(*facts), "acme", previous=AT, shared=shared)


def test_a_departure_happens_once_for_a_list():
    """Whoever finds it out from the same list makes the same event."""
    one = departure("acme", OURS, "zoe", "m-zoe", AT)

    assert one == departure("acme", OURS, "zoe", "m-zoe", AT)
    assert one.mirrored
    assert (one.type, one.timestamp, one.tenant_id) == ("member.left", AT, "acme")
    ids = {
        departure(*who).id
        for who in (
            ("acme", OURS, "zoe", None, AT),
            ("acme", OURS, "zoe", None, AT + 1),
            ("acme", OURS, "ann", None, AT),
            ("globex", OURS, "zoe", None, AT),
        )
    }
    assert len(ids) == 4
    assert isinstance(person(one), Person)


def test_a_sighting_says_nothing_but_that_somebody_was_in_the_list():
    """A row gets its clock and no value, no session ends, and nobody is made of it."""
    known = person(JOINED)
    seen = evidence(status="suspended").sighting()

    merged = merge(known, seen)
    weighed = weigh([seen], Known(frozenset(), {}), default_app_access=True)

    assert merged.state.values == known.values
    assert merged.sessions_before is None
    assert merged.state.clocks["membership"] == known.clocks["membership"]
    assert max(merged.state.clocks.values()) == clock_of(seen)
    assert weighed.changes.empty
    assert weighed.added == 0


def test_a_list_follows_an_older_one_only():
    """One of the same moment is the same list."""
    found = snapshot([row("a")])

    assert [
        found.follows(previous)
        for previous in (None, found.taken_at - 1, found.taken_at, found.taken_at + 1)
    ] == [True, True, False, False]
