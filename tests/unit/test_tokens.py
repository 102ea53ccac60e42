"""Tokens: whose they are, for whom, and when; and every one that only looks so."""

import base64
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.tokens import (
    GOOGLE_ISSUER,
    MAX_TOKEN_CHARACTERS,
    TokenVerifier,
    google_issuers,
)
from tenantsync.errors import KeysUnavailable, Untrusted
from tenantsync.testing.keys import SigningKey

NOW = 1_800_000_000
AUDIENCE = "https://us.example.com/push"
ISSUER = "https://issuer.example.com"
KEY = SigningKey.generate(1)
STRANGER = SigningKey.generate(2)
JWKS = json.dumps({"keys": [KEY.jwk()]}).encode()


def ring(document=JWKS):
    return KeyRing("https://keys.example.com/certs", fetch=lambda *_, **__: document)


def verifier(**options):
    return TokenVerifier(
        options.pop("keys", None) or ring(),
        **{
            "issuers": {ISSUER},
            "audience": {AUDIENCE},
            "clock": lambda: NOW,
            **options,
        },
    )


def claims(**changes):
    """Return valid claims with some changed; None takes one out."""
    valid = {"iss": ISSUER, "aud": AUDIENCE, "iat": NOW - 10, "exp": NOW + 3600, "sub": "42"}
    return {name: value for name, value in (valid | changes).items() if value is not None}


def token(payload=None, *, key=KEY, kid=None, algorithm="RS256", headers=None):
    return jwt.encode(
        claims() if payload is None else payload,
        key.private if isinstance(key, SigningKey) else key,
        algorithm,
        headers={"kid": kid or KEY.kid, **(headers or {})},
    )


def part(document):
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def test_the_claims_of_a_valid_token_are_returned():
    """All of them, as they were signed."""
    assert claims(email="a@b") == verifier().verify(token(claims(email="a@b")))


def test_a_token_for_several_audiences_must_have_no_other():
    """A list is judged as a whole: one that is for somebody else too is not ours alone."""
    ours = verifier(audience={AUDIENCE, "second"})

    assert ours.verify(token(claims(aud=[AUDIENCE, "second"])))
    for wrong in ([AUDIENCE, "third"], [], [AUDIENCE, 7], {"aud": AUDIENCE}):
        with pytest.raises(Untrusted, match="audience"):
            ours.verify(token(claims(aud=wrong)))


