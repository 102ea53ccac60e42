"""The client of the integration API without its network: recorded answers, repetition, bounds."""

import json
import logging
import threading
import tracemalloc
from collections import deque
from pathlib import Path
from urllib.parse import parse_qs

import httpx2
import msgspec
import pytest

from tenantsync.authvital.client import (
    ApplicationMembership,
    IntegrationClient,
    IntegrationForbidden,
    IntegrationNotFound,
    IntegrationRefused,
    IntegrationUnavailable,
    LicenseHolder,
    Membership,
    Role,
    Subject,
    TenantName,
)
from tenantsync.errors import ConfigError, Unavailable

RECORDED = {
    line["step"]: line
    for line in map(
        json.loads,
        (Path(__file__).parent.parent / "data" / "integration-api.jsonl")
        .read_text(encoding="utf-8")
        .splitlines(),
    )
}
TENANT = "8aa2aa5f-234f-4bb8-b7f2-9b3bd69d8573"
DATE = "Mon, 23 Nov 2026 03:41:42 GMT"
SECRET = "s3cret-canary"
TOKEN = {
    "access_token": "aaa.bbb.ccc",
    "token_type": "Bearer",
    "expires_in": 3600,
    "scope": "integration:read",
}
EMPTY = {"tenantId": TENANT, "memberships": [], "totalCount": 0}


def dump(document):
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def ok(document, **headers):
    return httpx2.Response(200, content=dump(document), headers={"Date": DATE} | headers)


def failed(status, message="", **headers):
    body = dump({"message": message, "error": "x", "statusCode": status})
    return httpx2.Response(status, content=body, headers={"Date": DATE} | headers)


class Chunks(httpx2.SyncByteStream):
    """A body that comes in pieces, and remembers how many were read."""

    def __init__(self, chunks, tick=lambda: None):
        self.chunks, self.tick, self.read = chunks, tick, 0

    def __iter__(self):
        for chunk in self.chunks:
            self.read += 1
            self.tick()
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


class Provider:
    """Answers from two lists, then with a token and an empty tenant."""

    def __init__(self):
        self.tokens, self.answers = deque(), deque()
        self.requests = []
        self.now, self.slept = 1000.0, []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def respond(self, request):
        self.requests.append(request)
        is_token = request.url.path.endswith("/oauth/token")
        waiting = self.tokens if is_token else self.answers
        answer = waiting.popleft() if waiting else ok(TOKEN if is_token else EMPTY)
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options):
        http = httpx2.Client(transport=httpx2.MockTransport(self.respond), trust_env=False)
        return IntegrationClient(
            "https://auth.example.test/",
            "machine",
            SECRET,
            **{
                "http": http,
                "clock": self.clock,
                "sleep": self.sleep,
                "jitter": lambda: 1.0,
            }
            | options,
        )

    @property
    def asked(self):
        return [request.url.path for request in self.requests]


@pytest.fixture
def provider():
    return Provider()


@pytest.fixture
def client(provider):
    return provider.client()


# -- recorded answers


def test_a_recorded_list_of_a_tenant_is_read(provider, client):
    """Every person, status, name and role, as a real AuthVital answered; and when it did."""
    line = RECORDED["tenant-memberships includeRoles"]
    provider.answers.append(ok(line["response_body"]))
    found = client.tenant_memberships(TENANT)
    expected = [
        Membership(
            row["id"],
            row["status"],
            Subject(
                row["user"]["id"],
                row["user"]["email"],
                row["user"]["givenName"],
                row["user"]["familyName"],
            ),
            tuple(Role(role["slug"], role["applicationId"]) for role in row["roles"]),
        )
        for row in line["response_body"]["memberships"]
    ]

    assert list(found.memberships) == expected
    assert (found.tenant_id, found.total_count) == (TENANT, 5)
    assert found.date == 1_795_405_302_000
    assert str(provider.requests[1].url).removeprefix("https://auth.example.test") == line["path"]
    assert expected[0].user.family_name == "Müller-Ωmega 🦊"
    assert expected[4].user.given_name is None


