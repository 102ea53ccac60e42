"""Access tokens, and everything that the same keys sign beside them."""

import json
import time

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.tokens import AccessTokens
from tenantsync.errors import ConfigError, KeysUnavailable, Untrusted
from tenantsync.testing.emulator import Emulator, Keys, SigningKey

NOW = 1_800_000_000
ISSUER = "https://auth.example.com"
SPA, OTHER = "spa-client-id", "another-client-id"
TENANT = "93ce0187-9290-491b-9f06-be209b3d2f92"
KEY = SigningKey.generate(at=NOW)


def emulator():
    """Return an AuthVital of the same key and clock as what is tested."""
    return Emulator(issuer=ISSUER, keys=Keys(KEY), clock=lambda: NOW)


MINT = emulator().tokens


def accepting(*, audience=(SPA,), fetch=None, clock=lambda: NOW, **options):
    document = json.dumps(emulator().jwks()).encode()
    keys = KeyRing("https://keys.example.com", fetch=fetch or (lambda *_, **__: document))
    return AccessTokens(keys, issuer=ISSUER, audience=audience, clock=clock, **options)


def access(*, lifetime=3600, without=(), **claims):
    """Mint a good token, or one with some claims changed or left out."""
    good = MINT.access("ann", TENANT, client_id=SPA, lifetime=lifetime, without=without)
    return MINT.sign(MINT.claims(good) | claims)


def test_an_access_token_says_who_for_which_tenant_and_for_what():
    """The claims that are asked for later, and all the others beside them."""
    claims = accepting().verify(access(scope="openid profile"))

    assert (claims.sub, claims.tenant_id) == ("ann", TENANT)
    assert claims.scopes == ("openid", "profile")
    assert claims.claims["tenant_subdomain"] == "tenant"
    assert "spa-client-id" not in repr(claims)


def test_the_token_of_a_refresh_is_an_access_token_too():
    """It looks the same whether its person has left or not: the mirror knows, not the token."""
    assert accepting().verify(MINT.refreshed("ann", TENANT, client_id=SPA)).sub == "ann"


