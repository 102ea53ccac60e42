"""Whether tenants are kept apart on the way that events take: asked of the real databases.

A pooler that is set up wrongly shows only under load, and then as one tenant's rows at another's.
So this looks for it on purpose: a canary at each tenant, which is rolled back, while a second
transaction runs beside the first.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tenantsync.errors import TenantNotIsolated, TenantSyncError
from tenantsync.tenancy.engines import EngineFactory, make_engine
from tenantsync.tenancy.isolation import Isolation, schema_of
from tenantsync.tenancy.pooler import Pooling, find_pooling
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement, Tenant

__all__ = ["Finding", "Safety", "Verdict", "verify_isolation"]

_TABLE: Final = "av_identity_tombstones"
_WRITE: Final = f"INSERT INTO {_TABLE} (id, clock) VALUES (:id, '')"
_MARK: Final = text("SELECT set_config('tenantsync.canary', :id, true)")
# A mark that nobody else would set, and what says whose tables are read.
_REMAINS: Final = text(
    "SELECT coalesce(current_setting('tenantsync.canary', true), ''),"
    " current_setting('search_path'), current_user"
)
_PER_STATEMENT: Final = "in statement pooling mode"  # PgBouncer has one code for all that it says
_MISSING: Final = ("42P01", "42703")  # no such table, no such column
_LEAKS: Final = (
    "what one transaction sets is still there in the next: whatever stands between us and "
    "PostgreSQL must hand out sessions for whole transactions, and must leave SET LOCAL alone"
)
_STATEMENTS: Final = (
    "each statement is a transaction of its own: set the pooler to transactions or sessions, and "
    "give no engine in autocommit"
)


class Safety(StrEnum):
    """What is known of one tenant."""

    SAFE = "safe"
    """Its transactions are its own."""
    UNSAFE = "unsafe"
    """They are not: apply no events."""
    UNKNOWN = "unknown"
    """It could not be tried: the place is missing, not migrated, or does not answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found at one tenant.

    Args:
        tenant: Its key.
        safety: Whether it is kept apart.
        pooling: What stands between us and its server; None for SQLite, or where that is unknown.
        error: What is wrong and what to do, in a sentence; None if nothing is.
    """

    tenant: str
    safety: Safety
    pooling: Pooling | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found at all tenants.

    Args:
        findings: One for each tenant, in the order in which they were given.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every tenant is known to be safe."""
        return all(finding.safety is Safety.SAFE for finding in self.findings)

    @property
    def sentence(self) -> str:
        """What that means, in a sentence."""
        counts = Counter(finding.safety for finding in self.findings)
        if not counts:
            return "There is no tenant to try it with."
        if counts[Safety.UNSAFE]:
            return f"NOT SAFE for {_tenants(counts[Safety.UNSAFE])}: apply no events until it is."
        if counts[Safety.UNKNOWN]:
            return f"Not known for {_tenants(counts[Safety.UNKNOWN])}."
        found = {finding.pooling for finding in self.findings}
        if Pooling.TRANSACTION in found:
            return (
                "Safe behind a pooler that shares sessions between transactions. Migrations need "
                "a direct connection: set [isolation] migration_url."
            )
        if Pooling.SESSION in found:
            return "Safe behind a pooler that shares no session that is in use."
        return "Safe; no pooler was found."


def verify_isolation(
    tenants: Iterable[Tenant],
    *,
    isolation: Isolation,
    factory: EngineFactory | None = None,
    on_finding: Callable[[Finding], object] | None = None,
) -> Verdict:
    """Try at each tenant whether its transactions are its own, and leave nothing behind.

    Two connections are needed at a time; a pooler must have two for us too.

    Args:
        tenants: Whom to look at.
        isolation: Binds and proves.
        factory: Makes the engine of a database; None means tenantsync's own.
        on_finding: Called after each tenant.
    """
    findings = []
    with EngineRegistry(
        max_engines=1, max_connections=2, idle=2, factory=factory or make_engine
    ) as registry:
        for tenant in tenants:
            finding = _examine(tenant, isolation, registry)
            findings.append(finding)
            if on_finding:
                on_finding(finding)
    return Verdict(tuple(findings))


