"""No row outside its tenant's schema, ever; and a control: the check would see one."""

import shutil
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from guarding import TABLES, ask, at_once, connected, counts, ledger, make, numbered, people, told
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tenantsync.errors import (
    HookFailed,
    TenantNotIsolated,
    TenantNotMigrated,
    TenantUnavailable,
)
from tenantsync.events import Event
from tenantsync.models import Identity
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.hooks import Hooks
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import DatabaseIsolation, Isolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement, Tenant

SCHEMAS = 50
CONNECTIONS = 4
DECOYS = ("public", "neighbour")
FAILING = {
    "raise": HookFailed,
    "wander": TenantNotIsolated,
    "wander_for_good": TenantNotIsolated,
    "become_another": TenantNotIsolated,
}


class Base(DeclarativeBase):
    """The base of the application's own models."""


class Note(Base):
    """A table of the application's own, with no schema in its name."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    event_id: Mapped[str]


class Careless(DatabaseIsolation):
    """The negative control: binds nothing, and agrees to any answer."""

    def bind(self, cursor: Any, placement: Placement) -> None:
        """Leave the transaction where it is."""

    def confirm(self, answer: Sequence[Any] | None, placement: Placement) -> str:
        """Agree."""
        return "1"


def note(event: Event, session: Session) -> None:
    session.execute(text("INSERT INTO notes (event_id) VALUES (:id)"), {"id": event.id})


def behave(event: Event, session: Session) -> None:
    """Do what the subject of the event says, and write a note by raw, unqualified SQL."""
    note(event, session)
    match _manner_of(event):
        case "commit":
            session.commit()
            note(event, session)
        case "roll_back":
            session.rollback()
            note(event, session)
        case "orm":
            person = session.get_one(Identity, event.sub)
            person.nickname = event.sub
            session.add(Note(event_id=event.id))
        case "raise":
            raise ValueError("no")
        case "wander":
            session.execute(text("SET LOCAL search_path TO neighbour"))
            note(event, session)
        case "wander_for_good":
            session.execute(text("SET search_path TO neighbour, public"))
            note(event, session)
            session.commit()
        case "wander_and_return":
            home = session.scalar(text("SELECT current_schema()"))
            session.execute(text("SET SESSION search_path TO neighbour"))
            session.execute(text(f'SET LOCAL search_path TO "{home}"'))
            note(event, session)
        case "wander_and_undo":
            session.execute(text("SET search_path TO neighbour"))
            note(event, session)
            session.rollback()
            note(event, session)
        case "become_another":
            session.execute(text("SET LOCAL ROLE pg_monitor"))


def _manner_of(event: Event) -> str:
    assert event.sub is not None
    return event.sub.split("/")[1]


MANNERS = (
    *("plain", "commit", "roll_back", "orm", "wander_and_return", "wander_and_undo"),
    *FAILING,
)


@pytest.fixture
def tenants(schema_places: Callable[[int], list[Placement]]) -> dict[str, Tenant]:
    """Fifty tenants in schemas, each with notes; decoys of all tables stand beside them."""
    made = numbered(schema_places(SCHEMAS))
    first = made["t0"].placement
    schemas = [tenant.placement.schema for tenant in made.values()]
    with connected(first) as connection:
        connection.execute("CREATE SCHEMA neighbour")
        for decoy in DECOYS:
            for table in TABLES:
                connection.execute(
                    f"CREATE TABLE {decoy}.{table} (LIKE {first.schema}.{table} INCLUDING ALL)"
                )
        for schema in (*schemas, *DECOYS):
            connection.execute(
                f"CREATE TABLE {schema}.notes ("
                "id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_id text NOT NULL)"
            )
    return made


def strangers(tenants: dict[str, Tenant]) -> list[tuple[str, str, str]]:
    """Return (schema, table, id) of every row that is not in the schema its id names."""
    owners = {tenant.placement.schema: name for name, tenant in tenants.items()}
    place = tenants["t0"].placement
    found = []
    columns = dict.fromkeys(TABLES, "id") | {"av_sync_events": "event_id", "notes": "event_id"}
    with connected(place) as connection:
        tables = connection.execute(
            "SELECT relnamespace::regnamespace::text, relname FROM pg_class"
            " WHERE relkind = 'r' AND relname = ANY (%s)",
            [list(columns)],
        ).fetchall()
        for schema, table in tables:
            for (name,) in connection.execute(f"SELECT {columns[table]} FROM {schema}.{table}"):
                if name.split("/")[0] != owners.get(schema):
                    found.append((schema, table, name))
    return found


def work_through(
    tenants: dict[str, Tenant], isolation: Isolation | None = None
) -> tuple[dict[str, Any], int]:
    """Send events of all manners to all tenants at once.

    Returns:
        What became of each event id, and the most connections that the server saw at once.
    """
    hooks = Hooks()
    hooks.on("member.*")(behave)
    events = [
        event
        for name in tenants
        for manner in MANNERS
        for event in (
            make("app_access.granted", f"{name}/{manner}", tenant=name, id=f"{name}/{manner}/g"),
            make("member.joined", f"{name}/{manner}", tenant=name, id=f"{name}/{manner}/j"),
        )
    ]
    place = tenants["t0"].placement
    done = threading.Event()
    most = 0

    def watch() -> None:
        nonlocal most
        with connected(place) as connection:
            while not done.wait(0.005):
                (row,) = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND application_name = 'tenantsync'"
                ).fetchall()
                most = max(most, row[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    registry = EngineRegistry(max_connections=CONNECTIONS, idle=CONNECTIONS, patience=60)
    handlers = [
        IdentitySyncHandler(
            tenants.get, registry=registry, hooks=hooks, isolation=isolation, observers=()
        )
        for _ in range(6)
    ]
    try:
        # By event and not by tenant, so that neighbours in a batch belong to different tenants.
        events.sort(key=lambda event: hash((event.type, event.sub)))
        # By manner: three that fail in a row at one handler would open its tenant's breaker.
        jobs = [
            partial(told, handlers[MANNERS.index(_manner_of(event)) % len(handlers)], event)
            for event in events
        ]
        results = at_once(jobs, threads=24)
    finally:
        for handler in handlers:
            handler.close()
        registry.close()
        done.set()
        watcher.join()
    return {event.id: result for event, result in zip(events, results, strict=True)}, most


def test_no_row_is_ever_outside_its_schema(tenants):
    """Fifty schemas, four connections, and hooks of every manner: each row is where it belongs."""
    results, most = work_through(tenants)

    assert strangers(tenants) == []
    for name, tenant in tenants.items():
        for manner in MANNERS:
            expected = FAILING.get(manner, Outcome.APPLIED)
            assert (manner, results[f"{name}/{manner}/j"]) == (manner, expected)
            assert results[f"{name}/{manner}/g"] is Outcome.APPLIED
        accepted = sorted(
            key
            for key, result in results.items()
            if key.startswith(f"{name}/") and result is Outcome.APPLIED
        )
        assert ledger(tenant.placement) == accepted
        notes = ask(tenant.placement, "SELECT event_id, count(*) FROM {s}notes GROUP BY 1")
        assert dict(notes) == {
            f"{name}/{manner}/j": 2 if manner in ("commit", "orm", "wander_and_return") else 1
            for manner in MANNERS
            if manner not in FAILING
        }
        nicknames = "SELECT id FROM {s}av_identities WHERE nickname = id"
        assert ask(tenant.placement, nicknames) == [(f"{name}/orm",)]
    assert 1 < most <= CONNECTIONS


def test_the_check_sees_what_a_careless_isolation_lets_through(tenants):
    """With an isolation that neither binds nor proves, the very same check reports rows outside."""
    work_through(tenants, Careless(None))

    found = strangers(tenants)
    assert {"public", "neighbour"} <= {schema for schema, _, _ in found}
    assert {table for _, table, _ in found} == {"notes"}


def test_a_missing_schema_is_an_error_and_nothing_is_written_anywhere(tenants):
    """PostgreSQL accepts a search_path that does not exist; public must not answer for it."""
    gone = Tenant("gone", "gone", Placement(tenants["t0"].placement.url, "tenant_gone"))
    known = {"gone": gone, **tenants}
    with IdentitySyncHandler(known.get, observers=()) as handler:

        @handler.on("member.joined")
        def raw(event, session):
            note(event, session)

        results = at_once(
            partial(told, handler, make(kind, f"{name}/x", tenant=name, id=f"{name}/{kind}"))
            for name in known
            for kind in ("app_access.granted", "member.joined")
        )

    assert results[:2] == [TenantNotMigrated, TenantNotMigrated]
    assert set(results[2:]) == {Outcome.APPLIED}
    assert strangers(tenants) == []
    (schemas,) = ask(gone.placement, "SELECT count(*) FROM pg_namespace WHERE nspname ~ 'gone'")
    assert schemas == (0,)


def test_a_dropped_table_is_never_replaced_by_the_one_in_public(tenants):
    """Where the tenant's table is missing, the decoy of that name in public stays empty."""
    place = tenants["t1"].placement
    ask(place, "DROP TABLE {s}av_identities CASCADE")
    ask(place, "DROP TABLE {s}notes")
    with IdentitySyncHandler(tenants.get, observers=()) as handler:
        handler.on("subject.updated")(note)

        results = [
            told(handler, make("member.joined", "t1/x", tenant="t1", id="t1/1")),
            told(handler, make("subject.updated", "t1/x", tenant="t1", id="t1/2")),
        ]

    assert results == [TenantNotMigrated, TenantNotMigrated]
    assert strangers(tenants) == []
    assert ledger(place) == []


