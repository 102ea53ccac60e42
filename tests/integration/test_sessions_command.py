"""`tenantsync sessions cleanup`: what it prints, and how it exits."""

import json
import shutil
import sqlite3
import threading
from contextlib import closing

import pytest
from click.testing import CliRunner

from tenantsync.app import TenantSync
from tenantsync.cli import commands
from tenantsync.config import load
from tenantsync.migrate.control import upgrade_control

CONFIG = """
[authvital]
host = "https://auth.example.com"
application_id = "an-application"
[isolation]
strategy = "database"
url = "sqlite:///tenants/{key}.db"
[tenants.acme]
id = "id-of-acme"
[tenants.globex]
id = "id-of-globex"
"""
SINGLE = """
[authvital]
host = "https://auth.example.com"
application_id = "an-application"
[isolation]
strategy = "single"
url = "sqlite:///tenants/acme.db"
"""
# Name -> days since it expired, and since it was revoked.
SESSIONS = {
    "open": (-5, None),
    "expired": (40, None),
    "expired lately": (10, None),
    "revoked": (-5, 40),
    "revoked lately": (-5, 10),
}
SUMS = {"removed": 4, "expired": 2, "revoked": 2, "failed": 0}


@pytest.fixture
def config(tmp_path, migrated_templates):
    """Give a configuration with two tenants, each with sessions of all kinds."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(CONFIG)
    (tmp_path / "tenants").mkdir()
    for key in ("acme", "globex"):
        path = tmp_path / "tenants" / f"{key}.db"
        shutil.copyfile(migrated_templates(0), path)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("INSERT INTO av_identities (id) VALUES ('ann')")
            for name, (expired, revoked) in SESSIONS.items():
                connection.execute(
                    "INSERT INTO av_identity_sessions (id, identity_id, expires_at, revoked_at)"
                    " VALUES (?, 'ann', strftime('%Y-%m-%d %H:%M:%f000', 'now', ?),"
                    " strftime('%Y-%m-%d %H:%M:%f000', 'now', ?))",
                    (name, f"{-expired} days", None if revoked is None else f"{-revoked} days"),
                )
    return file


@pytest.fixture
def run(config):
    """Give what calls `tenantsync sessions cleanup`."""

    def call(*arguments):
        return CliRunner().invoke(commands, ["-c", str(config), "sessions", "cleanup", *arguments])

    return call


def left(config, key="acme"):
    with closing(sqlite3.connect(config.parent / "tenants" / f"{key}.db")) as connection:
        return {name for (name,) in connection.execute("SELECT id FROM av_identity_sessions")}


def test_what_ended_more_than_thirty_days_ago_goes(run, config):
    """At every tenant; a second time there is nothing to do."""
    first, second = run(), run()

    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert first.output.splitlines() == [
        "acme    1 expired, 1 revoked",
        "globex  1 expired, 1 revoked",
        "2 tenants: 4 sessions removed",
    ]
    assert second.output.splitlines()[-1] == "2 tenants: 0 sessions removed"
    for key in ("acme", "globex"):
        assert left(config, key) == {"open", "expired lately", "revoked lately"}


def test_a_dry_run_counts_and_removes_nothing(run, config):
    """And says so."""
    result = run("--dry-run")

    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "2 tenants: 4 sessions would be removed"
    assert left(config) == SESSIONS.keys()


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (("--expired-only",), {"expired"}),
        (("--older-than", "5d"), SESSIONS.keys() - {"open"}),
        (("--older-than", "0s"), SESSIONS.keys() - {"open"}),
        (("--older-than", "5d", "--expired-only"), {"expired", "expired lately"}),
        (("--older-than", "1000h"), set()),
    ],
)
def test_the_options_say_what_goes(run, config, options, gone):
    """Both rules that the provider documents can be had."""
    assert run(*options).exit_code == 0
    assert left(config) == SESSIONS.keys() - gone


def test_tenants_are_chosen(run, config):
    """By key or pattern; one alone is told in the singular."""
    result = run("--tenant", "acm*")

    assert result.output.splitlines()[-1] == "1 tenant: 2 sessions removed"
    assert left(config, "globex") == SESSIONS.keys()


def test_json_has_all_that_a_program_wants(run):
    """One document, also with the rule that was followed."""
    document = json.loads(run("--json", "--dry-run").stdout)

    assert document == {
        "ok": True,
        "dry_run": True,
        "older_than": 30 * 86_400.0,
        "expired_only": False,
        **SUMS,
        "tenants": [
            {
                "tenant": key,
                "also": [],
                "expired": 1,
                "revoked": 1,
                "suspended": False,
                "error": None,
            }
            for key in ("acme", "globex")
        ],
    }


def test_a_tenant_that_fails_is_said_and_the_others_are_done(run, config):
    """It exits with 1."""
    (config.parent / "tenants" / "acme.db").unlink()

    result, document = run(), json.loads(run("--json").stdout)

    assert result.exit_code == 1
    assert result.output.splitlines()[0].startswith("acme    0 expired, 0 revoked, then FAILED: ")
    assert "migrate upgrade" in result.output.splitlines()[0]
    assert result.output.splitlines()[-1] == "2 tenants: 2 sessions removed, 1 failed"
    assert left(config, "globex") == {"open", "expired lately", "revoked lately"}
    assert (document["ok"], document["failed"]) == (False, 1)


def test_a_suspended_tenant_is_left_alone(run, config):
    """Nothing is written there until it is resumed, and that is no failure."""
    with TenantSync(load(config)) as sync:
        upgrade_control(sync.control)
        sync.directory.catalog.suspend("acme")

    result = run()

    assert result.exit_code == 0
    assert result.output.splitlines()[0] == "acme    suspended, left alone"
    assert left(config) == SESSIONS.keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tenant", "acne"), 'did you mean "acme"?'),
        (("--older-than", "30"), "is no length of time"),
        (("--older-than", "soon"), "is no length of time"),
        (("--older-than", "-1d"), "is no length of time"),
        (("--jobs", "0"), "not in the range"),
    ],
)
def test_what_is_asked_wrongly(run, config, arguments, words):
    """It exits with 2 and removes nothing."""
    result = run(*arguments)

    assert (result.exit_code, words in result.output) == (2, True)
    assert left(config) == SESSIONS.keys()


def test_a_place_that_takes_any_tenant(run, config):
    """There is no list then, and one place."""
    config.write_text(SINGLE + "accept_any_tenant = true\n")
    assert run().output.splitlines() == [
        "any  1 expired, 1 revoked",
        "1 tenant: 2 sessions removed",
    ]


def test_tenants_that_share_a_place_are_one_line(run, config):
    """Their sessions are counted once."""
    tenants = "".join(f'[tenants.t{n}]\nid = "id{n}"\n' for n in range(4))
    config.write_text(SINGLE + tenants)

    assert run().output.splitlines() == [
        "t0, t1, t2, ...  1 expired, 1 revoked",
        "1 place of 4 tenants: 2 sessions removed",
    ]


def test_many_tenants_are_summed_up(run, config, migrated_templates):
    """Of a large fleet only those that failed are shown one by one."""
    keys = [f"t{n:02d}" for n in range(60)]
    tenants = "".join(f'[tenants.{key}]\nid = "id-{key}"\n' for key in keys)
    config.write_text(CONFIG + tenants)
    for key in keys[1:]:
        shutil.copyfile(migrated_templates(0), config.parent / "tenants" / f"{key}.db")

    result = run("--jobs", "2")

    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert (lines[0].split()[0], lines[1:]) == (
        "t00",
        ["62 tenants: 4 sessions removed, 1 failed"],
    )


def test_a_terminal_is_shown_how_far_it_is(config):
    """On the standard error, so that what is printed can be piped on."""
    result = CliRunner(env={"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "100"}).invoke(
        commands, ["-c", str(config), "sessions", "cleanup", "--json"]
    )

    assert "cleaning up" in result.stderr
    assert json.loads(result.stdout)["removed"] == 4


def test_a_control_database_that_is_away_is_a_failure(run, config):
    """Nobody knows then who the tenants are: nothing is removed, and it exits with 1."""
    config.write_text(
        CONFIG + '[control]\nurl = "postgresql+psycopg://nobody:hunter2@127.0.0.1:1/nothing"\n'
    )

    result = run()

    assert (result.exit_code, "hunter2" in result.output) == (1, False)
    assert left(config) == SESSIONS.keys()


class Hurried(threading.Event):
    """What a worker's threads wait for; but its chore's first pause is over at once.

    That is of random length, within the hour. The second one, of a day, tells that a round is over.
    """

    def __init__(self):
        super().__init__()
        self._begun = threading.Event()
        self.one_round = threading.Event()

    def wait(self, timeout=None):
        waiting = threading.current_thread().name
        if waiting.startswith("tenantsync-cleanup"):  # from one place to the next
            return self.is_set()
        if waiting.startswith("tenantsync-chore"):
            if not self._begun.is_set():
                self._begun.set()
                return self.is_set()
            self.one_round.set()
        return super().wait(timeout)


def test_a_worker_cleans_by_itself(config):
    """Whatever `TenantSync.worker` returns does what the command does, and nobody has to ask."""
    with TenantSync(load(config)) as sync:
        upgrade_control(sync.control)
        worker = sync.worker(threads=1)
        worker._stopping = hurried = Hurried()
        worker.start()
        try:
            assert hurried.one_round.wait(30)
        finally:
            assert worker.stop()

    assert left(config) == left(config, "globex") == {"open", "expired lately", "revoked lately"}
