"""`parse` reads every example in every dialect, and names the field of a wrong body."""

import base64
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tenantsync.errors import Malformed
from tenantsync.events import (
    MAX_DEPTH,
    MAX_TIMESTAMP,
    SYNC_TYPES,
    SYSTEM_TYPES,
    Dialect,
    Event,
    parse,
)

ROOT = Path(__file__).parents[2]
LINES = [
    json.loads(line)
    for line in (ROOT / "tests/data/authvital-examples.jsonl").read_text("utf-8").splitlines()
]
EXAMPLES = {line["case"]: line for line in LINES if line["channel"] != "jwks"}
SIGNED_AT = 1_787_378_400
CARGO = "coe56bwycivgq6bybuckmw8si"
HARBOUR = "93ce0187-9290-491b-9f06-be209b3d2f92"
MIRRORED = [name for name in SYNC_TYPES if name.split(".")[0] not in ("invite", "license")]


def dump(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def raw(case: str) -> bytes:
    line = EXAMPLES[case]
    return line["raw_body"].encode() if "raw_body" in line else dump(line["body"])


def wire(event_type: str = "member.joined", **changes: Any) -> dict[str, Any]:
    """A plain sync body; `changes` go to its envelope, those named `data_...` to its data."""
    data = {"sub": "u1", "email": "ana@harbourclinic.test", "tenant_roles": ["owner"]}
    body = {
        "id": "e1",
        "data": data,
        "type": event_type,
        "tenant_id": "t1",
        "timestamp": "2026-08-22T06:00:37.847Z",
        "application_id": "a1",
    }
    for key, value in changes.items():
        holder, name = (data, key[5:]) if key.startswith("data_") else (body, key)
        holder[name] = value
    return body


def without(body: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != key}


def fault(body: bytes, **arguments: int) -> Malformed:
    with pytest.raises(Malformed) as caught:
        parse(body, **arguments)
    return caught.value


def field(body: object, **arguments: int) -> str:
    return fault(dump(body), **arguments).field


def at(timestamp: object) -> int:
    return parse(dump(wire(timestamp=timestamp))).timestamp


@pytest.mark.parametrize("case", EXAMPLES)
def test_every_example_is_read(case: str) -> None:
    """Each line of the examples becomes the event that its envelope describes."""
    line = EXAMPLES[case]
    body = line.get("envelope", line["body"])
    data = body["data"]
    dialect = (
        Dialect.PUBSUB
        if "event_type" in body
        else Dialect.SYNC
        if "type" in body
        else Dialect.SYSTEM
        if "timestamp" in body
        else Dialect.DOCUMENTED
    )
    subject = "user_id" if ".app." in line["event_type"] else "sub"
    inner = data if dialect in (Dialect.SYSTEM, Dialect.PUBSUB) else {}

    event = parse(raw(case), signed_at=SIGNED_AT)

    # The tampered vector announces another type in its headers than its body holds.
    if case != "signed-sync-tampered-body":
        assert line["event_type"] == event.type
    assert dialect is event.dialect
    assert (body.get("tenant_id") or data.get("tenant_id") or None) == event.tenant_id
    assert (body.get("application_id") or inner.get("application_id") or None) == (
        event.application_id
    )
    assert data.get(subject) == event.sub
    assert not event.stale


def test_the_examples_cover_every_type() -> None:
    """No type is left without an example that was read."""
    seen = {parse(raw(case), signed_at=SIGNED_AT).type for case in EXAMPLES}

    assert {*SYNC_TYPES, *SYSTEM_TYPES} <= seen


def test_a_sync_event() -> None:
    """The wire's own form, value by value."""
    event = parse(raw("wire-member-joined-signup-owner"))

    assert (
        Event(
            id="6e254b65-d71f-4fc1-884c-945261d841dd",
            type="member.joined",
            timestamp=1_787_378_437_847,
            tenant_id=HARBOUR,
            application_id=CARGO,
            sub="f9524e6f-dec0-4048-bb56-ce9623ed84fc",
            data={
                "sub": "f9524e6f-dec0-4048-bb56-ce9623ed84fc",
                "email": "ana.quist@harbourclinic.test",
                "given_name": "Ana",
                "family_name": "Quist",
                "tenant_roles": ["owner"],
                "membership_id": "crzvmcwoxiy1v71rukv7hr6wv",
            },
            dialect=Dialect.SYNC,
        )
        == event
    )
    assert datetime(2026, 8, 22, 6, 0, 37, 847000, UTC) == event.occurred_at


def test_text_arrives_unchanged() -> None:
    """Quotes, accents and slashes of a name are the person's own."""
    event = parse(raw("signed-sync-first-attempt"))

    assert event.data["given_name"] == "Zoë"
    assert event.data["family_name"] == 'O’Brien "Q" / ünïcødé'  # noqa: RUF001


def test_one_id_for_both_key_orders() -> None:
    """A system event is the same event whichever process delivered it."""
    legacy = parse(raw("signed-system-legacy-order"))
    broker = parse(raw("signed-system-broker-order"))

    assert raw("signed-system-legacy-order") != raw("signed-system-broker-order")
    assert legacy == broker
    assert legacy.id == "db935adb518c6f8cabea147c2fa5d0b3cf209cc608d6a4416d588208081de9f7"


@pytest.mark.parametrize("case", [name for name in EXAMPLES if "event" in EXAMPLES[name]["body"]])
def test_system_ids_can_be_computed_elsewhere(case: str) -> None:
    """The id of a system event is the SHA-256 of its JSON with sorted keys and no spaces."""
    body = EXAMPLES[case]["body"]
    if "timestamp" not in body:
        expected = f"{SIGNED_AT}.".encode() + raw(case)
    else:
        expected = json.dumps(
            body, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    assert hashlib.sha256(expected).hexdigest() == parse(raw(case), signed_at=SIGNED_AT).id


def test_other_content_has_another_id() -> None:
    """A system event that differs in one value is another event."""
    first, second = (
        parse(dump({"event": "tenant.deleted", "timestamp": moment, "data": {"tenant_id": "t"}}))
        for moment in ("2026-08-22T06:00:00.000Z", "2026-08-22T06:00:00.001Z")
    )

    assert first.id != second.id


def test_pubsub_is_read_with_and_without_its_wrapper() -> None:
    """The push request and the bare envelope hold one event."""
    line = EXAMPLES["pubsub-tenant-app-granted-application-null"]

    bare = parse(dump(line["envelope"]))

    assert bare == parse(dump(line["body"]))
    assert bare.id == "czqq94szfi77f7ugepm26a81n"
    assert bare.application_id == CARGO
    assert bare.sub == "3470c40d-79e9-41c4-acd1-e8e38f366ca1"
    assert bare.mirrored


def test_an_empty_id_names_nothing() -> None:
    """Empty tenant and application ids are None, after a look into the payload."""
    invite = parse(raw("pubsub-invite-created-empty-application"))
    moved = parse(dump(wire(tenant_id="", data_tenant_id="t2", application_id="")))

    assert invite.application_id is None
    assert moved.tenant_id == "t2"
    assert moved.application_id is None
    assert parse(dump(wire(tenant_id=None))).tenant_id is None


def test_the_envelope_names_the_tenant_first() -> None:
    """A tenant in the payload counts only where the envelope names none."""
    assert parse(dump(wire(data_tenant_id="t2"))).tenant_id == "t1"


def test_a_sync_payload_cannot_name_the_application() -> None:
    """The audience of a sync event is in its envelope or nowhere."""
    body = without(wire(data_application_id="a2"), "application_id")

    assert parse(dump(body)).application_id is None


def test_a_tenant_id_may_be_long() -> None:
    """An id that no tenant can have makes an unknown tenant, not a malformed body."""
    assert parse(dump(wire(tenant_id="t" * 70_000))).tenant_id == "t" * 70_000


def test_the_documented_body_takes_its_clock_from_the_signature() -> None:
    """The rich body has no timestamp: the signed one stands in, and makes its id."""
    event = parse(raw("doc-member-joined-rich"), signed_at=SIGNED_AT)
    later = parse(raw("doc-member-joined-rich"), signed_at=SIGNED_AT + 1)

    assert event.timestamp == SIGNED_AT * 1000
    assert event.tenant_id == "ten-fjord"
    assert event.application_id is None
    assert event.id != later.id


@pytest.mark.parametrize("signed_at", [None, -1, MAX_TIMESTAMP // 1000 + 1])
def test_the_documented_body_needs_a_signed_time(signed_at: int | None) -> None:
    """Without a usable signed time the rich body has no place in time."""
    with pytest.raises(Malformed, match=r"^timestamp: "):
        parse(raw("doc-member-joined-rich"), signed_at=signed_at)


def test_the_documented_role_is_a_member_role_and_an_app_role() -> None:
    """The rich body's one `role` fills the keys that the wire would have used."""
    member = parse(raw("doc-member-joined-rich"), signed_at=SIGNED_AT)
    access = parse(raw("doc-app-access-granted"), signed_at=SIGNED_AT)

    assert member.data["tenant_roles"] == ["dispatcher"]
    assert member.data["role_slug"] == "dispatcher"
    assert access.data["role_slug"] == "viewer"
    assert "tenant_roles" not in access.data


def test_the_documented_role_gives_way() -> None:
    """Keys that are there already stay; an empty role is none; null says nothing."""
    kept = {"sub": "u1", "role": "a", "tenant_roles": ["b"], "role_slug": "c"}
    bodies = [
        {"event": "member.role_changed", "data": data}
        for data in (kept, {"sub": "u1", "role": ""}, {"sub": "u1", "role": None})
    ]

    present, empty, null = (parse(dump(body), signed_at=SIGNED_AT).data for body in bodies)

    assert present == kept
    assert (empty["tenant_roles"], empty["role_slug"]) == ([], "")
    assert null == {"sub": "u1", "role": None}


def test_role_means_nothing_in_the_other_dialects() -> None:
    """Only the documented dialect normalises `role`."""
    assert "role_slug" not in parse(dump(wire(data_role="admin"))).data


@pytest.mark.parametrize("event_type", [*SYNC_TYPES, *SYSTEM_TYPES])
def test_mirrored_types(event_type: str) -> None:
    """Twelve sync types write to identities; invitations, licences and the rest do not."""
    assert (event_type in MIRRORED) == parse(dump(wire(event_type))).mirrored
    assert len(MIRRORED) == 12


@pytest.mark.parametrize(
    ("event_type", "data", "mirrored", "sub"),
    [
        ("tenant.app.granted", {"user_id": "u1", "access_type": "GRANTED"}, True, "u1"),
        ("tenant.app.granted", {"user_id": "u1", "access_type": "AUTO_FREE"}, True, "u1"),
        ("tenant.app.granted", {"user_id": "u1"}, True, "u1"),
        ("tenant.app.granted", {"user_id": "u1", "access_type": "INVITED"}, False, "u1"),
        ("tenant.app.granted", {"subscription_id": "s1", "sub": "u2"}, False, None),
        ("tenant.app.granted", {"user_id": None}, False, None),
        ("tenant.app.revoked", {"user_id": "u1", "access_type": "INVITED"}, True, "u1"),
        ("tenant.app.revoked", {"application_name": "Cargo Board"}, False, None),
    ],
)
def test_application_grants(
    event_type: str, data: dict[str, Any], mirrored: bool, sub: str | None
) -> None:
    """A grant is mirrored where it names a person who may enter now."""
    body = {"event": event_type, "timestamp": "2026-08-22T06:00:00.000Z", "data": data}

    event = parse(dump(body))

    assert (mirrored, sub) == (event.mirrored, event.sub)


def test_the_test_button_is_an_event_without_a_tenant() -> None:
    """The provider's test delivery is read like any other; it names nobody."""
    event = parse(raw("wire-tenant-created-TEST-button"))

    assert (event.type, event.tenant_id, event.sub) == ("tenant.created", None, None)
    assert event.data["test"] is True


@pytest.mark.parametrize("data", [{}, {"sub": 5, "email": [1]}, {"sub": "s" * 256}])
def test_unknown_types_may_hold_anything(data: dict[str, Any]) -> None:
    """A type from the future needs no more than an object; an odd subject is no subject."""
    event = parse(dump({**wire("subject.merged"), "data": data}))

    assert (event.type, event.sub, event.mirrored) == ("subject.merged", None, False)
    assert data == event.data


def test_null_groups_are_kept() -> None:
    """What null means depends on the type of the event, so the merge decides."""
    assert parse(dump(wire(data_groups=None))).data["groups"] is None
    assert parse(dump(wire(data_groups=[]))).data["groups"] == []


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-01T00:00:00.000Z", 0),
        ("2026-08-22T06:00:37.847Z", 1_787_378_437_847),
        ("2026-08-22T06:00:37.847999999Z", 1_787_378_437_847),
        ("2026-08-22T06:00:37,8Z", 1_787_378_437_800),
        ("2026-08-22T06:00:37Z", 1_787_378_437_000),
        ("2026-08-22T06:00Z", 1_787_378_400_000),
        ("2026-08-22T08:00:37.847+02:00", 1_787_378_437_847),
        ("2026-08-22T03:30:37.847-0230", 1_787_378_437_847),
        ("2026-08-22T08:00:37.847+02", 1_787_378_437_847),
        ("2286-11-20T17:46:39.999999Z", MAX_TIMESTAMP),
    ],
)
def test_timestamps_become_milliseconds(text: str, milliseconds: int) -> None:
    """Any zone becomes UTC, and finer fractions are rounded down."""
    assert milliseconds == at(text)


@pytest.mark.parametrize(
    "timestamp",
    [
        None,
        1_787_378_437_847,
        "",
        "1787378437",
        "2026-08-22",
        "2026-08-22T06:00:37.847",
        "2026-08-22 06:00:37Z",
        "2026-08-22t06:00:37z",
        "2026-08-22T06:00:37 Z",
        "2026-08-22T06:00:37:847Z",
        "2026-08-22T06:00:37Z\n",
        "2026-08-22T06:00:37+02:80",
        "2026-08-22T06:00:37+24:00",
        "２０２６-08-22T06:00:37Z",  # noqa: RUF001
        "2026-08-22T06:00:37.123456\u0661Z",
        "2026-02-30T06:00:37Z",
        "2026-08-22T24:00:01Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "1969-12-31T23:59:59.999Z",
        "1970-01-01T00:00:00.000+00:01",
        "2286-11-20T17:46:40.000Z",
    ],
)
def test_what_is_no_timestamp(timestamp: object) -> None:
    """A clock that cannot be compared is refused."""
    assert field(wire(timestamp=timestamp)) == "timestamp"


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ([], "body"),
        ("member.joined", "body"),
        (None, "body"),
        ({}, "type"),
        (without(wire(), "type"), "type"),
        (wire(type=None), "type"),
        (wire(type=""), "type"),
        (wire(type=7), "type"),
        (wire(type="x" * 256), "type"),
        ({"event": [], "timestamp": "2026-08-22T06:00Z", "data": {}}, "event"),
        ({"event": [], "data": {"role": "admin"}}, "event"),
        (without(wire(), "id"), "id"),
        (wire(id=""), "id"),
        (wire(id=1), "id"),
        (wire(id="é" * 128), "id"),
        (without(wire(), "timestamp"), "timestamp"),
        (without(wire(), "data"), "data"),
        (wire(data=None), "data"),
        (wire(data=[]), "data"),
        ({"event": "member.joined", "data": []}, "data"),
        (wire(tenant_id=5), "tenant_id"),
        (wire(tenant_id=None, data_tenant_id=5), "data.tenant_id"),
        (wire(application_id={}), "application_id"),
        ({"event": "member.joined", "data": {"sub": "u1", "role": 1}}, "data.role"),
        ({"event_type": "member.joined", "source": "google", **wire(type=None)}, "source"),
        ({"event_type": "member.joined", **wire(type=None)}, "source"),
        ({"message": "hello"}, "message"),
        ({"message": {}}, "message.data"),
        ({"message": {"data": 5}}, "message.data"),
    ],
)
def test_what_is_no_envelope(body: object, where: str) -> None:
    """The field at fault is named."""
    assert where == field(body, signed_at=SIGNED_AT)


