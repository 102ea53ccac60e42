"""The bodies of the integration API: who is where, in the provider's keys and their order.

The quirks stand in `docs/reference/provider.md`.
"""

from collections.abc import Callable, Iterable
from typing import Any

from tenantsync.testing.calls import Call, Refused
from tenantsync.testing.delivery import iso
from tenantsync.testing.seats import Seats
from tenantsync.testing.state import State
from tenantsync.testing.tables import Application, Membership, Tenant, User

__all__ = ["Call", "Listing", "Refused"]

_STATUSES = ("ACTIVE", "INVITED", "SUSPENDED")


class Listing:
    """Makes the bodies. Whoever calls holds the state's lock.

    Args:
        state: The tables.
        clock: Unix seconds.
    """

    def __init__(self, state: State, clock: Callable[[], float]) -> None:
        self._state = state
        self._clock = clock
        seats = Seats(state)
        self._endpoints: dict[str, Callable[[Call], object]] = {
            "tenant-memberships": self._tenant_memberships,
            "application-memberships": self._application_memberships,
            "user-tenants": self._user_tenants,
            "validate-membership": self._validate_membership,
            "license-holders": seats.license_holders,
            "user-licenses": seats.user_licenses,
            "subscription-status": seats.subscription_status,
            "check-seats": seats.check_seats,
            "invitations": self._invitations,
            "tenant-roles": self._tenant_roles,
            "user-permissions": self._user_permissions,
        }

    def knows(self, name: str) -> bool:
        """Whether there is such an endpoint."""
        return name in self._endpoints or name.startswith("roles/")

    def answer(self, name: str, call: Call) -> object:
        """Return an endpoint's answer as a JSON value, or refuse."""
        if name.startswith("roles/"):
            return self._roles(name.removeprefix("roles/"))
        return self._endpoints[name](call)

    def _tenant_memberships(self, call: Call) -> object:
        (tenant_id,) = call.need("tenantId")
        call.may(tenant_id)
        tenant = self._tenant(tenant_id)
        # Only this one word; anything else means no roles.
        with_roles = call.query.get("includeRoles") == "true"
        rows = [
            self._member(one) | {"roles": self._app_roles(one) if with_roles else []}
            for one in self._chosen(self._state.members(tenant_id), call)
        ]
        return {
            "tenantId": tenant.id,
            "tenantName": tenant.name,
            "tenantSlug": tenant.slug,
            "initiateLoginUri": tenant.initiate_login_uri,
            "memberships": rows,
            "totalCount": len(rows),
        }

    def _application_memberships(self, call: Call) -> object:
        (client_id,) = call.need("clientId")
        # Also where a tenant is named: the documentation has it otherwise.
        call.may_all()
        application = self._application(client_id)
        tenant_id, user_id = call.query.get("tenantId"), call.query.get("userId")
        rows = []
        for one in self._chosen(self._state.memberships.values(), call):
            roles = [
                {"id": role.id, "name": role.name, "slug": role.slug}
                for role_id in one.role_ids
                if (role := application.roles.get(role_id)) is not None
            ]
            if roles and tenant_id in (None, one.tenant_id) and user_id in (None, one.user_id):
                where = _tenant_keys(self._state.tenants[one.tenant_id])
                rows.append(self._member(one) | {"tenant": where, "roles": roles})
        return {
            "applicationId": application.id,
            "applicationName": application.name,
            "clientId": client_id,
            "memberships": rows,
            "totalCount": len(rows),
        }

    def _user_tenants(self, call: Call) -> object:
        (user_id,) = call.need("userId")
        call.may_all()
        if user_id not in self._state.users:
            raise Refused(404, "User not found")
        rows = [
            {
                **_dated(one),
                "tenant": _tenant_keys(self._state.tenants[one.tenant_id]),
                "roles": self._app_roles(one),
            }
            for one in self._state.memberships.values()
            if one.user_id == user_id
        ]
        return {"userId": user_id, "memberships": rows, "totalCount": len(rows)}

    def _validate_membership(self, call: Call) -> object:
        user_id, tenant_id = call.need("userId", "tenantId")
        call.may(tenant_id)
        one = self._state.membership(tenant_id, user_id)
        if one is None:
            return {"isMember": False, "membership": None}
        keys = _dated(one)
        del keys["createdAt"]
        return {"isMember": one.status == "ACTIVE", "membership": keys}

    def _invitations(self, call: Call) -> object:
        (tenant_id,) = call.need("tenantId")
        call.may(tenant_id)
        tenant, now = self._tenant(tenant_id), int(self._clock() * 1000)
        rows = []
        for one in self._state.invitations.values():
            membership = self._state.memberships.get(one.membership_id)
            if membership is None or membership.tenant_id != tenant_id or one.expires_at <= now:
                continue
            slug = membership.tenant_roles[0] if membership.tenant_roles else "member"
            by = self._state.users.get(one.invited_by or "")
            rows.append(
                {
                    "id": one.id,
                    "email": self._state.users[membership.user_id].email,
                    "role": self._state.tenant_roles[slug].name,
                    "expiresAt": iso(one.expires_at),
                    "createdAt": iso(one.created_at),
                    "invitedBy": None if by is None else _user_keys(by),
                }
            )
        return {
            "tenantId": tenant.id,
            "tenantName": tenant.name,
            "invitations": rows,
            "totalCount": len(rows),
        }

    def _tenant_roles(self, call: Call) -> object:
        roles = sorted(self._state.tenant_roles.values(), key=lambda role: role.name)
        return {
            "roles": [
                {
                    "id": role.id,
                    "name": role.name,
                    "slug": role.slug,
                    "description": role.description,
                    "isSystem": role.is_system,
                    "permissions": list(role.permissions),
                }
                for role in roles
            ]
        }

    def _roles(self, client_id: str) -> object:
        return {
            "roles": [
                {
                    "id": role.id,
                    "name": role.name,
                    "slug": role.slug,
                    "description": role.description,
                }
                for role in self._application(client_id).roles.values()
            ]
        }

    def _user_permissions(self, call: Call) -> object:
        user_id, tenant_id = call.need("userId", "tenantId")
        call.may(tenant_id)
        one = self._state.membership(tenant_id, user_id)
        roles = [] if one is None else [self._state.role(role_id) for role_id in one.role_ids]
        return {"roles": [{"id": r.id, "name": r.name, "slug": r.slug} for r in roles]}

    # -- parts

    def _tenant(self, tenant_id: str) -> Tenant:
        tenant = self._state.tenants.get(tenant_id)
        if tenant is None:
            raise Refused(404, "Tenant not found")
        return tenant

    def _application(self, client_id: str) -> Application:
        found = self._state.credential(client_id)
        if found is None:
            raise Refused(404, "Application not found")
        return found[0]

    def _chosen(self, memberships: Iterable[Membership], call: Call) -> list[Membership]:
        status = call.query.get("status")
        if status is not None and status not in _STATUSES:
            # The database refuses what nobody checked before.
            raise Refused(500, "Internal server error")
        chosen = [one for one in memberships if status in (None, one.status)]
        return sorted(chosen, key=lambda one: one.created_at)

    def _member(self, one: Membership) -> dict[str, Any]:
        return _dated(one) | {"user": _user_keys(self._state.users[one.user_id])}

    def _app_roles(self, one: Membership) -> list[dict[str, str]]:
        return [
            {
                "id": role.id,
                "name": role.name,
                "slug": role.slug,
                "applicationId": role.application_id,
                "applicationName": self._state.applications[role.application_id].name,
            }
            for role in map(self._state.role, one.role_ids)
        ]


def _user_keys(user: User) -> dict[str, str | None]:
    return {
        "id": user.id,
        "email": user.email,
        "givenName": user.given_name,
        "familyName": user.family_name,
    }


def _tenant_keys(tenant: Tenant) -> dict[str, str | None]:
    return {
        "id": tenant.id,
        "name": tenant.name,
        "slug": tenant.slug,
        "initiateLoginUri": tenant.initiate_login_uri,
    }


def _dated(one: Membership) -> dict[str, Any]:
    return {
        "id": one.id,
        "status": one.status,
        "joinedAt": None if one.joined_at is None else iso(one.joined_at),
        "createdAt": iso(one.created_at),
    }
