"""Whatever the bytes, `parse` returns an event that keeps its promises or raises `Malformed`."""

import base64
import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenantsync.errors import Malformed
from tenantsync.events import MAX_DEPTH, MAX_TIMESTAMP, SYNC_TYPES, Event, parse

SIGNED_AT = 1_787_378_400
EXAMPLES = Path(__file__).parents[2] / "tests/data/authvital-examples.jsonl"
LINES = [json.loads(line) for line in EXAMPLES.read_text("utf-8").splitlines()]
BODIES = [line["body"] for line in LINES if line["channel"] != "jwks"]
BODIES += [line["envelope"] for line in LINES if "envelope" in line]
SYSTEM_BODIES = [body for body in BODIES if "event" in body and "timestamp" in body]

CLAIMS = ("email", "given_name", "membership_id", "role_slug", "subject_type", "picture")
LISTS = ("tenant_roles", "groups", "changed_fields")

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.sampled_from('"\\:{}[] ,\x00u0é\ud800'))
    | st.sampled_from(["", "member.joined", "authvital", "s" * 256, "2026-08-22T06:00:37.847Z"])
)
KEYS = st.sampled_from(
    ["id", "type", "event", "event_type", "source", "data", "sub", "message", "tenant_id", "groups"]
) | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=12,
)
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : "), ("\n,\t", "\r:\n")])

# JSON written by hand, because a dictionary cannot hold one key twice. The first two keys are
# one, and so are the next two.
WRITTEN_KEYS = st.sampled_from(
    ['"a"', '"\\u0061"', '"\\":"', '"\\u0022:"', '""', '":"', '"data"', '"a\\u0000"', '"é{"']
)
SPACES = st.sampled_from(["", "", "", " ", "\n", "\t ", "\r"])
WRITTEN = st.recursive(
    st.sampled_from(
        ["1", "null", '"a"', '"\\":"', '":"', '"{[\\""', '"\\\\u0000"', '"\\u0000"', "1E2", "-0.5"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(WRITTEN_KEYS, SPACES, SPACES, inner), max_size=4).map(
            lambda items: "{" + ",".join(f"{k}{a}:{b}{v}" for k, a, b, v in items) + "}"
        )
    ),
    max_leaves=12,
)


def refuse_constant(text: str) -> float:
    raise ValueError(text)


def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key appears twice")
    return fields


def read_strictly(body: bytes) -> Any:
    """A second reader for the same rules, written the slow and plain way.

    Raises:
        ValueError: The body breaks a rule that holds for all JSON.
    """
    tree = json.loads(
        body.decode("utf-8"), object_pairs_hook=refuse_repeats, parse_constant=refuse_constant
    )
    check(tree, 1)
    return tree


def check(node: Any, depth: int) -> None:
    if isinstance(node, str):
        node.encode("utf-8")  # lone surrogates cannot be encoded
        if "\x00" in node:
            raise ValueError("U+0000")
    elif isinstance(node, float) and node in (float("inf"), float("-inf")):
        raise ValueError("out of range")
    elif isinstance(node, list | dict):
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        for child in [*node, *(node.values() if isinstance(node, dict) else ())]:
            check(child, depth + 1)


def read(body: bytes) -> Event | None:
    """The event, or None where the body is malformed; every other exception is a failure."""
    try:
        event = parse(body, signed_at=SIGNED_AT)
    except Malformed:
        return None
    keeps_its_promises(event, body)
    return event


def keeps_its_promises(event: Event, body: bytes) -> None:
    fields = read_strictly(body)
    if not {"type", "event", "event_type"} & {key for key in fields if fields[key] is not None}:
        fields = read_strictly(base64.b64decode(fields["message"]["data"]))
    types = (fields.get(key) for key in ("type", "event", "event_type"))
    assert event.type == next(name for name in types if name is not None)
    for text in (event.id, event.type):
        assert 1 <= len(text.encode()) <= 255
    assert event.sub is None or 1 <= len(event.sub.encode()) <= 255
    assert 0 <= event.timestamp <= MAX_TIMESTAMP
    assert event.occurred_at.timestamp() == pytest.approx(event.timestamp / 1000, abs=0.0005)
    for reference in (event.tenant_id, event.application_id):
        assert reference is None or (isinstance(reference, str) and reference)
    if event.mirrored:
        assert event.sub is not None
        for claim in CLAIMS:
            assert isinstance(event.data.get(claim), str | None)
        assert event.data.get("email_verified") in (True, False, None)
        for name in LISTS:
            assert all(isinstance(item, str) for item in event.data.get(name) or [])
        assert event.data.get("tenant_roles", []) is not None


