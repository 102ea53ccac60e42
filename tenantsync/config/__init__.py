"""The configuration: a TOML file and the environment in, frozen settings out.

`values` knows what one value may be, `sections` lists the keys, `settings` is the whole, `loading`
reads a file, `check` compares keys with each other, and `starter` writes a first file.
"""

from tenantsync.config.loading import load, read
from tenantsync.config.sections import (
    AuthVital,
    ControlSettings,
    IsolationSettings,
    MigrationsSettings,
    ProvisioningSettings,
    PubSubSettings,
    ReconcileSettings,
    TenantSettings,
    WorkerSettings,
)
from tenantsync.config.settings import Settings
from tenantsync.config.starter import write_starter
from tenantsync.config.values import fill

__all__ = [
    "AuthVital",
    "ControlSettings",
    "IsolationSettings",
    "MigrationsSettings",
    "ProvisioningSettings",
    "PubSubSettings",
    "ReconcileSettings",
    "Settings",
    "TenantSettings",
    "WorkerSettings",
    "fill",
    "load",
    "read",
    "write_starter",
]
