"""People at the door: tokens, the tenant's own rows, and what the answers say."""

import asyncio
import json
import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import httpx2
import pytest
from fastapi import Depends, FastAPI
from fastapi import Request as FastAPIRequest
from guarding import APPLICATION, ask, at_once, body_of, make, serving
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.authentication import requires
from starlette.responses import JSONResponse
from starlette.routing import Route

from tenantsync import TenantSync
from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.tokens import AccessTokens
from tenantsync.control.database import ControlDatabase
from tenantsync.control.denials import Denials
from tenantsync.control.inbox import Inbox, Settlement
from tenantsync.errors import HookFailed, TenantUnavailable, Unavailable
from tenantsync.events import parse
from tenantsync.migrate.control import upgrade_control
from tenantsync.observe import Outcome
from tenantsync.sync.authorise import DENIALS, Authoriser, Denial, Denied
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.parking import Parking
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenancy.resolver import TenantResolver
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.tenants import Placement, Tenant
from tenantsync.testing.emulator import Emulator, Keys, SigningKey
from tenantsync.web.access import AccessControl, AccessRefused

SPA = "spa-client-id"
KEY = SigningKey.generate(at=1_793_000_000)
DEACTIVATED = "Your account has been deactivated."
NO_ACCESS = "You do not have access to this application."
ISOLATION = DatabaseIsolation(None)


class House:
    """Some tenants, an inbox, an AuthVital on a port, and the door that is tested."""

    def __init__(self, authvital, folder, places, **options):
        self.authvital = authvital
        self.tenants = {key: Tenant(key, key, place) for key, place in places.items()}
        self.control = ControlDatabase(f"sqlite:///{folder / 'control.db'}", connect_timeout=1)
        upgrade_control(self.control)
        self.inbox = Inbox(self.control)
        self.registry = EngineRegistry(max_connections=20)
        self.parking = Parking(self.inbox)
        self.resolver = TenantResolver(self)
        self.handler = IdentitySyncHandler(
            self.resolver,
            isolation=ISOLATION,
            registry=self.registry,
            parking=self.parking,
            observers=(),
        )
        self.denials = Denials(self.control, DENIALS)
        self.sessions = TenantSessions(self.registry, ISOLATION, statement_timeout=5)
        self.authoriser = Authoriser(
            self.resolver, self.sessions, **{"denials": self.denials, **options}
        )
        self.keys = KeyRing(f"{authvital.url}/.well-known/jwks.json")
        self.access = AccessControl(
            AccessTokens(self.keys, issuer=authvital.issuer, audience=[SPA]), self.authoriser
        )

    def find(self, tenant_id):
        """Find a tenant: the house is its own source."""
        return self.tenants.get(tenant_id)

    def tell(self, kind, sub="ann", **options):
        """Have an event applied, or parked."""
        return self.handler.handle_blocking(make(kind, sub, **options))

    def token(self, sub="ann", tenant="acme", **options):
        """Mint an access token."""
        return self.authvital.tokens.access(sub, tenant, client_id=SPA, **options)

    def ask(self, sub="ann", tenant="acme"):
        """Return what a person is told; None for who comes in."""
        try:
            self.authoriser.authorise_blocking(tenant, sub)
        except Denied as denied:
            return denied.denial
        return None

    def close(self):
        """Close whatever was opened."""
        self.access.close()
        self.handler.close()
        self.parking.close()
        self.registry.close()
        self.control.close()


@pytest.fixture(scope="module")
def authvital():
    """An AuthVital over real HTTP."""
    with Emulator(keys=Keys(KEY)) as made:
        yield made


@contextmanager
def housed(authvital, folder, places, **options):
    """Give a house that is closed afterwards."""
    made = House(authvital, folder, places, **options)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def house(authvital, tmp_path, migrated_place):
    """A house with one tenant, on either database."""
    with housed(authvital, tmp_path, {"acme": migrated_place}) as made:
        yield made


@pytest.fixture
def files(tmp_path, migrated_templates):
    """Give n migrated SQLite files as places."""

    def make_files(count):
        places = []
        for number in range(count):
            file = tmp_path / f"tenant{number}.db"
            with open(migrated_templates(0), "rb") as template:
                file.write_bytes(template.read())
            places.append(Placement.of(f"sqlite:///{file}"))
        return places

    return make_files


