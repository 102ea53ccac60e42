"""The door for system webhooks over real HTTP: tenants announced, renamed, suspended, deleted."""

import asyncio
import contextlib
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import httpx2
import pytest
from doors import ACME, NEW, NOON, House, created, granted, moment
from doors import system_body as body_of
from guarding import APPLICATION, ask, ledger, make, people, serving
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.routing import Route

from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.signatures import SystemVerifier
from tenantsync.control.inbox import Inbox, State
from tenantsync.control.profiles import TenantProfiles
from tenantsync.errors import TenantUnavailable, UnknownTenant
from tenantsync.events import Dialect, Event, parse
from tenantsync.migrate.control import upgrade_control
from tenantsync.migrate.provision import Provisioner
from tenantsync.observe import Outcome
from tenantsync.sync.system import AnnouncementPolicy, key_of
from tenantsync.testing.delivery import sign_system
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.web.system import SystemWebhookRouter
from tenantsync.worker.drain import Drainer
from tenantsync.worker.provisioning import TenantProvisioning

DATA = Path(__file__).parents[1] / "data"
PATH = "/webhooks/authvital/system"
KEY = SigningKey.generate(1)
both = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def authvital():
    with Emulator(keys=Keys(KEY), sleep=lambda seconds: None) as running:
        yield running


