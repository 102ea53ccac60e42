"""Where tenants stand, told for all of one database at once. Nothing is made or changed."""

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import psycopg
from sqlalchemy import Connection

from tenantsync.migrate.connections import Connections
from tenantsync.migrate.drift import Expected, drifts
from tenantsync.migrate.files import tables_of, versions_of
from tenantsync.migrate.moves import Way
from tenantsync.migrate.recording import Recorder
from tenantsync.migrate.report import State, Stopped, sentence_about
from tenantsync.migrate.schemas import is_contention
from tenantsync.migrate.scripts import BRANCH, VERSION_TABLE, Scripts
from tenantsync.migrate.survey import Standing, survey
from tenantsync.models import Base
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenants import Placement

__all__ = ["Look", "Looker"]

_RUN: Final = "run `tenantsync migrate upgrade`"


@dataclass(frozen=True, slots=True)
class Look:
    """Where one place stands.

    Args:
        state: How it stands to the target.
        versions: The revisions that it stands at, sorted.
        error: What is wrong and what to do, in a sentence.
    """

    state: State
    versions: tuple[str, ...] = ()
    error: str | None = None


class Looker:
    """Looks at places; for one thread.

    Args:
        isolation: How places are bound and proven.
        scripts: The revisions.
        recorder: Says what would be done.
        connections: Where its connections come from.
    """

    def __init__(
        self,
        isolation: Isolation,
        scripts: Scripts,
        recorder: Recorder,
        connections: Connections,
    ) -> None:
        self._isolation = isolation
        self._scripts = scripts
        self._recorder = recorder
        self._connections = connections

    def look(self, placements: Sequence[Placement], expected: Expected | None = None) -> list[Look]:
        """Return where places stand that are all in one database, in the same order.

        Args:
            placements: The places.
            expected: What the tables of those at head must be; None leaves that unasked.
        """
        try:
            with self._connections.use(placements[0], make=False) as connection:
                if placements[0].is_postgres:
                    looks = self._look_at_schemas(connection, placements)
                else:
                    looks = [self._look_at_file(connection, place) for place in placements]
                if expected is not None:
                    looks = _compared_with(expected, connection, placements, looks)
                return looks
        except Stopped as stopped:
            look = Look(stopped.state, stopped.at, stopped.reason)
        except Exception as error:  # whatever it is, the other databases come next
            state = State.LOCKED if is_contention(error) else State.FAILED
            look = Look(state, (), sentence_about(error))
        return [look] * len(placements)

    def _look_at_schemas(
        self, connection: Connection, placements: Sequence[Placement]
    ) -> list[Look]:
        standings = survey(connection, placements)
        return [
            self._judged(connection, place, standings[schema_of(place)]) for place in placements
        ]

    def _judged(self, connection: Connection, placement: Placement, standing: Standing) -> Look:
        if not standing.exists:
            schema = schema_of(placement)
            return Look(State.MISSING, (), f"schema {schema!r} does not exist: {_RUN}")
        if standing.versions is None:
            if isinstance(standing.error, psycopg.errors.InsufficientPrivilege) and placement.role:
                try:
                    standing.versions = self._as_role(connection, placement)
                except Exception as error:  # it is told below
                    standing.error = error
            if standing.versions is None:
                return self._unreadable(standing)
        return self._compared(
            "postgresql", standing.versions, standing.tables, placement, standing.locked_by
        )

    def _unreadable(self, standing: Standing) -> Look:
        error = standing.error or RuntimeError("its version table cannot be read")
        if not is_contention(error):
            return Look(State.FAILED, (), sentence_about(error))
        who = f"process {standing.locked_by}" if standing.locked_by else "somebody"
        return Look(State.LOCKED, (), f"{who} has locked its version table: look again later")

    def _as_role(self, connection: Connection, placement: Placement) -> tuple[str, ...]:
        with connection.begin(), closing(connection.connection.cursor()) as cursor:
            self._isolation.bind(cursor, placement)
            self._isolation.locate(cursor, placement)
            self._isolation.confirm(cursor.fetchone(), placement)
            return self._scripts.current(connection, schema_of(placement))

    def _look_at_file(self, connection: Connection, placement: Placement) -> Look:
        with closing(connection.connection.cursor()) as cursor:
            self._isolation.bind(cursor, placement)
            self._isolation.locate(cursor, placement)
            self._isolation.confirm(cursor.fetchone(), placement)
        tables = tables_of(connection)
        versions = versions_of(connection, VERSION_TABLE) if VERSION_TABLE in tables else ()
        return self._compared("sqlite", versions, tables, placement, None)

    def _compared(
        self,
        dialect: str,
        versions: tuple[str, ...],
        tables: Iterable[str],
        placement: Placement,
        locked_by: int | None,
    ) -> Look:
        try:
            recording = self._recorder.recording(dialect, versions)
        except Stopped as stopped:
            return Look(stopped.state, versions, stopped.reason)
        if recording.way is not Way.NOTHING:
            if locked_by is not None:
                return Look(State.LOCKED, versions, f"process {locked_by} is migrating it now")
            if not versions:
                return Look(State.UNVERSIONED, (), f"it was never migrated: {_RUN}")
            return Look(State.BEHIND, versions, f"it is behind: {_RUN}")
        if self._scripts.at_head(versions, BRANCH):
            missing = sorted({VERSION_TABLE, *Base.metadata.tables}.difference(tables))
            if missing:
                return Look(
                    State.FAILED,
                    versions,
                    f"it should be at head, but {placement} lacks {', '.join(missing)}: were "
                    "tables dropped?",
                )
        return Look(State.OK, versions)


def _compared_with(
    expected: Expected,
    connection: Connection,
    placements: Sequence[Placement],
    looks: Sequence[Look],
) -> list[Look]:
    at_head = [index for index, look in enumerate(looks) if look.state is State.OK]
    compared = list(looks)
    if at_head:
        found = drifts(connection, [placements[index] for index in at_head], expected)
        for index, difference in zip(at_head, found, strict=True):
            if difference is not None:
                compared[index] = Look(State.DRIFTED, looks[index].versions, difference)
    return compared