# -- over HTTP


@requires("authenticated")
async def me(request):
    """Say who asks, as a handler of Starlette sees it."""
    person = request.user
    return JSONResponse(
        {
            "id": person.id,
            "email": person.email,
            "name": person.display_name,
            "is_authenticated": person.is_authenticated,
            "identity": person.identity,
            "tenant": request.state.tenant.key,
            "scopes": request.auth.scopes,
        }
    )


async def anyone(request):
    """Serve everybody."""
    return JSONResponse({"authenticated": request.user.is_authenticated})


def starlette(house):
    """Return an application of Starlette's with the middleware."""
    return Starlette(
        routes=[Route("/me", me), Route("/anyone", anyone)],
        middleware=[house.access.middleware()],
    )


def fastapi(house):
    """Return an application of FastAPI's with the dependency."""
    app = FastAPI()
    can_write = house.access.require("notes:write")

    @app.get("/me")
    def read(request: FastAPIRequest, person: Annotated[object, Depends(house.access.identity)]):
        with house.sessions.session(request.state.tenant) as session:
            count = session.execute(text("SELECT count(*) FROM av_identities")).scalar()
        return {"id": person.id, "people": count}

    @app.post("/notes")
    def write(person: Annotated[object, Depends(can_write)]):
        return {"id": person.id}

    return app


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def test_the_user_of_a_request_is_the_row_of_the_tenants_database(house):
    """Loaded, beside the token's scopes and the tenant; and an anonymous one goes on as such."""
    house.tell("member.joined")
    with serving(starlette(house)) as url, httpx2.Client(base_url=url) as client:
        seen = client.get("/me", headers=bearer(house.token(scope="openid notes"))).json()
        anonymous = client.get("/anyone")
        basic = client.get("/anyone", headers={"Authorization": "Basic YTpi"})

    assert seen == {
        "id": "ann",
        "email": "ann@example.test",
        "name": seen["name"],
        "is_authenticated": True,
        "identity": "ann",
        "tenant": "acme",
        "scopes": ["authenticated", "openid", "notes"],
    }
    assert anonymous.json() == basic.json() == {"authenticated": False}


def test_refusals_say_what_the_providers_guide_says(house):
    """With the right status, a JSON body, and the challenge of RFC 6750."""
    for sub, kinds in {
        "ann": ["member.joined"],
        "gone": ["member.joined", "member.left"],
        "asleep": ["member.joined", "subject.deactivated"],
        "barred": ["member.joined", "app_access.revoked"],
    }.items():
        for number, kind in enumerate(kinds):
            house.tell(kind, sub, at=1_793_000_400_000 + number)
    with serving(starlette(house)) as url, httpx2.Client(base_url=url) as client:
        answers = {
            sub: client.get("/me", headers=bearer(house.token(sub)))
            for sub in ("ann", "gone", "asleep", "barred", "stranger")
        }
        answers["no tenant of ours"] = client.get("/me", headers=bearer(house.token(tenant="x")))
        late = client.get("/me", headers=bearer(house.token(lifetime=-60)))
        twice = client.get("/me", headers=[*bearer(house.token()).items()] * 2)

    assert answers.pop("ann").status_code == 200
    reasons = {sub: answer.json()["reason"] for sub, answer in answers.items()}
    assert reasons.pop("asleep") == DEACTIVATED
    assert set(reasons.values()) == {NO_ACCESS}
    for answer in answers.values():
        assert answer.status_code == 403
        assert answer.json()["error"] == "forbidden"
        assert answer.headers["www-authenticate"].startswith(
            'Bearer realm="tenantsync", error="insufficient_scope", error_description="You'
        )
    for answer, words in ((late, "the token has expired"), (twice, "there twice")):
        assert answer.status_code == 401
        assert words in answer.json()["reason"]
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]


