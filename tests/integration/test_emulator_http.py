"""The local AuthVital over real loopback HTTP: JWKS and its faults, retries, redirects, orders."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import click
import httpx2
import pytest
from click.testing import CliRunner

from tenantsync.cli.emulate import emulate, send
from tenantsync.testing import control as control_module
from tenantsync.testing.actions import Actions
from tenantsync.testing.control import EmulatorError, Order, ask, control
from tenantsync.testing.delivery import VirtualClock
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.people import Person, payload
from tenantsync.testing.server import Response, Server
from tenantsync.testing.wicked import WICKED

NOW = 1_787_378_400.0
TENANT = "93ce0187-9290-491b-9f06-be209b3d2f92"
APPLICATION = "cmwspxuxh0007ny7dn277ejhn"
JWKS = "/.well-known/jwks.json"
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "test-with-the-emulator.md"


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
def emulator(key, other_key, clock):
    spare = [other_key]
    keys = Keys(key, clock=clock, generate=lambda at: spare.pop())
    with Emulator(keys=keys, clock=clock, sleep=clock.sleep) as emulator:
        yield emulator


@pytest.fixture
def body(emulator):
    data = payload("member.joined", Person("s", "ada@example.test"))
    return emulator.event("member.joined", tenant_id=TENANT, application_id=APPLICATION, data=data)


class Receiver:
    """A receiver that answers from a list, and then 200."""

    def __init__(self):
        self.answers = deque()
        self.server = Server(self.respond)
        self.url = self.server.url + "/hook"

    def respond(self, request):
        return self.answers.popleft() if self.answers else Response(200, b'{"outcome":"applied"}')

    @property
    def requests(self):
        return self.server.requests


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.server.close()


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]


def get(url, **options):
    return httpx2.get(url, trust_env=False, **options)


# -- what it serves


def test_the_jwks_is_served_as_authvital_serves_it(emulator, key):
    """The set, its content type and its cache lifetime are those of the provider."""
    response = get(emulator.url + JWKS)

    assert response.status_code == 200
    assert response.json() == {"keys": [key.jwk()]}
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "public, max-age=3600"


def test_discovery_names_the_issuer_and_the_jwks(emulator):
    """The issuer is the base URL as it is, without a slash at its end."""
    document = get(emulator.url + "/.well-known/openid-configuration").json()

    assert document["issuer"] == emulator.url
    assert document["jwks_uri"] == emulator.url + JWKS
    assert document["token_endpoint"] == emulator.url + "/oauth/token"


def test_another_path_is_not_found(emulator):
    """The JWKS is not under /api, and orders are not taken unless that is asked for."""
    assert get(emulator.url + "/api" + JWKS).status_code == 404
    assert httpx2.post(emulator.url + control_module.PATH, trust_env=False).status_code == 404


def test_a_head_request_has_no_body(emulator):
    """The length is told, the bytes are not sent."""
    response = httpx2.head(emulator.url + JWKS, trust_env=False)

    assert response.status_code == 200
    assert response.content == b""


def test_requests_are_remembered(emulator):
    """A test can count fetches, and see the header that asks caches to step aside."""
    get(emulator.url + JWKS + "?x=1", headers={"Cache-Control": "no-cache"})
    get(emulator.url + "/nowhere")

    assert [(request.method, request.path) for request in emulator.requests] == [
        ("GET", JWKS),
        ("GET", "/nowhere"),
    ]
    assert emulator.requests[0].headers["cache-control"] == "no-cache"
    assert emulator.requests[0].client == "127.0.0.1"


def test_a_rotation_is_seen_at_once(emulator, key, other_key):
    """The next fetch holds both keys; after a revocation, the old one is gone."""
    emulator.keys.rotate()
    both = get(emulator.url + JWKS).json()
    emulator.keys.revoke(key.kid)
    one = get(emulator.url + JWKS).json()

    assert both == {"keys": [other_key.jwk(), key.jwk()]}
    assert one == {"keys": [other_key.jwk()]}


def test_it_can_serve_on_ipv6(key):
    """The address is put into brackets in the URL."""
    with Emulator(keys=Keys(key), host="::1") as emulator:
        assert emulator.url.startswith("http://[::1]:")
        assert get(emulator.url + JWKS).status_code == 200


def test_it_can_run_again(key):
    """After its block ends nothing listens; the same emulator may be entered anew."""
    emulator = Emulator(keys=Keys(key))
    with emulator:
        first = emulator.url
    with pytest.raises(httpx2.ConnectError):
        get(first + JWKS)
    with emulator:
        assert get(emulator.url + JWKS).json() == {"keys": [key.jwk()]}


# -- its faults


def test_the_jwks_can_fail_and_recover(emulator, key):
    """A status, garbage, and health again."""
    emulator.faults.status = 503
    failed = get(emulator.url + JWKS)
    emulator.faults.clear()
    emulator.faults.body = b"<html>"
    garbage = get(emulator.url + JWKS)
    emulator.faults.clear()

    assert failed.status_code == 503
    assert garbage.content == b"<html>"
    assert get(emulator.url + JWKS).json() == {"keys": [key.jwk()]}


def test_a_cache_can_go_on_serving_the_old_set(emulator, key, other_key):
    """The new key signs while the published set does not hold it yet."""
    emulator.freeze_jwks()
    emulator.keys.rotate()

    assert get(emulator.url + JWKS).json() == {"keys": [key.jwk()]}
    assert emulator.keys.active is other_key


def test_the_jwks_can_hang_until_the_emulator_ends(key):
    """A client runs into its own timeout, and the end waits for nobody."""
    with Emulator(keys=Keys(key)) as emulator:
        emulator.faults.hang = True
        with pytest.raises(httpx2.ReadTimeout):
            get(emulator.url + JWKS, timeout=0.05)


def test_the_jwks_can_be_slow(key):
    """The delay outlasts the client; the end of the emulator cuts it short."""
    with Emulator(keys=Keys(key)) as emulator:
        emulator.faults.delay = 60.0
        with pytest.raises(httpx2.ReadTimeout):
            get(emulator.url + JWKS, timeout=0.05)
        emulator.faults.delay = 0.001

        assert get(emulator.url + JWKS).status_code == 200


# -- delivering


def test_a_delivery_arrives_as_it_was_signed(emulator, receiver, body):
    """The receiver gets the raw bytes, the six headers, and no charset."""
    (attempt,) = emulator.deliver(body, receiver.url)
    (request,) = receiver.requests

    assert attempt.ok
    assert (attempt.number, attempt.at, attempt.status) == (1, NOW, 200)
    assert json.loads(attempt.answer) == {"outcome": "applied"}
    assert (request.method, request.path, request.body) == ("POST", "/hook", body)
    assert {
        name: request.headers[name.lower()] for name in attempt.delivery.headers
    } == attempt.delivery.headers


@pytest.mark.parametrize(
    ("mode", "times"),
    [("broker", [0, 10, 40, 100, 400]), ("legacy", [0, 60, 360, 1260, 4860])],
)
def test_every_failure_is_retried_up_the_ladder(emulator, receiver, body, mode, times):
    """Client errors too; five attempts in all, each signed at its own time, without real waits."""
    receiver.answers.extend(Response(status) for status in (400, 401, 404, 500, 503))
    attempts = emulator.deliver(body, receiver.url, mode=mode)

    assert [attempt.status for attempt in attempts] == [400, 401, 404, 500, 503]
    assert [attempt.number for attempt in attempts] == [1, 2, 3, 4, 5]
    assert [attempt.at - NOW for attempt in attempts] == times
    assert [
        int(request.headers["x-authvital-timestamp"]) - NOW for request in receiver.requests
    ] == times
    assert {request.body for request in receiver.requests} == {body}


def test_the_ladder_ends_at_a_success(emulator, receiver, body):
    """Any 2xx will do."""
    receiver.answers.extend([Response(503), Response(202)])
    attempts = emulator.deliver(body, receiver.url)

    assert [attempt.status for attempt in attempts] == [503, 202]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_broker_takes_a_redirect_for_a_failure(emulator, receiver, body, status):
    """The place it points to is never asked."""
    redirect = Response(status, headers={"Location": "/elsewhere"})
    receiver.answers.extend([redirect] * 5)
    attempts = emulator.deliver(body, receiver.url, mode="broker")

    assert [attempt.status for attempt in attempts] == [status] * 5
    assert {request.path for request in receiver.requests} == {"/hook"}


@pytest.mark.parametrize("status", [301, 302, 303])
def test_legacy_loses_an_event_to_a_redirect(emulator, receiver, body, status):
    """The POST becomes a GET without a body, whose 200 counts as a delivery."""
    receiver.answers.append(Response(status, headers={"Location": "/elsewhere"}))
    (attempt,) = emulator.deliver(body, receiver.url, mode="legacy")
    redirected = receiver.requests[1]

    assert attempt.ok
    assert (redirected.method, redirected.path, redirected.body) == ("GET", "/elsewhere", b"")


@pytest.mark.parametrize("status", [307, 308])
def test_legacy_posts_again_where_the_redirect_keeps_the_method(emulator, receiver, body, status):
    """A slash redirect of this kind costs a round trip only."""
    receiver.answers.append(Response(status, headers={"Location": "/hook/"}))
    (attempt,) = emulator.deliver(body, receiver.url, mode="legacy")
    redirected = receiver.requests[1]

    assert attempt.ok
    assert (redirected.method, redirected.path, redirected.body) == ("POST", "/hook/", body)
    assert redirected.headers["x-authvital-signature"]


def test_legacy_gives_up_on_a_redirect_loop(emulator, receiver, body):
    """Twenty hops are followed, as Node does."""
    receiver.answers.extend([Response(307, headers={"Location": "/hook"})] * 21)
    attempt = emulator.send(emulator.delivery(body), receiver.url, mode="legacy")

    assert attempt.status is None
    assert attempt.error.startswith("TooManyRedirects")


def test_a_receiver_that_is_away_is_an_attempt_too(emulator, body, closed_port):
    """No status, an error that names its kind, and five tries."""
    attempts = emulator.deliver(body, f"http://127.0.0.1:{closed_port}/")

    assert len(attempts) == 5
    assert not any(attempt.ok for attempt in attempts)
    assert {attempt.error.partition(":")[0] for attempt in attempts} == {"ConnectError"}


def test_many_threads_may_deliver_at_once(emulator, receiver):
    """One emulator serves concurrent senders."""
    bodies = [
        emulator.event("x", tenant_id="t", application_id="a", data={"n": number})
        for number in range(40)
    ]
    threads = [
        threading.Thread(target=emulator.deliver, args=(body, receiver.url)) for body in bodies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(request.body for request in receiver.requests) == sorted(bodies)


# -- taking orders


@pytest.fixture
def ordered(emulator, receiver):
    """The emulator with its control endpoint, aimed at the receiver."""
    control(emulator, receiver.url)
    return emulator


def order(**changes):
    return Order(
        **{"type": "member.joined", "tenant_id": TENANT, "application_id": APPLICATION} | changes
    )


def test_an_order_is_made_signed_and_delivered(ordered, receiver):
    """The payload is realistic, and the same person is meant by the same address."""
    report = ask(ordered.url, order(email="bo@example.test", data={"given_name": "Bo"}))
    again = ask(ordered.url, order(type="member.left", email="bo@example.test"))
    event = json.loads(receiver.requests[0].body)

    assert report.ok
    assert (report.type, report.to) == ("member.joined", receiver.url)
    assert [(answer.status, answer.answer) for answer in report.answers] == [
        (200, '{"outcome":"applied"}')
    ]
    assert (event["tenant_id"], event["application_id"]) == (TENANT, APPLICATION)
    assert event["id"] == report.event_id
    assert event["data"]["sub"] == report.sub == again.sub
    assert event["data"]["given_name"] == "Bo"
    assert event["data"]["tenant_roles"] == ["member"]


def test_an_unknown_type_goes_out_with_its_own_data(ordered, receiver):
    """A receiver must bear types of tomorrow; they carry what the order says and no more."""
    report = ask(ordered.url, order(type="member.promoted", data={"rank": 7}))

    assert json.loads(receiver.requests[0].body)["data"] == {"rank": 7}
    assert report.sub is None


@pytest.mark.parametrize("name", WICKED)
def test_every_wicked_way_can_be_ordered(key, receiver, name):
    """Each goes out over HTTP; the two that repeat send two requests."""
    with Emulator(keys=Keys(key)) as emulator:
        control(emulator, receiver.url)
        report = ask(emulator.url, order(wicked=name))

    assert len(report.answers) == len(receiver.requests) == 1 + (name[:3] in ("dup", "dou"))


def test_an_order_may_name_its_receiver(ordered, receiver, closed_port):
    """Where nobody listens, the report says so instead of a status."""
    report = ask(ordered.url, order(to=f"http://127.0.0.1:{closed_port}/"))

    assert not report.ok
    assert report.answers[0].status is None
    assert report.answers[0].error.startswith("ConnectError")
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "member.promoted"}, "no sync type"),
        ({"wicked": "very"}, "'very' is not a wicked way"),
        ({"data": {"given_name": "\x00"}}, "cannot store"),
        ({"to": "http://[::1"}, "Invalid"),
    ],
)
def test_a_wrong_order_is_refused_with_a_reason(ordered, receiver, changes, reason):
    """Nothing is sent."""
    with pytest.raises(EmulatorError, match=reason) as caught:
        ask(ordered.url, order(**changes))

    assert caught.value.wrong
    assert receiver.requests == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"type":"x"}', b'{"type":"x","tenant_id":"t","sudo":1}']
)
def test_what_is_no_order_is_refused(ordered, content):
    """Unknown and missing keys are named."""
    response = httpx2.post(
        ordered.url + control_module.PATH,
        content=content,
        headers={"Content-Type": "application/json"},
        trust_env=False,
    )

    assert response.status_code == 400
    assert response.json()["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json", "Host": "evil.example:80"}, 403),
        ({"Content-Type": "application/json", "Host": "evil.example"}, 403),
    ],
)
def test_web_pages_cannot_give_orders(ordered, receiver, headers, status):
    """Neither a simple cross-site request nor a name that was bent to this machine gets through."""
    response = httpx2.post(
        ordered.url + control_module.PATH,
        content=json.dumps({"type": "x", "tenant_id": "t", "application_id": "a"}),
        headers=headers,
        trust_env=False,
    )

    assert response.status_code == status
    assert receiver.requests == []


@pytest.mark.parametrize("length", [str(2**21), "-1", "ten"])
def test_too_long_a_request_is_refused(ordered, length):
    """The length is looked at before a byte of it is read."""
    connection = http.client.HTTPConnection(ordered.url.removeprefix("http://"))
    connection.request("POST", control_module.PATH, headers={"Content-Length": length})
    status = connection.getresponse().status
    connection.close()

    assert status == 413


def test_asking_where_no_emulator_is_says_what_to_do(receiver, closed_port):
    """Nobody there, or somebody else."""
    with pytest.raises(EmulatorError, match="start one with `tenantsync emulate`"):
        ask(f"http://127.0.0.1:{closed_port}", order())
    with pytest.raises(EmulatorError, match="is no emulator"):
        ask(receiver.server.url, order())
    for status in (400, 403):
        receiver.answers.append(Response(status, b"<html>"))
        with pytest.raises(EmulatorError, match=f"refused the order with status {status}"):
            ask(receiver.server.url, order())


# -- the commands


@pytest.fixture
def invoke(ordered, tmp_path):
    """Run `send` with a configuration that points at the emulator."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(
        f'[authvital]\nhost = "{ordered.url}"\napplication_id = "{APPLICATION}"\n'
        '[isolation]\nstrategy = "database"\nurl = "sqlite:///{key}.db"\n'
        f'[tenants.acme]\nid = "{TENANT}"\n',
        encoding="utf-8",
    )

    return lambda *arguments: CliRunner().invoke(send, [*arguments, "--config", str(file)])


