"""The whole examination: what concerns all tenants first, then each of them."""

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from tenantsync.app import TenantSync
from tenantsync.config import Settings
from tenantsync.control.database import ControlUnavailable
from tenantsync.control.inbox import LaneInfo
from tenantsync.doctor.books import Books, examine_books, lane_notes
from tenantsync.doctor.places import Seen, examine_places
from tenantsync.doctor.provider import examine_provider
from tenantsync.doctor.report import Finding, Level, Note, Report
from tenantsync.errors import ConfigError, TenantSyncError
from tenantsync.migrate import Row, State, choose, migration_places, status
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenants import Tenant

__all__ = ["examine"]

_READS: Final[tuple[tuple[Callable[[Settings], object], Level], ...]] = (
    (lambda settings: settings.app, Level.ERROR),
    (lambda settings: settings.authvital, Level.ERROR),
    (lambda settings: settings.control, Level.ERROR),
    (lambda settings: settings.isolation, Level.ERROR),
    (lambda settings: settings.worker, Level.ERROR),
    (lambda settings: settings.tenants, Level.ERROR),
    (lambda settings: settings.authvital.client_id, Level.WARNING),
    (lambda settings: settings.authvital.client_secret, Level.WARNING),
    (lambda settings: settings.isolation.migration_url, Level.WARNING),
    (lambda settings: settings.migrations, Level.WARNING),
    (lambda settings: settings.reconcile, Level.WARNING),
    (lambda settings: settings.provisioning, Level.WARNING),
    (lambda settings: settings.pubsub, Level.WARNING),
)
"""What a configuration holds: each part may lack a variable of the environment, and is needed by
servers, or only by some commands."""

_LONGEST_LOCK: Final = 1.0  # seconds; who looks is in nobody's way
_LEVELS: Final = {
    State.BEHIND: Level.WARNING,
    State.AHEAD: Level.WARNING,
    State.LOCKED: Level.WARNING,
}
_REMEDIES: Final = {
    State.BEHIND: "run `tenantsync migrate upgrade --tenant {key}`",
    State.UNVERSIONED: "run `tenantsync migrate upgrade --tenant {key}`",
    State.MISSING: "run `tenantsync migrate upgrade --tenant {key}`, or correct where it lives",
    State.AHEAD: "run the version of the application that these tables were migrated for",
    State.LOCKED: "look again later with `tenantsync migrate status --tenant {key}`",
    State.UNREACHABLE: "look whether its server runs, and whether [isolation] url is right",
}
_UNFINISHED: Final = {
    "provisioning": (
        "its place is being made, or making it was interrupted",
        "if nobody is at it, run `tenantsync tenants add` again",
    ),
    "dropping": (
        "its place is being dropped, or dropping it was interrupted",
        "if nobody is at it, run `tenantsync tenants remove --drop` again",
    ),
}
_MOVE: Final = "correct the file, or `tenantsync tenants remove {key}`"
_LOOK: Final = "look with `tenantsync migrate status --tenant {key}`"


