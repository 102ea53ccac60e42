"""The wheel carries what migrations and pytest need, and finds it where it is installed."""

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
from pathlib import Path
from tenantsync import migrate
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Placement, Tenant

acme = Tenant("id", "acme", Placement.of(f"sqlite:///{Path.cwd()}/acme.db"))
migrate.upgrade([acme], isolation=DatabaseIsolation(None)).check()
print(Path(migrate.__file__).parent)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel, as a release does."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("tenantsync-*.whl")
    return built


def test_the_wheel_carries_the_migrations(wheel):
    """Every file of the migrations is in it, and the marker that the package is typed."""
    carried = set(zipfile.ZipFile(wheel).namelist())

    wanted = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "tenant_migrations").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert "tenant_migrations/script.py.mako" in wanted
    assert "tenant_migrations/versions/0001_expand_mirror_tables.py" in wanted
    assert wanted | {"tenantsync/py.typed"} <= carried


def test_the_wheel_carries_the_pytest_plugin(wheel):
    """The module lies beside the package, and pytest is told of it."""
    archive = zipfile.ZipFile(wheel)
    assert archive.read("pytest_tenantsync.py") == (ROOT / "pytest_tenantsync.py").read_bytes()
    (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
    told = configparser.ConfigParser()
    told.read_string(archive.read(name).decode())

    assert dict(told["pytest11"]) == {"pytest_tenantsync": "pytest_tenantsync"}


def test_the_installed_wheel_migrates(wheel, tmp_path):
    """Unpacked elsewhere and run from another folder, it migrates a tenant."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=False,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(site / "tenantsync" / "migrate")
    assert (tmp_path / "acme.db").is_file()
