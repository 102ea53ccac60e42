"""Signatures: the recorded deliveries, the published vectors, and every header gone wrong."""

import base64
import itertools
import json
import pathlib
import random

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.signatures import (
    SystemVerifier,
    Verified,
    Verifier,
    rsa_sha256_matches,
)
from tenantsync.errors import KeysUnavailable, Untrusted

DATA = pathlib.Path(__file__).parents[1] / "data"
NOW = 1_795_405_300
BODY = b'{"id":"4c1f","data":{"sub":"u1"},"type":"member.joined"}'


def _lines(name):
    return [json.loads(line) for line in (DATA / name).read_text("utf-8").splitlines()]


def _ring(jwks):
    """Return a ring that got this JWKS when it was warmed up and cannot reach it any more."""
    answers = [jwks]
    ring = KeyRing("https://auth.example.com/jwks.json", fetch=lambda *_, **__: answers.pop())
    ring.refresh()
    return ring


# --- What AuthVital really sent ---------------------------------------------------------------

RECORDED = [line for line in _lines("webhooks-broker.jsonl") if line["channel"] == "sync"]


@pytest.fixture(scope="module")
def recorded_ring():
    return _ring((DATA / "recorded-jwks.json").read_bytes())


def _verify_at(ring, moment, body, headers):
    return Verifier(ring, clock=lambda: moment).verify(body, headers)


def test_every_recorded_delivery_verifies(recorded_ring):
    """All 186 sync deliveries that a running AuthVital made are authentic at the time they came."""
    for line in RECORDED:
        verified = _verify_at(
            recorded_ring, line["received_at"], line["body"].encode(), line["headers"]
        )
        assert verified.kid == "key_1795405277467_419597ca"
        assert line["headers"]["X-AuthVital-Timestamp"] == f"{verified.signed_at}"

    assert len(RECORDED) == 186


def _with_bit_flipped(data, bit):
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def _forgeries(line, bits_of):
    """Yield the line's body and headers with one bit of a signed part changed."""
    body, headers = line["body"].encode(), line["headers"]
    signature = base64.b64decode(headers["X-AuthVital-Signature"])
    timestamp = headers["X-AuthVital-Timestamp"].encode()
    for bit in bits_of(len(body) * 8):
        yield _with_bit_flipped(body, bit), headers
    for bit in bits_of(len(timestamp) * 8):
        changed = _with_bit_flipped(timestamp, bit).decode("latin-1")
        yield body, headers | {"X-AuthVital-Timestamp": changed}
    for bit in bits_of(len(signature) * 8):
        changed = base64.b64encode(_with_bit_flipped(signature, bit)).decode()
        yield body, headers | {"X-AuthVital-Signature": changed}
    written = headers["X-AuthVital-Signature"].encode()
    for bit in bits_of(len(written) * 8):
        changed = _with_bit_flipped(written, bit).decode("latin-1")
        yield body, headers | {"X-AuthVital-Signature": changed}


def _count_refused(ring, line, bits_of):
    refused = 0
    for body, headers in _forgeries(line, bits_of):
        # The window is opened wide, so that a changed time is refused for its signature.
        verifier = Verifier(
            ring, clock=lambda: line["received_at"], max_age=10**13, max_skew=10**13
        )
        with pytest.raises(Untrusted):
            verifier.verify(body, headers)
        refused += 1
    return refused


def test_no_single_bit_of_a_recorded_delivery_can_be_changed(recorded_ring):
    """Each bit of body, timestamp and signature, in turn, makes the delivery untrusted."""
    line = min(RECORDED, key=lambda line: len(line["body"]))
    bits = (len(line["body"].encode()) + 10 + 256 + 344) * 8

    assert bits == _count_refused(recorded_ring, line, range)


def test_no_recorded_delivery_survives_a_changed_bit(recorded_ring):
    """The same holds for all 186, tried with sixteen bits of each part drawn by a fixed seed."""
    draw = random.Random(186)  # noqa: S311 - which bits are tried is no secret

    for line in RECORDED:
        assert _count_refused(recorded_ring, line, lambda bits: draw.sample(range(bits), 16)) == 64


