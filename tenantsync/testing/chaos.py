"""An order that nobody promised: what is sent comes late, twice, and after what happened later."""

import random
from typing import Generic, TypeVar

__all__ = ["Chaos"]

_T = TypeVar("_T")


class Chaos(Generic[_T]):
    """Decides what of a sequence goes out when: the same way for the same seed and sequence.

    Everything goes out at least once, at the latest with `rest`. Nothing waits for real time: what
    is late comes after things that were sent after it.

    Args:
        seed: Any text or number.
        late: How likely something is put aside, from 0 to 1.
        again: How likely what goes out comes once more later on, from 0 to 1.
    """

    def __init__(self, seed: int | str, *, late: float = 0.5, again: float = 0.3) -> None:
        self._random = random.Random(str(seed))
        self._late = late
        self._again = again
        self._held: list[_T] = []

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._held)

    def send(self, one: _T) -> list[_T]:
        """Take one in, and return what goes out now, in this order; often nothing."""
        due: list[_T] = []
        kept: list[_T] = []
        for each in (*self._held, one):
            (kept if self._random.random() < self._late else due).append(each)
        self._held = kept
        self._random.shuffle(due)
        self._held += [out for out in due if self._random.random() < self._again]
        return due

    def rest(self) -> list[_T]:
        """Return all that waits, in an order of its own; some of it twice."""
        due, self._held = self._held, []
        due += [out for out in due if self._random.random() < self._again]
        self._random.shuffle(due)
        return due
