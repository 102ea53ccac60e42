"""How one process tells others that there is something to drain, without carrying any of it.

A signal says "look into the inbox", and nothing else. It may be lost, doubled or late: the inbox is
the truth, and every worker looks into it by itself from time to time.
"""

from collections.abc import Callable
from typing import Protocol

__all__ = ["Signals"]


class Signals(Protocol):
    """A way to wake workers, wherever they run; safe to use from any thread."""

    def publish(self, tenant_id: str) -> None:
        """Say that a tenant's events may be drained now. Never blocks, and never raises.

        Args:
            tenant_id: As AuthVital spells it, at most 255 bytes: it may hold spaces, dots and
                wildcards.
        """

    def listen(self, wake: Callable[[str], None]) -> None:
        """Begin to call a function with the tenant id of each signal that comes in.

        Returns at once, whether or not the other side can be reached.

        Args:
            wake: Quick, never raises, and may be called from any thread.
        """

    def close(self) -> None:
        """Stop listening and publishing. What was not published yet may be dropped."""
