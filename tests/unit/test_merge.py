"""Each row and each rule of docs/explanation/merge-rules.md, one by one."""

import itertools
from typing import Any

import pytest

from tenantsync.events import SYNC_TYPES, SYSTEM_TYPES, Dialect, Event
from tenantsync.observe import Outcome
from tenantsync.sync.apply import Changes, Known, decide
from tenantsync.sync.merge import (
    CLAIMS,
    EVERY_SESSION,
    Merged,
    Person,
    Tombstone,
    clock_of,
    invert_clocks,
    merge,
    revert_clocks,
)

NOON = 1_787_378_400_000
LATER = NOON + 1
EARLIER = NOON - 1
NOBODY = Person.unknown(default_app_access=True)

PROFILE = {
    "preferred_username": "ana",
    "name": "Ana Sol",
    "given_name": "Ana",
    "family_name": "Sol",
    "middle_name": "B.",
    "nickname": "An",
    "picture": "https://pictures.test/ana",
    "website": "https://ana.test",
    "gender": "female",
    "birthdate": "1990-01-02",
    "zoneinfo": "Europe/Vienna",
    "locale": "de-AT",
    "email": "ana@harbourclinic.test",
    "email_verified": True,
    "phone_number": "+43 1 000",
    "phone_number_verified": True,
    "subject_type": "user",
    "groups": ["staff"],
}
PROFILE_COLUMNS = {
    "username": "ana",
    "display_name": "Ana Sol",
    "given_name": "Ana",
    "family_name": "Sol",
    "middle_name": "B.",
    "nickname": "An",
    "picture_url": "https://pictures.test/ana",
    "website": "https://ana.test",
    "gender": "female",
    "birthdate": "1990-01-02",
    "zoneinfo": "Europe/Vienna",
    "locale": "de-AT",
    "email": "ana@harbourclinic.test",
    "email_verified": True,
    "phone": "+43 1 000",
    "phone_verified": True,
    "subject_type": "user",
    "groups": ["staff"],
}
MIRRORED_SYNC_TYPES = [
    name for name in SYNC_TYPES if name.startswith(("subject.", "member.", "app_access."))
]
CLAIMING = [
    name for name in MIRRORED_SYNC_TYPES if name not in ("subject.updated", "subject.deleted")
]
DENIALS = {
    "subject.deactivated": "is_active",
    "member.suspended": "membership",
    "member.left": "membership",
    "app_access.revoked": "has_app_access",
    "tenant.app.revoked": "has_app_access",
}


def event(
    kind: str, at: int = NOON, event_id: str = "e1", *, dialect: Dialect = Dialect.SYNC, **data: Any
) -> Event:
    return Event(
        id=event_id,
        type=kind,
        timestamp=at,
        tenant_id="t1",
        application_id="app",
        sub="u1",
        data={"sub": "u1"} | data,
        dialect=dialect,
    )


def person(*events: Event, default_app_access: bool = True) -> Person:
    """Return what the events make of a person, merged in this order."""
    state = None
    for one in events:
        state = merge(state, one, default_app_access=default_app_access).state
    assert isinstance(state, Person)
    return state


def changes(kind: str, state: Person | None = None, **data: Any) -> dict[str, Any]:
    """Return the columns in which one event makes a person differ."""
    before = state or NOBODY
    after = merge(state, event(kind, **data)).state
    return {name: value for name, value in after.values.items() if value != before.values[name]}


def active(membership_id: str | None = "m1") -> dict[str, Any]:
    return {"tenant_id": "t1", "membership_id": membership_id, "membership_status": "active"}


# The table of events.


@pytest.mark.parametrize("kind", CLAIMING)
@pytest.mark.parametrize("claim", PROFILE)
def test_every_mirrored_event_but_updated_and_deleted_writes_the_claims_it_carries(kind, claim):
    """A profile claim is written to its own column, whatever event carries it."""
    column = CLAIMS[claim]

    after = person(event(kind, **{claim: PROFILE[claim]}))

    if kind == "member.left" and claim == "groups":
        assert after.values["groups"] == []
    else:
        assert PROFILE_COLUMNS[column] == after.values[column]
    assert clock_of(event(kind)) == after.clocks[column]


