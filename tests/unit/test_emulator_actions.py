"""What happens in the local AuthVital, and who hears of it: nothing of its network."""

import json
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from tenantsync.testing.delivery import VirtualClock, jsonb
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.people import SYNC_TYPES, Ids, make_people
from tenantsync.testing.state import State
from tenantsync.testing.tables import Credential, SystemHook

NOW = 1_795_405_281.0
RECORDED = Path(__file__).parent.parent / "data" / "webhooks-broker.jsonl"
SYSTEM_TYPES = (
    "tenant.created",
    "tenant.updated",
    "tenant.deleted",
    "tenant.app.granted",
    "tenant.app.revoked",
    "application.updated",
)


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate(NOW)


class World:
    """An AuthVital like the recorded one: two free applications, and one with seats."""

    def __init__(self, key, **options):
        clock = VirtualClock(NOW)
        numbers = count(1)
        self.authvital = Emulator(
            keys=Keys(key, clock=clock),
            clock=clock,
            sleep=clock.sleep,
            new_id=lambda: f"event-{next(numbers)}",
            issuer="https://auth.example.test",
            seed=7,
            **options,
        )
        self.clock, self.state = clock, self.authvital.state
        self.outbox, self.do = self.authvital.outbox, self.authvital.actions
        add = self.state.add_application
        self.local = add("My Local App", default_role="editor", on_sign_up=True, to_owner=True)
        self.bff = add(
            "Web BFF",
            roles={"member": "Member"},
            default_role="member",
            on_sign_up=True,
            to_owner=True,
        )
        self.seat = add(
            "Seat App", roles={"member": "Member"}, default_role="member", licensing="PER_SEAT"
        )
        self.free = self.state.add_license_type(self.local.id, "Free")
        self.bff_free = self.state.add_license_type(self.bff.id, "Free")
        self.basic = self.state.add_license_type(self.seat.id, "Basic Seat")
        self.pro = self.state.add_license_type(self.seat.id, "Pro Seat")
        self.state.system_hooks.append(SystemHook("http://127.0.0.1:9/system", SYSTEM_TYPES))

    def corp(self):
        """Sign up an owner with a tenant of theirs; return both ids."""
        owner = self.do.sign_up("owner@corp.test", given_name="Zoe", tenant_name="Corp")
        return owner.tenant_id, owner.user_id

    def member(self, tenant_id, email="ann@corp.test", **options):
        """Let someone join by invitation; return their sub."""
        return self.do.accept(self.do.invite(tenant_id, email, **options).id).user_id

    def told(self):
        """Take what was emitted, as (type, application) pairs; for systems, without one."""
        return [
            (one.type, self.state.applications[one.application_id].name)
            if one.channel == "sync"
            else (one.type, None)
            for one in self.outbox.take()
        ]


@pytest.fixture
def world(key):
    return World(key)


@pytest.fixture
def corp(world):
    """A tenant with its owner, and an empty outbox."""
    tenant_id, owner = world.corp()
    world.outbox.take()
    return tenant_id, owner


# -- the recorded run


def seen(channel, body, applications):
    """What two emissions must share to be the same: everything but ids, names and times."""
    event = json.loads(body)
    data = event["data"]
    application = event.get("application_id") or data.get("application_id")
    nothing = {name: value for name, value in data.items() if value in (None, "", [], {})}
    return (
        channel,
        event.get("type") or event.get("event"),
        applications.get(application),
        tuple(sorted(data)),
        json.dumps(nothing, sort_keys=True),
        data.get("role_slug"),
        data.get("previous_role_slug"),
        data.get("access_type"),
        data.get("license_type_name"),
        str(data.get("tenant_roles")),
        str(data.get("changed_fields")),
    )


def recorded():
    names = {
        "cmwspxuxh0007ny7dn277ejhn": "My Local App",
        "cmwspxv0v000dny7dlnzh2yjw": "Seat App",
        "cmwspxv23000iny7dzby9fmee": "Web BFF",
    }
    lines = map(json.loads, RECORDED.read_text(encoding="utf-8").splitlines())
    return Counter(seen(line["channel"], line["body"], names) for line in lines)


