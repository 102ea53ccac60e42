"""The door for Pub/Sub push over real HTTP, with tokens under the JWKS of a local Google."""

import asyncio
import base64
import json
import shutil
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from doors import ACME, NEW, NOON, House, created, granted, moment
from guarding import APPLICATION, people, serving
from starlette.applications import Starlette
from starlette.routing import Route

from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.tokens import GOOGLE_ISSUER, TokenVerifier, google_issuers
from tenantsync.control.inbox import State
from tenantsync.migrate.control import upgrade_control
from tenantsync.sync.system import AnnouncementPolicy
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.people import Person, payload
from tenantsync.testing.pubsub import CERTS
from tenantsync.testing.server import Response
from tenantsync.web.pubsub import MAX_PUSH_BYTES, PubSubRouter

DATA = Path(__file__).parents[1] / "data"
PATH = "/webhooks/authvital/pubsub"
AUDIENCE = "https://us.example.com/webhooks/authvital/pubsub"
ACCOUNT = "push@project.iam.gserviceaccount.com"
KEY, STRANGER = SigningKey.generate(1), SigningKey.generate(2)


@pytest.fixture
def authvital():
    with Emulator(keys=Keys(STRANGER), push_keys=Keys(KEY)) as made:
        yield made


@pytest.fixture
def google(authvital):
    made = authvital.pubsub.google
    made.audience, made.service_account = AUDIENCE, ACCOUNT
    return made


@pytest.fixture
def house(tmp_path, migrated_templates):
    shutil.copyfile(migrated_templates(0), tmp_path / "acme.db")
    made = House(tmp_path, f"sqlite:///{tmp_path / 'control.db'}", AnnouncementPolicy("always"))
    upgrade_control(made.control)
    yield made
    made.close()


@contextmanager
def opened(authvital, house, application=APPLICATION):
    google = authvital.pubsub.google
    door = PubSubRouter(
        house.handler,
        house.system,
        application_id=application,
        tokens=TokenVerifier(
            KeyRing(authvital.certs_url, owner="Google", setting="pubsub.jwks_url"),
            issuers=google_issuers(GOOGLE_ISSUER),
            audience=[AUDIENCE],
        ),
        service_account=ACCOUNT,
    )
    app = Starlette(routes=[Route(PATH, door)])
    with serving(app, lifespan="off") as url, httpx2.Client(trust_env=False) as client:

        def post(body, token=None, **headers):
            token = google.token() if token is None else token
            content = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            return client.post(url + PATH, content=body, headers=content | headers)

        yield SimpleNamespace(post=post, url=url, door=door, house=house, client=client)
    door.close()


@pytest.fixture
def door(authvital, google, house):
    with opened(authvital, house) as running:
        yield running


def envelope(kind="member.joined", sub="ann", **changes):
    fields = {
        "id": f"c{kind}{sub}",
        "source": "authvital",
        "event_type": kind,
        "event_source": "sync_event",
        "timestamp": moment(NOON),
        "tenant_id": ACME,
        "application_id": APPLICATION,
        "data": payload(kind, Person(sub, f"{sub}@example.test", "Ann", "Lee")),
    }
    return fields | changes


def system(kind, data, **changes):
    return {
        "id": f"c{kind}",
        "source": "authvital",
        "event_type": kind,
        "event_source": "system_webhook",
        "timestamp": moment(NOON),
        "tenant_id": data.get("tenant_id"),
        "application_id": None,
        "data": data,
    } | changes


