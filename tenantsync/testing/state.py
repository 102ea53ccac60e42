"""What a local AuthVital knows: people, tenants, memberships, applications, access, seats.

Plain tables without rules: what may happen to them, and who hears of it, is in `actions`.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tenantsync.testing.people import APP_ROLES, Ids

__all__ = [
    "READ",
    "TENANT_ROLES",
    "WRITE",
    "Access",
    "Application",
    "Credential",
    "Invitation",
    "License",
    "LicenseType",
    "Membership",
    "Role",
    "Seat",
    "State",
    "Subscription",
    "SystemHook",
    "Tenant",
    "TenantRole",
    "User",
]

READ, WRITE = "integration:read", "integration:write"

Status = Literal["ACTIVE", "INVITED", "SUSPENDED"]
License = Literal["FREE", "PER_SEAT", "TENANT_WIDE"]


@dataclass(slots=True)
class User:
    """A person or a service account. There is no active flag: AuthVital has none."""

    id: str
    email: str | None
    given_name: str | None = None
    family_name: str | None = None
    created_at: int = 0


@dataclass(slots=True)
class Tenant:
    """An organisation. Times are unix milliseconds, here and below."""

    id: str
    name: str
    slug: str
    created_at: int = 0
    initiate_login_uri: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class TenantRole:
    """A role in tenants; the catalogue is one for all of them."""

    id: str
    name: str
    slug: str
    description: str = ""
    is_system: bool = True
    permissions: tuple[str, ...] = ()


@dataclass(slots=True)
class Role:
    """A role in one application."""

    id: str
    application_id: str
    name: str
    slug: str
    description: str = ""


@dataclass(slots=True)
class LicenseType:
    """A kind of subscription to one application."""

    id: str
    application_id: str
    name: str
    slug: str
    features: tuple[str, ...] = ()


@dataclass(slots=True)
class Credential:
    """An OAuth credential of an application.

    Args:
        client_id: The `aud` of tokens.
        kind: `SPA` for people's tokens, `MACHINE` for client credentials.
        secret: The secret, or None: then no machine token is to be had.
        scopes: What a machine token may ask for.
        trusted: Whether the integration API tells it of every tenant.
        tenants: Ids of the tenants that it is told of where it is not trusted.
        enabled: Whether it may be used.
        lifetime: Seconds that an access token lives.
    """

    client_id: str
    kind: Literal["SPA", "MACHINE"]
    secret: str | None = None
    scopes: tuple[str, ...] = (READ, WRITE)
    trusted: bool = True
    tenants: set[str] = field(default_factory=set)
    enabled: bool = True
    lifetime: int = 3600

    def may_read(self, tenant_id: str) -> bool:
        """Whether the integration API tells it of this tenant."""
        return self.trusted or tenant_id in self.tenants


@dataclass(slots=True)
class Application:
    """A container of credentials, roles and licence types; its id is in events, not in tokens.

    Args:
        id: The application's id.
        name: Its name.
        slug: Its short name.
        licensing: How access is paid for. `FREE` and `TENANT_WIDE` grant access by themselves.
        default_role: Slug of the role that comes with access, or None.
        on_sign_up: Whether every tenant that signs up is subscribed to it.
        to_owner: Whether the owner of such a tenant gets access at once.
        webhook_url: Where its events go, or None where a test takes them from the outbox itself.
        webhook_enabled: Whether it wants events; those of other times are never sent.
        webhook_events: Which types: exact ones, and prefixes as `member.*`; empty is all.
    """

    id: str
    name: str
    slug: str
    licensing: License = "FREE"
    default_role: str | None = None
    on_sign_up: bool = False
    to_owner: bool = False
    webhook_url: str | None = None
    webhook_enabled: bool = True
    webhook_events: tuple[str, ...] = ()
    credentials: dict[str, Credential] = field(default_factory=dict)
    roles: dict[str, Role] = field(default_factory=dict)

    def hears(self, event_type: str) -> bool:
        """Whether an event of this type is put aside for its webhook."""
        if not self.webhook_enabled:
            return False
        return not self.webhook_events or any(
            event_type.startswith(wanted[:-1]) if wanted.endswith(".*") else wanted == event_type
            for wanted in self.webhook_events
        )


@dataclass(slots=True)
class Subscription:
    """A tenant's subscription to an application, of one licence type."""

    id: str
    tenant_id: str
    application_id: str
    license_type_id: str
    quantity: int = 1
    status: Literal["ACTIVE", "CANCELED", "EXPIRED"] = "ACTIVE"
    ends_at: int = 0


@dataclass(slots=True)
class Membership:
    """A person in a tenant: with slugs of tenant roles, and ids of application roles."""

    id: str
    tenant_id: str
    user_id: str
    status: Status
    joined_at: int | None = None
    created_at: int = 0
    tenant_roles: list[str] = field(default_factory=lambda: ["member"])
    role_ids: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Access:
    """Whether a person may use an application in a tenant. It outlives the membership."""

    tenant_id: str
    user_id: str
    application_id: str
    active: bool = True


@dataclass(slots=True)
class Seat:
    """A licence assigned to a person."""

    id: str
    tenant_id: str
    user_id: str
    application_id: str
    license_type_id: str
    assigned_at: int = 0


@dataclass(slots=True)
class Invitation:
    """An invitation that waits for its answer.

    Args:
        id: Its id.
        membership_id: The INVITED membership that it made.
        client_id: The credential that it names, or None.
        invited_by: The `sub` of whoever invited, or None.
        expires_at: When it ends.
        created_at: When it was made.
        license_type_id: The seat that comes with accepting it, or None.
    """

    id: str
    membership_id: str
    client_id: str | None = None
    invited_by: str | None = None
    expires_at: int = 0
    created_at: int = 0
    license_type_id: str | None = None


@dataclass(slots=True)
class SystemHook:
    """A target of system webhooks.

    Args:
        url: Where they go.
        events: Exact types; empty is none.
        headers: Sent last, so that they override AuthVital's own.
    """

    url: str
    events: tuple[str, ...]
    headers: dict[str, str] = field(default_factory=dict)


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
    """

    def __init__(self, seed: int | None = None) -> None:
        self.ids = Ids(seed)
        self.lock = threading.RLock()
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
