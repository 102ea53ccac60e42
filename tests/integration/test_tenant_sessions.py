"""Sessions of an application in a tenant's place: bound and proven, transaction by transaction."""

import asyncio
import gc
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest
from guarding import ask, at_once
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenantsync.errors import (
    ConfigError,
    TenantNotIsolated,
    TenantSuspended,
    TenantUnavailable,
)
from tenantsync.models import Identity
from tenantsync.tenancy.async_sessions import AsyncTenantSessions
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry, NoConnection
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.tenants import Placement, Tenant

ISOLATION = DatabaseIsolation(None)


class Base(DeclarativeBase):
    """The application's own models, which name no schema."""


class Note(Base):
    """A table of the application's own."""

    __tablename__ = "notes"

    text: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
def place(migrated_place):
    """A migrated place with a table of the application's own."""
    ask(migrated_place, "CREATE TABLE {s}notes (text text PRIMARY KEY)")
    return migrated_place


@pytest.fixture
def registry():
    """Where connections come from."""
    with EngineRegistry() as made:
        yield made


@pytest.fixture
def sessions(registry):
    """What is tested."""
    return TenantSessions(registry, ISOLATION)


def notes(place):
    """Return what stands in the application's table."""
    return sorted(row[0] for row in ask(place, "SELECT text FROM {s}notes"))


def where(session):
    """Return where raw SQL would go."""
    return session.execute(text("SELECT current_schema(), current_user")).one()


def test_models_without_a_schema_stand_in_the_tenants_place(place, sessions):
    """The application's own and the ready-made ones, and raw SQL too."""
    with sessions.session(place) as session:
        session.add_all([Note(text="mine"), Identity(id="ann")])
        session.commit()
        assert session.scalar(text("SELECT count(*) FROM notes")) == 1
        assert session.get(Identity, "ann").is_active

    assert notes(place) == ["mine"]


def test_what_was_not_committed_is_rolled_back_on_leaving(place, sessions):
    """As with a session of SQLAlchemy's own; `begin` commits."""
    with sessions.session(place) as session:
        session.add(Note(text="lost"))
        session.flush()
    with sessions.session(place) as session, session.begin():
        session.add(Note(text="kept"))
    with suppress(ZeroDivisionError), sessions.session(place) as session:
        session.add(Note(text="lost too"))
        session.flush()
        raise ZeroDivisionError

    assert notes(place) == ["kept"]


def test_each_transaction_of_a_session_is_in_the_place(schema_places, registry):
    """After a commit, a rollback, a failed statement and a savepoint too, in role and schema."""
    one, two = schema_places(2)
    sessions = TenantSessions(registry, ISOLATION)
    with ExitStack() as stack:
        both = [(place, stack.enter_context(sessions.session(place))) for place in (one, two)]
        for finish in ("commit", "rollback", "fail", "savepoint", "commit"):
            for place, session in both:
                assert where(session)[0] == place.schema
                if finish == "fail":
                    with pytest.raises(DBAPIError):
                        session.execute(text("SELECT * FROM nowhere"))
                    session.rollback()
                elif finish == "savepoint":
                    with session.begin_nested() as savepoint:
                        session.execute(text("SET LOCAL search_path TO public"))
                        savepoint.rollback()
                else:
                    getattr(session, finish)()


def test_nothing_of_a_session_is_left_on_its_connection(postgres, schema_places, registry):
    """Whoever gets the pooled connection next finds search_path and role as they were."""
    place, *_ = schema_places(2)
    with postgres.connect(place.url.database) as admin:
        admin.execute(f'DROP ROLE IF EXISTS clerk; CREATE ROLE clerk; '
                      f'GRANT USAGE ON SCHEMA "{place.schema}" TO clerk')  # fmt: skip
    try:
        clerk = Placement(place.url, place.schema, "clerk")
        with TenantSessions(registry, ISOLATION).session(clerk) as session:
            assert where(session) == (place.schema, "clerk")
            session.commit()
            assert where(session) == (place.schema, "clerk")
        with registry.connect(place) as connection:
            assert connection.execute(text("SELECT current_user")).scalar() == "postgres"
            assert place.schema not in connection.execute(text("SHOW search_path")).scalar()
    finally:
        registry.close()
        with postgres.connect(place.url.database) as admin:
            admin.execute("DROP OWNED BY clerk; DROP ROLE clerk")


def test_a_schema_that_is_not_there_is_refused_before_any_statement(schema_places, sessions):
    """PostgreSQL would accept the path without a word; and a caught refusal opens nothing."""
    place = Placement(schema_places(1)[0].url, "gone")
    with sessions.session(place) as session:
        with pytest.raises(TenantNotIsolated):
            session.execute(text("CREATE TABLE public.stolen (x int)"))
        session.rollback()
        with pytest.raises(ResourceClosedError):
            session.execute(text("CREATE TABLE public.stolen (x int)"))

    assert ask(place, "SELECT to_regclass('public.stolen')") == [(None,)]