def push(content, **changes):
    """Return the body of a push of an envelope, or of raw bytes."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    message = {
        "data": base64.b64encode(raw).decode(),
        "attributes": {"event_type": "x", "source": "authvital"},
        "messageId": "1",
        "message_id": "1",
        "publishTime": moment(NOON),
    }
    return json.dumps({"message": message, "subscription": "projects/p/subscriptions/s"} | changes)


def broken(answer):
    """Be of no use instead of answering with the keys."""
    return Response(500)


def silent(response):
    """Return the status of an answer that says nothing more, as 204 must not."""
    assert response.content == b""
    assert "content-type" not in response.headers
    return response.status_code


def test_everything_that_is_accepted_is_answered_204(door):
    """Applied, known already, of an odd type, of another application, of an unknown tenant."""
    for each in (
        envelope(),
        envelope(),
        envelope("invite.created", application_id=APPLICATION),
        envelope(event_type="brand.new", data={}),
        envelope(sub="bob", id="foreign", application_id="another"),
        envelope(sub="bob", id="none", application_id=""),
        envelope(sub="bob", id="unknown", tenant_id=NEW),
    ):
        assert silent(door.post(push(each))) == 204
    assert people(door.house.place) == ["ann"]
    assert door.house.parked() == [("member.joined", "UnknownTenant")]
    assert [delivery.outcome for delivery in door.house.told] == [
        "applied",
        "duplicate",
        *["ignored"] * 4,
        "parked",
    ]


def test_what_is_parked_is_read_again_from_the_inbox(door):
    """The body that is kept is the envelope, which holds the same event."""
    door.post(push(envelope(tenant_id=NEW)))
    (entry,) = door.house.inbox.list()
    assert (entry.event_id, entry.door) == ("cmember.joinedann", "pubsub")
    assert json.loads(door.house.inbox.show(entry.number).body) == envelope(tenant_id=NEW)


def test_the_system_channels_events_go_where_they_belong(door):
    """A name, an announcement, a grant, a deletion: as by their own webhook."""
    assert silent(door.post(push(system("tenant.created", created())))) == 204
    assert silent(door.post(push(system("tenant.app.granted", granted())))) == 204
    assert silent(door.post(push(system("sso.provider_removed", {"tenant_id": None})))) == 204
    assert door.house.profiles.find(NEW).name == "New Ltd"
    assert door.house.parked() == [("tenant.created", "provisioning")]
    assert people(door.house.place) == ["ann"]

    gone = {"tenant_id": ACME, "name": "Acme", "slug": "acme"}
    assert silent(door.post(push(system("tenant.deleted", gone)))) == 204
    assert door.house.directory.find(ACME).suspended


def test_a_grant_of_another_application_is_none_of_ours(door):
    """The topic carries what concerns all of them."""
    foreign = system("tenant.app.granted", granted(application="another"))
    assert silent(door.post(push(foreign))) == 204
    assert people(door.house.place) == []


def test_a_sync_type_under_the_system_channels_name_changes_nothing(door):
    """And the other way round: each channel has its own types."""
    door.house.hooks.on("*")(lambda event, session: None)
    mixed = envelope(event_source="system_webhook")
    assert silent(door.post(push(mixed))) == 204
    turned = system("tenant.deleted", {"tenant_id": ACME}, event_source="sync_event")
    assert silent(door.post(push(turned | {"application_id": APPLICATION}))) == 204
    assert people(door.house.place) == []
    assert not door.house.directory.find(ACME).suspended


def examples():
    lines = (DATA / "authvital-examples.jsonl").read_text("utf-8").splitlines()
    return [case for case in map(json.loads, lines) if case.get("channel") == "pubsub-push"]


@pytest.mark.parametrize("case", examples(), ids=lambda case: case["case"])
def test_published_examples_are_accepted(authvital, google, house, case):
    """Every push of the provider's own forms: none is poison, all are acknowledged."""
    application = case["envelope"]["application_id"] or APPLICATION
    with opened(authvital, house, application) as door:
        assert silent(door.post(json.dumps(case["body"]))) == 204
        assert house.inbox.list(state=State.QUARANTINED) == []


# Whom to trust


def wrong_tokens(google):
    now = int(time.time())
    posing = SigningKey(KEY.kid, STRANGER.private)
    return {
        "of another audience": (401, google.token(aud="https://elsewhere")),
        "of another issuer": (401, google.token(iss="https://accounts.google.com.evil")),
        "expired": (401, google.token(exp=now - 61)),
        "issued in the future": (401, google.token(iat=now + 120)),
        "signed by another key": (401, google.token(key=posing)),
        "of an unknown key": (401, google.token(key=STRANGER)),
        "without an account": (401, google.token(email=None)),
        "of another account": (403, google.token(email="x" + ACCOUNT)),
        "of an account in capitals": (403, google.token(email=ACCOUNT.upper())),
        "of an unverified account": (403, google.token(email_verified=False)),
        "of an account verified in words": (403, google.token(email_verified="true")),
        "no token": (401, "abc"),
    }


