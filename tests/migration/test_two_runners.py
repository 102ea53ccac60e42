"""Two operators who start the same command at once: each tenant is migrated by one of them."""

import subprocess
import sys
from pathlib import Path

from fleets import SchemaFleet, facts, write_revision

from tenantsync.migrate import upgrade

COUNT = 200
CONFIG = """
[authvital]
host = "https://auth.example.com"
application_id = "an-application"
[isolation]
strategy = "schema"
url = "{url}"
[migrations]
locations = ["versions"]
"""
PROGRAM = Path(sys.executable).with_name("tenantsync")


def wait_for(connection, runners):
    """Return when as many connections as there are runners wait for a lock."""
    waiting = 0
    while waiting < len(runners):
        assert [runner.poll() for runner in runners] == [None] * len(runners), "one has ended"
        (waiting,) = connection.execute(
            "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()


def test_two_runners_started_at_once_migrate_each_schema_once(postgres, tmp_path):
    """Both exit with 0, neither waits for ever, and no schema is migrated twice or left out."""
    fleet = SchemaFleet(postgres.create_database(), COUNT)
    upgrade(fleet.tenants, isolation=fleet.isolation, jobs=2).check()
    versions = tmp_path / "versions"
    versions.mkdir()
    # It fails where it is run twice.
    write_revision(
        versions,
        "more",
        'op.add_column("av_identities", sa.Column("shoe_size", sa.Integer()))\n'
        'op.execute("SELECT pg_sleep(0.005)")',
    )
    config = tmp_path / "tenantsync.toml"
    config.write_text(
        CONFIG.format(url=fleet.url)
        + "".join(f'[tenants.{tenant.key}]\nid = "{tenant.id}"\n' for tenant in fleet.tenants)
    )
    command = [str(PROGRAM), "-c", str(config), "migrate", "upgrade", "--jobs", "2",
               "--lock-timeout", "60"]  # fmt: skip

    with fleet.connect() as holder, fleet.connect() as observer:
        with holder.transaction():
            # Nobody gets far before both have begun.
            for tenant in fleet.tenants:
                holder.execute(f"LOCK TABLE {tenant.placement.schema}.av_identities")
            runners = [
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                for _ in range(2)
            ]
            wait_for(observer, runners)
        told = [runner.communicate() for runner in runners]

    assert [runner.returncode for runner in runners] == [0, 0], told
    states = [
        [tuple(line.split()[:2]) for line in output.splitlines()[:COUNT]] for output, _ in told
    ]
    migrated = [[key for key, state in rows if state == "upgraded"] for rows in states]
    assert all(migrated), "one runner did everything"
    assert sorted(migrated[0] + migrated[1]) == [tenant.key for tenant in fleet.tenants]
    assert {state for rows in states for _, state in rows} <= {"upgraded", "skipped", "ok"}
    assert set(map(frozenset, fleet.versions().values())) == {frozenset({"more"})}
    first = facts(fleet.tenants[0].placement)
    assert all(facts(tenant.placement) == first for tenant in fleet.tenants)