@pytest.fixture(params=["sqlite"])
def database_url(request, tmp_path):
    """Where the control database is; on SQLite unless a test asks for PostgreSQL too."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").create_database()
    return f"sqlite:///{tmp_path / 'control.db'}"


@pytest.fixture
def house(tmp_path, database_url, migrated_templates):
    shutil.copyfile(migrated_templates(0), tmp_path / "acme.db")
    made = []

    def make_house(policy="ignore", allowlist=()):
        made.append(House(tmp_path, database_url, AnnouncementPolicy(policy, allowlist)))
        upgrade_control(made[-1].control)
        return made[-1]

    yield make_house
    for each in made:
        each.close()


@contextlib.contextmanager
def opened(authvital, house):
    """Serve the door, and give it with a function that sends an event."""
    keys = KeyRing(f"{authvital.url}/.well-known/jwks.json")
    door = SystemWebhookRouter(house.system, verifier=SystemVerifier(keys))
    app = Starlette(routes=[Route(PATH, door)])
    with serving(app, lifespan="off") as url, httpx2.Client(trust_env=False) as client:

        def post(body, headers):
            response = client.post(url + PATH, content=body, headers=dict(headers))
            return response.status_code, response.json()

        def send(kind, at=NOON, **data):
            body = body_of(kind, at, **data)
            return post(body, signed(authvital, body).headers)

        yield SimpleNamespace(post=post, send=send, door=door, house=house, keys=keys)
    door.close()


@pytest.fixture
def door(authvital, house):
    with opened(authvital, house()) as running:
        yield running


def signed(authvital, body, key=None):
    return sign_system(body, key or authvital.keys.active, event_type="x", timestamp="x")


# Tenants


@both
def test_by_default_an_announced_tenant_only_gets_a_name(door):
    """Anyone can make tenants at the provider: nothing is made, nothing waits."""
    assert door.send("tenant.created", **created()) == (200, {"outcome": "ignored"})
    assert door.house.profiles.find(NEW).name == "New Ltd"
    assert door.house.inbox.list() == []
    assert door.house.reasons() == ["not_provisioned"]


@both
def test_an_allowed_tenant_waits_for_a_worker(authvital, house):
    """202: the inbox has it, under its tenant, in a lane that a worker may claim."""
    with opened(authvital, house("allowlist", [NEW])) as door:
        assert door.send("tenant.created", **created()) == (202, {"outcome": "parked"})
        assert door.send("tenant.created", **created()) == (202, {"outcome": "parked"})
        assert door.send("tenant.created", **created("another")) == (200, {"outcome": "ignored"})
        assert door.house.parked() == [("tenant.created", "provisioning")]
        lane = door.house.inbox.claim("me")
        assert (lane.tenant_id, lane.known) == (NEW, False)


def test_a_tenant_that_is_there_is_not_made(authvital, house):
    """It is only handed to the hooks that want to hear of it."""
    with opened(authvital, house("always")) as door:
        assert door.send("tenant.created", **created(ACME)) == (200, {"outcome": "ignored"})
        assert door.house.reasons() == ["tenant_exists"]
        heard = []
        door.house.hooks.on("tenant.*")(lambda event, session: heard.append(event.type))
        assert door.send("tenant.created", NOON + 1, **created(ACME))[0] == 200
        assert heard == ["tenant.created"]
        assert door.house.inbox.list() == []


@both
def test_a_deleted_tenant_is_never_made(authvital, house):
    """The announcement may come after the end, by retries."""
    with opened(authvital, house("always")) as door:
        assert door.send("tenant.deleted", tenant_id=NEW, name="New Ltd", slug="new")[0] == 200
        assert door.send("tenant.created", NOON - 9, **created()) == (200, {"outcome": "ignored"})
        assert door.house.reasons()[-1] == "tenant_deleted"
        assert door.house.inbox.list() == []


def test_a_tenant_that_was_made_and_removed_stays_removed(authvital, house):
    """An operator took it away; a late repetition does not bring it back."""
    with opened(authvital, house("always")) as door:
        door.house.profiles.mark_provisioned(NEW)
        assert door.send("tenant.created", **created()) == (200, {"outcome": "ignored"})
        assert door.house.reasons() == ["tenant_removed"]


def test_beyond_the_bound_strangers_tenants_are_ignored(authvital, house):
    """What is not remembered is not made either."""
    crowded = house("always")
    crowded.profiles = TenantProfiles(crowded.control, max_profiles=0)
    crowded.system._profiles = crowded.profiles
    with opened(authvital, crowded) as door:
        assert door.send("tenant.created", **created()) == (200, {"outcome": "ignored"})
        assert door.house.reasons() == ["too_many_tenants"]


@both
def test_names_follow_the_clock_and_not_the_order(door):
    """The greater one wins; keys of earlier releases are read too."""
    new = {"tenant_id": ACME, "changed_fields": ["name"], "settings": {}}
    assert door.send("tenant.updated", NOON + 5, **new, name="Five", slug="five") == (
        200,
        {"outcome": "applied"},
    )
    assert door.send("tenant.updated", NOON + 4, **new, name="Four", slug="four") == (
        200,
        {"outcome": "stale"},
    )
    assert door.send("tenant.updated", NOON + 6, **new, tenant_name="Six", tenant_slug="six") == (
        200,
        {"outcome": "applied"},
    )
    assert door.send("tenant.created", NOON + 1, **created(ACME))[0] == 200
    found = door.house.profiles.find(ACME)
    assert (found.name, found.slug) == ("Six", "six")


@both
def test_a_deleted_tenant_is_suspended_and_its_data_kept(door):
    """Its people stay; nothing more is written until somebody resumes it."""
    assert door.house.handler.handle_blocking(make("member.joined", tenant=ACME)) == "applied"
    gone = {"tenant_id": ACME, "name": "Acme", "slug": "acme", "deleted_at": moment(NOON)}

    assert door.send("tenant.deleted", **gone) == (200, {"outcome": "applied"})
    assert door.house.profiles.find(ACME).deleted
    assert door.house.directory.find(ACME).suspended
    late = make("member.joined", sub="bob", tenant=ACME)
    assert door.house.handler.handle_blocking(late) == "parked"
    assert people(door.house.place) == ["ann"]


@pytest.mark.parametrize("kind", ["tenant.deleted", "tenant.suspended"])
def test_whoever_resumed_a_tenant_is_not_overruled_by_a_repetition(door, kind):
    """The same event again says nothing new; a later one does."""
    gone = {"tenant_id": ACME, "name": "Acme", "slug": "acme"}
    assert door.send(kind, **gone) == (200, {"outcome": "applied"})
    assert door.house.directory.find(ACME).suspended
    door.house.catalog.resume("acme")

    assert door.send(kind, **gone) == (200, {"outcome": "duplicate"})
    assert not door.house.directory.find(ACME).suspended
    assert door.send(kind, NOON + 1, **gone) == (200, {"outcome": "applied"})
    assert door.house.directory.find(ACME).suspended


def test_hooks_hear_of_the_end_before_the_tenant_is_closed(door):
    """Their effects are in the tenant's database, and then it is suspended."""

    @door.house.hooks.on("tenant.deleted")
    def farewell(event, session):
        suspended.append(door.house.directory.find(ACME).suspended)
        session.execute(text("UPDATE av_identities SET nickname = 'alumna'"))

    suspended = []
    door.house.handler.handle_blocking(make("member.joined", tenant=ACME))
    assert door.send("tenant.deleted", tenant_id=ACME, name="Acme", slug="acme")[0] == 200
    assert suspended == [False]
    assert ask(door.house.place, "SELECT nickname FROM {s}av_identities") == [("alumna",)]
    assert door.house.directory.find(ACME).suspended