def test_a_recorded_list_of_an_application_is_read(provider, client):
    """Over all tenants."""
    body = RECORDED["application-memberships all tenants"]["response_body"]
    provider.answers.append(ok(body))
    found = client.application_memberships("seat-app-client-id")
    row = body["memberships"][0]

    assert (found.application_id, found.client_id) == (body["applicationId"], body["clientId"])
    assert found.total_count == len(found.memberships) == 6
    assert found.memberships[0] == ApplicationMembership(
        row["id"],
        "ACTIVE",
        Subject(row["user"]["id"], "owner@licenseco.test", "Olivia", "Owner"),
        TenantName(row["tenant"]["id"]),
        (Role("member"),),
    )
    assert provider.requests[1].url.params["clientId"] == "seat-app-client-id"


def test_recorded_license_holders_are_read(provider, client):
    """A bare list."""
    body = RECORDED["license-holders"]["response_body"]
    provider.answers.append(ok(body))
    found = client.license_holders(TENANT, "cmwspxv0v000dny7dlnzh2yjw")

    assert [holder.user_id for holder in found.holders] == [row["userId"] for row in body]
    assert found.holders[1] == LicenseHolder(
        body[1]["userId"], body[1]["licenseTypeId"], "Basic Seat", body[1]["assignedAt"]
    )
    assert dict(provider.requests[1].url.params) == {
        "tenantId": TENANT,
        "applicationId": "cmwspxv0v000dny7dlnzh2yjw",
    }


@pytest.mark.parametrize(
    ("step", "error", "told"),
    [
        ("unknown tenant", IntegrationNotFound, "Tenant not found"),
        ("missing tenantId", IntegrationRefused, "tenantId is required"),
    ],
)
def test_a_recorded_refusal_becomes_a_sentence(provider, client, step, error, told):
    """With the status and the provider's words; nothing is repeated."""
    line = RECORDED[step]
    provider.answers.append(httpx2.Response(line["status"], content=dump(line["response_body"])))
    with pytest.raises(error, match=told) as caught:
        client.tenant_memberships("nope")

    assert isinstance(caught.value, ConfigError)
    assert str(line["status"]) in str(caught.value)
    assert provider.slept == []


def test_a_recorded_wrong_secret_becomes_a_sentence(provider, client):
    """It names the keys of the configuration, and not the secret."""
    line = RECORDED["client_credentials bad secret"]
    provider.tokens.append(httpx2.Response(401, content=dump(line["response_body"])))
    with pytest.raises(IntegrationRefused, match="Invalid client_secret") as caught:
        client.tenant_memberships(TENANT)

    assert "authvital.client_id" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(provider.requests) == 1


def test_a_token_is_asked_for_as_recorded(provider, client):
    """A form with the credential in the body, and no HTTP Basic."""
    client.tenant_memberships(TENANT)
    asked, listed = provider.requests
    form = {name: values[0] for name, values in parse_qs(asked.content.decode()).items()}
    recorded = parse_qs(RECORDED["client_credentials (form)"]["request_body"])

    assert asked.method == "POST"
    assert str(asked.url) == "https://auth.example.test/oauth/token"
    assert asked.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert form.keys() == recorded.keys()
    assert form["client_secret"] == SECRET
    assert form["scope"] == "integration:read"
    assert "Authorization" not in asked.headers
    assert listed.headers["Authorization"] == "Bearer aaa.bbb.ccc"
    assert listed.headers["Accept-Encoding"] == "identity"


# -- the token


def test_a_token_is_kept_until_a_minute_before_its_end(provider, client):
    """3,540 seconds from when it was asked for."""
    client.tenant_memberships(TENANT)
    provider.now += 3539
    client.tenant_memberships(TENANT)
    kept = provider.asked.count("/oauth/token")
    provider.now += 1
    client.tenant_memberships(TENANT)

    assert kept == 1
    assert provider.asked.count("/oauth/token") == 2


