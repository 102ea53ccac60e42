"""The door over real HTTP: a real server, truly signed deliveries, and those that are not."""

import json
import logging
import shutil
import socket
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import pytest
from guarding import APPLICATION, body_of, counts, ledger, people, serving
from starlette.applications import Starlette
from starlette.routing import Mount

from tenantsync import IdentitySyncHandler, TenantSync, WebhookRouter
from tenantsync.control.database import ControlMissing
from tenantsync.control.inbox import State
from tenantsync.tenants import Placement
from tenantsync.testing.delivery import sign_system
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.wicked import WICKED
from tenantsync.web.webhook import MAX_BODY_BYTES

PATH = "/webhooks/authvital"
ACME, GLOBEX = "93ce0187-9290-491b-9f06-be209b3d2f92", "e2f80a4d-7d1c-4b53-9c1e-0f6a5d3b8c21"
CONFIG = """
[authvital]
host = "{host}"
application_id = "{application}"
[isolation]
strategy = "database"
[worker]
inline = false
[tenants.acme]
id = "{acme}"
url = "{url}"
{schema}
[tenants.globex]
id = "{globex}"
url = "{broken}"
"""


@pytest.fixture
def authvital():
    with Emulator(sleep=lambda seconds: None) as running:
        yield running


@pytest.fixture
def nowhere():
    """A port of this machine that refuses connections for as long as the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(params=["sqlite"])
def place(request, tmp_path, migrated_templates):
    """A migrated place; on SQLite unless a test asks for PostgreSQL too."""
    if request.param == "postgresql":
        return request.getfixturevalue("schema_places")(1)[0]
    shutil.copyfile(migrated_templates(0), tmp_path / "acme.db")
    return Placement.of(f"sqlite:///{tmp_path / 'acme.db'}")


both = pytest.mark.parametrize("place", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def settings(authvital, place, nowhere, tmp_path):
    """A configuration with a healthy tenant, and one whose database is down."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(
        CONFIG.format(
            host=authvital.url,
            application=APPLICATION,
            acme=ACME,
            globex=GLOBEX,
            url=place.url.render_as_string(hide_password=False),
            schema=f'schema = "{place.schema}"' if place.schema else "",
            broken=f"postgresql+psycopg://app:hunter2@127.0.0.1:{nowhere}/main",
        )
    )
    return file


@contextmanager
def opened(authvital, settings, place):
    """Serve the door that the configuration describes, and give it with a client."""
    sync = TenantSync.from_toml(settings)
    app = Starlette(routes=sync.routes(PATH), lifespan=sync.lifespan)
    with serving(app) as url, httpx2.Client(base_url=url, trust_env=False) as client:

        def send(body, **headers):
            delivery = authvital.delivery(body)
            return client.post(PATH, content=body, headers={**delivery.headers, **headers})

        yield SimpleNamespace(
            url=url, client=client, send=send, place=place, sync=sync, authvital=authvital
        )


@pytest.fixture
def door(authvital, settings, place):
    with opened(authvital, settings, place) as running:
        yield running


def event(kind="member.joined", sub="ann", **options):
    return body_of(kind, sub, **{"tenant": ACME, **options})


def answer(response):
    """Return the status and the JSON body, which every answer has."""
    assert response.headers["content-type"] == "application/json"
    return response.status_code, response.json()


@both
def test_what_is_accepted_is_answered_with_its_outcome(door):
    """Applied, duplicate, stale, ignored for its type, parked for its tenant: all of them 2xx."""
    join = event(id="e-1", at=1_900_000_000_000)

    assert answer(door.send(join)) == (200, {"outcome": "applied"})
    assert answer(door.send(join)) == (200, {"outcome": "duplicate"})
    assert answer(door.send(event(id="e-2", at=1_899_999_999_000))) == (200, {"outcome": "stale"})
    assert answer(door.send(event(id="e-3", at=1_899_999_999_500))) == (200, {"outcome": "stale"})
    for kind in ("invite.created", "license.assigned", "brand.new", "tenant.updated"):
        assert answer(door.send(event(kind))) == (200, {"outcome": "ignored"})
    assert answer(door.send(event(tenant="nobody"))) == (202, {"outcome": "parked"})
    assert answer(door.send(event(tenant=None))) == (
        202,
        {"outcome": "ignored", "reason": "unknown tenant"},
    )
    assert people(door.place) == ["ann"]
    assert ledger(door.place) == ["e-1", "e-2", "e-3"]


