"""The local AuthVital's token endpoint, integration API and tokens, over real loopback HTTP."""

import base64
import hashlib
import hmac
import json
import threading
from collections import deque
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tenantsync.testing.delivery import VirtualClock
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.server import Response, Server
from tenantsync.testing.tables import (
    Application,
    Credential,
    LicenseType,
    Membership,
    Role,
    Seat,
    SystemHook,
    Tenant,
    TenantRole,
    User,
)

NOW = 1_795_405_281.0
RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parent.parent / "data" / "integration-api.jsonl")
    .read_text(encoding="utf-8")
    .splitlines()
]
ASKED = [
    line
    for line in RECORDED
    if line["method"] == "GET" and line["path"].startswith("/api/integration/")
]
MACHINE, SECRET = "local-machine-client-id", "s3cret-canary"


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
def emulator(key, clock):
    with Emulator(keys=Keys(key, clock=clock), clock=clock, sleep=clock.sleep, seed=3) as emulator:
        yield emulator


def at(text):
    return None if text is None else round(datetime.fromisoformat(text).timestamp() * 1000)


def answer(step):
    return next(line["response_body"] for line in RECORDED if line["step"] == step)


def fill(state):
    """Put into the tables what the recorded AuthVital told of its own."""
    state.tenant_roles.clear()
    for role in answer("tenant-roles")["roles"]:
        state.tenant_roles[role["slug"]] = TenantRole(
            role["id"],
            role["name"],
            role["slug"],
            role["description"],
            role["isSystem"],
            tuple(role["permissions"]),
        )
    local = Application("cmwspxuxh0007ny7dn277ejhn", "My Local App", "my-local-app")
    local.credentials["SPA"] = Credential("local-spa-client-id", "SPA")
    local.credentials["MACHINE"] = Credential(MACHINE, "MACHINE", SECRET)
    for role in answer("roles")["roles"]:
        local.roles[role["id"]] = Role(
            role["id"], local.id, role["name"], role["slug"], role["description"]
        )
    seats = Application("cmwspxv0v000dny7dlnzh2yjw", "Seat App", "seat-app", "PER_SEAT")
    seats.credentials["SPA"] = Credential("seat-app-client-id", "SPA")
    bff = Application("cmwspxv23000iny7dzby9fmee", "Web BFF", "web-bff")
    state.applications.update({one.id: one for one in (local, seats, bff)})
    listed = answer("tenant-memberships includeRoles")
    rows = [
        {**row, "tenant": {"id": listed["tenantId"], "name": listed["tenantName"]}}
        for row in listed["memberships"]
    ] + answer("application-memberships all tenants")["memberships"]
    for row in rows:
        tenant, user = row["tenant"], row["user"]
        slug = tenant.get("slug") or listed["tenantSlug"]
        state.tenants[tenant["id"]] = Tenant(tenant["id"], tenant["name"], slug)
        state.users[user["id"]] = User(
            user["id"], user["email"], user["givenName"], user["familyName"]
        )
        for role in row["roles"]:
            application = state.applications[role.get("applicationId", seats.id)]
            application.roles.setdefault(
                role["id"], Role(role["id"], application.id, role["name"], role["slug"])
            )
        state.memberships.setdefault(
            row["id"],
            Membership(
                row["id"],
                tenant["id"],
                user["id"],
                row["status"],
                at(row["joinedAt"]),
                at(row["createdAt"]),
                role_ids=[role["id"] for role in row["roles"]],
            ),
        )
    (kind,) = answer("user-licenses")
    state.license_types[kind["licenseTypeId"]] = LicenseType(
        kind["licenseTypeId"], seats.id, kind["licenseTypeName"], kind["licenseTypeSlug"]
    )
    for number, holder in enumerate(answer("license-holders")):
        seat_id = kind["id"] if holder["userId"].startswith("8de549ca") else f"seat-{number}"
        state.seats[seat_id] = Seat(
            seat_id,
            listed["tenantId"],
            holder["userId"],
            seats.id,
            holder["licenseTypeId"],
            at(holder["assignedAt"]),
        )


