"""The doctor: what it finds, how bad it says that is, and what it says to do."""

import json
import re
import shutil
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from guarding import body_of
from msgspec import structs
from sqlalchemy import update

from tenantsync.app import TenantSync
from tenantsync.cli import commands
from tenantsync.config import load
from tenantsync.control.catalog import Wish
from tenantsync.control.inbox import Arrival
from tenantsync.control.tables import inbox
from tenantsync.doctor import Finding, Level, Report, examine
from tenantsync.doctor.provider import Dated, ask_date, examine_provider
from tenantsync.migrate import upgrade
from tenantsync.migrate.control import upgrade_control
from tenantsync.tenancy.engines import make_engine
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.server import Response, Server

FILES = """
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
"""
SCHEMAS = """
[authvital]
host = "https://auth.example.com"
application_id = "an-application"
[isolation]
strategy = "schema"
url = "{url}"
[tenants.t0]
id = "id-of-t0"
[tenants.t1]
id = "id-of-t1"
[tenants.t2]
id = "id-of-t2"
"""


@pytest.fixture(scope="module")
def authvital() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, authvital: Emulator, migrated_templates: Callable[[int], str]) -> Path:
    """Give a folder with a configuration and two migrated SQLite tenants."""
    (tmp_path / "tenantsync.toml").write_text(FILES.format(host=authvital.url))
    (tmp_path / "tenants").mkdir()
    for key in ("acme", "globex"):
        shutil.copyfile(migrated_templates(0), tmp_path / "tenants" / f"{key}.db")
    return tmp_path


@pytest.fixture
def sync(folder: Path) -> Iterator[TenantSync]:
    with TenantSync(load(folder / "tenantsync.toml")) as made:
        yield made


@pytest.fixture
def run(folder: Path):
    """Give what calls `tenantsync doctor`."""

    def call(*arguments: str):
        config = ["-c", str(folder / "tenantsync.toml")]
        return CliRunner().invoke(commands, [*config, "doctor", *arguments])

    return call


@pytest.fixture
def schemas(tmp_path: Path, postgres) -> Iterator[TenantSync]:
    """Give three migrated tenants, each a schema of one database on PostgreSQL."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(SCHEMAS.format(url=postgres.create_database()))
    with TenantSync(load(file)) as made:
        upgrade(made.tenants, isolation=made.isolation).check()
        yield made


def well(_: TenantSync) -> list[Finding]:
    """Stand in for what is asked of AuthVital."""
    return []


def about(report: Report, subject: str) -> list[Finding]:
    """Return the findings of a subject, or of a tenant."""
    return [each for each in report.findings if subject in (each.subject, each.tenant)]


def worst(report: Report, subject: str) -> Level:
    """Return the worst level of a subject, or of a tenant."""
    levels = [finding.level for finding in about(report, subject)]
    return max(levels, key=[Level.OK, Level.WARNING, Level.ERROR].index)


def arrival(tenant_id: str, event_id: str = "e1", *, known: bool = True) -> Arrival:
    """Return an event that could not be applied."""
    return Arrival(
        tenant_id=tenant_id,
        event_id=event_id,
        type="member.joined",
        subject="ann",
        timestamp=1,
        body=body_of("member.joined", tenant=tenant_id, id=event_id),
        signed_at=None,
        door="webhook",
        reason="TenantUnavailable",
        known=known,
    )


def test_all_is_well(run, folder):
    """Every subject has its line, the exit code is 0, and nothing is made."""
    before = sorted(folder.rglob("*"))
    result = run("--json")

    document = json.loads(result.stdout)
    assert result.exit_code == 0, result.output
    assert document["ok"] is True
    assert document["counts"] == {"ok": 6, "warning": 0, "error": 0}
    subjects = [finding["subject"] for finding in document["findings"]]
    assert subjects == ["configuration", "keys", "clock", "control", "tenant", "tenant"]
    assert sorted(folder.rglob("*")) == before


def test_each_line_says_what_to_do(run, folder):
    """People get a line for each finding, with what to do below it, and the sums at the end."""
    (folder / "tenants" / "globex.db").unlink()

    result = run()

    lines = result.output.splitlines()
    assert result.exit_code == 1
    at = next(number for number, line in enumerate(lines) if "tenant globex" in line)
    assert lines[at].startswith("ERROR    tenant globex: tables missing: file ")
    assert lines[at + 1].startswith("         -> run `tenantsync migrate upgrade --tenant globex`")
    assert any(line.startswith("ok       tenant acme: reached, in its place") for line in lines)
    assert lines[-1] == "2 tenants looked at, 1 error, 0 warnings"


def test_one_tenant_is_chosen(run, folder):
    """`--tenant` takes keys and patterns; nobody of that name is asked wrongly."""
    (folder / "tenants" / "globex.db").unlink()

    assert run("--tenant", "acme").exit_code == 0
    assert run("--tenant", "glo*").exit_code == 1
    assert run("--tenant", "nobody").exit_code == 2
    assert 'no tenant has the key "nobody"' in run("--tenant", "nobody").output


def test_a_configuration_that_lacks_a_variable(tmp_path, authvital):
    """What needs the variable is an error or a warning, and the rest is looked at all the same."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(
        FILES.format(host=authvital.url)
        .replace("[isolation]", 'client_secret = "${NOT_SET_ANYWHERE}"\n[isolation]')
        .replace('id = "id-of-globex"', 'id = "id-of-globex"\nurl = "sqlite:///${NOR_THIS}.db"')
    )
    with TenantSync(load(file, {})) as sync:
        report = examine(sync)

    found = [(finding.level, finding.what) for finding in about(report, "configuration")]
    assert [level for level, what in found if "NOR_THIS" in what] == [Level.ERROR]
    assert [level for level, what in found if "NOT_SET_ANYWHERE" in what] == [Level.WARNING]
    assert worst(report, "keys") is Level.OK


