"""Where the events of places in trouble wait: away from the others, within bounds of their own.

A place is apart while it fails or holds others up. It has a lane of its own there, and the lanes of
one database get so few turns at once that threads and connections are left to those who are well.
Bookkeeping only: the caller holds the lock, and does what a turn is for.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from tenantsync.tenants import Placement

__all__ = ["ApartLane", "ApartLanes"]

_JobT = TypeVar("_JobT")

_MOST_LANES: Final = 32


@dataclass(slots=True, eq=False)
class ApartLane(Generic[_JobT]):
    """What waits for one place.

    Args:
        place: The place.
        jobs: The events.
        due: Whether a turn was begun for it that no thread has come for yet.
    """

    place: Placement
    jobs: deque[_JobT] = field(default_factory=deque)
    due: bool = False


@dataclass(slots=True, eq=False)
class _Share(Generic[_JobT]):
    """The lanes of one database: how many have their turn, and which wait for one."""

    running: int = 0
    waiting: deque[ApartLane[_JobT]] = field(default_factory=deque)


class ApartLanes(Generic[_JobT]):
    """The lanes of places in trouble, and whose turn it is.

    Args:
        start: Has a lane's turn begin, on a thread; it ends with `pass_on`. It returns False where
            no thread is to be had.
        per_database: How many lanes of one database have their turn at once.
        max_waiting: How many more of them may wait for one, so that nobody waits long.
    """

    def __init__(
        self,
        start: Callable[[ApartLane[_JobT]], bool],
        *,
        per_database: int = 2,
        max_waiting: int = 4,
    ) -> None:
        self._start = start
        self._per_database = per_database
        self._max_waiting = max_waiting
        self._lanes: dict[Placement, ApartLane[_JobT]] = {}
        self._shares: dict[Hashable, _Share[_JobT]] = {}

    def __len__(self) -> int:
        """How many places have a lane here."""
        return len(self._lanes)

    def __contains__(self, place: object) -> bool:
        """Whether the place has a lane here."""
        return place in self._lanes

    def get(self, place: Placement) -> ApartLane[_JobT] | None:
        """Return the place's lane, or None if it has none."""
        return self._lanes.get(place)

    def has_room(self, place: Placement) -> bool:
        """Whether one more place of this database may come."""
        share = self._shares.get(place.database)
        crowd = 0 if share is None else share.running + len(share.waiting)
        return crowd < self._per_database + self._max_waiting and len(self._lanes) < _MOST_LANES

    def open(self, place: Placement, job: _JobT) -> bool:
        """Make a lane for the place; its turn comes at once, or when another's ends.

        Returns False, and makes none, where there is no thread for its turn.
        """
        lane = ApartLane(place, deque([job]))
        share = self._shares.get(place.database) or _Share()
        if share.running < self._per_database:
            if not self._begun(lane):
                return False
            share.running += 1
        else:
            share.waiting.append(lane)
        self._lanes[place] = lane
        self._shares[place.database] = share
        return True

    def pass_on(self, lane: ApartLane[_JobT]) -> ApartLane[_JobT] | None:
        """End a lane's turn: it goes if nothing waits in it, and else to the end of the line.

        Returns the lane whose turn it is where there is no other thread for it: the caller's is
        free now, and must take it.
        """
        share = self._shares[lane.place.database]
        if lane.jobs:
            share.waiting.append(lane)
        else:
            # A job that comes from now on finds no lane, and goes with all the others.
            del self._lanes[lane.place]
        if share.waiting:
            following = share.waiting.popleft()
            return None if self._begun(following) else following
        share.running -= 1
        if not share.running:
            del self._shares[lane.place.database]
        return None

    def _begun(self, lane: ApartLane[_JobT]) -> bool:
        lane.due = self._start(lane)
        return lane.due