LOOK_ALIKES = {
    "an ID token": lambda mint: mint.id("ann", client_id=SPA),
    "a refresh token": lambda mint: mint.refresh("ann", "acme", client_id=SPA),
    "a machine token": lambda mint: mint.machine("machine", aud=SPA, tenant_id="acme"),
    "a console session": lambda mint: mint.console("ann"),
    "a super-admin": lambda mint: mint.super_admin("ann"),
    "an MFA challenge": lambda mint: mint.mfa_challenge("ann"),
    "another audience": lambda mint: mint.access("ann", "acme", client_id="other"),
    "another issuer": lambda mint: mint.access("ann", "acme", client_id=SPA, iss="https://x"),
    "no tenant": lambda mint: mint.access("ann", client_id=SPA),
    "no algorithm": lambda mint: mint.unsigned(good(mint)),
    "HS256": lambda mint: mint.confused(good(mint)),
    "forged": lambda mint: mint.forged(good(mint)),
    "a key never published": lambda mint: mint.sign(good(mint), key=SigningKey.generate(at=1)),
    "garbage": lambda mint: "garbage",
    "next to nothing": lambda mint: ".",
}


def good(mint):
    """Return the claims of a token that would be let in."""
    return mint.claims(mint.access("ann", "acme", client_id=SPA))


def test_every_look_alike_is_answered_401_also_for_someone_who_may_come_in(house):
    """All of them over HTTP, with the keys fetched over HTTP, at FastAPI and at Starlette."""
    house.tell("member.joined")
    mint = house.authvital.tokens
    for app in (starlette(house), fastapi(house)):
        with serving(app) as url, httpx2.Client(base_url=url) as client:
            assert client.get("/me", headers=bearer(house.token())).status_code == 200
            for name, made in LOOK_ALIKES.items():
                answer = client.get("/me", headers=bearer(made(mint)))
                assert answer.status_code == 401, name
                assert answer.headers["www-authenticate"].startswith("Bearer realm="), name


def test_fastapi_takes_the_dependency_and_its_scopes(house):
    """`Depends(access.identity)`, a session of the tenant, and a missing scope."""
    house.tell("member.joined")
    with serving(fastapi(house)) as url, httpx2.Client(base_url=url) as client:
        read = client.get("/me", headers=bearer(house.token()))
        none = client.get("/me")
        few = client.post("/notes", headers=bearer(house.token(scope="openid")))
        right = client.post("/notes", headers=bearer(house.token(scope="notes:write")))
        left = client.get("/me", headers=bearer(house.token("bob")))

    assert read.json() == {"id": "ann", "people": 1}
    assert (none.status_code, few.status_code) == (401, 403)
    assert none.headers["www-authenticate"] == 'Bearer realm="tenantsync"'
    assert few.headers["www-authenticate"].endswith('scope="notes:write"')
    assert right.json() == {"id": "ann"}
    assert (left.status_code, left.json()) == (403, {"detail": NO_ACCESS})


def test_what_one_control_says_of_a_request_is_not_taken_for_what_another_says(house):
    """Whoever came in by one for all may still be refused by one for some."""
    house.tell("member.joined")
    stricter = AccessControl(
        AccessTokens(house.keys, issuer=house.authvital.issuer, audience=["another-app"]),
        house.authoriser,
    )
    app = FastAPI(middleware=[house.access.middleware()])

    @app.get("/strict")
    def read(person: Annotated[object, Depends(stricter.identity)]):
        return {"id": person.id}

    @app.get("/me")
    def same(request: FastAPIRequest, person: Annotated[object, Depends(house.access.identity)]):
        return {"asked_once": person is request.user}

    with serving(app) as url, httpx2.Client(base_url=url) as client:
        refused = client.get("/strict", headers=bearer(house.token()))
        admitted = client.get("/me", headers=bearer(house.token()))

    assert refused.status_code == 401
    assert admitted.json() == {"asked_once": True}


# -- who left


def test_a_former_members_refreshed_token_is_refused(house):
    """AuthVital goes on minting the tenant's claim; the mirror knows better."""
    house.tell("member.joined")
    refreshed = house.authvital.tokens.refreshed("ann", "acme", client_id=SPA)
    assert house.access.admit_blocking(f"Bearer {refreshed}").identity.id == "ann"

    house.tell("member.left", at=1_793_000_500_000)
    refreshed = house.authvital.tokens.refreshed("ann", "acme", client_id=SPA)

    with pytest.raises(AccessRefused) as caught:
        house.access.admit_blocking(f"bearer {refreshed}")
    assert (caught.value.status_code, caught.value.reason) == (403, NO_ACCESS)


