"""What breaks stays with whom it belongs to, and is told without secrets."""

import asyncio
import socket
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest
from guarding import (
    TABLES,
    ask,
    at_once,
    connected,
    counts,
    ledger,
    make,
    numbered,
    people,
    told,
)
from sqlalchemy import create_engine, text

from tenantsync.errors import (
    EventRefused,
    HookFailed,
    TenantNotIsolated,
    TenantNotMigrated,
    TenantSyncError,
    TenantUnavailable,
)
from tenantsync.observe import Outcome
from tenantsync.sync.apply import Limits, Work
from tenantsync.sync.batch import Applier
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.postgres import lock_key
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement

REFUSE_BAD = """
CREATE FUNCTION {s}refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF new.email = 'bad@example.test' THEN RAISE EXCEPTION 'the application says no'; END IF;
  RETURN new;
END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {s}av_identities
  FOR EACH ROW EXECUTE FUNCTION {s}refuse();
"""


def handle_all(handler, events):
    """Handle events from one event loop, so that they meet in batches."""

    async def one(event):
        try:
            return await handler.handle(event)
        except TenantSyncError as error:
            return type(error)

    async def every():
        return await asyncio.gather(*map(one, events))

    return asyncio.run(every())


def applied(registry, works, **options):
    """Apply works together, and those that were taken out apart, as the writer does."""
    applier = Applier(registry, DatabaseIsolation(None), **options)
    together = applier.apply(works)
    return [
        applier.apply_apart(work) if results is None else results
        for work, results in zip(works, together, strict=True)
    ]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("DROP TABLE {s}av_identities CASCADE", TenantNotMigrated),
        ("DROP TABLE {s}av_sync_events", TenantNotMigrated),
        ("ALTER TABLE {s}av_identities DROP COLUMN clocks", TenantNotMigrated),
        ("DROP SCHEMA tenant_0003 CASCADE", TenantNotMigrated),
        ("ALTER TABLE {s}av_identities ADD CHECK (email IS NULL)", EventRefused),
        ("ALTER TABLE {s}av_identities ADD extra integer NOT NULL", EventRefused),
        ("ALTER TABLE {s}av_sync_events RENAME COLUMN outcome TO result", TenantNotMigrated),
    ],
)
def test_one_broken_tenant_fails_alone(schema_places, damage, expected):
    """Of twelve tenants in the batch one is broken; the events of the others are applied."""
    tenants = numbered(schema_places(12))
    ask(tenants["t3"].placement, damage)
    with IdentitySyncHandler(tenants.get, observers=()) as handler:
        events = [
            make(kind, name, tenant=name)
            for kind in ("member.joined", "app_access.granted")
            for name in tenants
        ]
        results = handle_all(handler, events)

    for event, result in zip(events, results, strict=True):
        assert result == (expected if event.tenant_id == "t3" else Outcome.APPLIED)


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("damage", ["role", "schema", "table", "check"])
def test_a_broken_place_fails_alone_wherever_it_stands_in_the_batch(schema_places, index, damage):
    """The first place of a transaction is not mistaken for what comes before it."""
    places = schema_places(3)
    broken = places[index]
    match damage:
        case "role":
            places[index] = Placement(broken.url, broken.schema, "nobody_has_this_role")
        case "schema":
            places[index] = Placement(broken.url, "nobody_has_this_schema")
        case "table":
            ask(broken, "DROP TABLE {s}av_identity_tombstones")
        case "check":
            ask(broken, "ALTER TABLE {s}av_sync_events ADD CHECK (type = '')")
    works = [Work(place, [make("member.joined", tenant=f"t{n}")]) for n, place in enumerate(places)]
    with EngineRegistry() as registry:
        results = applied(registry, works)

    for number, (result,) in enumerate(results):
        if number == index:
            assert isinstance(result, TenantUnavailable | TenantNotMigrated | EventRefused)
        else:
            assert result is Outcome.APPLIED
            assert people(places[number]) == ["ann"]


def test_two_broken_places_in_one_batch_spare_the_third(schema_places):
    """When the rest fails a second time, everybody runs alone."""
    places = schema_places(3)
    for place in places[:2]:
        ask(place, "DROP TABLE {s}av_identities CASCADE")
    works = [Work(place, [make("member.joined")]) for place in places]
    with EngineRegistry() as registry:
        results = applied(registry, works)

    assert [type(result) for (result,) in results[:2]] == [TenantNotMigrated] * 2
    assert results[2] == [Outcome.APPLIED]