def act_it_out(world):
    """Do in the emulator what was done to the real AuthVital while it was recorded."""
    do = world.do
    corp, owner = world.corp()
    do.subscribe(corp, world.basic.id, quantity=5)
    people = {}
    invitations = {
        name: do.invite(
            corp,
            f"{name}@corp.test",
            by=owner,
            given_name=None if name == "nul" else name,
            family_name=None if name == "nul" else "Ünïcode",
            application_id=world.seat.id if name in ("ann", "del") else None,
            client_id=world.seat.credentials["SPA"].client_id
            if name in ("ann", "ben", "del")
            else None,
            license_type_id=world.basic.id if name == "ann" else None,
        )
        for name in ("ann", "ben", "cat", "nul", "del")
    }
    do.revoke_invitation(invitations.pop("del").id)
    for name in ("nul", "ann", "ben", "cat"):
        people[name] = do.accept(invitations[name].id).user_id
    ann, ben, cat = people["ann"], people["ben"], people["cat"]
    for sub in (ann, ben, cat):
        do.grant_access(corp, sub, world.local.id)
    do.set_app_role(corp, ann, world.local.id, "admin")
    do.grant_access(corp, ben, world.seat.id)
    do.grant_access(corp, ben, world.seat.id)
    seat = do.assign_seat(corp, cat, world.basic.id, by=owner)
    do.subscribe(corp, world.pro.id)
    do.change_seat(seat.id, world.pro.id)
    do.suspend(corp, ann)
    do.activate(corp, ann)
    do.edit_profile(ben, email="ben-renamed@corp.test", given_name="Benny")
    do.set_tenant_roles(corp, ann, ["admin"])
    do.rename_tenant(corp, "Corp Renamed", by=owner)
    do.revoke_access(corp, ben, world.local.id)
    do.revoke_seat(seat.id)
    do.remove(corp, ben)
    do.sign_up(
        "Solo@solo.test", given_name="Solo", tenant_name="Solo", application_id=world.local.id
    )
    crowd = [
        world.member(
            corp,
            f"b{number}@corp.test",
            by=owner,
            given_name=f"B{number}",
            client_id=world.local.credentials["SPA"].client_id,
        )
        for number in range(12)
    ]
    for sub in crowd:
        do.grant_access(corp, sub, world.local.id)
        do.set_app_role(corp, sub, world.local.id, "admin")
        do.revoke_access(corp, sub, world.local.id, by=owner)
        do.grant_access(corp, sub, world.local.id, by=owner)
        do.suspend(corp, sub)
        do.activate(corp, sub)
        do.remove(corp, sub)
    second = do.create_tenant("Second", by=owner)
    do.delete_tenant(second.id)
    do.create_tenant("Third")
    do.change_application(world.bff.id, description="d mwspy43g")


def test_it_tells_what_a_real_authvital_told(world):
    """The recorded run, acted out: the same events with the same keys, to the same applications."""
    act_it_out(world)
    names = {application.id: application.name for application in world.state.applications.values()}
    ours = Counter(seen(one.channel, one.body(), names) for one in world.outbox.take())

    assert ours - recorded() == Counter()
    assert recorded() - ours == Counter()


def test_it_tells_in_the_order_in_which_the_real_one_began(world, corp):
    """A seat and its access are told before the invitation that brought them."""
    tenant_id, owner = corp
    world.do.subscribe(tenant_id, world.basic.id, quantity=3)
    world.outbox.take()
    client_id = world.seat.credentials["SPA"].client_id
    sub = world.member(tenant_id, by=owner, client_id=client_id, license_type_id=world.basic.id)
    first = world.outbox.take(lambda one: one.channel == "sync")
    world.outbox.take()
    world.do.revoke_access(tenant_id, sub, world.seat.id)
    second = [one.type for one in world.outbox.take()]

    assert [one.type for one in first] == [
        "app_access.granted",
        "license.assigned",
        "invite.accepted",
        "member.joined",
    ]
    assert second == ["license.revoked", "app_access.revoked", "tenant.app.revoked"]


# -- shapes


def test_a_sync_event_is_stored_once_and_sent_the_same_every_time(world, corp):
    """Six keys in the database's order; id and timestamp are those of the moment it was told."""
    world.member(corp[0], client_id=world.local.credentials["SPA"].client_id)
    (joined,) = world.outbox.take(lambda one: one.type == "member.joined")
    world.clock.sleep(3600)
    body = joined.body()

    assert body == joined.body(mode="legacy") == jsonb(joined.event)
    assert list(json.loads(body)) == [
        "id",
        "data",
        "type",
        "tenant_id",
        "timestamp",
        "application_id",
    ]
    assert json.loads(body)["timestamp"] == "2026-11-23T03:41:21.000Z"


