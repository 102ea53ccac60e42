"""Visits tenants one after the other and migrates each in one transaction of its own."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy import URL, Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tenantsync.config import Settings, fill
from tenantsync.errors import TenantNotIsolated, TenantSyncError
from tenantsync.migrate.places import find_file, has_schema, let_in, made_database
from tenantsync.migrate.report import Report, Row, State, Stopped, sentence_about
from tenantsync.migrate.scripts import VERSION_TABLE, Scripts
from tenantsync.models import Base
from tenantsync.tenancy.engines import EngineFactory, make_engine
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenants import Placement, Tenant, read_url

__all__ = ["Place", "Progress", "migration_places", "status", "upgrade"]

_LOCK_NOT_AVAILABLE: Final = "55P03"

Progress = Callable[[Row, int, int], object]
"""Called after each tenant with its row, how many are done, and how many there are."""

Place = Callable[[Tenant], Placement]
"""Says where, and with which login, a tenant's migrations run."""


def upgrade(
    tenants: Iterable[Tenant],
    *,
    isolation: Isolation,
    place: Place | None = None,
    locations: Sequence[Path | str] = (),
    factory: EngineFactory | None = None,
    lock_timeout: float = 30.0,
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Bring each tenant's place to the newest revisions; what fails never stops the others.

    A schema, a SQLite file with its folder, or a tenant's own PostgreSQL database that is missing
    is made, the latter if the login may. All of one tenant's revisions run in one transaction:
    its place is at head afterwards, or as it was. Two that migrate the same place wait for each
    other.

    Args:
        tenants: Whom to migrate, in this order. Suspended tenants are migrated too.
        isolation: How places are made, bound and proven.
        place: Where a tenant's migrations run, and with which login; None means its placement.
            `migration_places` makes one from the settings.
        locations: Folders with revisions of the application's own, a branch beside ours.
        factory: Makes the engine of a database; None means tenantsync's own.
        lock_timeout: Seconds to wait for another migration, or for a lock on a table.
        on_progress: Called after each tenant.
        clock: Seconds that only ever go forward.

    Raises:
        ConfigError: A location is no folder, or the revisions cannot be read.
    """
    run = _Run(isolation, place, locations, factory, lock_timeout, clock)
    return run.visit(tenants, run.upgrade, on_progress)


def status(
    tenants: Iterable[Tenant],
    *,
    isolation: Isolation,
    place: Place | None = None,
    locations: Sequence[Path | str] = (),
    factory: EngineFactory | None = None,
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Tell where each tenant's place stands. Nothing is made or changed.

    Arguments and errors are those of `upgrade`.
    """
    run = _Run(isolation, place, locations, factory, 5.0, clock)
    return run.visit(tenants, run.status, on_progress)


def migration_places(settings: Settings) -> Place:
    """Return where migrations run by the configuration: `[isolation] migration_url`, if it is set.

    It stands in for `[isolation] url`, so a tenant with a `url` of its own keeps that one. Schema
    and role stay those of the tenant.

    Raises:
        ConfigError: The URL needs an environment variable that is not set.
    """
    template = settings.isolation.migration_url
    own = {key for key, tenant in settings.tenants.items() if tenant.url}

    def place(tenant: Tenant) -> Placement:
        if template is None or tenant.key in own or tenant.placement.engine is not None:
            return tenant.placement
        return replace(tenant.placement, url=read_url(fill(template, tenant.key)))

    return place


@dataclass(frozen=True, slots=True)
class _Found:
    """The revisions of one place, before and after."""

    before: tuple[str, ...]
    after: tuple[str, ...]


class _Run:
    """One run over many tenants: the revisions read once, an engine kept while the URL is one."""

    def __init__(
        self,
        isolation: Isolation,
        place: Place | None,
        locations: Sequence[Path | str],
        factory: EngineFactory | None,
        lock_timeout: float,
        clock: Callable[[], float],
    ) -> None:
        self._isolation = isolation
        self._place = place or (lambda tenant: tenant.placement)
        self._factory = factory or partial(make_engine, lock_timeout=lock_timeout)
        self._lock_timeout = lock_timeout
        self._clock = clock
        self._scripts = Scripts(locations)
        self._open: tuple[URL, Engine] | None = None

    def visit(
        self,
        tenants: Iterable[Tenant],
        work: Callable[[Placement], _Found],
        on_progress: Progress | None,
    ) -> Report:
        """Do the work for each tenant and return what became of them."""
        wanted = list(tenants)
        rows: list[Row] = []
        try:
            for tenant in wanted:
                rows.append(self._row(tenant, work))
                if on_progress:
                    on_progress(rows[-1], len(rows), len(wanted))
        finally:
            self._close()
        return Report(self._scripts.heads, tuple(rows))

    def upgrade(self, placement: Placement) -> _Found:
        """Bring one place to head."""
        with self._connection(placement, make=True) as connection:
            if placement.is_postgres:
                return self._upgrade_schema(connection, placement)
            return self._upgrade_file(connection, placement)

    def status(self, placement: Placement) -> _Found:
        """Return where one place stands, if it is at head."""
        with self._connection(placement, make=False) as connection, connection.begin():
            if placement.is_postgres and not has_schema(connection, placement):
                raise Stopped(
                    State.MISSING,
                    f"schema {schema_of(placement)!r} does not exist: run "
                    "`tenantsync migrate upgrade`",
                )
            self._bind(connection, placement)
            current = self._current(connection, placement)
            if not current:
                raise Stopped(
                    State.UNVERSIONED, "it was never migrated: run `tenantsync migrate upgrade`"
                )
            if not self._scripts.at_head(current):
                raise Stopped(
                    State.BEHIND, "it is behind: run `tenantsync migrate upgrade`", current
                )
            self._verify(connection, placement)
            return _Found(current, current)

    def _row(self, tenant: Tenant, work: Callable[[Placement], _Found]) -> Row:
        started = self._clock()
        try:
            found = work(self._place(tenant))
        except Stopped as stopped:
            state, reason, at = stopped.state, stopped.reason, _joined(stopped.at)
        except Exception as error:  # whatever it is, the other tenants come next
            state, reason, at = State.FAILED, sentence_about(error), None
        else:
            state = State.OK if found.before == found.after else State.UPGRADED
            before, after = _joined(found.before), _joined(found.after)
            return Row(tenant.key, before, after, state, self._clock() - started)
        return Row(tenant.key, at, at, state, self._clock() - started, reason)

    def _upgrade_schema(self, connection: Connection, placement: Placement) -> _Found:
        with connection.begin():
            self._lock(connection, placement)
            if not has_schema(connection, placement):
                self._isolation.create(connection, placement)
                let_in(connection, placement)
            transaction = self._bind(connection, placement)
            before = self._current(connection, placement)
            with _standing_at(before):
                if not self._scripts.at_head(before):
                    self._scripts.run(connection, schema_of(placement))
                # A revision may have ended the transaction and with it the lock and the place, or
                # moved the search_path. Then what it did is not where it should be.
                if connection.scalar(text("SELECT pg_current_xact_id()::text")) != transaction:
                    raise TenantNotIsolated(
                        "a revision ended the transaction that it ran in, so that what it did may "
                        "stand half-made: look there, and take the COMMIT out of the revision"
                    )
                self._prove(connection, placement)
                return _Found(before, self._verify(connection, placement))

    def _upgrade_file(self, connection: Connection, placement: Placement) -> _Found:
        with connection.begin():
            self._bind(connection, placement)
            before = self._current(connection, placement)
        with _standing_at(before):
            if not self._scripts.at_head(before):
                # Asked again by who holds the lock: another one may have been quicker.
                before = self._scripts.run(connection, None)
            with connection.begin():
                return _Found(before, self._verify(connection, placement))

    def _lock(self, connection: Connection, placement: Placement) -> None:
        # All LOCAL. A migration may run longer than the login's statements usually may, but must
        # not wait for a lock for long: everybody else would queue behind it.
        connection.execute(
            text(
                "SELECT set_config('lock_timeout', :wait, true),"
                " set_config('statement_timeout', '0', true),"
                " set_config('synchronous_commit', 'on', true)"
            ),
            {"wait": f"{max(1, round(self._lock_timeout * 1000))}ms"},
        )
        try:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
                {"name": f"tenantsync migrate {schema_of(placement)}"},
            )
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            raise Stopped(
                State.FAILED,
                f"another migration of it has run for more than {self._lock_timeout:g} seconds: "
                "try again when it is done",
            ) from error

    def _bind(self, connection: Connection, placement: Placement) -> str:
        with closing(connection.connection.cursor()) as cursor:
            self._isolation.bind(cursor, placement)
        return self._prove(connection, placement)

    def _prove(self, connection: Connection, placement: Placement) -> str:
        with closing(connection.connection.cursor()) as cursor:
            self._isolation.locate(cursor, placement)
            return self._isolation.confirm(cursor.fetchone(), placement)

    def _current(self, connection: Connection, placement: Placement) -> tuple[str, ...]:
        schema = schema_of(placement) if placement.is_postgres else None
        return self._scripts.current(connection, schema)

    def _verify(self, connection: Connection, placement: Placement) -> tuple[str, ...]:
        """Return where the place stands now, which is at head, with the tables there."""
        schema = schema_of(placement) if placement.is_postgres else None
        present = inspect(connection).get_table_names(schema=schema)
        missing = sorted({VERSION_TABLE, *Base.metadata.tables} - set(present))
        current = self._current(connection, placement)
        if missing or not self._scripts.at_head(current):
            raise Stopped(
                State.FAILED,
                f"it should be at head, but {placement} lacks "
                f"{', '.join(missing) or 'the newest revision'}: were tables dropped, or does a "
                "revision name another schema?",
                current,
            )
        return current

    @contextmanager
    def _connection(self, placement: Placement, *, make: bool) -> Iterator[Connection]:
        if not placement.is_postgres and placement.engine is None:
            find_file(placement, make=make)
        try:
            connection = self._engine(placement).connect()
        except (SQLAlchemyError, TenantSyncError) as error:
            if not made_database(placement, self._factory, make=make):
                raise Stopped(State.UNREACHABLE, sentence_about(error)) from error
            connection = self._engine(placement).connect()
        with connection:
            yield connection

    def _engine(self, placement: Placement) -> Engine:
        if placement.engine is not None:
            return placement.engine
        if self._open and self._open[0] == placement.url:
            return self._open[1]
        self._close()
        self._open = (placement.url, self._factory(placement.url, pool_size=1))
        return self._open[1]

    def _close(self) -> None:
        if self._open:
            self._open[1].dispose()
            self._open = None


@contextmanager
def _standing_at(revisions: tuple[str, ...]) -> Iterator[None]:
    """Say with whatever goes wrong where the place stood before, and stands again."""
    try:
        yield
    except Exception as error:
        raise Stopped(State.FAILED, sentence_about(error), revisions) from error


def _joined(revisions: tuple[str, ...]) -> str | None:
    return ", ".join(revisions) or None
