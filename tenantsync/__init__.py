"""tenantsync mirrors AuthVital's identities into each tenant's own database or schema.

Users import from here. Two more doors are documented: `tenantsync.models` and `tenantsync.testing`.
"""

from tenantsync.app import TenantSync
from tenantsync.errors import (
    ConfigError,
    Malformed,
    TenantNotIsolated,
    TenantSyncError,
    TenantUnavailable,
    UnknownTenant,
    Untrusted,
)
from tenantsync.events import Event, parse
from tenantsync.observe import Delivery, Observer, Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenancy.engines import EngineFactory, make_engine
from tenantsync.tenancy.isolation import (
    DatabaseIsolation,
    Isolation,
    SchemaIsolation,
    SingleIsolation,
)
from tenantsync.tenancy.resolver import TenantResolver, TenantSource
from tenantsync.tenants import Placement, Tenant
from tenantsync.web.webhook import WebhookRouter

__all__ = [
    "ConfigError",
    "DatabaseIsolation",
    "Delivery",
    "EngineFactory",
    "Event",
    "IdentitySyncHandler",
    "Isolation",
    "Malformed",
    "Observer",
    "Outcome",
    "Placement",
    "SchemaIsolation",
    "SingleIsolation",
    "Tenant",
    "TenantNotIsolated",
    "TenantResolver",
    "TenantSource",
    "TenantSync",
    "TenantSyncError",
    "TenantUnavailable",
    "UnknownTenant",
    "Untrusted",
    "WebhookRouter",
    "make_engine",
    "parse",
]
