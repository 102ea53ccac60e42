"""The local AuthVital's Pub/Sub channel: what is published, pushed and proven; no network."""

import base64
import json
from pathlib import Path

import jwt
import pytest

from tenantsync.testing.delivery import Attempt, VirtualClock, jsonb
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.outbox import Emission
from tenantsync.testing.people import Ids
from tenantsync.testing.pubsub import Google, PubSub, acknowledged

NOW = 1_795_405_281.0
EXAMPLES = Path(__file__).parent.parent / "data" / "authvital-examples.jsonl"
URL = "http://push.test"


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate(NOW)


class World:
    """An AuthVital with one application and a tenant, whose every event goes to the topic."""

    def __init__(self, key):
        self.clock = VirtualClock(NOW)
        self.authvital = Emulator(
            clock=self.clock, issuer="-", seed=7, push_keys=Keys(key, clock=self.clock)
        )
        self.state, self.do = self.authvital.state, self.authvital.actions
        self.pubsub, self.topic = self.authvital.pubsub, self.authvital.pubsub.topic
        self.app = self.state.add_application("App")
        self.state.topic_events = ("*",)

    def joined(self):
        """Let somebody sign up; return the emission of the joining."""
        self.do.sign_up("ada@corp.test", application_id=self.app.id)
        (joined,) = self.topic.take(lambda one: one.type == "member.joined")
        self.topic.take()
        return joined


@pytest.fixture
def world(key):
    return World(key)


def examples():
    lines = map(json.loads, EXAMPLES.read_text("utf-8").splitlines())
    return {one["case"]: one for one in lines if one.get("channel") == "pubsub-push"}


def opened(body):
    """Return a push and the envelope in it."""
    push = json.loads(body)
    return push, json.loads(base64.b64decode(push["message"]["data"], validate=True))


# -- the envelope


def test_an_envelope_has_ids_and_a_time_of_its_own(world):
    """Nothing in it leads back to the event that the webhook carries."""
    joined = world.joined()
    (envelope, event) = (world.pubsub.publish(joined).envelope, joined.event)

    assert len(envelope["id"]) == 25
    assert envelope["id"].startswith("c")
    assert envelope["timestamp"] == "2026-11-23T03:41:21.004Z" > event["timestamp"]
    assert event["id"] not in json.dumps(envelope)
    assert envelope["data"] == event["data"]
    assert world.pubsub.publish(joined).envelope == envelope


def test_pushes_have_the_keys_of_the_real_ones(world):
    """A sync event, counted by a dead-letter policy; a system event, without an application."""
    message = world.pubsub.publish(world.joined())
    push, envelope = opened(message.body(world.pubsub.subscription, attempt=3))
    real = examples()["pubsub-app-access-revoked-redelivery"]
    world.do.create_tenant("Corp", by=world.do.add_user("o@corp.test").id)
    (created,) = world.topic.take()
    system, inside = opened(world.pubsub.publish(created).body("s"))
    real_system = examples()["pubsub-tenant-created"]

    assert list(push) == list(real["body"])
    assert list(push["message"]) == list(real["body"]["message"])
    assert list(push["message"]["attributes"]) == list(real["body"]["message"]["attributes"])
    assert list(envelope) == list(real["envelope"])
    assert list(system) == list(real_system["body"])
    assert list(inside) == list(real_system["envelope"])
    assert list(inside["data"]) == list(real_system["envelope"]["data"])
    assert inside["application_id"] is None


def test_an_ordering_key_names_tenant_and_application(world):
    """A system event's is the tenant; without a tenant there is none, and an empty attribute."""
    joined = world.joined()
    sync = world.pubsub.publish(joined)
    tenant = world.do.create_tenant("Corp")
    world.do.set_sso_provider("GOOGLE")
    created, added = map(world.pubsub.publish, world.topic.take())

    assert sync.ordering_key == f"{joined.tenant_id}:{world.app.id}"
    assert created.ordering_key == created.attributes["tenant_id"] == tenant.id
    assert added.ordering_key is None
    assert added.attributes == {
        "event_type": "sso.provider_added",
        "event_source": "system_webhook",
        "tenant_id": "",
        "source": "authvital",
    }
    assert (added.envelope["tenant_id"], added.envelope["application_id"]) == (None, None)
    assert "orderingKey" not in json.loads(added.body("s"))["message"]