@pytest.mark.parametrize(
    ("inner", "where"),
    [
        (b"not json", "message.data"),
        (b"[]", "message.data"),
        (dump(wire()), "message.data.source"),
        (dump(without(wire(source="authvital"), "type")), "message.data.event_type"),
        (dump({"message": {"data": "e30="}}), "message.data.source"),
        (
            dump({"source": "authvital", "event_type": "member.left", **wire(data_sub=1)}),
            "message.data.data.sub",
        ),
        (b'{"id":"a","id":"b"}', "message.data.id"),
    ],
)
def test_what_is_no_push_message(inner: bytes, where: str) -> None:
    """What is wrong inside the wrapper is named with its way there; nothing else is unwrapped."""
    message = {"message": {"data": base64.b64encode(inner).decode()}}

    assert where == field(message)


@pytest.mark.parametrize("text", ["e30", "e3 0=", "e30=\n", "e30=e30=", "_-8=", "é", "="])
def test_base64_is_strict(text: str) -> None:
    """Only the standard alphabet with padding is unwrapped."""
    assert field({"message": {"data": text}}) == "message.data"


@pytest.mark.parametrize("event_type", MIRRORED)
@pytest.mark.parametrize("sub", [None, "", 5, "s" * 256, "é" * 128])
def test_a_mirrored_event_needs_its_person(event_type: str, sub: object) -> None:
    """Without a usable `sub` there is no row to write."""
    assert field(wire(event_type, data_sub=sub)) == "data.sub"