def test_a_recorded_signature_is_of_its_own_delivery_only(recorded_ring):
    """Signatures cannot be moved from one authentic delivery to the next."""
    for line, following in itertools.pairwise(RECORDED):
        if line["body"] == following["body"]:
            continue
        with pytest.raises(Untrusted, match="does not match"):
            _verify_at(
                recorded_ring, line["received_at"], following["body"].encode(), line["headers"]
            )


def test_a_system_webhook_is_no_sync_webhook(recorded_ring):
    """The other channel signs with the same key; moving its headers over does not help anybody."""
    system = [line for line in _lines("webhooks-broker.jsonl") if line["channel"] == "system"]

    for line in system:
        moved = {
            "X-AuthVital-Signature": line["headers"]["X-Webhook-Signature"],
            "X-AuthVital-Key-Id": line["headers"]["X-Webhook-Key-Id"],
            "X-AuthVital-Timestamp": f"{line['received_at']:.0f}",
        }
        for headers, reason in ((line["headers"], "is missing"), (moved, "does not match")):
            with pytest.raises(Untrusted, match=reason):
                _verify_at(recorded_ring, line["received_at"], line["body"].encode(), headers)
    assert len(system) == 75


# --- Signed examples --------------------------------------------------------------------------

EXAMPLES = {line["case"]: line for line in _lines("authvital-examples.jsonl")}
SIGNED = [case for case in EXAMPLES if case.startswith("signed-") and case != "signed-vectors-jwks"]


@pytest.mark.parametrize("case", SIGNED)
def test_signed_examples_are_judged_as_they_say(case):
    """Valid sync examples verify at their time; tampered ones and other channels do not."""
    example = EXAMPLES[case]
    ring = _ring(json.dumps(EXAMPLES["signed-vectors-jwks"]["body"]).encode())
    headers = example["headers"]
    moment = int(headers.get("X-AuthVital-Timestamp", "1787378400"))
    raw = example["raw_body"].encode()

    if example["channel"] == "sync-webhook" and example["expect"] == "valid":
        assert Verified(moment, headers["X-AuthVital-Key-Id"]) == _verify_at(
            ring, moment, raw, headers
        )
    else:
        with pytest.raises(Untrusted):
            _verify_at(ring, moment, raw, headers)


def test_the_examples_hold_five_signed_cases():
    """The examples test something: three of the sync channel, one of them tampered, two others."""
    assert len(SIGNED) == 5


def test_a_body_that_was_parsed_and_written_again_is_untrusted():
    """Only the very bytes that were signed count, not other bytes of the same meaning."""
    example = EXAMPLES["signed-sync-first-attempt"]
    ring = _ring(json.dumps(EXAMPLES["signed-vectors-jwks"]["body"]).encode())
    again = json.dumps(json.loads(example["raw_body"])).encode()

    with pytest.raises(Untrusted, match="does not match"):
        _verify_at(ring, 1_787_378_400, again, example["headers"])


# --- Wycheproof -------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "cases"), [(2048, 259), (3072, 259), (4096, 258)])
def test_wycheproof_cases_are_judged_as_published(bits, cases):
    """Every published case comes out as it should; what may go either way is refused."""
    vectors = json.loads((DATA / f"wycheproof/rsa_signature_{bits}_sha256_test.json").read_bytes())
    wrong, either_way, count = [], [], 0

    for group in vectors["testGroups"]:
        assert group["sha"] == "SHA-256"
        key = load_der_public_key(bytes.fromhex(group["publicKeyDer"]))
        for case in group["tests"]:
            count += 1
            signature, message = bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"])
            matches = rsa_sha256_matches(key, signature, message)
            if case["result"] == "acceptable":
                either_way.append((case["tcId"], case["comment"]))
            if matches != (case["result"] == "valid"):
                wrong.append((case["tcId"], case["comment"]))
    assert wrong == []
    assert either_way == [(8, "Missing NULL in the ASN encoding")]
    assert cases == count == vectors["numberOfTests"]