class Caller:
    """Asks the emulator, with a machine token unless told otherwise."""

    def __init__(self, emulator):
        self.emulator = emulator

    def token(self, **form):
        return httpx2.post(
            self.emulator.url + "/oauth/token",
            data={"grant_type": "client_credentials", "client_id": MACHINE, "client_secret": SECRET}
            | form,
            trust_env=False,
        )

    def get(self, path, *, token=None, headers=None):
        token = self.emulator.tokens.machine(MACHINE) if token is None else token
        return httpx2.get(
            self.emulator.url + path,
            headers={"Authorization": f"Bearer {token}"} if headers is None else headers,
            trust_env=False,
        )


@pytest.fixture
def recorded(emulator):
    """The emulator with the recorded people, and someone to ask it."""
    fill(emulator.state)
    return Caller(emulator)


@pytest.fixture
def tenant_id():
    return answer("tenant-memberships")["tenantId"]


# -- as recorded


@pytest.mark.parametrize("line", ASKED, ids=[line["step"] for line in ASKED])
def test_it_answers_what_a_real_authvital_answered(recorded, line):
    """Every recorded question gets the recorded answer: its status, and its bytes."""
    asked_without = "Authorization" not in line["request_headers"]
    response = recorded.get(line["path"], headers={} if asked_without else None)
    expected = json.dumps(line["response_body"], ensure_ascii=False, separators=(",", ":"))

    assert response.status_code == line["status"]
    assert response.content.decode() == expected
    for name in ("content-type", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"):
        assert response.headers[name] == line["response_headers"][name]


def test_a_machine_token_is_had_as_recorded(recorded):
    """By form or JSON, with all scopes or the one that was asked for."""
    form = recorded.token(scope="integration:read")
    as_json = httpx2.post(
        recorded.emulator.url + "/oauth/token",
        json={"grant_type": "client_credentials", "client_id": MACHINE, "client_secret": SECRET},
        trust_env=False,
    )
    wrong = recorded.token(client_secret="nope")

    assert form.status_code == as_json.status_code == 200
    assert form.json() | {"access_token": "<jwt>"} == answer("client_credentials (form)")
    assert as_json.json() | {"access_token": "<jwt>"} == answer("client_credentials (json)")
    assert wrong.status_code == 401
    assert wrong.json() == answer("client_credentials bad secret")
    assert wrong.headers["x-ratelimit-limit"] == "30"


def test_its_claims_are_a_machines(recorded, key, clock):
    """The header and the eight claims."""
    token = recorded.token().json()["access_token"]
    claims = jwt.decode(token, options={"verify_signature": False})

    assert jwt.get_unverified_header(token) == {"alg": "RS256", "kid": key.kid, "typ": "JWT"}
    assert claims == {
        "sub": f"app:{MACHINE}",
        "iss": recorded.emulator.url,
        "iat": int(NOW),
        "exp": int(NOW) + 3600,
        "aud": MACHINE,
        "client_id": MACHINE,
        "scope": "integration:read integration:write",
        "token_type": "m2m",
    }


@pytest.mark.parametrize(
    ("form", "status", "message"),
    [
        ({"grant_type": "password"}, 400, "Unsupported grant_type"),
        ({"client_secret": ""}, 400, "client_id and client_secret are required"),
        ({"scope": "integration:read admin"}, 400, "invalid_scope: admin"),
        ({"client_id": "nobody"}, 401, "Invalid client_id"),
        ({"client_id": "local-spa-client-id"}, 401, "Client has no secret configured"),
    ],
)
def test_no_token_is_given_for_a_wrong_form(recorded, form, status, message):
    """The framework's shape, not that of RFC 6749."""
    response = recorded.token(**form)
    phrase = {400: "Bad Request", 401: "Unauthorized"}[status]

    assert response.status_code == status
    assert response.json() == {"message": message, "error": phrase, "statusCode": status}


def test_a_token_request_that_is_no_json_is_refused(recorded):
    """Garbage is a 400; a list has no parameters."""
    url = recorded.emulator.url + "/oauth/token"
    headers = {"Content-Type": "application/json"}
    garbage = httpx2.post(url, content=b"{", headers=headers, trust_env=False)
    a_list = httpx2.post(url, content=b"[]", headers=headers, trust_env=False)

    assert (garbage.status_code, a_list.status_code) == (400, 400)


def test_a_disabled_credential_gets_and_keeps_nothing(recorded, tenant_id):
    """Neither a new token, nor an answer for an old one."""
    old = recorded.token().json()["access_token"]
    recorded.emulator.state.credential(MACHINE)[1].enabled = False

    assert recorded.token().status_code == 401
    path = f"/api/integration/tenant-memberships?tenantId={tenant_id}"
    assert recorded.get(path, token=old).status_code == 401


# -- guards


def test_the_guards_come_in_the_providers_order(recorded, tenant_id):
    """Token, then scope, then the missing parameter, then the tenant, then what there is."""
    credential = recorded.emulator.state.credential(MACHINE)[1]
    credential.trusted = False
    path = "/api/integration/tenant-memberships"
    no_scope = recorded.emulator.tokens.machine(MACHINE, scope="integration:write")
    statuses = [
        recorded.get(path, headers={}).status_code,
        recorded.get(path, token=no_scope).status_code,
        recorded.get(path).status_code,
        recorded.get(f"{path}?tenantId=nope").status_code,
    ]
    credential.tenants.add("nope")
    statuses.append(recorded.get(f"{path}?tenantId=nope").status_code)
    credential.tenants.add(tenant_id)
    statuses.append(recorded.get(f"{path}?tenantId={tenant_id}").status_code)

    assert statuses == [401, 403, 400, 403, 404, 200]
    told = recorded.get(path, token=no_scope).json()
    assert told["message"] == "insufficient_scope: requires [integration:read]"


@pytest.mark.parametrize(
    "path",
    [
        "application-memberships?clientId=local-spa-client-id&tenantId={tenant}",
        "user-tenants?userId=107af88b-9e42-4c7b-bbb7-98368979b61b",
    ],
)
def test_some_endpoints_want_trust_in_all_tenants(recorded, tenant_id, path):
    """Even where one tenant is named, whatever the documentation says."""
    credential = recorded.emulator.state.credential(MACHINE)[1]
    credential.trusted, credential.tenants = False, {tenant_id}

    assert recorded.get("/api/integration/" + path.format(tenant=tenant_id)).status_code == 403


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tokens: tokens.access("u", client_id="local-spa-client-id"),
        lambda tokens: tokens.machine(MACHINE, lifetime=-1),
        lambda tokens: tokens.machine(MACHINE, iss="https://elsewhere.test"),
        lambda tokens: tokens.machine("nobody"),
        lambda tokens: tokens.forged(tokens.claims(tokens.machine(MACHINE))),
        lambda tokens: tokens.unsigned(tokens.claims(tokens.machine(MACHINE))),
        lambda tokens: tokens.confused(tokens.claims(tokens.machine(MACHINE))),
        lambda tokens: "garbage",
    ],
)
def test_a_token_of_another_kind_is_refused(recorded, tenant_id, spoil):
    """People's tokens, expired ones, foreign ones, unsigned ones."""
    token = spoil(recorded.emulator.tokens)
    path = f"/api/integration/tenant-memberships?tenantId={tenant_id}"

    assert recorded.get(path, token=token).status_code == 401


