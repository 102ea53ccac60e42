"""Moves one tenant's place to the target: under its lock, proven, all or nothing."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final, TypeVar

from sqlalchemy import Connection, text

from tenantsync.errors import TenantNotIsolated
from tenantsync.migrate.connections import Connections
from tenantsync.migrate.files import rebuilding, tables_of, versions_of
from tenantsync.migrate.moves import Found, Kind, Limits, Move, Way
from tenantsync.migrate.places import has_schema, let_in
from tenantsync.migrate.quick import replay_quickly
from tenantsync.migrate.recording import Recorder, Recording
from tenantsync.migrate.report import State, Stopped, sentence_about
from tenantsync.migrate.schemas import (
    SchemaVisitor,
    blocker_of,
    is_contention,
    lock_name,
    milliseconds,
)
from tenantsync.migrate.scripts import BRANCH, VERSION_TABLE, Scripts
from tenantsync.models import Base
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenants import Placement

__all__ = ["Handover", "Mover", "first_alone"]

_T = TypeVar("_T")
_POLL: Final = 0.1


class Handover(Exception):
    """Alembic is needed for this place, and this thread must not run it.

    Args:
        recording: What is to be done.
    """

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording


class Mover:
    """Moves places, one at a time, on connections of its own; for one thread.

    Args:
        isolation: How places are made, bound and proven.
        scripts: The revisions.
        recorder: Says how a place gets to the target.
        move: The target.
        limits: How long it may wait.
        connections: Where its connections come from.
        sleep: Waits some seconds.
    """

    def __init__(
        self,
        isolation: Isolation,
        scripts: Scripts,
        recorder: Recorder,
        move: Move,
        limits: Limits,
        connections: Connections,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._isolation = isolation
        self._scripts = scripts
        self._recorder = recorder
        self._move = move
        self._limits = limits
        self._connections = connections
        self._visitor = SchemaVisitor(isolation, limits)
        self._sleep = sleep

    def move(
        self, placement: Placement, *, alembic: bool, known: tuple[str, ...] | None = None
    ) -> Found:
        """Bring a place to the target.

        Args:
            placement: The place.
            alembic: Whether Alembic may be run in this process, for as long as it takes.
            known: The revisions that it stood at just now, if somebody looked.

        Raises:
            Stopped: It could not be done; the place is as it was, unless the error says otherwise.
            Handover: Alembic is needed, and may not be run here.
        """

        def work() -> Found:
            if not placement.is_postgres:
                return self._move_file(placement, alembic=alembic)
            if known and (recording := self._replayed_quickly(placement, known)) is not None:
                return Found(known, recording.end)
            return self._move_schema(placement, alembic=alembic)

        try:
            return self._patiently(placement, work)
        except (Stopped, Handover):
            raise
        except Exception as error:
            raise Stopped(State.FAILED, sentence_about(error)) from error

    @property
    def _makes(self) -> bool:
        return self._move.kind is Kind.UPGRADE

    def _replayed_quickly(self, placement: Placement, known: tuple[str, ...]) -> Recording | None:
        recording = self._recorder.recording("postgresql", known)
        if recording.way is not Way.REPLAY or not recording.gate.passed:
            return None
        with (
            _standing_at(known),
            self._connections.use(placement, make=self._makes, direct=True) as connection,
        ):
            done = replay_quickly(
                connection,
                self._isolation,
                placement,
                self._limits,
                start=known,
                script=recording.script,
            )
        return recording if done else None

    def _move_schema(self, placement: Placement, *, alembic: bool) -> Found:
        with self._connections.use(placement, make=self._makes, direct=True) as connection:
            with connection.begin():
                entered = self._visitor.enter(connection, placement, make=self._makes)
                with _standing_at(entered.versions):
                    recording = self._recorder.recording("postgresql", entered.versions)
                    if recording.way is Way.NOTHING:
                        tables = self._visitor.tables(connection, placement)
                        self._verify(placement, tables, entered.versions)
                        return Found(entered.versions, entered.versions)
                    if recording.way is not Way.APART:
                        if recording.way is Way.ONLINE and not alembic:
                            raise Handover(recording)
                        with first_alone(recording) as first:
                            if recording.way is Way.REPLAY:
                                after = self._visitor.replay(
                                    connection, placement, entered, recording.script
                                )
                                if after != recording.end:
                                    raise self._unexpected(placement, after, ())
                            else:
                                self._scripts.run(connection, schema_of(placement), self._move)
                                after = self._visitor.leave(connection, placement, entered)
                            if first or recording.way is Way.ONLINE:
                                self._visitor.refuse_astray(connection, placement)
                                tables = self._visitor.tables(connection, placement)
                                self._verify(placement, tables, after)
                            return Found(entered.versions, after)
            # The schema, if it was made, is made again by who goes on; nothing is held here.
            if not alembic:
                raise Handover(recording)
        with first_alone(recording):
            return self._move_apart(placement)

    def _move_apart(self, placement: Placement) -> Found:
        """Let Alembic run each revision in a transaction of its own, or in none.

        The lock and the place belong to the session, which nobody else gets afterwards.
        """
        schema = schema_of(placement)
        with (
            self._connections.use(placement, make=self._makes, direct=True) as shared,
            shared.begin(),
        ):
            if not has_schema(shared, placement):
                self._isolation.create(shared, placement)
                let_in(shared, placement)
        with self._connections.alone(placement) as connection:
            self._take_session(connection, placement)
            before = self._prove(connection, placement)
            with _standing_at(before):
                try:
                    self._scripts.run(connection, schema, self._move, apart=True)
                except Exception as error:
                    connection.rollback()
                    after = self._prove(connection, placement)
                    raise Stopped(
                        State.FAILED,
                        f"{sentence_about(error)}; a part of that revision cannot be in a "
                        "transaction, so what it did before may stand: look there (an index that "
                        "was being made is INVALID, drop it), then run this again",
                        after,
                    ) from error
                after = self._prove(connection, placement)
                with connection.begin():
                    tables = self._visitor.tables(connection, placement)
                self._verify(placement, tables, after)
                return Found(before, after)

    def _take_session(self, connection: Connection, placement: Placement) -> None:
        limits = self._limits
        with connection.begin():
            if placement.engine is not None:
                connection.execute(
                    text("SELECT set_config('search_path', quote_ident(:schema), false)"),
                    {"schema": schema_of(placement)},
                )
            for name, value in (
                ("lock_timeout", limits.lock),
                ("statement_timeout", limits.statement),
            ):
                connection.execute(
                    text("SELECT set_config(:name, :value, false)"),
                    {"name": name, "value": milliseconds(value)},
                )
        waited = 0.0
        while True:
            with connection.begin():
                if connection.scalar(
                    text("SELECT pg_try_advisory_lock(hashtextextended(:name, 0))"),
                    {"name": lock_name(placement)},
                ):
                    return
            if waited >= limits.wait:
                raise Stopped(State.SKIPPED, "another run is migrating it")
            self._sleep(_POLL)
            waited += _POLL

    def _prove(self, connection: Connection, placement: Placement) -> tuple[str, ...]:
        """Prove that the session is in the place, and return the revisions there."""
        with connection.begin():
            with closing(connection.connection.cursor()) as cursor:
                self._isolation.locate(cursor, placement)
                self._isolation.confirm(cursor.fetchone(), placement)
            return self._scripts.current(connection, schema_of(placement))

    def _move_file(self, placement: Placement, *, alembic: bool) -> Found:
        with self._connections.use(placement, make=self._makes) as connection:
            with closing(connection.connection.cursor()) as cursor:
                self._isolation.bind(cursor, placement)
                self._isolation.locate(cursor, placement)
                self._isolation.confirm(cursor.fetchone(), placement)
            before = self._versions(connection)
            with _standing_at(before):
                recording = self._recorder.recording("sqlite", before)
                if recording.way is Way.ONLINE and not alembic:
                    raise Handover(recording)
                if recording.way is Way.REPLAY:
                    # Asked again by who holds the lock: another one may have been quicker.
                    with first_alone(recording), rebuilding(connection):
                        before = self._versions(connection)
                        recording = self._recorder.recording("sqlite", before)
                        if recording.way is Way.REPLAY:
                            for statement in recording.statements:
                                connection.exec_driver_sql(statement)
                            self._verify(
                                placement, tables_of(connection), self._versions(connection)
                            )
                if recording.way is Way.ONLINE:
                    with first_alone(recording):
                        before = self._scripts.run(connection, None, self._move)
                after = self._versions(connection)
                self._verify(placement, tables_of(connection), after)
                return Found(before, after)

    def _versions(self, connection: Connection) -> tuple[str, ...]:
        if VERSION_TABLE not in tables_of(connection):
            return ()
        return versions_of(connection, VERSION_TABLE)

    def _verify(self, placement: Placement, tables: set[str], versions: tuple[str, ...]) -> None:
        """Do nothing if the place is at the target, with the tables there."""
        wanted = {VERSION_TABLE} if versions else set()
        if self._scripts.at_head(versions, BRANCH):
            wanted |= set(Base.metadata.tables)
        missing = tuple(sorted(wanted - tables))
        if missing or self._scripts.steps(self._move, versions):
            raise self._unexpected(placement, versions, missing)

    def _unexpected(
        self, placement: Placement, versions: tuple[str, ...], missing: tuple[str, ...]
    ) -> Stopped:
        return Stopped(
            State.FAILED,
            f"it should be at {self._move.to}, but {placement} lacks "
            f"{', '.join(missing) or 'that revision'}: were tables dropped, or does a "
            "revision name another schema?",
            versions,
        )

    def _patiently(self, placement: Placement, work: Callable[[], _T]) -> _T:
        """Return what the work returns; where somebody is in the way, try some more times."""
        for attempt in range(1, self._limits.attempts + 1):
            try:
                return work()
            except Exception as error:
                cause = _contention_in(error)
                if cause is None:
                    raise
                if attempt == self._limits.attempts:
                    at = error.at if isinstance(error, Stopped) else ()
                    raise Stopped(State.LOCKED, self._who_is_there(placement, cause), at) from error
            # Not for the same time as everybody else who was in the way.
            self._sleep(self._limits.lock * random.uniform(0.1, 0.5) * attempt)  # noqa: S311 - a pause
        raise TenantNotIsolated("a run must try at least once")  # pragma: no cover

    def _who_is_there(self, placement: Placement, cause: BaseException) -> str:
        tried = f"tried {self._limits.attempts} times for {self._limits.lock:g} s"
        if not placement.is_postgres:
            return f"somebody else writes to the file ({tried}): end that, and run this again"
        who = None
        try:
            with self._connections.use(placement, make=False) as connection:
                who = blocker_of(connection, placement)
        except Exception:  # it only tells more about the error under way
            who = None
        if who is None:
            return f"{sentence_about(_as_error(cause))} ({tried}): run this again"
        return (
            f"{who} holds locks on its tables ({tried}): end what it does, or that process, and "
            "run this again"
        )


@contextmanager
def first_alone(recording: Recording) -> Iterator[bool]:
    """Hold the others back until one tenant was found to be right; say whether this is that one."""
    gate = recording.gate
    if gate.passed:
        yield False
        return
    with gate.lock:
        first = not gate.passed
        if first:
            yield True
            gate.passed = True
    if not first:
        yield False


def _contention_in(error: BaseException | None) -> BaseException | None:
    while error is not None:
        if is_contention(error):
            return error
        error = error.__cause__
    return None


def _as_error(cause: BaseException) -> Exception:
    return cause if isinstance(cause, Exception) else RuntimeError(str(cause))


@contextmanager
def _standing_at(revisions: tuple[str, ...]) -> Iterator[None]:
    """Say with whatever goes wrong where the place stood before, and stands again."""
    try:
        yield
    except Handover:
        raise
    except Stopped as stopped:
        stopped.at = stopped.at or revisions
        raise
    except Exception as error:
        raise Stopped(State.FAILED, sentence_about(error), revisions) from error
