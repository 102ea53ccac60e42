"""The local AuthVital without its network: keys, byte form, signatures, payloads, wicked ones."""

import ast
import base64
import hashlib
import json
import random
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from tenantsync.testing import wicked
from tenantsync.testing.delivery import LADDERS, VirtualClock, iso, jsonb, sign_system
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import PASSIVE_LIFETIME, Keys, SigningKey
from tenantsync.testing.people import (
    APP_ROLES,
    SYNC_TYPES,
    Person,
    make_people,
    payload,
    stream,
)

NOW = 1_787_378_400.5
TENANT = "93ce0187-9290-491b-9f06-be209b3d2f92"
APPLICATION = "cmwspxuxh0007ny7dn277ejhn"
EXAMPLES = Path(__file__).parent.parent / "data" / "authvital-examples.jsonl"
ADA = Person("f9524e6f", "ada@example.test", "Ada", "Lindqvist")


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate(NOW)


@pytest.fixture(scope="module")
def other_key():
    return SigningKey.generate(NOW + 1)


@pytest.fixture
def clock():
    return VirtualClock(NOW)


@pytest.fixture
def emulator(key, other_key, clock):
    spare = [other_key]
    keys = Keys(key, clock=clock, generate=lambda at: spare.pop())
    return Emulator(keys=keys, clock=clock, sleep=clock.sleep, new_id=lambda: "event-1")


@pytest.fixture
def body(emulator):
    data = payload("member.joined", ADA)
    return emulator.event("member.joined", tenant_id=TENANT, application_id=APPLICATION, data=data)


def trusted(emulator, delivery):
    """Whether a verifier that holds the emulator's published keys would accept the signature."""
    keys = {jwk["kid"]: jwk for jwk in emulator.jwks()["keys"]}
    jwk = keys.get(delivery.headers.get("X-AuthVital-Key-Id"))
    if jwk is None:
        return False
    n, e = (
        int.from_bytes(base64.urlsafe_b64decode(jwk[part] + "=" * (-len(jwk[part]) % 4)), "big")
        for part in ("n", "e")
    )
    public = rsa.RSAPublicNumbers(e, n).public_key()
    signed = delivery.headers["X-AuthVital-Timestamp"].encode() + b"." + delivery.body
    signature = base64.b64decode(delivery.headers["X-AuthVital-Signature"], validate=True)
    try:
        public.verify(signature, signed, padding.PKCS1v15(), SHA256())
    except InvalidSignature:
        return False
    return True