def test_keys_out_of_reach_are_an_error(sync):
    """A provider that does not answer, or not with keys, is told once, with what to do."""
    with closing(Server(lambda _: Response(200, b'{"keys":[]}'))) as server:
        settings = structs.replace(sync.settings.authvital, host=server.url)
        (finding,) = examine_provider(settings)
    (gone,) = examine_provider(settings)

    assert (finding.subject, finding.level) == ("keys", Level.ERROR)
    assert "holds no usable key" in finding.what
    assert gone.level is Level.ERROR
    assert "could not be reached" in gone.what
    assert gone.remedy is not None


@pytest.mark.parametrize(
    ("ours", "level", "words"),
    [
        (0.0, Level.OK, "agrees"),
        (0.9, Level.OK, "agrees"),
        (14.0, Level.OK, "agrees"),
        (-14.0, Level.OK, "agrees"),
        (100.0, Level.WARNING, "99 s ahead of AuthVital's; max_age allows 300 s"),
        (302.0, Level.ERROR, "max_age allows 300 s: deliveries are refused"),
        (-20.0, Level.WARNING, "behind AuthVital's; max_skew allows 60 s"),
        (-62.0, Level.ERROR, "max_skew allows 60 s: deliveries are refused"),
    ],
)
def test_clocks_are_compared_with_what_signatures_allow(sync, authvital, ours, level, words):
    """Behind the provider's clock, signatures come from the future; ahead of it, they are old."""
    now = 1_793_000_400.0

    def ask(_: str) -> Dated:
        return Dated(now, now + ours, now + ours + 0.05)

    settings = structs.replace(sync.settings.authvital, host=authvital.url)
    clock = examine_provider(settings, ask=ask)[-1]

    assert (clock.subject, clock.level) == ("clock", level)
    assert words in clock.what


def test_the_date_of_a_real_answer_is_read(authvital):
    """The header is found, and this machine's clock agrees with itself; nobody there is None."""
    dated = ask_date(f"{authvital.url}/.well-known/jwks.json")

    assert dated is not None
    assert dated.offset == 0.0
    assert ask_date("http://127.0.0.1:1/") is None
    assert ask_date("http://[") is None


def test_an_answer_without_a_date_is_a_warning(sync, authvital):
    """Without one, nothing can be said of the clock."""
    settings = structs.replace(sync.settings.authvital, host=authvital.url)

    for answer in (None, Dated(None, 1.0, 2.0)):
        clock = examine_provider(settings, ask=lambda _, answer=answer: answer)[-1]
        assert (clock.subject, clock.level) == ("clock", Level.WARNING)


