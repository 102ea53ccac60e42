"""What can go wrong, as a tree. Each error knows whether the same event may succeed later.

TenantSyncError
├── ConfigError                     fix the file or the call; never retried
├── Rejected                        the sender's fault
│   ├── Untrusted                   signature, key or clock                        401
│   └── Malformed                   authentic, but not an event we can read        202 parked
├── UnknownTenant                   no source knows this tenant id                 202
├── Unavailable            (retry)  cannot be done now, may be done later          202 parked
│   ├── KeysUnavailable    (retry)  a key never seen, and the JWKS out of reach     503
│   ├── TenantSuspended    (retry)  an operator suspended the tenant
│   ├── TenantUnavailable  (retry)  its database did not answer, or refused
│   ├── TenantNotMigrated  (retry)  its tables are missing or too old
│   ├── TenantNotIsolated  (retry)  we are not where we should be; page someone
│   ├── EventRefused       (retry)  a constraint or trigger of the application's own refuses it
│   └── HookFailed         (retry)  the application's own hook raised
└── MigrationFailed                 carries the tenant's key and the revision

No message carries a secret, a URL with its password, or personal data: a message may end in a log.
"""

__all__ = [
    "ConfigError",
    "EventRefused",
    "HookFailed",
    "KeysUnavailable",
    "Malformed",
    "MigrationFailed",
    "Rejected",
    "TenantNotIsolated",
    "TenantNotMigrated",
    "TenantSuspended",
    "TenantSyncError",
    "TenantUnavailable",
    "Unavailable",
    "UnknownTenant",
    "Untrusted",
]


class TenantSyncError(Exception):
    """The root of every error that tenantsync raises on purpose."""

    retry: bool = False
    """Whether handling the same event again, unchanged, may succeed."""

    blames_event: bool = False
    """Whether the event has a reason of its own, so that others of its tenant may go on."""


class ConfigError(TenantSyncError):
    """A file or an argument is wrong; the message says where, and what is allowed."""


class Rejected(TenantSyncError):
    """The delivery is at fault, not we."""


class Untrusted(Rejected):
    """The signature, its key or its clock does not prove that AuthVital sent this."""


class Malformed(Rejected):
    """The body is authentic but no event that we can read.

    Args:
        field: Path of the offending field, dotted (`"data.sub"`), or `"body"`.
        reason: What is wrong with it, without repeating its value.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class UnknownTenant(TenantSyncError):
    """No tenant source knows the tenant that the event names."""


class Unavailable(TenantSyncError):
    """What is needed is not to be had now; the same event may be applied later."""

    retry = True


class KeysUnavailable(Unavailable):
    """The event is signed with a key never seen, and the JWKS cannot be fetched now."""


class TenantSuspended(Unavailable):
    """An operator suspended the tenant; nothing is applied until it is resumed."""


class TenantUnavailable(Unavailable):
    """The tenant's place could not be looked up, reached, or written in time."""


class TenantNotMigrated(Unavailable):
    """The tenant's schema, tables or columns are missing; migrate it."""


class TenantNotIsolated(Unavailable):
    """The connection is not in the tenant's place; nothing was written."""


class EventRefused(Unavailable):
    """The tenant's database refuses what the event would write; nothing of it was written."""

    blames_event = True


class HookFailed(Unavailable):
    """A hook of the application raised; its event was rolled back."""

    blames_event = True


class MigrationFailed(TenantSyncError):
    """A tenant could not be migrated.

    Args:
        tenant: The tenant's key.
        revision: The revision that the tenant stands at, or None where it has none.
        reason: What happened, in a sentence.
    """

    def __init__(self, tenant: str, revision: str | None, reason: str) -> None:
        super().__init__(f"tenant {tenant!r} at {revision or 'no revision'}: {reason}")
        self.tenant = tenant
        self.revision = revision
        self.reason = reason