@pytest.mark.parametrize("lifetime", [{"expires_in": 30}, {"expires_in": 0}, {}])
def test_a_short_token_opens_one_call(provider, client, lifetime):
    """It is used, and not kept."""
    short = {name: value for name, value in TOKEN.items() if name != "expires_in"} | lifetime
    provider.tokens += [ok(short), ok(short)]
    client.tenant_memberships(TENANT)
    client.tenant_memberships(TENANT)

    assert provider.asked.count("/oauth/token") == 2


def test_a_refused_token_is_fetched_once_more(provider, client):
    """AuthVital may have revoked the key that signed it."""
    provider.tokens += [ok(TOKEN), ok(TOKEN | {"access_token": "new"})]
    provider.answers.append(failed(401, "Invalid token"))
    found = client.tenant_memberships(TENANT)

    assert found.tenant_id == TENANT
    assert provider.requests[-1].headers["Authorization"] == "Bearer new"
    assert len(provider.requests) == 4
    assert provider.slept == []


def test_two_calls_refused_at_once_fetch_one_new_token(provider, client):
    """The later refusal is of the old token: the new one stays."""
    provider.tokens += [ok(TOKEN), ok(TOKEN | {"access_token": "new"})]

    def meanwhile(request):
        provider.answers += [failed(401), ok(EMPTY)]
        client.tenant_memberships(TENANT)
        return failed(401)

    provider.answers.append(meanwhile)
    client.tenant_memberships(TENANT)

    assert provider.asked.count("/oauth/token") == 2
    assert provider.requests[-1].headers["Authorization"] == "Bearer new"


def test_a_token_refused_twice_is_an_error(provider, client):
    """Fetching for ever would lock the client out at the provider."""
    provider.answers += [failed(401, "Invalid token"), failed(401, "Invalid token")]
    with pytest.raises(IntegrationRefused, match="Invalid token"):
        client.tenant_memberships(TENANT)

    assert provider.asked.count("/oauth/token") == 2


def test_a_token_without_the_scope_is_an_error_that_says_so(provider, client):
    """Asking on would only bring 403."""
    provider.tokens.append(ok(TOKEN | {"scope": "integration:write"}))
    with pytest.raises(IntegrationRefused, match="scope integration:read"):
        client.tenant_memberships(TENANT)

    assert len(provider.requests) == 1


def test_a_token_answer_without_a_scope_is_taken(provider, client):
    """RFC 6749 lets it out where it is what was asked for."""
    provider.tokens.append(ok({name: value for name, value in TOKEN.items() if name != "scope"}))

    assert client.tenant_memberships(TENANT).total_count == 0


@pytest.mark.parametrize(
    "document",
    [
        {},
        TOKEN | {"access_token": "two\nlines"},
        TOKEN | {"access_token": ""},
        TOKEN | {"token_type": "mac"},
        TOKEN | {"expires_in": "soon"},
    ],
)
def test_a_token_that_is_none_is_an_error(provider, client, document):
    """It would be put into a header."""
    provider.tokens.append(ok(document))
    with pytest.raises(IntegrationUnavailable, match="another shape"):
        client.tenant_memberships(TENANT)


def test_threads_share_one_fetch_of_a_token(provider):
    """Whoever comes while it is under way waits for it, and uses it."""
    arrived, go = threading.Event(), threading.Event()

    def slow(request):
        arrived.set()
        assert go.wait(20)
        return ok(TOKEN)

    provider.tokens.append(slow)
    client = provider.client()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(client.tenant_memberships(TENANT)))
        for _ in range(8)
    ]
    threads[0].start()
    assert arrived.wait(20)
    for thread in threads[1:]:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert provider.asked.count("/oauth/token") == 1


