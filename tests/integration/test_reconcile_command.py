"""`tenantsync reconcile`: what it prints, what it does, and how it exits."""

import io
import json
import logging
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from listing import Provider
from sqlalchemy import text

from tenantsync import TenantSync
from tenantsync.cli import commands
from tenantsync.cli.reconcile import _Screen
from tenantsync.control.database import ControlDatabase
from tenantsync.control.reconciliations import Reconciliations
from tenantsync.migrate.control import upgrade_control
from tenantsync.sync.drift import State, TenantReport
from tenantsync.tenants import Placement, Tenant
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.server import Response

PATH = "/api/integration/tenant-memberships"
CONFIG = """
[authvital]
host = "{host}"
application_id = "{application}"
client_id = "machine"
client_secret = "${{SECRET}}"
[isolation]
strategy = "database"
url = "sqlite:///tenants/{{key}}.db"
[tenants.acme]
id = "{acme}"
[tenants.globex]
id = "{globex}"
"""


class Clock:
    """Unix seconds, ahead by what a test waits for."""

    def __init__(self, start):
        self.now = start

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate(0)


@pytest.fixture
def clock():
    # The commands have the machine's clock, and refuse lists of the future.
    return Clock(1_700_000_000.0)


@pytest.fixture
def authvital(key, clock):
    with Emulator(keys=Keys(key, clock=clock), clock=clock, sleep=clock.sleep, seed=3) as emulator:
        yield emulator


@pytest.fixture
def provider(authvital, clock):
    return Provider(authvital, clock)


@pytest.fixture
def tenants(provider):
    """Give the ids of two tenants, of three people and of one."""
    acme, globex = provider.tenant("acme"), provider.tenant("globex")
    for name in ("zoe", "ann", "eve"):
        provider.member(acme, f"{name}@corp.test")
    provider.member(globex, "bob@corp.test")
    return acme, globex


@pytest.fixture
def config(authvital, provider, tenants, tmp_path, migrated_templates, monkeypatch):
    """Give a configuration with two migrated tenants."""
    monkeypatch.setenv("SECRET", "canary")
    (tmp_path / "tenants").mkdir()
    for name in ("acme", "globex"):
        shutil.copyfile(migrated_templates(0), tmp_path / "tenants" / f"{name}.db")
    file = tmp_path / "tenantsync.toml"
    names = {"host": authvital.url, "application": provider.ours.id}
    file.write_text(CONFIG.format(**names, acme=tenants[0], globex=tenants[1]))
    return file


@pytest.fixture
def run(config, clock):
    """Give what calls `tenantsync reconcile`, ten seconds after what was before."""

    def call(*arguments, hooks=True):
        clock.sleep(10)
        chosen = ["--hooks", "none"] if hooks else []
        return CliRunner().invoke(
            commands, ["-c", str(config), "reconcile", *chosen, *arguments], terminal_width=200
        )

    return call


def statuses(config, name):
    """Return `sub` -> membership status in a tenant's file."""
    with closing(sqlite3.connect(config.parent / "tenants" / f"{name}.db")) as connection:
        return dict(connection.execute("SELECT id, membership_status FROM av_identities"))


def test_one_table_says_what_was_done(run, config):
    """A line for each tenant, then the sums; all well is 0."""
    done = run()

    assert done.exit_code == 0, done.output
    *lines, summed = done.output.splitlines()
    assert [line.split() for line in lines] == [
        ["tenant", "state", "added", "changed", "removed", "unchanged", "refused", "why"],
        ["acme", "done", "3", "0", "0", "0", "0"],
        ["globex", "done", "1", "0", "0", "0", "0"],
    ]
    assert summed == "2 tenants: 2 done; people: 4 added, 0 changed, 0 removed, 0 unchanged"
    assert set(statuses(config, "acme").values()) == {"active"}
    assert len(statuses(config, "globex")) == 1


def test_json_is_for_programs(run, tenants):
    """One document and nothing else."""
    done = run("--json", "--tenant", "a*")

    told = json.loads(done.stdout)
    (acme,) = told["tenants"]
    assert (told["ok"], told["counts"]) == (True, {"done": 1})
    assert (acme["tenant"], acme["tenant_id"], acme["added"]) == ("acme", tenants[0], 3)
    assert acme["snapshot"] is not None


