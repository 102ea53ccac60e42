"""What the provider said of its tenants: names, deletions, and which of them we made places for.

Names are registers as a person's values are: the greater clock wins, whatever arrives first.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    RowMapping,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    text,
    update,
)

from tenantsync.control.database import ControlDatabase, ControlMissing
from tenantsync.control.tables import METADATA
from tenantsync.tenants import MAX_ID_BYTES

__all__ = ["HOUR", "Profile", "TenantProfiles", "is_storable", "profiles", "provisions"]

HOUR: Final = 3_600.0
"""Seconds of the window in which `TenantProfiles.book` counts."""

_ID: Final = Text().with_variant(Text(collation="C"), "postgresql")
_MOST_LETTERS: Final = 255
_HOUR_MS: Final = 3_600_000
_FIRST: Final = text(
    "INSERT INTO profiles (tenant_id) VALUES (:tenant_id) ON CONFLICT (tenant_id) DO NOTHING"
)

profiles: Final = Table(
    "profiles",
    METADATA,
    Column("tenant_id", _ID, primary_key=True),
    Column("name", Text),
    Column("slug", Text),
    # Clocks: thirteen digits of milliseconds and the event's id, so that they sort as text.
    Column("name_clock", _ID),
    Column("slug_clock", _ID),
    Column("suspended_clock", _ID),
    Column("deleted_clock", _ID),
    # Milliseconds since 1970 by the database's clock; NULL where we made no place for it.
    Column("provisioned_at", BigInteger),
)

provisions: Final = Table(
    "provisions",
    METADATA,
    Column("tenant_id", _ID, primary_key=True),
    Column("booked_at", BigInteger, nullable=False),
)
"""Places that were begun within the last hour, for the limit on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What the provider said of one tenant.

    Args:
        tenant_id: AuthVital's id.
        name: Its latest name, at most 255 characters, or None where none was heard.
        slug: Its latest slug, likewise. It may change, and be another tenant's later.
        deleted: Whether it was deleted there. That is final.
        provisioned: Whether its announcement made a place here, which may be gone by now.
    """

    tenant_id: str
    name: str | None = None
    slug: str | None = None
    deleted: bool = False
    provisioned: bool = False


class TenantProfiles:
    """Reads and writes profiles; each call is a transaction of its own.

    All of it raises ControlUnavailable where the control database does not answer.

    Args:
        database: The control database.
        max_profiles: How many tenants are remembered at most. Anyone can make tenants at the
            provider; one that comes later has no name here.
        prepare: Makes the control database, for the first write that finds none.
    """

    def __init__(
        self,
        database: ControlDatabase,
        *,
        max_profiles: int = 100_000,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._database = database
        self._max_profiles = max_profiles
        self._prepare = prepare

    def learn(
        self, tenant_id: str, clock: str, *, name: str | None = None, slug: str | None = None
    ) -> bool:
        """Remember a name and a slug; None says nothing of it. Return whether anything was new.

        Args:
            tenant_id: AuthVital's id.
            clock: That of the event, see `events`: greater ones win.
            name: The name.
            slug: The slug.
        """
        told = {"name": name, "slug": slug}
        values = {key: value[:_MOST_LETTERS] for key, value in told.items() if value is not None}
        with self._row(tenant_id) as (connection, row):
            if row is None:
                return False
            won = {key: value for key, value in values.items() if _is_newer(clock, row, key)}
            clocks = {f"{key}_clock": clock for key in won}
            _set(connection, tenant_id, {**won, **clocks})
            return bool(won)

    def mark_suspended(self, tenant_id: str, clock: str) -> None:
        """Remember that the provider suspended a tenant."""
        self._mark(tenant_id, "suspended", clock)

    def mark_deleted(self, tenant_id: str, clock: str) -> None:
        """Remember that the provider deleted a tenant."""
        self._mark(tenant_id, "deleted", clock)

    def mark_provisioned(self, tenant_id: str) -> None:
        """Remember that a place was made: whoever removes it does not want it made again."""
        with self._row(tenant_id, bounded=False) as (connection, _):
            _set(connection, tenant_id, {"provisioned_at": _now(connection)})

    def heeded(self, tenant_id: str, what: str, clock: str) -> bool:
        """Whether a suspension or deletion of this clock, or a later one, is remembered.

        Args:
            tenant_id: AuthVital's id.
            what: `"suspended"` or `"deleted"`.
            clock: That of the event.
        """
        row = self._read(tenant_id)
        return row is not None and not _is_newer(clock, row, what)

    def find(self, tenant_id: str) -> Profile | None:
        """Return what is known of a tenant, or None."""
        row = self._read(tenant_id)
        return None if row is None else _profile(row)

    def list(self, tenant_ids: Collection[str]) -> dict[str, Profile]:
        """Return what is known of some tenants, by id."""
        wanted = list(tenant_ids)
        found: dict[str, Profile] = {}
        try:
            with self._database.read() as connection:
                # In portions: databases bound how many values a statement may have.
                for start in range(0, len(wanted), 500):
                    query = select(profiles).where(
                        profiles.c.tenant_id.in_(wanted[start : start + 500])
                    )
                    for row in connection.execute(query).mappings():
                        found[row["tenant_id"]] = _profile(row)
        except ControlMissing:
            return {}
        return found

    def book(self, tenant_id: str, *, per_hour: int) -> float:
        """Count a tenant that is to be made, and return 0.0; or the seconds until one more may be.

        Whoever counts waits for the one before, and the hour is the database's: several workers
        together stay within the limit. A tenant that was counted within the hour is not counted
        again, so that whoever was interrupted goes on.

        Args:
            tenant_id: AuthVital's id.
            per_hour: How many may be made in an hour.
        """
        with self._write() as connection:
            if connection.dialect.name == "postgresql":
                # SQLite's transaction has begun as the only writer.
                connection.execute(text("LOCK TABLE provisions IN SHARE ROW EXCLUSIVE MODE"))
            # Asked after the lock: PostgreSQL's now() would be from before the wait for it.
            now = _now(connection)
            old = provisions.c.booked_at <= now - _HOUR_MS
            connection.execute(delete(provisions).where(old))
            query = select(provisions.c.tenant_id, provisions.c.booked_at)
            booked = connection.execute(query.order_by(provisions.c.booked_at)).all()
            if any(row.tenant_id == tenant_id for row in booked):
                return 0.0
            if per_hour < 1:
                return HOUR
            if len(booked) < per_hour:
                connection.execute(insert(provisions).values(tenant_id=tenant_id, booked_at=now))
                return 0.0
            # Room is made when so many have left the window that fewer than the limit remain.
            leaving = booked[len(booked) - per_hour].booked_at
            return float(leaving + _HOUR_MS - now) / 1000

    def is_booked(self, tenant_id: str) -> bool:
        """Whether a place for the tenant was begun of late, see `book`."""
        with self._database.read() as connection:
            query = select(provisions.c.tenant_id).where(provisions.c.tenant_id == tenant_id)
            return connection.scalar(query) is not None

    def _mark(self, tenant_id: str, what: str, clock: str) -> None:
        with self._row(tenant_id) as (connection, row):
            if row is not None and _is_newer(clock, row, what):
                _set(connection, tenant_id, {f"{what}_clock": clock})

    def _read(self, tenant_id: str) -> RowMapping | None:
        try:
            with self._database.read() as connection:
                return _find(connection, tenant_id)
        except ControlMissing:
            return None

    @contextmanager
    def _row(
        self, tenant_id: str, *, bounded: bool = True
    ) -> Iterator[tuple[Connection, RowMapping | None]]:
        """Give a tenant's row, locked and made if need be; None where there are too many."""
        with self._write() as connection:
            row = _find(connection, tenant_id, locked=True)
            if row is None and not (bounded and self._is_full(connection)):
                # Of two that hear of it for the first time, both go on with the one row.
                connection.execute(_FIRST, {"tenant_id": tenant_id})
                row = _find(connection, tenant_id, locked=True)
            yield connection, row

    def _is_full(self, connection: Connection) -> bool:
        count = connection.scalar(select(func.count()).select_from(profiles))
        return int(count or 0) >= self._max_profiles

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        if self._prepare is not None and self._is_missing():
            self._prepare()
        with self._database.write() as connection:
            yield connection

    def _is_missing(self) -> bool:
        try:
            with self._database.read() as connection:
                connection.execute(select(profiles.c.tenant_id).limit(1))
        except ControlMissing:
            return True
        # Once only: a file that was there and is gone is a disk that is not mounted.
        self._prepare = None
        return False