def test_keys_over_plain_http_are_a_warning(sync, authvital):
    """Whoever is on the way could put keys of their own in place; not on this machine."""
    document = json.dumps(authvital.jwks()).encode()
    far = structs.replace(sync.settings.authvital, host="http://auth.example.com")

    found = examine_provider(far, fetch=lambda _: document, ask=lambda _: None)

    assert [finding.level for finding in found] == [Level.OK, Level.WARNING, Level.WARNING]
    assert "unencrypted" in found[1].what


def test_a_control_database_that_is_down(folder, authvital):
    """That is one error; the tenants of the file are looked at all the same."""
    file = folder / "tenantsync.toml"
    down = '[control]\nurl = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"\n'
    file.write_text(file.read_text() + down)

    with TenantSync(load(file)) as sync:
        report = examine(sync, provider=well)

    (control,) = about(report, "control")
    assert control.level is Level.ERROR
    assert "cannot be used now" in control.what
    assert worst(report, "acme") is Level.OK
    assert worst(report, "globex") is Level.OK


def test_a_control_database_at_an_old_revision(sync):
    """It is a warning that names both revisions."""
    upgrade_control(sync.control)
    with sqlite3.connect(sync.control.placement.url.database) as connection:
        connection.execute("UPDATE tenantsync_control_version SET version_num = 'control_0001'")
    connection.close()

    (control,) = about(examine(sync, provider=well), "control")

    assert control.level is Level.WARNING
    assert "is at control_0001, and the newest revision is control_0" in control.what


def test_a_control_database_that_others_may_open(sync):
    """It may hold passwords: its owner alone is to open it."""
    upgrade_control(sync.control)
    file = Path(sync.control.placement.url.database)
    assert worst(examine(sync, provider=well), "control") is Level.OK
    file.chmod(0o640)

    finding = about(examine(sync, provider=well), "control")[-1]

    assert finding.level is Level.WARNING
    assert finding.remedy == f"chmod 600 {file}"