def test_the_claims_are_the_published_ones():
    """A full profile fills exactly the columns that are named after claims."""
    after = person(event("subject.created", **PROFILE))

    assert {**NOBODY.values, **PROFILE_COLUMNS} == after.values
    assert {*PROFILE_COLUMNS, "is_active"} == after.clocks.keys()


OWN_WRITES = [
    pytest.param("subject.created", {}, {"is_active": True}, {"is_active"}, id="subject.created"),
    pytest.param(
        "subject.updated",
        {"given_name": "Ana", "email": "a@b.test", "changed_fields": ["given_name"]},
        {"given_name": "Ana"},
        {"given_name"},
        id="subject.updated",
    ),
    pytest.param(
        "subject.deactivated", {}, {"is_active": False}, {"is_active"}, id="subject.deactivated"
    ),
    *(
        pytest.param(
            kind,
            {"membership_id": "m1", "tenant_roles": ["owner"], "groups": ["staff"]},
            {**active(), "tenant_roles": ["owner"], "groups": ["staff"]},
            {"membership", "tenant_roles", "groups"},
            id=kind,
        )
        for kind in ("member.joined", "member.activated")
    ),
    *(
        pytest.param(
            kind,
            {"membership_id": "m1", "tenant_roles": [], "groups": []},
            {**active(), "tenant_roles": [], "groups": []},
            {"membership", "tenant_roles", "groups"},
            id=f"{kind} with empty lists",
        )
        for kind in ("member.joined", "member.activated")
    ),
    *(
        pytest.param(
            kind,
            {"membership_id": "m1"},
            active(),
            {"membership"},
            id=f"{kind} without lists",
        )
        for kind in ("member.joined", "member.activated")
    ),
    pytest.param(
        "member.role_changed",
        {"membership_id": "m1", "tenant_roles": ["admin"], "groups": ["board"]},
        {"tenant_roles": ["admin"], "groups": ["board"]},
        {"tenant_roles", "groups"},
        id="member.role_changed",
    ),
    pytest.param(
        "member.role_changed",
        {"membership_id": "m1"},
        {},
        set(),
        id="member.role_changed without lists",
    ),
    pytest.param(
        "member.suspended",
        {"membership_id": "m1", "tenant_roles": ["owner"]},
        {"tenant_id": "t1", "membership_id": "m1", "membership_status": "suspended"},
        {"membership"},
        id="member.suspended",
    ),
    pytest.param(
        "member.left",
        {"membership_id": "m1"},
        {
            "tenant_id": None,
            "membership_id": "m1",
            "membership_status": "left",
            "tenant_roles": [],
            "app_role": None,
            "groups": [],
        },
        {"membership", "tenant_roles", "app_role", "groups"},
        id="member.left",
    ),
    pytest.param(
        "app_access.granted",
        {"membership_id": "m2", "role_slug": "editor"},
        {"has_app_access": True, "app_role": "editor"},
        {"has_app_access", "app_role"},
        id="app_access.granted",
    ),
    *(
        pytest.param(
            "app_access.granted",
            data,
            {"has_app_access": True},
            {"has_app_access"},
            id=f"app_access.granted with {data}",
        )
        for data in ({"role_slug": ""}, {"role_slug": None}, {})
    ),
    pytest.param(
        "app_access.role_changed",
        {"role_slug": "viewer", "previous_role_slug": "editor"},
        {"app_role": "viewer"},
        {"app_role"},
        id="app_access.role_changed",
    ),
    *(
        pytest.param(
            "app_access.role_changed",
            {"role_slug": slug},
            {"app_role": None},
            {"app_role"},
            id=f"app_access.role_changed to {slug!r}",
        )
        for slug in ("", None)
    ),
    pytest.param(
        "app_access.role_changed", {}, {}, set(), id="app_access.role_changed without a role"
    ),
    pytest.param(
        "app_access.revoked",
        {"role_slug": "editor"},
        {"has_app_access": False, "app_role": None},
        {"has_app_access", "app_role"},
        id="app_access.revoked",
    ),
    pytest.param(
        "tenant.app.granted",
        {"user_id": "u1", "access_type": "GRANTED", "role_slug": "editor"},
        {"has_app_access": True},
        {"has_app_access"},
        id="tenant.app.granted",
    ),
    pytest.param(
        "tenant.app.revoked",
        {"user_id": "u1", "role_slug": "editor"},
        {"has_app_access": False, "app_role": None},
        {"has_app_access", "app_role"},
        id="tenant.app.revoked",
    ),
]


