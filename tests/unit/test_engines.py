"""What every connection to a SQLite file is told, and that it was heard."""

import sqlite3

import pytest

from tenantsync.control.database import ControlDatabase, ControlUnavailable
from tenantsync.errors import TenantUnavailable
from tenantsync.tenancy.engines import _prove, _settled, make_engine
from tenantsync.tenants import read_url


def test_a_file_is_as_safe_as_it_can_be(tmp_path):
    """A commit is on the disk, readers wait for nobody, and foreign keys are kept."""
    engine = make_engine(read_url(f"sqlite:///{tmp_path / 'a.db'}"), create=True)
    with engine.connect() as connection:
        told = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    engine.dispose()

    assert told == ["wal", 2, 1]


def test_where_no_log_can_be_had_the_file_is_refused(tmp_path):
    """SQLite raises no error there, and goes on in another mode."""
    file = tmp_path / "a.db"
    # This one has no memory to share between processes: a log would be of no use to it.
    connection = sqlite3.connect(f"file:{file}?vfs=unix-none", uri=True, isolation_level=None)

    with pytest.raises(TenantUnavailable, match="journal_mode delete"):
        _settled(connection, 0.1)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


@pytest.mark.parametrize("setting", ["synchronous=NORMAL", "foreign_keys=OFF"])
def test_a_setting_that_was_not_heard_is_noticed(tmp_path, setting):
    """SQLite passes over what it cannot do, and says nothing."""
    connection = _settled(sqlite3.connect(tmp_path / "a.db", isolation_level=None), 0.1)
    connection.execute(f"PRAGMA {setting}")

    with pytest.raises(TenantUnavailable, match="not keep this file as safely"):
        _prove(connection, "wal")
    connection.close()


def test_a_memory_database_has_no_log_and_needs_none():
    """Tests of applications use it."""
    engine = make_engine(read_url("sqlite://"))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()


def test_of_the_control_database_it_is_said_as_of_an_outage(tmp_path):
    """So that whoever was known before is served."""
    (tmp_path / "control.db").mkdir()
    with (
        ControlDatabase(f"sqlite:///{tmp_path / 'control.db'}") as control,
        pytest.raises(ControlUnavailable, match="cannot be used now"),
        control.read(),
    ):
        pass