def test_only_the_subscriptions_own_account_may_push(google, door):
    """Everybody else is refused before a byte of the body is parsed, poison included."""
    for name, (status, token) in wrong_tokens(google).items():
        for body in (push(envelope()), b"{"):
            response = door.post(body, token)
            assert (name, response.status_code) == (name, status)
            assert ACCOUNT not in response.text
    assert people(door.house.place) == []
    assert door.house.inbox.list() == []


def test_googles_name_without_its_scheme_is_google_too(google, door):
    """It signs under both."""
    token = google.token(iss="accounts.google.com")
    assert silent(door.post(push(envelope()), token)) == 204


def test_clocks_may_differ_by_a_minute(google, door):
    """Either way."""
    now = int(time.time())
    for number, changes in enumerate(({"exp": now - 30}, {"iat": now + 30})):
        body = push(envelope(sub=f"p{number}"))
        assert silent(door.post(body, google.token(**changes))) == 204


def test_the_token_stands_in_one_header_and_nowhere_else(google, door):
    """Not twice, not under another scheme, not in the query."""
    token = google.token()
    body = push(envelope())
    headers = {"Content-Type": "application/json"}
    for authorization in ("", token, f"Basic {token}", "Bearer", f"Bearer {token} {token}"):
        assert door.post(body, Authorization=authorization).status_code == 401
    url = f"{door.url}{PATH}?access_token={token}"
    assert door.client.post(url, content=body, headers=headers).status_code == 401
    twice = [*headers.items(), *[("Authorization", f"Bearer {token}")] * 2]
    assert door.client.post(door.url + PATH, content=body, headers=twice).status_code == 401
    assert silent(door.post(body, Authorization=f"bearer {token}")) == 204


def test_with_googles_keys_out_of_reach_a_push_comes_again(authvital, google, house):
    """503: nobody knows yet who sends."""
    authvital.faults.spoil[CERTS] = broken
    with opened(authvital, house) as door:
        response = door.post(push(envelope()))
        assert response.status_code == 503
        assert response.json()["reason"] == "KeysUnavailable"


def test_known_keys_serve_through_an_outage_and_new_ones_are_fetched(authvital, google, house):
    """Google rotates its keys every few days."""
    with opened(authvital, house) as door:
        assert silent(door.post(push(envelope()))) == 204
        authvital.faults.spoil[CERTS] = broken
        assert silent(door.post(push(envelope(sub="bob")))) == 204
        assert [request.path for request in authvital.requests] == [CERTS]


