"""How a local AuthVital tells of what happened: to one application, or to the system webhooks."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tenantsync.testing.delivery import iso
from tenantsync.testing.outbox import Emission, Outbox
from tenantsync.testing.state import State
from tenantsync.testing.tables import Application, Membership, Role, Seat, User

__all__ = ["Telling", "role_keys", "told"]


class Telling:
    """The tables, the outbox, and what goes from one to the other.

    Args:
        state: The tables.
        outbox: Where the events of the webhooks go.
        clock: Unix seconds.
        new_id: Makes event ids.
        topic: Where those of the Pub/Sub topic go; None makes one that nobody empties.
    """

    def __init__(
        self,
        state: State,
        outbox: Outbox,
        *,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        topic: Outbox | None = None,
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._topic = Outbox() if topic is None else topic
        self._clock = clock
        self._new_id = new_id
        self._turn = self._at = 0

    def _tell(
        self,
        event_type: str,
        tenant_id: str,
        application: Application | None,
        data: Mapping[str, Any],
    ) -> None:
        """Tell one application; where none is concerned, the topic may still hear of it."""
        heard = application is not None and application.hears(event_type)
        if not (heard or self._state.publishes(event_type)):
            return
        application_id = "" if application is None else application.id
        event = {
            "id": self._new_id(),
            "type": event_type,
            "timestamp": self._iso(),
            "tenant_id": tenant_id,
            "application_id": application_id,
            "data": dict(data),
        }
        self._put(Emission("sync", event_type, tenant_id, application_id, event), heard=heard)

    def _tell_systems(
        self, event_type: str, tenant_id: str, data: Mapping[str, Any], application_id: str = ""
    ) -> None:
        heard = any(event_type in hook.events for hook in self._state.system_hooks)
        event = {"event": event_type, "timestamp": self._iso(), "data": dict(data)}
        self._put(Emission("system", event_type, tenant_id, application_id, event), heard=heard)

    def _put(self, emission: Emission, *, heard: bool) -> None:
        if heard:
            self._outbox.put(emission)
        if self._state.publishes(emission.type):
            self._topic.put(replace(emission, row=self._state.ids.cuid()))

    def _tell_granted(
        self,
        tenant_id: str,
        user: User,
        application: Application,
        access_type: str,
        *,
        by: str | None = None,
        role: Role | None = None,
        seat: Seat | None = None,
    ) -> None:
        data = {**self._about(tenant_id, user, application), "access_type": access_type}
        if by is not None:
            data["granted_by_id"] = by
        if seat is not None:
            data["license_assignment_id"] = seat.id
        if role is not None:
            data |= role_keys(role)
        self._tell_systems("tenant.app.granted", tenant_id, data, application.id)

    def _tell_revoked(
        self, tenant_id: str, user: User, application: Application, *, by: str | None
    ) -> None:
        data = self._about(tenant_id, user, application)
        if by is not None:
            data["revoked_by_id"] = by
        self._tell_systems("tenant.app.revoked", tenant_id, data, application.id)

    def _about(self, tenant_id: str, user: User, application: Application) -> dict[str, Any]:
        about = {
            "tenant_id": tenant_id,
            "tenant_slug": self._state.tenants[tenant_id].slug,
            "user_id": user.id,
            "user_email": user.email,
            "application_id": application.id,
            "application_name": application.name,
            "application_slug": application.slug,
        }
        return told(about)

    def _member(self, tenant_id: str, sub: str) -> Membership:
        membership = self._state.membership(tenant_id, sub)
        if membership is None:
            raise LookupError(
                f"{sub!r} is no member of the tenant {tenant_id!r}: let them join first"
            )
        return membership

    def _now(self) -> int:
        # One reading for each action: what AuthVital tells of one often bears one millisecond, and
        # a clock that ticks with each reading would never show a receiver such a tie.
        with self._state.lock as turn:
            if turn != self._turn:
                self._turn, self._at = turn, int(self._clock() * 1000)
            return self._at

    def _iso(self) -> str:
        return iso(self._now())


def role_keys(role: Role | None) -> dict[str, str]:
    """Return a role as payloads spell it; no role is three empty texts."""
    if role is None:
        return {"role_id": "", "role_name": "", "role_slug": ""}
    return {"role_id": role.id, "role_name": role.name, "role_slug": role.slug}


def told(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known: JavaScript leaves a key out whose value is undefined."""
    return {key: value for key, value in values.items() if value is not None}
