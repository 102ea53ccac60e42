"""Takes a whole list into a tenant's place: a portion at a time, and around those it refuses.

A constraint or trigger of the application's own may refuse what a list says of one person. Then the
portion is halved until that person is alone, and everybody else is taken.
"""

from collections.abc import Callable, Sequence
from typing import Final

from tenantsync.errors import EventRefused, TenantSyncError
from tenantsync.sync.evidence import Evidence, Snapshot
from tenantsync.sync.mirror import Mirror
from tenantsync.sync.survey import portions
from tenantsync.tenants import Placement

__all__ = ["Taking"]

_MOST_REFUSED: Final = 500
"""So many of one list may be refused: each of them costs a dozen transactions."""


class Taking:
    """Takes one list, and counts what that does.

    Args:
        mirror: The mirrored people.
        placement: Whose place.
        take_away: Whether people may lose access by it.
        changed: Told of everybody whose row was changed, after the commit.

    Attributes:
        added: How many were not known.
        changed: Of how many something was different.
        unchanged: How many are as they were, or are known better from newer events.
        held_back: How many were left as they are because nothing may be taken away.
        refused: How many the place did not take.
        confirmed: Whether everybody in the list who has a row has a clock of the list now. Where
            somebody has not, the list must not count as one in which they could be missing.
    """

    def __init__(
        self,
        mirror: Mirror,
        placement: Placement,
        *,
        take_away: bool,
        changed: Callable[[str], object] | None = None,
    ) -> None:
        self.added = self.changed = self.unchanged = self.held_back = self.refused = 0
        self.confirmed = True
        self._mirror = mirror
        self._placement = placement
        self._take_away = take_away
        self._tell = changed
        self._reason = ""

    @property
    def why_refused(self) -> str:
        """What happened to those who were refused, and what to do, without their data."""
        people = "1 person" if self.refused == 1 else f"{self.refused} people"
        return (
            f"{people} of the list could not be written: a constraint or trigger of the "
            f"application's own in {self._placement} refuses what the list says of them"
            f"{self._reason}; `tenantsync reconcile --dry-run` names them: change the constraint "
            "or their data, then reconcile again"
        )

    def take(self, snapshot: Snapshot, size: int, done: Callable[[int, int], object]) -> None:
        """Take a list.

        Args:
            snapshot: The list.
            size: How many people are taken in one transaction.
            done: Told after each portion of how many people are done, and of how many.

        Raises:
            TenantSyncError: The place cannot be written now, or refuses very many people.
        """
        number = 0
        for portion in portions(snapshot, size):
            self._take([snapshot[sub] for sub in portion])
            number += len(portion)
            done(number, len(snapshot))

    def _take(self, evidence: Sequence[Evidence]) -> None:
        try:
            weighed = self._mirror.take(
                self._placement, evidence, take_away=self._take_away, changed=self._tell
            )
        except TenantSyncError as error:
            if not error.blames_event:
                raise
            middle = len(evidence) // 2
            if middle:
                self._take(evidence[:middle])
                self._take(evidence[middle:])
            else:
                self._leave_out(evidence[0], error)
            return
        self.added += weighed.added
        self.changed += weighed.changed
        self.unchanged += weighed.unchanged
        self.held_back += weighed.held_back

    def _leave_out(self, evidence: Evidence, error: TenantSyncError) -> None:
        self.refused += 1
        self._reason = self._reason or _reason_of(error)
        if self.refused > _MOST_REFUSED:
            raise EventRefused(f"at least {self.why_refused}") from error
        try:
            self._mirror.take(self._placement, [evidence.sighting()])
        except TenantSyncError as again:
            if not again.blames_event:
                raise
            self.confirmed = False


def _reason_of(error: TenantSyncError) -> str:
    """Return the class of the driver's error: its words would repeat the values of rows."""
    cause = error.__cause__
    found = getattr(cause, "orig", None) or cause
    return "" if found is None else f" ({type(found).__name__})"