def test_a_suspension_that_failed_is_done_by_the_next_delivery(authvital, house):
    """First the deed, then the note of it: 503 in between, and the retry does it all."""
    shaky = house()
    failures = iter([TenantUnavailable("the control database is away")])

    def suspend(key):
        for failure in failures:
            raise failure
        shaky.catalog.suspend(key)

    shaky.system._suspend = suspend
    with opened(authvital, shaky) as door:
        gone = {"tenant_id": ACME, "name": "Acme", "slug": "acme"}
        assert door.send("tenant.deleted", **gone)[0] == 503
        assert not shaky.profiles.find(ACME).deleted
        assert door.send("tenant.deleted", **gone) == (200, {"outcome": "applied"})
        assert shaky.directory.find(ACME).suspended


def test_a_tenant_that_is_deleted_while_a_worker_makes_it_is_suspended_too(door):
    """It is not in service yet, but its key is known: that of its digest."""
    door.house.profiles.book(NEW, per_hour=1)
    assert door.send("tenant.deleted", tenant_id=NEW, name="New", slug="new")[0] == 200
    assert key_of(NEW) in door.house.catalog.news().suspended


# People


def test_access_in_the_user_form_counts_as_access_to_our_application(door):
    """The subject is the user; what was granted can be revoked."""
    assert door.send("tenant.app.granted", **granted()) == (200, {"outcome": "applied"})
    assert access(door) == [("ann", True)]
    assert door.send("tenant.app.revoked", NOON + 1, **granted()) == (200, {"outcome": "applied"})
    assert access(door) == [("ann", False)]
    assert door.send("tenant.app.granted", NOON - 1, **granted()) == (200, {"outcome": "stale"})


def access(door):
    rows = ask(door.house.place, "SELECT id, has_app_access FROM {s}av_identities")
    return [(sub, bool(has)) for sub, has in rows]


def test_what_grants_nobody_access_to_ours_writes_nothing(door):
    """An invitation, a subscription, another application, none at all."""
    subscription = {"tenant_id": ACME, "application_id": APPLICATION, "subscription_id": "s"}
    for kind, data in (
        ("tenant.app.granted", granted(access="INVITED")),
        ("tenant.app.granted", subscription),
        ("tenant.app.granted", granted(application="another")),
        ("tenant.app.revoked", granted(application="another")),
        ("tenant.app.granted", granted(application=None)),
    ):
        assert door.send(kind, **data) == (200, {"outcome": "ignored"})
    assert people(door.house.place) == []
    assert door.house.inbox.list() == []
    reasons = ["type", "type", *["other_application"] * 3]
    assert door.house.reasons() == reasons


def test_a_grant_for_an_unregistered_tenant_is_parked(door):
    """As every event is that concerns us and cannot be applied yet."""
    assert door.send("tenant.app.granted", **granted(tenant=NEW)) == (202, {"outcome": "parked"})
    assert door.house.parked() == [("tenant.app.granted", "UnknownTenant")]


def test_types_of_the_other_channel_change_nothing_here(door):
    """A signature of this channel says nothing of a person's membership."""
    door.house.hooks.on("*")(lambda event, session: None)
    for kind in ("member.joined", "subject.deleted", "app_access.granted"):
        data = {"sub": "ann", "tenant_id": ACME, "application_id": APPLICATION}
        assert door.send(kind, **data) == (200, {"outcome": "ignored"})
    assert people(door.house.place) == []


