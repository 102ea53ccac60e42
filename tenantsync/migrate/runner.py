"""The fleet: tenants migrated many at a time, and told about all at once."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from tenantsync.config import Settings, fill
from tenantsync.errors import ConfigError
from tenantsync.migrate.crew import Progress
from tenantsync.migrate.fleet import Fleet, Pace, Place, Planned
from tenantsync.migrate.moves import Kind, Move
from tenantsync.migrate.report import Report
from tenantsync.tenancy.engines import EngineFactory
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenants import Placement, Tenant, read_url

__all__ = ["Place", "check", "downgrade", "migration_places", "plan", "stamp", "status", "upgrade"]


def upgrade(
    tenants: Iterable[Tenant],
    *,
    isolation: Isolation,
    place: Place | None = None,
    locations: Sequence[Path | str] = (),
    factory: EngineFactory | None = None,
    to: str = "heads",
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
    **pace: Unpack[Pace],
) -> Report:
    """Bring each tenant's place to the newest revisions; what fails never stops the others.

    A schema, a SQLite file with its folder, or a tenant's own PostgreSQL database that is missing
    is made, the latter if the login may. All of one tenant's revisions run in one transaction:
    its place is at head afterwards, or as it was. Two that migrate the same place never meet.

    Args:
        tenants: Whom to migrate, in this order. Suspended tenants are migrated too.
        isolation: How places are made, bound and proven.
        place: Where a tenant's migrations run, and with which login; None means its placement.
            `migration_places` makes one from the settings.
        locations: Folders with revisions of the application's own, a branch beside ours.
        factory: Makes the engine of a database; None means tenantsync's own.
        to: The revision to stop at.
        on_progress: Called after each tenant.
        clock: Seconds that only ever go forward.
        pace: How many at once, how long to wait, when to stop: see `Pace`.

    Raises:
        ConfigError: A location is no folder, or the revisions cannot be read, or there is no such
            revision.
    """
    move = Move(Kind.UPGRADE, to)
    fleet = Fleet(isolation, place, locations, factory, move, pace, on_progress, clock)
    return fleet.run(list(tenants))


def downgrade(
    tenants: Iterable[Tenant],
    *,
    to: str,
    isolation: Isolation,
    place: Place | None = None,
    locations: Sequence[Path | str] = (),
    factory: EngineFactory | None = None,
    drop_tables: bool = False,
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
    **pace: Unpack[Pace],
) -> Report:
    """Bring each tenant's place back to an older revision; arguments are those of `upgrade`.

    Args:
        tenants: Whom to migrate.
        to: `BRANCH@REVISION`, or `BRANCH@base` to undo a whole branch.
        isolation: How places are bound and proven.
        place: Where a tenant's migrations run.
        locations: Folders with revisions of the application's own.
        factory: Makes the engine of a database.
        drop_tables: Whether tables may be dropped, with all that they hold.
        on_progress: Called after each tenant.
        clock: Seconds that only ever go forward.
        pace: See `Pace`.

    Raises:
        ConfigError: `to` names no branch, or no revision; also as `upgrade`.
    """
    if "@" not in to:
        raise ConfigError(f"--to {to}: say which branch, as BRANCH@REVISION or BRANCH@base")
    move = Move(Kind.DOWNGRADE, to)
    fleet = Fleet(
        isolation, place, locations, factory, move, pace, on_progress, clock, may_drop=drop_tables
    )
    return fleet.run(list(tenants))


def stamp(
    tenants: Iterable[Tenant],
    *,
    to: str,
    isolation: Isolation,
    place: Place | None = None,
    locations: Sequence[Path | str] = (),
    factory: EngineFactory | None = None,
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
    **pace: Unpack[Pace],
) -> Report:
    """Say of each tenant's place that it stands at a revision, and touch none of its tables.

    Arguments and errors are those of `upgrade`. The place must be there.
    """
    move = Move(Kind.STAMP, to)
    fleet = Fleet(isolation, place, locations, factory, move, pace, on_progress, clock)
    return fleet.run(list(tenants))


def status(
    tenants: Iterable[Tenant],
    *,
    isolation: Isolation,
    place: Place | None = None,
    locations: Sequence[Path | str] = (),
    factory: EngineFactory | None = None,
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
    **pace: Unpack[Pace],
) -> Report:
    """Tell where each tenant's place stands. Nothing is made or changed.

    All schemas of one database are asked for together. Of `pace`, `jobs` says how many databases
    are asked at once, and `keep_rows` is heeded. Other arguments and errors are those of `upgrade`.
    """
    fleet = Fleet(isolation, place, locations, factory, Move(), pace, on_progress, clock)
    return fleet.status(list(tenants))


def check(
    tenants: Iterable[Tenant],
    *,
    isolation: Isolation,
    place: Place | None = None,
    locations: Sequence[Path | str] = (),
    factory: EngineFactory | None = None,
    on_progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
    **pace: Unpack[Pace],
) -> Report:
    """Tell where each tenant stands, and whether its tables are what the migrations make.

    What they make is read from a tenant that is made for that, in the same database, and dropped
    again. Arguments and errors are those of `status`.
    """
    fleet = Fleet(isolation, place, locations, factory, Move(), pace, on_progress, clock)
    return fleet.check(list(tenants))


def plan(
    tenants: Iterable[Tenant],
    *,
    move: Move,
    isolation: Isolation,
    place: Place | None = None,
    locations: Sequence[Path | str] = (),
    factory: EngineFactory | None = None,
    jobs: int = 1,
) -> tuple[list[Planned], Report]:
    """Return what a run would do, and nothing is done; also where the tenants stand.

    Raises:
        ConfigError: As `upgrade`.
    """
    pace = Pace(jobs=jobs, keep_rows=False)
    fleet = Fleet(isolation, place, locations, factory, move, pace, None, time.perf_counter)
    return fleet.plan(list(tenants))


def migration_places(settings: Settings) -> Place:
    """Return where migrations run by the configuration: `[isolation] migration_url`, if it is set.

    It stands in for `[isolation] url`, so a tenant with a `url` of its own keeps that one. Schema
    and role stay those of the tenant.

    Raises:
        ConfigError: The URL needs an environment variable that is not set.
    """
    template = settings.isolation.migration_url
    common = settings.isolation.url

    def place(tenant: Tenant) -> Placement:
        if template is None or common is None or tenant.placement.engine is not None:
            return tenant.placement
        # Compared, and not looked up: tenants are added at run time too.
        if tenant.placement.url != read_url(fill(common, tenant.key)):
            return tenant.placement
        return replace(tenant.placement, url=read_url(fill(template, tenant.key)))

    return place
