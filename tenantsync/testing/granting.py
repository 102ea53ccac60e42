"""What a local AuthVital does with access, roles, seats and subscriptions, and whom it tells.

Each method is one path through the provider. Which event it makes, and for whom, stands in
`docs/how-to/test-with-the-emulator.md`; several paths to one end differ in both.
"""

from collections.abc import Iterable
from typing import Any

from tenantsync.testing.tables import (
    Access,
    Application,
    LicenseType,
    Membership,
    Role,
    Seat,
    Subscription,
    User,
)
from tenantsync.testing.telling import Telling, role_keys

__all__ = ["Granting"]


class Granting(Telling):
    """Access to applications, and the seats that carry it."""

    # -- the members page

    def grant_access(
        self, tenant_id: str, sub: str, application_id: str, *, by: str | None = None
    ) -> None:
        """Grant access on the members page; told also when it was granted before.

        Args:
            tenant_id: Where.
            sub: To whom.
            application_id: To what; its default role is given to whoever has none.
            by: The `sub` of whoever grants.

        Raises:
            LookupError: The person is no member, or no seat is to be had.
        """
        with self._state.lock:
            membership = self._member(tenant_id, sub)
            application = self._state.applications[application_id]
            user = self._state.users[sub]
            seat = None
            if application.licensing == "PER_SEAT" and not self._seat(tenant_id, sub, application):
                seat = self._take_seat(tenant_id, sub, self._license_type(tenant_id, application))
                self._tell("license.assigned", tenant_id, application, self._license(user, seat))
            if self._open(tenant_id, sub, application):
                self._tell_granted(tenant_id, user, application, "GRANTED", by=by, seat=seat)
            role = self._role_of(membership, application) or self._default_role(application)
            if role is not None:
                _give(membership, application, role)
            data = {**_who(user, membership), **_names(user), **role_keys(role)}
            self._tell("app_access.granted", tenant_id, application, data)

    def revoke_access(
        self, tenant_id: str, sub: str, application_id: str, *, by: str | None = None
    ) -> None:
        """Revoke access on the members page, with seat and role; told also if there was none.

        Args:
            tenant_id: Where.
            sub: Whose.
            application_id: To what.
            by: The `sub` of whoever revokes.

        Raises:
            LookupError: The person is no member.
        """
        with self._state.lock:
            membership = self._member(tenant_id, sub)
            application = self._state.applications[application_id]
            user = self._state.users[sub]
            seat = self._seat(tenant_id, sub, application)
            if seat is not None:
                del self._state.seats[seat.id]
                data = {"assignment_id": seat.id, "sub": sub, "email": user.email}
                self._tell("license.revoked", tenant_id, application, data)
            _take_roles(membership, application)
            had = self._close(tenant_id, sub, application)
            self._tell("app_access.revoked", tenant_id, application, _who(user, membership))
            if had:
                self._tell_revoked(tenant_id, user, application, by=by)

    def set_app_role(self, tenant_id: str, sub: str, application_id: str, slug: str) -> None:
        """Set a member's role in an application on the members page.

        Raises:
            LookupError: The person is no member, or the application has no such role.
        """
        with self._state.lock:
            membership = self._member(tenant_id, sub)
            application = self._state.applications[application_id]
            user = self._state.users[sub]
            previous = self._role_of(membership, application)
            role = self._named_role(application, slug)
            _give(membership, application, role)
            data = {
                **_who(user, membership),
                **_names(user),
                **role_keys(role),
                **{f"previous_{key}": value for key, value in role_keys(previous).items()},
            }
            self._tell("app_access.role_changed", tenant_id, application, data)

    # -- paths that tell the application nothing

    def replace_app_roles(
        self, tenant_id: str, sub: str, application_id: str, slugs: Iterable[str]
    ) -> None:
        """Replace a member's roles through the integration API or as super-admin: silent.

        Raises:
            LookupError: The person is no member, or the application has no such role.
        """
        with self._state.lock:
            membership = self._member(tenant_id, sub)
            application = self._state.applications[application_id]
            roles = [self._named_role(application, slug) for slug in slugs]
            _take_roles(membership, application)
            membership.role_ids += [role.id for role in roles]

    def grant_by_api(
        self, tenant_id: str, sub: str, application_id: str, *, by: str | None = None
    ) -> None:
        """Grant access through `/api/tenants/:id/access`: told on the system channel only."""
        with self._state.lock:
            application = self._state.applications[application_id]
            self._open(tenant_id, sub, application)
            user = self._state.users[sub]
            self._tell_granted(tenant_id, user, application, "GRANTED", by=by)

    def revoke_by_api(
        self, tenant_id: str, sub: str, application_id: str, *, by: str | None = None
    ) -> None:
        """Revoke access through `/api/tenants/:id/access`: told on the system channel only."""
        with self._state.lock:
            application = self._state.applications[application_id]
            self._close(tenant_id, sub, application)
            self._tell_revoked(tenant_id, self._state.users[sub], application, by=by)

    # -- the licence portal

    def assign_seat(
        self, tenant_id: str, sub: str, license_type_id: str, *, by: str | None = None
    ) -> Seat:
        """Assign a seat in the licence portal; access that is new comes with it, a role does not.

        Raises:
            LookupError: No seat of this type is to be had.
        """
        with self._state.lock:
            kind = self._state.license_types[license_type_id]
            application = self._state.applications[kind.application_id]
            user = self._state.users[sub]
            seat = self._take_seat(tenant_id, sub, kind)
            if self._open(tenant_id, sub, application):
                data = {
                    "sub": sub,
                    "email": user.email,
                    "given_name": user.given_name,
                    "family_name": user.family_name,
                    **role_keys(None),
                    **_kind(kind),
                }
                self._tell("app_access.granted", tenant_id, application, data)
                self._tell_granted(tenant_id, user, application, "GRANTED", by=by, seat=seat)
            self._tell("license.assigned", tenant_id, application, self._license(user, seat))
            return seat

    def revoke_seat(self, seat_id: str, *, by: str | None = None) -> None:
        """Take a seat away in the licence portal, and access with it; the role stays."""
        with self._state.lock:
            seat = self._state.seats.pop(seat_id)
            user = self._state.users[seat.user_id]
            application = self._state.applications[seat.application_id]
            if self._close(seat.tenant_id, user.id, application):
                self._tell_revoked(seat.tenant_id, user, application, by=by)
            data = {
                "sub": user.id,
                "email": user.email,
                "given_name": user.given_name,
                "family_name": user.family_name,
                **_kind(self._state.license_types[seat.license_type_id]),
            }
            self._tell("app_access.revoked", seat.tenant_id, application, data)
            data = {"assignment_id": seat.id, "sub": user.id, "email": user.email}
            self._tell("license.revoked", seat.tenant_id, application, data)

    def change_seat(self, seat_id: str, license_type_id: str) -> None:
        """Change the type of a seat in the licence portal; the assignment keeps its id."""
        with self._state.lock:
            seat = self._state.seats[seat_id]
            previous = self._state.license_types[seat.license_type_id]
            seat.license_type_id = license_type_id
            data = {
                **self._license(self._state.users[seat.user_id], seat),
                **{f"previous_{key}": value for key, value in _kind(previous).items()},
            }
            application = self._state.applications[seat.application_id]
            self._tell("license.changed", seat.tenant_id, application, data)

    def revoke_all_seats(self, tenant_id: str, sub: str) -> None:
        """Revoke all licences of a person: told for every access row there ever was."""
        with self._state.lock:
            user = self._state.users[sub]
            for access in self._state.access.values():
                if (access.tenant_id, access.user_id) == (tenant_id, sub):
                    access.active = False
                    data = {
                        "sub": sub,
                        "email": user.email,
                        "given_name": user.given_name,
                        "family_name": user.family_name,
                    }
                    application = self._state.applications[access.application_id]
                    self._tell("app_access.revoked", tenant_id, application, data)
            for seat in list(self._state.seats.values()):
                if (seat.tenant_id, seat.user_id) == (tenant_id, sub):
                    del self._state.seats[seat.id]
                    data = {"assignment_id": seat.id, "sub": sub, "email": user.email}
                    application = self._state.applications[seat.application_id]
                    self._tell("license.revoked", tenant_id, application, data)

    # -- subscriptions

    def subscribe(self, tenant_id: str, license_type_id: str, *, quantity: int = 1) -> Subscription:
        """Subscribe a tenant; only its first subscription of the application is told of."""
        with self._state.lock:
            kind = self._state.license_types[license_type_id]
            application = self._state.applications[kind.application_id]
            first = not any(
                (old.tenant_id, old.application_id) == (tenant_id, application.id)
                for old in self._state.subscriptions.values()
            )
            new = Subscription(self._state.ids.cuid(), tenant_id, application.id, kind.id, quantity)
            self._state.subscriptions[new.id] = new
            if first:
                data = {
                    "subscription_id": new.id,
                    "tenant_id": tenant_id,
                    "application_id": application.id,
                    "application_name": application.name,
                    **_kind(kind),
                    "quantity_purchased": quantity,
                    "status": new.status,
                }
                self._tell_systems("tenant.app.granted", tenant_id, data, application.id)
            return new

    def end_subscription(self, subscription_id: str) -> None:
        """End a subscription, and everybody's access with it: silent."""
        with self._state.lock:
            ended = self._state.subscriptions[subscription_id]
            ended.status = "CANCELED"
            here = (ended.tenant_id, ended.application_id)
            for seat in list(self._state.seats.values()):
                if (seat.tenant_id, seat.license_type_id) == (here[0], ended.license_type_id):
                    del self._state.seats[seat.id]
            if any(left.id == here[1] for left in self._state.subscribed(here[0])):
                return
            for access in self._state.access.values():
                if (access.tenant_id, access.application_id) == here:
                    access.active = False

    # -- what the paths share

    def _grant_by_itself(self, membership: Membership, *, by: str | None = None) -> None:
        """Grant what comes with being a member: told on the system channel only."""
        user = self._state.users[membership.user_id]
        done: set[str] = set()
        for application in self._state.subscribed(membership.tenant_id):
            if application.licensing == "PER_SEAT" or application.id in done:
                continue
            done.add(application.id)
            self._open(membership.tenant_id, user.id, application)
            role = None
            if self._role_of(membership, application) is None:
                role = self._default_role(application)
            if role is not None:
                _give(membership, application, role)
            kind = "AUTO_FREE" if application.licensing == "FREE" else "AUTO_TENANT"
            self._tell_granted(membership.tenant_id, user, application, kind, by=by, role=role)

    def _grant_to_owner(self, membership: Membership, application: Application) -> None:
        self._open(membership.tenant_id, membership.user_id, application)
        user = self._state.users[membership.user_id]
        self._tell_granted(membership.tenant_id, user, application, "AUTO_OWNER")
        role = self._default_role(application)
        if role is not None:
            _give(membership, application, role)

    def _open(self, tenant_id: str, sub: str, application: Application) -> bool:
        """Open access; return whether it was closed."""
        access = self._state.access.get((tenant_id, sub, application.id))
        if access is not None and access.active:
            return False
        self._state.access[tenant_id, sub, application.id] = Access(tenant_id, sub, application.id)
        return True

    def _close(self, tenant_id: str, sub: str, application: Application) -> bool:
        """Close access; return whether it was open."""
        access = self._state.access.get((tenant_id, sub, application.id))
        if access is None or not access.active:
            return False
        access.active = False
        return True

    def _seat(self, tenant_id: str, sub: str, application: Application) -> Seat | None:
        wanted = (tenant_id, sub, application.id)
        for seat in self._state.seats.values():
            if (seat.tenant_id, seat.user_id, seat.application_id) == wanted:
                return seat
        return None

    def _license_type(self, tenant_id: str, application: Application) -> LicenseType:
        for subscription in self._state.subscriptions.values():
            here = (subscription.tenant_id, subscription.application_id)
            if here == (tenant_id, application.id) and subscription.status == "ACTIVE":
                return self._state.license_types[subscription.license_type_id]
        raise LookupError(
            f"the tenant {tenant_id!r} has no active subscription: subscribe() it first"
        )

    def _take_seat(self, tenant_id: str, sub: str, kind: LicenseType) -> Seat:
        bought = sum(
            one.quantity
            for one in self._state.subscriptions.values()
            if (one.tenant_id, one.license_type_id, one.status) == (tenant_id, kind.id, "ACTIVE")
        )
        used = sum(
            (seat.tenant_id, seat.license_type_id) == (tenant_id, kind.id)
            for seat in self._state.seats.values()
        )
        if used >= bought:
            raise LookupError(f"all {bought} seats of {kind.name!r} are taken: subscribe() to more")
        now = self._now()
        seat = Seat(self._state.ids.cuid(), tenant_id, sub, kind.application_id, kind.id, now)
        self._state.seats[seat.id] = seat
        return seat

    def _license(self, user: User, seat: Seat) -> dict[str, Any]:
        kind = self._state.license_types[seat.license_type_id]
        return {"assignment_id": seat.id, "sub": user.id, "email": user.email, **_kind(kind)}

    def _role_of(self, membership: Membership, application: Application) -> Role | None:
        for role_id in membership.role_ids:
            if role_id in application.roles:
                return application.roles[role_id]
        return None

    def _default_role(self, application: Application) -> Role | None:
        slug = application.default_role
        return None if slug is None else self._named_role(application, slug)

    def _named_role(self, application: Application, slug: str) -> Role:
        for role in application.roles.values():
            if role.slug == slug:
                return role
        known = ", ".join(role.slug for role in application.roles.values())
        raise LookupError(f"{application.name!r} has no role {slug!r} (there are: {known})")


def _who(user: User, membership: Membership) -> dict[str, Any]:
    return {"membership_id": membership.id, "sub": user.id, "email": user.email}


def _names(user: User) -> dict[str, str]:
    # The members page writes a missing name as an empty text.
    return {"given_name": user.given_name or "", "family_name": user.family_name or ""}


def _kind(kind: LicenseType) -> dict[str, str]:
    return {"license_type_id": kind.id, "license_type_name": kind.name}


def _take_roles(membership: Membership, application: Application) -> None:
    kept = [role_id for role_id in membership.role_ids if role_id not in application.roles]
    membership.role_ids[:] = kept


def _give(membership: Membership, application: Application, role: Role) -> None:
    if role.id not in membership.role_ids:
        _take_roles(membership, application)
        membership.role_ids.append(role.id)