def test_the_rest_is_ignored_and_handed_to_hooks_of_a_registered_tenant(door):
    """Types without a tenant, or with one that is not ours, reach nobody."""
    heard = []
    door.house.hooks.on("*")(lambda event, session: heard.append(event.type))
    for kind, tenant in (
        ("application.updated", None),
        ("sso.provider_added", None),
        ("tenant.updated", "nobody"),
        ("brand.new", "nobody"),
        ("brand.new", "x" * 300),
        ("tenant.updated", "x" * 300),
        ("brand.new", ACME),
    ):
        data = {"tenant_id": tenant, "application_id": "any", "name": "Acme"}
        assert door.send(kind, **data)[0] == 200
    assert heard == ["brand.new"]
    assert door.house.profiles.list(["x" * 300, "nobody"]).keys() == {"nobody"}
    assert door.house.inbox.list() == []


# The delivery


def test_the_providers_test_button_gets_its_2xx(door):
    """It names no tenant, and is nobody's announcement."""
    test = {"test": True, "message": "This is a test", "webhookId": "c1"}
    assert door.send("tenant.created", **test) == (200, {"outcome": "ignored"})
    assert door.send("tenant.created", **created(), test=True) == (200, {"outcome": "ignored"})
    assert door.house.reasons() == ["test", "test"]
    assert door.house.profiles.find(NEW) is None


def test_one_event_in_two_key_orders_is_one_event(authvital, door):
    """Two processes of the provider send the same event in different bytes."""
    data = granted()
    first = {"event": "tenant.app.granted", "timestamp": moment(NOON), "data": data}
    second = {
        "data": dict(reversed(data.items())),
        "event": "tenant.app.granted",
        "timestamp": moment(NOON),
    }
    outcomes = []
    for envelope in (first, second):
        body = json.dumps(envelope).encode()
        outcomes.append(door.post(body, signed(authvital, body).headers)[1]["outcome"])
    assert outcomes == ["applied", "duplicate"]
    assert len(ledger(door.house.place)) == 1


def test_what_a_running_authvital_sent_is_taken_byte_for_byte(authvital, house):
    """All 75 recorded deliveries, under the key that signed them, hours after they were sent."""
    authvital.faults.body = (DATA / "recorded-jwks.json").read_bytes()
    lines = (DATA / "webhooks-broker.jsonl").read_text().splitlines()
    recorded = [line for line in map(json.loads, lines) if line["channel"] == "system"]
    with opened(authvital, house("always")) as door:
        answers = [door.post(line["body"].encode(), line["headers"]) for line in recorded]

        assert {status for status, _ in answers} == {200, 202}
        made = {json.loads(line["body"])["data"].get("tenant_id") for line in recorded} - {None}
        parked = {entry.tenant_id for entry in door.house.inbox.list(limit=1000)}
        assert parked <= made
        before = len(door.house.inbox.list(limit=1000))
        again = [door.post(line["body"].encode(), line["headers"])[0] for line in recorded]
        assert set(again) == {200, 202}
        assert len(door.house.inbox.list(limit=1000)) == before
        deleted = [tenant for tenant in made if (door.house.profiles.find(tenant) or empty).deleted]
        assert len(deleted) == 1


empty = SimpleNamespace(deleted=False)


def test_what_is_authentic_but_no_system_event_is_kept(authvital, door):
    """202, for an operator to look at: 4xx would be final, and nobody sends it again."""
    sync = json.dumps(
        {"id": "e", "type": "member.joined", "timestamp": moment(NOON), "data": {"sub": "ann"}}
    ).encode()
    odd = body_of("tenant.updated", tenant_id=7)
    for body, field in ((b"", "body"), (b"[]", "body"), (sync, "body"), (odd, "data.tenant_id")):
        delivery = signed(authvital, body)
        status, said = door.post(body, delivery.headers)
        assert (status, said["outcome"], said["reason"]) == (202, "parked", "malformed")
        assert said["field"] == field
    assert {entry.state for entry in door.house.inbox.list()} == {State.QUARANTINED}


