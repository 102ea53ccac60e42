"""Goes through the fleet and removes local sessions that ended long ago: when asked, or each day.

Any number of processes may do so at once: what one removes, or holds, the others leave alone.
"""

import logging
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from tenantsync.errors import TenantSyncError
from tenantsync.sync.stale_sessions import Stale, StaleSessions
from tenantsync.tenants import Placement, Tenant

__all__ = ["Cleaned", "CleanupReport", "CleanupRule", "ScheduledCleanup", "SessionCleanup"]

_LOG: Final = logging.getLogger("tenantsync")

_DAY: Final = 86_400.0
_FIRST_WITHIN: Final = 3_600.0
_LONGEST_PAUSE: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupRule:
    """Which sessions go.

    Args:
        older_than: Seconds since a session expired or was revoked. With 0 every session goes that
            is not open any more.
        expired_only: Whether those that were revoked stay until they have expired that long ago.
    """

    older_than: float = 30 * _DAY
    expired_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """What became of one tenant's place.

    Args:
        tenant: The tenant's key.
        also: Keys of others who live in the same place, and whose sessions are counted here.
        expired: Sessions removed that expired long ago; of a dry run, that would be.
        revoked: Sessions removed that were revoked long ago, and did not expire as long ago.
        suspended: Whether it was left alone because an operator suspended it.
        error: What went wrong, in a sentence, or None.
    """

    tenant: str
    also: tuple[str, ...] = ()
    expired: int = 0
    revoked: int = 0
    suspended: bool = False
    error: str | None = None

    @property
    def removed(self) -> int:
        """How many sessions in all."""
        return self.expired + self.revoked

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong."""
        return self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupReport:
    """What became of the fleet.

    Args:
        rule: Which sessions went.
        dry_run: Whether they were only counted.
        rows: One for each place, in the order of the tenants.
        left: Places that were not begun, because the run was stopped.
    """

    rule: CleanupRule
    dry_run: bool
    rows: tuple[Cleaned, ...]
    left: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong anywhere."""
        return self.failed == 0

    @property
    def failed(self) -> int:
        """In how many places something went wrong."""
        return sum(not row.ok for row in self.rows)

    @property
    def expired(self) -> int:
        """Sessions that expired long ago, of all tenants."""
        return sum(row.expired for row in self.rows)

    @property
    def revoked(self) -> int:
        """Sessions that were revoked long ago, and did not expire as long ago, of all tenants."""
        return sum(row.revoked for row in self.rows)

    @property
    def removed(self) -> int:
        """Sessions removed, of all tenants."""
        return self.expired + self.revoked


def _present() -> datetime:
    return datetime.now(UTC)