def denial(kind, sub="ann", at=1_793_000_500_000, **options):
    """Return an event that takes access away."""
    if kind != "tenant.app.revoked":
        return make(kind, sub, at=at, **options)
    body = json.loads(body_of("app_access.revoked", sub, at=at))
    data = {"tenant_id": "acme", "user_id": sub, "application_id": body["application_id"],
            "access_type": "GRANTED"}  # fmt: skip
    return parse(json.dumps({"event": kind, "timestamp": body["timestamp"], "data": data}).encode())


@pytest.mark.parametrize("kind", sorted(DENIALS))
def test_access_ends_in_the_moment_in_which_the_event_commits(house, kind):
    """The first look after the commit refuses; nothing is remembered in between."""
    house.tell("member.joined")
    assert house.ask() is None

    assert house.handler.handle_blocking(denial(kind)) is Outcome.APPLIED

    assert house.ask() is not None


@pytest.mark.parametrize("kind", sorted(DENIALS))
def test_access_ends_in_the_moment_in_which_the_event_is_parked(house, kind):
    """What cannot be applied now counts from its acceptance on, for that person alone."""
    house.tell("member.joined")
    house.tell("member.joined", "bob")

    @house.handler.on(kind)
    def refuse(event, session):
        raise ValueError

    assert house.handler.handle_blocking(denial(kind)) is Outcome.PARKED

    assert house.ask() is Denial.WAITING
    assert house.ask("bob") is None


@pytest.mark.parametrize("first", ["the inbox", "the row"])
def test_a_denial_that_moves_from_the_inbox_to_the_row_is_seen_in_one_of_them(house, first):
    """A worker commits and settles between the two looks, whichever of them comes first."""
    house.tell("member.joined")
    event = denial("member.left")
    asyncio.run(house.handler.park(event, door="test", body=b"{}", reason="test"))
    drained = []

    def drain():
        if not drained:
            drained.append(house.handler.apply_parked("acme", [event]))
            lane = house.inbox.claim("test", tenant_id="acme")
            (entry,) = house.inbox.take(lane)
            house.inbox.settle(lane, [Settlement(number=entry.number, outcome="applied")])
            house.inbox.release(lane)

    class Draining:
        """Looks, and has the worker at work before or after it."""

        def __init__(self, real):
            self.real = real

        def waiting(self, *asked):
            if first == "the row":
                drain()
            found = self.real.waiting(*asked)
            drain()
            return found

    authoriser = Authoriser(house.resolver, house.sessions, denials=Draining(house.denials))
    with pytest.raises(Denied):
        authoriser.authorise_blocking("acme", "ann")
    authoriser.close()
    assert drained == [[Outcome.APPLIED]]


def test_many_look_while_the_event_commits_and_nobody_comes_in_afterwards(house):
    """Whoever began to ask after the sender had its answer is refused; on threads, with a cache."""
    cached = Authoriser(house.resolver, house.sessions, denials=house.denials, cache=60)
    for number in range(5):
        sub = f"p{number}"
        house.tell("member.joined", sub)
        answered = []

        def leave(sub=sub, answered=answered):
            house.handler.handle_blocking(denial("member.left", sub))
            cached.forget("acme", sub)
            answered.append(True)

        def look(sub=sub, answered=answered):
            late = bool(answered)
            try:
                cached.authorise_blocking("acme", sub)
            except Denied:
                return False
            return late

        results = at_once([look] * 4 + [leave] + [look] * 20, threads=8)
        assert True not in [result for result in results if result is not None]
        with pytest.raises(Denied):
            cached.authorise_blocking("acme", sub)
    cached.close()


# -- what cannot be said


def test_a_tenant_that_is_out_of_reach_lets_nobody_in(house, authvital, tmp_path, migrated_place):
    """Missing, not migrated, refusing connections: 503 each, with the time to come again."""
    empty = tmp_path / "empty.db"
    empty.touch()
    house.tenants |= {
        "missing": Tenant("missing", "missing", Placement.of(f"sqlite:///{tmp_path / 'no.db'}")),
        "empty": Tenant("empty", "empty", Placement.of(f"sqlite:///{empty}")),
        "refusing": Tenant(
            "refusing", "refusing", Placement.of("postgresql+psycopg://x@127.0.0.1:9/x")
        ),
        "elsewhere": Tenant("elsewhere", "elsewhere", Placement(migrated_place.url, "nowhere"))
        if migrated_place.is_postgres
        else Tenant("elsewhere", "elsewhere", Placement.of(f"sqlite:///{tmp_path}")),
    }
    for tenant in ("missing", "empty", "refusing", "elsewhere"):
        with pytest.raises(Unavailable):
            house.authoriser.authorise_blocking(tenant, "ann")
        with pytest.raises(AccessRefused) as caught:
            house.access.admit_blocking(f"Bearer {house.token(tenant=tenant)}")
        assert caught.value.status_code == 503, tenant
        assert int(caught.value.headers["Retry-After"]) > 0
        assert caught.value.body["error"] == "unavailable"
        assert tenant not in str(caught.value.body)


