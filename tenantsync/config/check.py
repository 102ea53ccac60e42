"""Compares the keys of a configuration with each other: strategy, templates, neighbours.

Paths are looked up to tell whether two names are one file; nothing is opened.
"""

import os
from collections.abc import Callable, Hashable, Mapping
from typing import Final, TypeVar

from sqlalchemy.engine import URL

from tenantsync.config.sections import (
    Deferred,
    IsolationSettings,
    PubSubSettings,
    Section,
    TenantSettings,
)
from tenantsync.config.values import fill
from tenantsync.errors import ConfigError
from tenantsync.tenants import check_schema, read_url

__all__ = ["check", "check_pubsub", "identity", "located"]

_T = TypeVar("_T")
_MAX_NAME_BYTES: Final = 63
_FIELD: Final = "{key}"
_LOCAL: Final = frozenset(("", "localhost", "127.0.0.1", "::1"))


def check(
    file: str,
    isolation: IsolationSettings | Deferred,
    tenants: Mapping[str, TenantSettings | Deferred],
) -> None:
    """Check the isolation, and that no two tenants have one id or one place.

    What lacks an environment variable is left out: nobody gets to use it.

    Args:
        file: Name of the configuration file, for messages.
        isolation: Its section `[isolation]`.
        tenants: Its tenants by key.

    Raises:
        ConfigError: They do not go together.
    """
    ready = {key: each for key, each in tenants.items() if isinstance(each, TenantSettings)}
    try:
        _check_ids(ready)
        if isinstance(isolation, Deferred):
            return
        _check_migration_url(isolation)
        if isolation.strategy == "single":
            _check_single(isolation, ready, any_listed=bool(tenants))
        else:
            everyone_moved = all(
                isinstance(each, Deferred)
                or each.url is not None
                or (isolation.strategy == "schema" and each.schema is not None)
                for each in tenants.values()
            )
            _check_templates(isolation, everyone_moved=everyone_moved, any_listed=bool(tenants))
            _check_places(isolation, ready)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def check_pubsub(file: str, pubsub: Section | Deferred) -> None:
    """Check that the push door is closed, or knows the account that may push.

    Args:
        file: Name of the configuration file, for messages.
        pubsub: Its section `[pubsub]`.

    Raises:
        ConfigError: It has one of `audience` and `service_account` without the other.
    """
    if not isinstance(pubsub, PubSubSettings):
        return
    if (pubsub.audience is None) != (pubsub.service_account is None):
        # Any Google account can have a token made for any audience.
        lacking = "audience" if pubsub.audience is None else "service_account"
        raise ConfigError(
            f"{file}: [pubsub] {lacking}: is required: pushes are taken by audience and account"
        )


def _check_ids(tenants: Mapping[str, TenantSettings]) -> None:
    seen: dict[str, str] = {}
    for key, tenant in tenants.items():
        other = seen.setdefault(tenant.id, key)
        if other != key:
            raise ConfigError(
                f"[tenants.{key}] id: is the id of [tenants.{other}] too; two tenants never have "
                "one id"
            )


def _check_migration_url(isolation: IsolationSettings) -> None:
    # It takes the place of `url`, so it must be of the same kind.
    template = _migration_url(isolation)
    for url in (template, isolation.url):
        if template and url and read_url(fill(url, "a")).get_backend_name() != "postgresql":
            raise ConfigError(
                "[isolation] migration_url: is a login to PostgreSQL; with SQLite leave it out"
            )


def _check_single(
    isolation: IsolationSettings, tenants: Mapping[str, TenantSettings], *, any_listed: bool
) -> None:
    if isolation.url is None:
        raise ConfigError("[isolation] url: is required: the database URL of all tenants")
    templates = {
        "url": isolation.url,
        "schema": isolation.schema,
        "role": isolation.role,
        "migration_url": _migration_url(isolation),
    }
    for name, template in templates.items():
        if template and _FIELD in template:
            raise ConfigError(
                f'[isolation] {name}: the strategy "single" has one place for all tenants; write '
                "a name without {key}"
            )
    for key, tenant in tenants.items():
        for name in ("url", "schema", "role"):
            if getattr(tenant, name):
                raise ConfigError(
                    f'[tenants.{key}] {name}: the strategy "single" has one place for all tenants; '
                    "leave it out"
                )
    if not any_listed and not isolation.accept_any_tenant:
        raise ConfigError(
            '[isolation] strategy: "single" needs to know its tenants; list them as '
            "[tenants.KEY], or set accept_any_tenant = true"
        )
    _check_place("[isolation]", read_url(isolation.url), isolation.schema, isolation.role)