def test_a_dry_run_prints_the_differences(run, config, provider, tenants):
    """Who, and which columns; addresses stay where they are. Nothing is written."""
    acme, _ = tenants
    first = run("--dry-run")
    assert first.exit_code == 0, first.output
    assert statuses(config, "acme") == {}
    assert not (config.parent / "tenantsync.db").exists()
    run()
    ids = list(statuses(config, "acme"))
    provider.do.set_status_quietly(acme, ids[0], "SUSPENDED")
    provider.do.edit_profile(ids[1], email="new@corp.test")

    done = run("--dry-run", hooks=False)

    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines()]
    assert ["acme", "changed", ids[0], "membership_status", "active", "->", "suspended"] in lines
    assert ["acme", "changed", ids[1], "email"] in lines
    assert "nothing was written" in done.output
    assert "@corp.test" not in first.output + done.output
    assert set(statuses(config, "acme").values()) == {"active"}


def test_a_dry_run_gives_programs_the_differences_too(run, config, provider, tenants):
    """Who, and which columns; values only of those that are not personal, as on the screen."""
    acme, _ = tenants
    first = run("--dry-run", "--json")
    run()
    ids = list(statuses(config, "acme"))
    provider.do.set_status_quietly(acme, ids[0], "SUSPENDED")
    provider.do.edit_profile(ids[1], email="new@corp.test")

    second = run("--dry-run", "--json", "--jobs", "1")

    differences = json.loads(first.stdout)["differences"]
    assert sorted(each["what"] for each in differences) == ["added"] * 4
    assert [each["tenant"] for each in differences] == ["acme"] * 3 + ["globex"]
    assert {each["sub"] for each in differences[:3]} == set(ids)
    status = {"before": None, "after": "active"}
    assert all(each["columns"]["membership_status"] == status for each in differences)
    assert all(each["columns"]["email"] is None for each in differences)
    told = {each["sub"]: each for each in json.loads(second.stdout)["differences"]}
    assert told == {
        ids[0]: {
            "tenant": "acme",
            "what": "changed",
            "sub": ids[0],
            "columns": {"membership_status": {"before": "active", "after": "suspended"}},
        },
        ids[1]: {
            "tenant": "acme",
            "what": "changed",
            "sub": ids[1],
            "columns": {"email": None},
        },
    }
    assert "@corp.test" not in first.output + second.output
    assert "differences" not in json.loads(run("--json").stdout)


def test_who_is_missing_twice_is_removed(run, config, provider, tenants):
    """In two runs, and the second one says so."""
    run()
    acme, _ = tenants
    gone, *_ = statuses(config, "acme")
    provider.do.remove_quietly(acme, gone)

    outputs = [run("--tenant", "acme").output.splitlines()[1].split() for _ in range(2)]

    assert outputs == [
        ["acme", "done", "0", "0", "0", "2", "0"],
        ["acme", "done", "0", "0", "1", "2", "0"],
    ]
    assert statuses(config, "acme")[gone] == "left"


def test_what_was_held_back_is_1_until_it_is_allowed(run, config, provider, tenants):
    """With what to look at, and what to say then."""
    acme, _ = tenants
    for number in range(3):
        provider.member(acme, f"more{number}@corp.test")
    run()
    for sub in list(statuses(config, "acme"))[:5]:
        provider.do.set_status_quietly(acme, sub, "SUSPENDED")

    held = run()
    allowed = run("--allow-mass-removal")

    assert (held.exit_code, allowed.exit_code) == (1, 0)
    assert "held back" in held.output
    assert "5 of 6 people" in held.output
    assert "--allow-mass-removal" in held.output
    assert list(statuses(config, "acme").values()).count("suspended") == 5


def test_a_tenant_that_failed_is_1_and_the_others_are_done(run, config, authvital, tenants):
    """A list that is refused changes nothing of its tenant."""
    acme, _ = tenants
    authvital.faults.spoil[PATH] = lambda response: (
        response if acme.encode() not in response.body else Response(200, response.body[:-9])
    )

    done = run()

    assert done.exit_code == 1
    assert "failed" in done.output
    assert "is cut off" in done.output
    assert statuses(config, "acme") == {}
    assert len(statuses(config, "globex")) == 1