def test_a_suspended_tenant_lets_nobody_in(house):
    """403, as for a tenant that nobody knows: it is ours to say and not a matter of time."""
    house.tell("member.joined")
    assert house.ask() is None
    house.tenants["acme"] = Tenant("acme", "acme", house.tenants["acme"].placement, True)
    house.resolver.forget("acme")

    assert house.ask() is Denial.SUSPENDED_TENANT
    assert house.ask(tenant="nobody's") is Denial.UNKNOWN_TENANT


def test_a_source_that_cannot_say_is_no_source_that_says_no(house):
    """A tenant never seen, while tenants cannot be looked up: 503."""

    def broken(tenant_id):
        raise OSError

    authoriser = Authoriser(TenantResolver(type("S", (), {"find": staticmethod(broken)})()),
                            house.sessions)  # fmt: skip
    with pytest.raises(TenantUnavailable):
        authoriser.authorise_blocking("acme", "ann")
    authoriser.close()


def test_keys_out_of_reach_are_503(house):
    """Nobody can say whether the token is good."""

    def fails(*_, **__):
        raise OSError

    tokens = AccessTokens(KeyRing("https://x", fetch=fails), issuer="x", audience=[SPA])
    access = AccessControl(tokens, house.authoriser)
    for ask_ in (
        lambda: access.admit_blocking(f"Bearer {house.token()}"),
        lambda: asyncio.run(access.admit(f"Bearer {house.token()}")),
    ):
        with pytest.raises(AccessRefused) as caught:
            ask_()
        assert caught.value.status_code == 503


class Outage:
    """The inbox, with a switch to take it out of reach, and a clock."""

    def __init__(self, house):
        self.real = house.denials
        self.gone = ControlDatabase("postgresql+psycopg://x@127.0.0.1:9/x", connect_timeout=1)
        self.down = False
        self.asked = 0
        self.now = 1000.0

    def waiting(self, *who):
        self.asked += 1
        return (Denials(self.gone, DENIALS) if self.down else self.real).waiting(*who)

    def clock(self):
        return self.now


def test_while_the_inbox_is_out_of_reach_only_lanes_known_to_be_empty_let_in(
    authvital, tmp_path, files
):
    """Nothing can be parked then; so what was empty just before is empty."""
    places = dict(zip(("acme", "busy", "quiet"), files(3), strict=True))
    with housed(authvital, tmp_path, places) as house:
        for tenant in places:
            house.tell("member.joined", tenant=tenant)
        event = make("member.joined", "somebody", tenant="busy")
        asyncio.run(house.handler.park(event, door="test", body=b"{}", reason="test"))
        outage = Outage(house)
        authoriser = Authoriser(house.resolver, house.sessions, denials=outage, clock=outage.clock)
        ask_ = partial(authoriser.authorise_blocking, sub="ann")
        ask_("quiet")
        outage.now += 61
        ask_("acme")
        ask_("busy")
        outage.down = True
        outage.now += 5

        assert ask_("acme").identity.id == "ann"
        asked = outage.asked
        for never_through in ("busy", "quiet"):
            with pytest.raises(Unavailable, match="nobody can say"):
                ask_(never_through)
        assert outage.asked == asked, "an outage costs one attempt a second"
        outage.now += 3600
        assert ask_("acme").identity.id == "ann"
        outage.down = False
        outage.now += 2
        for tenant in places:
            assert ask_(tenant).identity.id == "ann"
        authoriser.close()
        outage.gone.close()