def test_other_paddings_and_digests_do_not_match():
    """PSS, SHA-512 and signatures of another length are not what AuthVital makes."""
    private = rsa.generate_private_key(65_537, 2048)
    public = private.public_key()
    good = private.sign(b"text", padding.PKCS1v15(), SHA256())
    pss = private.sign(b"text", padding.PSS(padding.MGF1(SHA256()), 32), SHA256())
    longer_digest = private.sign(b"text", padding.PKCS1v15(), SHA512())

    assert rsa_sha256_matches(public, good, b"text")
    for bad in (pss, longer_digest, b"", good[:-1], good + b"\0", b"\0" + good, b"\0" * 256):
        assert not rsa_sha256_matches(public, bad, b"text")


# --- Headers and clock ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private():
    return rsa.generate_private_key(65_537, 2048)


@pytest.fixture(scope="module")
def ring(private):
    numbers = private.public_key().public_numbers()
    modulus = base64.urlsafe_b64encode(numbers.n.to_bytes(256, "big")).rstrip(b"=").decode()
    key = {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": "key_1", "n": modulus, "e": "AQAB"}
    return _ring(json.dumps({"keys": [key]}).encode())


@pytest.fixture
def verifier(ring):
    return Verifier(ring, clock=lambda: float(NOW))


@pytest.fixture
def sign(private):
    def signed(body=BODY, timestamp=f"{NOW}"):
        message = timestamp.encode() + b"." + body
        signature = private.sign(message, padding.PKCS1v15(), SHA256())
        return {
            "X-AuthVital-Signature": base64.b64encode(signature).decode(),
            "X-AuthVital-Key-Id": "key_1",
            "X-AuthVital-Timestamp": timestamp,
        }

    return signed


def test_an_authentic_delivery_says_when_and_by_which_key(verifier, sign):
    """What is proven is the time of this attempt and the key, for exactly these bytes."""
    assert Verified(signed_at=NOW, kid="key_1") == verifier.verify(BODY, sign())


@pytest.mark.parametrize("body", [b"", b"\0", b"\xff\xfe", b"{}" * 100_000])
def test_any_bytes_can_be_signed(body, verifier, sign):
    """Verification looks at bytes, not at what they mean."""
    assert verifier.verify(body, sign(body)).signed_at == NOW


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title, str.swapcase])
def test_header_names_are_read_in_any_case(change, verifier, sign):
    """Frameworks hand out header names in several cases, and other headers beside ours."""
    headers = {change(name): value for name, value in sign().items()}

    assert verifier.verify(BODY, {"Host": "x", **headers, "X-AuthVital-Event-Id": "e"})


@pytest.mark.parametrize("name", ["Signature", "Key-Id", "Timestamp"])
def test_a_header_that_is_missing_or_empty_is_named(name, verifier, sign):
    """All three headers are needed, and the error says which one is not there."""
    headers = sign()
    del headers[f"X-AuthVital-{name}"]

    for broken in (headers, headers | {f"x-authvital-{name}": ""}):
        with pytest.raises(Untrusted, match=f"^X-AuthVital-{name} is missing$"):
            verifier.verify(BODY, broken)


@pytest.mark.parametrize("name", ["Signature", "Key-Id", "Timestamp"])
def test_a_header_that_is_there_twice_is_untrusted(name, verifier, sign):
    """Two values of a header are ambiguous, whether a framework keeps both or joins them."""
    headers = sign()
    value = headers[f"X-AuthVital-{name}"]

    with pytest.raises(Untrusted, match=f"X-AuthVital-{name} is there twice"):
        verifier.verify(BODY, headers | {f"x-authvital-{name.lower()}": value})
    with pytest.raises(Untrusted, match=f"X-AuthVital-{name}"):
        verifier.verify(BODY, headers | {f"X-AuthVital-{name}": f"{value}, {value}"})


@pytest.mark.parametrize("value", [None, 7, b"key_1", ["key_1"]])
def test_a_header_that_is_not_text_is_untrusted(value, verifier, sign):
    """Some gateways hand out lists; that is a refusal, not a crash."""
    for name in sign():
        with pytest.raises(Untrusted, match=f"{name} is not text"):
            verifier.verify(BODY, sign() | {name: value})


