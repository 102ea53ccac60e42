"""Whose turn it is to read or change a local AuthVital's tables."""

import threading

__all__ = ["Turns"]


class Turns:
    """A lock that its holder may take again, and that numbers its turns.

    A turn lasts from the first taking to the last giving back: all that one action does is one
    turn, whatever other actions it is made of. Entering it gives the number.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._turn = 0

    def __enter__(self) -> int:
        self._lock.acquire()
        if self._depth == 0:
            self._turn += 1
        self._depth += 1
        return self._turn

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        self._lock.release()