def test_an_event_of_the_webhook_can_be_published_too(world):
    """Without a row of its own it gets another at each call."""
    world.do.sign_up("ada@corp.test", application_id=world.app.id)
    first = world.authvital.outbox.take()[0]
    ids = {world.pubsub.publish(first).envelope["id"] for _ in range(2)}

    assert len(ids) == 2


def test_two_cores_publish_one_row_twice(world):
    """One envelope, two messages of Google's."""
    first = world.pubsub.publish(world.joined())
    world.clock.sleep(10)
    second = world.pubsub.republish(first)

    assert second.data == first.data
    assert second.id != first.id
    assert second.published > first.published


# -- what reaches the topic


def test_at_first_nothing_is_published(world):
    """An empty list is none; what happened meanwhile never comes."""
    world.state.topic_events = ()
    world.do.sign_up("ada@corp.test", application_id=world.app.id)
    world.state.topic_events = ("*",)

    assert len(world.topic) == 0
    assert world.authvital.outbox.types == ["subject.created", "member.joined"]


@pytest.mark.parametrize(
    ("wanted", "published"),
    [
        (("*",), {"tenant.created", "tenant.app.granted", "member.joined"}),
        (("tenant.*",), {"tenant.created"}),
        (("tenant.app.*",), {"tenant.app.granted"}),
        (("member.joined",), {"member.joined"}),
        (("member",), set()),
    ],
)
def test_a_wildcard_ends_at_the_last_full_stop(world, wanted, published):
    """So that `tenant.*` does not cover `tenant.app.granted`."""
    world.state.topic_events = wanted
    types = {"tenant.created", "tenant.app.granted", "member.joined"}

    assert {one for one in types if world.state.publishes(one)} == published


def test_the_topic_hears_what_no_webhook_hears(world):
    """An invitation without an application, and what the webhook's filter leaves out."""
    world.app.webhook_enabled = False
    owner = world.do.sign_up("ada@corp.test", application_id=world.app.id)
    world.do.invite(owner.tenant_id, "bob@corp.test")
    *_, invited = world.topic.take()

    assert len(world.authvital.outbox) == 0
    assert (invited.type, invited.application_id) == ("invite.created", "")
    assert world.pubsub.publish(invited).envelope["application_id"] == ""
    assert world.pubsub.publish(invited).ordering_key == f"{owner.tenant_id}:"


# -- the token


def test_the_token_is_googles_and_not_authvitals(world, key):
    """It says for whom and by whom; AuthVital's own key set does not hold its key."""
    google = world.pubsub.google
    google.audience, google.service_account = "https://us.test/push", "push@us.test"
    claims = jwt.decode(
        google.token(),
        key.private.public_key(),
        algorithms=["RS256"],
        audience="https://us.test/push",
        issuer="https://accounts.google.com",
        options={"verify_exp": False, "verify_iat": False},
    )

    assert (claims["email"], claims["email_verified"]) == ("push@us.test", True)
    assert (claims["iat"], claims["exp"]) == (NOW, NOW + 3600)
    assert key.kid not in {one["kid"] for one in world.authvital.jwks()["keys"]}


def test_claims_can_be_changed_and_left_out(world):
    """None takes a claim out; another key signs under its own id."""
    stranger = SigningKey.generate(2)
    token = world.pubsub.google.token(key=stranger, email=None, aud="x")
    claims = jwt.decode(token, options={"verify_signature": False})

    assert "email" not in claims
    assert claims["aud"] == "x"
    assert jwt.get_unverified_header(token)["kid"] == stranger.kid


def test_a_push_may_carry_no_token_or_one_of_the_tests(world):
    """A subscription without authentication; a forged one."""
    message = world.pubsub.publish(world.joined())
    mine = world.pubsub.push(message, token="abc").headers["Authorization"]
    with_token = world.pubsub.push(message).headers["Authorization"]
    world.pubsub.bearer = False

    assert mine == "Bearer abc"
    assert with_token.startswith("Bearer ey")
    assert "Authorization" not in world.pubsub.push(message).headers


# -- delivery