def test_files_that_everybody_may_read(authvital, migrated_templates):
    """Only where each folder above lets everybody through; one finding for all tenants."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tenants").mkdir()
        (folder / "tenantsync.toml").write_text(FILES.format(host=authvital.url))
        for key in ("acme", "globex"):
            shutil.copyfile(migrated_templates(0), folder / "tenants" / f"{key}.db")
            (folder / "tenants" / f"{key}.db").chmod(0o644)
        with TenantSync(load(folder / "tenantsync.toml")) as sync:
            closed = examine(sync, provider=well)
            folder.chmod(0o755)
            opened = examine(sync, provider=well)

    assert about(closed, "files") == []
    (finding,) = about(opened, "files")
    assert finding.level is Level.WARNING
    assert "2 tenants' files" in finding.what
    assert opened.ok


def test_tables_behind_and_tables_missing(schemas):
    """What is behind still works, and is a warning; what is missing is an error."""
    with server_connection(schemas) as connection:
        connection.execute("DELETE FROM tenant_t0.tenantsync_version")
        connection.execute("DROP SCHEMA tenant_t1 CASCADE")

    report = examine(schemas, provider=well)

    assert worst(report, "t0") is Level.ERROR
    assert "never migrated" in about(report, "t0")[0].what
    (missing,) = about(report, "t1")
    assert "schema 'tenant_t1' does not exist" in missing.what
    assert missing.remedy.startswith("run `tenantsync migrate upgrade --tenant t1`")
    assert worst(report, "t2") is Level.OK


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("LOCK TABLE tenant_t1.av_identities IN ACCESS EXCLUSIVE MODE", "locked by somebody else"),
        ("LOCK TABLE tenant_t1.av_sync_events IN SHARE MODE", "locked by somebody else"),
    ],
)
def test_a_forgotten_transaction_that_locks_a_table(schemas, statement, words):
    """It is found within seconds, named at its tenant, and no other tenant is held up by it."""
    with server_connection(schemas) as connection, connection.transaction():
        connection.execute(statement)
        report = examine(schemas, provider=well)

    assert any(words in finding.what for finding in about(report, "t1"))
    assert worst(report, "t1") is Level.ERROR
    assert (worst(report, "t0"), worst(report, "t2")) == (Level.OK, Level.OK)


def test_a_database_that_is_read_only(schemas):
    """It is an error, whatever its revision says."""
    with server_connection(schemas) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')

    report = examine(schemas, provider=well)

    assert all(worst(report, key) is Level.ERROR for key in ("t0", "t1", "t2"))
    assert about(report, "t0")[0].what == "its database is read-only"


def test_a_login_that_may_not_write(schemas):
    """Rights that are missing are told with what to grant."""
    with server_connection(schemas) as connection:
        connection.execute("DROP ROLE IF EXISTS doctors_guest")
        connection.execute("CREATE ROLE doctors_guest LOGIN")
        connection.execute("GRANT USAGE ON SCHEMA tenant_t1 TO doctors_guest")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA tenant_t1 TO doctors_guest")
    file = schemas.settings.path
    text = file.read_text()
    file.write_text(text.replace("[tenants.t1]\n", '[tenants.t1]\nrole = "doctors_guest"\n'))
    try:
        with TenantSync(load(file)) as sync:
            report = examine(sync, provider=well)
    finally:
        with server_connection(schemas) as connection:
            connection.execute("DROP OWNED BY doctors_guest")
            connection.execute("DROP ROLE doctors_guest")

    assert any("may not be written" in finding.what for finding in about(report, "t1"))
    assert (worst(report, "t0"), worst(report, "t2")) == (Level.OK, Level.OK)


def test_a_transaction_in_another_place_is_found(schemas):
    """A place that is not what it should be is told as such; the others are well."""

    class Misled(type(schemas.isolation)):
        def bind(self, cursor, placement):
            astray = placement.schema == "tenant_t1"
            super().bind(cursor, replace(placement, schema="tenant_t0") if astray else placement)

    misled = Misled(schemas.settings.isolation.url)
    with TenantSync(schemas.settings, isolation=misled) as sync:
        report = examine(sync, provider=well)

    (finding,) = [each for each in about(report, "t1") if each.level is Level.ERROR]
    assert "is in schema 'tenant_t0' and not in 'tenant_t1'" in finding.what
    assert (worst(report, "t0"), worst(report, "t2")) == (Level.OK, Level.OK)


def test_a_file_that_somebody_has_locked(sync, folder):
    """A writer that does not end is found at its tenant."""
    with closing(sqlite3.connect(folder / "tenants" / "acme.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        report = examine(sync, provider=well)

    assert any("its file is locked" in finding.what for finding in about(report, "acme"))
    assert worst(report, "globex") is Level.OK


@contextmanager
def black_hole() -> Iterator[int]:
    """Give the port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_server_that_accepts_and_says_nothing(tmp_path, authvital, migrated_templates):
    """It is asked once and not for each of its tenants; the tenant elsewhere is well."""
    shutil.copyfile(migrated_templates(0), tmp_path / "here.db")
    tried = []
    with black_hole() as port:
        hole = "".join(
            f'[tenants.h{n}]\nid = "h{n}"\nurl = "postgresql+psycopg://app@127.0.0.1:{port}/h{n}"\n'
            for n in range(6)
        )
        file = tmp_path / "tenantsync.toml"
        text = FILES.format(host=authvital.url).partition("[tenants.acme]")[0]
        here = f'[tenants.here]\nid = "here"\nurl = "sqlite:///{tmp_path}/here.db"\n'
        file.write_text(text + hole + here)

        def factory(url, *, pool_size):
            tried.append(url.database)
            return make_engine(url, pool_size=pool_size, connect_timeout=2)

        with TenantSync(load(file), engine_factory=factory) as sync:
            report = examine(sync, provider=well, jobs=1)

    for n in range(6):
        (finding,) = about(report, f"h{n}")
        assert finding.level is Level.ERROR
        assert "its database cannot be reached: ConnectionTimeout" in finding.what
    assert worst(report, "here") is Level.OK
    assert [name for name in tried if name.startswith("h")] == ["h0"]


def test_a_connection_that_falls_silent(schemas):
    """A statement that is never answered is given up on, and its thread ends."""

    class Silent(type(schemas.isolation)):
        def locate(self, cursor, placement):
            if placement.schema == "tenant_t1":
                # No answer comes, and our own timeouts are not set on this server.
                cursor.execute("SELECT set_config('statement_timeout', '0', true)")
                cursor.execute("SELECT pg_sleep(600)")
            super().locate(cursor, placement)

    before = threading.active_count()
    with TenantSync(schemas.settings, isolation=Silent(schemas.settings.isolation.url)) as sync:
        report = examine(sync, provider=well, patience=1.0)

    assert worst(report, "t0") is Level.OK
    for key in ("t1", "t2"):
        (finding,) = about(report, key)
        assert "it says nothing for 1 s" in finding.what
    for thread in threading.enumerate():
        if thread.name == "tenantsync-doctor-visit":
            thread.join(10)
    assert threading.active_count() <= before