@pytest.mark.parametrize("default_app_access", [True, False])
@pytest.mark.parametrize(("kind", "data", "columns", "registers"), OWN_WRITES)
def test_an_event_writes_its_own_registers(kind, data, columns, registers, default_app_access):
    """Each event writes what its row of the table says, over anything older, and nothing else."""
    old = person(
        event("subject.created", EARLIER, "o1", **PROFILE | {"groups": ["old"]}),
        event("member.joined", EARLIER, "o2", membership_id="m0", tenant_roles=["old"]),
        event("app_access.granted", EARLIER, "o3", role_slug="old"),
    )
    told = event(kind, **data)
    for state in (None, old):
        before = state or Person.unknown(default_app_access=default_app_access)

        result = merge(state, told, default_app_access=default_app_access)

        after = result.state
        assert {**before.values, **columns} == after.values
        assert {**before.clocks, **dict.fromkeys(registers, clock_of(told))} == after.clocks
        assert result.applied == (bool(registers) or state is None)


def test_subject_deleted_leaves_a_tombstone():
    """A deletion leaves its clock, with nothing personal."""
    told = event("subject.deleted", **PROFILE)

    assert Merged(Tombstone(clock_of(told)), applied=True) == merge(None, told)
    assert Merged(Tombstone(clock_of(told)), applied=True) == merge(
        person(event("member.joined")), told
    )


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        *((name, {}) for name in SYNC_TYPES if name not in MIRRORED_SYNC_TYPES),
        *((name, {}) for name in SYSTEM_TYPES),
        ("subject.promoted", {}),
        ("tenant.app.granted", {"user_id": "u1", "access_type": "INVITED"}),
    ],
)
def test_all_other_events_write_nothing(kind, data):
    """invite, license, application, sso, unknown types, and being invited are ignored."""
    told = event(kind, **data, **PROFILE)

    decided = decide([told], Known(frozenset(), {}), default_app_access=True)

    assert Changes([Outcome.IGNORED], [(told, Outcome.IGNORED)]) == decided


@pytest.mark.parametrize("access_type", ["GRANTED", "AUTO_FREE", "AUTO_TENANT", "AUTO_OWNER"])
def test_every_access_type_but_invited_is_a_grant(access_type):
    """Access that AuthVital says was given counts as given, however it came about."""
    told = event(
        "tenant.app.granted", dialect=Dialect.SYSTEM, user_id="u1", access_type=access_type
    )

    decided = decide([told], Known(frozenset(), {}), default_app_access=False)

    assert decided.outcomes == [Outcome.APPLIED]
    assert decided.people["u1"].values["has_app_access"]


# What counts as a write.


EMPTIES = [
    (claim, empty)
    for claim, value in PROFILE.items()
    for empty in ([None, ""] if isinstance(value, str) else [None])
]


@pytest.mark.parametrize("kind", CLAIMING)
@pytest.mark.parametrize(("claim", "empty"), EMPTIES)
def test_null_and_empty_are_no_write_outside_updated(kind, claim, empty):
    """AuthVital leaves names out in three ways, and none of them takes a value or a clock."""
    known = person(event("subject.created", EARLIER, "o1", **PROFILE))
    told = event(kind, **{claim: empty})
    without = event(kind)

    assert merge(known, without) == merge(known, told)
    assert merge(None, without) == merge(None, told)


