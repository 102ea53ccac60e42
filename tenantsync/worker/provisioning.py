"""Makes places for tenants that the provider announced: by policy, and not too many of them.

Anyone can sign up at the provider and make tenants there, so the number in an hour is bounded for
all workers together.
"""

import math
from collections.abc import Callable

from tenantsync.control.profiles import TenantProfiles, is_storable
from tenantsync.errors import ConfigError, Unavailable
from tenantsync.steps import Step, reach
from tenantsync.sync.system import AnnouncementPolicy, key_of

__all__ = ["ProvisioningDelayed", "TenantProvisioning"]


class ProvisioningDelayed(Unavailable):
    """As many places as are allowed in an hour were made already.

    Args:
        seconds: How long to wait until there is room for one more.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "as many tenants as [provisioning] max_per_hour allows were made already: the next one "
            f"may be in {math.ceil(seconds)} s"
        )
        self.retry_in = seconds


class TenantProvisioning:
    """Makes announced tenants. Any number of workers may have one each.

    Args:
        policy: Which tenants get a place.
        profiles: What is remembered of tenants; also counts those that are made.
        add: Makes the place of a tenant and puts it into service, given its key and its id; does
            nothing where that is done already, and finishes what was begun: `Provisioner.add`.
        suspend: Suspends the tenant with a key: `Catalog.suspend`.
        max_per_hour: How many may be made in any sixty minutes, on all machines together.
    """

    def __init__(
        self,
        policy: AnnouncementPolicy,
        profiles: TenantProfiles,
        add: Callable[[str, str], object],
        *,
        suspend: Callable[[str], object],
        max_per_hour: int = 10,
    ) -> None:
        self._policy = policy
        self._profiles = profiles
        self._add = add
        self._suspend = suspend
        self._max_per_hour = max_per_hour

    def allows(self, tenant_id: str) -> bool:
        """Whether this tenant may be made: by policy, not deleted, not made and removed before.

        Raises:
            ControlUnavailable: The control database does not answer.
        """
        if not is_storable(tenant_id) or not self._policy.allows(tenant_id):
            return False
        profile = self._profiles.find(tenant_id)
        return profile is None or not (profile.deleted or profile.provisioned)

    def provision(self, tenant_id: str) -> str:
        """Make the tenant, and return its key. Safe to call again, also after a crash.

        Args:
            tenant_id: AuthVital's id.

        Raises:
            ProvisioningDelayed: Too many were made within the hour.
            ConfigError: This one may not be made, or cannot be: see `Provisioner.add`.
            TenantUnavailable: A database does not answer.
            MigrationFailed: Its tables could not be made.
        """
        if not self.allows(tenant_id):
            raise ConfigError("this tenant is not to be made because it was announced")
        seconds = self._profiles.book(tenant_id, per_hour=self._max_per_hour)
        if seconds > 0:
            raise ProvisioningDelayed(seconds)
        key = key_of(tenant_id)
        self._add(key, tenant_id)
        reach(Step.PROVISIONED)
        profile = self._profiles.find(tenant_id)
        if profile is not None and profile.deleted:
            # The provider deleted it meanwhile, when there was nothing yet to suspend.
            self._suspend(key)
        self._profiles.mark_provisioned(tenant_id)
        return key
