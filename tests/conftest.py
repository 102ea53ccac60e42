"""What every test may ask for: a PostgreSQL server, fresh databases, and migrated places."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import hypothesis
import postgres as server_programs
import pytest
from postgres import Server

from tenantsync.migrate import upgrade
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Placement, Tenant

if TYPE_CHECKING:
    import psycopg

# A busy machine is no wrong answer; what a failure needs is the way to repeat it.
hypothesis.settings.register_profile("tenantsync", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tenantsync")

SCHEMA = "tenant_acme"


def pytest_report_header(config: pytest.Config) -> str:
    """Say which databases the tests run against."""
    return f"databases: {server_programs.version()}; SQLite {sqlite3.sqlite_version}"


class Postgres:
    """A running server, and the databases that one test makes on it.

    Args:
        server: The server; shared by all tests of the session.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._made: list[str] = []

    def url(self, database: str = "postgres", *, socket: bool = False) -> str:
        """Return the SQLAlchemy URL of a database, over TCP or the unix socket."""
        return self.server.url(database, socket=socket)

    def create_database(self, *, template: str = "template0") -> str:
        """Make a fresh database and return its URL. It is dropped when the test ends."""
        name = f"test_{uuid4().hex}"
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        self._made.append(name)
        return self.url(name)

    def drop_databases(self) -> None:
        """Drop what `create_database` made, whoever is still connected."""
        while self._made:
            self._execute(f'DROP DATABASE IF EXISTS "{self._made.pop()}" WITH (FORCE)')

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """Return the superuser's connection in autocommit."""
        return self.server.connect(database)

    def _execute(self, statement: str) -> None:
        with self.connect() as connection:
            connection.execute(statement)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """Start a PostgreSQL server of this process's own when the first test wants it."""
    server = server_programs.start()
    yield server
    server.stop()


@pytest.fixture
def postgres(postgres_server: Server) -> Iterator[Postgres]:
    """Give the server, with databases that go when the test ends."""
    made = Postgres(postgres_server)
    yield made
    made.drop_databases()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of a fresh, empty database: a SQLite file not made yet, or one on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fresh.db'}"
    return request.getfixturevalue("postgres").create_database()


@pytest.fixture(scope="session")
def migrated_templates(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[int], str]:
    """Give the database (n schemas) or the SQLite file (n = 0) that fresh places are copied from.

    Migrated once for the session; a copy is much quicker.
    """
    made: dict[int, str] = {}

    def template(schemas: int) -> str:
        if schemas in made:
            return made[schemas]
        if schemas == 0:
            name = str(tmp_path_factory.mktemp("template") / "migrated.db")
            _migrate([Placement.of(f"sqlite:///{name}")])
        else:
            server: Server = request.getfixturevalue("postgres_server")
            name = f"template_{schemas}"
            with server.connect() as connection:
                connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
            _migrate(_schemas(server.url(name), schemas))
        made[schemas] = name
        return name

    return template


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_place(
    request: pytest.FixtureRequest, tmp_path: Path, migrated_templates: Callable[[int], str]
) -> Placement:
    """Give a fresh place with the tables at head: a SQLite file, or a schema on PostgreSQL."""
    if request.param == "sqlite":
        file = tmp_path / "migrated.db"
        shutil.copyfile(migrated_templates(0), file)
        return Placement.of(f"sqlite:///{file}")
    made = request.getfixturevalue("postgres").create_database(template=migrated_templates(1))
    return Placement.of(made, SCHEMA)


@pytest.fixture
def schema_places(
    postgres: Postgres, migrated_templates: Callable[[int], str]
) -> Callable[[int], list[Placement]]:
    """Give n migrated schemas in one fresh database on PostgreSQL."""
    return lambda n: _schemas(postgres.create_database(template=migrated_templates(n)), n)


def _schemas(url: str, count: int) -> list[Placement]:
    names = [SCHEMA] if count == 1 else [f"tenant_{number:04d}" for number in range(count)]
    return [Placement.of(url, name) for name in names]


def _migrate(places: list[Placement]) -> None:
    tenants = [Tenant(f"id-{number}", f"t{number}", place) for number, place in enumerate(places)]
    upgrade(tenants, isolation=DatabaseIsolation(None)).check()