@pytest.mark.parametrize(("claim", "empty"), EMPTIES)
def test_null_and_empty_clear_in_updated(claim, empty):
    """An update says that the value is gone: NULL, or the default where NULL is not allowed."""
    known = person(event("subject.created", EARLIER, "o1", **PROFILE))
    told = event("subject.updated", **{claim: empty})

    after = merge(known, told).state

    column = CLAIMS[claim]
    assert NOBODY.values[column] == after.values[column]
    assert clock_of(told) == after.clocks[column]


@pytest.mark.parametrize(
    ("named", "written"),
    [
        (["given_name"], {"given_name"}),
        (["givenName"], {"given_name"}),
        (["profile.given_name"], {"given_name"}),
        (["user.profile.givenName"], {"given_name"}),
        (["GivenName"], {"given_name"}),
        (["picture"], {"picture_url"}),
        (["picture_url"], {"picture_url"}),
        (["pictureUrl"], {"picture_url"}),
        (["preferred_username"], {"username"}),
        (["preferredUsername"], {"username"}),
        (["username"], {"username"}),
        (["name"], {"display_name"}),
        (["displayName"], {"display_name"}),
        (["phone_number_verified"], {"phone_verified"}),
        (["phoneNumberVerified"], {"phone_verified"}),
        (["phone_verified"], {"phone_verified"}),
        (["phone"], {"phone"}),
        (["groups"], {"groups"}),
        (["given_name", "email"], {"given_name", "email"}),
        (["given_name", "mood"], {"given_name"}),
        (["mood"], set()),
        (["tenant_roles", "is_active", "sub", ""], set()),
        ([], set(PROFILE_COLUMNS)),
        (None, set(PROFILE_COLUMNS)),
    ],
)
def test_changed_fields_choose_what_an_update_writes(named, written):
    """Fields are named as claims or columns, snake, camel or dotted; no list means all present."""
    told = event("subject.updated", changed_fields=named, **PROFILE)

    after = person(told)

    assert written == set(after.clocks)
    assert {name: PROFILE_COLUMNS[name] for name in written} == {
        name: value for name, value in after.values.items() if value != NOBODY.values[name]
    }


def test_a_missing_list_of_changed_fields_means_all_that_is_present():
    """An update without the list writes every claim that it carries, and no other."""
    after = person(event("subject.updated", email="a@b.test", nickname=""))

    assert {"email", "nickname"} == after.clocks.keys()


def test_a_changed_field_that_is_absent_is_not_written():
    """A field that is named but not in the payload keeps its value."""
    known = person(event("subject.created", EARLIER, "o1", **PROFILE))

    after = merge(known, event("subject.updated", changed_fields=["email", "name"], name="X")).state

    assert {**known.values, "display_name": "X"} == after.values


@pytest.mark.parametrize("kind", ["member.joined", "member.activated", "member.role_changed"])
def test_the_documented_role_is_both_roles(kind):
    """In the documented dialect one role is the role in the tenant and in the application."""
    told = event(kind, dialect=Dialect.DOCUMENTED, tenant_roles=["admin"], role_slug="admin")

    after = person(told)

    assert after.values["tenant_roles"] == ["admin"]
    assert after.values["app_role"] == "admin"


@pytest.mark.parametrize("slug", [None, ""])
def test_an_empty_documented_role_is_no_write(slug):
    """Where the documented dialect names no role, the application's role is left alone."""
    after = person(event("member.joined", dialect=Dialect.DOCUMENTED, role_slug=slug))

    assert "app_role" not in after.clocks


@pytest.mark.parametrize("kind", ["member.joined", "member.activated", "member.role_changed"])
def test_a_role_slug_in_a_real_member_event_is_no_application_role(kind):
    """What a server sends keeps the two kinds of roles apart."""
    assert "app_role" not in person(event(kind, role_slug="admin")).clocks


