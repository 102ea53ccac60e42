"""Makes the control database, brings it to the newest revision, and says where it stands."""

import os
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql.ddl import CreateSchema

from tenantsync.control.database import ControlDatabase, ControlUnavailable
from tenantsync.control.tables import SCHEMA, VERSION_TABLE
from tenantsync.migrate.report import sentence_about
from tenantsync.migrate.scripts import ALEMBIC
from tenantsync.tenancy.engines import answering, make_engine

__all__ = ["control_standing", "upgrade_control"]

_GRACE: Final = 1.0
_PRIVATE: Final = 0o600  # it may hold URLs with passwords


def upgrade_control(database: ControlDatabase, *, lock_timeout: float = 10.0) -> str:
    """Bring the control database to the newest revision and return that one; make what is missing.

    On SQLite the file is made with its folder, for its owner's eyes only; on PostgreSQL a schema
    of its own, in a database that is there. All in one transaction, and safe to run at any time,
    also by several at once.

    Args:
        database: The control database.
        lock_timeout: Seconds to wait for another one that does the same.

    Raises:
        ControlUnavailable: It cannot be made or changed; the message says why.
    """
    place = database.placement
    if not place.is_postgres:
        _make_file(Path(str(place.url.database)))
    engine = make_engine(place.url, lock_timeout=lock_timeout)
    try:
        with (
            engine.connect() as connection,
            answering(connection, lock_timeout + _GRACE),
            connection.begin(),
        ):
            if place.is_postgres:
                _bind(connection, lock_timeout)
            return _run(connection)
    except SQLAlchemyError as error:
        raise ControlUnavailable(
            f"the control database cannot be made or migrated: {sentence_about(error)}"
        ) from error
    finally:
        engine.dispose()


def control_standing(database: ControlDatabase) -> tuple[str | None, str]:
    """Return the revision that the control database stands at, and the newest one.

    Args:
        database: The control database.

    Raises:
        ControlMissing: It was not made yet.
        ControlUnavailable: It does not answer.
    """
    with database.read() as connection, ALEMBIC:
        options = {"version_table": VERSION_TABLE}
        current = MigrationContext.configure(connection, opts=options).get_current_heads()
        (head,) = ScriptDirectory.from_config(_config()).get_heads()
    return (", ".join(current) or None), head


def _make_file(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # it keeps the mode that somebody gave it
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _PRIVATE))
    except OSError as error:
        raise ControlUnavailable(
            f"the control database {file} cannot be made: {error.strerror}"
        ) from error


def _bind(connection: Connection, lock_timeout: float) -> None:
    connection.execute(
        text(
            "SELECT set_config('lock_timeout', :wait, true),"
            " set_config('statement_timeout', '0', true),"
            " set_config('search_path', :schema || ', pg_temp', true)"
        ),
        {"wait": f"{max(1, round(lock_timeout * 1000))}ms", "schema": SCHEMA},
    )
    connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
        {"name": f"tenantsync migrate {SCHEMA}"},
    )
    there = connection.scalar(
        text("SELECT 1 FROM pg_namespace WHERE nspname = :name"), {"name": SCHEMA}
    )
    if not there:
        connection.execute(CreateSchema(SCHEMA))


def _run(connection: Connection) -> str:
    config = _config()
    with ALEMBIC:
        (head,) = ScriptDirectory.from_config(config).get_heads()
        options = {"version_table": VERSION_TABLE}
        current = MigrationContext.configure(connection, opts=options).get_current_heads()
        if current != (head,):
            config.attributes["connection"] = connection
            with answering(connection, None):
                command.upgrade(config, "head")
    return head


def _config() -> Config:
    # Found through the import system: the working directory says nothing about where we are.
    config = Config()
    folder = str(files("tenantsync.control") / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    return config
