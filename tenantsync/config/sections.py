"""Every key that a configuration file may have, with its meaning, its range and its default.

The classes are the sections of the file, the attributes its keys. They are frozen values: read once
by `tenantsync.config.loading`, then passed in. Their `repr` hides what may hold a secret. For the
keys as a table see docs/reference/config.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from tenantsync.config.values import (
    Parse,
    database_url,
    duration,
    endpoint,
    folders,
    identifier,
    import_path,
    name_template,
    origin,
    server_url,
    text,
)
from tenantsync.errors import ConfigError

__all__ = [
    "APP",
    "SECTIONS",
    "AuthVital",
    "ControlSettings",
    "Deferred",
    "IsolationSettings",
    "Key",
    "KeyInfo",
    "MigrationsSettings",
    "ProvisioningSettings",
    "PubSubSettings",
    "ReconcileSettings",
    "Section",
    "TenantSettings",
    "WorkerSettings",
    "keys_of",
    "value_of",
]

_DAY: Final = 86_400.0
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Key:
    """What the loader knows about a key, beside its type.

    Args:
        allowed: What it may be, to follow "expected".
        parse: Makes the setting from the file's value; without it the type decides.
        secret: Its value never appears in a message.
        url: Values of the environment are percent-encoded inside it.
        alone: A variable that is not set fails only who reads this key, not its whole section.
        default: What the file would say if it said something; for a default that depends on where
            the file is.
    """

    allowed: str
    parse: Parse | None = None
    secret: bool = False
    url: bool = False
    alone: bool = False
    default: str | None = None


@dataclass(frozen=True, slots=True)
class Deferred:
    """Stands where a value would be, had its environment variables been set."""

    message: str


def value_of(value: _V | Deferred) -> _V:
    """Return the value, or raise ConfigError where an environment variable for it is not set."""
    if isinstance(value, Deferred):
        raise ConfigError(value.message)
    return value


_DATABASE = Key("a database URL", database_url, secret=True, url=True)
_SECONDS = Key("a whole number of seconds from 1 to 86400")
_SHORT = Key('a duration from 0.1 seconds to 1 hour, such as 2 or "500ms"', duration(0.1, 3_600))
_SWITCH = Key("true or false")
_TEXT = Key("a text that is not empty", text)
_TEXTS = Key("a list of texts that are not empty")
_KEPT = Key('a duration up to 10 years, such as "7d"', duration(0, 3_650 * _DAY))
_Texts = tuple[Annotated[str, Meta(min_length=1)], ...]
APP: Final = Key('a path such as "myapp.main:sync"', import_path)
"""The one key that stands above all sections."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the file; shown without what may hold a secret."""

    def __rich_repr__(self) -> list[tuple[str, object]]:
        """Return each key with its value, or with `"***"` in its stead."""
        shown: list[tuple[str, object]] = []
        for name, key in keys_of(type(self)).items():
            value = getattr(self, key.attribute)
            hidden = key.facts.secret and value is not None
            shown.append((name, "***" if hidden or isinstance(value, Deferred) else value))
        return shown

    def __repr__(self) -> str:
        """The section for people and logs: no secret, ever."""
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"


class AuthVital(Section, frozen=True, kw_only=True):
    """`[authvital]`: whom to trust.

    Attributes:
        host: The provider's origin without a trailing slash; its keys are at
            `{host}/.well-known/jwks.json`.
        application_id: Our application there; events of another one are ignored.
        issuer: The exact `iss` of tokens; the host by default.
        audience: The `aud` values that access tokens may have.
        default_app_access: `has_app_access` of a new row.
        max_age: Seconds that an event's signed time may lie in the past.
        max_skew: Seconds that it may lie in the future.
        documented_dialect: Whether the HTTP door takes bodies as the provider's guide shows them.
    """

    host: Annotated[
        str,
        Key("an http(s) URL without a path, a query or credentials", origin, url=True),
    ]
    application_id: Annotated[str, Key("an application's id", identifier)]
    issuer: Annotated[str, _TEXT] = ""
    audience: Annotated[_Texts, _TEXTS] = ()
    _client_id: Annotated[
        str | Deferred | None, Key("a text that is not empty", text, alone=True)
    ] = msgspec.field(default=None, name="client_id")
    _client_secret: Annotated[
        str | Deferred | None,
        Key("a text that is not empty", text, secret=True, alone=True),
    ] = msgspec.field(default=None, name="client_secret")
    default_app_access: Annotated[bool, _SWITCH] = True
    max_age: Annotated[int, Meta(ge=1, le=86_400), _SECONDS] = 300
    max_skew: Annotated[int, Meta(ge=1, le=86_400), _SECONDS] = 60
    documented_dialect: Annotated[bool, _SWITCH] = False

    def __post_init__(self) -> None:
        if not self.issuer:
            msgspec.structs.force_setattr(self, "issuer", self.host)

    @property
    def client_id(self) -> str | None:
        """The machine credential's name.

        Raises:
            ConfigError: It names an environment variable that is not set.
        """
        return value_of(self._client_id)

    @property
    def client_secret(self) -> str | None:
        """The machine credential's secret.

        Raises:
            ConfigError: It names an environment variable that is not set.
        """
        return value_of(self._client_secret)