def examine(
    sync: TenantSync,
    *,
    tenants: Sequence[str] = (),
    jobs: int = 4,
    patience: float = 15.0,
    provider: Callable[[TenantSync], list[Finding]] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> Report:
    """Look at everything that tenantsync needs; nothing is made or changed.

    The configuration, AuthVital's keys and the clock, the control database, and of every tenant:
    whether its database answers, its tables are at head, a transaction is proven to be in its
    place, and its lane of the inbox moves. One tenant's trouble is a finding of its own.

    Args:
        sync: What to look at. It is left open.
        tenants: Keys or patterns of the tenants to look at; none means all.
        jobs: How many databases are looked at at once.
        patience: Seconds after which a database that says nothing is given up on.
        provider: Looks at AuthVital in place of our own way.
        on_progress: Called after each tenant with how many are done and how many there are; never
            twice at a time.

    Raises:
        ConfigError: A key or a pattern matches no tenant.
    """
    findings = _configuration(sync.settings)
    try:
        authvital = sync.settings.authvital
    except ConfigError:
        pass  # it is among the findings
    else:
        findings += provider(sync) if provider else examine_provider(authvital)
    every, troubles = _list(sync)
    said = {finding.what for finding in findings}
    troubles = [trouble for trouble in troubles if trouble.what not in said]
    # Whoever has no place is no tenant to look at, but may be asked for all the same.
    troubled = {trouble.tenant for trouble in troubles}
    healthy = {tenant.key for tenant in every}
    wanted = [key for key in tenants if key in healthy or key not in troubled]
    chosen = [] if tenants and not wanted else choose(every, wanted)
    if tenants:
        troubles = [trouble for trouble in troubles if trouble.tenant in (None, *tenants)]
    books = _books(sync, {tenant.id for tenant in every})
    fleet = _Fleet(sync, books.lanes, len(chosen), on_progress)
    of_tenants = fleet.examine(chosen, jobs=jobs, patience=patience)
    return Report((*findings, *books.findings, *troubles, *of_tenants))


def _configuration(settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    for read, level in _READS:
        try:
            read(settings)
        except ConfigError as error:
            remedy = "set it where servers, workers and this command run"
            if str(error) not in {finding.what for finding in found}:
                found.append(Finding("configuration", level, str(error), remedy))
    return found or [Finding("configuration", Level.OK, f"{settings.path} is as it should be")]


def _list(sync: TenantSync) -> tuple[list[Tenant], list[Finding]]:
    """Return the tenants in service, and what is wrong with those that are not."""
    try:
        every = list(sync.tenants)
        isolation = sync.settings.isolation
        if not every and isolation.accept_any_tenant:
            # Nobody is listed where anybody is welcome, and all live in one place.
            every = [Tenant("any", "any", sync.isolation.place("any"))]
        return every, _unfinished(sync)
    except ControlUnavailable:
        return _of_file(sync)  # it is among the findings
    except ConfigError:
        return _sorted_out(sync)
    except TenantSyncError as error:
        repair = "repair that, and look again"
        told = f"the list of tenants cannot be had: {error}"
        return [], [Finding("configuration", Level.ERROR, told, repair)]


def _unfinished(sync: TenantSync) -> list[Finding]:
    return [
        Finding("tenant", Level.WARNING, *_UNFINISHED[line.state], line.key)
        for line in sync.directory.lines()
        if line.state in _UNFINISHED
    ]


def _of_file(sync: TenantSync) -> tuple[list[Tenant], list[Finding]]:
    places = sync.isolation
    return [
        Tenant(each.id, key, places.place(key, url=each.url, schema=each.schema, role=each.role))
        for key, each in sync.settings.tenants.items()
    ], []


def _sorted_out(sync: TenantSync) -> tuple[list[Tenant], list[Finding]]:
    """Return the tenants that have a place, and a finding for each that has none."""
    try:
        lines = sync.directory.lines()
    except ConfigError as error:
        return [], [Finding("configuration", Level.ERROR, str(error), "correct the file")]
    served = [line for line in lines if line.state in ("active", "suspended")]
    every = [
        Tenant(line.id, line.key, line.placement, line.state == "suspended")
        for line in served
        if line.placement is not None and line.trouble is None
    ]
    return every, [
        Finding("tenant", Level.ERROR, line.trouble, _MOVE.format(key=line.key), line.key)
        for line in served
        if line.trouble is not None
    ]


def _books(sync: TenantSync, known: set[str]) -> Books:
    try:
        return examine_books(sync.control, sync.inbox, known)
    except ConfigError:
        return Books(())  # it is among the findings


class _Fleet:
    """All tenants, and what is known of them so far.

    Args:
        sync: Whose tenants they are.
        lanes: Their lanes by tenant id.
        total: How many tenants there are.
        on_progress: Told after each one.
    """

    def __init__(
        self,
        sync: TenantSync,
        lanes: dict[str, LaneInfo],
        total: int,
        on_progress: Callable[[int, int], object] | None,
    ) -> None:
        self._sync = sync
        self._lanes = lanes
        self._total = total
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._seen: dict[str, Seen] = {}
        self._rows: dict[str, Row] = {}

    def examine(self, tenants: list[Tenant], *, jobs: int, patience: float) -> list[Finding]:
        """Look at tenants, and return the findings in their order."""
        if not tenants:
            return []
        sync = self._sync
        limits = sync.settings.isolation
        factory = sync.engine_factory or partial(
            make_engine, connect_timeout=limits.connect_timeout, lock_timeout=_LONGEST_LOCK
        )
        examine_places(
            tenants,
            isolation=sync.isolation,
            factory=factory,
            jobs=jobs,
            patience=patience,
            told=self._saw,
        )
        # Who asks a server that says nothing would wait with nobody to call it off.
        answering = [tenant for tenant in tenants if not self._seen[tenant.key].silent]
        if answering:
            report = status(
                answering,
                isolation=sync.isolation,
                place=migration_places(sync.settings),
                locations=sync.settings.migrations.locations,
                factory=sync.engine_factory,
                jobs=jobs,
            )
            self._rows = {row.tenant: row for row in report.rows}
        of_each = [finding for tenant in tenants for finding in self._findings(tenant)]
        return [*_exposed(self._seen.values()), *of_each]

    def _saw(self, tenant: Tenant, seen: Seen) -> None:
        with self._lock:
            self._seen[tenant.key] = seen
            if self._on_progress:
                self._on_progress(len(self._seen), self._total)

    def _findings(self, tenant: Tenant) -> list[Finding]:
        key = tenant.key
        row, seen = self._rows.get(key), self._seen[key]
        notes = [] if row is None or row.ok else [_told(row)]
        # Of a place that is missing, the revision says what to do; the rest follows from that.
        missing = row is not None and row.state is State.MISSING
        if not notes or (seen.reached and not missing):
            notes += seen.notes
        if tenant.suspended:
            resume = f"`tenantsync tenants resume {key}`, when its events shall be applied again"
            notes.append(Note(Level.WARNING, "an operator suspended it: its events wait", resume))
        lane = self._lanes.get(tenant.id)
        if lane is not None:
            notes += lane_notes(lane, key, suspended=tenant.suspended)
        if all(note.level is Level.OK for note in notes):
            at = row.after if row is not None and row.after else "in its place"
            notes.insert(0, Note(Level.OK, f"reached, in its place, at {at}"))
        return [note.about(key) for note in notes]


def _exposed(seen: Iterable[Seen]) -> list[Finding]:
    # One finding: where one file is open to all, so are most likely the others.
    files = [each.exposed for each in seen if each.exposed is not None]
    if not files:
        return []
    told = "1 tenant's file" if len(files) == 1 else f"{len(files)} tenants' files"
    return [
        Finding(
            "files",
            Level.WARNING,
            f"everybody on this machine may read {told}, such as {files[0]}: they hold personal "
            "data",
            f"chmod o-rwx {files[0].parent}, or the files in it",
        )
    ]


def _told(row: Row) -> Note:
    remedy = _REMEDIES.get(row.state, _LOOK).format(key=row.tenant)
    what = (row.error or f"it is {row.state}").partition(": run `")[0]
    return Note(_LEVELS.get(row.state, Level.ERROR), f"tables {row.state}: {what}", remedy)