def test_threads_share_the_failure_of_a_fetch_too(provider):
    """One wrong secret is sent once, not once a thread."""
    waiting, go = threading.Barrier(2), threading.Event()

    def slow(request):
        waiting.wait(20)
        assert go.wait(20)
        return failed(401, "Invalid client_secret")

    provider.tokens.append(slow)
    client = provider.client()
    errors = []

    def call():
        with pytest.raises(IntegrationRefused) as caught:
            client.tenant_memberships(TENANT)
        errors.append(caught.value)

    leader = threading.Thread(target=call)
    leader.start()
    waiting.wait(20)
    flight, joined = client._flight, threading.Event()
    result = flight.result
    flight.result = lambda: (joined.set(), result())[1]
    follower = threading.Thread(target=call)
    follower.start()
    assert joined.wait(20)
    go.set()
    leader.join()
    follower.join()

    assert len(errors) == 2
    assert provider.asked == ["/oauth/token"]


def test_an_interrupted_fetch_leaves_nobody_waiting(provider, client):
    """Ctrl-C ends the call; the next one fetches anew."""
    provider.tokens.append(lambda request: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        client.tenant_memberships(TENANT)

    assert client.tenant_memberships(TENANT).total_count == 0


# -- repetition


@pytest.mark.parametrize(
    "failure",
    [
        failed(429),
        failed(500),
        failed(502),
        failed(503),
        failed(408),
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("cut off"),
    ],
)
def test_what_may_pass_is_tried_again(provider, client, failure):
    """After half a second, then one; the third answer is taken."""
    provider.answers += [failure, failure]
    found = client.tenant_memberships(TENANT)

    assert found.tenant_id == TENANT
    assert provider.slept == [0.5, 1.0]


@pytest.mark.parametrize(("jitter", "first"), [(0.0, 0.25), (1.0, 0.5)])
def test_waits_are_spread(provider, jitter, first):
    """Over the upper half, so that the provider always has some peace."""
    provider.answers.append(failed(503))
    provider.client(jitter=lambda: jitter).tenant_memberships(TENANT)

    assert provider.slept == [first]


def test_attempts_are_bounded(provider):
    """Five, with doubled waits up to thirty seconds; the error says what the last one met."""
    provider.answers += [failed(503, "Down for repair") for _ in range(9)]
    client = provider.client(attempts=9, deadline=10_000.0)
    with pytest.raises(IntegrationUnavailable, match="status 503: Down for repair") as caught:
        client.tenant_memberships(TENANT)
    usual = Provider()
    usual.answers += [failed(503) for _ in range(9)]
    with pytest.raises(IntegrationUnavailable):
        usual.client().tenant_memberships(TENANT)

    assert isinstance(caught.value, Unavailable)
    assert provider.slept == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert len(usual.answers) == 4


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("40", 40.0),
        ("Mon, 23 Nov 2026 03:42:02 GMT", 20.0),
        ("Mon, 23 Nov 2026 03:40:00 GMT", 0.5),
        ("0", 0.5),
        ("soon", 0.5),
        ("-5", 0.5),
        ("1e3", 0.5),
        ("", 0.5),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_what_the_provider_asks_to_wait_is_waited(provider, client, status, text, wait):
    """Seconds, or a date by the provider's own clock; anything else is no wish."""
    provider.answers.append(failed(status, **{"Retry-After": text}))
    client.tenant_memberships(TENANT)

    assert provider.slept == [wait]


@pytest.mark.parametrize("text", ["86400", "9" * 30, "Tue, 24 Nov 2026 03:42:02 GMT"])
def test_a_wait_beyond_the_deadline_is_not_begun(provider, client, text):
    """The error says how long it would have been."""
    provider.answers.append(failed(429, **{"Retry-After": text}))
    with pytest.raises(IntegrationUnavailable, match=r"asks to wait \d+ s"):
        client.tenant_memberships(TENANT)

    assert provider.slept == []


def test_a_call_has_one_deadline_in_all(provider):
    """The token's repetitions and the list's share it; the wait for a byte shrinks with it."""
    provider.tokens += [failed(503), failed(503)]
    provider.answers += [failed(503) for _ in range(90)]
    client = provider.client(attempts=90, deadline=20.0)
    with pytest.raises(IntegrationUnavailable):
        client.tenant_memberships(TENANT)
    timeouts = [request.extensions["timeout"]["read"] for request in provider.requests]

    assert provider.now <= 1020.0
    assert sum(provider.slept) <= 20.0
    assert timeouts == sorted(timeouts, reverse=True)
    assert timeouts[0] == 20.0


def test_no_time_left_is_no_request(provider):
    """A deadline that is over before it begins."""
    with pytest.raises(IntegrationUnavailable, match="no time left"):
        provider.client(deadline=0.0).tenant_memberships(TENANT)

    assert provider.requests == []


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 422])
def test_a_refusal_is_not_tried_again(provider, client, status):
    """A 404 that is not AuthVital's own words is no word about a tenant."""
    provider.answers.append(failed(status, "Cannot GET /api"))
    with pytest.raises(IntegrationRefused, match=f"status {status}") as caught:
        client.tenant_memberships(TENANT)

    kind = IntegrationForbidden if status == 403 else IntegrationRefused
    assert type(caught.value) is kind
    assert len(provider.requests) == 2


