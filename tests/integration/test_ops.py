"""What machines ask a server, with real keys, a real control database and a real inbox."""

import asyncio
import logging
import threading
from contextlib import contextmanager

import httpx2
import pytest
from guarding import serving
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tenantsync.authvital.keys import KeyRing
from tenantsync.control.catalog import Catalog
from tenantsync.control.database import ControlDatabase
from tenantsync.control.inbox import Arrival, Inbox
from tenantsync.metrics import PrometheusObserver
from tenantsync.migrate.control import upgrade_control
from tenantsync.observe import Delivery, Outcome
from tenantsync.testing.emulator import Emulator
from tenantsync.web.ops import Check, Readiness, ops_routes

BOUND = 30.0  # seconds that a test waits for another thread before it fails


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Probe:
    """A check that is well or not, as the test says, and counts how often it was run."""

    def __init__(self, trouble=None):
        self.trouble = trouble
        self.runs = 0

    def __call__(self):
        self.runs += 1
        if self.trouble is not None:
            raise self.trouble


@contextmanager
def asking(readiness, **options):
    app = Starlette(routes=ops_routes(readiness, **options))
    with TestClient(app, follow_redirects=False) as client:
        yield client


def looks(readiness, clock, *moments):
    """What the checks say at each of these moments."""

    async def all_of_them():
        seen = []
        for moment in moments:
            clock.now = 1000.0 + moment
            seen.append(await readiness.look())
        return seen

    return asyncio.run(all_of_them())


@pytest.fixture
def control(database_url):
    """A control database with its tables, on SQLite and on PostgreSQL."""
    with ControlDatabase(database_url) as opened:
        upgrade_control(opened)
        yield opened


def test_a_process_that_answers_lives():
    """Liveness asks nothing: no check is run for it."""
    probe = Probe(OSError("down"))
    with asking(Readiness({"control": Check(probe)})) as client:
        answer = client.get("/healthz")

    assert (answer.status_code, answer.json(), probe.runs) == (200, {"status": "alive"}, 0)


def test_a_server_is_ready_when_all_checks_are_well():
    """Every check is named in the answer, which no cache may keep."""
    with asking(Readiness({"keys": Check(Probe()), "control": Check(Probe())})) as client:
        answer = client.get("/readyz")

    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ready", "checks": {"keys": "ok", "control": "ok"}},
    )
    assert answer.headers["cache-control"] == "no-store"


def test_a_check_that_fails_is_named_by_the_class_of_its_error():
    """503 says which check failed and how, and nothing that stands in the error."""
    trouble = OSError("connection to postgresql://app:hunter2@db/main refused")
    with asking(Readiness({"keys": Check(Probe()), "control": Check(Probe(trouble))})) as client:
        answer = client.get("/readyz")

    assert (answer.status_code, answer.json()) == (
        503,
        {"status": "unavailable", "checks": {"keys": "ok", "control": "OSError"}},
    )


def test_probes_within_a_second_cost_nothing():
    """An answer is given again for a second, then the checks are run anew."""
    clock, probe = Clock(), Probe()
    readiness = Readiness({"control": Check(probe)}, cached_for=1.0, clock=clock)

    looks(readiness, clock, 0.0, 0.5, 0.99, 1.0, 1.5, 2.5)

    assert probe.runs == 3


def test_a_good_answer_may_hold_for_longer():
    """What was well is not asked again while it is fresh; what was not, is."""
    clock, probe = Clock(), Probe()
    readiness = Readiness({"keys": Check(probe, fresh_for=60.0)}, clock=clock)

    looks(readiness, clock, 0.0, 10.0, 59.0)
    assert probe.runs == 1

    probe.trouble = OSError()
    looks(readiness, clock, 60.0, 62.0)
    assert probe.runs == 3