def test_the_prefix_of_the_header_is_taken_literally(recorded, tenant_id):
    """`bearer` in small letters is no token."""
    token = recorded.emulator.tokens.machine(MACHINE)
    path = f"/api/integration/tenant-memberships?tenantId={tenant_id}"

    assert recorded.get(path, headers={"Authorization": f"bearer {token}"}).status_code == 401


@pytest.mark.parametrize("word", ["1", "True", "yes", "false", ""])
def test_roles_come_only_for_one_word(recorded, tenant_id, word):
    """`includeRoles=true`, literally."""
    path = f"/api/integration/tenant-memberships?tenantId={tenant_id}&includeRoles={word}"

    assert {len(row["roles"]) for row in recorded.get(path).json()["memberships"]} == {0}


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("application-memberships?clientId=nope", 404, "Application not found"),
        ("roles/nope", 404, "Application not found"),
        ("user-tenants?userId=nope", 404, "User not found"),
        ("validate-membership?tenantId=t", 400, "userId is required"),
        ("tenants", 404, "Cannot GET /api/integration/tenants"),
        ("tenant-memberships?tenantId={tenant}&status=GONE", 500, "Internal server error"),
    ],
)
def test_what_is_not_there_is_said_in_the_frameworks_words(
    recorded, tenant_id, path, status, message
):
    """A status that does not exist is not checked, and ends as 500."""
    response = recorded.get("/api/integration/" + path.format(tenant=tenant_id))

    assert response.status_code == status
    assert response.json()["message"] == message
    assert response.json()["statusCode"] == status


