"""What people do in a local AuthVital, and who hears of it: most of it, nobody.

Each method is one path through the provider. Which event it makes and for whom, and which paths are
silent, stands in `docs/how-to/test-with-the-emulator.md`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from tenantsync.testing.administering import Administering
from tenantsync.testing.outbox import Emission, Outbox
from tenantsync.testing.people import Person
from tenantsync.testing.state import State
from tenantsync.testing.tables import SERVICE_DOMAIN, Application, Membership, Status, User
from tenantsync.testing.telling import told
from tenantsync.testing.tenanting import Tenanting

__all__ = ["Actions", "Future"]

Future = Literal["one", "each"]
"""Whom `subject.*` events of a better AuthVital name: one of the person's tenants, or each."""


class Actions(Tenanting, Administering):
    """Everything that can happen. Times are those of the clock; people are named by their `sub`.

    Args:
        state: The tables.
        outbox: Where the events go.
        clock: Unix seconds.
        new_id: Makes event ids.
        topic: Where those of the Pub/Sub topic go.
        future: None is today's AuthVital. Otherwise the five sync types that it knows and never
            sends are sent: `subject.updated`, `subject.deleted`, `subject.deactivated`,
            `member.role_changed` and `invite.expired`.
    """

    def __init__(
        self,
        state: State,
        outbox: Outbox,
        *,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        topic: Outbox | None = None,
        future: Future | None = None,
    ) -> None:
        super().__init__(state, outbox, clock=clock, new_id=new_id, topic=topic)
        self.future = future

    def expire_invitation(self, invitation_id: str) -> None:
        """Let an invitation run out: silent today."""
        with self._state.lock:
            invitation = self._state.invitations.pop(invitation_id)
            membership = self._state.memberships[invitation.membership_id]
            if self.future:
                data = self._invited(invitation)
                for application in self._answering(invitation, membership):
                    self._tell("invite.expired", membership.tenant_id, application, data)

    # -- membership

    def suspend(self, tenant_id: str, sub: str) -> None:
        """Suspend a member; told to the applications in which they hold a role."""
        self._set_status(tenant_id, sub, "SUSPENDED", "member.suspended")

    def activate(self, tenant_id: str, sub: str) -> None:
        """Activate a member, also one who was only invited; told as `suspend` is."""
        self._set_status(tenant_id, sub, "ACTIVE", "member.activated")

    def remove(self, tenant_id: str, sub: str) -> None:
        """Remove a member; told as `suspend` is. Access and seats are left as they are."""
        with self._state.lock:
            membership = self._member(tenant_id, sub)
            self._tell_role_holders("member.left", membership)
            self._forget_membership(membership)

    def set_tenant_roles(self, tenant_id: str, sub: str, slugs: Sequence[str]) -> None:
        """Replace a member's roles in the tenant: silent today."""
        with self._state.lock:
            membership = self._member(tenant_id, sub)
            previous, membership.tenant_roles = membership.tenant_roles, list(slugs)
            if self.future:
                user = self._state.users[sub]
                data = {
                    "membership_id": membership.id,
                    "sub": sub,
                    **told({"email": user.email}),
                    "tenant_roles": list(slugs),
                    "previous_roles": previous,
                }
                for application in _once(self._state.subscribed(tenant_id)):
                    self._tell("member.role_changed", tenant_id, application, data)

    # -- people

    def edit_profile(
        self,
        sub: str,
        **changes: str | None,
    ) -> None:
        """Change `email`, `given_name` or `family_name`, by anybody: silent today.

        Raises:
            TypeError: Another field is named.
        """
        wrong = changes.keys() - {"email", "given_name", "family_name"}
        if wrong:
            raise TypeError(
                f"a profile has no {', '.join(sorted(wrong))} that AuthVital would tell"
            )
        with self._state.lock:
            user = self._state.users[sub]
            for name, value in changes.items():
                setattr(user, name, value)
            data = {
                "sub": sub,
                **told({"email": user.email, "given_name": user.given_name}),
                **told({"family_name": user.family_name}),
                "subject_type": "user",
                "changed_fields": list(changes),
            }
            self._tell_of_subject("subject.updated", sub, data)

    def deactivate_user(self, sub: str) -> None:
        """Deactivate a person: only in a future AuthVital; today's has no such state.

        Raises:
            RuntimeError: It is today's.
        """
        if not self.future:
            raise RuntimeError(
                "AuthVital cannot deactivate anybody today: make it with future=True"
            )
        with self._state.lock:
            data = {"sub": sub, **told({"email": self._state.users[sub].email})}
            self._tell_of_subject("subject.deactivated", sub, data)

    def delete_user(self, sub: str) -> None:
        """Delete a person with all memberships, access and seats: silent today."""
        with self._state.lock:
            user = self._state.users[sub]
            data = {"sub": sub, **told({"email": user.email})}
            self._tell_of_subject("subject.deleted", sub, data)
            for membership in [m for m in self._state.memberships.values() if m.user_id == sub]:
                self._forget_membership(membership)
            for key in [key for key in self._state.access if key[1] == sub]:
                del self._state.access[key]
            for seat in [seat for seat in self._state.seats.values() if seat.user_id == sub]:
                del self._state.seats[seat.id]
            del self._state.users[sub]

    def add_user(
        self, email: str | None, *, given_name: str | None = None, family_name: str | None = None
    ) -> User:
        """Add a person who belongs nowhere yet, as registering or a super-admin does: silent."""
        with self._state.lock:
            return self._new_user(email, given_name, family_name)

    def add_service_account(self, tenant_id: str) -> Membership:
        """Add a service account to a tenant, under an address of its kind: silent."""
        with self._state.lock:
            user = self._new_user(f"service+{self._state.ids.uuid()}{SERVICE_DOMAIN}", None, None)
            return self._join(tenant_id, user.id)

    def add_member(
        self, tenant_id: str, sub: str, *, roles: Sequence[str] = ("member",), silent: bool = False
    ) -> Membership:
        """Add a person to a tenant as super-admin: applications hear nothing.

        Args:
            tenant_id: Where.
            sub: Whom.
            roles: Slugs of tenant roles.
            silent: Whether it happened by single sign-on or a claimed domain, of which systems
                hear nothing either.
        """
        with self._state.lock:
            membership = self._join(tenant_id, sub, roles=list(roles))
            if not silent:
                self._tell_updated(tenant_id, ["members"])
            return membership

    def populate(
        self, tenant_id: str, people: Iterable[Person], *, application_id: str | None = None
    ) -> None:
        """Put people into a tenant as active members, as if they had always been there: silent.

        For large tenants: unlike the other actions, it does not look for a membership before.

        Args:
            tenant_id: Where.
            people: Who; see `people.make_people`. A user who is there already is replaced.
            application_id: Whose roles `Person.role` names; None gives no roles.
        """
        with self._state.lock:
            roles: dict[str, str] = {}
            if application_id is not None:
                known = self._state.applications[application_id].roles.values()
                roles = {role.slug: role.id for role in known}
            now = self._now()
            for person in people:
                self._state.users[person.sub] = User(
                    person.sub, person.email, person.given_name, person.family_name, now
                )
                self._state.memberships[person.membership_id] = Membership(
                    person.membership_id,
                    tenant_id,
                    person.sub,
                    "ACTIVE",
                    now,
                    now,
                    list(person.tenant_roles),
                    [roles[person.role]] if person.role in roles else [],
                )

    def remove_quietly(self, tenant_id: str, sub: str) -> None:
        """Remove a member as super-admin, or by a claimed domain: silent."""
        with self._state.lock:
            self._forget_membership(self._member(tenant_id, sub))

    def set_status_quietly(self, tenant_id: str, sub: str, status: Status) -> None:
        """Set a membership's status as super-admin: silent."""
        with self._state.lock:
            self._member(tenant_id, sub).status = status

    def press_test_button(self) -> Emission:
        """Return what the admin's test button sends a target: `tenant.created` without a tenant.

        It goes to the target that is tested, whatever that wants, and not through the outbox.
        """
        with self._state.lock:
            data = {"test": True, "message": "Test webhook", "webhookId": self._state.ids.cuid()}
            event = {"event": "tenant.created", "timestamp": self._iso(), "data": data}
            return Emission("system", "tenant.created", "", "", event)

    def _set_status(self, tenant_id: str, sub: str, status: Status, event_type: str) -> None:
        with self._state.lock:
            membership = self._member(tenant_id, sub)
            membership.status = status
            if status == "ACTIVE" and membership.joined_at is None:
                membership.joined_at = self._now()
            self._tell_role_holders(event_type, membership)

    def _tell_role_holders(self, event_type: str, membership: Membership) -> None:
        user = self._state.users[membership.user_id]
        data = {"membership_id": membership.id, "sub": user.id, "email": user.email}
        holding = {self._state.role(role_id).application_id for role_id in membership.role_ids}
        for application in self._state.applications.values():
            if application.id in holding:
                self._tell(event_type, membership.tenant_id, application, data)

    def _tell_of_subject(self, event_type: str, sub: str, data: Mapping[str, Any]) -> None:
        if not self.future:
            return
        tenants = [m.tenant_id for m in self._state.memberships.values() if m.user_id == sub]
        for tenant_id in tenants[:1] if self.future == "one" else tenants:
            for application in _once(self._state.subscribed(tenant_id)):
                self._tell(event_type, tenant_id, application, data)


def _once(applications: Iterable[Application]) -> list[Application]:
    return list({application.id: application for application in applications}.values())