@both
def test_another_applications_event_is_ignored_and_counted(door):
    """It is authentic and not for us; a 4xx would feed the breaker that our own events share."""
    assert answer(door.send(event(application="another"))) == (
        200,
        {"outcome": "ignored", "reason": "other application"},
    )
    assert answer(door.send(event(application=None)))[0] == 200
    assert answer(door.send(event(tenant="nobody", application="another")))[0] == 200
    assert set(counts(door.place).values()) == {0}
    assert door.sync.counter.reasons() == {"other_application": 3}
    assert door.sync.counter.counts()["ignored"] == 3
    assert waiting(door) == []


EXPECTED = {
    "mislabelled": [(200, "applied")],
    "foreign-application": [(200, "ignored")],
    "foreign-tenant": [(202, "parked")],
    "delayed": [(200, "applied")],
    "duplicated": [(200, "applied"), (200, "duplicate")],
}


@pytest.mark.parametrize("name", WICKED)
def test_every_wicked_way_is_met(authvital, settings, place, name):
    """What does not prove AuthVital as its sender is 401; what is merely odd is taken in stride."""
    # Made before the door opens and fetches the keys: a revoked one is not published any more.
    deliveries = WICKED[name](authvital, authvital.delivery(event()))
    with opened(authvital, settings, place) as door:
        attempts = [authvital.send(delivery, door.url + PATH) for delivery in deliveries]
    statuses = [attempt.status for attempt in attempts]
    answers = [json.loads(attempt.answer) for attempt in attempts]

    if name == "doubled":
        # Of two ids at one instant the greater one wins, whichever comes first.
        assert statuses == [200, 200]
        assert people(place) == ["ann"]
    elif name in EXPECTED:
        found = [(status, said["outcome"]) for status, said in zip(statuses, answers, strict=True)]
        assert found == EXPECTED[name]
        assert people(place) == ([] if "foreign" in name else ["ann"])
    else:
        assert (statuses, answers[0]["error"]) == ([401], "untrusted")
        assert set(counts(place).values()) == {0}


def test_a_header_that_is_there_twice_is_ambiguous(door):
    """Two values of a signed header are refused, even if one of them is right, or both."""
    delivery = door.authvital.delivery(event())
    for name in ("X-AuthVital-Timestamp", "X-AuthVital-Signature", "X-AuthVital-Key-Id"):
        right = delivery.headers[name]
        others = [(key, text) for key, text in delivery.headers.items() if key != name]
        for pair in ((right, "x"), ("x", right), (right, right)):
            headers = [*others, *((name, text) for text in pair)]
            response = door.client.post(PATH, content=delivery.body, headers=headers)
            assert answer(response)[0] == 401
    assert set(counts(door.place).values()) == {0}


def changed(**changes):
    """Return an event's body with other values on its top level."""
    return json.dumps(json.loads(event()) | changes).encode()


MALFORMED = (
    (b"", "body"),
    (b"{", "body"),
    (b"\xff\xfe", "body"),
    (b"[]", "body"),
    (b"null", "body"),
    (changed(data=7), "data"),
    (changed(data={}), "data.sub"),
    (changed(data={"sub": "ann", "email": 7}), "data.email"),
    (changed(timestamp="yesterday"), "timestamp"),
    (changed(id=""), "id"),
    (changed(tenant_id=["a"]), "tenant_id"),
    (json.dumps({"event": "member.joined", "data": {"sub": "ann"}}).encode(), "body"),
    (changed(type=None, event="tenant.created"), "body"),
)


