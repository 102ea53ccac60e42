"""`tenantsync worker` and `tenantsync serve` as real processes: what they do, and how they end."""

import http.client
import os
import queue
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from guarding import body_of

from tenantsync.app import TenantSync
from tenantsync.config import load
from tenantsync.control.inbox import Arrival, State
from tenantsync.migrate.control import upgrade_control
from tenantsync.testing.emulator import Emulator

CONFIG = """
app = "shop:sync"
[authvital]
host = "{host}"
application_id = "an-application"
[isolation]
strategy = "database"
url = "sqlite:///tenants/{{key}}.db"
[tenants.acme]
id = "id-of-acme"
[tenants.globex]
id = "id-of-globex"
[worker]
interval = "100ms"
"""
SHOP = """
import time
from pathlib import Path
from tenantsync import TenantSync

HERE = Path(__file__).parent
sync = TenantSync.from_toml(HERE / "tenantsync.toml")

@sync.on("member.left")
def leave(event, session):
    (HERE / f"in-{event.id}").touch()
    deadline = time.monotonic() + 30
    while not (HERE / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
"""
COMMAND = str(Path(sys.executable).with_name("tenantsync"))
PATH = "/webhooks/authvital"


@pytest.fixture(scope="module")
def authvital() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, authvital: Emulator, migrated_templates: Callable[[int], str]) -> Path:
    """Give a folder with an application, its configuration, and two migrated tenants."""
    (tmp_path / "tenantsync.toml").write_text(CONFIG.format(host=authvital.url))
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "tenants").mkdir()
    for key in ("acme", "globex"):
        shutil.copyfile(migrated_templates(0), tmp_path / "tenants" / f"{key}.db")
    return tmp_path


@pytest.fixture
def sync(folder: Path) -> Iterator[TenantSync]:
    """Give what looks into the inbox, beside the processes."""
    with TenantSync(load(folder / "tenantsync.toml")) as made:
        upgrade_control(made.control)
        yield made


