"""What a local AuthVital wants delivered and nobody took yet: take, hold, drop or double it."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tenantsync.testing.delivery import Mode, jsonb

__all__ = ["Emission", "Outbox", "Which"]


@dataclass(frozen=True, slots=True)
class Emission:
    """One event that was emitted for one application, or for the system webhooks.

    Args:
        channel: `sync` or `system`.
        type: The event type.
        tenant_id: The tenant in which it happened.
        application_id: Whose webhook hears of it; for a system event the one it is about, or "".
        event: The whole event as it is stored.
        row: The id of its row for the Pub/Sub topic, empty where it has none yet.
    """

    channel: Literal["sync", "system"]
    type: str
    tenant_id: str
    application_id: str
    event: Mapping[str, Any] = field(repr=False)
    row: str = ""

    @property
    def data(self) -> Mapping[str, Any]:
        """The payload."""
        data: Mapping[str, Any] = self.event["data"]
        return data

    def body(self, mode: Mode = "broker") -> bytes:
        """Return the bytes that are sent.

        Only system events differ by mode: the broker reads them back out of the database, which
        orders keys; the legacy core sends `event, timestamp, data` as it made them.

        Args:
            mode: Who sends.
        """
        if self.channel == "system" and mode == "legacy":
            return jsonb(self.event, ordered=False)
        return jsonb(self.event)


Which = Callable[[Emission], bool]
"""Chooses emissions; None, where it may stand, chooses all."""


class Outbox:
    """The emissions that wait, oldest first. May be used from any thread.

    AuthVital promises neither order nor a single delivery, so a test may do anything with them:

        for emission in authvital.outbox.take():
            authvital.send(authvital.delivery(emission.body()), url)
    """

    def __init__(self) -> None:
        self._waiting: list[Emission] = []
        self._held: list[Emission] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Emission]:
        with self._lock:
            return iter(list(self._waiting))

    @property
    def types(self) -> list[str]:
        """The types of what waits, in order."""
        return [emission.type for emission in self]

    def put(self, *emissions: Emission) -> None:
        """Add emissions at the end: new ones, or some that were taken."""
        with self._lock:
            self._waiting += emissions

    def take(self, which: Which | None = None, *, limit: int | None = None) -> list[Emission]:
        """Take emissions out, oldest first, and return them.

        Args:
            which: Chooses them; None takes all.
            limit: How many at most.
        """
        with self._lock:
            taken = _chosen(self._waiting, which)[:limit]
            self._waiting = _without(self._waiting, taken)
            return taken

    def drop(self, which: Which | None = None, *, limit: int | None = None) -> int:
        """Lose emissions, as AuthVital does after its fifth attempt; return how many."""
        return len(self.take(which, limit=limit))

    def double(self, which: Which | None = None, *, limit: int | None = None) -> int:
        """Let emissions be sent a second time, with the same ids, after all that waits now."""
        with self._lock:
            again = _chosen(self._waiting, which)[:limit]
            self._waiting += again
            return len(again)

    def hold(self, which: Which | None = None, *, limit: int | None = None) -> int:
        """Put emissions aside until `release`: late deliveries; return how many."""
        held = self.take(which, limit=limit)
        with self._lock:
            self._held += held
        return len(held)

    def release(self) -> int:
        """Let everything that is held wait again, after what waits already; return how many."""
        with self._lock:
            released, self._held = self._held, []
            self._waiting += released
            return len(released)


def _chosen(waiting: list[Emission], which: Which | None) -> list[Emission]:
    return list(waiting) if which is None else [one for one in waiting if which(one)]


def _without(waiting: list[Emission], taken: list[Emission]) -> list[Emission]:
    # By identity: a doubled emission is there twice, and one of the two may stay.
    counts: dict[int, int] = {}
    for one in taken:
        counts[id(one)] = counts.get(id(one), 0) + 1
    left = []
    for one in waiting:
        if counts.get(id(one), 0):
            counts[id(one)] -= 1
        else:
            left.append(one)
    return left