def test_send_delivers_and_prints_the_answer(invoke, receiver):
    """The tenant's id and the application come from the configuration."""
    result = invoke("member.joined", "--tenant", "acme", "--sub", "u1", "--email", "a@b.test")
    event = json.loads(receiver.requests[0].body)

    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == (
        f"member.joined {event['id']} about u1 to {receiver.url}"
    )
    assert result.output.splitlines()[1] == '200 {"outcome":"applied"}'
    assert (event["tenant_id"], event["application_id"]) == (TENANT, APPLICATION)
    assert (event["data"]["sub"], event["data"]["email"]) == ("u1", "a@b.test")


def test_send_can_print_json(invoke):
    """One object, with an answer for each request."""
    result = invoke("member.left", "--tenant", "acme", "--wicked", "duplicated", "--json")

    assert result.exit_code == 0
    assert [answer["status"] for answer in json.loads(result.output)["answers"]] == [200, 200]


def test_send_fails_where_the_receiver_refuses(invoke, receiver):
    """The status is printed, and the exit code is 1."""
    receiver.answers.append(Response(401, b'{"error":"stale"}'))
    result = invoke("member.joined", "--tenant", "acme", "--wicked", "stale")

    assert result.exit_code == 1
    assert '401 {"error":"stale"}' in result.output