def test_a_membership_counts_only_while_it_is_active(recorded, tenant_id):
    """A suspended one is told, and is none; one that is not there is null."""
    sub = "107af88b-9e42-4c7b-bbb7-98368979b61b"
    path = "/api/integration/validate-membership?userId={}&tenantId={}"
    recorded.emulator.actions.suspend(tenant_id, sub)
    suspended = recorded.get(path.format(sub, tenant_id)).json()
    missing = recorded.get(path.format("nobody", tenant_id)).json()

    assert suspended["isMember"] is False
    assert suspended["membership"]["status"] == "SUSPENDED"
    assert missing == {"isMember": False, "membership": None}


def test_an_invitation_is_listed_until_it_ends(recorded, tenant_id, clock):
    """With the role's display name, and who invited."""
    owner = "8b341541-8bbf-4522-b15a-1596fe1a461c"
    recorded.emulator.actions.invite(tenant_id, "Eve@corp.test", by=owner)
    recorded.emulator.actions.invite(tenant_id, "mia@corp.test")
    path = f"/api/integration/invitations?tenantId={tenant_id}"
    listed = recorded.get(path).json()
    clock.sleep(8 * 86_400)

    assert listed["totalCount"] == 2
    assert listed["invitations"][0]["email"] == "eve@corp.test"
    assert listed["invitations"][0]["role"] == "Member"
    assert listed["invitations"][0]["invitedBy"]["id"] == owner
    assert listed["invitations"][1]["invitedBy"] is None
    assert recorded.get(path).json()["totalCount"] == 0


def test_a_subscription_tells_how_many_seats_are_left(recorded, tenant_id):
    """Bought, assigned, available; another application's are left out."""
    kind = next(iter(recorded.emulator.state.license_types))
    recorded.emulator.actions.subscribe(tenant_id, kind, quantity=5)
    path = f"/api/integration/subscription-status?tenantId={tenant_id}&applicationId="
    (row,) = recorded.get(path + "cmwspxv0v000dny7dlnzh2yjw").json()["subscriptions"]
    other = recorded.get(path + "cmwspxuxh0007ny7dn277ejhn").json()

    assert (row["quantityPurchased"], row["quantityAssigned"], row["quantityAvailable"]) == (
        5,
        2,
        3,
    )
    assert other == {"hasActiveSubscription": False, "subscriptions": []}


def test_seats_are_counted_by_a_client_id_that_is_named_an_application(recorded, tenant_id):
    """The parameter's name is wrong: an application's id is not found; without it, all count."""
    state, do = recorded.emulator.state, recorded.emulator.actions
    kind = next(iter(state.license_types))
    do.subscribe(tenant_id, kind, quantity=5)
    free = state.add_license_type("cmwspxuxh0007ny7dn277ejhn", "Free")
    do.subscribe(tenant_id, free.id, quantity=1)
    do.end_subscription(do.subscribe(tenant_id, kind, quantity=100).id)
    do.subscribe(do.create_tenant("Other").id, kind, quantity=100)
    do.add_service_account(tenant_id)
    state.seats.update(
        {
            "s1": Seat("s1", tenant_id, ANN, "cmwspxv0v000dny7dlnzh2yjw", kind, 0),
        }
    )
    path = f"/api/integration/check-seats?tenantId={tenant_id}"
    one = recorded.get(path + "&applicationId=seat-app-client-id").json()
    every = recorded.get(path).json()
    wrong = recorded.get(path + "&applicationId=cmwspxv0v000dny7dlnzh2yjw")

    assert one == {
        "memberCount": 5,
        "totalSeatsOwned": 5,
        "totalSeatsAssigned": 1,
        "totalSeatsAvailable": 4,
        "licensingMode": "PER_SEAT",
        "unlimited": False,
        "subscriptions": [
            {
                "applicationId": "cmwspxv0v000dny7dlnzh2yjw",
                "licenseType": state.license_types[kind].slug,
                "seatsOwned": 5,
                "seatsAssigned": 1,
                "seatsAvailable": 4,
            }
        ],
    }
    assert (every["totalSeatsOwned"], every["licensingMode"]) == (6, "UNKNOWN")
    assert wrong.status_code == 404
    assert wrong.json()["message"] == (
        "Application with clientId cmwspxv0v000dny7dlnzh2yjw not found"
    )