@both
def test_what_is_unreadable_and_beyond_the_bound_is_not_said_to_be_kept(authvital, door):
    """202 nevertheless: no answer may punish the provider. Strangers do not take the room."""
    body = body_of("tenant.updated", tenant_id=7)
    headers = signed(authvital, body).headers
    expected = {"reason": "malformed", "field": "data.tenant_id", "detail": ANY}
    inside = door.house

    inside.parking.inbox = Inbox(inside.control, max_unknown_bytes=0, max_nameless_bytes=0)
    assert door.post(body, headers) == (202, {"outcome": "ignored", **expected})
    assert inside.inbox.list() == []
    assert inside.reasons() == ["inbox_full"]

    inside.parking.inbox = Inbox(inside.control, max_unknown_bytes=0)
    assert door.post(body, headers) == (202, {"outcome": "parked", **expected})
    (kept,) = inside.inbox.list()
    assert inside.inbox.show(kept.number).body == body

    # An operator does not want it, and it comes again: it is not kept either.
    inside.inbox.discard()
    assert door.post(body, headers) == (202, {"outcome": "ignored", **expected})


def test_only_a_signature_of_this_channel_opens_the_door(authvital, door):
    """Not one over other bytes, not one of the other channel, none at all."""
    body = body_of("tenant.deleted", tenant_id=ACME)
    good = signed(authvital, body).headers
    other = authvital.delivery(body).headers
    for headers in (
        {"Content-Type": "application/json"},
        {**good, "X-Webhook-Signature": signed(authvital, body + b" ").headers[SIGNATURE]},
        other,
        {**good, "X-Webhook-Signature": other["X-AuthVital-Signature"]},
    ):
        assert door.post(body, headers)[0] == 401
    assert not door.house.directory.find(ACME).suspended
    # What is not signed does not matter.
    assert door.post(body, {**good, "X-Webhook-Event": "x", "X-Webhook-Timestamp": "?"})[0] == 200


SIGNATURE = "X-Webhook-Signature"


def test_an_unknown_key_is_refused_once_and_then_put_off(authvital, door):
    """401 is final here: only a fetch of the delivery's own says that a key is nobody's."""
    body = body_of("tenant.updated", tenant_id=ACME, name="Acme")
    lost = authvital.keys.revoke()
    headers = signed(authvital, body, lost).headers
    assert door.post(body, headers)[0] == 401
    assert door.post(body, headers) == (
        503,
        {"error": "unavailable", "reason": "KeysUnavailable"},
    )
    assert door.post(body, signed(authvital, body).headers)[0] == 200


def test_with_the_jwks_out_of_reach_a_delivery_is_put_off(authvital, house):
    """503, which the broker repeats for 41 hours."""
    authvital.faults.status = 500
    with opened(authvital, house()) as door:
        assert door.send("tenant.created", **created())[0] == 503


def test_with_the_control_database_out_of_reach_a_delivery_is_put_off(authvital, tmp_path, house):
    """Names and suspensions could not be remembered."""
    lost = House(tmp_path, "postgresql+psycopg://x@127.0.0.1:1/x", AnnouncementPolicy())
    try:
        with opened(authvital, lost) as door:
            for kind in ("tenant.created", "tenant.updated", "tenant.deleted"):
                status, said = door.send(kind, **created())
                assert (status, said["reason"]) == (503, "ControlUnavailable")
            assert [delivery.error for delivery in lost.told] == ["ControlUnavailable"] * 3
    finally:
        lost.close()


def test_the_blocking_function_answers_as_the_application_does(authvital, house):
    """Every course that an event can take, without an event loop."""
    blocking, looping = house("always"), house("always")
    for number, (kind, data) in enumerate(
        (
            ("tenant.created", created("other-" + NEW)),
            ("tenant.updated", created(ACME)),
            ("tenant.app.granted", granted("someone")),
            ("tenant.app.granted", granted(application="another")),
            ("tenant.suspended", created("nobody")),
            ("sso.provider_added", {"tenant_id": None}),
        )
    ):
        event = [parse(body_of(kind, NOON + number * 2 + n, **data)) for n in (0, 1)]
        body = b"{}"
        first = blocking.system.handle_blocking(event[0], door="x", body=body)
        second = asyncio.run(looping.system.handle(event[1], door="x", body=body))
        assert first == second
    lost = House(Path("/nowhere"), "postgresql+psycopg://x@127.0.0.1:1/x", AnnouncementPolicy())
    with pytest.raises(TenantUnavailable):
        lost.system.handle_blocking(
            parse(body_of("tenant.updated", **created())), door="x", body=body
        )
    lost.close()