def test_what_was_learnt_serves_through_an_outage():
    """A check that lasts keeps the server ready for its time, and shows its trouble meanwhile."""
    clock, probe = Clock(), Probe()
    readiness = Readiness({"control": Check(probe, lasts=100.0)}, clock=clock)
    looks(readiness, clock, 0.0)
    probe.trouble = OSError()

    seen = looks(readiness, clock, 50.0, 99.0, 101.0)

    down = {"control": "OSError"}
    assert seen == [(True, down), (True, down), (False, down)]


def test_what_was_never_learnt_cannot_serve():
    """A server that starts during an outage is not ready."""
    clock, probe = Clock(), Probe(OSError())
    readiness = Readiness({"control": Check(probe, lasts=100.0)}, clock=clock)

    assert looks(readiness, clock, 0.0) == [(False, {"control": "OSError"})]


def test_a_check_that_hangs_holds_up_no_answer_and_one_thread(caplog):
    """The answer comes within its bound, and however often it is asked, the check runs once."""
    clock, begun, go_on = Clock(), [], threading.Event()

    def hangs():
        begun.append(threading.current_thread())
        assert go_on.wait(BOUND)

    readiness = Readiness(
        {"control": Check(hangs), "keys": Check(Probe())}, timeout=0.05, clock=clock
    )
    seen = looks(readiness, clock, 0.0, 2.0, 4.0)
    go_on.set()
    begun[0].join(BOUND)
    after = looks(readiness, clock, 6.0)

    assert seen == [(False, {"control": "timeout", "keys": "ok"})] * 3
    assert [record for record in caplog.records if record.name != "tenantsync"] == []
    assert (len(begun), after) == (2, [(True, {"control": "ok", "keys": "ok"})])


def test_many_who_ask_at_once_share_one_run():
    """A hundred probes at the same moment run the check once, and all hear the same."""
    runs, begun, go_on = [], threading.Event(), threading.Event()

    def slow():
        runs.append(1)
        begun.set()
        assert go_on.wait(BOUND)

    readiness = Readiness({"control": Check(slow)}, timeout=BOUND)

    async def crowd():
        asking = [asyncio.create_task(readiness.look()) for _ in range(100)]
        await asyncio.to_thread(begun.wait, BOUND)
        go_on.set()
        return await asyncio.gather(*asking)

    assert asyncio.run(crowd()) == [(True, {"control": "ok"})] * 100
    assert len(runs) == 1


def test_who_asks_may_leave_and_the_next_one_is_answered():
    """A probe that gives up does not spoil the check for others."""
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        assert go_on.wait(BOUND)

    readiness = Readiness({"control": Check(slow)}, timeout=BOUND)

    async def one_leaves():
        leaving = asyncio.create_task(readiness.look())
        await asyncio.to_thread(begun.wait, BOUND)
        leaving.cancel()
        await asyncio.wait((leaving,))
        staying = asyncio.create_task(readiness.look())
        await asyncio.sleep(0)
        go_on.set()
        return await staying

    assert asyncio.run(one_leaves()) == (True, {"control": "ok"})


def test_a_thread_that_ends_oddly_leaves_nobody_waiting():
    """Even an exit asked for in a check is an answer, and the next run is a new one."""
    clock, probe = Clock(), Probe(SystemExit(1))
    readiness = Readiness({"keys": Check(probe)}, clock=clock)
    first = looks(readiness, clock, 0.0)
    probe.trouble = None

    assert (first, looks(readiness, clock, 2.0)) == (
        [(False, {"keys": "SystemExit"})],
        [(True, {"keys": "ok"})],
    )


def test_no_thread_to_be_had_is_an_answer(monkeypatch):
    """A machine at its limit is not ready, and says why."""

    def refused(thread):
        raise RuntimeError("can't start new thread")

    readiness = Readiness({"keys": Check(Probe())})
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        seen = asyncio.run(readiness.look())

    assert seen == (False, {"keys": "RuntimeError"})


