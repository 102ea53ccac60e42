"""How long migrations of many schemas take, beside Alembic's own ways and beside plain SQL.

    python tests/benchmarks/fleet.py                  # 1,000 schemas; some minutes
    python tests/benchmarks/fleet.py --schemas 200

It asserts nothing. A number is only worth something beside another one from the same run.
"""

import argparse
import math
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import postgres
import psycopg
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from tenantsync import TenantSync
from tenantsync.migrate import Move, State, status, upgrade
from tenantsync.migrate.provision import Provisioner
from tenantsync.migrate.recording import Recorder
from tenantsync.migrate.scripts import Scripts
from tenantsync.tenancy.isolation import SchemaIsolation
from tenantsync.tenants import Tenant

_ENV = """
from alembic import context
from sqlalchemy import create_engine, text

config = context.config


def migrate(connection, schema):
    connection.execute(text(f"SET search_path TO {schema}"))
    connection.commit()
    context.configure(connection=connection, target_metadata=None,
                      version_table="tenantsync_version")
    with context.begin_transaction():
        context.run_migrations()


connection = config.attributes.get("connection")
if connection is not None:
    migrate(connection, config.attributes["schema"])
else:
    with create_engine(context.get_x_argument(as_dictionary=True)["url"]).connect() as connection:
        migrate(connection, context.get_x_argument(as_dictionary=True)["schema"])
"""
_COLUMN = """
import sqlalchemy as sa
from alembic import op

revision = {name!r}
down_revision = {after!r}
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("av_identities", sa.Column({name!r}, sa.Text()))
"""
_FLEETS = (500, 2000)  # how many schemas a runner's memory is measured with
_TEN = 9  # revisions after ours, for the way from nothing to head


class Bench:
    """One server, its schemas, and the revisions that come and go.

    Args:
        folder: For revisions and Alembic's own files.
        server: A PostgreSQL server with fsync on.
        count: How many schemas.
    """

    def __init__(self, folder: Path, server: postgres.Server, count: int) -> None:
        self.folder = folder
        self.server = server
        self.count = count
        self.location = folder / "versions"
        self.location.mkdir()
        self.head: str | None = None
        (folder / "env.py").write_text(_ENV)
        (folder / "script.py.mako").touch()
        (folder / "alembic.ini").write_text(f"[alembic]\nscript_location = {folder}\n")

    def fleet(self, database: str) -> tuple[list[Tenant], SchemaIsolation]:
        """Return tenants in a database that is made now."""
        with self.server.connect() as connection:
            connection.execute(f"CREATE DATABASE {database}")
        isolation = SchemaIsolation(self.server.url(database, socket=True))
        keys = [f"t{number:05d}" for number in range(self.count)]
        return [Tenant(f"id-{key}", key, isolation.place(key)) for key in keys], isolation

    def add_revision(self) -> None:
        """Add one column to what head is."""
        name = f"column_{len(list(self.location.iterdir())):03d}"
        after = self.head or "tenantsync_0001"
        (self.location / f"{name}.py").write_text(_COLUMN.format(name=name, after=after))
        self.head = name

    def config(self) -> Config:
        """Return what Alembic alone needs for the same revisions."""
        ours = Path(__file__).parents[2] / "tenant_migrations" / "versions"
        config = Config(str(self.folder / "alembic.ini"))
        config.set_main_option("version_locations", f"{ours}\n{self.location}")
        config.set_main_option("path_separator", "newline")
        return config

    def by_command(self, tenants: list[Tenant], sample: int) -> float:
        """Return what `alembic upgrade heads` as a command per schema takes, extrapolated."""
        file = self.folder / "command.ini"
        ours = Path(__file__).parents[2] / "tenant_migrations" / "versions"
        file.write_text(
            f"[alembic]\nscript_location = {self.folder}\npath_separator = newline\n"
            f"version_locations = {ours}\n  {self.location}\n"
        )
        chosen = tenants[:sample]
        started = time.perf_counter()
        for tenant in chosen:
            url = tenant.placement.url.render_as_string(hide_password=False)
            subprocess.run(
                [sys.executable, "-m", "alembic", "-c", str(file), "-x", f"url={url}",
                 "-x", f"schema={tenant.placement.schema}", "upgrade", "heads"],
                check=True, capture_output=True,
            )  # fmt: skip
        return (time.perf_counter() - started) / len(chosen) * len(tenants)

    def by_loop(self, tenants: list[Tenant]) -> float:
        """Return what `alembic.command.upgrade` in a loop in one process takes."""
        engine = create_engine(tenants[0].placement.url)
        started = time.perf_counter()
        with engine.connect() as connection:
            for tenant in tenants:
                config = self.config()
                config.attributes.update(connection=connection, schema=tenant.placement.schema)
                command.upgrade(config, "heads")
                connection.commit()
        elapsed = time.perf_counter() - started
        engine.dispose()
        return elapsed

    def by_psql(self, tenants: list[Tenant], start: tuple[str, ...], *, make: bool) -> float:
        """Return what one prepared script for all schemas takes, on one connection."""
        recording = Recorder(Scripts([self.location]), Move()).recording("postgresql", start)
        file = self.folder / "all.sql"
        with file.open("w") as script:
            for tenant in tenants:
                schema = tenant.placement.schema
                script.write("BEGIN;\n")
                if make:
                    script.write(f"CREATE SCHEMA {schema};\n")
                script.write(f"SET LOCAL search_path TO {schema};\n")
                script.writelines(f"{statement};\n" for statement in recording.statements)
                script.write("COMMIT;\n")
        url = tenants[0].placement.url
        psql = postgres._package() / postgres._INSTALLATION / "bin" / "psql"
        started = time.perf_counter()
        subprocess.run(
            [str(psql), "-q", "-v", "ON_ERROR_STOP=1", "-h", str(self.server.socket_directory),
             "-p", str(self.server.port), "-U", "postgres", "-d", str(url.database), "-o",
             "/dev/null", "-f", str(file)],
            check=True,
        )  # fmt: skip
        return time.perf_counter() - started