def test_a_system_event_has_the_order_of_its_sender(world):
    """The legacy core sends what it wrote, the broker what the database made of it."""
    world.do.create_tenant("Third")
    (created,) = world.outbox.take()

    assert list(json.loads(created.body("broker"))) == ["data", "event", "timestamp"]
    assert list(json.loads(created.body("legacy"))) == ["event", "timestamp", "data"]
    assert next(iter(json.loads(created.body("legacy"))["data"])) == "tenant_id"


def test_a_system_delivery_signs_the_body_and_ends_with_the_targets_headers(world):
    """A target may override even what AuthVital says of itself."""
    world.do.create_tenant("Third")
    (created,) = world.outbox.take()
    delivery = world.authvital.system_delivery(created, headers={"X-Webhook-Event": "mine"})

    assert delivery.body == created.body("broker")
    assert delivery.headers["X-Webhook-Event"] == "mine"
    assert delivery.headers["X-Webhook-Timestamp"] == created.event["timestamp"]
    assert not any(name.startswith("X-AuthVital") for name in delivery.headers)


def test_the_test_button_names_no_tenant(world):
    """It looks like a tenant's creation, and is none."""
    tested = world.do.press_test_button()

    assert tested.type == "tenant.created"
    assert tested.data["test"] is True
    assert "tenant_id" not in tested.data
    assert len(world.outbox) == 0


def test_one_missing_name_is_spelt_in_three_ways(world, corp):
    """Absent from a sign-up, null from an invitation, and an empty text from the members page."""
    tenant_id, _ = corp
    world.do.sign_up("solo@solo.test", application_id=world.local.id)
    (signed_up,) = world.outbox.take(lambda one: one.type == "subject.created")
    sub = world.member(tenant_id, client_id=world.local.credentials["SPA"].client_id)
    (joined,) = world.outbox.take(
        lambda one: one.type == "member.joined" and one.data["sub"] == sub
    )
    world.do.grant_access(tenant_id, sub, world.local.id)
    (granted,) = world.outbox.take(lambda one: one.type == "app_access.granted")

    assert "given_name" not in signed_up.data
    assert joined.data["given_name"] is None
    assert granted.data["given_name"] == ""


def test_a_first_role_is_told_as_a_change_from_none(world, corp):
    """The role before is three empty texts."""
    tenant_id, _ = corp
    sub = world.do.add_member(tenant_id, world.do.add_user("x@corp.test").id).user_id
    world.outbox.take()
    world.do.set_app_role(tenant_id, sub, world.local.id, "viewer")
    (changed,) = world.outbox.take()

    assert changed.data["role_slug"] == "viewer"
    assert changed.data["previous_role_slug"] == ""


# -- for whom


def test_two_subscriptions_of_one_application_double_its_events(world, corp):
    """The same content comes with two ids."""
    tenant_id, _ = corp
    world.do.subscribe(tenant_id, world.basic.id)
    world.do.subscribe(tenant_id, world.pro.id)
    world.outbox.take()
    world.member(tenant_id)
    joined = world.outbox.take(
        lambda one: one.type == "member.joined" and one.application_id == world.seat.id
    )

    assert len(joined) == 2
    assert joined[0].data == joined[1].data
    assert joined[0].event["id"] != joined[1].event["id"]


def test_status_and_leaving_are_told_where_a_role_is_held(world, corp):
    """Not where there is access without a role, and nowhere at all without roles."""
    tenant_id, _ = corp
    sub = world.member(tenant_id)
    world.do.replace_app_roles(tenant_id, sub, world.bff.id, [])
    world.outbox.take()
    world.do.suspend(tenant_id, sub)
    with_role = world.told()
    world.do.replace_app_roles(tenant_id, sub, world.local.id, [])
    world.do.remove(tenant_id, sub)

    assert with_role == [("member.suspended", "My Local App")]
    assert world.told() == []


def test_leaving_leaves_access_and_rejoining_makes_another_membership(world, corp):
    """The provider has no relation between the two tables."""
    tenant_id, _ = corp
    sub = world.member(tenant_id)
    before = world.state.membership(tenant_id, sub).id
    world.do.remove(tenant_id, sub)
    access = world.state.access[tenant_id, sub, world.local.id]
    again = world.member(tenant_id)

    assert access.active
    assert again == sub
    assert world.state.membership(tenant_id, sub).id != before