def test_a_body_without_a_token_is_not_even_awaited(authvital, door):
    """The answer comes while the body is still to come."""
    host, port = door.url.removeprefix("http://").split(":")
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: 5000\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(request.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")
    assert authvital.requests == []


# What cannot be read


POISON = {
    "no JSON": b"{",
    "no object": b"[]",
    "no message": json.dumps({"subscription": "s"}),
    "a message of text": json.dumps({"message": "x"}),
    "no data": json.dumps({"message": {}}),
    "no base64": json.dumps({"message": {"data": "%%%"}}),
    "base64 without its padding": json.dumps({"message": {"data": "e30"}}),
    "base64 of no JSON": push(b"{"),
    "another source": push(envelope(source="somebody")),
    "no id": push(envelope(id=None)),
    "no type": push(envelope(event_type=None)),
    "an unknown channel": push(envelope(event_source="email")),
    "no channel": push(envelope(event_source=None)),
    "no subject": push(envelope(data={})),
    "the bare envelope": json.dumps(envelope()),
    "a sync webhook": json.dumps({**envelope(), "type": "member.joined"}),
    "a push in a push": push(push(envelope()).encode()),
}


def test_only_the_envelope_in_the_message_counts(door):
    """What stands beside it is not signed for by anybody, and is not read."""
    inside, beside = push(envelope(sub="inside")), envelope(sub="beside")
    assert silent(door.post(json.dumps(beside | json.loads(inside)))) == 204
    assert people(door.house.place) == ["inside"]


@pytest.mark.parametrize("name", POISON)
def test_poison_is_quarantined_and_acknowledged(door, name):
    """A refusal would bring it back for as long as the subscription keeps it."""
    assert silent(door.post(POISON[name])) == 204
    (entry,) = door.house.inbox.list()
    assert entry.state is State.QUARANTINED
    assert people(door.house.place) == []


def test_a_push_may_be_a_third_longer_than_a_webhook(door):
    """Base64 makes it so; beyond that it is 413."""
    padding = "x" * (256 * 1024 - 800)
    big = envelope(data={**envelope()["data"], "padding": padding})
    assert 256 * 1024 < len(push(big)) <= MAX_PUSH_BYTES
    assert silent(door.post(push(big))) == 204
    assert door.post(b"x" * (MAX_PUSH_BYTES + 1)).status_code == 413
    assert people(door.house.place) == ["ann"]


def test_what_can_neither_be_applied_nor_parked_comes_again(authvital, google, tmp_path):
    """503, and Google delivers it again."""
    lost = House(tmp_path, "postgresql+psycopg://x@127.0.0.1:1/x", AnnouncementPolicy("always"))
    try:
        with opened(authvital, lost) as door:
            for body in (push(envelope(tenant_id=NEW)), push(system("tenant.created", created()))):
                response = door.post(body)
                assert response.status_code == 503
                assert int(response.headers["retry-after"]) > 0
            assert door.post(POISON["no id"]).status_code == 503
    finally:
        lost.close()


def test_the_two_functions_answer_as_the_application_does(google, door):
    """For frameworks that have read the request already."""
    headers = {"AUTHORIZATION": f"Bearer {google.token()}"}
    for number, (content, status) in enumerate(
        ((envelope(id="1"), 204), (system("tenant.updated", created()), 204), (b"{", 204))
    ):
        body = push(content).encode()
        assert door.door.handle_blocking(body, headers) == (status, {})
        assert asyncio.run(door.door.handle(body, headers)) == (status, {})
        assert asyncio.run(door.door.handle(body, {}))[0] == 401, number
    twice = {**headers, "authorization": headers["AUTHORIZATION"]}
    assert door.door.handle_blocking(b"{}", twice)[0] == 401


# What AuthVital publishes


def test_what_happens_at_authvital_arrives_over_the_topic(authvital, google, door):
    """A tenant's people through its own actions, with AuthVital's envelope and Google's token."""
    state, do = authvital.state, authvital.actions
    app = state.add_application("Our App", id=APPLICATION, default_role="editor")
    tenant = do.create_tenant("Acme", id=ACME)
    free = state.add_license_type(app.id, "Free")
    state.topic_events = ("*",)
    do.subscribe(ACME, free.id)
    ann = do.accept(do.invite(ACME, "ann@corp.test").id)
    do.suspend(ACME, ann.user_id)
    do.rename_tenant(ACME, "Acme Ltd")
    done = authvital.pubsub.deliver_waiting(door.url + PATH)

    assert [one.envelope["event_type"] for one, _ in done] == [
        "tenant.app.granted",
        "invite.created",
        "tenant.app.granted",
        "invite.accepted",
        "member.joined",
        "member.suspended",
        "tenant.updated",
    ]
    assert [one.status for _, attempts in done for one in attempts] == [204] * 7
    assert people(door.house.place) == [ann.user_id]
    assert door.house.profiles.find(tenant.id).name == "Acme Ltd"


def test_a_message_that_is_published_twice_is_applied_once(authvital, google, door):
    """And a token that the receiver refuses brings it back until it is dead."""
    authvital.state.add_application("Our App", id=APPLICATION)
    authvital.state.topic_events = ("member.*",)
    authvital.actions.create_tenant("Acme", id=ACME)
    ann = authvital.actions.sign_up("ann@corp.test", tenant_id=ACME, application_id=APPLICATION)
    message = authvital.pubsub.publish(*authvital.pubsub.topic.take())
    google.service_account = "x" + ACCOUNT
    refused = authvital.pubsub.deliver(message, door.url + PATH)
    google.service_account = ACCOUNT
    for each in (message, authvital.pubsub.republish(message)):
        assert authvital.pubsub.deliver(each, door.url + PATH)[-1].status == 204

    assert [one.status for one in refused] == [403] * 10
    assert people(door.house.place) == [ann.user_id]
    assert [delivery.outcome for delivery in door.house.told] == [
        *[None] * 10,
        "applied",
        "duplicate",
    ]
