"""What the inbox holds against a person: denials that were accepted and are not applied yet."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import BindParameter, bindparam, exists, select

from tenantsync.control.database import ControlDatabase, ControlMissing
from tenantsync.control.settling import HELD
from tenantsync.control.tables import inbox, lanes

__all__ = ["Denials", "Waiting"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in one tenant's lane.

    Args:
        anything: Whether it holds any event, parked or in quarantine.
        denied: Whether one of them is a denial for the person who was asked about.
    """

    anything: bool
    denied: bool


class Denials:
    """Asks whether a denial for a person waits in the inbox; one short statement.

    An event in quarantine counts like a parked one: it was accepted and never applied, and only an
    operator can say that it does not matter.

    Args:
        database: The control database.
        types: The types of events that deny.
    """

    def __init__(self, database: ControlDatabase, types: Collection[str]) -> None:
        self._database = database
        lane: BindParameter[str] = bindparam("tenant_id")
        person: BindParameter[str] = bindparam("subject")
        # Whether there is a lane is one look at a primary key. Only where there is one, its events
        # are searched for the person's, which is one look at an index.
        busy = exists().where(lanes.c.tenant_id == lane, lanes.c.waiting + lanes.c.quarantined > 0)
        denied = exists().where(
            *(inbox.c.tenant_id == lane, inbox.c.subject == person),
            *(HELD, inbox.c.type.in_(sorted(types))),
        )
        self._query = select(busy, busy & denied)

    def waiting(self, tenant_id: str, subject: str) -> Waiting:
        """Return what waits, as of now.

        Args:
            tenant_id: The provider's id of the tenant.
            subject: The person's `sub`.

        Raises:
            ControlUnavailable: The control database did not answer.
        """
        try:
            with self._database.read() as connection:
                anything, denied = connection.execute(
                    self._query, {"tenant_id": tenant_id, "subject": subject}
                ).one()
        except ControlMissing:
            return Waiting(anything=False, denied=False)  # nothing was ever parked
        return Waiting(bool(anything), bool(denied))