class ControlSettings(Section, frozen=True, kw_only=True):
    """`[control]`: where tenantsync keeps its own books.

    Attributes:
        url: The control database; by default the SQLite file `tenantsync.db` beside the
            configuration.
    """

    url: Annotated[
        str,
        Key(
            "a database URL",
            database_url,
            secret=True,
            url=True,
            default="sqlite:///tenantsync.db",
        ),
    ]


class IsolationSettings(Section, frozen=True, kw_only=True):
    """`[isolation]`: where tenants live, and how they are kept apart.

    Attributes:
        strategy: A schema each, a database each, or one place for all.
        url: The database URL; `{key}` is replaced by the tenant's key.
        schema: Template of the PostgreSQL schema's name, `"tenant_{key}"` by default with the
            strategy `"schema"`, otherwise None.
        role: Template of the role that each transaction takes, or None.
        max_connections: Connections per process and server.
        max_engines: Databases whose connections are kept open when unused.
        connect_timeout: Seconds.
        statement_timeout: Seconds.
        accept_any_tenant: With the strategy `"single"`: take events of tenants that are not listed.
    """

    strategy: Annotated[
        Literal["schema", "database", "single"], Key('"schema", "database" or "single"')
    ]
    url: Annotated[str | None, _DATABASE] = None
    schema: Annotated[str | None, Key("a schema's name", name_template)] = None
    role: Annotated[str | None, Key("a role's name", name_template)] = None
    _migration_url: Annotated[
        str | Deferred | None,
        Key("a database URL", database_url, secret=True, url=True, alone=True),
    ] = msgspec.field(default=None, name="migration_url")
    max_connections: Annotated[int, Meta(ge=1, le=1_000), Key("a whole number from 1 to 1000")] = 10
    max_engines: Annotated[int, Meta(ge=1, le=10_000), Key("a whole number from 1 to 10000")] = 64
    connect_timeout: Annotated[float, _SHORT] = 2.0
    statement_timeout: Annotated[float, _SHORT] = 5.0
    accept_any_tenant: Annotated[bool, _SWITCH] = False

    def __post_init__(self) -> None:
        if self.schema is None and self.strategy == "schema":
            msgspec.structs.force_setattr(self, "schema", "tenant_{key}")

    @property
    def migration_url(self) -> str | None:
        """The URL, or template, of the login that runs migrations; None means `url`.

        Raises:
            ConfigError: It names an environment variable that is not set.
        """
        return value_of(self._migration_url)


class TenantSettings(Section, frozen=True, kw_only=True):
    """`[tenants.KEY]`: one tenant, and what differs from `[isolation]` for it.

    Attributes:
        id: AuthVital's id of the tenant.
        url: Its own database URL, or None.
        schema: Its own schema, or None.
        role: Its own role, or None.
    """

    id: Annotated[str, Key("AuthVital's id of the tenant", identifier)]
    url: Annotated[str | None, _DATABASE] = None
    schema: Annotated[str | None, Key("a schema's name", name_template)] = None
    role: Annotated[str | None, Key("a role's name", name_template)] = None


class MigrationsSettings(Section, frozen=True, kw_only=True):
    """`[migrations]`: the application's own tables.

    Attributes:
        locations: Absolute folders of revision files.
    """

    locations: Annotated[tuple[Path, ...], Key("a list of folders", folders)] = ()