def test_a_temporary_table_does_not_stand_in_for_ours(schema_places):
    """A hook's temporary table of the same name, left in the session, gets no row of ours."""
    (place,) = schema_places(1)
    registry = EngineRegistry(max_connections=1)
    with registry, IdentitySyncHandler(lambda _: place, registry=registry, observers=()) as handler:

        @handler.on("member.joined")
        def shadow(event, session):
            session.execute(text("CREATE TEMPORARY TABLE av_identities (id text)"))

        @handler.on("member.left")
        def look(event, session):
            looked.append(session.scalar(text("SELECT email FROM av_identities")))

        looked: list[str | None] = []
        handler.handle_blocking(make("member.joined"))
        handler.handle_blocking(make("app_access.granted", "bob"))
        handler.handle_blocking(make("subject.deleted", "bob"))
        handler.handle_blocking(make("member.left"))

    assert people(place) == ["ann"]
    assert looked == ["ann@example.test"]


def test_a_path_set_for_the_session_does_not_reach_the_next_tenant(schema_places):
    """A hook that leaves a search_path and a role on the pooled connection changes no other's."""
    first, second = schema_places(2)
    tenants = numbered([first, second])
    registry = EngineRegistry(max_connections=1)
    with (
        registry,
        IdentitySyncHandler(tenants.get, registry=registry, observers=()) as handler,
    ):

        @handler.on("member.joined")
        def leave_it(event, session):
            home = session.scalar(text("SELECT current_schema()"))
            session.execute(text("SET SESSION search_path TO public"))
            session.execute(text("SET SESSION ROLE pg_monitor"))
            session.execute(text(f'SET LOCAL search_path TO "{home}"'))
            session.execute(text("SET LOCAL ROLE NONE"))

        @handler.on("member.activated")
        def look(event, session):
            seen.append(
                session.execute(
                    text("SELECT pg_backend_pid(), current_schemas(true)::text, current_user")
                ).one()
            )

        seen: list[Any] = []
        handler.handle_blocking(make("member.activated", tenant="t0"))
        handler.handle_blocking(make("member.joined", tenant="t0"))
        handler.handle_blocking(make("member.activated", tenant="t1"))

    before, after = seen
    assert before[0] == after[0]  # it really is the same connection
    assert after[1] == "{pg_catalog," + str(second.schema) + "}"
    assert after[2] == "postgres"