LOOK_ALIKES = {
    "an ID token": MINT.id("ann", client_id=SPA),
    "an ID token with a tenant": MINT.id("ann", client_id=SPA, tenant_id=TENANT),
    "a refresh token": MINT.refresh("ann", TENANT, client_id=SPA),
    "a machine token": MINT.machine("machine"),
    "a machine token for us": MINT.machine("machine", aud=SPA, tenant_id=TENANT),
    "a console session": MINT.console("ann"),
    "a console session for us": MINT.console("ann", aud=SPA, scope="openid", tenant_id=TENANT),
    "a super-admin's session": MINT.super_admin("ann"),
    "a super-admin's session for us": MINT.super_admin(
        "ann", aud=SPA, scope="openid", tenant_id=TENANT
    ),
    "an MFA challenge": MINT.mfa_challenge("ann"),
    "an MFA resumption": MINT.mfa_resume("ann"),
    "a token without a tenant": MINT.access("ann", client_id=SPA),
    "a token without a scope": access(without=["scope"]),
    "a scope that is null": access(scope=None),
    "a scope in a list": access(scope=["openid"]),
    "a token type, if only null": access(token_type=None),
    "a token type that says access": access(token_type="access"),
    "a type, if only empty": access(type=""),
    "no algorithm": MINT.unsigned(MINT.claims(access())),
    "HS256 with the public key": MINT.confused(MINT.claims(access())),
    "a stranger's signature": MINT.forged(MINT.claims(access())),
    "another audience": MINT.access("ann", TENANT, client_id=OTHER),
    "another audience too": access(aud=[SPA, OTHER]),
    "no audience": access(without=["aud"]),
    "another issuer": access(iss=f"{ISSUER}/"),
    "no issuer": access(without=["iss"]),
    "a token that expired": access(lifetime=-31),
    "no end": access(without=["exp"]),
    "no beginning": access(without=["iat"]),
    "a beginning in the future": access(iat=NOW + 31),
    "nobody": access(sub=""),
    "a person without a name": access(without=["sub"]),
    "a person who is a number": access(sub=7),
    "a person beyond all bounds": access(sub="x" * 256),
    "a person with a zero byte": access(sub="ann\0"),
    "half a surrogate": access(sub="\ud800"),
    "an empty tenant": access(tenant_id=""),
    "a tenant beyond all bounds": access(tenant_id="\u00e9" * 128),
    "several tenants": access(tenant_id=[TENANT]),
    "nothing": "",
    "garbage": "eyJhbGciOiJSUzI1NiJ9.e30.e30",
    "two tokens": f"{access()} {access()}",
    "a token with a tail": f"{access()}.e30",
    "far too long": "x" * 20_000,
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_what_only_looks_like_an_access_token_is_refused(name):
    """With 401 in the end, and with a sentence that repeats no claim."""
    with pytest.raises(Untrusted) as caught:
        accepting().verify(LOOK_ALIKES[name])

    assert not any(value in str(caught.value) for value in ("ann", TENANT, SPA, ISSUER))


def test_every_other_algorithm_is_refused_also_with_the_right_key():
    """The key ring's keys are for RS256 and nothing else."""
    for algorithm in ("RS384", "RS512", "PS256"):
        token = jwt.encode(MINT.claims(access()), KEY.private, algorithm, headers={"kid": KEY.kid})
        with pytest.raises(Untrusted, match="RS256"):
            accepting().verify(token)


def test_clocks_may_differ_by_the_leeway_and_no_more():
    """Thirty seconds either way by default."""
    for ours in (access(exp=NOW - 29), access(iat=NOW + 30)):
        assert accepting().verify(ours)
        with pytest.raises(Untrusted):
            accepting(leeway=0).verify(ours)
    with pytest.raises(Untrusted, match="expired"):
        accepting(clock=time.time, leeway=0).verify(access(exp=1))


def test_any_configured_client_is_an_audience_and_none_is_an_error():
    """An application may have several clients; one without any would refuse everybody."""
    ours = accepting(audience=[OTHER, SPA])
    assert ours.verify(access()).sub == "ann"
    assert ours.verify(MINT.access("ann", TENANT, client_id=OTHER)).sub == "ann"
    with pytest.raises(ConfigError, match=r"\[authvital\] audience"):
        accepting(audience=[])


def test_a_key_never_seen_while_the_keys_are_out_of_reach_is_nobodys_fault():
    """Then it cannot be said whether the token is good."""

    def fails(*_, **__):
        raise OSError

    tokens = accepting(fetch=fails)
    assert not tokens.ready(access())
    with pytest.raises(KeysUnavailable):
        tokens.verify(access())
    assert tokens.ready("garbage")


def test_a_held_key_needs_no_network():
    """`ready` says whether to verify at once or elsewhere."""
    tokens = accepting()
    assert not tokens.ready(access())
    tokens.verify(access())
    assert tokens.ready(access())


@given(
    claims=st.dictionaries(
        st.sampled_from(
            ["sub", "iss", "aud", "iat", "exp", "nbf", "scope", "tenant_id", "token_type", "type"]
        ),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9),
            st.lists(st.text(max_size=3), max_size=2), st.just(SPA), st.just(ISSUER),
        ),
    ),
    gone=st.sets(st.sampled_from(["sub", "iss", "aud", "iat", "exp", "scope", "tenant_id"])),
)  # fmt: skip
def test_whatever_is_signed_is_an_access_token_or_untrusted(claims, gone):
    """No claim breaks the reader, and nothing gets through with one missing."""
    try:
        verified = TOKENS.verify(access(without=gone, **claims))
    except Untrusted:
        return
    assert not gone - claims.keys()
    assert not {"token_type", "type"} & claims.keys()
    assert verified.sub
    assert verified.tenant_id


TOKENS = accepting()
