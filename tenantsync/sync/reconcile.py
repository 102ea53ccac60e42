"""Compares each tenant's mirror with the provider's list, and makes it say the same.

A list is fetched, checked as a whole, compared with all that is known, and only then taken, a
portion at a time; whoever is interrupted begins anew, and finds the most of it done. What is taken
away, and when not, stands in docs/explanation/reconcile.md.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self

from tenantsync.authvital.client import (
    IntegrationClient,
    IntegrationForbidden,
    IntegrationNotFound,
    IntegrationRefused,
    IntegrationUnavailable,
)
from tenantsync.authvital.memberships import TenantMemberships
from tenantsync.control.reconciliations import Reconciliations
from tenantsync.errors import TenantSyncError
from tenantsync.sync.departing import Departing, Departures
from tenantsync.sync.drift import Difference, Report, State, TenantReport
from tenantsync.sync.evidence import Brake, ListRefused, Snapshot
from tenantsync.sync.fleet import Stopped, reconcile_all, skipped
from tenantsync.sync.mirror import Mirror
from tenantsync.sync.survey import Survey, survey
from tenantsync.sync.taking import Taking
from tenantsync.tenants import Tenant

__all__ = ["Departures", "Lists", "Reconciler", "Stopped"]

_LOG: Final = logging.getLogger("tenantsync")

_PORTION: Final = 250
"""People in one transaction: a tenant's own events wait for so many at most."""


