"""Runners that are killed: every tenant stands at an exact revision, and the next run finishes."""

import os
import random
import signal
import subprocess
import sys

import pytest
from fleets import OURS, SchemaFleet, facts, files, write_revision

from tenantsync.migrate import State, status, upgrade

PROGRAM = """
import sys
from tenantsync.migrate import upgrade
from tenantsync.tenancy.isolation import DatabaseIsolation, SchemaIsolation
from tenantsync.tenants import Tenant

if __name__ == "__main__":
    url, location, count, jobs = sys.argv[1:]
    isolation = (SchemaIsolation if "postgresql" in url else DatabaseIsolation)(url)
    keys = [f"t{number:03d}" for number in range(int(count))]
    tenants = [Tenant(f"id-{key}", key, isolation.place(key)) for key in keys]
    upgrade(
        tenants,
        isolation=isolation,
        locations=[location],
        jobs=int(jobs),
        on_progress=lambda row, *_: print(row.state, flush=True),
    )
"""
SLOW = """
op.create_table("orders", sa.Column("id", sa.BigInteger(), primary_key=True))
op.execute("SELECT pg_sleep(0.01)")
op.add_column("av_identities", sa.Column("shoe_size", sa.Integer()))
op.execute("SELECT pg_sleep(0.01)")
op.create_index("ix_shoe", "av_identities", ["shoe_size"])
"""
PYTHON = """
op.get_bind().execute(sa.text("SELECT 1"))
op.create_table("orders", sa.Column("id", sa.BigInteger(), primary_key=True))
with op.batch_alter_table("av_identities", recreate="always") as batch:
    batch.add_column(sa.Column("shoe_size", sa.Integer()))
"""


@pytest.fixture
def location(tmp_path):
    """Give a folder for an application's own revisions."""
    folder = tmp_path / "versions"
    folder.mkdir()
    return folder


def kill_one(program, arguments, done):
    """Start a runner and kill it, with its children, once it has migrated so many tenants."""
    runner = subprocess.Popen(
        [sys.executable, str(program), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with runner:
        migrated = 0
        for line in runner.stdout:
            migrated += line.strip() == "upgraded"
            if migrated >= done:
                break
        os.kill(runner.pid, signal.SIGKILL)


def test_a_runner_killed_at_twenty_moments_leaves_every_schema_whole(postgres, location, tmp_path):
    """After each kill a schema is where it was or where it should be, and in the end all are."""
    fleet = SchemaFleet(postgres.create_database(), 100)
    upgrade(fleet.tenants, isolation=fleet.isolation, jobs=2).check()
    write_revision(location, "slow", SLOW)
    program = tmp_path / "runner.py"
    program.write_text(PROGRAM)
    chance = random.Random(20)  # noqa: S311 - moments, not secrets
    before = facts(fleet.tenants[0].placement)

    for _ in range(20):
        arguments = (fleet.url, str(location), "100", str(chance.randint(1, 4)))
        kill_one(program, arguments, chance.randint(0, 5))
        for key, versions in fleet.versions().items():
            assert versions in ({OURS}, {"slow"}), key
    report = upgrade(fleet.tenants, isolation=fleet.isolation, locations=[location], jobs=2)

    assert report.ok, report
    assert 0 < report.counts[State.UPGRADED] < 100
    fresh = SchemaFleet(postgres.create_database(), 1)
    upgrade(fresh.tenants, isolation=fresh.isolation, locations=[location]).check()
    wanted = facts(fresh.tenants[0].placement)
    assert wanted != before
    assert all(facts(tenant.placement) == wanted for tenant in fleet.tenants)


def test_a_runner_killed_leaves_every_file_whole(location, tmp_path):
    """SQLite files, rebuilt by processes of the runner's, which end when it does."""
    tenants, isolation = files(tmp_path, 12)
    upgrade(tenants, isolation=isolation).check()
    write_revision(location, "python", PYTHON)
    program = tmp_path / "runner.py"
    program.write_text(PROGRAM)
    chance = random.Random(4)  # noqa: S311

    for _ in range(4):
        arguments = (f"sqlite:///{tmp_path}/{{key}}.db", str(location), "12", "2")
        kill_one(program, arguments, chance.randint(0, 2))
        seen = status(tenants, isolation=isolation, locations=[location])
        assert set(seen.counts) <= {State.OK, State.BEHIND}, seen
    report = upgrade(tenants, isolation=isolation, locations=[location])

    assert report.ok, report
    first = facts(tenants[0].placement)
    assert ("av_identities", "column", "shoe_size") in first
    assert all(facts(tenant.placement) == first for tenant in tenants)