def test_the_api_sees_what_happens(recorded, tenant_id):
    """A silent change is in the next answer."""
    sub = "107af88b-9e42-4c7b-bbb7-98368979b61b"
    recorded.emulator.actions.remove_quietly(tenant_id, sub)
    listed = recorded.get(f"/api/integration/tenant-memberships?tenantId={tenant_id}").json()

    assert listed["totalCount"] == 4
    assert sub not in {row["user"]["id"] for row in listed["memberships"]}
    assert len(recorded.emulator.outbox) == 0


# -- clock, throttle, faults


def test_answers_carry_the_providers_date(recorded, tenant_id, clock):
    """The emulator's clock, whatever the time really is."""
    path = f"/api/integration/tenant-memberships?tenantId={tenant_id}"
    first = recorded.get(path).headers.get_list("Date")
    clock.sleep(60.9)

    assert first == ["Mon, 23 Nov 2026 03:41:21 GMT"]
    assert recorded.get(path).headers["Date"] == "Mon, 23 Nov 2026 03:42:21 GMT"


def test_the_throttle_closes_for_the_rest_of_a_minute(recorded, clock):
    """Thirty tokens a minute and address; the answer says how long to wait. Off by default."""
    before = {recorded.token().status_code for _ in range(31)}
    recorded.emulator.integration.throttle.on = True
    clock.sleep(60)
    let = [recorded.token().status_code for _ in range(30)]
    clock.sleep(20)
    refused = recorded.token()
    clock.sleep(40)
    again = recorded.token()

    assert before == {200}
    assert set(let) == {200}
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "40"
    assert refused.json()["statusCode"] == 429
    assert again.status_code == 200
    assert again.headers["X-RateLimit-Remaining"] == "29"


def test_an_answer_can_be_spoilt(recorded, tenant_id):
    """Any function of the honest answer, until the faults are cleared."""
    path = "/api/integration/tenant-memberships"
    faults = recorded.emulator.faults
    faults.spoil[path] = lambda honest: replace(honest, body=honest.body[:100])
    half = recorded.get(f"{path}?tenantId={tenant_id}")
    faults.spoil[path] = lambda honest: replace(honest, length=len(honest.body) + 1)
    with pytest.raises(httpx2.RemoteProtocolError):
        recorded.get(f"{path}?tenantId={tenant_id}")
    faults.clear()

    assert len(half.content) == 100
    assert recorded.get(f"{path}?tenantId={tenant_id}").json()["totalCount"] == 5


# -- keys of two purposes


def test_one_jwks_holds_keys_of_both_purposes(key, other_key, clock):
    """Nothing in it tells which key signs tokens and which webhooks; each is rotated by itself."""
    keys, token_keys = Keys(key, clock=clock), Keys(other_key, clock=clock)
    with Emulator(keys=keys, token_keys=token_keys, clock=clock) as emulator:
        fill(emulator.state)
        caller = Caller(emulator)
        token = caller.token().json()["access_token"]
        published = httpx2.get(emulator.url + "/.well-known/jwks.json", trust_env=False).json()
        delivery = emulator.delivery(b"{}")

        assert published == {"keys": [key.jwk(), other_key.jwk()]}
        assert jwt.get_unverified_header(token)["kid"] == other_key.kid
        assert delivery.headers["X-AuthVital-Key-Id"] == key.kid
        assert caller.get("/api/integration/tenant-roles", token=token).status_code == 200

        token_keys.revoke()

        assert caller.get("/api/integration/tenant-roles", token=token).status_code == 401


# -- people's tokens


@pytest.fixture
def tokens(recorded):
    return recorded.emulator.tokens