def test_look_alike_header_names_are_other_headers(verifier, sign):
    """The Kelvin sign is a k in lower case, but no k."""
    headers = sign()
    headers["X-AuthVital-\u212aey-Id"] = headers.pop("X-AuthVital-Key-Id")

    with pytest.raises(Untrusted, match="X-AuthVital-Key-Id is missing"):
        verifier.verify(BODY, headers)


@pytest.mark.parametrize(
    "timestamp",
    [
        f" {NOW}",
        f"{NOW} ",
        f"{NOW}\n",
        f"+{NOW}",
        f"-{NOW}",
        f"{NOW}.0",
        "1_795_405_300",
        f"{NOW * 1000}",
        "2026-11-23T03:41:40Z",
        "1.8e9",
        "0x6b03d5f4",
        "١٧٩٥٤٠٥٣٠٠",
        "\uff11\uff17\uff19\uff15\uff14\uff10\uff15\uff13\uff10\uff10",
        "²",
        "0" * 13,
        "now",
        "\x00",
        "\ud800",
    ],
)
def test_a_timestamp_is_plain_digits(timestamp, verifier, sign):
    """Python reads many texts as numbers that AuthVital never sends."""
    with pytest.raises(Untrusted, match="X-AuthVital-Timestamp is not 1 to 12 digits"):
        verifier.verify(BODY, sign() | {"X-AuthVital-Timestamp": timestamp})


def test_the_text_of_the_timestamp_is_signed_and_not_its_number(verifier, sign):
    """A zero in front changes the signed bytes; it is right only if it was there when signing."""
    padded = f"00{NOW}"

    assert verifier.verify(BODY, sign(timestamp=padded)).signed_at == NOW
    with pytest.raises(Untrusted, match="does not match"):
        verifier.verify(BODY, sign() | {"X-AuthVital-Timestamp": padded})


@pytest.mark.parametrize("offset", [-300, -299, -1, 0, 59, 60])
def test_times_within_the_window_are_taken(offset, verifier, sign):
    """By default the signed time may lie five minutes in the past and one in the future."""
    headers = sign(timestamp=f"{NOW + offset}")

    assert NOW + offset == verifier.verify(BODY, headers).signed_at


@pytest.mark.parametrize(
    ("timestamp", "reason"),
    [
        (NOW - 301, "too old by 1 s"),
        (NOW - 3900, "too old by 3600 s"),
        (0, "too old by 1795405000 s"),
        (NOW + 61, "too far in the future by 1 s"),
        (NOW + 360, "too far in the future by 300 s"),
        (999_999_999_999, "too far in the future by 998204594639 s"),
    ],
)
def test_times_outside_the_window_are_refused(timestamp, reason, verifier, sign):
    """The error says by how much, since a clock that is wrong looks the same as a replay."""
    with pytest.raises(Untrusted, match=reason):
        verifier.verify(BODY, sign(timestamp=f"{timestamp}"))


def test_the_window_can_be_chosen(ring, sign):
    """Age and skew are arguments, in seconds."""
    verifier = Verifier(ring, max_age=10, max_skew=0, clock=lambda: float(NOW))

    assert verifier.verify(BODY, sign(timestamp=f"{NOW - 10}"))
    for moment in (NOW - 11, NOW + 1):
        with pytest.raises(Untrusted):
            verifier.verify(BODY, sign(timestamp=f"{moment}"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.rstrip("="),
        lambda text: text + "=",
        lambda text: text + "====",
        lambda text: text[:-4],
        lambda text: f" {text}",
        lambda text: f"{text}\n",
        lambda text: f"{text[:76]}\r\n{text[76:]}",
        lambda text: text.translate(str.maketrans("+/", "-_")) + "-_",
        lambda text: f"v1,{text}",
        lambda text: f"{text[:-3]}{chr(ord(text[-3]) + 1)}==",
        lambda text: f"{text[:100]}é{text[101:]}",
        lambda text: f"{text[:100]}\ud800{text[101:]}",
        lambda text: base64.b64decode(text).hex(),
        lambda text: base64.b64encode(base64.b64decode(text) + b"\0").decode(),
        lambda text: base64.b64encode(b"\0" + base64.b64decode(text)).decode(),
        lambda text: base64.b64encode(base64.b64decode(text)[::-1]).decode(),
        lambda _text: "A" * 1369,
        lambda _text: "A" * 1_000_000,
        lambda _text: "=",
        lambda _text: "\x00",
    ],
)
def test_a_signature_has_one_spelling(spoil, verifier, sign):
    """Only canonical base64 of the one right signature is taken."""
    headers = sign()
    headers["X-AuthVital-Signature"] = spoil(headers["X-AuthVital-Signature"])

    with pytest.raises(Untrusted, match="X-AuthVital-Signature"):
        verifier.verify(BODY, headers)