def test_ids_of_255_bytes_fit() -> None:
    """The bound counts bytes of UTF-8 and includes itself."""
    event = parse(dump(wire(id="i" * 255, data_sub="é" * 127 + "s")))

    assert event.id == "i" * 255
    assert event.sub == "é" * 127 + "s"


@pytest.mark.parametrize("user_id", ["", 5, "u" * 256])
def test_a_grant_needs_its_person(user_id: object) -> None:
    """The person of an application grant is its `user_id`."""
    data = {"user_id": user_id}

    assert field(
        {"event": "tenant.app.revoked", "timestamp": "2026-08-22T06:00Z", "data": data}
    ) == ("data.user_id")


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        *((claim, 5) for claim in ("email", "name", "picture", "phone_number", "birthdate")),
        *((claim, ["x"]) for claim in ("preferred_username", "locale", "zoneinfo", "gender")),
        *((claim, True) for claim in ("given_name", "family_name", "middle_name", "nickname")),
        *((claim, {}) for claim in ("website", "subject_type", "membership_id", "role_slug")),
        *(("email_verified", value) for value in ("true", 1, [])),
        *(("phone_number_verified", value) for value in ("", 0, {})),
        *(("tenant_roles", value) for value in (None, "owner", [None], ["owner", 1], {})),
        *(("groups", value) for value in ("staff", [["staff"]], 0)),
        *(("changed_fields", value) for value in ("email", [1], {"email": 1})),
    ],
)
def test_claims_have_types(claim: str, value: object) -> None:
    """A mirrored value of the wrong type is refused; the same value elsewhere is nobody's."""
    assert field(wire(**{f"data_{claim}": value})) == f"data.{claim}"
    assert parse(dump(wire("license.assigned", **{f"data_{claim}": value}))).data[claim] == value