ANN = "107af88b-9e42-4c7b-bbb7-98368979b61b"


def test_an_access_token_tells_what_the_emulator_knows(recorded, tokens, tenant_id, key):
    """The whole table of claims, signed so that any library may check it."""
    token = tokens.access(ANN, tenant_id, client_id="seat-app-client-id")
    claims = jwt.decode(
        token,
        key.private.public_key(),
        algorithms=["RS256"],
        audience="seat-app-client-id",
        issuer=recorded.emulator.issuer,
        options={"verify_exp": False, "verify_iat": False},
    )

    assert claims == {
        "sub": ANN,
        "iss": recorded.emulator.url,
        "iat": int(NOW),
        "exp": int(NOW) + 3600,
        "aud": "seat-app-client-id",
        "scope": "openid profile email offline_access",
        "amr": ["pwd"],
        "email": "ann-mwspy43g@corp.test",
        "given_name": "ann",
        "family_name": "Ünïcode",
        "tenant_id": tenant_id,
        "tenant_subdomain": "corp-mwspy43g",
        "tenant_roles": ["member"],
        "tenant_permissions": ["app-access:view", "licenses:view", "members:view", "tenant:view"],
        "license": {"type": "basic-seat", "name": "Basic Seat", "features": []},
    }


def test_an_owners_permissions_are_spelt_out(recorded, tokens, tenant_id):
    """The wildcard is not in the token; application roles are those of its application."""
    recorded.emulator.actions.set_tenant_roles(tenant_id, ANN, ["owner"])
    claims = tokens.claims(tokens.access(ANN, tenant_id))

    assert claims["aud"] == "local-spa-client-id"
    assert claims["app_roles"] == ["admin"]
    assert "tenant:*" not in claims["tenant_permissions"]
    assert "billing:manage" in claims["tenant_permissions"]


def test_a_token_may_be_for_no_tenant_and_for_nobody_known(tokens):
    """Then it has no tenant claim at all, and null for what is unknown."""
    claims = tokens.claims(tokens.access("nobody", scope="openid email"))

    assert claims["email"] is None
    assert not {"tenant_id", "tenant_roles", "given_name"} & claims.keys()
    assert tokens.claims(tokens.access("nobody", "nowhere"))["tenant_id"] == "nowhere"


def test_a_former_member_refreshes_for_ever(recorded, tokens, tenant_id):
    """The cookie path copies the tenant; only the claims of roles are missing."""
    before = tokens.claims(tokens.refreshed(ANN, tenant_id))
    recorded.emulator.actions.remove_quietly(tenant_id, ANN)
    after = tokens.claims(tokens.refreshed(ANN, tenant_id))

    assert before["app_roles"] == ["admin"]
    assert after["tenant_id"] == tenant_id
    assert after["tenant_subdomain"] == "corp-mwspy43g"
    assert after["scope"] == before["scope"]
    assert not {"tenant_roles", "tenant_permissions", "app_roles"} & after.keys()


def test_the_look_alikes_differ_as_the_real_ones_do(tokens, tenant_id):
    """Each by its tell-tale, and in nothing else that a careless receiver would look at."""
    access = tokens.claims(tokens.access(ANN, tenant_id))
    id_token = tokens.claims(tokens.id(ANN))
    refresh = tokens.claims(tokens.refresh(ANN, tenant_id))
    console = tokens.claims(tokens.console(ANN))
    typed = [
        tokens.claims(mint(ANN))
        for mint in (tokens.super_admin, tokens.mfa_challenge, tokens.mfa_resume)
    ]

    assert id_token["aud"] == refresh["aud"] == access["aud"]
    assert "scope" not in id_token
    assert "tenant_id" not in id_token
    assert refresh["scope"] == access["scope"]
    assert refresh["tenant_id"] == tenant_id
    assert refresh["token_type"] == "refresh"
    assert refresh["sid"]
    assert refresh["exp"] - refresh["iat"] == 7 * 86_400
    assert "token_type" not in access
    assert "aud" not in console
    assert console["session_start"] == int(NOW)
    assert [("aud" in one, "type" in one) for one in typed] == [(False, True)] * 3
    assert tokens.claims(tokens.refresh(ANN)).keys() == refresh.keys() - {
        "tenant_id",
        "tenant_subdomain",
    }


