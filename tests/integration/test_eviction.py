"""More databases than engines: the cache evicts under load, and no event notices."""

import shutil
import threading
from functools import partial
from itertools import cycle

import pytest
from guarding import ask, at_once, counts, make, numbered, told
from sqlalchemy import event as events

from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement


class Counted:
    """A factory that knows how many of its engines and connections are open, and were at most."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engines = self.connections = self.made = 0
        self.most_engines = self.most_connections = 0

    def __call__(self, url, *, pool_size):
        engine = make_engine(url, pool_size=pool_size)
        self.count(engines=1)
        self.made += 1
        events.listen(engine, "engine_disposed", lambda _: self.count(engines=-1))
        # On PostgreSQL before the connection is opened: never an undercount.
        moment = "connect" if url.drivername == "sqlite" else "do_connect"
        events.listen(engine, moment, lambda *_: self.count(connections=1))
        events.listen(engine, "close", lambda *_: self.count(connections=-1))
        return engine

    def count(self, engines=0, connections=0):
        with self.lock:
            self.engines += engines
            self.connections += connections
            self.most_engines = max(self.most_engines, self.engines)
            self.most_connections = max(self.most_connections, self.connections)


def work_through(tenants, registry, *, rounds, threads, handlers):
    """Send events to all tenants, round after round, and return the outcomes."""
    made = [
        IdentitySyncHandler(tenants.get, registry=registry, observers=()) for _ in range(handlers)
    ]
    for handler in made:
        handler.on("member.joined")(lambda event, session: None)
    kinds = ("member.joined", "app_access.granted", "member.suspended")
    jobs = [
        partial(told, handler, make(kinds[number % 3], f"{name}/{number}", tenant=name))
        for number in range(rounds)
        for name, handler in zip(tenants, cycle(made), strict=False)
    ]
    try:
        return at_once(jobs, threads=threads)
    finally:
        for handler in made:
            handler.close()


def check(tenants, rounds):
    for name, tenant in tenants.items():
        found = [row[0] for row in ask(tenant.placement, "SELECT id FROM {s}av_identities")]
        assert sorted(found) == sorted(f"{name}/{number}" for number in range(rounds))
        assert counts(tenant.placement)["av_sync_events"] == rounds


def test_two_hundred_files_share_ten_engines(tmp_path, migrated_templates):
    """200 SQLite tenants, 10 engines, 32 senders: no event fails, and no eleventh engine opens."""
    files = [tmp_path / f"{number}.db" for number in range(200)]
    for file in files:
        shutil.copyfile(migrated_templates(0), file)
    tenants = numbered(Placement.of(f"sqlite:///{file}") for file in files)
    factory = Counted()
    with EngineRegistry(max_engines=10, patience=60, factory=factory) as registry:
        results = work_through(tenants, registry, rounds=3, threads=32, handlers=3)
        assert registry.engines <= 10

    assert set(results) == {Outcome.APPLIED}
    assert factory.most_engines <= 10
    assert factory.made > 200  # engines were evicted, and made again
    assert (factory.engines, factory.connections) == (0, 0)
    check(tenants, 3)


def test_fewer_engines_than_writers(tmp_path, migrated_templates):
    """One engine for twelve files and eight threads: everybody waits for it in turn."""
    files = [tmp_path / f"{number}.db" for number in range(12)]
    for file in files:
        shutil.copyfile(migrated_templates(0), file)
    tenants = numbered(Placement.of(f"sqlite:///{file}") for file in files)
    factory = Counted()
    with EngineRegistry(max_engines=1, patience=60, factory=factory) as registry:
        results = work_through(tenants, registry, rounds=2, threads=12, handlers=1)

    assert set(results) == {Outcome.APPLIED}
    assert factory.most_engines == 1
    check(tenants, 2)


@pytest.mark.parametrize("idle", [1, 3])
def test_databases_of_one_server_share_its_connections(postgres, migrated_templates, idle):
    """Eight databases on one server, three connections: never more, for the server either."""
    template = migrated_templates(1)
    urls = [postgres.create_database(template=template) for _ in range(8)]
    tenants = numbered(Placement.of(url, "tenant_acme") for url in urls)
    factory = Counted()
    done = threading.Event()
    most = 0

    def watch():
        nonlocal most
        before: set[object] = set()
        with postgres.connect() as connection:
            while not done.wait(0.02):
                # Those at work: a backend lives on idle for a moment after its client has gone.
                rows = connection.execute(
                    "SELECT pid FROM pg_stat_activity"
                    " WHERE application_name = 'tenantsync' AND state <> 'idle'"
                ).fetchall()
                # Twice in a row, because backends are looked at one after the other.
                now = {row[0] for row in rows}
                most, before = max(most, len(now & before)), now

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        registry = EngineRegistry(max_connections=3, idle=idle, patience=60, factory=factory)
        with registry:
            results = work_through(tenants, registry, rounds=12, threads=24, handlers=2)
    finally:
        done.set()
        watcher.join()

    assert set(results) == {Outcome.APPLIED}
    assert factory.most_connections <= 3
    assert most <= 3
    assert factory.connections == 0
    check(tenants, 12)
