"""The moments on the way of an event at which a crash must do no harm.

Each is announced to Python's audit hooks (PEP 578), which costs next to nothing where there are
none. The chaos tests install one that kills the process there; a tracer may use them too.
"""

import sys
from enum import StrEnum

__all__ = ["AUDIT_EVENT", "Step", "reach"]

AUDIT_EVENT = "tenantsync.step"
"""Name of the audit event; its one argument is the value of a Step."""


class Step(StrEnum):
    """One named moment."""

    VERIFIED = "verified"
    """A door knows that the delivery is authentic and has read it."""
    TAKEN = "taken"
    """A writer has taken a batch; nothing is begun."""
    READ = "read"
    """The tenants' rows are read under their locks."""
    WRITTEN = "written"
    """Rows are written, not committed."""
    HOOKED = "hooked"
    """The application's hooks have run, nothing is committed."""
    COMMITTED = "committed"
    """The tenants' databases have it; nobody was told."""
    ANSWERED = "answered"
    """The outcome is known; the sender was not told."""
    PARKING = "parking"
    """Events are written to the inbox, not committed."""
    PARKED = "parked"
    """The inbox has them; nobody was told."""
    CLAIMED = "claimed"
    """A worker has leased a lane."""
    LOADED = "loaded"
    """A worker has read the lane's events."""
    DRAINED = "drained"
    """The tenant has the parked events; the inbox does not know."""
    SETTLING = "settling"
    """The inbox is told what became of parked events, not committed."""
    SETTLED = "settled"
    """The inbox knows what became of parked events; the lane is still leased."""
    RELEASED = "released"
    """The lane's lease was given back."""
    QUARANTINED = "quarantined"
    """An unreadable event is in quarantine; nobody was told."""
    ERASED = "erased"
    """The inbox holds no more bodies of a deleted person."""
    PROVISIONED = "provisioned"
    """A tenant was made because the provider announced it; its events still wait."""
    PRUNED = "pruned"
    """One portion of what is too old was removed."""


def reach(step: Step) -> None:
    """Tell the audit hooks that a step was reached."""
    sys.audit(AUDIT_EVENT, step.value)