def test_a_pooled_connection_is_back_at_its_own_path_after_every_event(schema_places):
    """The place is set for one transaction: outside of it the connection knows none."""
    (place,) = schema_places(1)
    registry = EngineRegistry(max_connections=1)
    with registry, IdentitySyncHandler(place, registry=registry, observers=()) as handler:
        handler.on("member.joined")(lambda event, session: None)
        for kind in ("member.joined", "app_access.granted"):
            handler.handle_blocking(make(kind))

            with registry.connect(place) as connection:
                path = connection.scalar(text("SHOW search_path"))
            assert path == '"$user", public'


@pytest.fixture
def roles(postgres, schema_places):
    """Two tenants in schemas of their own, each with a role of its own; give them and a login."""
    first, second = schema_places(2)
    login = f"login_{first.url.database}"
    places = []
    with connected(first) as connection:
        connection.execute(f'CREATE ROLE "{login}" LOGIN NOINHERIT')
        for place in (first, second):
            role = f"{place.schema}_{first.url.database}"
            connection.execute(f'CREATE ROLE "{role}"')
            connection.execute(f'GRANT "{role}" TO "{login}"')
            connection.execute(f'GRANT USAGE ON SCHEMA {place.schema} TO "{role}"')
            connection.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA {place.schema} TO "{role}"')
            places.append(Placement(place.url.set(username=login), place.schema, role))
    yield numbered(places), login
    names = [place.role for place in places] + [login]
    postgres.drop_databases()
    with postgres.connect() as connection:
        for name in names:
            connection.execute(f'DROP ROLE "{name}"')