def test_claims_may_be_null() -> None:
    """Null is a legal way to say that a claim is unknown."""
    claims = ("email", "given_name", "email_verified", "changed_fields", "membership_id")
    nothing = {f"data_{claim}": None for claim in claims}

    event = parse(dump(wire("subject.updated", **nothing)))

    assert all(event.data[claim] is None for claim in claims)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xef\xbb\xbf{}",
        b'{"a":1}x',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\x00"}',
        b'{"a":"\xff"}',
        b'{"\xff":1}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00x"}',
        b'{"\\ud800":1}',
        b'{"a":"\\ud800\\ud800"}',
        dump(wire()).decode().encode("utf-16"),
    ],
)
def test_what_is_no_json(body: bytes) -> None:
    """Text that JSON or UTF-8 does not allow is refused whole."""
    assert fault(body).field == "body"


def step(opening: str) -> int:
    """How many levels one opening adds."""
    return opening.count("[") + opening.count("{")


def nested(levels: int, opening: str, closing: str) -> bytes:
    """A body of an unknown type whose containers are `levels` deep, itself and data included."""
    inner = (levels - 2) // step(opening)
    value = opening * inner + "1" + closing * inner
    return dump(wire("x.y", data={})).replace(b'"data":{}', b'"data":{"a":%s}' % value.encode())


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth_is_bounded(opening: str, closing: str) -> None:
    """Thirty-two levels are read; one more, or a hundred thousand, are not."""
    assert parse(nested(MAX_DEPTH, opening, closing)).type == "x.y"
    for levels in (MAX_DEPTH + step(opening), 500, 100_000):
        assert "levels deep" in fault(nested(levels, opening, closing)).reason


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"id":"a","id":"a"}', "id"),
        (b'{"a":1,"\\u0061":2}', "a"),
        (b'{"a" :1,"a":2}', "a"),
        (b'{"a"\n\t:1,"a"\r :2}', "a"),
        (b'{"data":{"sub":"u1","sub":"u2"}}', "data.sub"),
        (b'{"data":{"sub":"u1"},"data":{"sub":"u2"}}', "data"),
        (b'{"data":5,"data":{"sub":"u2"}}', "data"),
        (b'{"data":{"list":[{"x":{"b":1,"b":1}}]}}', "data.list.0.x.b"),
        (b'{"data":{"ana@harbourclinic.test":1,"ana@harbourclinic.test":2}}', "data.?"),
        (b'{"a":"\\":","b":1,"b":2}', "b"),
    ],
)
def test_repeated_keys_are_refused(body: bytes, where: str) -> None:
    """Readers disagree about which of two equal keys counts, so neither does."""
    error = fault(body)

    assert (where, "appears twice") == (error.field, error.reason)


