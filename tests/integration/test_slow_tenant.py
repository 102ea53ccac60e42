"""One tenant is locked, slow, hanging or gone: others' events flow, and its own fail in time."""

import asyncio
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from uuid import uuid4

import pytest
from guarding import ask, at_once, connected, ledger, make, people
from sqlalchemy import text

from tenantsync.errors import (
    EventRefused,
    HookFailed,
    TenantNotMigrated,
    TenantSyncError,
    TenantUnavailable,
)
from tenantsync.observe import Outcome
from tenantsync.sync.batch import Applier
from tenantsync.sync.breaker import BreakerOpen, Breakers
from tenantsync.sync.hooks import Hooks
from tenantsync.sync.postgres import lock_key
from tenantsync.sync.writer import Writer
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry, NoConnection
from tenantsync.tenants import Placement

TIMEOUT = 0.4
PLENTY = 20.0
"""Seconds that nothing here takes, however busy the machine is, unless something hangs."""


class Setup:
    """A writer whose breakers wait for as long as a test says.

    Args:
        hooks: The application's functions.
        registry: Options of the registry.
        statement_timeout: As the applier's.
        options: Options of the writer.
    """

    def __init__(
        self,
        hooks: Hooks | None = None,
        registry: dict | None = None,
        statement_timeout: float = TIMEOUT,
        **options,
    ) -> None:
        self.now = 0.0
        self.recovered: list[Placement] = []
        self.told = threading.Condition()
        self.breakers = Breakers(clock=lambda: self.now, jitter=lambda: 1.0)
        self.registry = EngineRegistry(**(registry or {}))
        self.applier = Applier(
            self.registry, DatabaseIsolation(None), statement_timeout=statement_timeout
        )
        self.writer = Writer(
            self.applier,
            hooks or Hooks(),
            breakers=self.breakers,
            recovered=self._note,
            **options,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.writer.close()
        self.registry.close()

    def _note(self, place):
        with self.told:
            self.recovered.append(place)
            self.told.notify_all()

    def has_recovered(self):
        """Return the places that are said to be well again, once there is one.

        The writer says so after it has answered.
        """
        with self.told:
            self.told.wait_for(lambda: self.recovered, PLENTY)
            return list(self.recovered)

    def send(self, places, count=1, kind="app_access.granted"):
        """Write events to all places at once; return place -> results, classes for errors."""
        events = [(place, make(kind, f"p{uuid4()}")) for _ in range(count) for place in places]

        async def one(place, event):
            try:
                return await self.writer.write(event, place)
            except TenantSyncError as error:
                return type(error)

        async def every():
            return await asyncio.gather(*(one(place, event) for place, event in events))

        results = {place: [] for place in places}
        for (place, _), result in zip(events, asyncio.run(every()), strict=True):
            results[place].append(result)
        return results


@pytest.fixture
def setup() -> Iterator[Setup]:
    with Setup() as made:
        yield made


def check(results, bad, expected):
    """Assert what the bad places were told, and that all others are fine."""
    for place, told in results.items():
        if place in bad:
            assert set(told) == {expected}
        else:
            assert set(told) == {Outcome.APPLIED}


# What is wrong with a place in PostgreSQL, until the context is left.


@contextmanager
def locked_table(place):
    with connected(place) as other, other.transaction():
        other.execute(f"LOCK TABLE {place.schema}.av_identities IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def held_lock(place):
    with connected(place) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [lock_key(place)])
        yield


@contextmanager
def missing_table(place):
    ask(place, "ALTER TABLE {s}av_identity_tombstones RENAME TO gone")
    yield
    ask(place, "ALTER TABLE {s}gone RENAME TO av_identity_tombstones")


@contextmanager
def slow_trigger(place, seconds=60):
    ask(
        place,
        "CREATE FUNCTION {s}doze() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN PERFORM pg_sleep({seconds}); RETURN new; END $$;"
        " CREATE TRIGGER doze BEFORE INSERT ON {s}av_identities"
        " FOR EACH ROW EXECUTE FUNCTION {s}doze()",
    )
    yield
    ask(place, "DROP TRIGGER doze ON {s}av_identities")


@contextmanager
def read_only(place):
    ask(
        place,
        "CREATE FUNCTION {s}refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'read_only_sql_transaction'; END $$;"
        " CREATE TRIGGER refuse BEFORE INSERT ON {s}av_identities"
        " FOR EACH ROW EXECUTE FUNCTION {s}refuse()",
    )
    yield
    ask(place, "DROP TRIGGER refuse ON {s}av_identities")


TROUBLES = [
    (locked_table, TenantUnavailable),
    (held_lock, TenantUnavailable),
    (missing_table, TenantNotMigrated),
    (slow_trigger, TenantUnavailable),
    (read_only, TenantUnavailable),
]


@pytest.mark.parametrize(("trouble", "expected"), TROUBLES, ids=lambda p: p.__name__)
def test_one_schema_in_trouble_fails_alone_until_it_is_repaired(
    setup, schema_places, trouble, expected
):
    """Twenty others share its database and flow; its breaker opens after three and closes again."""
    places = schema_places(21)
    bad = places[7]
    with trouble(bad):
        for number in range(3):
            assert not setup.breakers.is_open(bad), number
            check(setup.send(places), [bad], expected)
        assert setup.breakers.is_open(bad)
        started = time.monotonic()
        check(setup.send(places, 5), [bad], BreakerOpen)
        # The other twenty wait for nothing: neither a lock nor a timeout of the bad one.
        assert time.monotonic() - started < PLENTY
        assert ledger(bad) == []
        setup.now += 1
        check(setup.send(places), [bad], expected)  # the probe
        setup.now += 1.9
        check(setup.send(places), [bad], BreakerOpen)
    assert setup.recovered == []
    setup.now += 0.1
    check(setup.send(places), [], None)

    assert setup.has_recovered() == [bad]
    assert setup.breakers.quiet
    check(setup.send(places, 3), [], None)
    assert len(ledger(bad)) == 4
    until(lambda: not len(setup.writer._apart))


def test_after_an_outage_of_the_whole_database_no_event_is_refused(setup, schema_places):
    """Every place is a suspect then, and there is not room for all of them apart."""
    places = schema_places(21)
    for _ in range(2):
        for place in places:
            setup.breakers.failed(place)
    check(setup.send(places, 2), [], None)

    assert setup.breakers.quiet


def test_an_open_breaker_refuses_before_anything_is_done(setup):
    """No thread is started, no connection is made: it costs next to nothing."""
    place = Placement.of("postgresql://127.0.0.1:1/nowhere")
    for _ in range(3):
        setup.breakers.failed(place)
    with pytest.raises(BreakerOpen, match="nowhere failed several times in a row"):
        setup.writer.write_blocking(make("app_access.granted"), place)

    assert setup.writer._pool is None
    assert setup.writer._pool_apart is None
    assert setup.registry.engines == 0


def test_what_queued_before_the_breaker_opened_is_refused_by_it(schema_places):
    """Nobody waits for a second timeout of a place that is known to fail."""
    (place,) = schema_places(1)
    with Setup(statement_timeout=2.0) as setup, held_lock(place):
        for _ in range(2):
            setup.breakers.failed(place)
        first = in_thread(setup.writer.write_blocking, make("app_access.granted"), place)
        until(lambda: place in setup.writer._apart and not setup.writer._apart.get(place).jobs)
        second = in_thread(setup.writer.write_blocking, make("app_access.granted"), place)
        until(lambda: setup.writer._apart.get(place).jobs)

        assert type(first.exception(PLENTY)) is TenantUnavailable
        assert type(second.exception(PLENTY)) is BreakerOpen


def test_failures_are_counted_by_transaction(setup, schema_places):
    """Fifty events that fail together are one failure, not fifty."""
    places = schema_places(3)
    bad = places[1]
    with missing_table(bad):
        check(setup.send([bad], 50), [bad], TenantNotMigrated)
        assert not setup.breakers.is_open(bad)


@pytest.mark.parametrize("count", [2, 8])
def test_many_schemas_in_trouble_leave_the_others_alone(schema_places, count):
    """However many are locked, the others go through, on a bounded number of connections."""
    places = schema_places(21)
    bad = places[:count]
    most = 0
    with Setup() as setup, ExitStack() as locked:
        connect, lock, now = setup.registry.connect, threading.Lock(), [0]

        @contextmanager
        def counted(*arguments, **options):
            nonlocal most
            with connect(*arguments, **options) as connection:
                with lock:
                    now[0] += 1
                    most = max(most, now[0])
                try:
                    yield connection
                finally:
                    with lock:
                        now[0] -= 1

        setup.registry.connect = counted
        for place in bad:
            locked.enter_context(locked_table(place))
        for _ in range(2):
            check(setup.send(places, 2), bad, TenantUnavailable)

    assert 2 < most <= 4


def test_only_its_own_place_waits_for_a_long_lock(schema_places):
    """A lock that goes away in time costs its tenant a wait, and no event fails."""
    places = schema_places(21)
    bad = places[3]
    with Setup(statement_timeout=PLENTY) as calm, ExitStack() as lock:
        lock.enter_context(locked_table(bad))
        answers = []
        waiting = threading.Thread(
            target=lambda: answers.append(calm.send([*places[:3], bad, *places[4:]]))
        )
        waiting.start()
        # The one that is locked has no company any more: the others' next events pass it by.
        others = [place for place in places if place is not bad]
        for _ in range(3):
            check(calm.send(others), [], None)
        assert not answers
        lock.close()
        waiting.join(PLENTY)
        check(answers[0], [], None)
        assert calm.breakers.quiet
        until(lambda: not len(calm.writer._apart))


def test_two_writers_that_contend_for_every_place_finish(schema_places):
    """Two applications write to the same twenty tenants: all is applied, and nobody is blamed."""
    places = schema_places(20)
    with Setup(statement_timeout=PLENTY) as one, Setup(statement_timeout=PLENTY) as two:
        answers = at_once(partial(setup.send, places, 15) for setup in (one, two) for _ in range(2))

        for results in answers:
            check(results, [], None)
        assert one.breakers.quiet
        assert two.breakers.quiet
    for place in places:
        assert len(ledger(place)) == 60


def test_an_event_that_is_refused_says_nothing_against_its_tenant(setup, schema_places):
    """A constraint of the application's own blames the event: the breaker stays closed."""
    (place,) = schema_places(1)
    ask(place, "ALTER TABLE {s}av_identities ADD CHECK (id = 'ann')")
    for _ in range(4):
        assert setup.send([place], 2)[place] == [EventRefused] * 2
    assert setup.breakers.quiet
    assert setup.writer.write_blocking(make("app_access.granted", "ann"), place) is Outcome.APPLIED


def test_a_hook_that_fails_says_nothing_against_its_tenant(schema_places):
    """The breaker stays closed, and events without hooks are applied as ever."""
    (place,) = schema_places(1)
    hooks = Hooks()

    @hooks.on("member.joined")
    def fail(event, session):
        raise ValueError("no")

    with Setup(hooks) as setup:
        for _ in range(4):
            assert setup.send([place], kind="member.joined")[place] == [HookFailed]
        assert setup.breakers.quiet
        check(setup.send([place]), [], None)


def test_a_hook_that_waits_for_a_lock_holds_up_nobody_else(schema_places):
    """It is called again apart, where it may wait; its own failure is the hook's."""
    places = schema_places(3)
    bad = places[0]
    for place in places:
        ask(place, "CREATE TABLE {s}notes (n integer)")
    hooks = Hooks()
    waits: list[str] = []

    @hooks.on("member.joined")
    def note(event, session):
        waits.append(session.scalar(text("SHOW lock_timeout")))
        session.execute(text("INSERT INTO notes VALUES (1)"))

    with Setup(hooks) as setup:
        with connected(bad) as other, other.transaction():
            other.execute(f"LOCK TABLE {bad.schema}.notes")
            check(setup.send([bad], kind="member.joined"), [bad], HookFailed)
        assert waits == ["100ms", "0"]
        check(setup.send(places, kind="member.joined"), [], None)
    assert [ask(place, "SELECT count(*) FROM {s}notes") for place in places] == [[(1,)]] * 3


def test_a_place_that_is_slow_but_works_keeps_no_company(schema_places):
    """Its events are applied apart for as long as they are slow; then it comes back."""
    places = schema_places(3)
    bad = places[1]
    with Setup(statement_timeout=PLENTY) as setup:
        with slow_trigger(bad, 1.2):
            check(setup.send(places), [], None)
            assert setup.writer._slow == {bad}
            assert setup.breakers.quiet
        check(setup.send(places), [], None)
        assert setup.writer._slow == set()


def test_an_event_that_waited_too_long_for_its_turn_is_given_back(schema_places):
    """Behind a transaction that takes for ever nobody waits until the sender loses patience."""
    (place,) = schema_places(1)
    now = [0.0]
    with Setup(statement_timeout=1.0, clock=lambda: now[0]) as setup, held_lock(place):
        setup.breakers.failed(place)  # so that it is apart from the beginning
        first = in_thread(setup.writer.write_blocking, make("app_access.granted"), place)
        until(lambda: place in setup.writer._apart and not setup.writer._apart.get(place).jobs)
        second = in_thread(setup.writer.write_blocking, make("app_access.granted"), place)
        until(lambda: setup.writer._apart.get(place).jobs)
        now[0] += 5.1
        assert isinstance(first.exception(PLENTY), TenantUnavailable)
        with pytest.raises(TenantUnavailable, match="too slow"):
            second.result(PLENTY)


def test_a_bounded_number_of_events_waits_for_one_place(schema_places):
    """The rest is told at once, so that one tenant does not fill the memory with its requests."""
    (place,) = schema_places(1)
    with Setup(statement_timeout=PLENTY) as setup, ExitStack() as lock:
        lock.enter_context(held_lock(place))
        setup.breakers.failed(place)
        waiting = [in_thread(setup.send, [place])]
        until(lambda: place in setup.writer._apart and not setup.writer._apart.get(place).jobs)
        waiting.append(in_thread(setup.send, [place], 256))
        until(lambda: len(setup.writer._apart.get(place).jobs) == 256)
        with pytest.raises(TenantUnavailable, match="256 events wait"):
            setup.writer.write_blocking(make("app_access.granted"), place)
        lock.close()
        for sent in waiting:
            check(sent.result(PLENTY), [], None)


def in_thread(function, *arguments):
    """Call a function in a thread of its own, and return the future of its result."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function, *arguments)
    pool.shutdown(wait=False)
    return future


def until(condition):
    """Return once the condition holds; another thread is about to make it so."""
    moment = threading.Event()
    deadline = time.monotonic() + PLENTY
    while not condition():
        assert time.monotonic() < deadline
        moment.wait(0.005)


# A server that is not there, or there and silent.


class Proxy:
    """Stands between a client and the server: passes on, swallows everything, or is not there.

    Args:
        host: The server's address.
        port: The server's port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._swallows = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._listen()

    def hang(self) -> None:
        """Accept connections and bytes from now on, and pass nothing on."""
        self._swallows.set()

    def refuse(self) -> None:
        """Drop what is connected, and let nobody connect."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._drop()

    def repair(self) -> None:
        """Drop what is connected, and pass on what comes."""
        self._drop()
        self._swallows.clear()
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listen()

    def close(self) -> None:
        """End it all."""
        if self._listener.fileno() >= 0:
            self.refuse()
        self._drop()
        for thread in self._threads:
            thread.join(PLENTY)

    def _listen(self) -> None:
        self._start(self._accept, self._listener)

    def _start(self, function: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=function, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                self._start(self._pump, client, server)
                self._start(self._pump, server, client)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while received := source.recv(65536):
                if not self._swallows.is_set():
                    target.sendall(received)
            if not self._swallows.is_set():
                target.shutdown(socket.SHUT_WR)

    def _drop(self) -> None:
        while self._sockets:
            dropped = self._sockets.pop()
            with suppress(OSError):
                dropped.shutdown(socket.SHUT_RDWR)
            dropped.close()


@pytest.fixture
def proxy(postgres) -> Iterator[Proxy]:
    made = Proxy(postgres.server.host, postgres.server.port)
    yield made
    made.close()


def behind(proxy, place):
    """Return the same place, reached through the proxy: another server, as it seems."""
    return Placement(place.url.set(host="127.0.0.1", port=proxy.port), place.schema)


QUICK = {"factory": partial(make_engine, connect_timeout=1.0)}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("trouble", [Proxy.hang, Proxy.refuse])
def test_a_server_that_hangs_or_is_gone_fails_its_own_tenant_only(
    proxy, schema_places, trouble, known
):
    """Whether connections were open already or not: told in time, opened after three, closed."""
    places = schema_places(21)
    bad = places[4] = behind(proxy, places[4])
    with Setup(registry=QUICK) as setup:
        if known:
            check(setup.send(places), [], None)
        trouble(proxy)
        for _ in range(3):
            assert not setup.breakers.is_open(bad)
            started = time.monotonic()
            check(setup.send(places), [bad], TenantUnavailable)
            assert time.monotonic() - started < PLENTY
        assert setup.breakers.is_open(bad)
        check(setup.send(places, 3), [bad], BreakerOpen)
        proxy.repair()
        setup.now += 1
        check(setup.send(places), [], None)
        assert setup.has_recovered() == [bad]


def test_a_server_that_hangs_in_a_hook_is_given_up(proxy, schema_places):
    """The hook's statement gets no answer: its thread is free again, and the event not blamed."""
    bad = behind(proxy, schema_places(1)[0])
    hooks = Hooks()

    @hooks.on("member.joined")
    def hang(event, session):
        proxy.hang()
        session.execute(text("SELECT 1"))

    with Setup(hooks, QUICK) as setup:
        started = time.monotonic()
        check(setup.send([bad], kind="member.joined"), [bad], TenantUnavailable)
        assert time.monotonic() - started < PLENTY


def test_a_server_that_hangs_while_sqlalchemy_greets_it_is_given_up(proxy, schema_places):
    """A new engine asks the server a few things; that is bounded as connecting is."""
    bad = behind(proxy, schema_places(1)[0])
    engine = make_engine(bad.url, connect_timeout=1.0)
    connect = engine.dialect.loaded_dbapi.connect

    def then_hang(*arguments, **named):
        made = connect(*arguments, **named)
        proxy.hang()
        return made

    engine.dialect.loaded_dbapi.connect = then_hang
    started = time.monotonic()
    with pytest.raises(Exception, match="no answer within 1 s"), engine.connect():
        pass
    engine.dispose()

    assert time.monotonic() - started < PLENTY


def test_a_stopped_backend_costs_the_events_that_met_it_a_moment(setup, schema_places):
    """One process of the server hangs: the batch is done again on another, and nobody fails."""
    places = schema_places(20)
    check(setup.send(places), [], None)
    with connected(places[0]) as other:
        pids = [
            pid
            for (pid,) in other.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'tenantsync'"
                " AND datname = current_database()"
            )
        ]
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        check(setup.send(places), [], None)
        assert time.monotonic() - started < PLENTY
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    assert setup.breakers.quiet