def test_a_constraint_of_the_application_refuses_one_event_only(migrated_place):
    """The events of the same tenant that the application's own rule allows are applied."""
    if migrated_place.is_postgres:
        ask(migrated_place, REFUSE_BAD)
    else:
        ask(
            migrated_place,
            "CREATE TRIGGER refuse BEFORE INSERT ON av_identities"
            " WHEN new.email = 'bad@example.test'"
            " BEGIN SELECT RAISE(ABORT, 'the application says no'); END",
        )
    subs = ["a", "b", "bad", "c", "d"]
    work = Work(migrated_place, [make("member.joined", sub, id=f"e-{sub}") for sub in subs])
    with EngineRegistry() as registry:
        (results,) = applied(registry, [work])

    refused = results.pop(2)
    assert isinstance(refused, EventRefused)
    # Neither the address nor what the database said of it; a database name may hold "bad".
    assert "@example" not in str(refused)
    assert results == [Outcome.APPLIED] * 4
    assert people(migrated_place) == ["a", "b", "c", "d"]
    assert ledger(migrated_place) == ["e-a", "e-b", "e-c", "e-d"]


def test_a_constraint_checked_at_commit_refuses_one_event_only(schema_places):
    """A deferred constraint fails the COMMIT, which blames nobody; the others are applied still."""
    places = schema_places(3)
    ask(places[1], "CREATE TABLE {s}allowed (id text PRIMARY KEY)")
    ask(places[1], "INSERT INTO {s}allowed VALUES ('good')")
    ask(
        places[1],
        "ALTER TABLE {s}av_identities ADD FOREIGN KEY (id)"
        f" REFERENCES {places[1].schema}.allowed DEFERRABLE INITIALLY DEFERRED",
    )
    works = [Work(place, [make("member.joined", s) for s in ("good", "ill")]) for place in places]
    with EngineRegistry() as registry:
        results = applied(registry, works)

    assert results[0] == results[2] == [Outcome.APPLIED] * 2
    assert results[1][0] is Outcome.APPLIED
    assert isinstance(results[1][1], EventRefused)
    assert people(places[1]) == ["good"]


@pytest.mark.parametrize("kind", ["app_access.granted", "member.joined"])
def test_a_commit_that_fails_leaves_nothing_behind(migrated_place, kind):
    """A violated deferred constraint ends the transaction, and the next event finds a clean one."""
    ask(migrated_place, "CREATE TABLE {s}allowed (id text PRIMARY KEY)")
    home = f"{migrated_place.schema}." if migrated_place.is_postgres else ""
    ask(
        migrated_place,
        "CREATE TABLE {s}guarded (id text,"
        f" FOREIGN KEY (id) REFERENCES {home}allowed DEFERRABLE INITIALLY DEFERRED)",
    )
    if migrated_place.is_postgres:
        ask(
            migrated_place,
            f"CREATE FUNCTION {{s}}guard() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN INSERT INTO {home}guarded VALUES (new.id); RETURN new; END $$;"
            f" CREATE TRIGGER guard BEFORE INSERT ON {{s}}av_identities"
            f" FOR EACH ROW EXECUTE FUNCTION {{s}}guard()",
        )
    else:
        ask(
            migrated_place,
            "CREATE TRIGGER guard AFTER INSERT ON av_identities"
            " BEGIN INSERT INTO guarded VALUES (new.id); END",
        )
    registry = EngineRegistry(max_connections=1)
    with registry, IdentitySyncHandler(migrated_place, registry=registry, observers=()) as handler:
        handler.on("member.joined")(lambda event, session: None)

        assert told(handler, make(kind, "ann")) is EventRefused
        assert counts(migrated_place) == dict.fromkeys(TABLES, 0)
        ask(migrated_place, "INSERT INTO {s}allowed VALUES ('ann')")
        assert told(handler, make(kind, "ann")) is Outcome.APPLIED
        subs = ["bob", "cy", "ann"]
        (results,) = applied(registry, [Work(migrated_place, [make(kind, s) for s in subs])])

    assert isinstance(results[0], EventRefused)
    assert isinstance(results[1], EventRefused)
    assert results[2] in (Outcome.APPLIED, Outcome.STALE)
    assert people(migrated_place) == ["ann"]