def test_one_tenant_that_hangs_does_not_hold_up_the_others(authvital, tmp_path, schema_places):
    """Its table is locked; its people wait, and are told so; another tenant's come in."""
    slow, quick = schema_places(2)
    with housed(authvital, tmp_path, {"slow": slow, "quick": quick}, patience=0.5) as house:
        house.tell("member.joined", tenant="slow")
        house.tell("member.joined", tenant="quick")

        async def knock():
            stuck = [
                asyncio.create_task(house.authoriser.authorise("slow", "ann")) for _ in range(12)
            ]
            for _ in range(5):
                admitted = await house.authoriser.authorise("quick", "ann")
                assert admitted.tenant.key == "quick"
            return await asyncio.gather(*stuck, return_exceptions=True)

        holder = house.registry.connect(slow)
        with holder as connection:
            connection.execute(text(f'LOCK TABLE "{slow.schema}".av_identities'))
            results = asyncio.run(knock())

    assert {type(result) for result in results} == {TenantUnavailable}


# -- the memory of seconds


def test_a_cache_is_emptied_for_whom_an_event_was_about(house):
    """Others stay in it; refusals are never kept."""
    looks = []

    class Counting:
        def waiting(self, tenant_id, sub):
            looks.append(sub)
            return house.denials.waiting(tenant_id, sub)

    now = [0.0]
    authoriser = Authoriser(
        house.resolver, house.sessions, denials=Counting(), cache=5, clock=lambda: now[0]
    )
    for sub in ("ann", "bob"):
        with pytest.raises(Denied):
            authoriser.authorise_blocking("acme", sub)
        house.tell("member.joined", sub)
        for _ in range(3):
            authoriser.authorise_blocking("acme", sub)
    assert looks == ["ann", "ann", "bob", "bob"]

    house.tell("member.left", at=1_793_000_500_000)
    authoriser.forget("acme", "ann")
    authoriser.forget("acme", None)
    with pytest.raises(Denied):
        authoriser.authorise_blocking("acme", "ann")
    assert asyncio.run(authoriser.authorise("acme", "bob")).identity.id == "bob"
    assert looks == ["ann", "ann", "bob", "bob", "ann"]
    now[0] = 5.1
    authoriser.authorise_blocking("acme", "bob")
    assert looks[-1] == "bob"
    authoriser.close()


def test_an_event_that_commits_while_the_row_is_read_is_not_forgotten_by_the_cache(house):
    """The row was read before, and would be kept after: it is not."""
    house.tell("member.joined")

    class Leaving:
        """The person leaves after the row was read, before it is kept."""

        def __init__(self, real):
            self.real = real

        @contextmanager
        def session(self, tenant, *, read_only):
            with self.real.session(tenant, read_only=read_only) as session:
                yield session
            if not left:
                left.append(house.tell("member.left", at=1_793_000_500_000))
                authoriser.forget("acme", "ann")

    left = []
    authoriser = Authoriser(house.resolver, Leaving(house.sessions), cache=60)
    authoriser.authorise_blocking("acme", "ann")
    with pytest.raises(Denied):
        authoriser.authorise_blocking("acme", "ann")
    authoriser.close()


def test_the_row_that_came_in_is_loaded_and_belongs_to_no_session(house):
    """Every column can be read long after its connection was given back."""
    house.tell("member.joined", tenant_roles=["admin"])
    identity = house.authoriser.authorise_blocking("acme", "ann").identity

    assert (identity.email, identity.tenant_roles) == ("ann@example.test", ["admin"])
    assert ask(house.tenants["acme"].placement, "SELECT id FROM {s}av_identities") == [("ann",)]


def test_in_a_shared_place_a_grant_stands_in_for_no_membership(house):
    """The row does not say which tenant granted; a token for any tenant would open it."""
    house.tell("app_access.granted")
    shared = Authoriser(house.resolver, house.sessions, denials=house.denials, shared=True)

    assert house.ask() is None
    with pytest.raises(Denied):
        shared.authorise_blocking("acme", "ann")
    house.tell("member.joined")
    assert shared.authorise_blocking("acme", "ann").identity.id == "ann"
    shared.close()