def test_no_free_connection_says_nothing_against_a_tenant(schema_places):
    """Our own limit is not the tenant's fault: its breaker stays closed."""
    (place,) = schema_places(1)
    options = {"max_connections": 1, "patience": 0.05}
    with Setup(registry=options) as setup, setup.registry.connect(place):
        for _ in range(4):
            check(setup.send([place]), [place], NoConnection)
        assert not setup.breakers.is_open(place)


# SQLite.


def test_a_locked_file_fails_its_own_tenant_only(tmp_path, migrated_templates):
    """Within the lock's timeout; the other files are written meanwhile."""
    places = []
    for number in range(12):
        file = tmp_path / f"{number}.db"
        shutil.copyfile(migrated_templates(0), file)
        places.append(Placement.of(f"sqlite:///{file}"))
    bad = places[5]
    options = {"factory": partial(make_engine, lock_timeout=0.3)}
    with Setup(registry=options) as setup:
        with connected(bad) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(3):
                check(setup.send(places), [bad], TenantUnavailable)
            check(setup.send(places, 3), [bad], BreakerOpen)
            other.execute("ROLLBACK")
        setup.now += 1
        check(setup.send(places), [], None)
        assert setup.has_recovered() == [bad]
        # What the shared writer did to the connection's patience is undone.
        with setup.registry.connect(bad) as connection:
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 300


