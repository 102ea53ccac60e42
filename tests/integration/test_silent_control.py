"""A control database that takes connections and falls silent: nobody waits for it for long."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from chaos.gate import Gate
from guarding import APPLICATION, connected, ledger, make
from sqlalchemy import make_url

from tenantsync import TenantSync
from tenantsync.control.database import ControlDatabase, ControlUnavailable
from tenantsync.control.inbox import State
from tenantsync.control.reconciliations import Reconciliations
from tenantsync.migrate.control import upgrade_control
from tenantsync.observe import Outcome
from tenantsync.sync.drift import State as Reconciled
from tenantsync.sync.drift import TenantReport
from tenantsync.tenants import Placement, Tenant
from tenantsync.worker.schedule import ReconcileSchedule

TIMEOUT = 0.5
PLENTY = 20.0
"""Seconds that nothing here takes, however busy the machine is, unless something hangs."""
SENDERS = 40
"""More than the threads that an event loop lends by default."""


@pytest.fixture
def gate(postgres):
    """A gate before the server of the control database."""
    with Gate(postgres.server.port) as made:
        yield made
        made.open()


@pytest.fixture
def control_url(postgres, gate):
    """The URL of a control database with its tables, through the gate."""
    url = postgres.create_database()
    with ControlDatabase(url) as database:
        upgrade_control(database)
    return make_url(url).set(port=gate.port).render_as_string(hide_password=False)


@pytest.fixture
def sync(tmp_path, migrated_place, control_url):
    """A TenantSync with one tenant, whose control database is behind the gate."""
    schema = f'schema = "{migrated_place.schema}"' if migrated_place.schema else ""
    url = migrated_place.url.render_as_string(hide_password=False)
    (tmp_path / "tenantsync.toml").write_text(
        f"""
        [authvital]
        host = "http://127.0.0.1:9"
        application_id = "{APPLICATION}"
        [control]
        url = "{control_url}"
        [isolation]
        strategy = "database"
        statement_timeout = {TIMEOUT}
        [worker]
        inline = false
        interval = 0.1
        [tenants.acme]
        id = "acme"
        url = "{url}"
        {schema}
        """
    )
    with TenantSync.from_toml(tmp_path / "tenantsync.toml") as made:
        yield made


def rename(place, before, after):
    """Rename a tenant's table, as a migration that went wrong would."""
    with connected(place) as connection:
        prefix = f'"{place.schema}".' if place.is_postgres else ""
        connection.execute(f"ALTER TABLE {prefix}{before} RENAME TO {after}")


async def fate(sync, event):
    """Return what became of an event, and after how many seconds."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(PLENTY):
            outcome = await sync.handle(event)
    except ControlUnavailable:
        outcome = ControlUnavailable
    return outcome, time.monotonic() - started


def test_known_tenants_are_served_and_nobody_else_waits_for_long(sync, gate, migrated_place):
    """Also while many senders of tenants that nobody knows ask; and all is well again after it."""
    assert sync.handle_blocking(make("member.joined", id="before")) is Outcome.APPLIED

    async def storm(number):
        strangers = [
            asyncio.ensure_future(fate(sync, make("member.joined", tenant=f"s{number}-{n}")))
            for n in range(SENDERS)
        ]
        sync.resolver.forget("acme")
        known = await fate(sync, make("member.joined", id=f"known-{number}"))
        return known, await asyncio.gather(*strangers)

    gate.jam()
    for number in range(2):
        known, strangers = asyncio.run(storm(number))
        assert known[0] in (Outcome.APPLIED, Outcome.STALE)
        assert known[1] < PLENTY / 2
        assert {outcome for outcome, _ in strangers} == {ControlUnavailable}
        assert max(seconds for _, seconds in strangers) < PLENTY

    gate.open()
    sync.directory.forget()
    stranger = make("member.joined", tenant="s0-0", id="again")
    assert asyncio.run(fate(sync, stranger))[0] is Outcome.PARKED
    assert ledger(migrated_place) == ["before", "known-0", "known-1"]


def test_what_must_be_parked_is_refused_within_seconds(sync, gate, migrated_place):
    """The provider sends it again, and once the control database answers it is taken."""
    assert sync.handle_blocking(make("member.joined", id="before")) is Outcome.APPLIED
    rename(migrated_place, "av_identities", "hidden")
    assert sync.handle_blocking(make("member.joined", id="first")) is Outcome.PARKED

    gate.jam()
    refused = asyncio.run(fate(sync, make("member.joined", id="second")))
    gate.open()

    assert refused[0] is ControlUnavailable
    assert refused[1] < PLENTY / 2
    assert asyncio.run(fate(sync, make("member.joined", id="second")))[0] is Outcome.PARKED


def test_a_worker_comes_back(sync, gate, migrated_place):
    """Its threads end their attempts, and drain what waits once they are answered."""
    silent = threading.Event()
    rename(migrated_place, "av_identities", "hidden")
    assert sync.handle_blocking(make("member.joined", id="waits")) is Outcome.PARKED
    worker = sync.worker()
    worker._complain = lambda error: silent.set()
    worker.start()
    try:
        gate.jam()
        assert silent.wait(PLENTY), "the worker waits for ever"
        rename(migrated_place, "hidden", "av_identities")
        gate.open()
        sync.inbox.wake(["acme"])
        applied = poll(lambda: sync.inbox.show(1).state is State.APPLIED)
    finally:
        assert worker.stop(timeout=PLENTY)

    assert applied
    assert ledger(migrated_place) == ["waits"]


def test_a_reconcile_schedule_comes_back(control_url, gate, caplog):
    """Whose turn it was is reconciled when the control database answers again."""
    turns = threading.Event()
    acme = Tenant("acme", "acme", Placement.of("sqlite:///acme.db"))

    class Reconciler:
        def reconcile_tenant(self, tenant, **options):
            turns.set()
            return TenantReport(tenant.key, Reconciled.DONE)

        def close(self):
            pass

    with ControlDatabase(control_url, statement_timeout=TIMEOUT) as database:
        with database.read():
            pass  # so that there is a connection that falls silent
        gate.jam()
        schedule = ReconcileSchedule(
            Reconciliations(database),
            Reconciler(),
            tenants=lambda: [acme],
            owner="me",
            every=0.2,
            pause=0.1,
        )
        schedule.start()
        assert poll(lambda: "tenantsync.schedule_unreachable" in caplog.messages)
        assert not turns.is_set()
        gate.open()
        assert turns.wait(PLENTY)
        assert schedule.stop(timeout=PLENTY)


def test_a_start_is_not_held_up(sync, gate):
    """What is known serves; the control database is looked for again when it is needed."""
    gate.jam()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(sync.start).result(PLENTY) is None


def poll(is_so):
    """Wait until something of another thread is so, and return whether it came to that."""
    deadline, pause = time.monotonic() + PLENTY, threading.Event()
    while time.monotonic() < deadline:
        if is_so():
            return True
        pause.wait(0.05)
    return False
