"""When each tenant's list was last believed, and who compares it next: any number of workers do.

Becoming due and losing a lease are one thing, a moment in one column, as with the lanes of the
inbox; only the database's clock counts.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    Table,
    Text,
    Update,
    delete,
    or_,
    select,
    text,
    update,
)

from tenantsync.control.database import ControlDatabase, ControlMissing
from tenantsync.control.inbox import LeaseLost
from tenantsync.control.moments import NOW, FreshToken, Later
from tenantsync.control.tables import METADATA
from tenantsync.models import Timestamp

__all__ = ["Claim", "Reconciled", "Reconciliations", "reconciliations", "seconds_until_turn"]

_ID: Final = Text().with_variant(Text(collation="C"), "postgresql")
_PORTION: Final = 500
_LONGEST: Final = 500

reconciliations: Final = Table(
    "reconciliations",
    METADATA,
    Column("tenant_id", _ID, primary_key=True),
    # When the last list that was believed as a whole was taken, in milliseconds since 1970 by the
    # provider's clock.
    Column("snapshot", BigInteger),
    Column("reconciled_at", Timestamp),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    # When anyone may claim it, which for one that is held is the end of the lease; NULL where
    # nothing is scheduled.
    Column("due_at", Timestamp, index=True),
    Column("token", Text),
    Column("owner", Text),
)

_ENROL: Final = text(
    "INSERT INTO reconciliations (tenant_id, attempts) VALUES (:tenant_id, 0)"
    " ON CONFLICT (tenant_id) DO NOTHING"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A tenant whose turn it is, leased.

    Args:
        tenant_id: AuthVital's id.
        token: Proves that the lease is still the holder's.
        attempts: How often in a row it failed.
    """

    tenant_id: str
    token: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """How a tenant stands.

    Args:
        tenant_id: AuthVital's id.
        snapshot: When the last list that was believed was taken, in milliseconds since 1970 by the
            provider's clock; None where there was none.
        reconciled_at: When that was done, by the control database's clock.
        attempts: How often in a row a scheduled run failed since.
        error: Why, or None.
        due_at: When it is tried again; None where nothing is scheduled.
    """

    tenant_id: str
    snapshot: int | None
    reconciled_at: datetime | None
    attempts: int
    error: str | None
    due_at: datetime | None