class Lists(Protocol):
    """What has the lists: `IntegrationClient` does."""

    def tenant_memberships(self, tenant_id: str) -> TenantMemberships:
        """Return every membership of a tenant, with application roles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """How one tenant is reconciled, and who listens."""

    dry_run: bool
    allow_mass_removal: bool
    with_hooks: bool
    on_portion: Callable[[int, int], object] | None
    on_difference: Callable[[str, Difference], object] | None

    def portion(self, done: int, total: int) -> None:
        if self.on_portion is not None:
            self.on_portion(done, total)

    def differs(
        self, tenant: Tenant, what: str, sub: str, columns: Mapping[str, tuple[Any, Any]]
    ) -> None:
        if self.on_difference is not None:
            self.on_difference(tenant.key, Difference(what=what, sub=sub, columns=columns))


class Reconciler:
    """Reconciles tenants, in any number of threads. Opens nothing until the first one.

    Args:
        lists: Where the provider's lists come from.
        departures: Applies the `member.left` of those who are gone, with hooks.
        mirror: The mirrored people.
        reconciliations: When lists were last believed.
        application_id: Our application: whose roles count.
        max_removal: Share of a tenant's people with access, from 0 to 1, that one list may lock
            out; four people always.
        shared: Whether all tenants share one place.
        skew: Seconds by which the provider's clock may be ahead of ours.
        portion: People in one transaction.
        observer: Told of each tenant when it is done.
        changed: Told the tenant's id and the person's of everybody whose row a list changed, after
            the commit; must be quick, and never raises.
        clock: Unix seconds, ours.
    """

    def __init__(
        self,
        lists: Lists,
        departures: Departures,
        mirror: Mirror,
        reconciliations: Reconciliations,
        *,
        application_id: str,
        max_removal: float = 0.2,
        shared: bool = False,
        skew: float = 300.0,
        portion: int = _PORTION,
        observer: Callable[[TenantReport], object] | None = None,
        changed: Callable[[str, str], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lists = lists
        self._departures = departures
        self._mirror = mirror
        self._reconciliations = reconciliations
        self._application_id = application_id
        self._max_removal = max_removal
        self._shared = shared
        self._skew = skew
        self._portion = portion
        self._observer = observer
        self._changed = changed
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the provider."""
        if isinstance(self._lists, IntegrationClient):
            self._lists.close()

    def reconcile(
        self,
        tenants: Iterable[Tenant],
        *,
        dry_run: bool = False,
        allow_mass_removal: bool = False,
        with_hooks: bool = True,
        jobs: int = 2,
        on_progress: Callable[[TenantReport, int, int], object] | None = None,
        on_portion: Callable[[str, int, int], object] | None = None,
        on_difference: Callable[[str, Difference], object] | None = None,
        stopping: threading.Event | None = None,
    ) -> Report:
        """Reconcile tenants, and say what became of each. One tenant's trouble stays its own.

        Where the provider fails for several tenants in a row, and not because it refuses them, the
        rest is not begun.

        Args:
            tenants: Which.
            dry_run: Only compare, and write nothing.
            allow_mass_removal: Take away however much the lists take away.
            with_hooks: Whether the application's hooks hear of those who left.
            jobs: How many tenants at once. Each keeps its list in memory meanwhile.
            on_progress: Called after each tenant with its report, how many are done, and of how
                many.
            on_portion: Called within a tenant with its key, how many people are done, and of how
                many.
            on_difference: Called with a tenant's key and each difference that is found. From
                several threads where there are several jobs, as all of these.
            stopping: Set to begin no further tenant, and to leave those under way soon.
        """

        def one(tenant: Tenant, portion: Callable[[int, int], object]) -> tuple[TenantReport, bool]:
            run = _Run(
                dry_run=dry_run,
                allow_mass_removal=allow_mass_removal,
                with_hooks=with_hooks,
                on_portion=portion,
                on_difference=on_difference,
            )
            return self._reported(tenant, run)

        return reconcile_all(
            one,
            list(tenants),
            jobs=jobs,
            on_progress=on_progress,
            on_portion=on_portion,
            stopping=stopping or threading.Event(),
        )

    def reconcile_tenant(
        self,
        tenant: Tenant,
        *,
        dry_run: bool = False,
        allow_mass_removal: bool = False,
        with_hooks: bool = True,
        on_portion: Callable[[int, int], object] | None = None,
        on_difference: Callable[[str, Difference], object] | None = None,
    ) -> TenantReport:
        """Reconcile one tenant on the calling thread, and say what became of it.

        Args:
            tenant: Which.
            dry_run: As in `reconcile`.
            allow_mass_removal: As in `reconcile`.
            with_hooks: As in `reconcile`.
            on_portion: Called after each portion with how many people are done, and of how many;
                may raise `Stopped` to end it.
            on_difference: As in `reconcile`.
        """
        run = _Run(
            dry_run=dry_run,
            allow_mass_removal=allow_mass_removal,
            with_hooks=with_hooks,
            on_portion=on_portion,
            on_difference=on_difference,
        )
        return self._reported(tenant, run)[0]

    def _reported(self, tenant: Tenant, run: _Run) -> tuple[TenantReport, bool]:
        """Return what became of a tenant, and whether the provider is to blame."""
        if tenant.suspended:
            return skipped(tenant, "the tenant is suspended"), False
        began = self._clock()
        failed = TenantReport(
            tenant=tenant.key, tenant_id=tenant.id, state=State.FAILED, dry_run=run.dry_run
        )
        blames_provider = False
        try:
            report = self._compared(tenant, run)
        except ListRefused as error:
            report = replace(failed, state=State.REFUSED, why=str(error))
        except Stopped as error:
            report = replace(failed, state=State.SKIPPED, why=str(error))
        except TenantSyncError as error:
            report = replace(failed, why=str(error))
            blames_provider = isinstance(
                error, IntegrationRefused | IntegrationUnavailable
            ) and not isinstance(error, IntegrationForbidden | IntegrationNotFound)
        except Exception as error:  # whatever it is, the other tenants' turn comes
            # The class only: the words may repeat what a list says.
            report = replace(failed, why=f"it failed unexpectedly ({type(error).__name__})")
        report = replace(report, seconds=max(0.0, self._clock() - began))
        self._tell(report)
        return report, blames_provider

    def _compared(self, tenant: Tenant, run: _Run) -> TenantReport:
        # Asked before the list is: of two at once, none takes the other's for the one before.
        previous = self._reconciliations.previous(tenant.id)
        snapshot = Snapshot(
            self._lists.tenant_memberships(tenant.id),
            tenant_id=tenant.id,
            application_id=self._application_id,
            now=int(self._clock() * 1000),
            skew=int(self._skew * 1000),
        )
        found = survey(
            self._mirror,
            tenant,
            snapshot,
            horizon=previous if snapshot.follows(previous) else None,
            max_removal=self._max_removal,
            shared=self._shared,
            differs=partial(run.differs, tenant),
        )
        held = found.brake.holds and not run.allow_mass_removal
        report = TenantReport(
            tenant=tenant.key,
            tenant_id=tenant.id,
            state=State.HELD_BACK if held else State.DONE,
            people=len(snapshot),
            added=found.added,
            changed=found.changed - (found.demoted if held else 0),
            unchanged=found.unchanged,
            removed=0 if held else len(found.missing),
            held_back=found.demoted + len(found.missing) if held else 0,
            why=_why_held(found.brake) if held else None,
            snapshot=snapshot.taken_at,
            dry_run=run.dry_run,
        )
        if run.dry_run:
            return report
        return self._taken(tenant, run, report, snapshot, found, previous)

    def _taken(
        self,
        tenant: Tenant,
        run: _Run,
        report: TenantReport,
        snapshot: Snapshot,
        found: Survey,
        previous: int | None,
    ) -> TenantReport:
        """Make the mirror say what the list says, and return what that did."""
        held = report.state is State.HELD_BACK
        changed = self._changed
        taking = Taking(
            self._mirror,
            tenant.placement,
            take_away=not held,
            changed=None if changed is None else partial(changed, tenant.id),
        )
        taking.take(snapshot, self._portion, run.portion)
        report = replace(
            report, added=taking.added, changed=taking.changed, unchanged=taking.unchanged
        )
        troubles = [taking.why_refused] if taking.refused else []
        if held:
            # It does not count as a list that was believed: those whom it held back were not
            # confirmed by it, and would soon seem to have been missing from it.
            report = replace(report, held_back=taking.held_back + len(found.missing))
            troubles += [report.why] if troubles and report.why else []
        else:
            if taking.confirmed and snapshot.follows(previous):
                # Before anybody leaves. All who are in it are confirmed, and who cannot leave now
                # is still missing from it. Were it not recorded because of them, nobody whom a
                # later list confirms would ever be found missing.
                self._reconciliations.record(tenant.id, snapshot.taken_at)
            removed, failure = self._removed(tenant, run, snapshot, found, previous)
            report = replace(report, removed=removed)
            troubles += [str(failure)] if failure is not None else []
        if troubles:
            report = replace(report, state=State.FAILED, why="; ".join(troubles))
        return report

    def _removed(
        self, tenant: Tenant, run: _Run, snapshot: Snapshot, found: Survey, previous: int | None
    ) -> tuple[int, TenantSyncError | None]:
        """Let those who are gone leave, and return how many did, and the first failure."""
        if previous is None or not found.missing:
            return 0, None
        departing = Departing(
            departures=self._departures,
            mirror=self._mirror,
            tenant=tenant,
            application_id=self._application_id,
            previous=previous,
            taken_at=snapshot.taken_at,
            shared=self._shared,
            with_hooks=run.with_hooks,
        )
        everyone = len(snapshot)
        return departing.let_go(found.missing, lambda: run.portion(everyone, everyone))

    def _tell(self, report: TenantReport) -> None:
        level = logging.INFO if report.ok else logging.WARNING
        _LOG.log(level, "tenantsync.reconciled", extra=report.fields())
        if self._observer is not None:
            self._observer(report)


def _why_held(brake: Brake) -> str:
    return (
        f"{brake.losing} of {brake.people} people with access would lose it or their role: nothing "
        "was taken away; look at the tenant in AuthVital, then say --allow-mass-removal"
    )