def _check_templates(
    isolation: IsolationSettings, *, everyone_moved: bool, any_listed: bool
) -> None:
    if isolation.accept_any_tenant:
        raise ConfigError(
            '[isolation] accept_any_tenant: only the strategy "single" can do that; leave it out'
        )
    if isolation.strategy == "schema":
        if isolation.url is None:
            raise ConfigError("[isolation] url: is required: the URL of a PostgreSQL database")
        _check_place("[isolation]", read_url(fill(isolation.url, "a")), "a", None)
        if _FIELD not in (isolation.schema or "") and not (any_listed and everyone_moved):
            raise ConfigError(
                "[isolation] schema: must contain {key}, or all tenants would share one schema"
            )
        return
    if isolation.schema is not None:
        raise ConfigError(
            '[isolation] schema: only the strategies "schema" and "single" have one; leave it out'
        )
    if isolation.url is None:
        if not everyone_moved:
            raise ConfigError(
                "[isolation] url: is required, with {key} where the tenant's key goes, unless "
                "every tenant has a url of its own"
            )
    elif _FIELD not in isolation.url and not (any_listed and everyone_moved):
        raise ConfigError(
            "[isolation] url: must contain {key}, or all tenants would share one database"
        )
    else:
        _check_place("[isolation]", read_url(fill(isolation.url, "a")), None, isolation.role)
    if _FIELD in (isolation.url or "") and _FIELD not in (_migration_url(isolation) or _FIELD):
        # Every tenant would be migrated in the one database that it names.
        raise ConfigError("[isolation] migration_url: must contain {key}, as url does")


def _check_places(isolation: IsolationSettings, tenants: Mapping[str, TenantSettings]) -> None:
    seen: dict[Hashable, str] = {}
    for key, tenant in tenants.items():
        place = f"[tenants.{key}]"
        url = _made(f"{place} url", tenant.url or isolation.url or "", key, read_url)
        schema = role = None
        if template := tenant.schema or isolation.schema:
            schema = _made(f"{place} schema", template, key, check_schema)
        if template := tenant.role or isolation.role:
            role = _made(f"{place} role", template, key, check_schema)
        _check_place(place, url, schema, role)
        other = seen.setdefault(identity(url, schema), key)
        if other != key:
            raise ConfigError(
                f"{place}: lives in the same place as [tenants.{other}]; give one of them another "
                "url or schema"
            )


def _made(place: str, template: str, key: str, make: Callable[[str], _T]) -> _T:
    try:
        return make(fill(template, key))
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None


def _check_place(place: str, url: URL, schema: str | None, role: str | None) -> None:
    if url.get_backend_name() == "postgresql":
        if len((url.database or "").encode()) > _MAX_NAME_BYTES:
            raise ConfigError(
                f"{place} url: the database's name is longer than {_MAX_NAME_BYTES} bytes, and "
                "PostgreSQL may cut it off"
            )
        return
    if schema is not None:
        raise ConfigError(f"{place} url: SQLite has no schemas; a PostgreSQL database is needed")
    if role is not None:
        raise ConfigError(f"{place} url: SQLite has no roles; a PostgreSQL database is needed")


def identity(url: URL, schema: str | None) -> Hashable:
    """Return what two URLs of one place have in common, as far as that can be told from here."""
    if url.get_backend_name() == "sqlite":
        try:
            file = os.stat(os.path.realpath(url.database or ""))
        except OSError:
            return located(url, schema)
        return file.st_dev, file.st_ino  # hard links, and file systems that ignore case
    return located(url, schema)


def located(url: URL, schema: str | None) -> tuple[str, ...]:
    """Return where a place is in words that stay the same once it is made; no login, no secret."""
    if url.get_backend_name() == "sqlite":
        return "sqlite", os.path.normcase(os.path.realpath(url.database or ""))

    def option(name: str, value: object) -> str:
        # psycopg gets what stands behind "?" last, so that it wins.
        given = url.query.get(name, value)
        return str(given or "") if not isinstance(given, tuple) else ",".join(sorted(given))

    host = option("hostaddr", option("host", url.host)).lower().rstrip(".")
    return (
        "postgresql",
        "" if host in _LOCAL else host,
        option("port", url.port) or "5432",
        option("dbname", url.database) or option("user", url.username),
        schema or "public",
    )


def _migration_url(isolation: IsolationSettings) -> str | None:
    try:
        return isolation.migration_url
    except ConfigError:  # its environment variable is not set: whoever migrates will hear of it
        return None