def test_hooks_run_as_the_role_of_their_tenant(roles):
    """Inside a hook current_user is the tenant's role; afterwards the connection is the login's."""
    tenants, login = roles
    registry = EngineRegistry(max_connections=1)
    with (
        registry,
        IdentitySyncHandler(tenants.get, registry=registry, observers=()) as handler,
    ):

        @handler.on("member.joined")
        def look(event, session):
            seen.append(session.scalar(text("SELECT current_user")))

        seen: list[str] = []
        for name in ("t0", "t1", "t0"):
            handler.handle_blocking(make("member.joined", name, tenant=name))
            handler.handle_blocking(make("app_access.granted", name, tenant=name))
            with registry.connect(tenants[name].placement) as connection:
                users = connection.execute(text("SELECT current_user, session_user")).one()
            assert tuple(users) == (login, login)

    assert seen == [tenants[name].placement.role for name in ("t0", "t1", "t0")]
    first = tenants["t0"].placement
    assert people(Placement(first.url.set(username="postgres"), first.schema)) == ["t0"]


def test_postgresql_refuses_what_the_role_may_not_see(roles):
    """A hook that asks for another tenant's table by its full name is refused by the database."""
    tenants, _ = roles
    other = tenants["t1"].placement.schema
    with IdentitySyncHandler(tenants.get, observers=()) as handler:

        @handler.on("member.joined")
        def peek(event, session):
            session.execute(text(f"SELECT * FROM {other}.av_identities"))

        with pytest.raises(HookFailed, match="ProgrammingError") as caught:
            handler.handle_blocking(make("member.joined", tenant="t0"))

    assert "permission denied" in str(caught.value.__cause__)


def test_a_role_that_may_not_use_the_schema_is_refused(roles):
    """A tenant bound with the role of another one is not in its place."""
    tenants, _ = roles
    first, second = (tenants[name].placement for name in ("t0", "t1"))
    crossed = Placement(first.url, first.schema, second.role)
    with IdentitySyncHandler(crossed, observers=()) as handler:
        result = told(handler, make("member.joined"))

    mine = Placement(first.url.set(username="postgres"), first.schema)
    assert result is TenantUnavailable
    assert counts(mine) == dict.fromkeys(TABLES, 0)


def test_sqlite_files_are_told_apart(tmp_path, migrated_templates):
    """A registry whose engine opens another file than the placement's is refused."""
    names = [tmp_path / "a.db", tmp_path / "b.db"]
    for name in names:
        shutil.copyfile(migrated_templates(0), name)
    mine, other = (Placement.of(f"sqlite:///{name}") for name in names)

    def crossed(url, *, pool_size):
        return make_engine(other.url, pool_size=pool_size)

    registry = EngineRegistry(factory=crossed)
    with registry, IdentitySyncHandler(mine, registry=registry, observers=()) as handler:
        handler.on("member.left")(lambda event, session: None)
        results = [told(handler, make(kind)) for kind in ("member.joined", "member.left")]

    assert results == [TenantNotIsolated, TenantNotIsolated]
    assert counts(mine) == counts(other) == dict.fromkeys(TABLES, 0)