@pytest.mark.parametrize("escape", ["COMMIT", "ROLLBACK", "SET LOCAL search_path TO public"])
def test_who_leaves_the_transaction_behind_the_sessions_back_cannot_commit(
    schema_places, sessions, escape
):
    """The proof before the commit finds another transaction, or another place."""
    place, *_ = schema_places(1)
    with sessions.session(place) as session:
        session.execute(text(escape))
        session.execute(text('CREATE TABLE "public".stolen (x int)'))
        with pytest.raises(TenantNotIsolated):
            session.commit()

    assert ask(place, "SELECT to_regclass('public.stolen')") == [(None,)]


def test_a_commit_of_the_connection_is_followed_by_a_bound_transaction(schema_places, sessions):
    """Also where the program commits SQLAlchemy's connection and goes on with it."""
    place, *_ = schema_places(1)
    with sessions.session(place) as session:
        connection = session.connection()
        connection.execute(text("CREATE TABLE here (x int)"))
        connection.commit()
        assert connection.execute(text("SELECT current_schema()")).scalar() == place.schema


def test_a_session_that_only_reads_cannot_write(place, sessions):
    """The database itself refuses; and the next session on that connection writes again."""
    with sessions.session(place, read_only=True) as session:
        assert session.scalar(select(func.count()).select_from(Note)) == 0
        with pytest.raises(DBAPIError):
            session.execute(text("INSERT INTO notes VALUES ('x')"))
    with sessions.session(place) as session, session.begin():
        session.add(Note(text="y"))

    assert notes(place) == ["y"]


def test_a_reader_uses_up_no_transaction_ids(schema_places, sessions):
    """A look-up for every request must not wear the server out."""
    place, *_ = schema_places(1)
    with sessions.session(place) as session:
        before = session.scalar(text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))
    for _ in range(3):
        with sessions.session(place, read_only=True) as session:
            assert session.get(Identity, "ann") is None
    assert ask(place, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text") == [
        (str(int(before) + 1),)
    ]


@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
def test_on_sqlite_a_reader_neither_waits_for_a_writer_nor_holds_one_up(place, sessions):
    """A session that writes has the lock from its first statement on."""
    with sessions.session(place) as writer, sessions.session(place, read_only=True) as reader:
        assert reader.scalar(text("SELECT count(*) FROM notes")) == 0
        writer.add(Note(text="x"))
        writer.commit()
        assert reader.scalar(text("SELECT count(*) FROM notes")) == 0
        reader.rollback()
        assert reader.scalar(text("SELECT count(*) FROM notes")) == 1


def test_a_missing_file_is_no_empty_database(tmp_path, sessions):
    """A wrong path answers no question with "nobody"."""
    place = Placement.of(f"sqlite:///{tmp_path / 'gone.db'}")
    with pytest.raises(TenantUnavailable), sessions.session(place):
        pass

    assert list(tmp_path.iterdir()) == []


def test_a_suspended_tenant_gets_no_session(place, sessions):
    """Whoever holds a Tenant: its suspension is seen."""
    with sessions.session(Tenant("id", "acme", place)) as session:
        assert session.get(Identity, "ann") is None
    with pytest.raises(TenantSuspended), sessions.session(Tenant("id", "acme", place, True)):
        pass


def test_sessions_are_bounded_over_all_tenants(place, registry):
    """One too many waits, and is refused; a place that becomes free is used again."""
    sessions = TenantSessions(registry, ISOLATION, limit=2, patience=0.05)
    with (
        sessions.session(place, read_only=True),
        sessions.session(place, read_only=True),
        pytest.raises(NoConnection, match="allow more than 2"),
        sessions.session(place),
    ):
        pass
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), sessions.session(place):
            raise ZeroDivisionError


def test_many_threads_and_tenants_never_mix(schema_places, registry):
    """Forty sessions on ten connections: each writes its own tenant's table."""
    places = schema_places(4)
    for place in places:
        ask(place, "CREATE TABLE {s}notes (text text PRIMARY KEY)")
    sessions = TenantSessions(registry, ISOLATION, patience=60)

    def write(number):
        place = places[number % 4]
        with sessions.session(place) as session:
            for step in range(3):
                session.add(Note(text=f"{place.schema}/{number}/{step}"))
                session.commit() if step != 1 else session.rollback()

    at_once([lambda n=n: write(n) for n in range(40)])

    for place in places:
        assert len(notes(place)) == 20
        assert all(line.startswith(place.schema) for line in notes(place))


def test_an_engine_in_autocommit_is_refused(schema_places, sessions):
    """There, a place that is set for one transaction would be set for nothing."""
    place, *_ = schema_places(1)
    engine = create_engine(place.url, isolation_level="AUTOCOMMIT")
    own = Placement.of(engine, place.schema)
    with sessions.session(own) as session, pytest.raises(TenantNotIsolated, match="autocommit"):
        session.execute(text("SELECT 1"))
    engine.dispose()