@pytest.mark.parametrize("kid", ["a b", "key_1 ", "key_1\n", "k" * 256, "ключ", "\ud800"])
def test_a_key_id_is_visible_ascii(kid, verifier, sign):
    """A key id that AuthVital cannot have published is refused without looking for it."""
    with pytest.raises(Untrusted, match="X-AuthVital-Key-Id is not"):
        verifier.verify(BODY, sign() | {"X-AuthVital-Key-Id": kid})


def test_a_key_that_was_never_published_is_untrusted(verifier, sign):
    """Someone else's key id, with a fresh set at hand, is refused."""
    with pytest.raises(Untrusted, match="'key_2' is not among the published keys"):
        verifier.verify(BODY, sign() | {"X-AuthVital-Key-Id": "key_2"})


def test_keys_out_of_reach_are_nobodys_fault(sign):
    """A delivery that cannot be judged is to be sent again, not refused."""
    keys = KeyRing("https://auth.example.com/", fetch=lambda *_, **__: b"")

    with pytest.raises(KeysUnavailable):
        Verifier(keys, clock=lambda: NOW).verify(BODY, sign())


def test_hopeless_headers_cause_no_fetch(sign):
    """Everything that can be refused without a key is refused before one is looked for."""
    fetches = []
    keys = KeyRing("https://auth.example.com/", fetch=lambda *_, **__: fetches.append(1))
    verifier = Verifier(keys, clock=lambda: NOW)
    hopeless = [
        {},
        sign() | {"X-AuthVital-Timestamp": "0"},
        sign() | {"X-AuthVital-Signature": "?"},
        sign() | {"X-AuthVital-Key-Id": " "},
    ]

    for headers in hopeless:
        assert verifier.ready(headers)
        with pytest.raises(Untrusted):
            verifier.verify(BODY, headers)
    assert fetches == []


def test_ready_tells_whether_the_network_is_needed(verifier, ring, sign):
    """With the key held verification decides at once; a key never seen has to be looked for."""
    assert verifier.ready(sign())
    assert not verifier.ready(sign() | {"X-AuthVital-Key-Id": "key_2"})
    assert not ring.holds("key_2")


# --- The system channel -----------------------------------------------------------------------

SYSTEM = [line for line in _lines("webhooks-broker.jsonl") if line["channel"] == "system"]


def test_every_recorded_system_delivery_verifies(recorded_ring):
    """All 75 that a running AuthVital made are authentic, byte for byte, and at any time."""
    verifier = SystemVerifier(recorded_ring)
    for line in SYSTEM:
        verified = verifier.verify(line["body"].encode(), line["headers"])
        assert verified == Verified(None, "key_1795405277467_419597ca")

    assert len(SYSTEM) == 75