def test_the_log_tells_of_changes_only(caplog):
    """Ready, unready, ready: three records, however often it was asked."""
    clock, probe = Clock(), Probe()
    readiness = Readiness({"control": Check(probe)}, clock=clock)
    with caplog.at_level(logging.INFO, logger="tenantsync"):
        looks(readiness, clock, 0.0, 2.0)
        probe.trouble = OSError("hunter2")
        looks(readiness, clock, 4.0, 6.0)
        probe.trouble = None
        looks(readiness, clock, 8.0, 10.0)

    assert [(record.message, record.checks) for record in caplog.records] == [
        ("tenantsync.ready", {"control": "ok"}),
        ("tenantsync.not_ready", {"control": "OSError"}),
        ("tenantsync.ready", {"control": "ok"}),
    ]


def test_keys_that_are_held_or_can_be_had():
    """With AuthVital up its keys are fetched; once had, they serve while it is down."""
    clock = Clock()
    with Emulator(sleep=lambda seconds: None) as authvital:
        ring = KeyRing(f"{authvital.url}/.well-known/jwks.json", cooldown=0.0, clock=clock)
        readiness = Readiness({"keys": Check(ring.refresh, lasts=86_400.0)}, clock=clock)
        up = looks(readiness, clock, 0.0)
    down = looks(readiness, clock, 10.0)

    assert (up, down) == ([(True, {"keys": "ok"})], [(True, {"keys": "KeysUnavailable"})])


def test_the_control_database_is_asked(control, tmp_path):
    """A control database that answers is well; one that was never made is named so."""
    made = Readiness({"control": Check(Catalog(control).news)})
    with ControlDatabase(f"sqlite:///{tmp_path / 'nowhere.db'}") as missing:
        absent = Readiness({"control": Check(Catalog(missing).news)})

        assert asyncio.run(made.look()) == (True, {"control": "ok"})
        assert asyncio.run(absent.look()) == (False, {"control": "ControlMissing"})


def test_metrics_over_http(control):
    """A real server shows the deliveries and the inbox in Prometheus' text format."""
    inbox = Inbox(control)
    inbox.park(
        [
            Arrival(
                tenant_id="id-of-acme",
                event_id=f"e{number}",
                type="member.joined",
                subject="ann",
                timestamp=1_790_000_000_000,
                body=b"{}",
                signed_at=None,
                door="webhook",
                reason="TenantUnavailable",
            )
            for number in range(3)
        ]
    )
    observer = PrometheusObserver()
    observer.watch(inbox=inbox.totals)
    observer(
        Delivery(
            event_id="e0",
            event_type="member.joined",
            tenant="acme",
            outcome=Outcome.PARKED,
            seconds=0.01,
            door="webhook",
        )
    )
    app = Starlette(routes=ops_routes(Readiness({}), metrics=observer.render))

    with serving(app, lifespan="off") as url:
        answer = httpx2.get(f"{url}/metrics", trust_env=False)

    lines = answer.text.splitlines()
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert {
        'tenantsync_deliveries_total{door="webhook",outcome="parked",reason=""} 1.0',
        "tenantsync_inbox_parked 3.0",
        "tenantsync_lanes_failing 0.0",
        'tenantsync_source_up{source="inbox"} 1.0',
    } <= set(lines)


def test_metrics_without_the_extra_say_what_to_install():
    """501, and a sentence."""
    with asking(Readiness({})) as client:
        answer = client.get("/metrics")

    assert answer.status_code == 501
    assert 'pip install "tenantsync[metrics]"' in answer.json()["reason"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_paths_are_exact_and_only_read(path):
    """A slash more is a plain 404 and no redirect, and nothing can be posted."""
    with asking(Readiness({}), metrics=bytes) as client:
        statuses = [
            client.get(path).status_code,
            client.head(path).status_code,
            client.get(f"{path}/").status_code,
            client.post(path).status_code,
        ]

    assert statuses == [200, 200, 404, 405]