# -- with an event loop


def run(place, work, **options):
    """Run a coroutine with async sessions that are closed afterwards."""

    async def main():
        sessions = AsyncTenantSessions(ISOLATION, **options)
        try:
            return await work(sessions)
        finally:
            await sessions.close()

    result = asyncio.run(main())
    gc.collect()  # what was not closed says so now, with a warning that fails the test
    return result


def test_async_models_stand_in_the_tenants_place(place):
    """Committed, rolled back, and read again, each time in the place."""

    async def work(sessions):
        async with sessions.session(place) as session:
            session.add_all([Note(text="mine"), Identity(id="ann")])
            await session.commit()
            session.add(Note(text="lost"))
            await session.flush()
            await session.rollback()
            assert (await session.get(Identity, "ann")).is_active
        async with sessions.session(place, read_only=True) as session:
            with pytest.raises(DBAPIError):
                await session.execute(text("INSERT INTO notes VALUES ('x')"))
        async with sessions.session(place) as session, session.begin():
            session.add(Note(text="more"))

    run(place, work)
    assert notes(place) == ["mine", "more"]


def test_async_sessions_of_several_tenants_never_mix(schema_places):
    """Many tasks on few connections, with commits and rollbacks in between."""
    places = schema_places(3)

    async def work(sessions):
        async def visit(place):
            async with sessions.session(place) as session:
                for finish in ("commit", "rollback", "commit"):
                    found = await session.execute(text("SELECT current_schema()"))
                    assert found.scalar() == place.schema
                    await getattr(session, finish)()

        await asyncio.gather(*(visit(places[n % 3]) for n in range(15)))

    run(places[0], work, limit=3, idle=3, patience=60)
    assert ask(places[0], "SELECT count(*) FROM pg_stat_activity WHERE application_name"
                          " = 'tenantsync' AND datname = current_database()") == [(0,)]  # fmt: skip


def test_async_sessions_prove_their_place(schema_places):
    """A missing schema is refused before any statement, and a caught refusal opens nothing."""
    place = Placement(schema_places(1)[0].url, "gone")

    async def work(sessions):
        async with sessions.session(place) as session:
            with pytest.raises(TenantNotIsolated):
                await session.execute(text("CREATE TABLE public.stolen (x int)"))
            await session.rollback()
            with pytest.raises(ResourceClosedError):
                await session.execute(text("CREATE TABLE public.stolen (x int)"))

    run(place, work)
    assert ask(place, "SELECT to_regclass('public.stolen')") == [(None,)]


def test_async_sessions_are_bounded(place):
    """One too many waits, and is refused."""

    async def work(sessions):
        async with sessions.session(place, read_only=True):
            with pytest.raises(NoConnection):
                async with sessions.session(place):
                    pass
        async with sessions.session(place):
            pass

    run(place, work, limit=1, patience=0.05)


@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
def test_async_connections_are_bounded_over_many_databases(tmp_path, place):
    """What lies idle for one tenant makes room for another."""
    files = [tmp_path / f"{n}.db" for n in range(5)]
    for file in files:
        file.write_bytes((tmp_path / "migrated.db").read_bytes())

    async def work(sessions):
        for file in files * 2:
            async with sessions.session(Placement.of(f"sqlite:///{file}")) as session:
                assert await session.get(Identity, "ann") is None
            assert sum(held.connections for held in sessions._held.values()) <= 2

    run(place, work, limit=2)


def test_async_sessions_say_what_they_cannot_do(tmp_path, place):
    """An engine of the caller's own, a missing file, another event loop."""
    engine = create_engine(place.url)

    async def work(sessions):
        with pytest.raises(ConfigError, match="blocking engine"):
            async with sessions.session(Placement.of(engine)):
                pass
        with pytest.raises(TenantUnavailable, match="migrate upgrade"):
            async with sessions.session(Placement.of(f"sqlite:///{tmp_path / 'gone.db'}")):
                pass

        def elsewhere():
            async def enter():
                async with sessions.session(place):
                    pass

            asyncio.run(enter())

        with pytest.raises(ConfigError, match="another event loop"):
            await asyncio.to_thread(elsewhere)

    run(place, work)
    engine.dispose()


@pytest.mark.parametrize("missing", ["greenlet", "aiosqlite"])
def test_without_the_extra_the_module_imports_and_says_what_to_install(missing):
    """In a process that has not got it: nothing else is broken by its absence."""
    program = f"""
import sys
sys.modules[{missing!r}] = None
from tenantsync.errors import ConfigError
from tenantsync.tenancy.async_sessions import AsyncTenantSessions, make_async_engine
for use in (AsyncTenantSessions, make_async_engine):
    try:
        use(None)
    except ConfigError as error:
        print(error)
"""
    # Not through the package's front door, which belongs to others' imports.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("install tenantsync[async]") == 2
