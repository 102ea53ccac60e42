"""What a local AuthVital knows: tables without rules, and how to find one's way in them.

What may happen to them, and who hears of it, is in `actions`.
"""

from collections.abc import Iterator, Mapping

from tenantsync.testing.people import APP_ROLES, Ids
from tenantsync.testing.tables import (
    Access,
    Application,
    Credential,
    Invitation,
    License,
    LicenseType,
    Membership,
    Provider,
    Role,
    Seat,
    Subscription,
    SystemHook,
    Tenant,
    TenantRole,
    User,
)
from tenantsync.testing.turns import Turns

__all__ = ["TENANT_ROLES", "State"]

TENANT_ROLES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("owner", "Owner", "Everything in the tenant.", ("tenant:*",)),
    ("admin", "Admin", "Runs the tenant.", ("tenant:view", "tenant:manage", "members:view")),
    ("billing-admin", "Billing Admin", "Pays.", ("tenant:view", "billing:view", "billing:manage")),
    ("member", "Member", "Belongs to the tenant.", ("tenant:view", "members:view")),
)
"""Slug, name, description and permissions of the tenant roles that every AuthVital has."""


class State:
    """The tables. Whoever reads or changes them while the emulator serves holds `lock`.

    Args:
        seed: Makes the ids reproducible.

    Attributes:
        topic_events: Which types go to the Pub/Sub topic: exact ones, `*` for all, and `x.*` for
            those that are `x` up to their last full stop, so that `tenant.*` leaves
            `tenant.app.granted` out; empty is none, as AuthVital begins.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.ids = Ids(seed)
        self.lock = Turns()
        self.users: dict[str, User] = {}
        self.tenants: dict[str, Tenant] = {}
        self.tenant_roles: dict[str, TenantRole] = {}
        self.applications: dict[str, Application] = {}
        self.license_types: dict[str, LicenseType] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.memberships: dict[str, Membership] = {}
        self.access: dict[tuple[str, str, str], Access] = {}
        self.seats: dict[str, Seat] = {}
        self.invitations: dict[str, Invitation] = {}
        self.system_hooks: list[SystemHook] = []
        self.topic_events: tuple[str, ...] = ()
        self.sso_providers: set[Provider] = set()
        for slug, name, description, permissions in TENANT_ROLES:
            role = TenantRole(self.ids.cuid(), name, slug, description, permissions=permissions)
            self.tenant_roles[slug] = role

    def add_application(
        self,
        name: str,
        *,
        id: str | None = None,
        roles: Mapping[str, str] | None = None,
        spa: str | None = None,
        machine: str | None = None,
        secret: str | None = None,
        licensing: License = "FREE",
        default_role: str | None = None,
        on_sign_up: bool = False,
        to_owner: bool = False,
        webhook_url: str | None = None,
        webhook_events: tuple[str, ...] = (),
    ) -> Application:
        """Add an application with its roles and credentials.

        Args:
            name: Its name; the slug is made of it.
            id: Its id; None makes one.
            roles: Slugs and names of its roles; None is admin, editor and viewer.
            spa: Client id for people's tokens; None makes one.
            machine: Client id for client credentials; None makes one.
            secret: The machine credential's secret; None makes one.
            licensing: See `Application`, as of those below.
            default_role: Slug of the role that comes with access.
            on_sign_up: Whether every tenant that signs up is subscribed to it.
            to_owner: Whether its owner gets access at once.
            webhook_url: Where its events go.
            webhook_events: Which types.
        """
        with self.lock:
            application = Application(
                id or self.ids.cuid(),
                name,
                _slug(name),
                licensing=licensing,
                default_role=default_role,
                on_sign_up=on_sign_up,
                to_owner=to_owner,
                webhook_url=webhook_url,
                webhook_events=webhook_events,
            )
            for slug, title in (APP_ROLES if roles is None else roles).items():
                role = Role(self.ids.cuid(), application.id, title, slug)
                application.roles[role.id] = role
            application.credentials["SPA"] = Credential(spa or self.ids.uuid(), "SPA")
            application.credentials["MACHINE"] = Credential(
                machine or self.ids.uuid(), "MACHINE", secret or self.ids.uuid()
            )
            self.applications[application.id] = application
            return application

    def add_license_type(
        self, application_id: str, name: str, *, features: tuple[str, ...] = ()
    ) -> LicenseType:
        """Add a kind of subscription to an application."""
        with self.lock:
            kind = LicenseType(self.ids.cuid(), application_id, name, _slug(name), features)
            self.license_types[kind.id] = kind
            return kind

    def publishes(self, event_type: str) -> bool:
        """Whether an event of this type goes to the Pub/Sub topic."""
        family = event_type.rpartition(".")[0] + ".*"
        return any(wanted in ("*", event_type, family) for wanted in self.topic_events)

    def credential(self, client_id: str) -> tuple[Application, Credential] | None:
        """Return the credential with this client id and its application, or None."""
        for application in self.applications.values():
            for credential in application.credentials.values():
                if credential.client_id == client_id:
                    return application, credential
        return None

    def role(self, role_id: str) -> Role:
        """Return an application's role by its id."""
        for application in self.applications.values():
            if role_id in application.roles:
                return application.roles[role_id]
        raise LookupError(f"no application has a role with the id {role_id!r}")

    def members(self, tenant_id: str) -> list[Membership]:
        """Return a tenant's memberships, oldest first."""
        return [m for m in self.memberships.values() if m.tenant_id == tenant_id]

    def membership(self, tenant_id: str, user_id: str) -> Membership | None:
        """Return a person's membership of a tenant, or None."""
        for membership in self.memberships.values():
            if membership.tenant_id == tenant_id and membership.user_id == user_id:
                return membership
        return None

    def user_by_email(self, email: str) -> User | None:
        """Return the user with this address, in whatever case, or None."""
        for user in self.users.values():
            if user.email is not None and user.email.lower() == email.lower():
                return user
        return None

    def subscribed(self, tenant_id: str) -> Iterator[Application]:
        """Yield the application of every active subscription: twice for two licence types."""
        for subscription in self.subscriptions.values():
            if subscription.tenant_id == tenant_id and subscription.status == "ACTIVE":
                yield self.applications[subscription.application_id]


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")