class Receiver:
    """Answers from a list, and then 204; remembers what it was sent."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.seen = []

    def __call__(self, delivery, url, number):
        push, envelope = opened(delivery.body)
        self.seen.append((envelope["data"].get("sub"), push.get("deliveryAttempt"), number))
        status = self.answers.pop(0) if self.answers else 204
        return Attempt(number, 0.0, delivery, status)


def subscribed(key, receiver, clock=None):
    clock = clock or VirtualClock(NOW)
    return PubSub(
        ids=Ids(1),
        google=Google(Keys(key, clock=clock), clock=clock),
        send=receiver,
        clock=clock,
        sleep=clock.sleep,
    )


def test_google_takes_five_statuses_for_an_acknowledgement():
    """Neither any other success nor silence."""
    taken = [status for status in range(100, 600) if acknowledged(status)]

    assert taken == [102, 200, 201, 202, 204]
    assert not acknowledged(None)


def test_a_push_comes_again_until_it_is_acknowledged(world, key):
    """After other successes and client errors as well; the message stays the same."""
    receiver = Receiver(500, 400, 203, 302, None, 204)
    pubsub = subscribed(key, receiver)
    message = pubsub.publish(world.joined())
    attempts = pubsub.deliver(message, URL)

    assert [one.status for one in attempts] == [500, 400, 203, 302, None, 204]
    assert [(counted, number) for _, counted, number in receiver.seen] == [
        (number, number) for number in range(1, 7)
    ]
    assert len({opened(one.delivery.body)[1]["id"] for one in attempts}) == 1


def test_after_ten_deliveries_a_message_is_dead(world, key):
    """As AuthVital sets its subscription up; another number is a test's choice."""
    pubsub = subscribed(key, Receiver(*[503] * 40))
    message = pubsub.publish(world.joined())

    assert len(pubsub.deliver(message, URL)) == 10
    assert len(pubsub.deliver(message, URL, most=25)) == 25


def test_without_a_dead_letter_policy_nobody_counts(world, key):
    """The push does not say which delivery it is."""
    receiver = Receiver(500)
    pubsub = subscribed(key, receiver)
    pubsub.dead_letter = False
    pubsub.deliver(pubsub.publish(world.joined()), URL)

    assert [counted for _, counted, _ in receiver.seen] == [None, None]


def test_a_pause_between_deliveries_goes_through_the_clock(world, key):
    """AuthVital's set-up has none; the token is a fresh one each time."""
    clock = VirtualClock(NOW)
    pubsub = subscribed(key, Receiver(500, 500), clock)
    pubsub.backoff = 4000.0
    attempts = pubsub.deliver(pubsub.publish(world.joined()), URL)
    tokens = {one.delivery.headers["Authorization"] for one in attempts}

    assert clock() == NOW + 8000
    assert len(tokens) == 3


@pytest.mark.parametrize(
    ("ordered", "seen"),
    [(True, ["a1", "b1", "a1", "a2"]), (False, ["a1", "a2", "b1", "a1"])],
)
def test_a_message_holds_back_those_of_its_key(world, key, ordered, seen):
    """Where the subscription keeps order; another tenant's go on either way."""
    emitted = []
    tenants = {name: world.do.create_tenant(name).id for name in "ab"}
    for name in ("a1", "a2", "b1"):
        event = {
            "id": name,
            "type": "member.left",
            "timestamp": "2026-11-23T03:41:21.000Z",
            "tenant_id": tenants[name[0]],
            "application_id": world.app.id,
            "data": {"sub": name},
        }
        emitted.append(Emission("sync", "member.left", "", world.app.id, event))
    receiver = Receiver(500)
    pubsub = subscribed(key, receiver)
    pubsub.ordered = ordered
    pubsub.topic.put(*emitted)
    done = pubsub.deliver_waiting(URL)

    assert [sub for sub, _, _ in receiver.seen] == seen
    assert [len(attempts) for _, attempts in done] == [2, 1, 1]
    assert len(pubsub.topic) == 0


def test_a_dead_message_no_longer_holds_anything_back(world, key):
    """Those behind it come, and what is not chosen waits on."""
    world.do.sign_up("ada@corp.test", application_id=world.app.id)
    receiver = Receiver(500, 500)
    pubsub = subscribed(key, receiver)
    pubsub.topic.put(*world.topic.take())
    world.do.create_tenant("Corp")
    pubsub.topic.put(*world.topic.take())
    done = pubsub.deliver_waiting(URL, which=lambda one: one.channel == "sync", most=2)

    assert [[one.status for one in attempts] for _, attempts in done] == [[500, 500], [204]]
    assert pubsub.topic.types == ["tenant.created"]


def test_the_data_has_the_databases_order_and_the_envelope_the_codes(world):
    """The one came out of the database, the other was written around it."""
    message = world.pubsub.publish(world.joined())

    assert message.data.endswith(b'"data":' + jsonb(message.envelope["data"]) + b"}")
    assert message.data.startswith(b'{"id":"c')