# The worker's way in.


def test_a_drain_is_applied_apart_in_order_and_closes_the_breaker(setup, schema_places):
    """It is not refused by an open breaker: it is what finds out that the place is well again."""
    (place,) = schema_places(1)
    with missing_table(place):
        for _ in range(3):
            setup.send([place])
        assert setup.breakers.is_open(place)
        refused = setup.writer.write_apart([make("app_access.granted") for _ in range(3)], place)
        assert [type(result) for result in refused] == [TenantNotMigrated] * 3
    events = [make("app_access.granted", f"p{n}", id=f"e-{n:03}") for n in range(300)]

    results = setup.writer.write_apart([*events, events[0]], place)

    assert results == [Outcome.APPLIED] * 300 + [Outcome.DUPLICATE]
    assert setup.has_recovered() == [place]
    assert ledger(place) == sorted(event.id for event in events)


def test_a_drain_calls_hooks_unless_told_otherwise(schema_places):
    """An event that fails in its hook fails alone."""
    (place,) = schema_places(1)
    hooks = Hooks()
    called: list[str] = []

    @hooks.on("member.joined")
    def note(event, session):
        called.append(event.sub)
        if event.sub == "bob":
            raise ValueError("no")

    with Setup(hooks) as setup:
        events = [make("member.joined", sub) for sub in ("ann", "bob", "cy")]
        results = setup.writer.write_apart(events, place)
        assert [results[0], type(results[1]), results[2]] == [
            Outcome.APPLIED,
            HookFailed,
            Outcome.APPLIED,
        ]
        assert called == ["ann", "bob", "cy"]
        results = setup.writer.write_apart(events, place, with_hooks=False)
        assert results == [Outcome.DUPLICATE, Outcome.APPLIED, Outcome.DUPLICATE]
        assert called == ["ann", "bob", "cy"]
    assert people(place) == ["ann", "bob", "cy"]