def is_storable(tenant_id: str | None) -> bool:
    """Whether a tenant id may be kept: 1 to 255 bytes of UTF-8."""
    return bool(tenant_id) and len(str(tenant_id).encode("utf-8", "surrogatepass")) <= MAX_ID_BYTES


def _find(connection: Connection, tenant_id: str, *, locked: bool = False) -> RowMapping | None:
    query = select(profiles).where(profiles.c.tenant_id == tenant_id)
    if locked:
        query = query.with_for_update()
    return connection.execute(query).mappings().one_or_none()


def _set(connection: Connection, tenant_id: str, values: dict[str, Any]) -> None:
    if values:
        connection.execute(
            update(profiles).where(profiles.c.tenant_id == tenant_id).values(**values)
        )


def _is_newer(clock: str, row: RowMapping, register: str) -> bool:
    known = row[f"{register}_clock"]
    return known is None or clock.encode() > known.encode()


def _now(connection: Connection) -> int:
    """Return milliseconds since 1970 by the database's clock."""
    on_postgres = connection.dialect.name == "postgresql"
    moment = (
        "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"
        if on_postgres
        else "CAST((julianday('now') - 2440587.5) * 86400000 AS integer)"
    )
    return int(connection.scalar(text(f"SELECT {moment}")) or 0)


def _profile(row: RowMapping) -> Profile:
    return Profile(
        tenant_id=row["tenant_id"],
        name=row["name"],
        slug=row["slug"],
        deleted=row["deleted_clock"] is not None,
        provisioned=row["provisioned_at"] is not None,
    )
