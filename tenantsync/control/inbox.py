"""The inbox: events that were accepted and cannot be applied yet, and what became of them."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Unpack

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, null, select

from tenantsync.control import lanes as lane_rows
from tenantsync.control import settling
from tenantsync.control.arrivals import Bound, store
from tenantsync.control.database import ControlDatabase
from tenantsync.control.entries import (
    Arrival,
    Entry,
    Lane,
    LaneInfo,
    LeaseLost,
    Pruned,
    Settlement,
    State,
    Stored,
    Totals,
)
from tenantsync.control.moments import NOW
from tenantsync.control.settling import HELD, Filters, matching
from tenantsync.control.tables import IS_PARKED, inbox
from tenantsync.steps import Step, reach

__all__ = [
    "Arrival",
    "Entry",
    "Filters",
    "Inbox",
    "Lane",
    "LaneInfo",
    "LeaseLost",
    "Pruned",
    "Settlement",
    "State",
    "Stored",
    "Totals",
]

_ROOM: Final = 256 * 1024 * 1024
_PORTION: Final = 500
"""How many lanes or events one transaction locks at most."""


class Inbox:
    """Events that were accepted and cannot be applied yet (docs/explanation/inbox.md).

    Each call is a transaction of its own, or several where it says so. All of them raise
    ControlMissing where the control database was not made yet, and ControlUnavailable where it does
    not answer. Only the database's clock counts. Safe to use from any thread.

    Args:
        database: The control database.
        max_unknown_events: How many events one unknown tenant may have here.
        max_unknown_bytes: How many bytes all unknown tenants may have here together; each event
            counts for 2 KiB more than its body. Announcements may have as much again.
        max_nameless_bytes: How many bytes what names no tenant may have here, counted likewise. It
            is a room apart: strangers must not be able to fill it.
    """

    def __init__(
        self,
        database: ControlDatabase,
        *,
        max_unknown_events: int = 1000,
        max_unknown_bytes: int = _ROOM,
        max_nameless_bytes: int = _ROOM,
    ) -> None:
        self.database = database
        self._bound = Bound(max_unknown_events, max_unknown_bytes, max_nameless_bytes)

    def park(self, arrivals: Sequence[Arrival]) -> list[Stored]:
        """Store events until they can be applied, and answer for each what became of it.

        An event that is there already keeps its row, and its state is the answer. FULL means that
        it was not stored, which happens to unknown tenants only.

        Args:
            arrivals: Of any tenants, each event as often as it came. One that is `known` makes its
                tenant known here.
        """
        return self._store(arrivals, State.PARKED, Step.PARKED)

    def quarantine(self, arrivals: Sequence[Arrival]) -> list[Stored]:
        """Store events that cannot be read where an operator finds them; answer as `park` does.

        Args:
            arrivals: Of any tenants. Those that name none share a bound of their own, and those
                that are not `known` that of unknown tenants: say so unless a source knows them.
        """
        return self._store(arrivals, State.QUARANTINED, Step.QUARANTINED)

    def _store(self, arrivals: Sequence[Arrival], state: State, step: Step) -> list[Stored]:
        if not arrivals:
            return []
        with self.database.write() as connection:
            stored = store(connection, arrivals, state=state, bound=self._bound)
            reach(Step.PARKING)
        reach(step)
        return stored

    def claim(
        self, owner: str, *, lease: float = 60.0, tenant_id: str | None = None
    ) -> Lane | None:
        """Lease a lane: the one longest due, or a certain one that has events and no holder.

        Args:
            owner: Who claims it, for whoever looks.
            lease: Seconds until anyone may claim it again, unless it is renewed.
            tenant_id: The provider's id of the tenant, to claim that lane also if it is not due.

        Returns:
            The lane, or None where there is none to be had.
        """
        with self.database.write() as connection:
            lane = lane_rows.claim(connection, owner, lease, tenant_id)
        if lane is not None:
            reach(Step.CLAIMED)
        return lane

    def renew(self, lane: Lane, *, lease: float = 60.0) -> None:
        """Let the lease end so many seconds from now.

        Raises:
            LeaseLost: Somebody else claimed the lane, or it was given back.
        """
        with self.database.write() as connection:
            lane_rows.renew(connection, lane, lease)

    def take(self, lane: Lane, *, limit: int = 128) -> list[Entry]:
        """Return events of a lane that are due, those longest due first chosen, by number.

        They stay parked until they are settled.

        Args:
            lane: The lane, claimed.
            limit: How many at most.
        """
        query = (
            _with_body()
            .where(inbox.c.tenant_id == lane.tenant_id, IS_PARKED, inbox.c.due_at <= NOW)
            .order_by(inbox.c.due_at, inbox.c.number)
            .limit(limit)
        )
        with self.database.read() as connection:
            found = [_entry(row) for row in connection.execute(query).mappings()]
        return sorted(found, key=lambda entry: entry.number)

    def settle(self, lane: Lane, settlements: Sequence[Settlement]) -> None:
        """Write down what became of a lane's events, all in one transaction.

        What is not parked any more, because it was erased or discarded meanwhile, stays as it is.
        Only what was applied keeps its body: what changed nothing may be about a person who was
        deleted before it came.

        Args:
            lane: The lane, claimed. A lease that is over is still good until another claims it.
            settlements: One for each event.

        Raises:
            LeaseLost: Somebody else claimed the lane, or it was given back; nothing was changed.
        """
        with self.database.write() as connection:
            settling.settle(connection, lane, settlements)
            reach(Step.SETTLING)
        reach(Step.SETTLED)

    def release(
        self,
        lane: Lane,
        *,
        retry_in: float | None = 0.0,
        error: str | None = None,
        known: bool | None = None,
        announced: bool = False,
    ) -> None:
        """Give a lane back. One that was woken meanwhile is due at once, whatever is said here.

        Args:
            lane: The lane, claimed.
            retry_in: Seconds until it may be claimed again, at least; None after an error lets it
                sleep until it is woken.
            error: Why it failed, without personal data: one more failure in a row. None begins to
                count anew; it is due when its next event is.
            known: Whether a source knows the tenant; None leaves it as it was thought. Without one
                it sleeps until it is woken, and its events share the bound.
            announced: Whether it is due nevertheless, as the tenant may still be made.

        Raises:
            LeaseLost: Somebody else claimed the lane, or it was given back; nothing was changed.
        """
        with self.database.write() as connection:
            lane_rows.release(connection, lane, retry_in, error, known=known, announced=announced)
        reach(Step.RELEASED)

    def wake(self, tenant_ids: Iterable[str]) -> int:
        """Make lanes due now because their tenants are known and worth a try.

        One that somebody holds is due when it is given back. Many are done in portions.

        Args:
            tenant_ids: The provider's ids of the tenants.

        Returns:
            How many lanes with events there are.
        """
        woken, names = 0, iter(sorted(set(tenant_ids) - {""}))
        while portion := list(itertools.islice(names, _PORTION)):
            with self.database.write() as connection:
                woken += lane_rows.wake(connection, portion)
        return woken

    def erase(self, tenant_id: str, subject: str) -> int:
        """Erase the bodies of a person who was deleted for good.

        Events of theirs that are parked or in quarantine can change nothing any more, and are
        settled as `stale`.

        Args:
            tenant_id: The provider's id of the tenant.
            subject: The person's `sub`.

        Returns:
            How many events there were.
        """
        with self.database.write() as connection:
            erased = settling.erase(connection, tenant_id, subject)
        reach(Step.ERASED)
        return erased

    def show(self, number: int) -> Entry | None:
        """Return an event with its body, or None if there is none of this number."""
        with self.database.read() as connection:
            row = (
                connection.execute(_with_body().where(inbox.c.number == number))
                .mappings()
                .one_or_none()
            )
        return None if row is None else _entry(row)

    def retry(self, **filters: Unpack[Filters]) -> int:
        """Have events tried again now, out of quarantine too, in several transactions.

        Their lanes are woken, but for those of unknown tenants. Events that name no tenant stay.

        Args:
            **filters: Which events; without any, all that are parked or in quarantine.

        Returns:
            How many there were.
        """
        return self._each(settling.retry, filters, inbox.c.tenant_id != "")

    def discard(self, **filters: Unpack[Filters]) -> int:
        """Give up events that are parked or in quarantine, and erase their bodies, in portions.

        Args:
            **filters: Which events; without any, all that are parked or in quarantine.

        Returns:
            How many there were.
        """
        return self._each(settling.discard, filters)

    def _each(
        self,
        do: Callable[[Connection, dict[int, str]], int],
        filters: Filters,
        *conditions: ColumnElement[bool],
    ) -> int:
        done = after = 0
        wanted = [HELD, *conditions, *matching(filters)]
        while True:
            with self.database.write() as connection:
                chosen = settling.candidates(connection, wanted, _PORTION, after)
                if not chosen:
                    return done
                done += do(connection, chosen)
            after = max(chosen)

    def lanes(self) -> Sequence[LaneInfo]:
        """Return how every lane is, by tenant id."""
        with self.database.read() as connection:
            return lane_rows.inform(connection)

    def held(self, tenant_id: str) -> set[str]:
        """Return the ids of a tenant's events that the inbox has, in any state.

        The tenant's ledger must keep these: they may be applied again, and must be found there.
        """
        with self.database.read() as connection:
            query = select(inbox.c.event_id).where(inbox.c.tenant_id == tenant_id)
            return set(connection.scalars(query))

    def prune(
        self,
        *,
        bodies: float,
        ids: float,
        quarantine: float,
        expire: float = 30 * 86400.0,
        limit: int = 1000,
    ) -> Pruned:
        """Do a portion of what is due for old events; call again while there is more.

        Args:
            bodies: Seconds for which the bodies of applied events are kept.
            ids: Seconds for which applied and discarded events are known again.
            quarantine: Seconds for which events in quarantine are kept.
            expire: Seconds after which a parked event goes to quarantine, however often it was put
                off meanwhile; counted anew after `retry`.
            limit: How many events each of the four may change at most.
        """
        done = []
        for step, age in (
            (settling.expire, expire),
            (settling.forget_bodies, bodies),
            (settling.forget, ids),
            (settling.forget_quarantined, quarantine),
        ):
            with self.database.write() as connection:
                done.append(step(connection, age, limit))
            reach(Step.PRUNED)
        return Pruned(
            expired=done[0],
            bodies=done[1],
            ids=done[2],
            quarantined=done[3],
            more=max(done) >= limit,
        )

    def totals(self) -> Totals:
        """Return how full the inbox is; cheap, as it counts lanes and not events."""
        with self.database.read() as connection:
            return lane_rows.total(connection)

    def list(
        self, *, limit: int = 100, after: int = 0, **filters: Unpack[Filters]
    ) -> Sequence[Entry]:
        """Return events without their bodies, by number.

        Args:
            limit: How many at most.
            after: The number after which to go on.
            **filters: Which events; without any, all.
        """
        query = _without_body().where(inbox.c.number > after, *matching(filters))
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(inbox.c.number).limit(limit))
            return [_entry(row) for row in rows.mappings()]


_PLAIN: Final = tuple(column for column in inbox.c if column is not inbox.c.body)


def _with_body() -> Select[Any]:
    return select(*_PLAIN, inbox.c.body, NOW.label("now"))


def _without_body() -> Select[Any]:
    return select(*_PLAIN, null().label("body"), NOW.label("now"))


def _entry(row: RowMapping) -> Entry:
    values = dict(row)
    age = (values.pop("now") - values["received_at"]).total_seconds()
    return Entry(**(values | {"state": State(values["state"]), "age": max(0.0, age)}))