def test_claims_can_be_changed_and_left_out(tokens, tenant_id, other_key):
    """And time, audience and key chosen; an expired token was also minted in the past."""
    token = tokens.access(
        ANN,
        tenant_id,
        client_id="another",
        lifetime=-60,
        key=other_key,
        without=["scope"],
        iss="https://elsewhere.test",
        tenant_id_again=tenant_id,
    )
    claims = tokens.claims(token)

    assert jwt.get_unverified_header(token)["kid"] == other_key.kid
    assert claims["iss"] == "https://elsewhere.test"
    assert claims["aud"] == "another"
    assert claims["iat"] < claims["exp"] == int(NOW) - 60
    assert claims["tenant_id_again"] == tenant_id
    assert "scope" not in claims


def test_the_three_great_forgeries_are_what_they_say(tokens, tenant_id, key):
    """No algorithm, the public key for a secret, and a stranger's key under the real one's id."""
    claims = tokens.claims(tokens.access(ANN, tenant_id))
    unsigned, confused, forged = (
        make(claims) for make in (tokens.unsigned, tokens.confused, tokens.forged)
    )
    signed, _, signature = confused.rpartition(".")
    pem = key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    assert jwt.get_unverified_header(unsigned)["alg"] == "none"
    assert unsigned.endswith(".")
    assert jwt.get_unverified_header(confused) == {"alg": "HS256", "kid": key.kid, "typ": "JWT"}
    assert base64.urlsafe_b64decode(signature + "=") == hmac.digest(
        pem, signed.encode(), hashlib.sha256
    )
    assert jwt.get_unverified_header(forged)["kid"] == key.kid
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(
            forged,
            key.private.public_key(),
            algorithms=["RS256"],
            options={"verify_aud": False, "verify_exp": False, "verify_iat": False},
        )
    assert [tokens.claims(one) for one in (unsigned, confused, forged)] == [claims] * 3


def test_tokens_need_an_application_or_a_client_id(key):
    """The message says what to do; the issuer, too, must be known."""
    emulator = Emulator(keys=Keys(key), issuer="https://auth.example.test")
    with pytest.raises(LookupError, match="add_application"):
        emulator.tokens.access("u")

    assert emulator.tokens.claims(emulator.tokens.access("u", client_id="c"))["iss"] == (
        "https://auth.example.test"
    )
    with pytest.raises(RuntimeError, match="not running"):
        Emulator(keys=Keys(key)).tokens.console("u")


# -- Google


@pytest.fixture
def failing():
    """A receiver that says 503 as often as it is told to, and then 200."""
    left = []
    hook = Server(lambda request: Response(left.pop(0) if left else 200))
    hook.left = left
    yield hook
    hook.close()


def test_googles_keys_have_a_route_of_their_own(key, other_key, clock):
    """Whoever checks pushes asks there; AuthVital's set does not hold them."""
    keys = Keys(key, clock=clock)
    with Emulator(keys=keys, push_keys=Keys(other_key, clock=clock), clock=clock) as emulator:
        answer = httpx2.get(emulator.certs_url, trust_env=False)
        kid = jwt.get_unverified_header(emulator.pubsub.google.token())["kid"]
        published = emulator.jwks()["keys"]

    assert emulator.pubsub.google.keys.jwks() == answer.json()
    assert [one["kid"] for one in answer.json()["keys"]] == [kid] == [other_key.kid]
    assert "max-age" in answer.headers["cache-control"]
    assert other_key.kid not in {one["kid"] for one in published}


def test_what_the_topic_holds_is_pushed_now(recorded, failing, tenant_id):
    """Over HTTP, with the token, until it is acknowledged; a redirect is not followed."""
    failing.left[:] = [302, 500]
    emulator = recorded.emulator
    emulator.state.topic_events = ("tenant.updated",)
    emulator.actions.rename_tenant(tenant_id, "New")
    ((message, attempts),) = emulator.pubsub.deliver_waiting(failing.url + "/push")
    headers = failing.requests[0].headers

    assert [one.status for one in attempts] == [302, 500, 200]
    assert {request.path for request in failing.requests} == {"/push"}
    assert headers["authorization"].startswith("Bearer ")
    assert headers["content-type"] == "application/json"
    assert message.envelope["tenant_id"] == tenant_id