@pytest.mark.parametrize("status", [301, 302, 307, 308, 304])
def test_a_redirect_is_not_followed(provider, client, status):
    """The secret would travel with it; the message says what to set instead."""
    provider.tokens.append(httpx2.Response(status, headers={"Location": "https://evil.test/"}))
    with pytest.raises(IntegrationRefused, match="redirect"):
        client.tenant_memberships(TENANT)

    assert len(provider.requests) == 1


# -- bounds


@pytest.mark.parametrize("cut", [0, 1, 60, -1])
def test_a_list_that_is_cut_off_is_an_error(provider, client, cut):
    """Whatever came whole before the cut is not used."""
    body = dump(RECORDED["tenant-memberships includeRoles"]["response_body"])
    provider.answers.append(httpx2.Response(200, content=body[:cut], headers={"Date": DATE}))
    with pytest.raises(IntegrationUnavailable, match="cut off"):
        client.tenant_memberships(TENANT)

    assert len(provider.requests) == 2


def test_a_connection_that_breaks_in_the_list_is_tried_again(provider, client):
    """The second answer is read from its beginning."""
    body = dump(EMPTY)
    broken = Chunks([body[:20], httpx2.RemoteProtocolError("peer closed connection")])
    provider.answers.append(httpx2.Response(200, stream=broken, headers={"Date": DATE}))

    assert client.tenant_memberships(TENANT).tenant_id == TENANT
    assert provider.slept == [0.5]


def test_a_list_that_is_too_long_is_an_error(provider):
    """It is not read to its end, and not tried again."""
    endless = Chunks(iter(lambda: b" " * 1000, None))
    provider.answers.append(httpx2.Response(200, stream=endless, headers={"Date": DATE}))
    with pytest.raises(IntegrationUnavailable, match="longer than 5000 bytes"):
        provider.client(max_bytes=5000).tenant_memberships(TENANT)

    assert endless.read == 6
    assert len(provider.requests) == 2


def test_a_list_that_drips_ends_with_the_deadline(provider):
    """Each byte comes in time, and the whole never would."""
    drip = Chunks(iter(lambda: b" ", None), tick=lambda: provider.sleep(10))
    provider.answers.append(httpx2.Response(200, stream=drip, headers={"Date": DATE}))
    with pytest.raises(IntegrationUnavailable, match="did not end in time"):
        provider.client(deadline=100.0).tenant_memberships(TENANT)

    assert drip.read == 10


def test_a_long_error_is_not_read(provider, client):
    """Its status is enough."""
    endless = Chunks(iter(lambda: b" " * 1000, None))
    provider.answers.append(httpx2.Response(403, stream=endless))
    with pytest.raises(IntegrationRefused, match=r"\(status 403\)"):
        client.tenant_memberships(TENANT)

    assert endless.read == 17