def test_a_place_that_is_locked_elsewhere_delays_nobody_else_into_failure(schema_places):
    """Another process holds one tenant's lock for too long: the other tenants go through."""
    places = schema_places(4)
    works = [Work(place, [make("member.joined")]) for place in places]
    with EngineRegistry() as registry, connected(places[0]) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [lock_key(places[2])])
        results = applied(registry, works, statement_timeout=0.2)

    assert isinstance(results[2][0], TenantUnavailable)
    assert [results[n] for n in (0, 1, 3)] == [[Outcome.APPLIED]] * 3


def test_a_table_that_is_locked_elsewhere_fails_its_own_tenant_only(schema_places):
    """Somebody's LOCK TABLE in one schema runs into the timeout of that tenant alone."""
    places = schema_places(3)
    works = [Work(place, [make("member.joined")]) for place in places]
    with EngineRegistry() as registry, connected(places[0]) as other, other.transaction():
        other.execute(f"LOCK TABLE {places[1].schema}.av_identities")
        results = applied(registry, works, statement_timeout=0.2)

    assert isinstance(results[1][0], TenantUnavailable)
    assert [results[n] for n in (0, 2)] == [[Outcome.APPLIED]] * 2


def test_who_holds_a_batch_up_is_known_without_waiting(schema_places):
    """The others are committed while the one whose lock is held is waited for."""
    places = schema_places(3)
    works = [Work(place, [make("member.joined")]) for place in places]
    with EngineRegistry() as registry, connected(places[0]) as other, ThreadPoolExecutor(1) as pool:
        applier = Applier(registry, DatabaseIsolation(None))
        applier._hurry = Limits(60.0, 60.0)
        other.execute("SELECT pg_advisory_lock(%s)", [lock_key(places[1])])
        answer = pool.submit(applier.apply, works)
        deadline = time.monotonic() + 30
        while not (people(places[0]) and people(places[2])):
            assert time.monotonic() < deadline
        assert not answer.done()
        other.execute("SELECT pg_advisory_unlock_all()")

        assert answer.result(30) == [[Outcome.APPLIED]] * 3


def test_who_locks_a_table_is_known_after_a_moment(schema_places):
    """A shared batch waits for a lock much less long than a statement may take."""
    places = schema_places(3)
    works = [Work(place, [make("member.joined")]) for place in places]
    with EngineRegistry() as registry, connected(places[0]) as other, other.transaction():
        applier = Applier(registry, DatabaseIsolation(None))
        applier._hurry = replace(applier._hurry, statement=60.0)
        other.execute(f"LOCK TABLE {places[1].schema}.av_identities")
        started = time.monotonic()
        results = applier.apply(works)

    assert results == [[Outcome.APPLIED], None, [Outcome.APPLIED]]
    assert time.monotonic() - started < 20


def terminate(place):
    """End every backend of the place's database but our own, and return how many there were."""
    with connected(place) as connection:
        return connection.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_type = 'client backend'"
        ).fetchone()[0]


@pytest.mark.parametrize("idle", [1, 6])
@pytest.mark.parametrize("kind", ["app_access.granted", "member.joined"])
def test_after_the_server_ended_its_connections_the_next_event_succeeds(schema_places, idle, kind):
    """A restart of the server leaves a pool of dead connections; no event is refused for that."""
    (place,) = schema_places(1)
    registry = EngineRegistry(max_connections=10, idle=10)
    with registry, IdentitySyncHandler(place, registry=registry, observers=()) as handler:
        handler.on("member.joined")(lambda event, session: None)
        with ExitStack() as stack:
            for _ in range(idle):
                stack.enter_context(registry.connect(place)).exec_driver_sql("SELECT 1")

        assert terminate(place) == idle
        assert handler.handle_blocking(make(kind)) is Outcome.APPLIED
        assert terminate(place) >= 1
        assert handler.handle_blocking(make(kind, at=1)) is Outcome.STALE