def test_no_single_bit_of_a_recorded_system_delivery_can_be_changed(recorded_ring):
    """Each bit of body and signature, in turn, makes the delivery untrusted."""
    verifier = SystemVerifier(recorded_ring)
    line = min(SYSTEM, key=lambda line: len(line["body"]))
    body, headers = line["body"].encode(), line["headers"]
    signature = base64.b64decode(headers["X-Webhook-Signature"])
    for bit in range(len(body) * 8):
        with pytest.raises(Untrusted, match="does not match the body"):
            verifier.verify(_with_bit_flipped(body, bit), headers)
    for bit in range(len(signature) * 8):
        changed = base64.b64encode(_with_bit_flipped(signature, bit)).decode()
        with pytest.raises(Untrusted, match="does not match the body"):
            verifier.verify(body, headers | {"X-Webhook-Signature": changed})


def test_a_sync_webhook_is_no_system_webhook(recorded_ring):
    """The other channel signs its time too, so that its signatures never fit the body alone."""
    for line in RECORDED[:40]:
        moved = {
            "X-Webhook-Signature": line["headers"]["X-AuthVital-Signature"],
            "X-Webhook-Key-Id": line["headers"]["X-AuthVital-Key-Id"],
        }
        for headers, reason in ((line["headers"], "is missing"), (moved, "does not match")):
            with pytest.raises(Untrusted, match=reason):
                SystemVerifier(recorded_ring).verify(line["body"].encode(), headers)


def test_a_system_header_that_is_odd_is_named(recorded_ring):
    """Missing, double in other letters, no base64, no key id."""
    line = SYSTEM[0]
    good = {name: line["headers"][name] for name in ("X-Webhook-Signature", "X-Webhook-Key-Id")}
    for changes, reason in (
        ({"X-Webhook-Signature": ""}, "X-Webhook-Signature is missing"),
        ({"X-Webhook-Key-Id": ""}, "X-Webhook-Key-Id is missing"),
        ({"x-webhook-key-id": "k"}, "X-Webhook-Key-Id is there twice"),
        ({"X-Webhook-Signature": "%%%%"}, "X-Webhook-Signature is not standard base64"),
        ({"X-Webhook-Signature": "A" * 1372}, "X-Webhook-Signature is longer"),
        ({"X-Webhook-Key-Id": "a b"}, "X-Webhook-Key-Id is not 1 to 255"),
    ):
        with pytest.raises(Untrusted, match=reason):
            SystemVerifier(recorded_ring).verify(line["body"].encode(), good | changes)


def test_the_published_system_example_is_valid():
    """The signed example of the channel verifies under its JWKS."""
    ring = _ring(json.dumps(EXAMPLES["signed-vectors-jwks"]["body"]).encode())
    examples = [EXAMPLES[case] for case in SIGNED if EXAMPLES[case]["channel"] == "system-webhook"]

    assert examples
    for example in examples:
        assert example["expect"] == "valid"
        SystemVerifier(ring).verify(example["raw_body"].encode(), example["headers"])


def test_an_unknown_key_is_final_only_after_a_fetch_of_its_own(recorded_ring):
    """AuthVital takes 401 for final here: within the cooldown the answer is "later"."""
    clock = iter(range(0, 1000, 10)).__next__
    ring = KeyRing(
        "https://auth.example.com/jwks.json",
        fetch=lambda *_, **__: (DATA / "recorded-jwks.json").read_bytes(),
        clock=clock,
        cooldown=30.0,
    )
    line = SYSTEM[0]
    headers = line["headers"] | {"X-Webhook-Key-Id": "key_of_nobody"}

    with pytest.raises(Untrusted, match="not among the published keys"):
        SystemVerifier(ring).verify(line["body"].encode(), headers)
    with pytest.raises(KeysUnavailable, match="a moment ago"):
        SystemVerifier(ring).verify(line["body"].encode(), headers)
    # The key that is there serves all the same.
    assert SystemVerifier(ring).verify(line["body"].encode(), line["headers"])


def test_with_the_jwks_out_of_reach_a_system_delivery_is_for_later():
    """Never 401: nobody knows that the key is not AuthVital's."""
    ring = KeyRing("https://auth.example.com/", fetch=lambda *_, **__: b"")
    line = SYSTEM[0]

    assert not SystemVerifier(ring).ready(line["headers"])
    with pytest.raises(KeysUnavailable):
        SystemVerifier(ring).verify(line["body"].encode(), line["headers"])
