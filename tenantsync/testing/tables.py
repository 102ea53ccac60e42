"""The rows of a local AuthVital's tables: people, tenants, memberships, applications, seats."""

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "READ",
    "SERVICE_DOMAIN",
    "WRITE",
    "Access",
    "AccessMode",
    "Application",
    "Credential",
    "Invitation",
    "License",
    "LicenseType",
    "Membership",
    "Provider",
    "Role",
    "Seat",
    "Status",
    "Subscription",
    "SystemHook",
    "Tenant",
    "TenantRole",
    "User",
]

READ, WRITE = "integration:read", "integration:write"

SERVICE_DOMAIN = "@system.local"
"""How the addresses of service accounts end."""

Status = Literal["ACTIVE", "INVITED", "SUSPENDED"]
License = Literal["FREE", "PER_SEAT", "TENANT_WIDE"]
AccessMode = Literal["AUTOMATIC", "MANUAL_AUTO_GRANT", "MANUAL_NO_DEFAULT", "DISABLED"]
Provider = Literal["GOOGLE", "MICROSOFT"]


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
        credentials: By their kind, `SPA` and `MACHINE`.
        roles: By their id.
        description: A text, or None.
        access_mode: How members come by access; only told, `licensing` decides here.
        active: Whether it is enabled; one that is can not be deleted.
        created_at: When it was made.
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
    description: str | None = None
    access_mode: AccessMode = "AUTOMATIC"
    active: bool = True
    created_at: int = 0

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