def test_what_is_authentic_but_malformed_is_kept_and_names_the_field(door):
    """202: an operator can look at it; the sender is told what is wrong, without its values."""
    for body, field in MALFORMED:
        status, said = answer(door.send(body))
        assert (status, said["outcome"], said["field"]) == (202, "parked", field)
        assert (said["reason"], set(said)) == (
            "malformed",
            {"outcome", "reason", "field", "detail"},
        )

    kept = door.sync.inbox.list(state=State.QUARANTINED)
    assert {entry.door for entry in kept} == {"webhook"}
    bodies = {door.sync.inbox.show(entry.number).body for entry in kept}
    assert bodies == {body for body, _ in MALFORMED}
    assert set(counts(door.place).values()) == {0}


def test_without_an_inbox_what_is_malformed_is_refused(authvital, place):
    """A handler that stands alone has nowhere to keep it: 400, and the reason."""
    told = []
    with IdentitySyncHandler(place, observers=[told.append]) as handler:
        router = WebhookRouter(handler, application_id=APPLICATION, authvital_host=authvital.url)
        for body, field in MALFORMED:
            status, said = router.handle_blocking(body, authvital.delivery(body).headers)
            assert (status, said["error"], said["field"]) == (400, "malformed", field)
            assert set(said) == {"error", "field", "reason"}
        router.close()
    assert [delivery.reason for delivery in told] == ["rejected"] * len(MALFORMED)


def waiting(door):
    """Return what waits in the inbox: the tenant, the reason, and how the body begins."""
    try:
        entries = door.sync.inbox.list(state=State.PARKED)
    except ControlMissing:
        return []
    return [(entry.tenant_id, entry.reason) for entry in entries]


def test_only_post_is_allowed(door):
    """Another method is told which one is."""
    for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        response = door.client.request(method, PATH)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert response.headers["content-type"] == "application/json"


def test_only_json_is_read(door):
    """Another type is refused; how JSON is spelt does not matter (RFC 9110, section 8.3.1)."""
    for wrong in ("text/plain", "application/x-www-form-urlencoded", "text/json", "", "json"):
        assert answer(door.send(event(), **{"Content-Type": wrong}))[0] == 415
    assert set(counts(door.place).values()) == {0}

    for right in ("application/json; charset=utf-8", "Application/JSON"):
        assert answer(door.send(event(), **{"Content-Type": right}))[0] == 200


def test_a_body_may_have_256_kibibytes_and_not_one_more(door):
    """The limit holds for a length that is announced, and for one that is not."""
    plain = event(padding="")
    full = event(id="event-full", padding="x" * (MAX_BODY_BYTES - len(plain) - 20))
    full += b" " * (MAX_BODY_BYTES - len(full))

    def chunks(body):
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    assert answer(door.send(full)) == (200, {"outcome": "applied"})
    assert answer(door.send(full + b" "))[0] == 413
    for body, status in ((full, 200), (full + b" ", 413)):
        headers = door.authvital.delivery(body).headers
        response = door.client.post(PATH, content=chunks(body), headers=dict(headers))
        assert "content-length" not in response.request.headers
        assert answer(response)[0] == status
    assert ledger(door.place) == ["event-full"]


def test_a_length_that_is_only_announced_is_refused_unread(door):
    """A terabyte that is announced is answered before a byte of it is read."""
    target = urlsplit(door.url)
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {10**12}\r\n\r\n"
    )
    with socket.create_connection((target.hostname, target.port), 10) as connection:
        connection.sendall(request.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_goes_away_in_the_middle_is_forgotten(door, caplog):
    """Half a body is no event, and no error in the log either."""
    target = urlsplit(door.url)
    body = event()
    headers = door.authvital.delivery(body).headers.items()
    lines = "".join(f"{name}: {text}\r\n" for name, text in headers)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    with socket.create_connection((target.hostname, target.port), 10) as connection:
        connection.sendall(head.encode() + body[:50])

    assert answer(door.send(event(sub="bob")))[0] == 200
    assert people(door.place) == ["bob"]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_body_that_drips_is_given_up_while_others_are_served(door):
    """A byte now and then holds a connection, and nothing else; its time is limited."""
    door.sync.webhook._read_timeout = 0.5
    target = urlsplit(door.url)
    body = event()
    lines = "".join(f"{n}: {text}\r\n" for n, text in door.authvital.delivery(body).headers.items())
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    with ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection((target.hostname, target.port), 20))
            for _ in range(50)
        ]
        for connection in slow:
            connection.sendall(head.encode() + body[:1])
        assert answer(door.send(event(sub="bob")))[0] == 200
        for connection in slow:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert people(door.place) == ["bob"]


