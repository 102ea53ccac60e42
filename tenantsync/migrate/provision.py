"""Adds tenants at run time, and removes them: their place, their role, their line in the catalog.

Each step is written down before it is done, and each may be done twice. So whoever is killed, at
whatever moment, runs the same command again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

from tenantsync.config import Settings
from tenantsync.config.check import located
from tenantsync.control.catalog import Entry, Wish, place_of
from tenantsync.control.catalog import State as Stage
from tenantsync.control.database import ControlMissing
from tenantsync.control.directory import Directory
from tenantsync.errors import ConfigError, MigrationFailed
from tenantsync.migrate.control import upgrade_control
from tenantsync.migrate.fleet import Fleet, Pace, Place
from tenantsync.migrate.ground import Ground
from tenantsync.migrate.moves import Move
from tenantsync.migrate.prepared import Checkpoint, Prepared, nothing
from tenantsync.migrate.report import State
from tenantsync.migrate.runner import migration_places
from tenantsync.tenancy.engines import EngineFactory, make_engine
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenants import Placement, Tenant

__all__ = ["ADDING", "REMOVING", "Added", "Outcome", "Provisioner", "Removed"]

ADDING: Final = ("reserved", "role", "template", "written", "copied", "made", "activated")
"""The labels of the steps of `Provisioner.add`, in their order; not each place takes all."""

REMOVING: Final = ("marked", "dropped", "forgotten")
"""The labels of the steps of `Provisioner.remove` that drops."""


class Outcome(StrEnum):
    """What a call did."""

    ADDED = "added"
    """The tenant is in service now."""
    FINISHED = "finished"
    """It is in service now; an earlier call was interrupted, or it had been removed."""
    UNCHANGED = "unchanged"
    """It was so already."""
    REMOVED = "removed"
    """It is out of service now, and its data is kept."""
    DROPPED = "dropped"
    """It is forgotten, and its place is dropped, unless the report says that it stays."""


@dataclass(frozen=True, slots=True)
class Added:
    """What `Provisioner.add` did.

    Args:
        tenant: The tenant.
        outcome: Whether it was added now.
        copied: Whether its place was copied from a prepared one, and not migrated.
        seconds: How long that took.
    """

    tenant: Tenant
    outcome: Outcome
    copied: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Removed:
    """What `Provisioner.remove` did.

    Args:
        key: The tenant's key.
        outcome: What became of it.
        what: What was dropped, such as "schema 'tenant_acme'", or None.
        stays: What was not dropped and why, in a sentence, or None.
    """

    key: str
    outcome: Outcome
    what: str | None = None
    stays: str | None = None


class Provisioner:
    """Adds and removes tenants of the control database.

    What it prepares for copying is kept, so let one live for many tenants. It may be called from
    several threads, and several processes may have one each.

    Args:
        directory: The list of all tenants.
        isolation: How places are made, bound and proven.
        place: Where a tenant's migrations run, and with which login; None means its placement.
        locations: Folders with revisions of the application's own.
        factory: Makes the engine of a database; None means tenantsync's own.
        name: What tells this application's databases from others on the server.
        at: Told of each step; see `ADDING` and `REMOVING`.
        clock: Seconds that only ever go forward.
        sleep: Waits some seconds.
    """

    def __init__(
        self,
        directory: Directory,
        isolation: Isolation,
        *,
        place: Place | None = None,
        locations: Sequence[Path | str] = (),
        factory: EngineFactory | None = None,
        name: str = "",
        at: Checkpoint = nothing,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._directory = directory
        self._catalog = directory.catalog
        self._isolation = isolation
        self._place = place or (lambda tenant: tenant.placement)
        self._fleet = Fleet(isolation, None, locations, factory, Move(), Pace(), None, clock)
        self._at = at
        self._clock = clock
        engines = factory or make_engine
        self._ground = Ground(isolation, engines)
        self._prepared = Prepared(
            lambda place: self._migrate(Tenant("prepared", "prepared", place)),
            engines,
            name=name,
            at=at,
            sleep=sleep,
        )

    @classmethod
    def of(
        cls,
        settings: Settings,
        directory: Directory,
        isolation: Isolation,
        *,
        factory: EngineFactory | None = None,
        at: Checkpoint = nothing,
    ) -> Self:
        """Return what a configuration describes.

        Raises:
            ConfigError: `[isolation] migration_url` needs an environment variable that is not set.
        """
        return cls(
            directory,
            isolation,
            place=migration_places(settings),
            locations=settings.migrations.locations,
            factory=factory,
            name=settings.isolation.url or str(settings.path),
            at=at,
        )

    def add(
        self,
        key: str,
        tenant_id: str,
        *,
        url: str | None = None,
        schema: str | None = None,
        role: str | None = None,
    ) -> Added:
        """Make a tenant's place, with its tables at head, and put it into service.

        A running server sees it within seconds. Safe to call twice, and again after it was
        interrupted or failed.

        Args:
            key: The tenant's key.
            tenant_id: AuthVital's id.
            url: Its own database URL; `{key}` is replaced by the key. None follows the strategy.
            schema: Its own PostgreSQL schema, or None.
            role: Its own PostgreSQL role, or None.

        Raises:
            ConfigError: The tenant cannot be so: another one has its key, id or place, a name is
                not allowed, or the login may not do what is needed.
            TenantUnavailable: Its database or the control database does not answer.
            MigrationFailed: Its place is not at head; the message says why.
        """
        started = self._clock()
        placement = self._isolation.place(key, url=url, schema=schema, role=role)
        tenant = Tenant(tenant_id, key, placement)
        self._directory.refuse(tenant)
        upgrade_control(self._catalog.database)
        before = self._catalog.find(key)
        target = self._place(tenant)
        active = before is not None and before.state is Stage.ACTIVE
        missing = not active and not self._ground.is_there(target)
        entry = self._catalog.reserve(
            Wish(
                key=key,
                id=tenant_id,
                url=url,
                schema=schema,
                role=role,
                place=None if self._directory.shared else place_of(placement),
                made=missing,
            )
        )
        if entry.state is Stage.ACTIVE:
            return Added(tenant, Outcome.UNCHANGED, False, self._clock() - started)
        self._at("reserved")
        copied = self._make(tenant, target, missing=missing)
        self._at("made")
        self._refuse_strangers(tenant, target)
        self._catalog.move(key, Stage.ACTIVE)
        self._directory.forget()
        self._at("activated")
        outcome = Outcome.ADDED if before is None else Outcome.FINISHED
        return Added(tenant, outcome, copied, self._clock() - started)

    def remove(self, key: str, *, drop: bool = False) -> Removed:
        """Take a tenant out of service; keep its data, or drop its place with all that is in it.

        A place that was not made for the tenant is never dropped; the report says so.

        Args:
            key: The tenant's key.
            drop: Whether its file, database or schema goes, and a role that was made for it. Its
                key, id and place are then free for others.

        Raises:
            ConfigError: There is no such tenant, it stands in the file, or its place holds
                something of others.
            TenantUnavailable: A database does not answer, or its place cannot be dropped now.
        """
        entry = self._removable(key)
        if not drop:
            if entry.state is Stage.DROPPING:
                raise ConfigError(
                    f"tenant {key!r} is being dropped already: finish that with --drop"
                )
            if entry.state is Stage.REMOVED:
                return Removed(key, Outcome.UNCHANGED)
            self._catalog.move(key, Stage.REMOVED)
            self._directory.forget()
            return Removed(key, Outcome.REMOVED)
        stays = self._why_it_stays(entry)
        place = None if stays else self._place(self._tenant(entry))
        if place is not None:
            self._refuse_to_drop(key, place)
        self._catalog.move(key, Stage.DROPPING)
        self._directory.forget()
        self._at("marked")
        what = None if place is None else self._ground.drop(place)
        self._at("dropped")
        if place is not None and place.role is not None and not self._has_role(place.role, key):
            stays = self._ground.drop_role(place)
        self._catalog.forget(key)
        self._at("forgotten")
        return Removed(key, Outcome.DROPPED, what, stays)

    def suspend(self, key: str) -> bool:
        """Apply no more events to a tenant, of the file or not; return whether that is new.

        A running server knows within its tenants' time to live, half a minute.

        Raises:
            ConfigError: There is no such tenant.
            TenantUnavailable: The control database does not answer.
        """
        upgrade_control(self._catalog.database)
        self._refuse_unknown(key)
        new = self._catalog.suspend(key)
        self._directory.forget()
        return new

    def resume(self, key: str) -> bool:
        """Apply events to a tenant again; return whether it was suspended.

        Raises:
            ConfigError: There is no such tenant.
            TenantUnavailable: The control database does not answer.
        """
        self._refuse_unknown(key)
        try:
            was = self._catalog.resume(key)
        except ControlMissing:
            return False
        self._directory.forget()
        return was

    def _make(self, tenant: Tenant, target: Placement, *, missing: bool) -> bool:
        """Make the place at head; return whether it was copied."""
        copied = False
        shared = self._directory.shared
        if target.role is not None and not shared:
            # Its tables belong to the role, which migrating sees to and copying does not.
            if target.schema is None and missing:
                self._ground.make_database(target)
            self._ground.make_role(target, tenant.placement.url.username)
            self._at("role")
        elif missing and not target.is_postgres:
            copied = self._prepared.copy_file(target)
        elif missing and target.schema is None and not shared:
            copied = self._prepared.copy_database(target)
        # A copy is looked at as any other place is: is it where it should be, and at head?
        self._migrate(Tenant(tenant.id, tenant.key, target))
        if target.role is not None and not shared:
            self._ground.grant_tables(target)
        return copied

    def _migrate(self, tenant: Tenant) -> None:
        # One fleet for all: its revisions are read, and written down for replay, only once.
        (row,) = self._fleet.run([tenant]).rows
        if row.state not in (State.OK, State.UPGRADED):
            raise MigrationFailed(tenant.key, row.after, row.error or f"it is {row.state}")

    def _refuse_strangers(self, tenant: Tenant, target: Placement) -> None:
        if self._directory.shared:
            return
        stranger = self._ground.stranger(target, tenant.id)
        if stranger is not None:
            raise ConfigError(
                f"the place of {tenant.key!r} holds people of the tenant with the id {stranger!r}: "
                "choose another place, or look whose it is"
            )

    def _tenant(self, entry: Entry) -> Tenant:
        place = self._isolation.place(
            entry.key, url=entry.url, schema=entry.schema, role=entry.role
        )
        return Tenant(entry.id, entry.key, place)

    def _removable(self, key: str) -> Entry:
        if self._directory.is_listed(key):
            raise ConfigError(f"tenant {key!r} stands in the configuration file: edit the file")
        entry = self._catalog.find(key)
        if entry is None:
            raise ConfigError(f"there is no tenant {key!r}")
        return entry

    def _refuse_unknown(self, key: str) -> None:
        if not self._directory.is_listed(key):
            entry = self._catalog.find(key)
            if entry is None or entry.state in (Stage.REMOVED, Stage.DROPPING):
                raise ConfigError(f"there is no tenant {key!r}")

    def _why_it_stays(self, entry: Entry) -> str | None:
        """Say why the place of a tenant is not dropped with it, or nothing if it is."""
        if self._directory.shared:
            return "its place stays: all tenants share it"
        if not entry.made:
            return "its place stays: it was there before the tenant was added, and may hold more"
        try:
            own = place_of(self._tenant(entry).placement)
        except ConfigError as error:
            own = str(error)
        if entry.place != own:
            return (
                f"its place stays: it was made at {entry.place}, and the configuration says {own}"
            )
        return None

    def _refuse_to_drop(self, key: str, place: Placement) -> None:
        for line in self._directory.lines():
            if line.placement is None or line.key == key or line.state == "dropping":
                continue
            if _holds(place, line.placement):
                raise ConfigError(
                    f"tenant {line.key!r} lives in the place of {key!r} too: drop nothing before "
                    "that is cleared up"
                )
        if _holds(place, self._catalog.database.placement):
            raise ConfigError(
                f"the place of {key!r} holds the control database: remove the tenant without --drop"
            )

    def _has_role(self, role: str, key: str) -> bool:
        """Whether another tenant takes this role."""
        return any(
            line.key != key and line.placement is not None and line.placement.role == role
            for line in self._directory.lines()
        )


def _holds(place: Placement, other: Placement) -> bool:
    """Whether what stands at the other place goes when this one is dropped."""
    if located(place.url, None) != located(other.url, None):
        return False
    return place.schema is None or place.schema == other.schema
