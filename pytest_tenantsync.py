"""The pytest plugin of tenantsync: a local AuthVital and throw-away databases, as fixtures.

Beside the package and not in it: pytest imports this in every run of every project in whose
environment tenantsync is, and importing the package takes a while. What the fixtures give is in
`tenantsync.kit`, which the first one that is asked for imports.
"""

import importlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tenantsync import TenantSync
    from tenantsync.kit import Kit, Rig, TenantDatabases
    from tenantsync.testing.courier import AuthVital

__all__ = [
    "authvital",
    "pytest_addoption",
    "pytest_configure",
    "pytest_report_header",
    "tenant_databases",
    "tenantsync_app",
]

_RANDOM = "random"
_MARKER = "authvital_chaos"
_SEED = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("tenantsync")
    group.addoption(
        "--authvital-chaos",
        # A flag, and the seed an option of its own: a value that may be left out would take the
        # path that follows for it.
        action="store_true",
        help="deliver events late, twice and out of order, by a seed that is drawn and printed",
    )
    group.addoption(
        "--authvital-chaos-seed",
        metavar="SEED",
        help="as --authvital-chaos, with the seed that another run printed: repeats its order",
    )
    group.addoption(
        "--tenantsync-database-url",
        metavar="URL",
        help="a PostgreSQL server that tenants' schemas are made on, in databases of their own; "
        "without it, tenants are SQLite files",
    )
    parser.addini("authvital_chaos", 'a seed, or "random": as --authvital-chaos', default="")
    parser.addini("tenantsync_database_url", "as --tenantsync-database-url", default="")
    parser.addini(
        "tenantsync_config",
        "the configuration file, relative to the root directory",
        default="tenantsync.toml",
    )
    parser.addini(
        "tenantsync_tenants",
        "tenants of the tests, as KEY or KEY=ID; those of the configuration file by default",
        type="linelist",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and draw the seed."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(seed=None): deliver this test's events late, twice and out of order; "
        "with False, never",
    )
    seed = config.getoption("authvital_chaos_seed")
    if seed == "":
        raise pytest.UsageError(
            "--authvital-chaos-seed is empty: name a seed, or draw one with --authvital-chaos"
        )
    if seed is None:
        asked = config.getoption("authvital_chaos")
        seed = _RANDOM if asked else config.getini("authvital_chaos")
    if seed == _RANDOM:
        seed = str(random.SystemRandom().randrange(10**6))
        # Where tests run in several processes, all of them are given the options of the first.
        config.option.authvital_chaos_seed = seed
    if seed:
        config.stash[_SEED] = seed


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say how to have the same order again."""
    seed = config.stash.get(_SEED, None)
    return (
        [] if seed is None else [f"authvital chaos: repeat it with --authvital-chaos-seed={seed}"]
    )


@pytest.fixture(scope="session")
def _tenantsync_rig(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[Rig]":
    plugin = importlib.import_module("tenantsync.kit")
    url = pytestconfig.getoption("tenantsync_database_url")
    options = plugin.Options(
        config=Path(pytestconfig.rootpath, pytestconfig.getini("tenantsync_config")),
        tenants=tuple(pytestconfig.getini("tenantsync_tenants")),
        database_url=url or pytestconfig.getini("tenantsync_database_url") or None,
    )
    with plugin.Rig(options, tmp_path_factory.mktemp("tenantsync")) as rig:
        yield rig


@pytest.fixture
def _tenantsync_kit(
    request: pytest.FixtureRequest,
    _tenantsync_rig: "Rig",
    tmp_path_factory: pytest.TempPathFactory,
) -> "Iterator[Kit]":
    plugin = importlib.import_module("tenantsync.kit")
    # Not the test's own tmp_path, which the test may expect to be empty.
    folder = tmp_path_factory.mktemp("tenants")
    with plugin.Kit(_tenantsync_rig, folder, _chaos_for(request.node)).running() as kit:
        yield kit


@pytest.fixture
def authvital(_tenantsync_kit: "Kit") -> "AuthVital":
    """A running local AuthVital: `authvital.deliver("member.joined", tenant="acme", sub="ann")`."""
    return _tenantsync_kit.authvital


@pytest.fixture
def tenantsync_app(_tenantsync_kit: "Kit") -> "TenantSync":
    """The TenantSync of your configuration, with this test's databases and its AuthVital."""
    return _tenantsync_kit.sync


@pytest.fixture
def tenant_databases(_tenantsync_kit: "Kit") -> "TenantDatabases":
    """The tenants' databases, fresh and migrated: `with tenant_databases.session("acme") as s`."""
    return _tenantsync_kit.databases


def _chaos_for(item: pytest.Item) -> str | None:
    """Return what this test's order is made of, or None for the order given."""
    marker = item.get_closest_marker(_MARKER)
    asked = None if marker is None else [*marker.args, *marker.kwargs.values(), None][0]
    if asked is False:
        return None
    drawn = asked is None or asked is True
    seed = item.config.stash.get(_SEED, None) if drawn else str(asked)
    if seed is None and marker is not None:
        seed = str(random.SystemRandom().randrange(10**6))
    if seed is None:
        return None
    item.add_report_section(
        "setup", "authvital chaos", f"the same order again: --authvital-chaos-seed={seed}\n"
    )
    # The test's own name too: its order must not depend on which other tests run.
    return f"{seed}/{item.nodeid}"