@contextmanager
def _watched(server: postgres.Server) -> Iterator[list[int]]:
    """Give a list that fills with how many locks the others hold, as often as can be asked."""
    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        with server.connect() as connection:
            while not ended.is_set():
                row = connection.execute(
                    "SELECT count(*) FROM pg_locks WHERE pid <> pg_backend_pid()"
                    " AND locktype = 'relation'"
                ).fetchone()
                seen.append(int(str(row[0])) if row else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield seen
    ended.set()
    watcher.join()


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run all of it and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--status", type=int, default=10_000, help="schemas for status; 0 for none")
    parser.add_argument("--sample", type=int, default=5, help="commands that are extrapolated from")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    server = postgres.start(fsync=True, settings={"shared_buffers": "512MB", "max_wal_size": "4GB"})
    try:
        with tempfile.TemporaryDirectory() as folder:
            _measure(Bench(Path(folder), server, given.schemas), given)
    finally:
        server.stop()


def _measure(bench: Bench, given: argparse.Namespace) -> None:
    count, jobs = given.schemas, given.jobs
    tenants, isolation = bench.fleet("ours")
    others, _ = bench.fleet("theirs")
    options = {"isolation": isolation, "locations": [bench.location], "keep_rows": False}
    _say(f"PostgreSQL {bench.server.version}, fsync on, {count} schemas, --jobs {jobs}\n")

    for _ in range(_TEN):
        bench.add_revision()
    head = (str(bench.head),)
    psql = bench.by_psql(others, (), make=True)
    ours = _timed(lambda: upgrade(tenants, jobs=jobs, **options).check())
    _say(f"ten revisions from nothing   ours {ours:7.2f} s   psql {psql:7.2f} s"
         f"   ours/psql {ours / psql:.2f} (target 0.8)")  # fmt: skip

    nothing = statistics.median(
        _timed(lambda: upgrade(tenants, jobs=jobs, **options).check()) for _ in range(given.rounds)
    )
    loop = bench.by_loop(others)
    by_command = bench.by_command(others, given.sample)
    _say(f"nothing to do                ours {nothing:7.2f} s   loop {loop:7.2f} s   command "
         f"{by_command:6.0f} s   ours/loop 1/{loop / nothing:.0f} (target 1/20)")  # fmt: skip

    rows = []
    for _ in range(given.rounds):
        bench.add_revision()
        psql = bench.by_psql(others, head, make=False)
        ours = _timed(lambda: upgrade(tenants, jobs=jobs, **options).check())
        head = (str(bench.head),)
        rows.append((ours, psql))
    bench.add_revision()
    loop = bench.by_loop(others)
    ours, psql = (statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(ours / psql for ours, psql in rows)
    _say(f"one added column             ours {ours:7.2f} s   loop {loop:7.2f} s   psql "
         f"{psql:7.2f} s   ours/loop 1/{loop / ours:.1f} (target 1/8)   ours/psql {ratio:.2f} "
         "(target 1.0)")  # fmt: skip
    upgrade(tenants, jobs=jobs, **options).check()

    _look(bench, tenants, options)
    if given.status:
        _status_of_many(bench, given.status)
    _say(f"provisioning of one schema   p95 {_provisioning(bench):5.0f} ms   (target 150 ms)")
    few, many = (_memory(bench, schemas, jobs) for schemas in _FLEETS)
    _say(f"peak memory of a runner      {few:7.1f} MiB for {_FLEETS[0]} schemas   {many:.1f} MiB"
         f" for {_FLEETS[1]}   (target: the same)")  # fmt: skip


def _memory(bench: Bench, count: int, jobs: int) -> float:
    """Return the peak in MiB of a process that makes so many tenants, and looks at them again."""
    bench.count = count
    tenants, _ = bench.fleet(f"memory_{count}")
    url = tenants[0].placement.url.render_as_string(hide_password=False)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_of, url, count, jobs).result()


def _peak_of(url: str, count: int, jobs: int) -> float:
    isolation = SchemaIsolation(url)
    keys = [f"t{number:05d}" for number in range(count)]
    tenants = [Tenant(f"id-{key}", key, isolation.place(key)) for key in keys]
    for work in (upgrade, upgrade, status):
        work(tenants, isolation=isolation, jobs=jobs, keep_rows=False).check()
    # Not `ru_maxrss`: a child inherits that of the process that started it.
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1024


def _status_of_many(bench: Bench, count: int) -> None:
    """Look at schemas that hold a version table only; that is all that is asked about."""
    bench.count = count
    tenants, isolation = bench.fleet("many")
    tables = ("av_identities", "av_identity_sessions", "av_sync_events", "av_identity_tombstones")
    with psycopg.connect(
        str(bench.server.url("many")).replace("+psycopg", ""), autocommit=True
    ) as connection:
        for start in range(0, count, 100):
            statements = ["BEGIN"]
            for tenant in tenants[start : start + 100]:
                schema = tenant.placement.schema
                statements += [
                    f"CREATE SCHEMA {schema}",
                    f"CREATE TABLE {schema}.tenantsync_version (version_num text PRIMARY KEY)",
                    f"INSERT INTO {schema}.tenantsync_version VALUES ('tenantsync_0001')",
                    *(f"CREATE TABLE {schema}.{table} ()" for table in tables),
                ]
            connection.execute(";".join([*statements, "COMMIT"]).encode())
        connection.execute("ANALYZE pg_class")
    _look(bench, tenants, {"isolation": isolation, "keep_rows": False})


def _look(bench: Bench, tenants: list[Tenant], options: dict[str, Any]) -> None:
    """Time a look at all tenants, then count the locks of another one: counting slows it down."""

    def look() -> None:
        report = status(tenants, **options)
        assert report.counts == {State.OK: len(tenants)}, report.counts

    elapsed = _timed(look)
    with _watched(bench.server) as locks:
        look()
    _say(f"status of {len(tenants):6}              {elapsed:7.2f} s   at most {max(locks)} locks "
         "at once")  # fmt: skip


def _provisioning(bench: Bench, count: int = 60) -> float:
    """Return the 95th percentile, in milliseconds, of adding one tenant with a schema."""
    bench.count = 0
    bench.fleet("added")
    config = bench.folder / "added.toml"
    config.write_text(
        '[authvital]\nhost = "http://127.0.0.1:9"\napplication_id = "app"\n'
        f'[isolation]\nstrategy = "schema"\nurl = "{bench.server.url("added")}"\n'
    )
    with TenantSync.from_toml(config) as sync:
        provisioner = Provisioner.of(sync.settings, sync.directory, sync.isolation)
        provisioner.add(
            "first", "id-first"
        )  # writes the script down, and makes the control database
        took = sorted(
            _timed(partial(provisioner.add, f"t{number}", f"id-{number}"))
            for number in range(count)
        )
    return took[math.ceil(0.95 * count) - 1] * 1000


if __name__ == "__main__":
    main()