def recorded():
    text = (files("tenantsync.demo") / "recorded.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def generator():
    """A generator that draws the same order every time."""
    return random.Random(1)  # noqa: S311 - an order, not a secret


# -- byte form


def test_the_byte_form_is_what_a_real_authvital_sent():
    """Every recorded body, parsed and written again, has the very bytes of the recording."""
    bodies = [line["body"] for line in recorded()]

    again = [jsonb(dict(reversed(json.loads(body).items()))).decode() for body in bodies]

    assert again == bodies
    assert len(bodies) == 186


def test_keys_are_ordered_by_length_then_bytes_at_every_depth():
    """The order is that of jsonb: shorter keys first, in bytes and not in characters."""
    value = {"bb": 1, "é": 2, "a": {"zz": [{"yyy": 1, "x": 2}], "z": None}, "aa": True}

    assert jsonb(value) == '{"a":{"z":null,"zz":[{"x":2,"yyy":1}]},"aa":true,"bb":1,"é":2}'.encode()


def test_texts_are_escaped_as_javascript_does():
    """Slashes, non-ASCII and U+2028 stay as they are; control characters do not."""
    value = {"a": 'ü/"\\\n\x1f\x7f\u2028'}

    assert jsonb(value) == '{"a":"ü/\\"\\\\\\n\\u001f\x7f\u2028"}'.encode()


def test_whole_floats_are_written_as_javascript_does():
    """JavaScript has one kind of number, so 1.0 becomes 1."""
    assert jsonb([1.0, 1.5, 2]) == b"[1,1.5,2]"


@pytest.mark.parametrize("text", ["a\x00b", "\ud800"])
def test_what_the_provider_cannot_store_is_an_error(text):
    """U+0000 and lone surrogates, in keys too, cannot be emitted."""
    for value in ({"name": text}, {text: 1}, [text]):
        with pytest.raises(ValueError, match="cannot store"):
            jsonb(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_no_json_are_an_error(value):
    """NaN and infinities cannot be emitted."""
    with pytest.raises(ValueError, match="JSON"):
        jsonb({"n": value})


def test_a_key_that_is_no_text_is_an_error():
    """Python would turn the number into a text; JSON has no such key."""
    with pytest.raises(TypeError, match="no string"):
        jsonb({1: "one"})


def test_times_have_three_decimals_and_a_z():
    """Whole seconds keep their three zeros."""
    assert [iso(1_787_378_400_000), iso(1_787_378_400_123)] == [
        "2026-08-22T06:00:00.000Z",
        "2026-08-22T06:00:00.123Z",
    ]


# -- events and signatures


def test_an_event_has_the_six_keys_in_their_order(body):
    """The envelope is complete, and its time is that of the clock in milliseconds."""
    event = json.loads(body)

    assert list(event) == ["id", "data", "type", "tenant_id", "timestamp", "application_id"]
    assert event["id"] == "event-1"
    assert event["timestamp"] == "2026-08-22T06:00:00.500Z"
    assert list(event["data"]) == [
        "sub", "email", "given_name", "family_name", "tenant_roles", "membership_id",
    ]  # fmt: skip


def test_id_and_timestamp_may_be_given(emulator):
    """A timestamp may be milliseconds, or any text where a test wants an odd one."""
    events = [
        json.loads(
            emulator.event("x", tenant_id="t", application_id="a", data={}, id="i", timestamp=time)
        )
        for time in (0, "yesterday")
    ]

    assert [(event["id"], event["timestamp"]) for event in events] == [
        ("i", "1970-01-01T00:00:00.000Z"),
        ("i", "yesterday"),
    ]


def test_a_delivery_has_the_real_headers(emulator, body, key):
    """Six headers with AuthVital's spelling, whose signature covers timestamp, dot and body."""
    delivery = emulator.delivery(body)

    assert list(delivery.headers) == list(recorded()[0]["headers"])
    assert delivery.headers["Content-Type"] == "application/json"
    assert delivery.headers["X-AuthVital-Key-Id"] == key.kid
    assert delivery.headers["X-AuthVital-Timestamp"] == "1787378400"
    assert delivery.headers["X-AuthVital-Event-Id"] == "event-1"
    assert delivery.headers["X-AuthVital-Event-Type"] == "member.joined"
    assert len(delivery.headers["X-AuthVital-Signature"]) == 344
    assert trusted(emulator, delivery)


def test_the_signature_is_what_the_standard_says(emulator, body):
    """Opened by hand, it holds the padding and the digest of RFC 8017, 9.2, and nothing else."""
    delivery = emulator.delivery(body)
    public = emulator.keys.active.private.public_key().public_numbers()
    signature = int.from_bytes(base64.b64decode(delivery.headers["X-AuthVital-Signature"]), "big")
    opened = pow(signature, public.e, public.n).to_bytes(256, "big")
    algorithm = bytes.fromhex("3031300d060960864801650304020105000420")
    digest = hashlib.sha256(b"1787378400." + body).digest()

    assert opened == b"\x00\x01" + b"\xff" * 202 + b"\x00" + algorithm + digest


def test_every_attempt_is_signed_anew(emulator, body, clock):
    """A later attempt has a later header timestamp over the same body."""
    first = emulator.delivery(body)
    clock.sleep(60)
    second = emulator.delivery(body)

    assert second.body == first.body
    assert second.headers["X-AuthVital-Timestamp"] == "1787378460"
    assert second.headers["X-AuthVital-Signature"] != first.headers["X-AuthVital-Signature"]


@pytest.mark.parametrize("odd", [b"", b"\xff", b"[1]", b'{"id":"\\n","type":7}', b"[" * 100_000])
def test_any_bytes_can_be_signed(emulator, odd):
    """A test may sign what AuthVital would never send; the unsigned headers are then a dash."""
    delivery = emulator.delivery(odd)

    assert trusted(emulator, delivery)
    assert delivery.headers["X-AuthVital-Event-Id"] == "-"
    assert delivery.headers["X-AuthVital-Event-Type"] == "-"


def test_the_emulator_cannot_be_used_over_http_before_it_runs(emulator, body):
    """The error says how to run it."""
    with pytest.raises(RuntimeError, match="with Emulator"):
        emulator.url  # noqa: B018
    with pytest.raises(RuntimeError, match="with Emulator"):
        emulator.deliver(body, "http://127.0.0.1:1/")


# -- keys


def test_a_key_id_looks_as_authvitals(key):
    """It holds the time of its making in milliseconds and eight hex digits."""
    assert re.fullmatch(r"key_1787378400500_[0-9a-f]{8}", key.kid)


def test_a_jwk_is_the_public_half_alone(key):
    """No private member is ever published, and the modulus has 2048 bits."""
    jwk = key.jwk()

    assert sorted(jwk) == ["alg", "e", "kid", "kty", "n", "use"]
    assert (jwk["e"], jwk["kty"], jwk["alg"], jwk["use"]) == ("AQAB", "RSA", "RS256", "sig")
    assert len(jwk["n"]) == 342


def test_no_key_is_printed(key):
    """The private half stays out of every representation."""
    assert "private" not in repr(key)


def test_keys_are_made_when_first_needed(key):
    """An emulator costs nothing until it signs, and makes one key only."""
    made = []
    keys = Keys(clock=lambda: NOW, generate=lambda at: made.append(at) or key)

    assert made == []
    assert keys.active is keys.active is key
    assert made == [NOW]


def test_a_new_key_signs_at_once_and_the_old_one_stays_published(emulator, key, other_key, body):
    """Rotation never announces a key before it signs."""
    before = emulator.delivery(body)
    new = emulator.keys.rotate()
    after = emulator.delivery(body)

    assert new is other_key
    assert [jwk["kid"] for jwk in emulator.jwks()["keys"]] == [other_key.kid, key.kid]
    assert after.headers["X-AuthVital-Key-Id"] == other_key.kid
    assert trusted(emulator, before)
    assert trusted(emulator, after)


def test_a_passive_key_expires(emulator, clock, key, other_key):
    """After 192 hours a rotated key is no longer published."""
    emulator.keys.rotate()
    clock.sleep(PASSIVE_LIFETIME - 1)
    still = len(emulator.jwks()["keys"])
    clock.sleep(1)

    assert still == 2
    assert emulator.keys.published() == [other_key]


def test_a_revoked_key_disappears_at_once(emulator, key, other_key):
    """Where the signing key is revoked, a new one takes over."""
    revoked = emulator.keys.revoke()

    assert revoked is key
    assert emulator.keys.published() == [other_key]
    assert emulator.keys.active is other_key


def test_a_passive_key_can_be_revoked(key, other_key):
    """Only the named key goes; the others stay."""
    third = replace(key, kid="third")
    keys = Keys(key, third, other_key, clock=lambda: NOW)

    assert keys.revoke(other_key.kid) is other_key
    assert keys.published() == [key, third]


def test_the_first_rotation_may_come_before_any_key(key):
    """There is no old key to publish then."""
    keys = Keys(clock=lambda: NOW)

    assert keys.rotate(key) is key
    assert keys.published() == [key]


def test_revoking_an_unknown_key_is_an_error(key):
    """The message names the id that nobody has."""
    with pytest.raises(LookupError, match="'nobody'"):
        Keys(key).revoke("nobody")


# -- people


def test_there_are_nineteen_types():
    """Four about subjects, five members, three of access, four invitations, three licences."""
    families = [name.split(".")[0] for name in SYNC_TYPES]

    assert {family: families.count(family) for family in dict.fromkeys(families)} == {
        "subject": 4,
        "member": 5,
        "app_access": 3,
        "invite": 4,
        "license": 3,
    }


@pytest.mark.parametrize("event_type", SYNC_TYPES)
@pytest.mark.parametrize("person", [ADA, replace(ADA, given_name=None, family_name=None)])
def test_payloads_have_the_keys_of_the_real_ones(event_type, person):
    """Some example of the same type has these keys, with values of the same types."""
    lines = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    shapes = [
        {key: type(value) for key, value in line["body"]["data"].items()}
        for line in lines
        if line["dialect"] == "wire" and line.get("event_type") == event_type
    ]
    ours = {key: type(value) for key, value in payload(event_type, person).items()}

    assert any(
        ours.keys() <= shape.keys() <= ours.keys() | {"given_name", "family_name"}
        and all(ours[key] in (shape[key], type(None)) or shape[key] is type(None) for key in ours)
        for shape in shapes
    )


def test_a_missing_name_is_spelt_in_three_ways():
    """Absent from sign-up, null from invitations, empty from the members page."""
    nobody = Person("s", None)

    assert "given_name" not in payload("subject.created", nobody)
    assert payload("member.joined", nobody)["given_name"] is None
    assert payload("app_access.granted", nobody)["given_name"] == ""
    assert payload("member.left", nobody)["email"] is None


def test_overrides_win():
    """A test may set any key, also one that the type does not carry."""
    data = payload("member.left", ADA, email=None, extra=1)

    assert data["email"] is None
    assert data["extra"] == 1


def test_an_unknown_type_has_no_payload():
    """The message lists the types there are."""
    with pytest.raises(ValueError, match=r"use one of subject\.created"):
        payload("member.exploded", ADA)


def test_a_person_without_a_role_has_empty_role_keys():
    """A portal grant carries the three keys with empty texts."""
    data = payload("app_access.granted", replace(ADA, role=""))

    assert [data["role_id"], data["role_name"], data["role_slug"]] == ["", "", ""]


def test_a_named_person_is_the_same_every_time():
    """Two processes that name an address mean one subject, with a membership for each tenant."""
    first = Person.named("ada@example.test", tenant_id="a")
    again = Person.named("ada@example.test", tenant_id="a")
    elsewhere = Person.named("ada@example.test", tenant_id="b")

    assert first == again
    assert elsewhere.sub == first.sub
    assert elsewhere.membership_id != first.membership_id
    assert Person.named("ada@example.test", sub="me").sub == "me"


def test_a_stream_is_the_same_for_the_same_seed():
    """Bytes and ids follow from the seed, and differ for another one or another tenant."""
    people = make_people(20, seed=7)
    first = stream(TENANT, APPLICATION, people, seed=7)

    assert stream(TENANT, APPLICATION, make_people(20, seed=7), seed=7) == first
    assert stream(TENANT, APPLICATION, people, seed=8) != first
    assert not {json.loads(b)["id"] for b in stream("other", APPLICATION, people, seed=7)} & {
        json.loads(b)["id"] for b in first
    }


def test_a_stream_tells_twenty_lives():
    """Everybody joins, in order of time; all that a tenant sees today happens at least once."""
    people = make_people(20)
    events = [json.loads(body) for body in stream(TENANT, APPLICATION, people)]
    times = [event["timestamp"] for event in events]
    joined = {event["data"]["sub"] for event in events if event["type"] == "member.joined"}

    assert times == sorted(times)
    assert len({event["id"] for event in events}) == len(events)
    assert joined == {person.sub for person in people}
    assert {event["type"] for event in events} == {
        "subject.created",
        "member.joined",
        "member.left",
        "member.suspended",
        "member.activated",
        "app_access.granted",
        "app_access.revoked",
        "app_access.role_changed",
        "invite.accepted",
    }


def test_a_changed_role_names_the_role_before():
    """Each change begins with the role that the person had."""
    roles = {}
    for body in stream(TENANT, APPLICATION, make_people(20, seed=3), seed=3):
        event = json.loads(body)
        data = event["data"]
        if event["type"] == "app_access.role_changed":
            assert data["previous_role_slug"] == roles[data["sub"]] != data["role_slug"]
        if "role_slug" in data:
            roles[data["sub"]] = data["role_slug"]
            assert data["role_name"] == APP_ROLES[data["role_slug"]]


# -- wicked ones

FALSE = ("tampered", "retimed", "unknown-kid", "forged", "revoked-key")
TRUE = ("stale", "future", "mislabelled", "foreign-application", "foreign-tenant", "delayed")


@pytest.mark.parametrize("name", FALSE)
def test_false_signatures_are_false(emulator, body, name):
    """No published key stands behind these."""
    (spoilt,) = wicked.WICKED[name](emulator, emulator.delivery(body))

    assert not trusted(emulator, spoilt)


@pytest.mark.parametrize("name", TRUE)
def test_true_signatures_with_something_else_amiss(emulator, body, name):
    """Only the clock, the audience or the unsigned headers tell that these are odd."""
    plain = emulator.delivery(body)
    (spoilt,) = wicked.WICKED[name](emulator, plain)

    assert trusted(emulator, spoilt)
    assert spoilt != plain


def test_each_wicked_one_does_what_it_says(emulator, body):
    """The one thing that is wrong is wrong, and the rest is as it was."""
    plain = emulator.delivery(body)
    event = json.loads(body)

    def read(delivery):
        return json.loads(delivery.body)

    def time(delivery):
        return int(delivery.headers["X-AuthVital-Timestamp"])

    assert read(wicked.tampered(emulator, plain))["data"]["email"] == "mallory@example.test"
    assert wicked.tampered(emulator, plain).headers == plain.headers
    assert time(wicked.stale(emulator, plain, age=301)) == 1_787_378_099
    assert time(wicked.future(emulator, plain, ahead=61)) == 1_787_378_461
    assert time(wicked.retimed(emulator, plain)) == 1_787_378_400
    assert wicked.forged(emulator, plain).headers["X-AuthVital-Key-Id"] == emulator.keys.active.kid
    assert read(wicked.foreign_application(emulator, plain)) == event | {
        "application_id": wicked.FOREIGN_APPLICATION
    }
    assert read(wicked.foreign_tenant(emulator, plain)) == event | {
        "tenant_id": wicked.FOREIGN_TENANT
    }
    assert read(wicked.delayed(emulator, plain, seconds=60))["timestamp"] == (
        "2026-08-22T05:59:00.500Z"
    )
    assert wicked.mislabelled(emulator, plain).headers["X-AuthVital-Event-Type"] == (
        "subject.deleted"
    )
    assert sorted(wicked.missing_headers(emulator, plain).headers) == [
        "Content-Type",
        "X-AuthVital-Event-Id",
        "X-AuthVital-Event-Type",
    ]
    assert len(wicked.missing_headers(emulator, plain, names=["content-type"]).headers) == 5


def test_a_revoked_key_is_gone_afterwards(emulator, body, key, other_key):
    """The emulator signs the next delivery with a new key."""
    spoilt = wicked.revoked_key(emulator, emulator.delivery(body))

    assert spoilt.headers["X-AuthVital-Key-Id"] == key.kid
    assert emulator.delivery(body).headers["X-AuthVital-Key-Id"] == other_key.kid


def test_the_system_scheme_signs_the_body_alone(emulator, body, key):
    """It has none of this door's headers, and its signature covers no timestamp."""
    spoilt = wicked.system_scheme(emulator, emulator.delivery(body))

    assert not any(name.startswith("X-AuthVital") for name in spoilt.headers)
    assert spoilt == sign_system(
        body, key, event_type="member.joined", timestamp="2026-08-22T06:00:00.500Z"
    )
    key.private.public_key().verify(
        base64.b64decode(spoilt.headers["X-Webhook-Signature"]),
        body,
        padding.PKCS1v15(),
        SHA256(),
    )


def test_doubled_content_has_a_second_id(key, body, clock):
    """The provider does this to tenants with two subscriptions; only the id differs."""
    emulator = Emulator(keys=Keys(key), clock=clock)
    plain = emulator.delivery(body)
    first, second = wicked.WICKED["doubled"](emulator, plain)

    assert first is plain
    assert json.loads(second.body)["id"] != "event-1"
    assert json.loads(second.body) | {"id": "event-1"} == json.loads(body)


def test_spoiling_what_is_no_event_is_an_error(emulator):
    """The message says what to spoil instead."""
    with pytest.raises(TypeError, match="no event"):
        wicked.tampered(emulator, emulator.delivery(b"[]"))


def test_sequences_can_be_repeated_and_shuffled(emulator):
    """Nothing is lost or invented, and the same generator draws the same order."""
    deliveries = [emulator.delivery(b"%d" % number) for number in range(10)]
    scattered = wicked.duplicated(deliveries, rng=generator())

    assert wicked.duplicated(deliveries[:2]) == [deliveries[i] for i in (0, 0, 1, 1)]
    assert sorted(d.body for d in scattered) == sorted(d.body for d in deliveries * 2)
    assert scattered == wicked.duplicated(deliveries, rng=generator())
    assert wicked.reordered(deliveries, rng=generator()) != deliveries


def test_five_attempts_are_all_there_are():
    """The ladders are those of the provider: about seven minutes, and about eighty-one."""
    assert {mode: (len(waits) + 1, sum(waits)) for mode, waits in LADDERS.items()} == {
        "broker": (5, 400),
        "legacy": (5, 4860),
    }


def test_the_emulator_never_imports_the_receiver():
    """Two implementations of one format: the sender's modules know nothing of the receiver's."""
    # `observe` for the words in which a receiver's answer is told to a test.
    allowed = (
        "tenantsync.testing",
        "tenantsync.errors",
        "tenantsync.tenants",
        "tenantsync.observe",
    )
    imported = set()
    for file in (Path(str(files("tenantsync.testing")))).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module)

    assert [
        name for name in sorted(imported)
        if name.startswith("tenantsync") and not name.startswith(allowed)
    ] == []  # fmt: skip
