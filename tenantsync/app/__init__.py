"""TenantSync: the one place where the collaborators are wired together."""

from tenantsync.app.sync import TenantSync

__all__ = ["TenantSync"]