def test_a_compressed_list_is_not_read(provider, client):
    """A few bytes could be gigabytes; none was asked for."""
    answer = httpx2.Response(
        200, stream=Chunks([b"x"]), headers={"Date": DATE, "Content-Encoding": "gzip"}
    )
    provider.answers.append(answer)
    with pytest.raises(IntegrationUnavailable, match="compressed"):
        client.tenant_memberships(TENANT)


def row(**changes):
    return {
        "id": "c1",
        "status": "ACTIVE",
        "user": {"id": "u1", "email": None, "givenName": None, "familyName": None},
        "roles": [],
    } | changes


@pytest.mark.parametrize(
    "document",
    [
        [],
        {},
        EMPTY | {"totalCount": None},
        EMPTY | {"totalCount": "5"},
        EMPTY | {"memberships": None},
        EMPTY | {"memberships": {}},
        EMPTY | {"tenantId": 7},
        EMPTY | {"memberships": [row(user=None)]},
        EMPTY | {"memberships": [row(), row(id="")]},
        EMPTY | {"memberships": [row(user={"id": "u" * 256})]},
        EMPTY | {"memberships": [row(roles=None)]},
        EMPTY | {"memberships": [row(roles=[{"slug": None}])]},
        EMPTY | {"memberships": [row(status=None)]},
    ],
)
def test_a_list_of_another_shape_is_an_error_at_once(provider, client, document):
    """Also where only its last row is odd: nobody begins with a list that fails in the middle."""
    provider.answers.append(ok(document))
    with pytest.raises(IntegrationUnavailable, match="another shape"):
        client.tenant_memberships(TENANT)


def test_what_is_odd_but_readable_is_handed_on(provider, client):
    """Another tenant, a wrong count, a new status: whoever compares must see them."""
    provider.answers.append(
        ok({"tenantId": "other", "memberships": [row(status="BANNED")], "totalCount": 9})
    )
    found = client.tenant_memberships(TENANT)

    assert (found.tenant_id, found.total_count) == ("other", 9)
    assert found.memberships[0].status == "BANNED"


@pytest.mark.parametrize("date", [None, "yesterday", "Mon, 99 Nov 2026 03:41:42 GMT"])
def test_an_answer_without_its_time_is_no_evidence(provider, client, date):
    """Our own clock is no substitute."""
    headers = {} if date is None else {"Date": date}
    provider.answers.append(httpx2.Response(200, content=dump(EMPTY), headers=headers))
    with pytest.raises(IntegrationUnavailable, match="no Date header"):
        client.tenant_memberships(TENANT)


def test_the_time_from_asking_to_answering_is_told(provider, client):
    """The list may be as old as that."""

    def slow(request):
        provider.now += 2.5
        return ok(EMPTY)

    provider.answers.append(slow)

    assert client.tenant_memberships(TENANT).waited == 2500


def test_rows_are_a_sequence(provider, client):
    """They can be counted, indexed, cut and read again, each made when it is asked for."""
    rows = [row(id=f"c{number}") for number in range(5)]
    provider.answers.append(ok(EMPTY | {"memberships": rows}))
    found = client.tenant_memberships(TENANT).memberships

    assert len(found) == 5
    assert found[-1].id == "c4"
    assert [one.id for one in found[1:3]] == ["c1", "c2"]
    assert list(found) == list(found)
    with pytest.raises(IndexError):
        found[5]
    with pytest.raises(AttributeError):
        found[0].status = "ACTIVE"


# -- discretion