def test_a_connection_lost_inside_the_transaction_is_made_good(schema_places):
    """The backend dies under a running transaction: the event is applied all the same, once."""
    (place,) = schema_places(1)
    ask(place, "CREATE TABLE {s}notes (event_id text)")
    with IdentitySyncHandler(place, observers=()) as handler:

        @handler.on("member.joined")
        def die_once(event, session):
            session.execute(text("INSERT INTO notes VALUES (:id)"), {"id": event.id})
            calls.append(event.id)
            if len(calls) == 1:
                terminate(place)
                session.execute(text("SELECT 1"))

        calls: list[str] = []
        result = told(handler, make("member.joined", id="e-1"))
        again = told(handler, make("member.joined", id="e-1"))

    # A hook's error is the hook's, whatever its cause: refused, or done again, but never halfway.
    assert {result, again} <= {Outcome.APPLIED, Outcome.DUPLICATE, HookFailed}
    assert ask(place, "SELECT event_id FROM {s}notes") == [("e-1",)]
    assert ledger(place) == ["e-1"]


def test_a_server_that_is_down_is_told_without_its_password(tmp_path):
    """Neither message, representation nor traceback of the error has the URL's password."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        url = f"postgresql+psycopg://app:hunter2@127.0.0.1:{port}/main"
        with IdentitySyncHandler(url, observers=()) as handler:
            with pytest.raises(TenantUnavailable) as caught:
                handler.handle_blocking(make("member.joined"))
            handler.on("member.left")(lambda event, session: None)
            with pytest.raises(TenantUnavailable) as hooked:
                handler.handle_blocking(make("member.left"))

    for error in (caught.value, hooked.value):
        shown = str(error) + repr(error) + "".join(traceback.format_exception(error))
        assert "hunter2" not in shown
        assert "127.0.0.1" in str(error)


def test_a_database_that_is_missing_is_unavailable(postgres):
    """The server is there and the tenant's database is not: later, perhaps."""
    url = postgres.url("no_such_database")
    with IdentitySyncHandler(url, observers=()) as handler:
        assert told(handler, make("member.joined")) is TenantUnavailable


FAIL_AT_FIRST = """
CREATE SEQUENCE {s}tries;
CREATE FUNCTION {s}fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('SCHEMA.tries') <= LIMIT THEN
    RAISE EXCEPTION 'chosen as a victim' USING ERRCODE = 'STATE';
  END IF;
  RETURN new;
END $$;
CREATE TRIGGER fail BEFORE INSERT ON {s}av_identities FOR EACH ROW EXECUTE FUNCTION {s}fail();
"""


@pytest.mark.parametrize("kind", ["app_access.granted", "member.joined"])
@pytest.mark.parametrize("state", ["40P01", "40001"])
@pytest.mark.parametrize(("failures", "expected"), [(2, Outcome.APPLIED), (99, TenantUnavailable)])
def test_a_victim_of_a_deadlock_is_tried_again(schema_places, kind, state, failures, expected):
    """40P01 and 40001 ask for another try; a few are made, and then it is the sender's turn."""
    (place,) = schema_places(1)
    script = FAIL_AT_FIRST.replace("SCHEMA", str(place.schema)).replace("STATE", state)
    ask(place, script.replace("LIMIT", str(failures)))
    with IdentitySyncHandler(place, observers=()) as handler:
        handler.on("member.joined")(lambda event, session: None)
        result = told(handler, make(kind))

    assert result is expected
    assert people(place) == (["ann"] if expected is Outcome.APPLIED else [])
    assert 3 <= ask(place, "SELECT last_value FROM {s}tries")[0][0] <= 8


def test_a_missing_sqlite_file_is_unavailable_and_is_not_made(tmp_path):
    """A wrong path never becomes an empty database that answers every question with nobody."""
    file = tmp_path / "folder" / "gone.db"
    with IdentitySyncHandler(f"sqlite:///{file}", observers=()) as handler:
        assert told(handler, make("member.joined")) is TenantUnavailable

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"this is no database" * 400, b""])
def test_a_file_that_is_no_migrated_database_is_refused(tmp_path, content):
    """A file of something else is unavailable; an empty one is not migrated."""
    file = tmp_path / "odd.db"
    file.write_bytes(content)
    with IdentitySyncHandler(f"sqlite:///{file}", observers=()) as handler:
        result = told(handler, make("member.joined"))

    assert result is (TenantUnavailable if content else TenantNotMigrated)


@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", ["app_access.granted", "member.joined"])
def test_a_locked_sqlite_file_is_unavailable_after_the_timeout(migrated_place, kind):
    """Somebody holds the write lock: refused in time, and applied once the lock is gone."""
    registry = EngineRegistry(factory=partial(make_engine, lock_timeout=0.05))
    event = make(kind)
    with registry, IdentitySyncHandler(migrated_place, registry=registry, observers=()) as handler:
        handler.on("member.joined")(lambda event, session: None)
        with connected(migrated_place) as other:
            other.execute("BEGIN IMMEDIATE")
            assert told(handler, event) is TenantUnavailable
            other.execute("ROLLBACK")
        assert told(handler, event) is Outcome.APPLIED


