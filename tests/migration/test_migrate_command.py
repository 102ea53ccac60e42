"""The command line of migrations: what it prints, and how it exits."""

import json
import sqlite3

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
    *lines, sums = [" ".join(line.split()[:5]) for line in result.output.splitlines()]
    assert [line.rpartition(" ")[0] for line in sorted(lines)] == [
        "acme upgraded - ->",
        "globex upgraded - ->",
    ]
    assert sums == "2 tenants: 2 upgraded"
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


BREAKS = """
import sqlalchemy as sa
from alembic import op

revision = "shop_0001"
down_revision = None
branch_labels = "shop"
depends_on = "tenantsync_0001"


def upgrade():
    op.create_table("orders", sa.Column("id", sa.Integer()))


def downgrade():
    op.drop_table("orders")
"""


@pytest.fixture
def shop(config):
    """Give a configuration whose two tenants are at our head, and behind the application's."""
    run(config, "upgrade")
    config.write_text(CONFIG + '[migrations]\nlocations = ["shop/versions"]\n')
    (config.parent / "shop/versions").mkdir(parents=True)
    (config.parent / "shop/versions/orders.py").write_text(BREAKS)
    return config


def test_failures_are_told_with_the_command_that_tries_them_again(shop):
    """The reason is a sentence, and the last line can be copied."""
    connection = sqlite3.connect(shop.parent / "tenants/globex.db")
    connection.execute("CREATE TABLE orders (id TEXT)")
    connection.close()

    result = run(shop, "upgrade")

    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert any("globex  FAILED" in line and "orders already exists" in line for line in lines)
    assert "2 tenants: 1 upgraded, 1 failed" in lines
    assert lines[-1] == f"To try again: tenantsync -c {shop} migrate upgrade --tenant globex"


def test_a_dry_run_prints_what_would_be_run(shop):
    """The statements are printed once for each start, and nothing is changed."""
    result = run(shop, "upgrade", "--dry-run")

    assert result.exit_code == 0
    assert "-- 2 tenants from tenantsync_0001 on sqlite, such as acme:" in result.output
    assert "CREATE TABLE orders" in result.output
    assert run(shop, "status").output.splitlines()[-1] == "2 tenants: 2 behind"


def test_a_dry_run_names_the_first_of_many(shop):
    """The tenant that is named is the first in the file, whoever was looked at first."""
    tenants = "".join(f'[tenants.a{number}]\nid = "id-of-a{number}"\n' for number in range(9))
    shop.write_text(shop.read_text() + tenants)
    run(shop, "upgrade", "--to", "tenantsync_0001")

    told = {run(shop, "upgrade", "--dry-run", "--jobs", "4").output for _ in range(5)}

    assert len(told) == 1
    assert "-- 11 tenants from tenantsync_0001 on sqlite, such as acme:" in told.pop()


def test_status_counts_by_revision(shop):
    """Who stands where is counted when not all stand at the same revision."""
    run(shop, "upgrade", "--tenant", "ac*")

    result = run(shop, "status")

    assert result.exit_code == 1
    assert "1 at shop_0001" in result.output
    assert "1 at tenantsync_0001" in result.output
    assert "To try again" not in result.output


def test_tables_are_dropped_only_with_yes(shop):
    """A downgrade names the branch, and says so before it destroys anything."""
    run(shop, "upgrade")

    unclear = run(shop, "downgrade", "--to", "shop@base")
    done = run(shop, "downgrade", "--to", "shop@base", "--yes")
    again = run(shop, "status")

    assert (unclear.exit_code, done.exit_code, again.exit_code) == (1, 0, 1)
    assert "say --yes" in unclear.output
    assert done.output.splitlines()[-1] == "2 tenants: 2 downgraded"


def test_stamp_and_check(shop):
    """A stamp says more than is true, and `check` finds that out."""
    stamped = run(shop, "stamp", "--to", "shop_0001")
    checked = run(shop, "check", "--exclude", "globex")

    assert stamped.output.splitlines()[-1] == "2 tenants: 2 stamped"
    assert checked.exit_code == 1
    assert "acme  DRIFTED" in checked.output
    assert "it lacks table orders" in checked.output


def test_history_lists_all_revisions(shop):
    """Ours and the application's, with their branches."""
    listed = run(shop, "history")
    document = json.loads(run(shop, "history", "--json").stdout)

    assert "shop_0001" in listed.output
    assert "[shop]" in listed.output
    assert {revision["id"] for revision in document} == {"shop_0001", "tenantsync_0001"}


MODELS = """
from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None] = mapped_column(Text())
"""


def test_a_revision_is_made_from_models(config, monkeypatch):
    """The command writes a file into the only location, and the next upgrade runs it."""
    config.write_text(CONFIG + '[migrations]\nlocations = ["shop/versions"]\n')
    (config.parent / "shop/versions").mkdir(parents=True)
    (config.parent / "models_of_shop.py").write_text(MODELS)
    monkeypatch.chdir(config.parent)

    unclear = run(config, "revision", "-m", "orders", "--autogenerate")
    made = run(config, "revision", "-m", "orders", "--autogenerate",
               "--models", "models_of_shop:Base")  # fmt: skip
    upgraded = run(config, "upgrade")

    assert unclear.exit_code == 2
    assert made.exit_code == 0, made.output
    assert made.output.startswith(f"made {config.parent}/shop/versions/")
    assert upgraded.exit_code == 0, upgraded.output
    connection = sqlite3.connect(config.parent / "tenants/acme.db")
    assert connection.execute("SELECT count(*) FROM orders").fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize("wave", ["0", "101%", "some"])
def test_a_wave_is_a_number_or_a_share(config, wave):
    """Anything else is asked wrongly."""
    result = run(config, "upgrade", "--wave", wave)

    assert result.exit_code == 2
    assert "write 50, or 10%" in result.output


def test_a_run_that_is_stopped_says_how_many_are_left(shop):
    """With `--canary` the rest is not begun when the first one fails."""
    connection = sqlite3.connect(shop.parent / "tenants/acme.db")
    connection.execute("CREATE TABLE orders (id TEXT)")
    connection.close()

    result = run(shop, "upgrade", "--canary", "1", "--wave", "50%", "--json")

    document = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (document["left"], document["stopped"]) == (1, "1 tenant of the first failed")