def test_no_error_and_no_log_tells_a_secret(provider, caplog):
    """Not where the provider repeats it, nor the token, nor an address, nor a second line."""
    caplog.set_level(logging.DEBUG)
    spiteful = f"{SECRET} aaa.bbb.ccc ada@example.test\r\nsecond"
    provider.tokens.append(failed(503, SECRET))
    provider.answers.append(failed(503, spiteful))
    provider.answers.append(failed(403, spiteful))
    with pytest.raises(IntegrationRefused) as caught:
        provider.client().tenant_memberships(TENANT)
    told = str(caught.value) + caplog.text + repr([record.__dict__ for record in caplog.records])

    assert "second" in str(caught.value)
    assert "\n" not in str(caught.value)
    for canary in (SECRET, "aaa.bbb.ccc", "ada@example.test"):
        assert canary not in told
    assert [record.msg for record in caplog.records if record.name.startswith("tenantsync")] == [
        "tenantsync.integration_retry"
    ] * 2


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"message":["a","b",7]}', "status 403: a; b"),
        (b'{"error":"invalid_client"}', "status 403: invalid_client"),
        (b"<html>ada@example.test</html>", r"\(status 403\)"),
        (b"[1]", r"\(status 403\)"),
        (b'{"message":{"a":1}}', r"\(status 403\)"),
        (b"\xff", r"\(status 403\)"),
        (dump({"message": "x" * 900}), "x{200}\\)"),
    ],
)
def test_whatever_an_error_says_becomes_one_sentence(provider, client, body, told):
    """A list of texts, RFC 6749's member, a page of a proxy, bytes, a novel."""
    provider.answers.append(httpx2.Response(403, content=body))
    with pytest.raises(IntegrationRefused, match=told) as caught:
        client.tenant_memberships(TENANT)

    assert len(str(caught.value)) < 500


def test_a_shape_error_tells_no_values(provider, client):
    """Where it is, not what it is."""
    provider.answers.append(ok(EMPTY | {"memberships": [row(user={"id": 7, "email": "canary"})]}))
    with pytest.raises(IntegrationUnavailable, match=r"\$\.user\.id") as caught:
        client.tenant_memberships(TENANT)

    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


# -- making one


@pytest.mark.parametrize(
    "host", ["", "auth.example.test", "ftp://auth.example.test", "https://", "http://[::1"]
)
def test_a_host_must_be_a_url(host):
    """The message shows how one looks."""
    with pytest.raises(ConfigError, match="https://auth"):
        IntegrationClient(host, "c", SECRET)


@pytest.mark.parametrize("host", ["https://u:canary@a.test", "https://a.test?canary=1"])
def test_a_host_holds_no_more_than_it_should(host):
    """A password would be logged with it."""
    with pytest.raises(ConfigError, match="take the rest out") as caught:
        IntegrationClient(host, "c", SECRET)

    assert "canary" not in str(caught.value)


def test_an_own_client_is_closed_and_a_given_one_is_not(provider):
    """Whoever made it closes it."""
    http = httpx2.Client(transport=httpx2.MockTransport(provider.respond))
    with provider.client(http=http) as client:
        client.tenant_memberships(TENANT)
    own = IntegrationClient("https://auth.example.test", "c", SECRET)
    own.close()

    assert not http.is_closed
    assert own._http.is_closed
    http.close()


def test_many_people_take_little_memory(provider, client):
    """Little more than the answer's own bytes, also while they are read one by one."""
    whole = RECORDED["tenant-memberships includeRoles"]["response_body"]["memberships"][0]
    one, many = dump(whole), 20_000
    begin = dump(EMPTY | {"totalCount": many}).replace(b'"memberships":[]', b'"memberships":[')
    head, _, tail = begin.partition(b'"memberships":[')
    parts = [head + b'"memberships":[' + one, *[(b"," + one) * 100] * (many // 100 - 1)]
    parts += [(b"," + one) * 99 + b"]" + tail]
    size = sum(len(part) for part in parts)
    provider.answers.append(httpx2.Response(200, stream=Chunks(parts), headers={"Date": DATE}))
    tracemalloc.start()
    try:
        found = client.tenant_memberships(TENANT)
        active = sum(row.status == "ACTIVE" for row in found.memberships)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert active == found.total_count == len(found.memberships) == many
    assert size > 8_000_000
    assert peak < size * 1.5
    assert peak / many * 100_000 < 100_000_000


def test_the_secret_is_not_printed(client):
    """Not by the client's own text."""
    assert SECRET not in repr(client)
    assert issubclass(Membership, msgspec.Struct)