def test_a_revoked_invitation_takes_its_placeholder_with_it(world, corp):
    """Inviting the same address anew makes a new sub."""
    tenant_id, _ = corp
    first = world.do.invite(tenant_id, "Eve@corp.test")
    sub = world.state.memberships[first.membership_id].user_id
    world.do.revoke_invitation(first.id)
    second = world.do.invite(tenant_id, "eve@corp.test")

    assert sub not in world.state.users
    assert world.state.memberships[second.membership_id].user_id != sub


def test_an_application_hears_what_it_asked_for(world, corp):
    """A prefix, an exact type; what was told while it did not listen never comes."""
    tenant_id, _ = corp
    world.local.webhook_events = ("member.*", "app_access.revoked", "*")
    sub = world.member(tenant_id, client_id=world.local.credentials["SPA"].client_id)
    world.do.grant_access(tenant_id, sub, world.local.id)
    world.do.revoke_access(tenant_id, sub, world.local.id)
    filtered = [one.type for one in world.outbox.take(lambda one: one.channel == "sync")]
    world.local.webhook_enabled = False
    world.do.grant_access(tenant_id, sub, world.local.id)
    world.local.webhook_enabled = True

    assert filtered == ["member.joined", "app_access.revoked"]
    assert world.outbox.take(lambda one: one.channel == "sync") == []


# -- silence


SILENT = {
    "profile": lambda world, tenant, sub: world.do.edit_profile(sub, email="n@corp.test"),
    "tenant role": lambda world, tenant, sub: world.do.set_tenant_roles(tenant, sub, ["admin"]),
    "deleted": lambda world, tenant, sub: world.do.delete_user(sub),
    "removed": lambda world, tenant, sub: world.do.remove_quietly(tenant, sub),
    "status": lambda world, tenant, sub: world.do.set_status_quietly(tenant, sub, "SUSPENDED"),
    "roles": lambda world, tenant, sub: world.do.replace_app_roles(
        tenant, sub, world.local.id, ["admin"]
    ),
    "single sign-on": lambda world, tenant, sub: world.do.add_member(
        tenant, world.do.add_user("New@sso.test").id, silent=True
    ),
    "service account": lambda world, tenant, sub: world.do.add_service_account(tenant),
    "invitation by API": lambda world, tenant, sub: world.do.invite(
        tenant, "eve@corp.test", application_id=world.local.id, silent=True
    ),
    "its end by API": lambda world, tenant, sub: world.do.revoke_invitation(
        world.do.invite(tenant, "eve@corp.test").id, silent=True
    ),
    "expiry": lambda world, tenant, sub: world.do.expire_invitation(
        world.do.invite(tenant, "eve@corp.test").id
    ),
    "subscription": lambda world, tenant, sub: world.do.end_subscription(
        next(iter(world.state.subscriptions))
    ),
}


@pytest.mark.parametrize("path", SILENT)
def test_most_changes_tell_nobody(world, corp, path):
    """Neither the applications nor the systems."""
    tenant_id, _ = corp
    sub = world.member(tenant_id)
    world.outbox.take()
    before = repr((world.state.memberships, world.state.users, world.state.access))
    SILENT[path](world, tenant_id, sub)

    assert world.told() == []
    assert path == "expiry" or before != repr(
        (world.state.memberships, world.state.users, world.state.access)
    )


def test_some_changes_tell_systems_only(world, corp):
    """A super-admin's member, a further tenant, the console's acceptance, the access API."""
    tenant_id, owner = corp
    sub = world.do.add_user("x@corp.test").id
    world.do.add_member(tenant_id, sub)
    world.do.create_tenant("Second", by=owner)
    world.do.accept_in_console(world.do.invite(tenant_id, "eve@corp.test").id)
    world.do.grant_by_api(tenant_id, sub, world.local.id)
    world.do.revoke_by_api(tenant_id, sub, world.local.id, by=owner)

    assert world.told() == [
        ("tenant.updated", None),
        ("tenant.created", None),
        ("tenant.app.granted", None),
        ("tenant.app.granted", None),
        ("tenant.app.granted", None),
        ("tenant.app.revoked", None),
    ]


def test_a_super_admins_tenant_is_told_after_its_subscriptions(world):
    """With an owner; nobody hears that the owner is a member."""
    owner = world.do.add_user("Owner@big.test").id
    world.do.create_tenant("Big", owner=owner)
    told = world.outbox.take()

    assert [one.type for one in told] == ["tenant.app.granted"] * 4 + ["tenant.created"]
    assert told[-1].data["owner_email"] == "Owner@big.test"
    assert "created_by_sub" not in told[-1].data


