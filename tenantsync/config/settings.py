"""A whole configuration: its sections, its tenants, and what is still missing from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar, cast

from tenantsync.config.sections import (
    AuthVital,
    ControlSettings,
    Deferred,
    IsolationSettings,
    MigrationsSettings,
    ProvisioningSettings,
    PubSubSettings,
    ReconcileSettings,
    Section,
    TenantSettings,
    WorkerSettings,
    value_of,
)
from tenantsync.errors import ConfigError

__all__ = ["Settings"]

_S = TypeVar("_S", bound=Section)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A configuration, read and checked; made by `load`.

    A section that needs an environment variable which is not set raises ConfigError when it is
    first looked at, and fails nobody who does without it.

    Args:
        path: Absolute path of the file.
    """

    path: Path
    _app: str | Deferred | None = field(default=None, repr=False)
    _sections: Mapping[str, Section | Deferred] = field(repr=False, hash=False)
    _tenants: Mapping[str, TenantSettings | Deferred] = field(repr=False, hash=False)

    @property
    def app(self) -> str | None:
        """Where the application's TenantSync object is, as `"module:name"`."""
        return value_of(self._app)

    @property
    def authvital(self) -> AuthVital:
        """Whom to trust."""
        return self._section("authvital", AuthVital)

    @property
    def control(self) -> ControlSettings:
        """Where tenantsync keeps its own books."""
        return self._section("control", ControlSettings)

    @property
    def isolation(self) -> IsolationSettings:
        """Where tenants live, and how they are kept apart."""
        return self._section("isolation", IsolationSettings)

    @property
    def migrations(self) -> MigrationsSettings:
        """The application's own tables."""
        return self._section("migrations", MigrationsSettings)

    @property
    def worker(self) -> WorkerSettings:
        """Who applies parked events, and how long they are kept."""
        return self._section("worker", WorkerSettings)

    @property
    def reconcile(self) -> ReconcileSettings:
        """Comparing the mirror with the provider."""
        return self._section("reconcile", ReconcileSettings)

    @property
    def provisioning(self) -> ProvisioningSettings:
        """What happens when a tenant is created at the provider."""
        return self._section("provisioning", ProvisioningSettings)

    @property
    def pubsub(self) -> PubSubSettings:
        """Push deliveries through Google Cloud Pub/Sub."""
        return self._section("pubsub", PubSubSettings)

    @property
    def tenants(self) -> Mapping[str, TenantSettings]:
        """The tenants of the file, by key.

        Raises:
            ConfigError: At least one of them needs an environment variable that is not set.
        """
        deferred = [each for each in self._tenants.values() if isinstance(each, Deferred)]
        if deferred:
            raise ConfigError("; ".join(each.message for each in deferred))
        return MappingProxyType(cast("dict[str, TenantSettings]", dict(self._tenants)))

    def _section(self, name: str, kind: type[_S]) -> _S:
        section = value_of(self._sections[name])
        if not isinstance(section, kind):
            raise TypeError(f"section {name} is no {kind.__name__}")
        return section