def _examine(tenant: Tenant, isolation: Isolation, registry: EngineRegistry) -> Finding:
    place = tenant.placement
    pooling = None
    try:
        with registry.connect(place) as connection:
            if not place.is_postgres:
                with connection.begin() as transaction:
                    _Visit(connection, isolation, place).leave_canary()
                    transaction.rollback()
                return Finding(tenant.key, Safety.SAFE)
            pooling = find_pooling(connection, lambda: registry.connect(place))
            _leave_canary_beside_another(connection, isolation, place, registry)
            _look_for_remains(connection, isolation, place)
    except TenantNotIsolated as error:
        return Finding(tenant.key, Safety.UNSAFE, pooling, str(error))
    except Exception as error:  # whatever a database or a driver says, the other tenants come next
        return _failed(tenant, pooling, error)
    return Finding(tenant.key, Safety.SAFE, pooling)


class _Visit:
    """One transaction in the place, from its first statement on."""

    def __init__(self, connection: Connection, isolation: Isolation, place: Placement) -> None:
        self._connection = connection
        self._isolation = isolation
        self._place = place
        self.canary = f"tenantsync-canary-{secrets.token_hex(16)}"
        if place.is_postgres:
            _remains(connection)
        with closing(connection.connection.cursor()) as cursor:
            isolation.bind(cursor, place)
        self._transaction = self._prove()

    def leave_canary(self) -> None:
        """Write a row, and find it by the name that hooks use and by the full one."""
        if self._place.is_postgres:
            self.mark()
        self._connection.execute(text(_WRITE), {"id": self.canary})
        self.check()

    def mark(self) -> None:
        """Set something for this transaction alone."""
        self._connection.execute(_MARK, {"id": self.canary})

    def check(self) -> None:
        """Do nothing if it is still the same transaction, in its place, with its canary."""
        if self._prove() != self._transaction:
            raise TenantNotIsolated(_STATEMENTS)
        names = [_TABLE]
        if self._place.is_postgres:
            quote = self._connection.dialect.identifier_preparer.quote_identifier
            names.append(f"{quote(schema_of(self._place))}.{_TABLE}")
        for name in names:
            found = self._connection.scalar(
                text(f"SELECT count(*) FROM {name} WHERE id = :id"),
                {"id": self.canary},
            )
            if found != 1:
                raise TenantNotIsolated(
                    f"a row that was just written to {self._place} is not found there"
                )

    def sees(self, other: "_Visit") -> bool:
        """Whether what another open transaction wrote or set is seen in this one."""
        found = self._connection.scalar(
            text(
                f"SELECT count(*) FROM {_TABLE} WHERE id = :id"
                " OR current_setting('tenantsync.canary', true) = :id"
            ),
            {"id": other.canary},
        )
        return bool(found)

    def _prove(self) -> str:
        with closing(self._connection.connection.cursor()) as cursor:
            self._isolation.locate(cursor, self._place)
            return self._isolation.confirm(cursor.fetchone(), self._place)


def _leave_canary_beside_another(
    connection: Connection, isolation: Isolation, place: Placement, registry: EngineRegistry
) -> None:
    with connection.begin() as transaction:
        visit = _Visit(connection, isolation, place)
        visit.leave_canary()
        with registry.connect(place) as other, other.begin() as second:
            neighbour = _Visit(other, isolation, place)
            if neighbour.sees(visit):
                raise TenantNotIsolated(_STATEMENTS)
            visit.check()
            second.rollback()
        visit.check()
        transaction.rollback()


def _look_for_remains(connection: Connection, isolation: Isolation, place: Placement) -> None:
    with connection.begin():
        before = _remains(connection)
    # Committed, with nothing written: a rollback would take back what a plain SET left behind.
    with connection.begin():
        visit = _Visit(connection, isolation, place)
        visit.mark()
    with connection.begin():
        if _remains(connection) != before:
            raise TenantNotIsolated(_LEAKS)


def _remains(connection: Connection) -> tuple[str, ...]:
    found = connection.execute(_REMAINS).one()
    if found[0]:
        raise TenantNotIsolated(_LEAKS)
    return tuple(map(str, found))


def _failed(tenant: Tenant, pooling: Pooling | None, error: Exception) -> Finding:
    if isinstance(error, TenantSyncError):
        return Finding(tenant.key, Safety.UNKNOWN, pooling, str(error))
    # The driver's words may hold values of rows, or a login.
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    state = getattr(cause, "sqlstate", None)
    if _PER_STATEMENT in str(cause):
        return Finding(tenant.key, Safety.UNSAFE, pooling, _STATEMENTS)
    if state in _MISSING or "no such table" in str(cause):
        told = "its tables are missing: run `tenantsync migrate upgrade`"
    else:
        told = (
            f"its database did not take part ({type(cause).__name__}{f' {state}' if state else ''})"
        )
    return Finding(tenant.key, Safety.UNKNOWN, pooling, told)


def _tenants(count: int) -> str:
    return f"{count} tenant" if count == 1 else f"{count} tenants"
