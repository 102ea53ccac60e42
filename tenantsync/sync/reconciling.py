"""Makes what reconciles the tenants of a configuration, from its settings and its parts."""

from collections.abc import Callable
from typing import Protocol

from tenantsync.authvital.client import IntegrationClient
from tenantsync.config import Settings
from tenantsync.control.database import ControlDatabase
from tenantsync.control.reconciliations import Reconciliations
from tenantsync.errors import ConfigError
from tenantsync.sync.drift import TenantReport
from tenantsync.sync.mirror import Mirror
from tenantsync.sync.reconcile import Departures, Lists, Reconciler
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenancy.registry import EngineRegistry

__all__ = ["Collaborators", "client_of", "reconciler_of"]


class Collaborators(Protocol):
    """Whose parts `reconciler_of` takes: `TenantSync` has them."""

    @property
    def settings(self) -> Settings:
        """The configuration."""

    @property
    def handler(self) -> Departures:
        """What applies events."""

    @property
    def registry(self) -> EngineRegistry:
        """The open engines."""

    @property
    def isolation(self) -> Isolation:
        """How places are bound and proven."""

    @property
    def control(self) -> ControlDatabase:
        """The control database."""


def reconciler_of(
    parts: Collaborators,
    *,
    lists: Lists | None = None,
    prepare: Callable[[], object] | None = None,
    observer: Callable[[TenantReport], object] | None = None,
    changed: Callable[[str, str], object] | None = None,
) -> Reconciler:
    """Return what reconciles the tenants of a configuration. Nothing is opened yet.

    Args:
        parts: Whose databases, handler and settings.
        lists: Where the lists come from; None makes a client, which `close` of the result closes.
        prepare: Makes the control database where it is missing.
        observer: Told of each tenant when it is done.
        changed: As for `Reconciler`.

    Raises:
        ConfigError: `[authvital]` has no client_id or no client_secret.
    """
    settings = parts.settings
    isolation = settings.isolation
    return Reconciler(
        client_of(settings) if lists is None else lists,
        parts.handler,
        Mirror(
            parts.registry,
            parts.isolation,
            default_app_access=settings.authvital.default_app_access,
            statement_timeout=isolation.statement_timeout,
        ),
        Reconciliations(parts.control, prepare=prepare),
        application_id=settings.authvital.application_id,
        max_removal=settings.reconcile.max_removal,
        shared=isolation.strategy == "single",
        observer=observer,
        changed=changed,
    )


def client_of(settings: Settings) -> IntegrationClient:
    """Return a client with the machine credential of a configuration.

    Raises:
        ConfigError: It has none.
    """
    section, file = settings.authvital, settings.path.name
    client_id, client_secret = section.client_id, section.client_secret
    for name, value in (("client_id", client_id), ("client_secret", client_secret)):
        if value is None:
            raise ConfigError(
                f"{file}: [authvital] {name}: is missing; AuthVital is asked for lists with the "
                "MACHINE credential of the application"
            )
    return IntegrationClient(section.host, client_id or "", client_secret or "")
