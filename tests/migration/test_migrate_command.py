"""The command line of migrations: what it prints, and how it exits."""

import json

import pytest
from click.testing import CliRunner

from tenantsync.cli import commands
from tenantsync.config import load
from tenantsync.migrate import migration_places
from tenantsync.tenancy.isolation import SchemaIsolation
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
[tenants.globex]
id = "id-of-globex"
"""


@pytest.fixture
def config(tmp_path):
    """Give a configuration file with two tenants that were never migrated."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(CONFIG)
    return file


def run(config, *arguments):
    return CliRunner().invoke(commands, ["-c", str(config), "migrate", *arguments])


def test_upgrade_makes_every_tenant(config):
    """A fresh configuration is brought to head; a row for each tenant, and a line for all."""
    result = run(config, "upgrade")

    assert result.exit_code == 0
    lines = [" ".join(line.split()[:5]) for line in result.output.splitlines()]
    assert lines[0].startswith("acme upgraded - -> tenantsync_0001")
    assert lines[1].startswith("globex upgraded - -> tenantsync_0001")
    assert lines[2] == "2 tenants: 2 upgraded"
    assert (config.parent / "tenants/globex.db").is_file()


def test_one_tenant_can_be_chosen(config):
    """With `--tenant` the others are left alone."""
    result = run(config, "upgrade", "--tenant", "globex", "--tenant", "globex")

    assert result.exit_code == 0
    assert not (config.parent / "tenants/acme.db").exists()
    assert result.output.splitlines()[-1] == "1 tenant: 1 upgraded"


def test_status_fails_until_all_are_migrated(config):
    """The exit code says whether every tenant is at head."""
    run(config, "upgrade", "--tenant", "acme")

    before = run(config, "status")
    run(config, "upgrade")
    after = run(config, "status")

    assert (before.exit_code, after.exit_code) == (1, 0)
    assert before.output.splitlines()[-1] == "2 tenants: 1 ok, 1 missing"
    assert "MISSING" in before.output
    assert "run `tenantsync migrate upgrade`" in before.output


def test_json_is_for_programs(config):
    """With `--json` the report is one document, also when a tenant failed."""
    result = run(config, "status", "--json")

    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert report["heads"] == ["tenantsync_0001"]
    assert not report["ok"]
    assert [(row["tenant"], row["state"], row["after"]) for row in report["tenants"]] == [
        ("acme", "missing", None),
        ("globex", "missing", None),
    ]


def test_an_unknown_key_is_asked_wrongly(config):
    """A key that no tenant has ends with 2, and the nearest one is offered."""
    result = run(config, "upgrade", "--tenant", "acmee")

    assert result.exit_code == 2
    assert 'no tenant has the key "acmee"; did you mean "acme"?' in result.output


def test_one_place_for_anybody_is_migrated(config):
    """The `single` strategy without a list of tenants has a place to migrate nevertheless."""
    config.write_text(
        CONFIG.partition("[isolation]")[0]
        + '[isolation]\nstrategy = "single"\nurl = "sqlite:///one.db"\naccept_any_tenant = true\n'
    )

    result = run(config, "upgrade")

    assert result.exit_code == 0, result.output
    assert (config.parent / "one.db").is_file()


def test_the_applications_own_locations_are_used(config):
    """`[migrations] locations` names folders relative to the file."""
    config.write_text(CONFIG + '[migrations]\nlocations = ["versions"]\n')
    (config.parent / "versions").mkdir()
    (config.parent / "versions" / "mine.py").write_text(
        "revision = 'mine'\ndown_revision = None\ndepends_on = 'tenantsync_0001'\n"
        "def upgrade(): pass\n"
    )

    result = run(config, "upgrade", "--json")

    assert [row["after"] for row in json.loads(result.stdout)["tenants"]] == ["mine", "mine"]


def test_migrations_have_a_login_of_their_own(tmp_path):
    """`migration_url` stands in for the common URL, not for a tenant's own."""
    config = tmp_path / "tenantsync.toml"
    config.write_text(
        """
[authvital]
host = "https://auth.example.com"
application_id = "an-application"
[isolation]
strategy = "schema"
url = "postgresql+psycopg://app@pooler/main"
migration_url = "postgresql+psycopg://ddl@direct/main"
[tenants.acme]
id = "id-of-acme"
[tenants.globex]
id = "id-of-globex"
url = "postgresql+psycopg://app@elsewhere/globex"
"""
    )
    place = migration_places(load(config))
    isolation = SchemaIsolation("postgresql+psycopg://app@pooler/main")
    acme = Tenant("id-of-acme", "acme", isolation.place("acme"))
    own = isolation.place("globex", url="postgresql+psycopg://app@elsewhere/globex")
    globex = Tenant("id-of-globex", "globex", own)

    assert str(place(acme)) == "postgresql+psycopg://ddl@direct/main schema tenant_acme"
    assert place(globex) == globex.placement
