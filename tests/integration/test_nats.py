"""Signals over a real NATS server: they wake one worker, and nothing depends on them."""

import asyncio
import importlib.util
import json
import logging
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import nats
import pytest
from guarding import make, people
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from tenantsync.control.database import ControlDatabase
from tenantsync.control.inbox import Inbox
from tenantsync.errors import ConfigError
from tenantsync.migrate.control import upgrade_control
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.parking import Parking
from tenantsync.tenants import Placement, Tenant
from tenantsync.worker import nats as signals_module
from tenantsync.worker.drain import Drainer
from tenantsync.worker.loop import Worker
from tenantsync.worker.nats import NatsSignals

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "scale-out.md"
BOUND = 30.0  # seconds that a test waits for another thread or process before it fails
SOON = 0.05
STREAM = "tenantsync-tenantsync"
SUBJECT = "tenantsync.tenantsync.drain"


def eventually(holds, message):
    """Look until something holds; only where another process is concerned."""
    deadline = time.monotonic() + BOUND
    while not holds():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


class Nats:
    """A server with JetStream on a port of its own, that can be killed and started again."""

    def __init__(self, directory, *options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self._store = directory / "jetstream"
        self._log = directory / "log"
        self._options = options
        self._process = None

    def start(self):
        program = shutil.which("nats-server", path=str(sys.exec_prefix) + "/bin")
        command = [program, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", self._store]
        self._process = subprocess.Popen([*map(str, command), "-l", self._log, *self._options])
        eventually(self._answers, "the NATS server did not start")

    def kill(self, *, forgets=False):
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if forgets:
            shutil.rmtree(self._store)

    def ask(self, question, **options):
        """Run a coroutine function with a JetStream context of a client of its own."""

        async def asked():
            client = await nats.connect(self.url, **options)
            try:
                return await question(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(asked())

    def _answers(self):
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as probe:
            return probe.recv(4) == b"INFO"
        return False


class Heard:
    """What a listener was called with, in order."""

    def __init__(self):
        self._ids = queue.Queue()

    def __call__(self, tenant_id):
        self._ids.put(tenant_id)

    def next(self):
        return self._ids.get(timeout=BOUND)

    def until(self, last):
        """Everything up to a certain id, and that one."""
        heard = [self.next()]
        while heard[-1] != last:
            heard.append(self.next())
        return heard


@contextmanager
def server_with(directory, *options):
    server = Nats(directory, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def server(tmp_path):
    with server_with(tmp_path) as running:
        yield running


@pytest.fixture
def opened():
    """Make signals that are closed when the test ends."""
    made = []

    def make(server, **options):
        url = server if isinstance(server, str) else server.url
        made.append(NatsSignals(url, **({"retry_after": SOON} | options)))
        return made[-1]

    yield make
    for signals in made:
        signals.close()


def listening(opened, server, **options):
    heard = Heard()
    opened(server, **options).listen(heard)
    return heard


@pytest.mark.parametrize(
    "tenant_id",
    [
        "93ce0187-9290-491b-9f06-be209b3d2f92",
        "a.b c",
        "*",
        ">",
        "tenantsync.>",
        "\r\nPUB x 0\r\n",
        "Zürich 🏔",
        "i" * 255,
        "\ud800",
    ],
)
def test_a_signal_wakes_a_listener_in_another_process(server, opened, tenant_id):
    """Whatever a tenant's id looks like, it arrives as it was."""
    heard = listening(opened, server)

    opened(server).publish(tenant_id)

    assert heard.next() == tenant_id


def test_no_id_stands_in_a_subject(server, opened):
    """Subjects are made of a digest; only the payload has the id."""
    opened(server).publish("acme.*")

    async def stored(stream):
        return await stream.get_msg(STREAM, 1)

    eventually(lambda: _succeeds(server, stored), "nothing was published")
    message = server.ask(stored)

    prefix, _, digest = message.subject.rpartition(".")
    assert (prefix, message.data) == (SUBJECT, b"acme.*")
    assert len(digest) == 32
    assert digest.isalnum()


def test_each_signal_wakes_one_of_many(server, opened):
    """Workers share the signals: each goes to one of them, whichever that is."""
    heard = Heard()
    for _ in range(3):
        opened(server).listen(heard)
    publisher = opened(server)
    for number in range(60):
        publisher.publish(f"t{number}")

    assert sorted(heard.next() for _ in range(60)) == sorted(f"t{number}" for number in range(60))
    publisher.publish("last")
    assert heard.next() == "last"


def test_signals_that_nobody_took_yet_are_one(server, opened):
    """A tenant that is announced again and again is drained once by who comes later."""
    for _ in range(5):
        publisher = opened(server)
        publisher.publish("acme")
        publisher.close()
    publisher = opened(server)
    publisher.publish("last")

    assert listening(opened, server).until("last") == ["acme", "last"]


def test_closing_publishes_what_waits(server, opened):
    """A command that publishes and ends is heard."""
    publisher = opened(server)
    for number in range(20):
        publisher.publish(f"t{number}")
    publisher.close()

    heard = listening(opened, server)
    assert [heard.next() for _ in range(20)] == [f"t{number}" for number in range(20)]


def test_a_server_that_is_down_holds_up_nobody(tmp_path, opened):
    """Publishing and listening return at once; when the server comes, the signal arrives."""
    server = Nats(tmp_path)
    heard = listening(opened, server)
    publisher = opened(server)
    began = time.monotonic()
    for _ in range(1_000):
        publisher.publish("acme")
    took = time.monotonic() - began

    server.start()
    try:
        assert heard.next() == "acme"
    finally:
        server.kill()
    assert took < 2.0


@pytest.mark.parametrize("forgets", [False, True], ids=["remembers", "forgets"])
def test_a_server_that_was_restarted_is_used_again(server, opened, forgets):
    """Both sides connect again for ever, and make the stream anew where the server lost it."""
    heard = listening(opened, server)
    publisher = opened(server)
    for number in range(3):
        publisher.publish(f"before {number}")
        heard.until(f"before {number}")

        server.kill(forgets=forgets)
        publisher.publish(f"meanwhile {number}")
        server.start()

        # A server that was killed may not remember that a signal was taken.
        assert set(heard.until(f"meanwhile {number}")) <= {
            f"before {number}",
            f"meanwhile {number}",
        }


def test_what_waits_for_a_server_is_bounded(tmp_path, opened):
    """During an outage a few signals wait, each tenant's once, and the rest is dropped."""
    server = Nats(tmp_path)
    publisher = opened(server, max_waiting=3)
    for number in range(10):
        publisher.publish(f"t{number}")
        publisher.publish("t0")

    server.start()
    try:
        heard = listening(opened, server)
        assert [heard.next() for _ in range(3)] == ["t0", "t1", "t2"]
        publisher.publish("t9")
        assert heard.next() == "t9"
    finally:
        server.kill()


def test_a_signal_that_came_twice_is_heard_twice_and_harms_nobody(server, opened):
    """Doubled, empty, unreadable and overlong messages disturb no signal behind them."""
    heard = listening(opened, server)
    opened(server).publish("first")
    assert heard.next() == "first"

    async def push(stream):
        for number, payload in enumerate((b"twice", b"twice", b"\xff\xfe", b"x" * 300, b"last")):
            await stream.publish(f"{SUBJECT}.{number}", payload)

    server.ask(push)

    assert heard.until("last") == ["twice", "twice", "last"]


def test_a_listener_that_raises_hears_the_next_one(server, opened, caplog):
    """What a wake-up call raises is logged by its class."""
    heard = Heard()

    def wake(tenant_id):
        if tenant_id == "bad":
            raise ValueError("canary")
        heard(tenant_id)

    opened(server).listen(wake)
    publisher = opened(server)
    publisher.publish("bad")
    publisher.publish("good")

    assert heard.next() == "good"
    assert [(record.message, record.reason) for record in caplog.records] == [
        ("tenantsync.signal_failed", "ValueError")
    ]
    assert "canary" not in caplog.text


def test_what_a_worker_did_not_confirm_another_one_gets(server, opened):
    """A worker that died with a signal in its hands costs the time to confirm it, not the signal.

    Stream and consumer are an operator's here, with a shorter time, and are used as they are.
    """

    async def take_and_die(stream):
        await stream.add_stream(
            StreamConfig(
                name=STREAM, subjects=[f"{SUBJECT}.*"], retention=RetentionPolicy.WORK_QUEUE
            )
        )
        subscription = await stream.pull_subscribe(
            f"{SUBJECT}.*",
            durable="workers",
            stream=STREAM,
            config=ConsumerConfig(ack_wait=0.2),
        )
        await stream.publish(f"{SUBJECT}.x", b"acme")
        return [message.data for message in await subscription.fetch(1, timeout=BOUND)]

    taken = server.ask(take_and_die)

    assert (taken, listening(opened, server).next()) == ([b"acme"], "acme")


def test_a_signal_that_the_server_refuses_is_forgotten(server, opened, caplog):
    """What an operator's stream does not take holds up no other signal."""

    async def small(stream):
        await stream.add_stream(
            StreamConfig(
                name=STREAM,
                subjects=[f"{SUBJECT}.*"],
                retention=RetentionPolicy.WORK_QUEUE,
                max_msg_size=8,
            )
        )

    server.ask(small)
    heard = listening(opened, server)
    publisher = opened(server)
    publisher.publish("much too long")
    publisher.publish("short")

    assert heard.next() == "short"
    publisher.close()
    assert caplog.records == []


def test_others_on_the_same_server_are_not_disturbed(server, opened):
    """Each name has a stream of its own, whatever it looks like."""
    names = ["shop", "shop.eu", "tenantsync"]
    heard = {name: listening(opened, server, name=name) for name in names}
    for name in names:
        opened(server, name=name).publish(f"of {name}")

    assert {name: heard[name].next() for name in names} == {name: f"of {name}" for name in names}


def test_who_listens_may_publish_too(server, opened):
    """One process is both: the order in which it begins does not matter."""
    heard = Heard()
    signals = opened(server)
    signals.publish("early")
    signals.listen(heard)
    assert heard.next() == "early"

    signals.publish("late")
    assert heard.next() == "late"


def test_an_outage_is_logged_once_and_without_the_password(tmp_path, opened, caplog):
    """The log has one warning for an outage and one record for its end, with a class name only."""
    with caplog.at_level(logging.DEBUG):
        server = Nats(tmp_path)
        url = server.url.replace("//", "//worker:hunter2@")
        heard = listening(opened, url)
        eventually(lambda: "signals_unavailable" in caplog.text, "the outage was not noticed")
        server.start()
        try:
            opened(server.url).publish("acme")
            assert heard.next() == "acme"
        finally:
            server.kill()
        ours = [record for record in caplog.records if record.name == "tenantsync"]

    assert [record.message for record in ours][:2] == [
        "tenantsync.signals_unavailable",
        "tenantsync.signals_available",
    ]
    assert "hunter2" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("nats")]


@pytest.mark.parametrize(
    ("options", "login"),
    [
        (("--user", "worker", "--pass", "p@ss:w/ord"), "worker:p%40ss%3Aw%2Ford"),
        (("--auth", "t@ken"), "t%40ken"),
    ],
    ids=["password", "token"],
)
def test_a_login_stands_percent_encoded_in_the_url(tmp_path, opened, options, login):
    """User and password, or a token, are what stands before the host."""
    with server_with(tmp_path, *options) as server:
        url = server.url.replace("//", f"//{login}@")
        heard = listening(opened, url)
        opened(url).publish("acme")

        assert heard.next() == "acme"


def test_the_permissions_of_the_page_are_enough(tmp_path, opened):
    """Logins that may do what the documentation lists, and nothing else, send and take signals."""
    page = PAGE.read_text().replace("NAME", STREAM).replace("SUBJECT", SUBJECT)
    rows = re.findall(r"^\| (everyone|workers, too) \| (\w+) \| (.*) \|$", page, re.MULTILINE)
    granted = {(who, verb): re.findall(r"`(.*?)`", subjects) for who, verb, subjects in rows}
    sends, hears = granted["everyone", "publish"], granted["everyone", "subscribe"]
    may = {"sender": sends, "worker": [*sends, *granted["workers, too", "publish"]]}
    users = [
        {"user": user, "password": "x", "permissions": {"publish": to, "subscribe": hears}}
        for user, to in may.items()
    ]
    configuration = json.dumps({"authorization": {"users": users}})
    (tmp_path / "server.conf").write_text(configuration)
    with server_with(tmp_path, "-c", tmp_path / "server.conf") as server:
        heard = listening(opened, server.url.replace("//", "//worker:x@"))
        sender = opened(server.url.replace("//", "//sender:x@"))
        for tenant_id in ("a", "b"):
            sender.publish(tenant_id)

            assert heard.next() == tenant_id


def test_another_server_of_the_cluster_is_tried(server, tmp_path, opened):
    """One of the servers that stand in the URL is enough."""
    dead = Nats(tmp_path)
    heard = listening(opened, f"{dead.url},{server.url}")
    opened(f"{server.url},{dead.url}").publish("acme")

    assert heard.next() == "acme"


@pytest.mark.parametrize(
    "url",
    [
        "redis://worker:hunter2@host",
        "nats://",
        "nats://worker:hunter2@a,b",
        "nats://host:65536",
        "x",
    ],
)
def test_another_url_is_refused(url):
    """The error says what to write, and repeats no password."""
    with pytest.raises(ConfigError, match="nats://HOST:4222") as caught:
        NatsSignals(url)

    assert "hunter2" not in str(caught.value)


class Side:
    """What one process has: a handler whose inbox tells the others, and a worker that listens.

    Nothing is shared with the other side but databases and the NATS server.
    """

    def __init__(self, url, tenant, signals):
        self.delivered = queue.Queue()
        self._control = ControlDatabase(url)
        self.inbox = Inbox(self._control)
        self._parking = Parking(
            self.inbox, parked=lambda tenant_ids: [signals.publish(each) for each in tenant_ids]
        )
        self.handler = IdentitySyncHandler(
            lambda tenant_id: tenant, parking=self._parking, observers=[self.delivered.put]
        )
        self.worker = Worker(
            self.inbox,
            Drainer(self.inbox, self.handler, owner="test"),
            tenants=lambda: [tenant],
            signals=signals,
            interval=3_600.0,
            soonest=3_600.0,
        )

    def applied(self):
        """Wait until an event was applied here, and return its id."""
        while True:
            delivery = self.delivered.get(timeout=BOUND)
            if delivery.outcome is Outcome.APPLIED:
                return delivery.event_id

    def close(self):
        assert self.worker.stop()
        self._parking.close()
        self.handler.close()
        self._control.close()


@pytest.fixture
def two_sides(server, opened, database_url, tmp_path, migrated_templates):
    """An endpoint and a worker that share a control database, and the file of their tenant."""
    if database_url.startswith("sqlite"):
        database_url = f"sqlite:///{tmp_path / 'control.db'}"
    with ControlDatabase(database_url) as control:
        upgrade_control(control)
    file = tmp_path / "acme.db"
    shutil.copyfile(migrated_templates(0), file)
    tenant = Tenant("id of acme.*", "acme", Placement.of(f"sqlite:///{file}"))
    sides = [Side(database_url, tenant, opened(server)) for _ in range(2)]
    yield *sides, file
    for side in sides:
        side.close()


def test_a_signal_spares_the_wait_for_the_interval(two_sides):
    """What one process parked another one applies as soon as the tenant is back.

    The worker looks by itself once an hour: only the signal tells it that the tenant is back.
    """
    endpoint, elsewhere, file = two_sides
    elsewhere.worker.start()
    away = file.rename(file.with_suffix(".away"))
    waiting = [make("member.joined", f"p{number}", tenant="id of acme.*") for number in range(4)]
    outcomes = [endpoint.handler.handle_blocking(event) for event in waiting]
    assert outcomes == [Outcome.PARKED] * 4
    # What was parked a moment ago is not due yet, and being woken does not change that.
    eventually(
        lambda: all(entry.due_at <= datetime.now(UTC) for entry in endpoint.inbox.list()),
        "what was parked never came due",
    )

    away.rename(file)
    eventually(
        lambda: (
            endpoint.handler.handle_blocking(make("member.joined", "back", tenant="id of acme.*"))
            is Outcome.APPLIED
        ),
        "the endpoint did not find out that the tenant is back",
    )

    missing = {event.id for event in waiting}
    while missing:
        missing.discard(elsewhere.applied())
    assert {"back", *(f"p{number}" for number in range(4))} <= set(
        people(Placement.of(f"sqlite:///{file}"))
    )


def test_closing_ends_the_thread(server, opened):
    """After it nothing runs, and to publish, to listen and to close again do nothing."""
    before = set(threading.enumerate())
    signals = opened(server)
    heard = Heard()
    signals.listen(heard)
    signals.publish("acme")
    assert heard.next() == "acme"
    signals.close()

    signals.publish("late")
    signals.listen(heard)
    signals.close()
    assert set(threading.enumerate()) - before == set()


def test_what_was_never_used_needs_no_thread():
    """Making and closing signals opens nothing."""
    before = set(threading.enumerate())
    NatsSignals("nats://127.0.0.1:1").close()

    assert set(threading.enumerate()) - before == set()


def test_closing_during_an_outage_takes_no_longer_than_allowed(tmp_path, opened):
    """A server that never comes does not keep the process alive."""
    before = set(threading.enumerate())
    signals = opened(Nats(tmp_path))
    signals.publish("acme")
    began = time.monotonic()
    signals.close()

    assert time.monotonic() - began < 10.0
    assert set(threading.enumerate()) - before == set()


def test_without_a_thread_to_be_had_publishing_raises_nothing(server, opened, monkeypatch):
    """A machine at its limit loses promptness; the next signal tries again."""

    def refused(thread):
        raise RuntimeError("can't start new thread")

    signals = opened(server)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        signals.publish("first")
    signals.publish("second")

    assert listening(opened, server).until("second") == ["first", "second"]


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    """The module can be imported without NATS' client; using it says what is missing."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "nats"]:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("bare_nats", signals_module.__file__)
    bare = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bare_nats", bare)
    spec.loader.exec_module(bare)

    with pytest.raises(ConfigError, match=r'pip install "tenantsync\[nats\]"'):
        bare.NatsSignals("nats://localhost")


def _succeeds(server, question):
    try:
        server.ask(question)
    except nats.js.errors.NotFoundError:
        return False
    return True
