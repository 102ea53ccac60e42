"""The registry: leases, bounds, eviction, closing."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.pool import StaticPool

from tenantsync.errors import TenantUnavailable
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.registry import EngineRegistry, NoConnection
from tenantsync.tenants import Placement


def sqlite_engine(url, *, pool_size):
    """Make the file too: these tests care for leases and not for files."""
    return make_engine(url, pool_size=pool_size, create=True)


@pytest.fixture
def places(tmp_path):
    return [Placement.of(f"sqlite:///{tmp_path / f'{number}.db'}") for number in range(5)]


def test_nothing_is_opened_until_it_is_asked(places):
    """A registry makes no engine, and an engine no connection, before somebody wants one."""
    made = []

    def factory(url, *, pool_size):
        made.append(url)
        return sqlite_engine(url, pool_size=pool_size)

    with EngineRegistry(factory=factory) as registry:
        assert (made, registry.engines) == ([], 0)
        for _ in range(2):
            with registry.connect(places[0]) as connection:
                assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        assert (made, registry.engines) == ([places[0].url], 1)


def test_the_least_recently_used_engine_goes_first(places):
    """Beyond the bound the engine that was unused for longest makes room."""
    with EngineRegistry(max_engines=2, factory=sqlite_engine) as registry:
        for index in (0, 1, 0, 2):
            with registry.connect(places[index]):
                pass
        assert [held.engine.url for held in registry._held.values()] == [
            places[0].url,
            places[2].url,
        ]


def test_a_leased_engine_is_never_evicted(places):
    """With every engine in use a further database waits, and is refused after the patience."""
    with EngineRegistry(max_engines=2, patience=0.05, factory=sqlite_engine) as registry:
        with registry.connect(places[0]) as first, registry.connect(places[1]) as second:
            with (
                pytest.raises(TenantUnavailable, match=r"within 0\.05 s"),
                registry.connect(places[2]),
            ):
                pass
            for connection in (first, second):
                assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        with registry.connect(places[2]):
            assert registry.engines == 2


def test_who_waits_gets_the_engine_that_comes_free(places):
    """Waiting ends with the release, not with the patience."""
    with (
        EngineRegistry(max_engines=1, patience=60, factory=sqlite_engine) as registry,
        ThreadPoolExecutor(1) as pool,
    ):
        started = threading.Event()

        def use():
            started.set()
            with registry.connect(places[1]) as connection:
                return connection.exec_driver_sql("SELECT 1").scalar()

        with registry.connect(places[0]):
            waiting = pool.submit(use)
            started.wait(10)
        assert waiting.result(timeout=10) == 1


def test_what_was_not_committed_is_rolled_back(places):
    """Leaving without a commit, or with an error, leaves nothing behind."""
    with EngineRegistry(factory=sqlite_engine) as registry:
        with registry.connect(places[0]) as connection, connection.begin():
            connection.exec_driver_sql("CREATE TABLE t (n integer UNIQUE)")
        with registry.connect(places[0]) as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        with pytest.raises(IntegrityError), registry.connect(places[0]) as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (2), (2)")
        with registry.connect(places[0]) as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar() == 0


def test_an_error_releases_the_lease(places):
    """An engine whose user failed, or whose connection was refused, may be evicted."""

    def broken(url, *, pool_size):
        raise OSError("no vault")

    with EngineRegistry(max_engines=1, patience=0.05, factory=sqlite_engine) as registry:
        for place in places:
            with pytest.raises(RuntimeError), registry.connect(place):
                raise RuntimeError
        assert registry.engines == 1
    with EngineRegistry(max_engines=1, patience=0.05, factory=broken) as registry:
        for place in places:
            with pytest.raises(OSError, match="no vault"), registry.connect(place):
                pass
        assert registry.engines == 0


def test_connections_are_bounded_per_server(postgres):
    """Two databases of one server share the bound; an idle connection elsewhere makes room."""
    first, second = (Placement.of(postgres.create_database()) for _ in range(2))
    with EngineRegistry(max_connections=2, idle=2, patience=0.05) as registry:
        with ExitStack() as stack:
            for place in (first, first):
                stack.enter_context(registry.connect(place))
            with pytest.raises(TenantUnavailable), registry.connect(second):
                pass
        with registry.connect(second) as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
            assert [held.engine.url for held in registry._held.values()] == [second.url]


def test_one_database_has_a_share_of_its_servers_connections(postgres):
    """Half of them, unless told otherwise: one that hangs leaves some to the others."""
    bad, good = (Placement.of(postgres.create_database()) for _ in range(2))
    for options, share in [({}, 2), ({"per_database": 1}, 1), ({"idle": 3}, 3)]:
        with (
            EngineRegistry(max_connections=4, patience=0.05, **options) as registry,
            ExitStack() as hanging,
        ):
            for _ in range(share):
                hanging.enter_context(registry.connect(bad))
            with pytest.raises(NoConnection), registry.connect(bad):
                pass
            with registry.connect(good) as connection:
                assert connection.exec_driver_sql("SELECT 1").scalar() == 1


def test_an_answer_is_waited_for_as_long_as_the_caller_says(postgres):
    """The connection that gave none is closed; the next caller has all the time in the world."""
    place = Placement.of(postgres.create_database())
    with EngineRegistry() as registry:
        with (
            pytest.raises(OperationalError, match=r"no answer within 0\.2 s"),
            registry.connect(place, answer_timeout=0.2) as connection,
        ):
            connection.exec_driver_sql("SELECT pg_sleep(60)")
        with registry.connect(place, answer_timeout=30) as connection:
            first = connection.connection.driver_connection
            assert first.answer_timeout == 30
        with registry.connect(place) as connection:
            assert connection.connection.driver_connection is first
            assert first.answer_timeout is None
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1


def test_the_callers_own_engine_is_used_as_it_is(tmp_path):
    """It is neither counted, nor bounded, nor disposed."""
    engine = create_engine(f"sqlite:///{tmp_path / 'own.db'}", poolclass=StaticPool)
    place = Placement.of(engine)
    with EngineRegistry(max_engines=1) as registry, registry.connect(place) as connection:
        assert connection.engine is engine
        assert registry.engines == 0
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()


def test_closing_lets_the_busy_finish(places):
    """A leased engine is disposed when it comes back; what comes after the close is refused."""
    registry = EngineRegistry(factory=sqlite_engine)
    with registry.connect(places[1]):
        pass
    with registry.connect(places[0]) as connection:
        registry.close()
        assert registry.engines == 1
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    assert registry.engines == 0
    with pytest.raises(TenantUnavailable, match="stopping"), registry.connect(places[0]):
        pass


def test_closing_wakes_those_who_wait(places):
    """Nobody waits out the patience of a registry that is closed."""
    registry = EngineRegistry(max_engines=1, patience=600, factory=sqlite_engine)
    with ThreadPoolExecutor(1) as pool, registry.connect(places[0]):

        def use():
            with registry.connect(places[1]):
                pass

        waiting = pool.submit(use)
        registry.close()
        with pytest.raises(TenantUnavailable, match="stopping"):
            waiting.result(timeout=10)


def test_a_registry_that_is_thrown_away_open_says_so(places):
    """A forgotten close is a ResourceWarning."""
    registry = EngineRegistry(factory=sqlite_engine)
    with registry.connect(places[0]):
        pass
    with pytest.warns(ResourceWarning, match="close it"):
        registry.__del__()
    registry.close()
    del registry
    gc.collect()


def test_a_closed_registry_goes_silently(places):
    """Nothing is open, so nothing is said."""
    with EngineRegistry(factory=sqlite_engine) as registry, registry.connect(places[0]):
        pass
    registry.__del__()

    assert registry.engines == 0
