"""How people come into a local AuthVital's tenants, and who hears of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from tenantsync.testing.delivery import iso
from tenantsync.testing.granting import Granting
from tenantsync.testing.tables import Application, Invitation, Membership, Status, Tenant, User
from tenantsync.testing.telling import told

__all__ = ["Joining"]

_WEEK = 7 * 86_400_000


class Joining(Granting):
    """Signing up, and invitations."""

    def sign_up(
        self,
        email: str,
        *,
        given_name: str | None = None,
        family_name: str | None = None,
        tenant_name: str | None = None,
        tenant_id: str | None = None,
        application_id: str | None = None,
    ) -> Membership:
        """Sign up by oneself, with a new tenant or into one that claims the address's domain.

        Args:
            email: The address; kept in small letters.
            given_name: The given name, if told.
            family_name: The family name, if told.
            tenant_name: Name of the tenant to make and own; no `tenant.created` is sent for it.
            tenant_id: The tenant to join, where none is made.
            application_id: Where the sign-up began; None tells every subscribed application.
        """
        with self._state.lock:
            user = self._new_user(email.lower(), given_name, family_name)
            if tenant_id is None:
                tenant_id = self._new_tenant(tenant_name or email).id
                membership = self._join(tenant_id, user.id, roles=["owner"])
            else:
                membership = self._join(tenant_id, user.id)
            names = told({"given_name": given_name, "family_name": family_name})
            hearing = list(self._hearing(tenant_id, application_id))
            for application in hearing:
                data = {"sub": user.id, "email": user.email, **names, "subject_type": "user"}
                self._tell("subject.created", tenant_id, application, data)
            for application in hearing:
                self._tell("member.joined", tenant_id, application, self._joined(membership, names))
            if membership.tenant_roles == ["owner"]:
                self._provide(membership)
            else:
                self._grant_by_itself(membership)
            return membership

    def sign_up_anonymously(self) -> User:
        """Sign up without an address, as a player does who wants to play at once: silent."""
        with self._state.lock:
            return self._new_user(None, None, None)

    def upgrade_anonymous(
        self,
        sub: str,
        email: str,
        *,
        given_name: str | None = None,
        family_name: str | None = None,
        tenant_name: str | None = None,
        tenant_id: str | None = None,
    ) -> Membership:
        """Make an account of an anonymous one, with a tenant that nobody ever hears of: silent.

        Neither `tenant.created` nor `subject.created` nor `member.joined` is told, and the tenant
        is subscribed to nothing.

        Args:
            sub: The anonymous person.
            email: The address; kept in small letters.
            given_name: The given name, if told.
            family_name: The family name, if told.
            tenant_name: Name of the tenant to make and own.
            tenant_id: The tenant to join, where none is made.

        Raises:
            ValueError: The person has an address already.
        """
        with self._state.lock:
            user = self._state.users[sub]
            if user.email is not None:
                raise ValueError(f"{sub!r} is not anonymous: begin with sign_up_anonymously()")
            user.email, user.given_name, user.family_name = email.lower(), given_name, family_name
            if tenant_id is not None:
                return self._join(tenant_id, sub)
            return self._join(self._new_tenant(tenant_name or email).id, sub, roles=["owner"])

    def invite(
        self,
        tenant_id: str,
        email: str,
        *,
        by: str | None = None,
        given_name: str | None = None,
        family_name: str | None = None,
        role: str = "member",
        application_id: str | None = None,
        client_id: str | None = None,
        license_type_id: str | None = None,
        silent: bool = False,
    ) -> Invitation:
        """Invite an address; it has a user and an INVITED membership from then on.

        Args:
            tenant_id: Where to.
            email: The address; kept in small letters.
            by: The `sub` of whoever invites.
            given_name: The given name of a new user.
            family_name: The family name of a new user.
            role: Slug of the tenant role.
            application_id: Who hears of the invitation; without it, only the Pub/Sub topic does.
            client_id: Who hears of its acceptance; None tells every subscribed application.
            license_type_id: The seat that comes with accepting.
            silent: Whether it goes through the integration API, which tells nobody.
        """
        with self._state.lock:
            user = self._state.user_by_email(email)
            if user is None:
                user = self._new_user(email.lower(), given_name, family_name)
            now = self._now()
            membership = self._join(tenant_id, user.id, roles=[role], status="INVITED")
            invitation = Invitation(
                self._state.ids.cuid(),
                membership.id,
                client_id,
                by,
                now + _WEEK,
                now,
                license_type_id,
            )
            self._state.invitations[invitation.id] = invitation
            if not silent:
                data = {
                    **self._invited(invitation),
                    "tenant_roles": [role],
                    **told({"invited_by_sub": by}),
                    "expires_at": iso(invitation.expires_at),
                }
                named = self._state.applications[application_id] if application_id else None
                self._tell("invite.created", tenant_id, named, data)
            return invitation

    def accept(self, invitation_id: str) -> Membership:
        """Accept an invitation by its public link; grants are told before the joining itself."""
        with self._state.lock:
            invitation, membership = self._accepted(invitation_id)
            user = self._state.users[membership.user_id]
            self._grant_by_itself(membership, by=invitation.invited_by)
            if invitation.license_type_id is not None:
                self.assign_seat(
                    membership.tenant_id,
                    user.id,
                    invitation.license_type_id,
                    by=invitation.invited_by,
                )
            names = {"given_name": user.given_name, "family_name": user.family_name}
            hearing = list(self._answering(invitation, membership))
            for application in hearing:
                data = {
                    **self._invited(invitation),
                    "tenant_roles": list(membership.tenant_roles),
                    "sub": user.id,
                    **names,
                }
                self._tell("invite.accepted", membership.tenant_id, application, data)
            for application in hearing:
                data = self._joined(membership, names)
                self._tell("member.joined", membership.tenant_id, application, data)
            return membership

    def accept_in_console(self, invitation_id: str) -> Membership:
        """Accept an invitation while signed in: no `member.joined`, and systems hear of grants."""
        with self._state.lock:
            invitation, membership = self._accepted(invitation_id)
            self._grant_by_itself(membership, by=invitation.invited_by)
            return membership

    def revoke_invitation(self, invitation_id: str, *, silent: bool = False) -> None:
        """Take an invitation back, with the membership and a user who belongs nowhere else.

        Args:
            invitation_id: Which.
            silent: Whether it goes through the integration API, which tells nobody and leaves the
                INVITED membership behind.
        """
        with self._state.lock:
            invitation = self._state.invitations.pop(invitation_id)
            if silent:
                return
            membership = self._state.memberships[invitation.membership_id]
            data = self._invited(invitation)
            for application in list(self._answering(invitation, membership)):
                self._tell("invite.deleted", membership.tenant_id, application, data)
            del self._state.memberships[membership.id]
            if not any(m.user_id == membership.user_id for m in self._state.memberships.values()):
                del self._state.users[membership.user_id]

    def _new_user(self, email: str | None, given: str | None, family: str | None) -> User:
        user = User(self._state.ids.uuid(), email, given, family, self._now())
        self._state.users[user.id] = user
        return user

    def _new_tenant(self, name: str, id: str | None = None) -> Tenant:
        slug = name.lower().replace(" ", "-")
        tenant = Tenant(id or self._state.ids.uuid(), name, slug, self._now())
        self._state.tenants[tenant.id] = tenant
        return tenant

    def _join(
        self,
        tenant_id: str,
        sub: str,
        *,
        roles: list[str] | None = None,
        status: Status = "ACTIVE",
    ) -> Membership:
        if tenant_id not in self._state.tenants or sub not in self._state.users:
            raise LookupError(f"no tenant {tenant_id!r} or no user {sub!r}: create them first")
        if self._state.membership(tenant_id, sub) is not None:
            raise ValueError(f"{sub!r} belongs to the tenant {tenant_id!r} already")
        now = self._now()
        joined_at = now if status == "ACTIVE" else None
        membership = Membership(
            self._state.ids.cuid(), tenant_id, sub, status, joined_at, now, roles or ["member"]
        )
        self._state.memberships[membership.id] = membership
        return membership

    def _provide(self, membership: Membership) -> None:
        """Subscribe a new tenant to what every sign-up gets, and grant that to its owner."""
        for application in self._state.applications.values():
            kinds = self._state.license_types.values()
            kind = next((one for one in kinds if one.application_id == application.id), None)
            if application.on_sign_up and kind is not None:
                self.subscribe(membership.tenant_id, kind.id)
                if application.to_owner:
                    self._grant_to_owner(membership, application)

    def _accepted(self, invitation_id: str) -> tuple[Invitation, Membership]:
        invitation = self._state.invitations.pop(invitation_id)
        membership = self._state.memberships[invitation.membership_id]
        membership.status, membership.joined_at = "ACTIVE", self._now()
        return invitation, membership

    def _answering(self, invitation: Invitation, membership: Membership) -> Iterator[Application]:
        """Yield who hears what becomes of an invitation."""
        found = self._state.credential(invitation.client_id) if invitation.client_id else None
        if found is not None:
            yield found[0]
        else:
            yield from self._state.subscribed(membership.tenant_id)

    def _hearing(self, tenant_id: str, application_id: str | None) -> Iterator[Application]:
        if application_id is not None:
            yield self._state.applications[application_id]
        else:
            yield from self._state.subscribed(tenant_id)

    def _joined(self, membership: Membership, names: Mapping[str, Any]) -> dict[str, Any]:
        user = self._state.users[membership.user_id]
        return {
            "membership_id": membership.id,
            "sub": user.id,
            "email": user.email,
            **names,
            "tenant_roles": list(membership.tenant_roles),
        }

    def _invited(self, invitation: Invitation) -> dict[str, Any]:
        membership = self._state.memberships[invitation.membership_id]
        return {
            "invite_id": invitation.id,
            "membership_id": membership.id,
            "email": self._state.users[membership.user_id].email,
        }

    def _forget_membership(self, membership: Membership) -> None:
        del self._state.memberships[membership.id]
        waiting = self._state.invitations.values()
        for invitation in [one for one in waiting if one.membership_id == membership.id]:
            del self._state.invitations[invitation.id]