class SessionCleanup:
    """Removes old sessions from many tenants' places.

    Args:
        stale: Removes them from one place. It must be able to open `jobs` sessions at once.
        jobs: How many places are gone through at once.
        clock: Returns the present, with its zone.
    """

    def __init__(
        self, stale: StaleSessions, *, jobs: int = 1, clock: Callable[[], datetime] = _present
    ) -> None:
        self._stale = stale
        self._jobs = jobs
        self._clock = clock

    def run(
        self,
        tenants: Iterable[Tenant],
        *,
        rule: CleanupRule | None = None,
        dry_run: bool = False,
        pause: float = 0.0,
        told: Callable[[Cleaned], object] | None = None,
        stopping: threading.Event | None = None,
    ) -> CleanupReport:
        """Go through the tenants. What goes wrong at one of them stays there, and is reported.

        Tenants who share a place are gone through once. A place whose tenants are all suspended is
        left alone.

        Args:
            tenants: Whose sessions.
            rule: Which of them go; by default those that ended more than 30 days ago.
            dry_run: Count only, and write nothing.
            pause: Seconds to wait after each place.
            told: Called on this thread after each place with what became of it.
            stopping: Set by another thread to end it early.
        """
        rule, stopping = rule or CleanupRule(), stopping or threading.Event()
        halt = threading.Event()  # ours, so that an interruption here does not stop the caller
        before = self._clock() - timedelta(seconds=rule.older_than)
        places: dict[Placement, list[Tenant]] = {}
        for tenant in tenants:
            places.setdefault(tenant.placement, []).append(tenant)

        def stopped() -> bool:
            return stopping.is_set() or halt.is_set()

        def clean(placement: Placement, living: Sequence[Tenant]) -> Cleaned | None:
            if stopped():
                return None
            row = self._clean(placement, living, before, rule, dry_run=dry_run, stopped=stopped)
            stopping.wait(pause)
            return row

        rows: dict[Placement, Cleaned] = {}
        with ThreadPoolExecutor(self._jobs, "tenantsync-cleanup") as pool:
            tasks = {pool.submit(clean, *item): item[0] for item in places.items()}
            try:
                for task in as_completed(tasks):
                    row = task.result()
                    if row is not None:
                        rows[tasks[task]] = row
                        if told is not None:
                            told(row)
            except BaseException:
                halt.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return CleanupReport(
            rule=rule,
            dry_run=dry_run,
            rows=tuple(rows[place] for place in places if place in rows),
            left=len(places) - len(rows),
        )

    def _clean(
        self,
        placement: Placement,
        living: Sequence[Tenant],
        before: datetime,
        rule: CleanupRule,
        *,
        dry_run: bool,
        stopped: Callable[[], bool],
    ) -> Cleaned:
        key, *also = (tenant.key for tenant in living)
        if all(tenant.suspended for tenant in living):
            return Cleaned(tenant=key, also=tuple(also), suspended=True)
        found, wrong = Stale(), None
        try:
            for portion in self._stale.remove(
                placement, before=before, expired_only=rule.expired_only, dry_run=dry_run
            ):
                found += portion
                if stopped():
                    break
        except TenantSyncError as error:
            wrong = str(error)
        except Exception as error:  # whatever it is, the other tenants' turn comes
            wrong = f"unexpected {type(error).__name__}"
        return Cleaned(
            tenant=key,
            also=tuple(also),
            expired=found.expired,
            revoked=found.revoked,
            error=wrong,
        )


class ScheduledCleanup:
    """Cleans the fleet each day, slowly, for as long as a worker runs.

    Args:
        cleanup: Goes through the fleet.
        tenants: Returns all tenants there are now.
        rule: Which sessions go.
        every: Seconds between two rounds, about.
        spread: Seconds over which one round is spread, about; each place waits for its turn a
            second at most.
        jitter: A random number from 0 up to 1, so that many workers do not begin at once.
    """

    def __init__(
        self,
        cleanup: SessionCleanup,
        *,
        tenants: Callable[[], Iterable[Tenant]],
        rule: CleanupRule | None = None,
        every: float = _DAY,
        spread: float = 3_600.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._cleanup = cleanup
        self._tenants = tenants
        self._rule = rule or CleanupRule()
        self._every = every
        self._spread = spread
        self._jitter = jitter

    def run(self, stopping: threading.Event) -> None:
        """Clean until the event is set. Nothing that goes wrong ends it.

        Args:
            stopping: Set by another thread; what is begun in a place is finished.
        """
        # The first round comes soon, or a server that is restarted daily would never clean.
        pause = min(_FIRST_WITHIN, self._every) * self._jitter()
        while not stopping.wait(pause):
            try:
                self.clean(stopping)
            except Exception as error:  # the next round may do better
                # The class only: the words may say more than a log should.
                name = type(error).__name__
                _LOG.error("tenantsync.cleanup_failed", extra={"error": name})
            pause = self._every * (0.75 + self._jitter() / 2)

    def clean(self, stopping: threading.Event | None = None) -> CleanupReport:
        """Go through the fleet once.

        Raises:
            TenantSyncError: The tenants cannot be listed now.
        """
        tenants = list(self._tenants())
        report = self._cleanup.run(
            tenants,
            rule=self._rule,
            pause=min(_LONGEST_PAUSE, self._spread / max(1, len(tenants))),
            told=_log_failure,
            stopping=stopping,
        )
        _LOG.info(
            "tenantsync.sessions_cleaned",
            extra={
                "places": len(report.rows),
                "expired": report.expired,
                "revoked": report.revoked,
                "failed": report.failed,
            },
        )
        return report


def _log_failure(row: Cleaned) -> None:
    if row.error is not None:
        extra = {"tenant": row.tenant, "error": row.error}
        _LOG.warning("tenantsync.cleanup_failed", extra=extra)