def test_revoking_what_nobody_had_is_told_to_the_application_alone(world, corp):
    """Systems hear of access that ends, the application of the click."""
    tenant_id, _ = corp
    sub = world.do.add_member(tenant_id, world.do.add_user("x@corp.test").id).user_id
    world.outbox.take()
    world.do.revoke_access(tenant_id, sub, world.local.id)

    assert world.told() == [("app_access.revoked", "My Local App")]


def test_revoking_all_licences_tells_of_every_access_there_ever_was(world, corp):
    """Also where it was revoked before; the seat is told after."""
    tenant_id, _ = corp
    world.do.subscribe(tenant_id, world.basic.id)
    sub = world.member(tenant_id, license_type_id=world.basic.id)
    world.do.revoke_access(tenant_id, sub, world.bff.id)
    world.outbox.take()
    world.do.revoke_all_seats(tenant_id, sub)

    assert sorted(world.told()) == [
        ("app_access.revoked", "My Local App"),
        ("app_access.revoked", "Seat App"),
        ("app_access.revoked", "Web BFF"),
        ("license.revoked", "Seat App"),
    ]


def test_an_ended_subscription_closes_access_in_silence(world, corp):
    """Only reconciliation can find out, and not even that: no list tells of access."""
    tenant_id, _ = corp
    sub = world.member(tenant_id)
    (subscription,) = (
        one.id for one in world.state.subscriptions.values() if one.application_id == world.local.id
    )
    world.do.end_subscription(subscription)

    assert not world.state.access[tenant_id, sub, world.local.id].active
    assert world.state.access[tenant_id, sub, world.bff.id].active


# -- the future


@pytest.fixture
def tomorrow(key):
    return World(key, future=True)


def test_tomorrow_tells_all_nineteen_types(tomorrow):
    """The five that today's never sends, in the shapes that it has for them."""
    world = tomorrow
    tenant_id, _ = world.corp()
    act_it_out(world)
    sub = world.member(tenant_id)
    world.do.set_tenant_roles(tenant_id, sub, ["admin"])
    world.do.edit_profile(sub, given_name="Ann")
    world.do.deactivate_user(sub)
    world.do.expire_invitation(world.do.invite(tenant_id, "eve@corp.test").id)
    world.do.delete_user(sub)
    told = {one.type: one for one in world.outbox.take() if one.channel == "sync"}

    assert sorted(told) == sorted(SYNC_TYPES)
    assert told["member.role_changed"].data["previous_roles"] == ["member"]
    assert told["subject.updated"].data["changed_fields"] == ["given_name"]
    assert told["subject.updated"].data["given_name"] == "Ann"
    assert told["subject.deleted"].data == {"sub": sub, "email": "ann@corp.test"}
    assert set(told["invite.expired"].data) == {"invite_id", "membership_id", "email"}


@pytest.mark.parametrize(("future", "tenants"), [("one", 1), ("each", 2), (True, 2)])
def test_tomorrow_may_name_one_tenant_or_each(key, future, tenants):
    """Nobody knows which it will be."""
    world = World(key, future=future)
    _, owner = world.corp()
    second = world.do.create_tenant("Second", owner=world.do.add_user("o2@corp.test").id)
    world.do.add_member(second.id, owner)
    world.outbox.take()
    world.do.edit_profile(owner, given_name="Zo")
    told = world.outbox.take()

    assert len({one.tenant_id for one in told}) == tenants
    assert {one.type for one in told} == {"subject.updated"}


def test_today_nobody_can_be_deactivated(world, corp):
    """There is no such state; the message says how to get one."""
    with pytest.raises(RuntimeError, match="future=True"):
        world.do.deactivate_user(corp[1])


# -- what cannot be


def test_mistakes_of_a_test_are_sentences(world, corp):
    """An unknown member, tenant, role, field; a second membership; no seats; no subscription."""
    tenant_id, owner = corp
    with pytest.raises(LookupError, match="let them join first"):
        world.do.suspend(tenant_id, "nobody")
    with pytest.raises(LookupError, match="create them first"):
        world.do.add_member("nowhere", owner)
    with pytest.raises(LookupError, match="there are: admin, editor, viewer"):
        world.do.set_app_role(tenant_id, owner, world.local.id, "king")
    with pytest.raises(TypeError, match="nickname"):
        world.do.edit_profile(owner, nickname="Z")
    with pytest.raises(ValueError, match="already"):
        world.do.add_member(tenant_id, owner)
    with pytest.raises(LookupError, match=r"subscribe\(\) it first"):
        world.do.grant_access(tenant_id, owner, world.seat.id)
    world.do.subscribe(tenant_id, world.basic.id)
    world.do.assign_seat(tenant_id, owner, world.basic.id)
    with pytest.raises(LookupError, match="all 1 seats"):
        world.do.assign_seat(tenant_id, owner, world.basic.id)
    with pytest.raises(LookupError, match="no application has a role"):
        world.state.role("r")