def test_the_way_to_a_field_is_cut_short() -> None:
    """A way of many steps shows its first eight."""
    body = b'{"a":' * 12 + b'{"b":1,"b":2}' + b"}" * 12

    assert fault(body).field == "a.a.a.a.a.a.a.a"


def test_depth_cannot_hide_under_a_repeated_key() -> None:
    """What an overwritten key held is refused too, however deep it was."""
    body = b'{"a":' + b"[" * 900 + b"]" * 900 + b',"a":1}'

    assert fault(body).reason == "appears twice" or "levels deep" in fault(body).reason


@pytest.mark.parametrize("spaces", ["", " ", "\n\t\r "])
def test_text_may_look_like_a_key(spaces: str) -> None:
    """Values that hold quotes, colons and braces are text, and no second key."""
    value = '"sub":"x","sub" : {"a":[{'
    body = wire(data_email=value, data_nickname=":", data_groups=['"', ":", '":'])

    event = parse(json.dumps(body, separators=(f"{spaces},", f"{spaces}:{spaces}")).encode())

    assert event.data["email"] == value


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"data_email": "a\x00b"}, "data.email"),
        ({"data_tenant_roles": ["a", "\x00"]}, "data.tenant_roles.1"),
        ({"data_x": {"a\x00b": 1}}, "data.x"),
        ({"\x00": 1}, "body"),
        ({"id": "\x00"}, "id"),
    ],
)
def test_the_null_character_is_refused(changes: dict[str, Any], where: str) -> None:
    """PostgreSQL stores no U+0000, so no key and no string may hold it."""
    error = fault(dump(wire("x.y", **changes)))

    assert (where, "holds the character U+0000") == (error.field, error.reason)


