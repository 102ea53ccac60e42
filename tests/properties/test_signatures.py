"""Whatever strangers send, there is one refusal; whatever time does, the ring keeps its word."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tenantsync.authvital.keys import FetchError, KeyRing, read_jwks
from tenantsync.authvital.signatures import Verified, Verifier
from tenantsync.errors import KeysUnavailable, Untrusted

NOW = 1_795_405_300
KID = "key_1795405277467_419597ca"
PRIVATE = rsa.generate_private_key(65_537, 2048)


def _base64url(number):
    size = (number.bit_length() + 7) // 8
    return base64.urlsafe_b64encode(number.to_bytes(size, "big")).rstrip(b"=").decode()


def _entry(kid, modulus):
    modulus = _base64url(modulus)
    return {"kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": modulus, "e": "AQAB"}


ENTRY = _entry(KID, PRIVATE.public_key().public_numbers().n)
SET = json.dumps({"keys": [ENTRY]}).encode()


def _unreachable(url, *, no_cache):
    raise OSError


def _verifier(fetch=lambda *_, **__: SET):
    return Verifier(KeyRing("https://auth.example.com/", fetch=fetch), clock=lambda: NOW)


VERIFIER = _verifier()
VERIFIER._keys.refresh()
CUT_OFF = _verifier(_unreachable)


def _headers(signature, kid, timestamp):
    return {
        "X-AuthVital-Signature": signature,
        "X-AuthVital-Key-Id": kid,
        "X-AuthVital-Timestamp": timestamp,
    }


anything = st.text(st.characters(exclude_categories=()), max_size=40)  # lone surrogates too
timestamps = st.integers(NOW - 300, NOW + 60).map(str)
base64s = st.binary(max_size=300).map(lambda data: base64.b64encode(data).decode())
right_length = st.binary(min_size=256, max_size=256).map(
    lambda data: base64.b64encode(data).decode()
)
spellings = st.sampled_from([str, str.lower, str.upper, str.title])
plausible = st.builds(
    lambda spell, headers: {spell(name): value for name, value in headers.items()},
    spellings,
    st.builds(
        _headers,
        st.one_of(anything, base64s, right_length),
        st.one_of(anything, st.just(KID)),
        st.one_of(anything, timestamps, st.from_regex(r"[0-9]{1,12}")),
    ),
)


@settings(max_examples=500)
@given(
    body=st.binary(),
    headers=st.one_of(st.dictionaries(anything, anything), plausible),
)
@example(body=b"", headers={})
@example(body=b"", headers=_headers("=" * 4, KID, f"{NOW}"))
@example(body=b"", headers=_headers(base64.b64encode(b"\xff" * 256).decode(), KID, f"{NOW}"))
def test_strangers_only_ever_get_untrusted(body, headers):
    """No input, however odd, makes verification fail in a second way, a held key id included."""
    with pytest.raises(Untrusted) as refusal:
        VERIFIER.verify(body, headers)
    assert len(str(refusal.value)) < 300
    assert VERIFIER.ready(headers) in (True, False)


@given(
    body=st.binary(),
    headers=st.builds(_headers, right_length, st.just(KID), timestamps),
)
def test_a_held_key_and_the_right_time_do_not_help_a_guess(body, headers):
    """With all but the signature in order, it is the signature that is refused."""
    with pytest.raises(Untrusted, match="X-AuthVital-Signature does not match"):
        VERIFIER.verify(body, headers)


@given(body=st.binary(), headers=st.one_of(st.dictionaries(anything, anything), plausible))
def test_without_keys_there_is_one_way_more(body, headers):
    """While the JWKS is out of reach it is Untrusted or KeysUnavailable, and nothing else."""
    with pytest.raises((Untrusted, KeysUnavailable)):
        CUT_OFF.verify(body, headers)


@given(
    body=st.binary(),
    timestamp=timestamps,
    spell=spellings,
    others=st.dictionaries(
        anything.filter(lambda name: not name.lower().startswith("x-authvital-")), anything
    ),
)
def test_what_was_signed_verifies(body, timestamp, spell, others):
    """Any bytes, any time in the window and any other headers: an authentic delivery is taken."""
    signature = PRIVATE.sign(timestamp.encode() + b"." + body, padding.PKCS1v15(), SHA256())
    headers = _headers(base64.b64encode(signature).decode(), KID, timestamp)
    headers = others | {spell(name): value for name, value in headers.items()}

    assert Verified(int(timestamp), KID) == VERIFIER.verify(body, headers)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
mutated = st.builds(
    lambda changes, missing: {
        name: value for name, value in (ENTRY | changes).items() if name not in missing
    },
    st.dictionaries(st.sampled_from([*ENTRY, "d", "x5c"]), json_values, max_size=2),
    st.sets(st.sampled_from(list(ENTRY)), max_size=1),
)
documents = st.one_of(
    st.binary(),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.lists(st.one_of(mutated, json_values), max_size=4).map(
        lambda entries: json.dumps({"keys": entries}).encode()
    ),
)


@settings(max_examples=500)
@given(document=documents)
@example(document=SET)
def test_any_document_is_read_or_refused(document):
    """Whatever a server answers is either good keys or a failed fetch."""
    try:
        keys = read_jwks(document)
    except FetchError:
        return
    assert list(keys) == [KID]
    assert PRIVATE.public_key().public_numbers() == keys[KID].public_numbers()


class RingMachine(RuleBasedStateMachine):
    """The ring beside a model of what it promises, through rotations, outages and time."""

    kids = st.sampled_from(["k0", "k1", "k2", "k3"])

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.published = {"k0"}
        self.reachable = True
        self.fetched_at = []
        self.jobs = []
        self.ring = KeyRing(
            "https://auth.example.com/",
            fetch=self._fetch,
            clock=lambda: self.now,
            spawn=self.jobs.append,
        )
        self.known = set()
        self.known_at = None
        self.last_succeeded = None

    def _fetch(self, url, *, no_cache):
        assert no_cache
        self.fetched_at.append(self.now)
        self.last_succeeded = self.reachable and bool(self.published)
        if not self.reachable:
            raise OSError
        if self.published:
            self.known, self.known_at = set(self.published), self.now
        entries = [_entry(kid, (1 << 2048) - 1 - 2 * int(kid[1])) for kid in self.published]
        return json.dumps({"keys": entries}).encode()

    def _is_held(self, kid):
        return kid in self.known and self.now - self.known_at <= 86_400

    @rule(seconds=st.sampled_from([0.5, 1, 29, 30, 31, 599, 600, 3600, 86_399, 86_401]))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(kid=kids)
    def publish(self, kid):
        self.published.add(kid)

    @rule(kid=kids)
    def revoke(self, kid):
        self.published.discard(kid)

    @rule()
    def lose_or_find_the_way(self):
        self.reachable = not self.reachable

    @precondition(lambda self: self.jobs)
    @rule()
    def run_a_job(self):
        self.jobs.pop()()

    @precondition(lambda self: self.jobs)
    @rule()
    def lose_a_job(self):
        self.jobs.pop()

    @rule(kid=kids)
    def look_up(self, kid):
        held, fetches = self._is_held(kid), len(self.fetched_at)
        cools_down = bool(self.fetched_at) and self.now - self.fetched_at[-1] < 30
        try:
            found = "found" if self.ring.find(kid).key_size == 2048 else "wrong"
        except Untrusted:
            found = "untrusted"
        except KeysUnavailable:
            found = "unavailable"
        fetched = len(self.fetched_at) - fetches
        if held:
            assert (found, fetched) == ("found", 0)
        else:
            # The fetch, where one was allowed, has updated the model.
            assert (0 if cools_down else 1) == fetched
            expected = "found" if self._is_held(kid) else "untrusted"
            assert (expected if self.last_succeeded else "unavailable") == found

    @invariant()
    def the_ring_holds_what_the_model_knows(self):
        held = {kid for kid in ("k0", "k1", "k2", "k3") if self.ring.holds(kid)}
        assert {kid for kid in self.known if self._is_held(kid)} == held

    @invariant()
    def fetches_keep_their_distance(self):
        pairs = zip(self.fetched_at, self.fetched_at[1:], strict=False)
        assert all(later - earlier >= 30 for earlier, later in pairs)


class TestRing(RingMachine.TestCase):
    """The ring keeps its promises through any order of rotations, outages and lookups."""

    settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