# -- delivering what waits


@pytest.fixture
def receiver():
    hook = Server(lambda request: Response(200))
    yield hook
    hook.close()


def test_what_waits_is_delivered_now(recorded, receiver, tenant_id):
    """Sync events to the application's URL or the one that is named, systems to every target."""
    emulator = recorded.emulator
    local = emulator.state.applications["cmwspxuxh0007ny7dn277ejhn"]
    local.webhook_url = receiver.url + "/local"
    emulator.state.system_hooks += [
        SystemHook(receiver.url + "/one", ("tenant.updated",), {"X-Webhook-Event": "mine"}),
        SystemHook(receiver.url + "/two", ("tenant.updated", "tenant.created")),
        SystemHook(receiver.url + "/three", ()),
    ]
    emulator.actions.suspend(tenant_id, ANN)
    emulator.actions.rename_tenant(tenant_id, "New")
    done = emulator.deliver_waiting(receiver.url + "/other")
    paths = [request.path for request in receiver.requests]
    mine = next(request for request in receiver.requests if request.path == "/one")

    assert [emission.type for emission, _ in done] == ["member.suspended"] * 2 + ["tenant.updated"]
    assert all(attempt.ok for _, attempts in done for attempt in attempts)
    assert sorted(paths) == ["/local", "/one", "/other", "/two"]
    assert mine.headers["x-webhook-event"] == "mine"
    assert "x-authvital-signature" not in mine.headers
    assert len(emulator.outbox) == 0


def test_what_waits_needs_somewhere_to_go(recorded, tenant_id):
    """An application without a URL, and no other named."""
    recorded.emulator.actions.suspend(tenant_id, ANN)
    with pytest.raises(ValueError, match="webhook_url"):
        recorded.emulator.deliver_waiting()
    assert len(recorded.emulator.outbox) == 2


@pytest.mark.parametrize(
    ("answers", "mode", "turns", "waited"),
    [
        ([503, 429], "broker", 3, 40),
        ([503] * 20, "broker", 10, 148_900),
        ([410], "broker", 1, 0),
        ([503], "legacy", 1, 0),
    ],
)
def test_one_target_brings_a_system_event_back_to_all(
    recorded, receiver, failing, clock, answers, mode, turns, waited
):
    """With identical bytes, and as long as the broker thinks that it may help."""
    failing.left[:] = answers
    emulator = recorded.emulator
    emulator.state.system_hooks += [
        SystemHook(receiver.url, ("tenant.created",)),
        SystemHook(failing.url, ("tenant.created",)),
    ]
    emulator.actions.create_tenant("New")
    began = clock()
    ((_, attempts),) = emulator.deliver_waiting(mode=mode)

    assert len(receiver.requests) == len(failing.requests) == turns
    assert len({request.body for request in receiver.requests + failing.requests}) == 1
    assert [one.number for one in attempts] == [n for n in range(1, turns + 1) for _ in "ab"]
    assert clock() - began == waited


def test_first_attempts_may_race_each_other(recorded, tenant_id):
    """The receiver holds all of them at once; what fails goes on by itself."""
    together = threading.Barrier(4)
    refused = deque([503])

    def answer(request):
        if len(hook.requests) <= 4:
            together.wait(10)
            return Response(refused.popleft() if refused else 200)
        return Response(200)

    hook = Server(answer)
    try:
        emulator = recorded.emulator
        emulator.actions.suspend(tenant_id, ANN)
        emulator.actions.activate(tenant_id, ANN)
        emulator.state.system_hooks.append(SystemHook(hook.url, ("tenant.updated",)))
        emulator.actions.rename_tenant(tenant_id, "New")
        done = emulator.deliver_waiting(hook.url, at_once=True)
    finally:
        hook.close()

    assert [one.type for one, _ in done] == [
        *["member.suspended"] * 2,
        *["member.activated"] * 2,
        "tenant.updated",
    ]
    assert sorted(len(attempts) for _, attempts in done) == [1, 1, 1, 1, 2]
    assert all(attempts[-1].ok for _, attempts in done)