def test_left_clears_the_roles_whatever_the_payload_holds():
    """Roles and groups that a leaving member's event still lists are not written."""
    after = person(
        event(
            "member.left",
            dialect=Dialect.DOCUMENTED,
            tenant_roles=["owner"],
            groups=["staff"],
            role_slug="admin",
        )
    )

    assert after.values["tenant_roles"] == []
    assert after.values["groups"] == []
    assert after.values["app_role"] is None
    assert after.values["tenant_id"] is None


@pytest.mark.parametrize("membership_id", [None, ""])
def test_an_empty_membership_id_is_null(membership_id):
    """A membership without an id replaces the id of an older one."""
    known = person(event("member.joined", EARLIER, "o1", membership_id="m0"))

    after = merge(known, event("member.activated", membership_id=membership_id)).state

    assert active(None) == {name: after.values[name] for name in active()}


def test_the_membership_is_one_register():
    """A late join brings back no part of a membership that has ended since."""
    after = person(
        event("member.left", NOON, "e2", membership_id="m2"),
        event("member.joined", EARLIER, "e1", membership_id="m1"),
    )

    assert (
        after.values["membership_status"],
        after.values["membership_id"],
        after.values["tenant_id"],
    ) == ("left", "m2", None)


# Clocks.


def in_every_order(*events: Event) -> list[Person | Tombstone]:
    """Return what the events make of a person, in each order, every one merged twice."""
    states: list[Person | Tombstone] = []
    for order in itertools.permutations(events):
        state = None
        for one in (*order, *order):
            state = merge(state, one).state
        states.append(state)
    return states


def test_the_later_timestamp_wins():
    """Of two values, the one of the later event stands, whatever arrives first."""
    for state in in_every_order(
        event("member.joined", NOON, "z", given_name="Old"),
        event("member.joined", LATER, "a", given_name="New"),
    ):
        assert state.values["given_name"] == "New"


@pytest.mark.parametrize(
    ("less", "greater"), [("A", "a"), ("a", "aa"), ("10", "9"), ("Z", "a"), ("z", "é"), ("ﬁ", "𐀀")]
)
def test_on_a_tie_the_greater_id_wins_by_bytes(less, greater):
    """Ids order by their UTF-8 bytes: no language, no folding of case, no UTF-16."""
    assert less.encode() < greater.encode()
    for state in in_every_order(
        event("member.joined", NOON, less, given_name=less),
        event("member.joined", NOON, greater, given_name=greater),
    ):
        assert greater == state.values["given_name"]


@pytest.mark.parametrize(
    ("denial", "grant", "column", "denied"),
    [
        ("subject.deactivated", "subject.created", "is_active", False),
        ("member.suspended", "member.activated", "membership_status", "suspended"),
        ("member.suspended", "member.joined", "membership_status", "suspended"),
        ("member.left", "member.joined", "membership_status", "left"),
        ("app_access.revoked", "app_access.granted", "has_app_access", False),
        ("app_access.revoked", "tenant.app.granted", "has_app_access", False),
        ("tenant.app.revoked", "app_access.granted", "has_app_access", False),
        ("tenant.app.revoked", "tenant.app.granted", "has_app_access", False),
    ],
)
def test_a_denial_beats_a_grant_on_a_tie_only(denial, grant, column, denied):
    """On one instant the denial stands whatever the ids; a later grant beats it."""
    for state in in_every_order(event(denial, NOON, "a"), event(grant, NOON, "z")):
        assert denied == state.values[column]
    for state in in_every_order(event(denial, NOON, "z"), event(grant, LATER, "a")):
        assert denied != state.values[column]


def test_the_rank_holds_for_all_that_a_denial_writes():
    """A role given in the instant of the revocation does not survive it."""
    for state in in_every_order(
        event("app_access.revoked", NOON, "a"),
        event("app_access.role_changed", NOON, "z", role_slug="admin"),
        event("app_access.granted", NOON, "zz", role_slug="admin"),
    ):
        assert state.values["app_role"] is None


