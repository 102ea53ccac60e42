"""Looks at tenants' places over the way that events take: reached, bound, proven, and writable.

A server may accept a connection and then say nothing, for as long as it likes. So each database is
visited by a thread of its own, which is left alone when it does not get on.
"""

import os
import queue
import socket
import sqlite3
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from tenantsync.doctor.report import Level, Note
from tenantsync.errors import TenantNotIsolated
from tenantsync.migrate.report import sentence_about
from tenantsync.tenancy.engines import EngineFactory
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenants import Placement, Tenant

__all__ = ["Seen", "examine_places", "open_to_others"]

_TABLES: Final = "av_identities, av_identity_sessions, av_identity_tombstones, av_sync_events"
_SETTLE: Final = text(
    # LOCAL, all of it: nothing here may rely on the session, which a pooler shares.
    "SELECT set_config('lock_timeout', '1000ms', true),"
    " set_config('statement_timeout', '5000ms', true)"
)
_READ_ONLY: Final = text("SELECT current_setting('transaction_read_only') = 'on'")
# What every batch of events takes as well: it is in nobody's way but of whoever is in ours.
_USE: Final = text(f"LOCK TABLE {_TABLES} IN ROW EXCLUSIVE MODE")
_GONE: Final = ("42P01", "3F000")  # no such table, no such schema: told by the revision
_RETRY: Final = "look whether its server runs, and whether [isolation] url is right"


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen at one tenant's place.

    Args:
        notes: What is not as it should be.
        reached: Whether there was a connection at all.
        silent: Whether whoever asks again would wait for nothing.
        exposed: The SQLite file, if everybody on this machine may read it.
    """

    notes: tuple[Note, ...] = ()
    reached: bool = True
    silent: bool = False
    exposed: Path | None = None


_Told = Callable[[Tenant, Seen], object]


def examine_places(
    tenants: Sequence[Tenant],
    *,
    isolation: Isolation,
    factory: EngineFactory,
    jobs: int = 4,
    patience: float = 15.0,
    told: _Told,
) -> None:
    """Visit the place of each tenant, and change nothing there.

    Args:
        tenants: Whom to visit. Those of one database share a connection.
        isolation: Binds and proves.
        factory: Makes the engine of a database.
        jobs: How many databases are visited at once.
        patience: Seconds after which a database that says nothing is given up on.
        told: Called once for each tenant with what was seen, from the threads of the jobs.
    """
    groups: dict[object, list[Tenant]] = {}
    for tenant in tenants:
        groups.setdefault(tenant.placement.database, []).append(tenant)
    silent: dict[str, str] = {}
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="tenantsync-doctor")
    try:
        visits = [
            pool.submit(_watch, _Visit(group, isolation, factory), patience, silent, told)
            for group in groups.values()
        ]
        for visit in visits:
            visit.result()
    finally:
        pool.shutdown(cancel_futures=True)


def open_to_others(file: Path) -> bool:
    """Return whether everybody on this machine may read a file: it, and each folder above it."""
    try:
        if not file.stat().st_mode & stat.S_IROTH:
            return False
        return all(folder.stat().st_mode & stat.S_IXOTH for folder in file.absolute().parents)
    except OSError:
        return False


def _watch(visit: "_Visit", patience: float, silent: dict[str, str], told: _Told) -> None:
    """Have one database visited, and give up on it when nothing happens for too long."""
    server = visit.group[0].placement.server
    known = None if server is None else silent.get(server)
    if known is not None:
        # Each of a thousand databases would wait for the one server all over again.
        for tenant in visit.group:
            told(tenant, _unreachable(known, silent=True))
        return
    threading.Thread(target=visit.run, name="tenantsync-doctor-visit", daemon=True).start()
    for done, tenant in enumerate(visit.group):
        try:
            seen = visit.seen.get(timeout=patience)
        except queue.Empty:
            visit.abandon()
            sentence = f"it says nothing for {patience:g} s"
            if server is not None:
                silent[server] = sentence
            for left in visit.group[done:]:
                told(left, _unreachable(sentence, silent=True))
            return
        if seen.silent and server is not None:
            silent[server] = visit.failure
        told(tenant, seen)


class _Visit:
    """One database, and the tenants in it.

    Args:
        group: The tenants.
        isolation: Binds and proves.
        factory: Makes the database's engine.
    """

    def __init__(
        self, group: Sequence[Tenant], isolation: Isolation, factory: EngineFactory
    ) -> None:
        self.group = group
        self.seen: queue.SimpleQueue[Seen] = queue.SimpleQueue()
        self.failure = ""
        self._isolation = isolation
        self._factory = factory
        self._socket: int | None = None
        self._abandoned = False

    def run(self) -> None:
        """Look at each tenant in turn, and put what was seen into the queue."""
        place = self.group[0].placement
        engine: Engine | None = None
        try:
            engine = place.engine or self._factory(place.url, pool_size=1)
            with engine.connect() as connection:
                self._remember(connection)
                for tenant in self.group:
                    if self._abandoned:
                        return
                    notes = self._notes(connection, tenant.placement)
                    self.seen.put(Seen(tuple(notes), exposed=_exposed(tenant.placement)))
        except Exception as error:  # whatever it is, the other databases come next
            self._fail(error)
        finally:
            if engine is not None and place.engine is None:
                with suppress(Exception):  # a connection that was cut off cannot be given back
                    engine.dispose()

    def abandon(self) -> None:
        """Make the thread end soon."""
        self._abandoned = True
        if self._socket is not None:
            # A descriptor of its own: the thread may close the other one at this moment.
            with suppress(OSError), socket.socket(fileno=os.dup(self._socket)) as line:
                line.shutdown(socket.SHUT_RDWR)

    def _remember(self, connection: Connection) -> None:
        raw = connection.connection.driver_connection
        if isinstance(raw, psycopg.Connection):
            self._socket = raw.fileno()

    def _fail(self, error: Exception) -> None:
        self.failure = sentence_about(error)
        cause = getattr(error, "orig", None)
        silent = isinstance(cause, psycopg.errors.ConnectionTimeout)
        # Those before this one were seen; a few too many in the queue do no harm.
        for _ in self.group:
            self.seen.put(_unreachable(self.failure, silent=silent))

    def _notes(self, connection: Connection, place: Placement) -> list[Note]:
        try:
            with connection.begin() as transaction:
                notes = self._proven(connection, place)
                transaction.rollback()
                return notes
        except TenantNotIsolated as error:
            return [
                Note(
                    Level.ERROR,
                    f"its transactions are not where they should be: {error}",
                    "look for what differs with `tenantsync verify-isolation`; until then its "
                    "events are parked",
                )
            ]
        except DBAPIError as error:
            if connection.invalidated or error.connection_invalidated:
                raise
            return _refused(error)

    def _proven(self, connection: Connection, place: Placement) -> list[Note]:
        notes = []
        prove = partial(self._prove, connection, place)
        with closing(connection.connection.cursor()) as cursor:
            self._isolation.bind(cursor, place)
        transaction = prove()
        if place.is_postgres:
            connection.execute(_SETTLE)
            if connection.scalar(_READ_ONLY):
                notes.append(
                    Note(
                        Level.ERROR,
                        "its database is read-only",
                        "look whether the URL leads to a standby, or the disk is full",
                    )
                )
            else:
                connection.execute(_USE)
            if prove() != transaction:
                raise TenantNotIsolated("each statement is a transaction of its own")
        return notes

    def _prove(self, connection: Connection, place: Placement) -> str:
        with closing(connection.connection.cursor()) as cursor:
            self._isolation.locate(cursor, place)
            return self._isolation.confirm(cursor.fetchone(), place)


def _refused(error: DBAPIError) -> list[Note]:
    cause = error.orig
    state = getattr(cause, "sqlstate", None)
    if state in _GONE:
        return []
    if isinstance(cause, sqlite3.OperationalError) and (
        cause.sqlite_errorcode == sqlite3.SQLITE_BUSY
    ):
        return [
            Note(
                Level.ERROR,
                "its file is locked by somebody else",
                "look who has it open: a migration under way, or a forgotten transaction",
            )
        ]
    if isinstance(cause, psycopg.errors.LockNotAvailable | psycopg.errors.QueryCanceled):
        return [
            Note(
                Level.ERROR,
                "one of its tables is locked by somebody else, for a second at least",
                "look into pg_locks who it is: a migration under way, or a forgotten transaction",
            )
        ]
    if isinstance(cause, psycopg.errors.InsufficientPrivilege):
        return [
            Note(
                Level.ERROR,
                f"its tables may not be written: {sentence_about(error)}",
                "grant its login or role SELECT, INSERT, UPDATE and DELETE on them",
            )
        ]
    return [
        Note(
            Level.ERROR,
            f"its database does not take part: {sentence_about(error)}",
            "repair that; its events wait in the inbox until then",
        )
    ]


def _exposed(place: Placement) -> Path | None:
    if place.is_postgres or place.engine is not None:
        return None
    file = Path(str(place.url.database))
    return file if open_to_others(file) else None


def _unreachable(sentence: str, *, silent: bool) -> Seen:
    note = Note(Level.ERROR, f"its database cannot be reached: {sentence}", _RETRY)
    return Seen((note,), reached=False, silent=silent)