def dump(
    body: object, separators: tuple[str, str] = (",", ":"), *, ascii_only: bool = True
) -> bytes:
    text = json.dumps(body, ensure_ascii=ascii_only, separators=separators)
    return text.encode("utf-8", "surrogatepass")


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every container of the tree with every key or index in it."""
    found = []
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            found += [(node, key), *places(node[key])]
    return found


def shuffled(node: Any, order: random.Random) -> Any:
    if isinstance(node, dict):
        keys = list(node)
        order.shuffle(keys)
        return {key: shuffled(node[key], order) for key in keys}
    if isinstance(node, list):
        return [shuffled(item, order) for item in node]
    return node


@given(st.binary())
def test_any_bytes(body: bytes) -> None:
    """Bytes are an event or malformed."""
    read(body)


@given(VALUES, SEPARATORS, st.booleans())
def test_any_json(value: Any, separators: tuple[str, str], ascii_only: bool) -> None:
    """JSON is an event or malformed, NaN, Infinity and lone surrogates among it."""
    read(dump(value, separators, ascii_only=ascii_only))


@given(st.sampled_from(SYNC_TYPES), st.dictionaries(st.sampled_from(CLAIMS + LISTS), VALUES))
def test_any_claims(event_type: str, claims: dict[str, Any]) -> None:
    """A payload of whatever values is read with the right types or refused."""
    body = {"id": "e", "type": event_type, "timestamp": "2026-08-22T06:00Z"}

    read(dump({**body, "data": {"sub": "u1", **claims}}))


@settings(max_examples=400)
@given(st.sampled_from(BODIES), st.data())
def test_a_body_with_another_value(body: dict[str, Any], data: st.DataObject) -> None:
    """A real body with values replaced, removed or added is an event or malformed."""
    body = copy.deepcopy(body)
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(places(body) or [({}, "id")]))
        if data.draw(st.booleans()) or isinstance(holder, list):
            holder[key] = data.draw(VALUES)
        else:
            holder.pop(key, None)
        if isinstance(holder, dict) and data.draw(st.booleans()):
            holder[data.draw(KEYS)] = data.draw(VALUES)

    read(dump(body, data.draw(SEPARATORS)))


@settings(max_examples=400)
@given(st.sampled_from(BODIES), st.data())
def test_a_body_with_other_bytes(body: dict[str, Any], data: st.DataObject) -> None:
    """A real body with bytes cut out, put in or doubled is an event or malformed."""
    text = bytearray(dump(body, ascii_only=False))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 40)))
        put = data.draw(
            st.binary(max_size=3)
            | st.sampled_from([b"\\u0000", b"\\ud800", b'"', b'":', b"{", b"[" * 40, b"1e999"])
            | st.just(bytes(text[start:end]) * 2)
        )
        text[start:end] = put

    read(bytes(text))


@given(st.binary() | VALUES.map(dump))
def test_any_push_content(inner: bytes) -> None:
    """What a push request wraps is an event or malformed."""
    read(dump({"message": {"data": base64.b64encode(inner).decode()}}))


@settings(max_examples=500)
@given(WRITTEN, SPACES)
def test_repeated_keys_and_odd_text_are_told_apart(written: str, space: str) -> None:
    """`parse` refuses exactly the JSON that a plain strict reader refuses."""
    envelope = f'"id":"e","type"{space}:"x.y","timestamp":"2026-08-22T06:00Z"'
    body = f'{{{envelope},"data":{{"value":{written}}}}}'.encode()
    try:
        expected = read_strictly(body)["data"]
    except ValueError:
        expected = None

    event = read(body)

    assert expected == (event.data if event is not None else None)


@given(WRITTEN)
def test_repeated_keys_of_the_body_itself(written: str) -> None:
    """The rule holds at the top as well, where one `data` may overwrite another."""
    body = f'{{"id":"e","type":"x.y","timestamp":"2026-08-22T06:00Z","data":{written},"data":{{}}}}'

    assert read(body.encode()) is None


@given(
    st.sampled_from(SYSTEM_BODIES)
    | st.dictionaries(st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
                      st.recursive(st.integers() | st.booleans() | st.floats(allow_nan=False,
                                   allow_infinity=False), st.lists, max_leaves=5)).map(
        lambda data: {"event": "x.y", "timestamp": "2026-08-22T06:00Z", "data": data}
    ),
    st.randoms(use_true_random=False),
    SEPARATORS,
    st.sampled_from([None, 1]),
    st.booleans(),
)  # fmt: skip
def test_a_system_event_has_one_id(
    body: dict[str, Any],
    order: random.Random,
    separators: tuple[str, str],
    indent: int | None,
    ascii_only: bool,
) -> None:
    """Neither key order nor spaces nor escapes make another event of it."""
    try:
        event = parse(dump(body))
    except Malformed:
        return  # the payload named a tenant by a number
    other = json.dumps(
        shuffled(body, order), indent=indent, separators=separators, ensure_ascii=ascii_only
    )

    assert event == parse(other.encode())