def test_send_fails_where_nobody_receives(invoke, closed_port):
    """The error is printed in place of a status."""
    result = invoke("member.joined", "--tenant", "acme", "--to", f"http://127.0.0.1:{closed_port}/")

    assert result.exit_code == 1
    assert "no answer: ConnectError" in result.output


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("member.joined", "--tenant", "globex"), "there are: acme"),
        (("member.promoted", "--tenant", "acme"), "none of the sync types"),
        (("member.joined", "--tenant", "acme", "--data", "[1]"), "no JSON object"),
        (("member.joined", "--tenant", "acme", "--data", '{"a":"\\u0000"}'), "cannot store"),
        (("member.joined", "--tenant", "acme", "--to", "localhost:80"), "is no URL"),
        (("member.joined", "--tenant", "acme", "--to", "http://[::1"), "is no URL"),
        (("member.joined", "--tenant", "acme", "--wicked", "very"), "very"),
        (("member.joined",), "--tenant"),
    ],
)
def test_send_asked_wrongly_ends_with_two(invoke, receiver, arguments, reason):
    """The message says what is allowed, and nothing is sent."""
    result = invoke(*arguments)

    assert result.exit_code == 2
    assert reason in result.output
    assert receiver.requests == []


def test_send_without_an_emulator_ends_with_one(invoke, ordered):
    """The message says how to start one."""
    ordered.__exit__(None, None, None)
    result = invoke("member.joined", "--tenant", "acme")

    assert result.exit_code == 1
    assert "tenantsync emulate" in result.output