def test_a_drain_with_hooks_asks_a_dead_server_once(proxy, schema_places):
    """Each event has a transaction of its own; after the first refusal the rest is not tried."""
    bad = behind(proxy, schema_places(1)[0])
    hooks = Hooks()
    hooks.on("member.joined")(lambda event, session: None)
    proxy.hang()
    with Setup(hooks, QUICK) as setup:
        started = time.monotonic()
        results = setup.writer.write_apart([make("member.joined") for _ in range(100)], bad)
        assert time.monotonic() - started < PLENTY
        assert {type(result) for result in results} == {TenantUnavailable}
        assert not setup.breakers.is_open(bad)


def test_a_writer_that_closes_finishes_what_waits_and_refuses_what_comes(schema_places):
    """Also what waits apart; afterwards every way in is closed."""
    places = schema_places(3)
    setup = Setup()
    with setup.registry, held_lock(places[0]):
        answers = []
        sender = threading.Thread(target=lambda: answers.append(setup.send(places, 3)))
        sender.start()
        while not len(setup.writer._apart) and sender.is_alive():
            sender.join(0.01)
        setup.writer.close()
        sender.join(PLENTY)
        check(answers[0], [places[0]], TenantUnavailable)
        with pytest.raises(TenantUnavailable, match="stopping"):
            setup.writer.write_blocking(make("member.joined"), places[1])
        (refused,) = setup.writer.write_apart([make("member.joined")], places[1])
        assert isinstance(refused, TenantUnavailable)
        setup.writer.close()
