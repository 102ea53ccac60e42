"""The one list of all tenants: those of the configuration file, and those of the catalog.

A server asks it for one tenant at a time, and it remembers the whole catalog, so that an outage of
the control database stops nobody who was known before. "I cannot look it up" is never "there is no
such tenant".
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from tenantsync.config.check import identity
from tenantsync.control.catalog import Catalog, Entry, Mark, News, State
from tenantsync.control.database import ControlMissing, ControlUnavailable
from tenantsync.errors import ConfigError, TenantUnavailable
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenancy.resolver import TenantHalfMade
from tenantsync.tenants import Placement, Tenant

__all__ = ["Directory", "Listed"]

_LOG: Final = logging.getLogger("tenantsync")


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of the list.

    Args:
        key: The tenant's key.
        id: AuthVital's id.
        source: `"file"` or `"control"`.
        state: `"active"`, `"suspended"`, `"provisioning"`, `"removed"` or `"dropping"`.
        placement: Where it lives; None where that is not allowed any more.
        since: When it was suspended, or added; None for the file's others.
        trouble: Why it is not served, in a sentence, or None.
    """

    key: str
    id: str
    source: str
    state: str
    placement: Placement | None
    since: datetime | None = None
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The catalog as it was when it was last asked.

    Args:
        mark: Up to where it was read; None where there was no control database yet.
        entries: The catalog's tenants by key.
        tenants: Those in service by id, or in their stead what says why not.
        suspended: Keys, and since when.
    """

    mark: Mark | None
    entries: dict[str, Entry]
    tenants: dict[str, Tenant | TenantUnavailable]
    suspended: dict[str, datetime]


class Directory:
    """All tenants, wherever they were declared: a TenantSource that can also list them.

    Args:
        listed: The tenants of the file.
        catalog: Those that were added at run time, and who is suspended.
        isolation: Says where the catalog's tenants live.
        shared: Whether all tenants share one place.
        refresh_after: Seconds that the catalog is taken for unchanged; also after it did not
            answer, so that an outage costs one attempt and not one for every event.
        clock: Monotonic seconds.

    Raises:
        ConfigError: Two tenants of the file have one id or one key.
    """

    def __init__(
        self,
        listed: Iterable[Tenant],
        catalog: Catalog,
        isolation: Isolation,
        *,
        shared: bool = False,
        refresh_after: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalog = catalog
        self._isolation = isolation
        self.shared = shared
        self._refresh_after = refresh_after
        self._clock = clock
        self._by_key: dict[str, Tenant] = {}
        self._by_id: dict[str, Tenant] = {}
        self._by_place: dict[Hashable, str] = {}
        for tenant in listed:
            if tenant.id in self._by_id or tenant.key in self._by_key:
                raise ConfigError(f"tenant {tenant.key!r} has the key or the id of another tenant")
            self._by_key[tenant.key] = self._by_id[tenant.id] = tenant
            self._by_place[_identity(tenant.placement)] = tenant.key
        self._asking = threading.Lock()
        self._asked_at: float | None = None
        self._snapshot: _Snapshot | None = None
        self._trouble: ControlUnavailable | None = None

    def find(self, tenant_id: str) -> Tenant | None:
        """Return the tenant with AuthVital's id, or None if there is none.

        Raises:
            ControlUnavailable: The control database does not answer, and what was last known of it
                does not say.
            TenantUnavailable: The tenant is there but not ready; the message says why.
        """
        known = self._knows(tenant_id)
        # One asks; the others do with what is known, and wait only where nothing is. And not for
        # one who asks after an outage: that may take seconds, and each of them holds a thread.
        wait = not known and self._trouble is None
        if not self._is_fresh() and self._asking.acquire(blocking=wait):
            try:
                if not self._is_fresh():
                    self._ask()
            finally:
                self._asking.release()
        snapshot, trouble = self._snapshot, self._trouble
        if snapshot is None:
            raise trouble or ControlUnavailable("the control database was not asked yet")
        found = self._by_id.get(tenant_id) or snapshot.tenants.get(tenant_id)
        if found is None and trouble is not None:
            raise trouble
        if isinstance(found, TenantUnavailable):
            raise found
        if found is not None and found.key in snapshot.suspended:
            return replace(found, suspended=True)
        return found

    def named(self, key: str) -> Tenant | None:
        """Return the tenant with a key, as `find` does with an id."""
        listed = self._by_key.get(key)
        if listed is not None:
            return self.find(listed.id)
        found = self._entry(key)
        if found is None:
            self._asked_at = None  # it may have been added a moment ago
            self.find(key)
            found = self._entry(key)
        return None if found is None else self.find(found.id)

    def list(self) -> Sequence[Tenant]:
        """Return all tenants in service, suspended ones too: the file's, then the catalog's.

        Raises:
            ControlUnavailable: The control database does not answer; nobody is left out in silence.
            ConfigError: A tenant of the catalog has no place of its own any more.
        """
        lines = self._in_service()
        for line in lines:
            if line.trouble is not None or line.placement is None:
                raise ConfigError(line.trouble or f"tenant {line.key!r} has no place")
        return _tenants(lines)

    def sound(self) -> Sequence[Tenant]:
        """Return the tenants of `list` that have a place of their own, and leave the others out.

        For work in the background, which one tenant's trouble must not stop for all.

        Raises:
            ControlUnavailable: The control database does not answer.
        """
        return _tenants(line for line in self._in_service() if line.trouble is None)

    def lines(self) -> Sequence[Listed]:
        """Return every tenant there is or was, in any state, asked for anew.

        Raises:
            ControlUnavailable: The control database does not answer.
        """
        try:
            news = self.catalog.news()
        except ControlMissing:
            news = None
        suspended = {} if news is None else news.suspended
        lines = [
            Listed(
                *(tenant.key, tenant.id, "file"),
                "suspended" if tenant.key in suspended else "active",
                tenant.placement,
                suspended.get(tenant.key),
            )
            for tenant in self._by_key.values()
        ]
        places: dict[Hashable, str] = {}
        entries = [] if news is None else sorted(news.entries, key=lambda entry: entry.key)
        for entry in entries:
            if self._is_of_file(entry):
                continue
            lines.append(self._line(entry, suspended, places))
        return lines

    def refuse(self, tenant: Tenant) -> None:
        """Do nothing if a tenant may be added, as far as the file can tell.

        Raises:
            ConfigError: The file has its key, its id or its place, or the place is the control
                database's.
        """
        trouble = self._conflict(tenant)
        if trouble is not None:
            raise ConfigError(trouble)

    def forget(self) -> None:
        """Ask the catalog again before the next answer; what was last known stays for outages."""
        self._asked_at = None

    def is_listed(self, key: str) -> bool:
        """Return whether the file has a tenant with this key."""
        return key in self._by_key

    def _in_service(self) -> Sequence[Listed]:
        return [line for line in self.lines() if line.state in ("active", "suspended")]

    def _entry(self, key: str) -> Entry | None:
        return None if self._snapshot is None else self._snapshot.entries.get(key)

    def _knows(self, tenant_id: str) -> bool:
        snapshot = self._snapshot
        return snapshot is not None and (tenant_id in self._by_id or tenant_id in snapshot.tenants)

    def _is_fresh(self) -> bool:
        asked = self._asked_at
        return asked is not None and self._clock() - asked < self._refresh_after

    def _ask(self) -> None:
        known = self._snapshot
        trouble: ControlUnavailable | None = None
        try:
            news = self.catalog.news(None if known is None else known.mark)
        except ControlMissing as error:
            if known is None or known.mark is None:
                self._snapshot = _Snapshot(None, {}, {}, {})
            else:  # It was there before: a disk that is not mounted is no empty catalog.
                trouble = error
        except ControlUnavailable as error:
            trouble = error
        else:
            if news is not None:
                self._snapshot = self._applied(known, news)
        if trouble is not None and self._trouble is None:
            _LOG.error("tenantsync.control_unavailable", extra={"reason": str(trouble)})
        self._trouble = trouble
        self._asked_at = self._clock()

    def _applied(self, known: _Snapshot | None, news: News) -> _Snapshot:
        base = known if known is not None and not news.whole else _Snapshot(None, {}, {}, {})
        # Copied and put in place at once: readers look without a lock.
        entries, tenants = dict(base.entries), dict(base.tenants)
        for entry in news.entries:
            entries[entry.key] = entry
            tenants.pop(entry.id, None)
            if entry.state in (State.ACTIVE, State.PROVISIONING):
                tenants[entry.id] = self._tenant(entry)
        return _Snapshot(news.mark, entries, tenants, news.suspended)

    def _tenant(self, entry: Entry) -> Tenant | TenantUnavailable:
        if entry.state is State.PROVISIONING:
            return TenantHalfMade(f"tenant {entry.key!r} is being made")
        try:
            tenant = self._made(entry)
        except ConfigError as error:
            return TenantUnavailable(f"tenant {entry.key!r}: {error}")
        conflict = self._conflict(tenant)
        return tenant if conflict is None else TenantUnavailable(conflict)

    def _line(
        self, entry: Entry, suspended: dict[str, datetime], places: dict[Hashable, str]
    ) -> Listed:
        state: str = entry.state.value
        since: datetime | None = entry.added_at
        if entry.state is State.ACTIVE and entry.key in suspended:
            state, since = "suspended", suspended[entry.key]
        placement = trouble = None
        try:
            tenant = self._made(entry)
        except ConfigError as error:
            trouble = f"tenant {entry.key!r}: {error}"
        else:
            placement = tenant.placement
            trouble = self._conflict(tenant)
            other = places.setdefault(_identity(placement), entry.key)
            if trouble is None and other != entry.key and not self.shared:
                trouble = f"tenant {entry.key!r} lives in the place of {other!r}"
        return Listed(entry.key, entry.id, "control", state, placement, since, trouble)

    def _made(self, entry: Entry) -> Tenant:
        place = self._isolation.place(
            entry.key, url=entry.url, schema=entry.schema, role=entry.role
        )
        return Tenant(entry.id, entry.key, place)

    def _is_of_file(self, entry: Entry) -> bool:
        """Whether the file has taken the tenant over: then it says where that one lives."""
        tenant = self._by_key.get(entry.key)
        return tenant is not None and tenant.id == entry.id

    def _conflict(self, tenant: Tenant) -> str | None:
        """Say which tenant of the file is in the way of one that is none of them."""
        same = self._by_key.get(tenant.key)
        if same is not None:
            return f"the configuration file has a tenant {same.key!r} already: edit the file"
        same = self._by_id.get(tenant.id)
        if same is not None:
            return (
                f"the configuration file has the id of {tenant.key!r} already, "
                f"as tenant {same.key!r}"
            )
        if _identity(tenant.placement) == _identity(self.catalog.database.placement):
            return f"the place of {tenant.key!r} is the control database: choose another one"
        other = None if self.shared else self._by_place.get(_identity(tenant.placement))
        if other is not None:
            return f"the place of {tenant.key!r} belongs to tenant {other!r} of the file"
        return None


def _identity(placement: Placement) -> Hashable:
    return identity(placement.url, placement.schema)


def _tenants(lines: Iterable[Listed]) -> Sequence[Tenant]:
    return [
        Tenant(line.id, line.key, line.placement, line.state == "suspended")
        for line in lines
        if line.placement is not None
    ]