def test_a_deleted_tenant_leaves_nothing(world, corp):
    """Memberships, access, seats and subscriptions go with it, and systems hear of it alone."""
    tenant_id, owner = corp
    world.do.subscribe(tenant_id, world.basic.id)
    world.do.assign_seat(tenant_id, owner, world.basic.id)
    world.do.invite(tenant_id, "eve@corp.test")
    world.outbox.take()
    world.do.delete_tenant(tenant_id)
    tables = (
        world.state.memberships,
        world.state.access,
        world.state.seats,
        world.state.subscriptions,
        world.state.invitations,
        world.state.tenants,
    )

    assert world.told() == [("tenant.deleted", None)]
    assert [len(table) for table in tables] == [0] * 6


# -- the outbox


@pytest.fixture
def waiting(world, corp):
    """Three emissions that wait."""
    tenant_id, owner = corp
    for slug in ("admin", "editor", "viewer"):
        world.do.set_app_role(tenant_id, owner, world.local.id, slug)
    return world.outbox


def slugs(emissions):
    return [one.data["role_slug"] for one in emissions]


def test_what_waits_can_be_seen_and_taken(waiting):
    """Looking takes nothing; taking does, all of it or what is chosen."""
    assert waiting.types == ["app_access.role_changed"] * 3
    assert slugs(waiting.take(limit=1)) == ["admin"]
    assert slugs(waiting.take(lambda one: one.data["role_slug"] == "viewer")) == ["viewer"]
    assert slugs(waiting) == ["editor"]
    assert len(waiting) == 1


def test_what_waits_can_be_lost(waiting):
    """As after the fifth attempt."""
    assert waiting.drop(lambda one: one.data["role_slug"] == "editor") == 1
    assert slugs(waiting) == ["admin", "viewer"]


def test_what_waits_can_be_held_until_later(waiting):
    """It comes back behind what waits then."""
    assert waiting.hold(limit=2) == 2
    assert slugs(waiting) == ["viewer"]
    assert waiting.release() == 2
    assert waiting.release() == 0
    assert slugs(waiting) == ["viewer", "admin", "editor"]


def test_what_waits_can_be_doubled(waiting):
    """The same event once more, with its id; taking one of the two leaves the other."""
    assert waiting.double(limit=1) == 1
    ids = [one.event["id"] for one in waiting]
    (first,) = waiting.take(limit=1)
    waiting.put(first)

    assert ids[0] == ids[3]
    assert slugs(waiting) == ["editor", "viewer", "admin", "admin"]


# -- ids and tables


def test_ids_are_the_same_for_the_same_seed():
    """Two states with one seed agree; without one, no two do."""
    assert Ids(3).uuid() == Ids(3).uuid()
    assert Ids(3).cuid() == Ids(3).cuid()
    assert Ids().cuid() != Ids().cuid()
    assert State(3).tenant_roles["owner"].id == State(3).tenant_roles["owner"].id


def test_a_credential_reads_its_own_tenants():
    """Trusted for all, or for those that it was given."""
    assert Credential("c", "MACHINE").may_read("any")
    assert not Credential("c", "MACHINE", trusted=False).may_read("any")
    assert Credential("c", "MACHINE", trusted=False, tenants={"t"}).may_read("t")


def test_a_large_tenant_is_filled_at_once(world, corp):
    """Five thousand people with their roles, of whom nobody is told."""
    people = make_people(5000, seed=2)
    world.do.populate(corp[0], people, application_id=world.local.id)
    membership = world.state.memberships[people[7].membership_id]
    world.do.populate(corp[0], make_people(2, seed=3))

    assert len(world.state.members(corp[0])) == 5003
    assert world.state.role(membership.role_ids[0]).slug == people[7].role
    assert (membership.user_id, membership.status) == (people[7].sub, "ACTIVE")
    assert world.told() == []


def test_people_are_found_by_address_in_any_case(world, corp):
    """A user without an address is no obstacle."""
    world.do.add_user(None)

    assert world.state.user_by_email("OWNER@corp.test").id == corp[1]
    assert world.state.user_by_email("nobody@corp.test") is None