def test_emulate_prints_what_to_put_into_the_configuration(receiver):
    """A process of its own serves until Ctrl-C, takes orders, and then ends well."""
    script = "from tenantsync.cli.emulate import emulate; emulate()"
    command = [sys.executable, "-c", script, "--port", "0", "--target", receiver.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("host = "):
                break
        url = lines[-1].split('"')[1]
        keys = get(url + JWKS).json()["keys"]
        report = ask(url, order())
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=20)[0]

    assert keys[0]["kid"] in "".join(lines)
    assert receiver.url in "".join(lines)
    assert report.ok
    assert rest.endswith("stopped\n")
    assert process.returncode == 0


def test_emulate_says_when_its_port_is_taken(receiver):
    """Exit code 1 and another port to choose; 2 for a target that is no URL."""
    port = receiver.server.url.rpartition(":")[2]
    taken = CliRunner().invoke(emulate, ["--port", port])
    wrong = CliRunner().invoke(emulate, ["--target", "nowhere"])

    assert (taken.exit_code, wrong.exit_code) == (1, 2)
    assert "choose another --port" in taken.output
    assert isinstance(emulate, click.Command)


# -- the page about it


@pytest.mark.parametrize("number", range(10))
def test_the_examples_of_the_page_run_as_printed(number):
    """Each Python block stands alone, and its assertions hold."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

    assert len(blocks) == 10
    exec(compile(blocks[number], str(PAGE), "exec"), {})  # noqa: S102 - our own page


def test_the_page_lists_every_wicked_way():
    """The table names those that the command takes, in their order."""
    table = PAGE.read_text(encoding="utf-8").partition("| Name |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)

    assert re.findall(r"`([a-z-]+)`", " ".join(rows)) == list(WICKED)


def test_the_page_lists_every_action():
    """The table names every public method of `actions`."""
    table = PAGE.read_text(encoding="utf-8").partition("| Action |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = set(re.findall(r"`([a-z_]+)`", " ".join(rows))) - {"silent"}
    public = {name for name, part in vars_of(Actions) if name[0] != "_" and callable(part)}

    assert named == public - {"press_test_button"}


def vars_of(kind):
    return [item for one in kind.__mro__[:-1] for item in vars(one).items()]