def test_nothing_personal_is_logged(house, caplog):
    """A refusal is one line with a word that says why."""
    house.tell("member.left")
    with caplog.at_level("INFO", logger="tenantsync"):
        for token in (house.token(), house.token(lifetime=-60)):
            with pytest.raises(AccessRefused):
                house.access.admit_blocking(f"Bearer {token}")

    lines = [record for record in caplog.records if record.message == "tenantsync.access_refused"]
    assert [line.reason for line in lines] == ["no_member", "Untrusted"]
    assert not any(word in str(vars(line)) for line in lines for word in ("ann", "acme", "eyJ"))


def test_a_hook_that_fails_parks_the_denial_and_is_no_hole(house):
    """The one error that blames the event is parked like the others, and refuses like them."""
    assert HookFailed.blames_event
    house.tell("member.joined")

    @house.handler.on("member.left")
    def fail(event, session):
        raise ValueError

    assert house.tell("member.left", at=1_793_000_500_000) is Outcome.PARKED
    lane = house.inbox.claim("test", tenant_id="acme")
    # It is not due yet: an operator sends it to quarantine.
    numbers = [entry.number for entry in house.inbox.list()]
    house.inbox.settle(lane, [Settlement(number=number, quarantine=True) for number in numbers])
    house.inbox.release(lane)

    assert house.ask() is Denial.WAITING
    house.inbox.discard(numbers=numbers)
    assert house.ask() is None


# -- the pages


def blocks(page):
    """Return the programs of a how-to."""
    text_of_page = (Path(__file__).parents[2] / "docs" / "how-to" / page).read_text()
    return re.findall(r"^```python\n(.*?)^```", text_of_page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def sync(authvital, tmp_path, files):
    """A TenantSync with one tenant, as the pages have it."""
    (place,) = files(1)
    (tmp_path / "tenantsync.toml").write_text(
        f"""
        [authvital]
        host = "{authvital.url}"
        application_id = "{APPLICATION}"
        issuer = "{authvital.issuer}"
        audience = ["{SPA}"]
        [isolation]
        strategy = "database"
        url = "sqlite:///tenants/{{key}}.db"
        [tenants.acme]
        id = "acme"
        url = "sqlite:///{place.url.database}"
        """
    )
    with TenantSync.from_toml(tmp_path / "tenantsync.toml") as made:
        made.handle_blocking(make("member.joined"))
        yield made


def test_the_programs_of_the_page_on_authorising_do_what_it_says(sync, authvital):
    """Starlette's, FastAPI's and the one without an event loop."""
    token = authvital.tokens.access("ann", "acme", client_id=SPA, scope="openid")
    starlette_page, fastapi_page, blocking_page = blocks("authorise.md")
    for page, answer in (
        (starlette_page, {"id": "ann", "tenant": "acme"}),
        (fastapi_page, {"id": "ann", "tenant": "acme"}),
    ):
        # Typed parameters of FastAPI's are looked up in the module's names.
        program = {"sync": sync, "__name__": "page"}
        exec(compile(page, "authorise.md", "exec", dont_inherit=True), program)  # noqa: S102
        with (
            serving(program["app"], lifespan="off") as url,
            httpx2.Client(base_url=url, trust_env=False) as client,
        ):
            assert client.get("/me", headers=bearer(token)).json() == answer
            assert client.get("/me").status_code in (401, 403)
            if page is fastapi_page:
                assert client.post("/notes", headers=bearer(token)).status_code == 403
        program["access"].close()
    program = {"sync": sync}
    exec(compile(blocking_page, "authorise.md", "exec"), program)  # noqa: S102
    assert program["person_of"](f"Bearer {token}") == (200, "ann")
    assert program["person_of"](None) == (401, "An access token is needed.")
    program["access"].close()


def test_the_programs_of_the_page_on_sessions_do_what_it_says(sync, capsys):
    """One after the other, in one program."""
    program = {"sync": sync}
    for block in blocks("sessions-in-handlers.md"):
        exec(compile(block, "sessions-in-handlers.md", "exec"), program)  # noqa: S102
    tenant = sync.directory.named("acme")
    request = SimpleNamespace(state=SimpleNamespace(tenant=tenant))

    async def ask_async():
        try:
            return await program["busiest"](5)
        finally:
            await sync.async_sessions.close()

    assert capsys.readouterr().out == "1\n"
    assert program["count_people"](request) == 1
    assert asyncio.run(ask_async()) == ["ann"]
    assert ask(tenant.placement, "SELECT words FROM notes") == [("hello",)]
