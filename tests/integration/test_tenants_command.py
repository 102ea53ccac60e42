"""The command line of tenants: what it prints, and how it exits."""

import json
import sqlite3

import pytest
from click.testing import CliRunner

from tenantsync.app import TenantSync
from tenantsync.cli import commands
from tenantsync.config import load
from tenantsync.control.inbox import Arrival
from tenantsync.migrate import migration_places
from tenantsync.tenants import Tenant

CONFIG = """
[authvital]
host = "https://auth.example.com"
application_id = "an-application"
[isolation]
strategy = "database"
url = "sqlite:///tenants/{key}.db"
[tenants.acme]
id = "id-of-acme"
"""


@pytest.fixture
def config(tmp_path):
    """Give a configuration file with one tenant that was never migrated."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def run(config):
    """Give what calls `tenantsync tenants`."""

    def call(*arguments, typed=None):
        return CliRunner().invoke(commands, ["-c", str(config), "tenants", *arguments], input=typed)

    return call


def listed(run):
    document = json.loads(run("list", "--json").stdout)
    return {line["key"]: (line["source"], line["state"]) for line in document}


def test_list_needs_no_control_database(run, config):
    """Looking makes nothing."""
    result = run("list")

    assert result.exit_code == 0
    assert result.output.splitlines()[0].split()[:4] == ["acme", "active", "file", "id-of-acme"]
    assert result.output.splitlines()[1] == "1 tenant"
    assert [file.name for file in config.parent.iterdir()] == [config.name]


def test_add_makes_the_place_and_the_line(run, config):
    """A tenant is added with its file at head; a second time says so, and all is well."""
    first = run("add", "globex", "--id", "id-of-globex")
    second = run("add", "globex", "--id", "id-of-globex")

    assert (first.exit_code, second.exit_code) == (0, 0), first.output
    assert first.output.startswith("globex added in ")
    assert second.output.startswith("globex was added before: ")
    assert listed(run) == {"acme": ("file", "active"), "globex": ("control", "active")}
    with sqlite3.connect(config.parent / "tenants" / "globex.db") as connection:
        assert connection.execute("SELECT count(*) FROM av_identities").fetchone() == (0,)
    connection.close()


def test_a_place_of_ones_own_is_relative_to_the_configuration(run, config):
    """`--url` means what it would mean in the file."""
    result = run("add", "globex", "--id", "id-of-globex", "--url", "sqlite:///own/{key}.db")

    assert result.exit_code == 0, result.output
    assert (config.parent / "own" / "globex.db").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("acme", "--id", "new"), "has a tenant 'acme' already: edit the file"),
        (("globex", "--id", "id-of-acme"), "has the id of 'globex' already"),
        (
            ("globex", "--id", "new", "--url", "sqlite:///tenants/acme.db"),
            "belongs to tenant 'acme' of the file",
        ),
        (("globex", "--id", "new", "--url", "sqlite:///tenantsync.db"), "is the control database"),
        (("globex", "--id", "new", "--url", "mysql://db"), "--url"),
        (("globex", "--id", "new", "--url", "sqlite://"), "--url"),
        (("globex", "--id", "new", "--schema", "mine"), "SQLite has no schemas"),
        (("No", "--id", "new"), "tenant key 'No' is not allowed"),
    ],
)
def test_what_cannot_be_added_is_asked_wrongly(run, config, arguments, words):
    """The exit code is 2, the sentence says why, and nothing is made."""
    result = run("add", *arguments)

    said = result.output + str(result.exception)
    assert words in said
    assert result.exit_code == 2 or type(result.exception).__name__ == "ConfigError"
    assert [file.name for file in config.parent.iterdir()] == [config.name]


def test_show_tells_how_the_tables_stand(run):
    """The exit code says whether the tenant can be served."""
    before = run("show", "acme", "--json")
    run("add", "globex", "--id", "id-of-globex")
    after = run("show", "globex", "--json")
    text = run("show", "globex")

    assert (before.exit_code, after.exit_code, text.exit_code) == (1, 0, 0)
    assert json.loads(before.stdout)["tables"] == "missing"
    document = json.loads(after.stdout)
    assert document | {"place": "", "since": ""} == {
        "key": "globex",
        "id": "id-of-globex",
        "name": None,
        "state": "active",
        "source": "control",
        "place": "",
        "role": None,
        "since": "",
        "trouble": None,
        "tables": "ok",
        "revision": document["revision"],
        "error": None,
    }
    assert "state     active\n" in text.output


def test_an_unknown_tenant_is_asked_wrongly(run):
    """Every command that takes a key says that there is none."""
    for command in ("show", "suspend", "resume", "remove"):
        result = run(command, "nobody")
        assert "there is no tenant 'nobody'" in str(result.exception)


def test_suspend_and_resume_work_for_both_kinds(run):
    """Of the file and of the control database; twice is no error."""
    run("add", "globex", "--id", "id-of-globex")

    said = [run(*words).output for words in (("suspend", "acme"), ("suspend", "acme"))]
    run("suspend", "globex")
    assert said == ["acme is suspended\n", "acme was suspended already\n"]
    assert listed(run) == {"acme": ("file", "suspended"), "globex": ("control", "suspended")}

    said = [run(*words).output for words in (("resume", "acme"), ("resume", "acme"))]
    assert said == ["acme is resumed\n", "acme was not suspended\n"]
    assert listed(run)["acme"] == ("file", "active")


def test_names_are_those_of_the_provider(run, config):
    """They are shown where the provider told one, and nothing in them moves the terminal."""
    run("add", "globex", "--id", "id-of-globex")
    with TenantSync(load(config)) as sync:
        sync.profiles.learn("id-of-globex", f"{1:013d}e", name="Globex \x1b[2J[bold]Inc.")
        sync.profiles.learn("id-of-nobody", f"{1:013d}e", name="Nobody")

    table, shown = run("list"), run("show", "globex")
    documents = json.loads(run("list", "--json").stdout)

    assert "Globex \N{REPLACEMENT CHARACTER}[2J[bold]Inc." in table.output
    assert "Globex \N{REPLACEMENT CHARACTER}[2J[bold]Inc." in shown.output
    assert "Nobody" not in table.output
    assert {each["key"]: each["name"] for each in documents} == {
        "acme": None,
        "globex": "Globex \x1b[2J[bold]Inc.",
    }


def waiting(tenant_id, *, known):
    """Return an event that came before its tenant could have it."""
    return Arrival(
        tenant_id=tenant_id,
        event_id="e1",
        type="member.joined",
        subject="ann",
        timestamp=1,
        body=b"{}",
        signed_at=None,
        door="webhook",
        reason="unknown_tenant",
        known=known,
    )


def test_adding_a_tenant_wakes_what_waits_for_it(run, config):
    """Its lane slept because nobody knew the tenant; now it is due."""
    run("suspend", "acme")  # which makes the control database
    with TenantSync(load(config)) as sync:
        sync.inbox.park([waiting("id-of-globex", known=False)])
        assert sync.inbox.claim("nobody yet") is None

        result = run("add", "globex", "--id", "id-of-globex")

        assert result.exit_code == 0, result.output
        assert sync.inbox.claim("a worker").tenant_id == "id-of-globex"


def test_resuming_a_tenant_wakes_what_waits_for_it(run, config):
    """A worker may have put the lane off for long; now it is due."""
    run("suspend", "acme")
    with TenantSync(load(config)) as sync:
        sync.inbox.park([waiting("id-of-acme", known=True)])
        lane = sync.inbox.claim("a worker")
        sync.inbox.release(lane, retry_in=900.0, error="it is suspended")
        assert sync.inbox.claim("a worker") is None

        result = run("resume", "acme")

        assert result.output == "acme is resumed\n"
        assert sync.inbox.claim("a worker").tenant_id == "id-of-acme"


def test_migrating_a_tenant_wakes_what_waits_for_it(run, config):
    """Only tenants that were upgraded: the lanes of the others are as they were."""
    run("add", "globex", "--id", "id-of-globex")
    with TenantSync(load(config)) as sync:
        sync.inbox.park([waiting("id-of-acme", known=True), waiting("id-of-globex", known=True)])
        for _ in range(2):
            lane = sync.inbox.claim("a worker")
            sync.inbox.release(lane, retry_in=900.0, error="its tables are missing")

        result = CliRunner().invoke(commands, ["-c", str(config), "migrate", "upgrade"])

        assert result.exit_code == 0, result.output
        assert sync.inbox.claim("a worker").tenant_id == "id-of-acme"
        assert sync.inbox.claim("a worker") is None


def test_remove_keeps_the_data(run, config):
    """The tenant is out of service, its file stays, and adding it again finds it."""
    run("add", "globex", "--id", "id-of-globex")
    first, second = run("remove", "globex"), run("remove", "globex")

    assert first.output == "globex is removed; its data is kept\n"
    assert second.output == "globex was removed before; its data is kept\n"
    assert listed(run)["globex"] == ("control", "removed")
    assert (config.parent / "tenants" / "globex.db").is_file()
    again = run("add", "globex", "--id", "id-of-globex")
    assert again.output.startswith("globex finished in ")


def test_dropping_asks_for_the_key(run, config):
    """Something else typed does nothing; the key, or `--yes`, drops."""
    file = config.parent / "tenants" / "globex.db"
    run("add", "globex", "--id", "id-of-globex")

    wrong = run("remove", "globex", "--drop", typed="yes\n")
    assert (wrong.exit_code, file.is_file()) == (2, True)
    assert "that is not the key; nothing was done" in wrong.output
    right = run("remove", "globex", "--drop", typed="globex\n")
    assert (right.exit_code, file.is_file()) == (0, False)
    assert right.output.endswith("globex is removed, and file globex.db is dropped\n")
    assert listed(run) == {"acme": ("file", "active")}

    run("add", "globex", "--id", "id-of-globex")
    assert run("remove", "globex", "--drop", "--yes").exit_code == 0
    assert not file.exists()


def test_what_was_there_before_is_not_dropped(run, config):
    """A file that `add` found may hold more than the tenant."""
    other = config.parent / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE precious (id)")
    connection.close()
    run("add", "globex", "--id", "id-of-globex", "--url", f"sqlite:///{other}")

    result = run("remove", "globex", "--drop", "--yes")

    assert result.exit_code == 0
    assert result.output == (
        "globex is removed, and forgotten; its place stays: it was there before the tenant was "
        "added, and may hold more\n"
    )
    assert other.is_file()
    assert listed(run) == {"acme": ("file", "active")}


def test_a_tenant_of_the_file_is_removed_in_the_file(run):
    """Neither way of removing touches it."""
    for options in ((), ("--drop",), ("--drop", "--yes")):
        result = run("remove", "acme", *options)
        assert "tenant 'acme' stands in the configuration file" in str(result.exception)


def test_an_added_tenant_is_migrated_with_the_others(run, config):
    """Migrations go through the one list."""
    run("add", "globex", "--id", "id-of-globex")

    result = CliRunner().invoke(commands, ["-c", str(config), "migrate", "upgrade", "--json"])

    rows = json.loads(result.stdout)["tenants"]
    assert {row["tenant"]: row["state"] for row in rows} == {"acme": "upgraded", "globex": "ok"}


def test_a_list_with_trouble_in_it_exits_with_1(run, config):
    """A tenant that the file is in the way of is shown, and says what to do."""
    run("add", "globex", "--id", "id-of-globex")
    config.write_text(CONFIG + '[tenants.globex]\nid = "another"\n')

    result = run("list")

    assert result.exit_code == 1
    assert "the configuration file has a tenant 'globex' already: edit the file" in result.output


def test_a_control_database_that_is_down_is_no_mistake_of_the_caller(run, config):
    """The exit code is 1: asked rightly, and it did not work."""
    config.write_text(
        CONFIG + '[control]\nurl = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"\n'
    )
    for words in (("list",), ("show", "acme"), ("add", "new", "--id", "new"), ("suspend", "acme")):
        result = run(*words)
        assert result.exit_code == 1
        assert "the control database" in result.output


def test_a_url_of_ones_own_is_migrated_with_its_own_login(tmp_path):
    """`migration_url` stands in for the common URL, not for the one that `--url` gave."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(
        CONFIG.partition("[isolation]")[0] + '[isolation]\nstrategy = "schema"\n'
        'url = "postgresql+psycopg://app@pooler/main"\n'
        'migration_url = "postgresql+psycopg://ddl@direct/main"\n'
    )
    sync = TenantSync(load(file))
    place = migration_places(sync.settings)
    url = "postgresql+psycopg://app@elsewhere/own"
    common = Tenant("1", "a", sync.isolation.place("a"))
    own = Tenant("2", "b", sync.isolation.place("b", url=url))

    assert str(place(common)) == "postgresql+psycopg://ddl@direct/main schema tenant_a"
    assert place(own) == own.placement