def test_registers_have_clocks_of_their_own():
    """A late event still writes the registers that nothing newer has written."""
    known = person(event("app_access.granted", NOON, "e1", given_name="New"))

    result = merge(known, event("member.joined", EARLIER, "e0", given_name="Old", nickname="An"))

    assert result.applied
    assert result.state.values["given_name"] == "New"
    assert result.state.values["nickname"] == "An"
    assert result.state.values["membership_status"] == "active"


def test_a_clock_sorts_as_text():
    """The instant fills thirteen digits, then comes the rank, then the id as it is."""
    assert clock_of(event("member.joined", 0, "e")) == "0000000000000" + "0" + "e"
    assert clock_of(event("member.left", EVERY_SESSION, "É")) == "9999999999999" + "1" + "É"


def test_a_row_keeps_a_clock_once_for_all_its_registers():
    """Inverted, the clocks are kept once each, and come back as they were."""
    clocks = {"email": "1", "name": "2", "membership": "1"}

    assert invert_clocks(clocks) == {"1": "email membership", "2": "name"}
    assert clocks == revert_clocks(invert_clocks(clocks))


# Tombstones.


@pytest.mark.parametrize("kind", [*MIRRORED_SYNC_TYPES, "tenant.app.granted", "tenant.app.revoked"])
@pytest.mark.parametrize("at", [EARLIER, NOON, LATER])
def test_a_tombstone_is_final(kind, at):
    """No event, earlier or later, brings a deleted person back or ends sessions."""
    buried = Tombstone(clock_of(event("subject.deleted", NOON, "e5")))
    told = event(kind, at, "e9", user_id="u1", **PROFILE)

    result = merge(buried, told)

    if kind == "subject.deleted" and at >= NOON:
        assert Merged(Tombstone(clock_of(told)), applied=True) == result
    else:
        assert result == Merged(buried, applied=False)
        assert result.state is buried


def test_the_same_deletion_again_is_stale():
    """A tombstone keeps the greatest clock of the deletions that made it."""
    first = event("subject.deleted", NOON, "e1")

    buried = merge(None, first).state

    assert Merged(buried, applied=False) == merge(buried, first)


# First events, and what is applied.


@pytest.mark.parametrize("default_app_access", [True, False])
@pytest.mark.parametrize("kind", MIRRORED_SYNC_TYPES)
def test_any_mirrored_event_may_be_the_first(kind, default_app_access):
    """The first event about a person makes the row, with the default access."""
    result = merge(None, event(kind), default_app_access=default_app_access)

    assert result.applied
    if kind == "subject.deleted":
        assert isinstance(result.state, Tombstone)
    elif kind == "app_access.granted":
        assert result.state.values["has_app_access"] is True
    elif kind == "app_access.revoked":
        assert result.state.values["has_app_access"] is False
    else:
        assert result.state.values["has_app_access"] is default_app_access
        assert "has_app_access" not in result.state.clocks


def test_the_default_access_is_no_write():
    """However late, a grant or a denial beats the default that a row began with."""
    known = person(event("member.joined", LATER, "e9"), default_app_access=True)

    after = merge(known, event("app_access.revoked", EARLIER, "e0")).state

    assert after.values["has_app_access"] is False


def test_created_at_is_the_least_timestamp_seen():
    """The row counts from the earliest event about the person, whatever that event writes."""
    for state in in_every_order(
        event("member.joined", NOON, "e1"),
        event("subject.updated", EARLIER, "e2"),
        event("member.left", LATER, "e3"),
    ):
        assert state.created == EARLIER


def test_an_event_that_only_makes_the_row_older_is_stale():
    """`applied` is about registers; the earlier creation is kept all the same."""
    known = person(event("member.joined", NOON, "e1", given_name="New"))

    result = merge(known, event("member.joined", EARLIER, "e0", given_name="Old"))

    assert not result.applied
    assert known.values == result.state.values
    assert result.state.created == EARLIER