class WorkerSettings(Section, frozen=True, kw_only=True):
    """`[worker]`: who applies parked events, and how long they are kept. All times in seconds.

    Attributes:
        inline: Whether the serving process drains the inbox too.
        signals: URL of a server that wakes workers, or None.
        interval: Time between two looks at the inbox.
        retain_bodies: How long the body of an applied event is kept.
        retain_ids: How long the id of an applied event is kept.
        retain_quarantine: How long an event that was given up on is kept.
    """

    inline: Annotated[bool, _SWITCH] = True
    signals: Annotated[
        str | None,
        Key('a URL such as "nats://localhost:4222"', server_url, secret=True, url=True),
    ] = None
    interval: Annotated[
        float,
        Key('a duration from 0.1 seconds to 1 hour, such as "5s"', duration(0.1, 3_600)),
    ] = 5.0
    retain_bodies: Annotated[float, _KEPT] = 7 * _DAY
    retain_ids: Annotated[float, _KEPT] = 35 * _DAY
    retain_quarantine: Annotated[float, _KEPT] = 90 * _DAY


class ReconcileSettings(Section, frozen=True, kw_only=True):
    """`[reconcile]`: comparing the mirror with the provider.

    Attributes:
        every: Seconds between two scheduled comparisons of a tenant.
        max_removal: Share of a tenant's people with access, from 0 to 1, that one list may lock
            out.
    """

    every: Annotated[
        float,
        Key('a duration from 1 minute to 30 days, such as "6h"', duration(60, 30 * _DAY)),
    ] = 6 * 3_600.0
    max_removal: Annotated[float, Meta(ge=0, le=1), Key("a number from 0 to 1")] = 0.2


class ProvisioningSettings(Section, frozen=True, kw_only=True):
    """`[provisioning]`: what happens when a tenant is created at the provider.

    Attributes:
        on_tenant_created: Nothing, a place for tenants of the allow list, or a place for any.
        allowlist: Ids of tenants.
        max_per_hour: Places made in any sixty minutes by all workers together, at most.
    """

    on_tenant_created: Annotated[
        Literal["ignore", "allowlist", "always"],
        Key('"ignore", "allowlist" or "always"'),
    ] = "ignore"
    allowlist: Annotated[_Texts, _TEXTS] = ()
    max_per_hour: Annotated[int, Meta(ge=0, le=10_000), Key("a whole number from 0 to 10000")] = 10


class PubSubSettings(Section, frozen=True, kw_only=True):
    """`[pubsub]`: push deliveries through Google Cloud Pub/Sub.

    Attributes:
        audience: The `aud` of the push tokens; None closes the door.
        service_account: The e-mail address of the account that the tokens must be of.
        issuer: The `iss` of the tokens.
        jwks_url: Where the keys of the tokens are.
    """

    audience: Annotated[str | None, _TEXT] = None
    service_account: Annotated[str | None, _TEXT] = None
    issuer: Annotated[str, _TEXT] = "https://accounts.google.com"
    jwks_url: Annotated[str, Key("an http(s) URL without credentials", endpoint, url=True)] = (
        "https://www.googleapis.com/oauth2/v3/certs"
    )


SECTIONS: Final[Mapping[str, type[Section]]] = MappingProxyType(
    {
        "authvital": AuthVital,
        "control": ControlSettings,
        "isolation": IsolationSettings,
        "migrations": MigrationsSettings,
        "worker": WorkerSettings,
        "reconcile": ReconcileSettings,
        "provisioning": ProvisioningSettings,
        "pubsub": PubSubSettings,
    }
)
"""The sections that have fixed keys; `[tenants]` holds one TenantSettings per key."""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """One key of a section.

    Args:
        attribute: Name of the section's field.
        type: The annotated type of its value.
        required: Whether the file must have it.
        facts: What the loader knows beside the type.
    """

    attribute: str
    type: Any
    required: bool
    facts: Key


@cache  # asked for every tenant of the file, and answered slowly
def keys_of(section: type[Section]) -> Mapping[str, KeyInfo]:
    """Return the keys that a section may have in the file, by name."""
    return MappingProxyType(
        {
            item.encode_name: KeyInfo(item.name, item.type, item.required, _facts(item.type))
            for item in msgspec.structs.fields(section)
        }
    )


def _facts(hint: object) -> Key:
    return next(fact for fact in get_args(hint) if isinstance(fact, Key))
