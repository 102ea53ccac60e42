"""Places made by copying one that was migrated before: quicker than migrating each."""

import hashlib
import os
import re
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError

from tenantsync.migrate.scripts import VERSION_TABLE
from tenantsync.tenancy.engines import EngineFactory
from tenantsync.tenants import Placement

__all__ = ["EXISTS", "Checkpoint", "Prepared", "maintained", "nothing", "side_files"]

Checkpoint = Callable[[str], object]
"""Called with a label at each step that an interruption may follow; for tests."""

_MAINTENANCE: Final = "postgres"
_PREFIX: Final = "tenantsync_template_"
EXISTS: Final = ("42P04", "23505")
"""What PostgreSQL says of a database that is there, or that another one made just now."""

_IN_USE: Final = "55006"
_ATTEMPTS: Final = 5
_SIDE_FILES: Final = ("-wal", "-shm", "-journal")


def nothing(_label: str) -> None:
    """Do nothing at a checkpoint."""


class Prepared:
    """What fresh places are copied from; migrated when the first one is wanted.

    A copy is made only where it is what migrating would have given: where the migrations leave
    rows behind, each place may be meant to get its own, and None is copied.

    Args:
        migrate: Brings a place to head, and raises where it cannot.
        factory: Makes engines.
        name: What tells this application's databases from others on the server, such as the
            template of their names.
        at: Told of each step.
        sleep: Waits some seconds.
    """

    def __init__(
        self,
        migrate: Callable[[Placement], object],
        factory: EngineFactory,
        *,
        name: str,
        at: Checkpoint = nothing,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._migrate = migrate
        self._factory = factory
        self._template = _PREFIX + hashlib.sha256(name.encode()).hexdigest()[:12]
        self._at = at
        self._sleep = sleep
        self._lock = threading.Lock()
        self._file: bytes | None = None
        self._usable: dict[URL, bool] = {}

    def copy_file(self, placement: Placement) -> bool:
        """Make the SQLite file, all of it or none; return False where it has to be migrated.

        Nothing that is there is ever overwritten.
        """
        target = Path(str(placement.url.database)).absolute()
        if target.exists():
            return False
        content = self._content()
        if not content:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        # A log that outlived its file would be replayed into the new one.
        for left in (*side_files(target), *_interrupted(target)):
            with suppress(FileNotFoundError):
                left.unlink()
        written = target.with_name(f".{target.name}.{secrets.token_hex(8)}.new")
        try:
            with written.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._at("written")
            try:
                # A link, unlike a rename, never takes the place of what somebody else made there.
                os.link(written, target)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                return False
        finally:
            with suppress(FileNotFoundError):
                written.unlink()
        _sync_folder(target.parent)
        self._at("copied")
        return True

    def copy_database(self, placement: Placement) -> bool:
        """Make the PostgreSQL database as a copy; return False where it has to be migrated."""
        server = placement.url.set(database=self._template)
        with self._lock:
            if server not in self._usable:
                self._usable[server] = self._prepare_database(placement)
            if not self._usable[server]:
                return False
        with maintained(placement, self._factory) as connection:
            for attempt in range(_ATTEMPTS):
                try:
                    _create(connection, str(placement.url.database), self._template)
                except DBAPIError as error:
                    state = getattr(error.orig, "sqlstate", None)
                    if state in EXISTS:
                        return True
                    if state != _IN_USE:  # whoever migrates it will say what is wrong
                        return False
                    self._sleep(0.05 * 2**attempt)
                else:
                    self._at("copied")
                    return True
        return False

    def _content(self) -> bytes | None:
        with self._lock:
            if self._file is None:
                with tempfile.TemporaryDirectory(prefix="tenantsync-") as folder:
                    file = Path(folder) / "prepared.db"
                    self._migrate(Placement.of(URL.create("sqlite", database=str(file))))
                    self._file = b"" if _has_rows_in_file(file) else file.read_bytes()
            return self._file

    def _prepare_database(self, placement: Placement) -> bool:
        template = Placement(placement.url.set(database=self._template))
        with maintained(placement, self._factory) as connection:
            try:
                if not _is_there(connection, self._template):
                    _create(connection, self._template, "template1")
                    self._at("template")
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in EXISTS:
                    return False
        try:
            self._migrate(template)
        except Exception:  # then each database is migrated, and says what is wrong
            return False
        engine = self._factory(template.url, pool_size=1)
        try:
            with engine.connect() as connection:
                return not _has_rows(connection)
        finally:
            engine.dispose()


class maintained:  # noqa: N801 - reads as what it is, a `with` statement
    """Gives a connection in autocommit to the server's own database, beside the placement's."""

    def __init__(self, placement: Placement, factory: EngineFactory) -> None:
        self._engine = factory(placement.url.set(database=_MAINTENANCE), pool_size=1)

    def __enter__(self) -> Connection:
        try:
            connection = self._engine.connect()
        except BaseException:
            self._engine.dispose()
            raise
        self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._engine.dispose()


def side_files(file: Path) -> tuple[Path, ...]:
    """Return the files that SQLite keeps beside a database, there or not."""
    return tuple(file.with_name(file.name + suffix) for suffix in _SIDE_FILES)


def _interrupted(target: Path) -> list[Path]:
    """Return what earlier copies left behind when they were killed."""
    name = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{16}}\.new")
    return [file for file in target.parent.iterdir() if name.fullmatch(file.name)]


def _sync_folder(folder: Path) -> None:
    # The name of a new file is on the disk only when its folder is.
    with suppress(OSError):  # not every system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _has_rows_in_file(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as connection:
        # All of it in the one file that is copied.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        names = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite^_%'"
            " ESCAPE '^' AND name <> ?",
            (VERSION_TABLE,),
        ).fetchall()
        quoted = (name.replace('"', '""') for (name,) in names)
        return any(
            connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone() for name in quoted
        )


def _has_rows(connection: Connection) -> bool:
    tables = connection.execute(
        text(
            "SELECT n.nspname, c.relname FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relkind IN ('r', 'm') AND n.nspname <> 'information_schema'"
            " AND n.nspname !~ '^pg_' AND c.relname <> :version"
        ),
        {"version": VERSION_TABLE},
    ).all()
    quote = connection.dialect.identifier_preparer.quote_identifier
    return any(
        connection.exec_driver_sql(
            f"SELECT 1 FROM {quote(schema)}.{quote(name)} LIMIT 1".replace("%", "%%")
        ).first()
        for schema, name in tables
    )


def _is_there(connection: Connection, database: str) -> bool:
    query = text("SELECT 1 FROM pg_database WHERE datname = :name")
    return connection.scalar(query, {"name": database}) is not None


def _create(connection: Connection, database: str, template: str) -> None:
    quote = connection.dialect.identifier_preparer.quote_identifier
    statement = f"CREATE DATABASE {quote(database)} TEMPLATE {quote(template)}"
    connection.exec_driver_sql(statement.replace("%", "%%"))