def test_an_event_that_changes_nothing_leaves_the_very_state():
    """A stale event gives back the object that it got, so that nothing is written for it."""
    known = person(event("member.joined", NOON, "e1"), event("subject.updated", EARLIER, "e0"))

    for told in (event("member.joined", NOON, "e1"), event("subject.updated", LATER, "e2")):
        result = merge(known, told)

        assert not result.applied
        assert result.state is known


def test_the_same_value_again_is_applied():
    """A newer write of an equal value wins its register: later events are measured by it."""
    known = person(event("member.joined", NOON, "e1", given_name="Ana"))

    result = merge(known, event("member.joined", LATER, "e2", given_name="Ana"))

    assert result.applied
    assert clock_of(event("member.joined", LATER, "e2")) == result.state.clocks["given_name"]


def test_merging_never_changes_what_it_was_given():
    """The state before is a value: a batch that is rolled back may merge into it again."""
    known = person(event("member.joined", NOON, "e1", **PROFILE))
    values, clocks = dict(known.values), dict(known.clocks)

    merge(known, event("member.left", LATER, "e2"))

    assert (values, clocks, NOON) == (known.values, known.clocks, known.created)


# Sessions.


@pytest.mark.parametrize(("kind", "register"), DENIALS.items())
def test_a_denial_that_wins_ends_all_sessions(kind, register):
    """A winning denial ends every session, also of a person seen for the first time."""
    known = person(event("subject.created", EARLIER, "e0"))

    for state in (None, known):
        result = merge(state, event(kind))

        assert result.sessions_before == EVERY_SESSION
        assert register in result.state.clocks


@pytest.mark.parametrize(
    ("kind", "newer"),
    [
        ("subject.deactivated", "subject.created"),
        ("member.suspended", "member.activated"),
        ("member.left", "member.joined"),
        ("app_access.revoked", "app_access.granted"),
        ("tenant.app.revoked", "tenant.app.granted"),
    ],
)
def test_a_stale_denial_ends_the_sessions_that_are_older(kind, newer):
    """After a newer grant, a denial only ends the sessions created before its own timestamp."""
    known = person(event(newer, LATER, "e2"))

    assert merge(known, event(kind, NOON, "e1")).sessions_before == NOON


def test_a_denial_whose_own_register_is_stale_ends_only_older_sessions():
    """That its payload still wins some other register makes it no winning denial."""
    known = person(event("member.joined", LATER, "e2"))

    result = merge(known, event("member.left", NOON, "e1", email="a@b.test"))

    assert result.applied
    assert result.sessions_before == NOON


@pytest.mark.parametrize(
    "kind", sorted({*MIRRORED_SYNC_TYPES, "tenant.app.granted"} - DENIALS.keys())
)
def test_no_other_event_ends_sessions(kind):
    """Sessions end with denials only; of a deleted person they go with the row."""
    assert merge(None, event(kind)).sessions_before is None


def test_the_example_of_the_documentation_comes_out_as_printed():
    """The four events of docs/explanation/merge-rules.md make the row that it shows."""
    minute = 60_000
    events = (
        event(
            "member.joined",
            NOON,
            "a",
            membership_id="m1",
            tenant_roles=["member"],
            given_name="Ana",
        ),
        event("app_access.granted", NOON + minute, "b", role_slug="editor", given_name=""),
        event("app_access.revoked", NOON + minute, "c"),
        event("member.left", NOON - 30 * minute, "d", membership_id="m0"),
    )
    expected = {
        **NOBODY.values,
        **active("m1"),
        "tenant_roles": ["member"],
        "given_name": "Ana",
        "has_app_access": False,
        "app_role": None,
        "groups": [],
    }

    for state in in_every_order(*events):
        assert expected == state.values
        assert NOON - 30 * minute == state.created
        assert state.clocks["groups"] == clock_of(events[3])