@pytest.mark.parametrize("kind", ["app_access.granted", "member.joined"])
def test_an_autocommit_engine_is_refused(schema_places, kind):
    """Without a transaction there is no lock, no binding, and no all or nothing."""
    (place,) = schema_places(1)
    engine = create_engine(place.url, isolation_level="AUTOCOMMIT")
    mine = Placement(place.url, place.schema, engine=engine)
    with IdentitySyncHandler(mine, observers=()) as handler:
        handler.on("member.joined")(lambda event, session: None)
        result = told(handler, make(kind))
    engine.dispose()

    assert result is TenantNotIsolated
    assert counts(place) == dict.fromkeys(TABLES, 0)


@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
@pytest.mark.parametrize("options", [{}, {"isolation_level": "AUTOCOMMIT"}])
def test_a_plain_sqlite_engine_of_the_callers_own_is_made_safe(migrated_place, options):
    """Whatever the engine's own idea of transactions, an event is applied whole or not at all."""
    engine = create_engine(migrated_place.url, **options)
    ask(migrated_place, "CREATE TABLE notes (event_id text)")
    with IdentitySyncHandler(engine, observers=()) as handler:

        @handler.on("member.joined")
        def raise_on_bob(event, session):
            session.execute(text("INSERT INTO notes VALUES (:id)"), {"id": event.id})
            if event.sub == "bob":
                raise ValueError("no")

        results = [
            told(handler, make(kind, sub, id=f"{sub}/{kind}"))
            for sub in ("ann", "bob")
            for kind in ("member.joined", "subject.created")
        ]
    engine.dispose()

    assert results[0] is results[1] is results[3] is Outcome.APPLIED
    assert results[2] is HookFailed
    assert ledger(migrated_place) == [
        "ann/member.joined",
        "ann/subject.created",
        "bob/subject.created",
    ]
    assert ask(migrated_place, "SELECT event_id FROM notes") == [("ann/member.joined",)]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_read_only", "on"),
        ("synchronous_commit", "off"),
        ("search_path", "neighbour"),
        ("statement_timeout", "'1h'"),
    ],
)
def test_what_the_role_is_set_to_does_not_count_in_our_transaction(schema_places, setting, value):
    """Isolation level, durability, timeout and path are ours, whatever the login's defaults."""
    (place,) = schema_places(1)
    with connected(place) as connection:
        connection.execute(f"ALTER DATABASE {place.url.database} SET {setting} = {value}")
    with IdentitySyncHandler(place, observers=()) as handler:

        @handler.on("member.joined")
        def look(event, session):
            names = ("transaction_isolation", "synchronous_commit", "statement_timeout")
            seen.extend(session.scalar(text(f"SHOW {name}")) for name in names)

        seen: list[str] = []
        results = [told(handler, make(kind)) for kind in ("member.joined", "app_access.granted")]

    assert results == [Outcome.APPLIED, Outcome.APPLIED]
    assert seen == ["read committed", "on", "5s"]


def test_a_full_server_makes_the_event_wait_for_its_turn(postgres, schema_places):
    """More senders than connections: everybody waits a little, nobody is refused."""
    places = schema_places(12)
    tenants = numbered(places)
    registry = EngineRegistry(max_connections=1, patience=30)
    handlers = [IdentitySyncHandler(tenants.get, registry=registry, observers=()) for _ in range(4)]
    with registry:
        results = at_once(
            partial(told, handlers[n % 4], make("member.joined", f"p{n}", tenant=f"t{n % 12}"))
            for n in range(48)
        )
        for handler in handlers:
            handler.close()

    assert set(results) == {Outcome.APPLIED}


def test_no_connection_in_time_is_unavailable_and_says_which_settings_help(schema_places):
    """The one connection is taken: the event is refused after the registry's patience."""
    (place,) = schema_places(1)
    registry = EngineRegistry(max_connections=1, patience=0.05)
    with (
        registry,
        IdentitySyncHandler(place, registry=registry, observers=()) as handler,
        registry.connect(place),
        pytest.raises(TenantUnavailable, match="max_connections"),
    ):
        handler.handle_blocking(make("member.joined"))