def test_lanes_are_told_by_what_they_need(sync):
    """What waits with an error is a warning, with the error; strangers are told together."""
    upgrade_control(sync.control)
    sync.inbox.park([arrival("id-of-acme"), arrival("id-of-acme", "e2")])
    sync.inbox.park([arrival("who-is-this", known=False)])
    fresh = examine(sync, provider=well)
    lane = sync.inbox.claim("somebody", tenant_id="id-of-acme")
    sync.inbox.release(lane, retry_in=600.0, error="its tables are locked")
    failing = examine(sync, provider=well)

    assert worst(fresh, "acme") is Level.OK
    assert any("2 events are in the inbox" in each.what for each in about(fresh, "acme"))
    assert worst(failing, "acme") is Level.WARNING
    told = next(each for each in about(failing, "acme") if each.level is Level.WARNING)
    assert "it says: its tables are locked" in told.what
    assert "inbox retry --tenant acme" in told.remedy
    (stranger,) = about(failing, "inbox")
    assert "1 event is in the inbox of tenants that nobody registered: 'who-is-this'" in (
        stranger.what
    )
    assert failing.ok


def test_an_event_that_waits_for_days_is_an_error(sync):
    """Late is a warning, very late an error: it will be given up on."""
    upgrade_control(sync.control)
    sync.inbox.park([arrival("id-of-acme")])

    levels = []
    for hours in (1, 30):
        make_older(sync, hours)
        levels.append(worst(examine(sync, provider=well), "acme"))

    assert levels == [Level.WARNING, Level.ERROR]


def test_quarantine_is_told_at_its_tenant(sync):
    """So is what could not be read, for all."""
    upgrade_control(sync.control)
    sync.inbox.quarantine([arrival("id-of-globex"), arrival("", "x", known=False)])

    report = examine(sync, provider=well)

    told = next(each for each in about(report, "globex") if each.level is Level.WARNING)
    assert "1 event is in quarantine" in told.what
    (unreadable,) = about(report, "inbox")
    assert "could not be read" in unreadable.what
    assert report.ok


def test_a_suspended_tenant_is_a_warning(sync):
    """Its events are meant to wait: how long they do is no trouble."""
    upgrade_control(sync.control)
    sync.directory.catalog.suspend("acme")
    sync.inbox.park([arrival("id-of-acme")])
    make_older(sync, 90)

    report = examine(sync, provider=well)

    (warning,) = [each for each in about(report, "acme") if each.level is not Level.OK]
    assert warning.level is Level.WARNING
    assert "an operator suspended it" in warning.what
    assert "tenants resume acme" in warning.remedy


def test_a_tenant_that_was_not_finished(sync):
    """Whoever was interrupted left a note, and the doctor reads it out."""
    upgrade_control(sync.control)
    sync.directory.catalog.reserve(Wish(key="initech", id="id-of-initech"))

    (finding,) = about(examine(sync, provider=well), "initech")

    assert finding.level is Level.WARNING
    assert "tenants add" in finding.remedy


def test_progress_and_parallel_visits(schemas):
    """A program is told after each tenant how many are done, and never twice at a time."""
    told = []

    examine(schemas, provider=well, jobs=3, on_progress=lambda *numbers: told.append(numbers))

    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_program_of_the_documentation(capsys):
    """What docs/how-to/doctor.md shows does what it says: two things are missing there."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "doctor.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)

    exec(compile(program, "doctor.md", "exec"), {})  # noqa: S102

    told = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in told] == ["keys", "acme"]


def server_connection(sync: TenantSync) -> "psycopg.Connection[tuple[object, ...]]":
    """Return a connection to the tenants' database, in autocommit."""
    url = sync.settings.isolation.url.replace("postgresql+psycopg", "postgresql")
    return psycopg.connect(url, autocommit=True)


def make_older(sync: TenantSync, hours: float) -> None:
    """Let what is in the inbox have come so many hours ago."""
    moment = datetime.now(UTC) - timedelta(hours=hours)
    with sync.control.write() as connection:
        connection.execute(update(inbox).values(received_at=moment))