def test_every_order_of_a_tenants_life_ends_the_same(house):
    """Created, renamed, deleted, in any order: the last name, deleted, and never made."""
    lives = house("always")
    for number, order in enumerate(itertools.permutations(range(3))):
        tenant = f"tenant-{number}"
        life = [
            ("tenant.created", NOON, created(tenant, "One", "one")),
            ("tenant.updated", NOON + 1, created(tenant, "Two", "two")),
            ("tenant.deleted", NOON + 2, created(tenant, "Two", "two")),
        ]
        for step in order:
            kind, at, data = life[step]
            body = body_of(kind, at, **data)
            lives.system.handle_blocking(parse(body), door="system", body=body)
        found = lives.profiles.find(tenant)
        assert (found.name, found.slug, found.deleted) == ("Two", "two", True)


def test_parked_events_of_a_tenant_are_applied_once_it_is_made(authvital, house, tmp_path):
    """Announced, spoken of, made by a worker, and up to date: nothing was lost on the way."""
    with opened(authvital, house("always")) as door:
        inside = door.house
        early = make("member.joined", sub="early", tenant=NEW)
        assert inside.handler.handle_blocking(early) is Outcome.PARKED
        assert door.send("tenant.created", **created())[0] == 202
        assert door.send("tenant.app.granted", **granted(tenant=NEW))[0] == 202

        provisioner = Provisioner(inside.directory, inside.isolation)
        drainer = Drainer(
            inside.inbox,
            inside.handler,
            provisioning=TenantProvisioning(
                inside.policy, inside.profiles, provisioner.add, suspend=inside.suspend
            ),
            owner="test",
        )
        inside.inbox.retry(tenant_id=NEW)  # now, and not in a second
        while (lane := drainer.claim()) is not None:
            drainer.drain(lane)

        assert inside.profiles.find(NEW).provisioned
        assert people(inside.isolation.place(key_of(NEW))) == ["ann", "early"]
        assert inside.parked() == []
        assert inside.directory.find(NEW).key == key_of(NEW)


@both
def test_an_announced_tenant_is_bounded_until_it_is_made(authvital, house):
    """Whoever may announce tenants fills no disk while they wait for their turn."""
    with opened(authvital, house("always")) as door:
        inside = door.house
        inside.parking.inbox = Inbox(inside.control, max_unknown_events=5)

        def drain(max_per_hour):
            provisioner = Provisioner(inside.directory, inside.isolation)
            drainer = Drainer(
                inside.inbox,
                inside.handler,
                provisioning=TenantProvisioning(
                    *(inside.policy, inside.profiles, provisioner.add),
                    suspend=inside.suspend,
                    max_per_hour=max_per_hour,
                ),
                owner="test",
            )
            lane = drainer.claim(NEW)
            return drainer.drain(lane)

        def arrive(number):
            for index in range(number):
                with contextlib.suppress(UnknownTenant):
                    event = make("member.joined", sub=f"p{index}", tenant=NEW)
                    inside.handler.handle_blocking(event)
            return inside.inbox.totals().parked

        assert door.send("tenant.created", **created()) == (202, {"outcome": "parked"})
        assert arrive(20) == 5
        assert drain(max_per_hour=0).error == "ProvisioningDelayed"
        assert arrive(20) == inside.inbox.totals().unknown == 5
        (lane,) = inside.inbox.lanes()
        assert lane.announced
        assert "max_per_hour" in lane.error

        drained = drain(max_per_hour=1)
        assert (drained.provisioned, drained.settled.total()) == (1, 5)
        assert inside.inbox.lanes() == []
        assert inside.inbox.totals().unknown == 0


def test_an_event_of_the_system_channel_is_what_the_handler_expects():
    """The tests' bodies are read as the provider's are."""
    event = parse(body_of("tenant.app.granted", **granted()))
    assert isinstance(event, Event)
    assert (event.dialect, event.sub) == (Dialect.SYSTEM, "ann")