@contextmanager
def running(folder: Path, *words: str, ready: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a command until the block ends; enter the block once it says that it is ready."""
    process = subprocess.Popen(
        [COMMAND, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout or ()])
    reader.start()
    try:
        said = ""
        while ready not in said:
            said += lines.get(timeout=60)
        yield process
    finally:
        process.kill()
        process.wait(30)
        reader.join(30)
        process.stdout.close()


def environment() -> dict[str, str]:
    """Return what a process of ours needs to know: its output must not lie in a buffer."""
    return os.environ | {"PYTHONUNBUFFERED": "1"}


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def arrival(tenant: str, event_id: str, kind: str = "member.joined") -> Arrival:
    """Return an event about a person of its own."""
    return Arrival(
        tenant_id=tenant,
        event_id=event_id,
        type=kind,
        subject=f"sub-{event_id}",
        timestamp=1_793_000_400_000,
        body=body(tenant, event_id, kind),
        signed_at=None,
        door="webhook",
        reason="its database did not answer",
    )


def body(tenant: str, event_id: str, kind: str = "member.joined") -> bytes:
    """Return the body of an event about a person of its own."""
    return body_of(
        kind, f"sub-{event_id}", tenant=tenant, id=event_id, application="an-application"
    )


def applied(folder: Path, key: str) -> set[str]:
    """Return the ids of the events that a tenant's database has."""
    with closing(sqlite3.connect(folder / "tenants" / f"{key}.db")) as connection:
        return {row[0] for row in connection.execute("SELECT event_id FROM av_sync_events")}


def held(sync: TenantSync) -> list[str]:
    """Return who holds a lane."""
    return [lane.held_by for lane in sync.inbox.lanes() if lane.held_by]


def invoke(folder: Path, *words: str):
    """Call a command in a process of its own, and return how it ended and what it said."""
    done = subprocess.run(
        [COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_worker_applies_what_comes_and_ends_with_0(folder, sync):
    """What waits when it starts and what comes later; SIGTERM ends it well."""
    sync.inbox.park([arrival("id-of-acme", "e1")])
    with running(folder, "worker", ready="worker started") as process:
        until(lambda: applied(folder, "acme") == {"e1"})
        sync.inbox.park([arrival("id-of-globex", "e2")])
        until(lambda: applied(folder, "globex") == {"e2"})
        until(lambda: not sync.inbox.lanes())
        process.send_signal(signal.SIGTERM)

        assert process.wait(30) == 0
    assert [entry.state for entry in sync.inbox.list()] == [State.APPLIED] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_finishes_what_it_is_at(folder, sync, number):
    """The portion in flight is applied and settled, and no lease is left behind."""
    sync.inbox.park([arrival("id-of-acme", "e1", "member.left")])
    with running(folder, "worker", ready="worker started") as process:
        until((folder / "in-e1").exists)
        assert len(held(sync)) == 1
        process.send_signal(number)
        (folder / "go").touch()

        assert process.wait(30) == 0
    assert applied(folder, "acme") == {"e1"}
    assert held(sync) == []
    assert [entry.state for entry in sync.inbox.list()] == [State.APPLIED]


def test_once_drains_what_is_due(folder, sync):
    """All of it, and then it ends; with 1 if something stayed that should not have."""
    (folder / "go").touch()
    kinds = ("member.joined", "member.left")
    sync.inbox.park([arrival("id-of-acme", f"e{n}", kinds[n % 2]) for n in range(40)])
    sync.inbox.park([arrival("id-of-globex", "other")])

    first = invoke(folder, "worker", "--once")
    (folder / "tenants" / "globex.db").unlink()
    sync.inbox.park([arrival("id-of-globex", "more")])
    second = invoke(folder, "worker", "--once")
    for lane in sync.inbox.lanes():
        sync.inbox.discard(tenant_id=lane.tenant_id)
    third = invoke(folder, "worker", "--once")

    assert (first[0], first[1]) == (0, "41 applied\n"), first
    assert (second[0], second[1]) == (
        1,
        "1 still parked: see `tenantsync inbox list --lanes`\n",
    ), second
    assert (third[0], third[1]) == (0, "nothing to do\n"), third
    assert len(applied(folder, "acme")) == 40


def test_a_worker_wants_the_hooks_or_a_word_that_there_are_none(folder, sync):
    """Without `app` it applies nothing and ends with 2; with `--hooks none` it applies."""
    file = folder / "tenantsync.toml"
    file.write_text(file.read_text().replace('app = "shop:sync"', ""))
    sync.inbox.park([arrival("id-of-acme", "e1", "member.left")])

    refused = invoke(folder, "worker", "--once")
    assert (refused[0], applied(folder, "acme")) == (2, set())
    assert "`app` does not say where the hooks are" in refused[2]
    done = invoke(folder, "worker", "--once", "--hooks", "none")

    assert (done[0], done[1]) == (0, "1 applied\n"), done
    assert not (folder / "in-e1").exists()


def test_a_control_database_that_is_down_is_told(folder):
    """The exit code is 1: asked rightly, and it did not work. One never made holds nothing."""
    never = invoke(folder, "worker", "--once")
    assert (never[0], never[1]) == (0, "nothing to do\n"), never
    assert not (folder / "tenantsync.db").exists()
    file = folder / "tenantsync.toml"
    down = '[control]\nurl = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"\n'
    file.write_text(file.read_text() + down)

    code, _, error = invoke(folder, "worker", "--once")

    assert code == 1
    assert "the control database" in error


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_refused(port: int) -> bool:
    """Return whether nobody listens on a port any more."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return True
    return False


def post(authvital: Emulator, url: str, content: bytes) -> int | None:
    """Deliver an event once, and return the status; None where nobody answered."""
    return authvital.send(authvital.delivery(content), url).status


def get(port: int, path: str) -> int:
    """Ask for a path, and return the status."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def test_serve_finishes_what_is_in_flight(folder, sync, authvital):
    """SIGTERM: the request in a hook is answered, others 503, the lane is given back, exit 0."""
    port = free_port()
    sync.inbox.park([arrival("id-of-globex", "waiting", "member.left")])
    url = f"http://127.0.0.1:{port}{PATH}"
    with (
        running(folder, "serve", "--port", str(port), ready="Uvicorn running") as process,
        ThreadPoolExecutor(1) as sender,
    ):
        until((folder / "in-waiting").exists)
        answer = sender.submit(post, authvital, url, body("id-of-acme", "live", "member.left"))
        until((folder / "in-live").exists)
        assert len(held(sync)) == 1
        process.send_signal(signal.SIGTERM)
        # Not by a delivery: one that is just in time waits behind the hook.
        until(lambda: get(port, "/healthz") == 503)
        late = body("id-of-acme", "late", "member.joined")
        assert post(authvital, url, late) == 503
        (folder / "go").touch()

        # On a machine that is busy the sender may have been told to wait no longer for the hook.
        assert answer.result(30) in (200, 202)
        assert process.wait(30) == 0
    assert is_refused(port)
    assert applied(folder, "acme") >= {"live"}
    assert applied(folder, "globex") == {"waiting"}
    assert held(sync) == []


def test_serve_answers_machines(folder):
    """Whether it lives and is ready, beside the webhooks; a path with a slash more is none."""
    port = free_port()
    with running(folder, "serve", "--port", str(port), ready="Uvicorn running"):
        paths = ("/healthz", "/readyz", "/metrics", f"{PATH}/")
        statuses = {path: get(port, path) for path in paths}

    assert statuses == {"/healthz": 200, "/readyz": 200, "/metrics": 200, f"{PATH}/": 404}


def test_serve_under_load_keeps_its_word(folder, sync, authvital):
    """Each delivery is answered 2xx, or 503, or not at all; and what got 2xx is kept."""
    port = free_port()
    (folder / "go").touch()
    url = f"http://127.0.0.1:{port}{PATH}"
    answered: dict[str, int | None] = {}
    taken: set[str] = set()
    under_way = threading.Event()

    def send(number: int) -> None:
        key = ("acme", "globex")[number % 2]
        kind = ("member.joined", "member.left")[number // 2 % 2]
        status = post(authvital, url, body(f"id-of-{key}", f"e{number}", kind))
        answered[f"e{number}"] = status
        if status in (200, 202):
            taken.add(f"e{number}")
        if len(taken) > 30:
            under_way.set()

    with (
        running(folder, "serve", "--port", str(port), ready="Uvicorn running") as process,
        ThreadPoolExecutor(8) as senders,
    ):
        sending = [senders.submit(send, number) for number in range(200)]
        assert under_way.wait(60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        for each in sending:
            each.result(60)

    assert set(answered.values()) <= {200, 202, 503, None}
    kept = applied(folder, "acme") | applied(folder, "globex")
    kept |= {entry.event_id for entry in sync.inbox.list(limit=1000)}
    assert len(taken) > 30
    assert taken <= kept
    assert held(sync) == []
