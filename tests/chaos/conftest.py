"""What the chaos tests share: an emulator, a nursery of processes, and how much there is to do."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import postgres as server_programs
import pytest
from chaos.house import House
from chaos.processes import Nursery, RestartablePostgres, Starter

from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey


@dataclass(frozen=True)
class Counts:
    """How much is done: little with every test run, much with `TENANTSYNC_CHAOS=full`."""

    kills: int
    restarts: int
    waiting: int


@pytest.fixture(scope="session")
def amount() -> Counts:
    """Give the counts that the environment asks for."""
    if os.environ.get("TENANTSYNC_CHAOS") == "full":
        return Counts(kills=200, restarts=20, waiting=50_000)
    return Counts(kills=20, restarts=3, waiting=2_000)


@pytest.fixture(scope="session")
def authvital() -> Iterator[Emulator]:
    """Give a running emulator, which signs and serves its keys."""
    key = SigningKey.generate(1_787_378_400.0)
    with Emulator(keys=Keys(key)) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Give the process that forks servers."""
    with Nursery() as made:
        yield made


@pytest.fixture
def starter(nursery: Nursery, tmp_path: Path) -> Iterator[Starter]:
    """Give what starts servers; those that are left when the test ends are killed."""
    made = Starter(nursery, tmp_path / "children")
    yield made
    made.end_all()


@pytest.fixture
def phoenix(nursery: Nursery) -> Iterator[RestartablePostgres]:
    """Give a PostgreSQL server that may be killed and started again."""
    made = RestartablePostgres(nursery, server_programs.start())
    yield made
    made.stop()


@pytest.fixture
def build(
    request: pytest.FixtureRequest, tmp_path: Path, authvital: Emulator
) -> Callable[..., House]:
    """Give what builds a house, on SQLite files or on PostgreSQL."""

    def make(kind: str, keys: list[str], **options: object) -> House:
        if kind == "postgresql":
            postgres = request.getfixturevalue("postgres")
            options = {"database": postgres.create_database()} | options
            options = {"control": postgres.create_database()} | options
        return House(tmp_path / "house", authvital, keys, **options)

    return make