WRONG = {
    "no issuer": (claims(iss=None), "no claim 'iss'"),
    "another issuer": (claims(iss=ISSUER + "/"), "another issuer"),
    "an issuer in a list": (claims(iss=[ISSUER]), "another issuer"),
    "no audience": (claims(aud=None), "no claim 'aud'"),
    "another audience": (claims(aud=AUDIENCE + "/"), "another audience"),
    "a number for an audience": (claims(aud=1), "another audience"),
    "no time of issue": (claims(iat=None), "no claim 'iat'"),
    "issued in the future": (claims(iat=NOW + 61), "'iat' lies in the future"),
    "no end": (claims(exp=None), "no claim 'exp'"),
    "expired": (claims(exp=NOW - 60), "expired"),
    "not valid yet": (claims(nbf=NOW + 61), "'nbf' lies in the future"),
    "an end that is a text": (claims(exp=str(NOW + 60)), "'exp' is no time"),
    "an end that is true": (claims(exp=True), "'exp' is no time"),
    "an end beyond time": (claims(exp=10**15), "'exp' is no time"),
    "an issue before time": (claims(iat=-1), "'iat' is no time"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_signed_token_with_a_wrong_claim_is_refused(name):
    """The refusal names the claim and repeats no value."""
    payload, reason = WRONG[name]
    # PyJWT itself would not write some of these.
    signed = jwt.api_jws.encode(
        json.dumps(payload).encode(), KEY.private, "RS256", headers={"kid": KEY.kid}
    )

    with pytest.raises(Untrusted, match=reason) as caught:
        verifier().verify(signed)
    assert AUDIENCE not in str(caught.value)


def test_clocks_may_differ_by_the_leeway_and_no_more():
    """Sixty seconds either way."""
    for payload in (claims(exp=NOW - 59), claims(iat=NOW + 60), claims(nbf=NOW + 60)):
        assert verifier().verify(token(payload))
    with pytest.raises(Untrusted, match="expired"):
        verifier(leeway=0).verify(token(claims(exp=NOW)))


def test_a_required_claim_must_be_there():
    """What a kind of token must have is for its user to say."""
    with pytest.raises(Untrusted, match="no claim 'email'"):
        verifier().verify(token(), required=("email",))
    with pytest.raises(Untrusted, match="no claim 'email'"):
        verifier().verify(token(claims() | {"email": None}), required=("email",))


def test_only_the_published_key_signs():
    """Another key under the right id proves nothing."""
    with pytest.raises(Untrusted, match="signature"):
        verifier().verify(token(key=STRANGER))


def test_no_other_algorithm_counts():
    """Not `none`, not a shared secret made of the public key, no other family, no other digest."""
    public = KEY.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    head = {"typ": "JWT", "kid": KEY.kid}
    shared = f"{part(head | {'alg': 'HS256'})}.{part(claims())}"
    mac = base64.urlsafe_b64encode(hmac.digest(public, shared.encode(), "sha256")).rstrip(b"=")
    forged = [
        f"{part(head | {'alg': 'none'})}.{part(claims())}.",
        f"{part(head | {'alg': 'none'})}.{part(claims())}.AA",
        f"{part(head | {'alg': 'RS256'})}.{part(claims())}.AA",
        f"{part(head)}.{part(claims())}.AA",
        f"{shared}.{mac.decode()}",
        token(algorithm="RS512"),
        token(algorithm="PS256"),
        token(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
    ]
    for each in forged:
        with pytest.raises(Untrusted):
            verifier().verify(each)


def test_a_critical_extension_that_nobody_knows_is_refused():
    """What must be understood and is not makes the token void (RFC 7515, section 4.1.11)."""
    with pytest.raises(Untrusted, match="signature"):
        verifier().verify(token(headers={"crit": ["exp"], "exp": NOW}))


def test_a_token_without_a_key_id_is_refused_unfetched():
    """Nobody tries all keys, and nobody fetches any for it."""
    fetches = []
    keys = KeyRing("https://x/", fetch=lambda url, *, no_cache: fetches.append(url) or JWKS)
    unnamed = jwt.encode(claims(), KEY.private, "RS256")

    assert verifier(keys=keys).ready(unnamed)
    with pytest.raises(Untrusted, match="no key"):
        verifier(keys=keys).verify(unnamed)
    assert fetches == []


def test_a_key_never_seen_is_fetched():
    """Then the ring's rules hold: unknown is refused, unreachable is for later."""
    fresh = verifier()

    assert not fresh.ready(token())
    assert fresh.verify(token())
    assert fresh.ready(token())
    with pytest.raises(Untrusted, match="not among the published keys of AuthVital"):
        fresh.verify(token(key=STRANGER, kid=STRANGER.kid))
    with pytest.raises(KeysUnavailable):
        verifier(keys=ring(b"{}")).verify(token())


def test_a_token_that_is_too_long_is_not_read():
    """However it goes on."""
    long = token(claims(padding="x" * MAX_TOKEN_CHARACTERS))

    assert verifier().ready(long)
    with pytest.raises(Untrusted, match="compact form"):
        verifier().verify(long)


def test_claims_that_are_no_object_are_refused():
    """A signature alone does not make a token."""
    for payload in (b"[]", b"7", b"\xff", b"{", b"[" * 5000):
        signed = jwt.api_jws.encode(payload, KEY.private, "RS256", headers={"kid": KEY.kid})
        with pytest.raises(Untrusted, match="no JSON object"):
            verifier().verify(signed)


def test_google_writes_its_name_in_two_ways():
    """Both count where Google is the issuer, and nowhere else."""
    assert google_issuers(GOOGLE_ISSUER) == {GOOGLE_ISSUER, "accounts.google.com"}
    assert google_issuers(ISSUER) == {ISSUER}
    google = verifier(issuers=google_issuers(GOOGLE_ISSUER))
    for issuer in (GOOGLE_ISSUER, "accounts.google.com"):
        assert google.verify(token(claims(iss=issuer)))
    with pytest.raises(Untrusted):
        verifier().verify(token(claims(iss="accounts.google.com")))


HELD = verifier()
HELD.verify(token())
GOOD = token()


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_no_character_of_a_token_can_be_changed(place, character):
    """A token with one character exchanged is refused, unless it spells the same bytes."""
    changed = GOOD[:place] + character + GOOD[place + 1 :]
    same = [_bytes(each) for each in GOOD.split(".")]
    try:
        HELD.verify(changed)
    except Untrusted:
        return
    assert [_bytes(each) for each in changed.split(".")] == same


def _bytes(encoded):
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


@given(
    st.one_of(
        st.text(max_size=200),
        st.from_regex(r"[A-Za-z0-9_-]{1,80}\.[A-Za-z0-9_-]{1,80}\.[A-Za-z0-9_-]{1,80}"),
        st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=40)).map(
            lambda header: f"{part({'alg': 'RS256', 'kid': KEY.kid} | header)}.{part({})}.AAAA"
        ),
    )
)
def test_strangers_only_ever_get_untrusted(text):
    """Whatever is sent as a token, there is one refusal."""
    HELD.ready(text)
    with pytest.raises(Untrusted):
        HELD.verify(text)