def test_a_wrong_secret_is_said_and_not_shown(run, config, monkeypatch):
    """Each tenant says why; the secret is in no line."""
    monkeypatch.setenv("SECRET", "wr0ng-canary")

    done = run()

    assert done.exit_code == 1
    assert "client_secret" in done.output
    assert "wr0ng-canary" not in done.output


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (lambda text: text.replace('client_id = "machine"', ""), (), "client_id: is missing"),
        (lambda text: text.replace('client_secret = "${SECRET}"', ""), (), "client_secret: is"),
        (lambda text: text.replace("${SECRET}", "${UNSET_VARIABLE}"), (), "UNSET_VARIABLE"),
        (lambda text: text.partition("[tenants.acme]")[0], (), "there are no tenants"),
        (lambda text: text, ("--tenant", "nobody"), "there is no tenant 'nobody'"),
        (lambda text: text, ("--jobs", "0"), "--jobs"),
    ],
)
def test_what_is_asked_wrongly_is_2(config, change, arguments, said):
    """In one sentence, and without a traceback."""
    config.write_text(change(config.read_text()))

    done = subprocess.run(
        [COMMAND, "-c", config, "reconcile", "--hooks", "none", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


COMMAND = str(Path(sys.executable).with_name("tenantsync"))


def test_hooks_are_wanted_unless_it_is_said_otherwise(run, config):
    """A departure that no hook heard of does not come again."""
    config.write_text(f'app = "shop:sync"\n{config.read_text()}')
    (config.parent / "shop.py").write_text(
        "from pathlib import Path\n"
        "from tenantsync import TenantSync\n"
        "sync = TenantSync.from_toml(Path(__file__).parent / 'tenantsync.toml')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(config.parent)}
    done = subprocess.run(
        [COMMAND, "-c", config, "reconcile"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        cwd=config.parent,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    config.write_text(config.read_text().replace('app = "shop:sync"', ""))
    refused = run(hooks=False)

    assert refused.exit_code != 0
    assert "--hooks none" in str(refused.exception)


def test_a_worker_reconciles_on_schedule(config, tenants):
    """Whoever is due when it starts is done, and the lease is given back."""
    control = config.parent / "tenantsync.db"
    with ControlDatabase(f"sqlite:///{control}") as database:
        upgrade_control(database)
        Reconciliations(database).enrol(tenants, every=3600.0)
        past = "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-1 second')"
        with database.write() as connection:
            connection.execute(text(f"UPDATE reconciliations SET due_at = {past}"))

        def done():
            return all(len(statuses(config, name)) for name in ("acme", "globex")) and all(
                each.snapshot is not None
                for each in Reconciliations(database).list(tenants).values()
            )

        with subprocess.Popen(
            [COMMAND, "-c", config, "worker", "--hooks", "none"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            deadline = time.monotonic() + 60
            while not done():
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
            process.terminate()
            process.communicate(timeout=60)

        assert process.returncode == 0
        assert len(statuses(config, "acme")) == 3
        with database.read() as connection:
            held = "SELECT count(*) FROM reconciliations WHERE owner IS NOT NULL"
            assert connection.scalar(text(held)) == 0


def test_an_interruption_ends_it_and_is_1(config, authvital, tenants):
    """What is under way ends soon, and the rest is not begun."""
    asked, go = threading.Event(), threading.Event()

    def slow(response):
        asked.set()
        assert go.wait(30)
        return response

    authvital.faults.spoil[PATH] = slow
    with subprocess.Popen(
        [COMMAND, "-c", config, "reconcile", "--hooks", "none", "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert asked.wait(30)
        process.send_signal(signal.SIGTERM)
        assert "stopping" in process.stderr.readline()
        go.set()
        output, _ = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "skipped" in output
    assert statuses(config, "globex") == {}


def test_a_second_interruption_ends_it_at_once(config, authvital):
    """As a shell expects: killed by the signal, and not when AuthVital has answered at last."""
    asked, go = threading.Event(), threading.Event()

    def hang(response):
        asked.set()
        go.wait(120)
        return response

    authvital.faults.spoil[PATH] = hang
    with subprocess.Popen(
        [COMMAND, "-c", config, "reconcile", "--hooks", "none"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert asked.wait(60)
            process.send_signal(signal.SIGINT)
            assert "once more: at once" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=10)
        finally:
            process.kill()
            go.set()

    assert process.returncode == -signal.SIGINT
    assert said == ""
    assert statuses(config, "acme") == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("suspend", "the tenant is suspended"),
        ("remove", "the tenant is not in service any more"),
        ("move", "the tenant was moved to another place: run this again"),
    ],
)
def test_whoever_is_taken_out_of_service_during_a_run_is_skipped(
    run, config, authvital, provider, migrated_templates, change, reason
):
    """A run may take hours: what an operator does meanwhile to a tenant whose turn comes counts."""
    initech = provider.tenant("initech")
    provider.member(initech, "kim@corp.test")
    shutil.copyfile(migrated_templates(0), config.parent / "tenants" / "initech.db")
    operate(config, "add", "initech", "--id", initech)
    done = []

    def act(response):
        if not done:
            done.append(change)
            if change == "suspend":
                operate(config, "suspend", "initech")
            elif change == "remove":
                operate(config, "remove", "initech", "--yes")
            else:
                operate(config, "remove", "initech", "--drop", "--yes")
                elsewhere = f"sqlite:///{config.parent / 'tenants' / 'elsewhere.db'}"
                operate(config, "add", "initech", "--id", initech, "--url", elsewhere)
        return response

    authvital.faults.spoil[PATH] = act

    told = json.loads(run("--json", "--jobs", "1").stdout)

    assert done == [change]
    states = {each["tenant"]: (each["state"], each["why"]) for each in told["tenants"]}
    assert states["initech"] == ("skipped", reason)
    assert statuses(config, "elsewhere" if change == "move" else "initech") == {}
    assert states["acme"] == states["globex"] == ("done", None)


def operate(config, *arguments):
    """Call `tenantsync tenants`, in a process of its own: a run may be under way in this one."""
    command = [COMMAND, "-c", config, "tenants", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


class Terminal(io.StringIO):
    """A file that says it is a terminal, and keeps what is written."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("count", "shown"), [(1, "250/1000"), (2, "1/2")])
def test_the_bar_counts_people_of_one_tenant_or_tenants_of_many(monkeypatch, count, shown):
    """On a terminal; for programs there is none."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", Terminal())
    some = [Tenant(f"id-{n}", f"t{n}", Placement.of("sqlite:////x.db")) for n in range(count)]
    for quiet in (False, True):
        with _Screen(some, quiet=quiet) as screen:
            screen.people("t0", 250, 1000)
            report = TenantReport(tenant="t0", tenant_id="id-0", state=State.DONE)
            screen.tenant(report, 1, count)
        written = sys.stderr.getvalue()
        sys.stderr.seek(0)
        sys.stderr.truncate()

        assert (shown in written) is not quiet
        assert ("reconciling" in written) is not quiet
        if not quiet:
            assert written.count(" 1/2 " if count == 1 else "250/1000") == 0


@pytest.mark.parametrize("both", [False, True])
def test_the_bar_and_the_differences_do_not_touch(config, both):
    """On one terminal they have lines of their own; what is sent to a file is in the file."""
    controller, terminal = pty.openpty()
    drawn = []

    def read():
        # A terminal whose last user is gone is an error to read from, on Linux.
        with suppress(OSError):
            while data := os.read(controller, 65536):
                drawn.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            [COMMAND, "-c", config, "reconcile", "--hooks", "none", "--dry-run"],
            stdout=terminal if both else subprocess.PIPE,
            stderr=terminal,
            text=True,
            timeout=60,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            check=False,
        )
    finally:
        os.close(terminal)
        reader.join(60)
        os.close(controller)

    screen = b"".join(drawn).decode()
    assert done.returncode == 0, screen
    assert "reconciling" in screen
    assert "2/2" in screen
    assert ("added" in screen) is both
    # What a line of the screen is cleared of is not seen in it.
    lines = [line.rpartition("\x1b[2K")[2] for line in (done.stdout or screen).splitlines()]
    found = [line.split()[0] for line in lines if "  added  " in line]
    assert sorted(each for each in found if each != "tenant") == ["acme"] * 3 + ["globex"]


class Reconciled(logging.Handler):
    """Waits until so many tenants were reconciled."""

    def __init__(self, count):
        super().__init__(logging.INFO)
        self.left = count
        self.done = threading.Event()

    def emit(self, record):
        if record.getMessage() == "tenantsync.reconciled":
            self.left -= 1
            if self.left == 0:
                self.done.set()


@pytest.mark.parametrize("inline", [True, False])
def test_an_application_reconciles_on_schedule_too(config, tenants, caplog, inline):
    """Whoever is due when it starts is done; not where workers of their own do it."""
    config.write_text(f"{config.read_text()}\n[worker]\ninline = {str(inline).lower()}\n")
    heard = Reconciled(len(tenants))
    logger = logging.getLogger("tenantsync")
    caplog.set_level(logging.INFO, "tenantsync")
    logger.addHandler(heard)
    try:
        with TenantSync.from_toml(config) as sync:
            upgrade_control(sync.control)
            books = Reconciliations(sync.control)
            books.enrol(tenants, every=3600.0)
            past = "strftime('%Y-%m-%d %H:%M:%f000', 'now', '-1 second')"
            with sync.control.write() as connection:
                connection.execute(text(f"UPDATE reconciliations SET due_at = {past}"))
            sync.start()
            names = {thread.name for thread in threading.enumerate()}

            assert any(name.startswith("tenantsync-reconcile") for name in names) is inline
            if inline:
                assert heard.done.wait(60)
        names = {thread.name for thread in threading.enumerate()}

        assert not any(name.startswith("tenantsync-reconcile") for name in names)
    finally:
        logger.removeHandler(heard)
    with ControlDatabase(f"sqlite:///{config.parent / 'tenantsync.db'}") as database:
        found = Reconciliations(database).list(tenants).values()
        claim = Reconciliations(database).claim("you")
    assert all((each.snapshot is not None) is inline for each in found)
    assert (claim is None) is inline  # their next turn is in the future
    assert len(statuses(config, "acme")) == (3 if inline else 0)