class Reconciliations:
    """Reads and writes what is known of reconciliations; each call is a transaction of its own.

    All of it raises ControlUnavailable where the control database does not answer.

    Args:
        database: The control database.
        prepare: Makes the control database, for the first write that finds none.
    """

    def __init__(
        self, database: ControlDatabase, *, prepare: Callable[[], object] | None = None
    ) -> None:
        self._database = database
        self._prepare = prepare

    def previous(self, tenant_id: str) -> int | None:
        """Return when the last list of a tenant that was believed was taken; None for none."""
        known = self.list([tenant_id]).get(tenant_id)
        return None if known is None else known.snapshot

    def record(self, tenant_id: str, snapshot: int) -> None:
        """Remember that a list was believed as a whole, and all that it says was taken.

        Args:
            tenant_id: AuthVital's id.
            snapshot: When it was taken, in milliseconds since 1970 by the provider's clock.
        """
        columns = reconciliations.c
        # A list that was asked for earlier may be done later; what counts is the newer one.
        newer = or_(columns.snapshot.is_(None), columns.snapshot < snapshot)
        ours = update(reconciliations).where(columns.tenant_id == tenant_id)
        with self._write() as connection:
            connection.execute(_ENROL, {"tenant_id": tenant_id})
            connection.execute(ours.where(newer).values(snapshot=snapshot))
            connection.execute(ours.values(reconciled_at=NOW))

    def list(self, tenant_ids: Iterable[str]) -> dict[str, Reconciled]:
        """Return how some tenants stand, by id; who was never reconciled is not in it."""
        found: dict[str, Reconciled] = {}
        try:
            with self._database.read() as connection:
                for portion in _portions(tenant_ids):
                    query = select(reconciliations).where(reconciliations.c.tenant_id.in_(portion))
                    for row in connection.execute(query).mappings():
                        found[row["tenant_id"]] = Reconciled(
                            **{name: row[name] for name in Reconciled.__slots__}
                        )
        except ControlMissing:
            return {}
        return found

    def enrol(self, tenant_ids: Iterable[str], *, every: float) -> int:
        """Give a turn to every tenant that has none, or none soon enough; return to how many.

        Args:
            tenant_ids: All tenants there are.
            every: Seconds between two turns of a tenant.
        """
        scheduled = reconciliations.c.owner.is_not(None) | (
            reconciliations.c.due_at <= Later(every)
        )
        count = 0
        with self._write() as connection:
            now = _now(connection)
            for portion in _portions(tenant_ids):
                ours = reconciliations.c.tenant_id.in_(portion)
                query = select(reconciliations.c.tenant_id).where(ours, scheduled)
                known = set(connection.scalars(query))
                for tenant_id in portion:
                    if tenant_id in known:
                        continue
                    connection.execute(_ENROL, {"tenant_id": tenant_id})
                    connection.execute(
                        update(reconciliations)
                        .where(reconciliations.c.tenant_id == tenant_id)
                        .values(due_at=Later(seconds_until_turn(tenant_id, now, every)))
                    )
                    count += 1
        return count

    def claim(self, owner: str, *, lease: float = 300.0) -> Claim | None:
        """Lease the tenant that has waited longest for its turn; None where nobody's turn it is.

        Args:
            owner: Who asks, for people who look into the table.
            lease: Seconds.
        """
        columns = reconciliations.c
        found = select(columns.tenant_id).where(columns.due_at <= NOW).order_by(columns.due_at)
        one = found.limit(1).with_for_update(skip_locked=True).scalar_subquery()
        statement = (
            update(reconciliations)
            .where(columns.tenant_id == one)
            .values(owner=owner, token=FreshToken(), due_at=Later(lease))
            .returning(columns.tenant_id, columns.token, columns.attempts)
        )
        with self._write() as connection:
            row = connection.execute(statement).mappings().one_or_none()
        return None if row is None else Claim(**row)

    def renew(self, claim: Claim, *, lease: float = 300.0) -> None:
        """Let the lease end so many seconds from now.

        Raises:
            LeaseLost: It is not the caller's any more.
        """
        with self._held(claim) as connection:
            connection.execute(_change(claim).values(due_at=Later(lease)))

    def finish(self, claim: Claim, *, every: float) -> None:
        """Give a lease back after success; its next turn comes at its own moment of the interval.

        Raises:
            LeaseLost: It is not the caller's any more.
        """
        with self._held(claim) as connection:
            wait = seconds_until_turn(claim.tenant_id, _now(connection), every)
            connection.execute(
                _change(claim).values(
                    owner=None, token=None, error=None, attempts=0, due_at=Later(wait)
                )
            )

    def postpone(self, claim: Claim, *, retry_in: float, error: str | None) -> None:
        """Give a lease back without success.

        Args:
            claim: Whose.
            retry_in: Seconds until its next turn.
            error: Why; None where nothing failed.

        Raises:
            LeaseLost: It is not the caller's any more.
        """
        attempts = claim.attempts + (error is not None)
        with self._held(claim) as connection:
            connection.execute(
                _change(claim).values(
                    owner=None,
                    token=None,
                    attempts=attempts,
                    error=None if error is None else error[:_LONGEST],
                    due_at=Later(retry_in),
                )
            )

    def forget(self, claim: Claim) -> None:
        """Take a tenant off the schedule that is none any more.

        Raises:
            LeaseLost: It is not the caller's any more.
        """
        with self._held(claim) as connection:
            connection.execute(
                delete(reconciliations).where(reconciliations.c.tenant_id == claim.tenant_id)
            )

    @contextmanager
    def _held(self, claim: Claim) -> Iterator[Connection]:
        """Give a transaction in which the claim is proven to be the holder's still."""
        columns = reconciliations.c
        held = select(columns.tenant_id).where(
            columns.tenant_id == claim.tenant_id, columns.token == claim.token
        )
        with self._write() as connection:
            if connection.scalar(held.with_for_update()) is None:
                raise LeaseLost("the tenant is somebody else's to reconcile now, or nobody's")
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        if self._prepare is not None:
            self._prepare()
            self._prepare = None
        with self._database.write() as connection:
            yield connection


def seconds_until_turn(tenant_id: str, now: float, every: float) -> float:
    """Return when a tenant's next turn comes: its own moment of every interval.

    A moment that depends on its id alone, so that the fleet stays spread over the interval however
    long nobody worked, and the provider is never asked about all tenants at once.

    Args:
        tenant_id: AuthVital's id.
        now: Seconds since 1970.
        every: Seconds between two turns.

    Returns:
        More than 0 and at most `every` seconds.
    """
    digest = hashlib.sha256(tenant_id.encode("utf-8", "surrogatepass")).digest()
    moment = int.from_bytes(digest[:8], "big") / 2.0**64 * every
    return every - (now - moment) % every


def _change(claim: Claim) -> Update:
    return update(reconciliations).where(reconciliations.c.tenant_id == claim.tenant_id)


def _now(connection: Connection) -> float:
    moment = connection.scalar(select(NOW))
    return float((moment or datetime.now(UTC)).timestamp())


def _portions(tenant_ids: Iterable[str]) -> Iterator[Sequence[str]]:
    ids = list(dict.fromkeys(tenant_ids))
    # In portions: databases bound how many values a statement may have.
    yield from (ids[start : start + _PORTION] for start in range(0, len(ids), _PORTION))