def test_a_stranger_hears_no_before_the_body_is_there(door):
    """Without a plausible signature nothing is read, however much is announced."""
    target = urlsplit(door.url)
    request = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Content-Length: 200000\r\n\r\n"
    )
    with socket.create_connection((target.hostname, target.port), 10) as connection:
        connection.sendall(request.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_with_the_jwks_down_a_key_never_seen_is_503(authvital, settings, place):
    """The application starts while AuthVital is away: events are for later, and not refused."""
    authvital.faults.status = 500
    with opened(authvital, settings, place) as door:
        response = door.send(event())
        assert answer(response) == (503, {"error": "unavailable", "reason": "KeysUnavailable"})
        assert int(response.headers["retry-after"]) > 0
    assert set(counts(place).values()) == {0}


def test_with_the_jwks_down_known_keys_serve(door):
    """What was fetched once goes on verifying, while nothing can be fetched."""
    assert answer(door.send(event()))[0] == 200
    door.authvital.faults.status = 500
    assert answer(door.send(event(sub="bob")))[0] == 200
    door.authvital.faults.hang = True
    assert answer(door.send(event(sub="cy")))[0] == 200

    assert people(door.place) == ["ann", "bob", "cy"]


@both
def test_a_tenant_whose_database_is_down_keeps_its_trouble(door):
    """202 without a word about the inside, and its events wait; the other tenant gets its 200."""
    for number in range(2):
        body = event(tenant=GLOBEX, sub=f"g{number}")
        assert answer(door.send(body)) == (202, {"outcome": "parked"})
        assert answer(door.send(body)) == (202, {"outcome": "parked"})
        assert answer(door.send(event(sub=f"a{number}"))) == (200, {"outcome": "applied"})

    assert people(door.place) == ["a0", "a1"]
    assert waiting(door) == [(GLOBEX, "TenantUnavailable")] * 2


def test_with_the_inbox_away_too_it_is_503(door, settings):
    """Nothing is acknowledged that is not kept: the provider sends it again."""
    assert answer(door.send(event(tenant=GLOBEX, sub="g1")))[0] == 202
    file = settings.parent / "tenantsync.db"
    for each in (file, *settings.parent.glob("tenantsync.db-*")):
        each.unlink(missing_ok=True)
    file.mkdir()

    response = door.send(event(tenant=GLOBEX, sub="g2"))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert door.send(b"{").status_code == 503
    assert answer(door.send(event())) == (200, {"outcome": "applied"})


def test_what_was_parked_is_what_was_signed(door):
    """Byte for byte, with the time that the signature covers."""
    body = event(tenant=GLOBEX, id="e-1")
    delivery = door.authvital.delivery(body)
    door.client.post(PATH, content=body, headers=dict(delivery.headers))

    (entry,) = door.sync.inbox.list()
    assert door.sync.inbox.show(entry.number).body == body
    assert f"{entry.signed_at}" == delivery.headers["X-AuthVital-Timestamp"]
    assert (entry.event_id, entry.type, entry.subject) == ("e-1", "member.joined", "ann")


@both
def test_a_failing_hook_parks_its_event_and_a_retry_heals_it(door):
    """The hook fails twice; the provider is told 202 once, and applying it again does the rest."""

    @door.sync.on("member.joined")
    def moody(event, session):
        calls.append(event.id)
        if len(calls) < 3:
            raise RuntimeError("not yet")

    calls = []
    attempts = door.authvital.deliver(event(id="e-1"), door.url + PATH)

    assert [attempt.status for attempt in attempts] == [202]
    assert waiting(door) == [(ACME, "HookFailed")]
    assert ledger(door.place) == []
    assert answer(door.send(event(id="e-1"))) == (202, {"outcome": "parked"})
    assert answer(door.send(event(id="e-1"))) == (200, {"outcome": "applied"})
    assert calls == ["e-1"] * 3
    assert ledger(door.place) == ["e-1"]


def test_the_path_is_exact_and_never_a_redirect(door):
    """AuthVital may turn a redirected POST into a GET and take its answer for success: 404."""
    delivery = door.authvital.delivery(event())
    for path in (PATH + "/", PATH + "/x", "/", PATH[:-1], PATH.upper()):
        for mode in ("broker", "legacy"):
            attempt = door.authvital.send(delivery, door.url + path, mode=mode)
            assert (path, mode, attempt.status) == (path, mode, 404)
    assert set(counts(door.place).values()) == {0}


def test_the_other_doors_stand_beside_it(door):
    """System webhooks are taken at once; Pub/Sub only where the configuration opens its door."""
    body = json.dumps(
        {
            "event": "tenant.updated",
            "timestamp": "2026-11-23T08:00:00.000Z",
            "data": {"tenant_id": ACME, "name": "Acme", "slug": "acme"},
        }
    ).encode()
    signed = sign_system(body, door.authvital.keys.active, event_type="x", timestamp="x")
    headers = dict(signed.headers)

    response = door.client.post(f"{PATH}/system", content=body, headers=headers)
    assert answer(response) == (200, {"outcome": "applied"})
    # Each channel has headers of its own, and neither door takes the other's.
    assert answer(door.client.post(PATH, content=body, headers=headers))[0] == 401
    sync = door.authvital.delivery(body)
    response = door.client.post(f"{PATH}/system", content=body, headers=dict(sync.headers))
    assert answer(response)[0] == 401
    for path in ("/system/", "/pubsub", "/pubsub/"):
        response = door.client.post(PATH + path, content=body, headers=headers)
        assert response.status_code == 404


def test_a_query_does_not_matter(door):
    """The path is what is matched."""
    delivery = door.authvital.delivery(event())
    assert door.authvital.send(delivery, f"{door.url}{PATH}?from=authvital").status == 200


def test_a_door_with_a_slash_at_its_end_is_exact_too(authvital, door):
    """Whoever configured the URL with a slash gets no redirect without it."""
    app = Starlette(routes=[Mount("/hooks", routes=door.sync.routes("/in/"))])
    delivery = authvital.delivery(event(sub="bob"))
    with serving(app, lifespan="off") as url:
        assert authvital.send(delivery, f"{url}/hooks/in", mode="legacy").status == 404
        assert authvital.send(delivery, f"{url}/hooks/in/", mode="legacy").status == 200


@both
def test_no_log_record_holds_a_secret_or_anything_personal(door, authvital, caplog):
    """Every logger at its most talkative: no address, no name, no password, no signature."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore2").setLevel(logging.ERROR)  # the client's own, not the server's
    logging.getLogger("httpx2").setLevel(logging.ERROR)

    @door.sync.on("member.suspended")
    def chatty(event, session):
        raise ValueError(event.data["email"])

    signatures = []
    for body in (
        event(given_name="Wilhelmina"),
        event(tenant=GLOBEX, given_name="Wilhelmina"),
        event("member.suspended", given_name="Wilhelmina"),
        event(tenant="nobody", given_name="Wilhelmina"),
        event(application="another", given_name="Wilhelmina"),
        changed(data={"sub": "ann", "email": ["ann@example.test"]}),
    ):
        door.send(body)
        headers = authvital.delivery(body).headers
        signatures.append(headers["X-AuthVital-Signature"])
        for sent in (body, body + b" "):
            door.client.post(PATH, content=sent, headers=dict(headers))

    formatter = logging.Formatter()
    shown = "\n".join(f"{formatter.format(r)} {vars(r)}" for r in caplog.records)
    names = {record.msg for record in caplog.records}
    assert "tenantsync.delivered" in names
    for secret in ("hunter2", "Wilhelmina", "ann@example.test", *signatures):
        assert secret not in shown
