"""The integration API's answers about licences: who holds which, and how many are left."""

from typing import Any

from tenantsync.testing.calls import Call, Refused
from tenantsync.testing.delivery import iso
from tenantsync.testing.state import State
from tenantsync.testing.tables import SERVICE_DOMAIN, Subscription

__all__ = ["Seats"]


class Seats:
    """Makes the bodies. Whoever calls holds the state's lock.

    Args:
        state: The tables.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    def license_holders(self, call: Call) -> object:
        """Answer with who holds a seat of an application."""
        tenant_id, application_id = call.need("tenantId", "applicationId")
        call.may(tenant_id)
        rows = []
        for seat in self._state.seats.values():
            if (seat.tenant_id, seat.application_id) != (tenant_id, application_id):
                continue
            user = self._state.users[seat.user_id]
            names = [name for name in (user.given_name, user.family_name) if name]
            row: dict[str, Any] = {"userId": user.id, "userEmail": user.email or ""}
            if names:
                row["userName"] = " ".join(names)
            row["licenseTypeId"] = seat.license_type_id
            row["licenseTypeName"] = self._state.license_types[seat.license_type_id].name
            row["assignedAt"] = iso(seat.assigned_at)
            rows.append(row)
        return rows

    def user_licenses(self, call: Call) -> object:
        """Answer with a person's seats."""
        user_id, tenant_id = call.need("userId", "tenantId")
        call.may(tenant_id)
        rows = []
        for seat in self._state.seats.values():
            if (seat.tenant_id, seat.user_id) == (tenant_id, user_id):
                kind = self._state.license_types[seat.license_type_id]
                rows.append(
                    {
                        "id": seat.id,
                        "licenseTypeId": kind.id,
                        "licenseTypeName": kind.name,
                        "licenseTypeSlug": kind.slug,
                        "applicationId": seat.application_id,
                        "applicationName": self._state.applications[seat.application_id].name,
                        "assignedAt": iso(seat.assigned_at),
                    }
                )
        return rows

    def subscription_status(self, call: Call) -> object:
        """Answer with a tenant's subscriptions, and their seats."""
        (tenant_id,) = call.need("tenantId")
        call.may(tenant_id)
        wanted = call.query.get("applicationId")
        rows = []
        for one in self._state.subscriptions.values():
            if one.tenant_id != tenant_id or wanted not in (None, one.application_id):
                continue
            kind = self._state.license_types[one.license_type_id]
            used = self._used(one)
            rows.append(
                {
                    "id": one.id,
                    "applicationId": one.application_id,
                    "licenseType": kind.slug,
                    "licenseTypeName": kind.name,
                    "status": one.status,
                    "quantityPurchased": one.quantity,
                    "quantityAssigned": used,
                    "quantityAvailable": max(0, one.quantity - used),
                    "currentPeriodEnd": iso(one.ends_at),
                    "autoRenew": True,
                }
            )
        active = any(row["status"] == "ACTIVE" for row in rows)
        return {"hasActiveSubscription": active, "subscriptions": rows}

    def check_seats(self, call: Call) -> object:
        """Answer with how many seats a tenant has, of one application or of all.

        What is named `applicationId` is taken for a client id: an application's id is not found.
        """
        (tenant_id,) = call.need("tenantId")
        call.may(tenant_id)
        client_id = call.query.get("applicationId")
        mode, wanted = "UNKNOWN", None
        if client_id:
            found = self._state.credential(client_id)
            if found is None:
                raise Refused(404, f"Application with clientId {client_id} not found")
            mode, wanted = found[0].licensing, found[0].id
        active = [
            (one, self._used(one))
            for one in self._state.subscriptions.values()
            if (one.tenant_id, one.status) == (tenant_id, "ACTIVE")
            and wanted in (None, one.application_id)
        ]
        owned, used = sum(one.quantity for one, _ in active), sum(used for _, used in active)
        return {
            "memberCount": self._people(tenant_id),
            "totalSeatsOwned": owned,
            "totalSeatsAssigned": used,
            "totalSeatsAvailable": owned - used,
            "licensingMode": mode,
            "unlimited": False,
            "subscriptions": [
                {
                    "applicationId": one.application_id,
                    "licenseType": self._state.license_types[one.license_type_id].slug,
                    "seatsOwned": one.quantity,
                    "seatsAssigned": taken,
                    "seatsAvailable": one.quantity - taken,
                }
                for one, taken in active
            ],
        }

    def _used(self, subscription: Subscription) -> int:
        here = (subscription.tenant_id, subscription.license_type_id)
        seats = self._state.seats.values()
        return sum((seat.tenant_id, seat.license_type_id) == here for seat in seats)

    def _people(self, tenant_id: str) -> int:
        """Return how many active members are no service accounts."""
        active = [one for one in self._state.members(tenant_id) if one.status == "ACTIVE"]
        addresses = [self._state.users[one.user_id].email or "" for one in active]
        return sum(not address.endswith(SERVICE_DOMAIN) for address in addresses)