def test_a_backslash_is_not_the_null_character() -> None:
    """The six characters of the escape may be written out."""
    assert parse(dump(wire(data_email="\\u0000"))).data["email"] == "\\u0000"


def test_errors_repeat_no_values() -> None:
    """Nothing that a person could be recognised by gets into a message."""
    bodies = [
        wire(data_email=["ana@harbourclinic.test"]),
        wire(data_settings={"ana@harbourclinic.test": {"a": "ana@harbourclinic.test\x00"}}),
        wire(id={"ana@harbourclinic.test": 1}),
        wire(timestamp="ana@harbourclinic.test"),
    ]

    assert not any("ana" in str(fault(dump(body))) for body in bodies)


def test_an_event_hides_its_payload() -> None:
    """Neither `repr` nor rich shows personal data."""
    event = parse(dump(wire()))

    assert repr(event) == "<Event 'member.joined' id='e1' timestamp=1787378437847>"
    assert "ana" not in str(event.__rich_repr__())


def test_events_do_not_change() -> None:
    """An event is a value; a stale one is another value."""
    event = parse(dump(wire()))

    with pytest.raises(AttributeError):
        event.stale = True
    assert msgspec.structs.replace(event, stale=True).stale


def test_the_type_lists() -> None:
    """There are nineteen sync types and twelve system types, and none is both."""
    assert (len(SYNC_TYPES), len(SYSTEM_TYPES)) == (19, 12)
    assert len({*SYNC_TYPES, *SYSTEM_TYPES}) == 31


def test_the_reference_names_every_type() -> None:
    """The reference page has a row for each type and each dialect."""
    page = (ROOT / "docs/reference/events.md").read_text("utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]

    assert {*SYNC_TYPES, *SYSTEM_TYPES} <= {row.strip(" `") for row in rows}
    assert all(f"`Dialect.{dialect.name}`" in page for dialect in Dialect)
