"""A house with one tenant, an inbox, and what the doors for system events and Pub/Sub lead to."""

import json
from datetime import UTC, datetime

from guarding import APPLICATION

from tenantsync.control.catalog import Catalog
from tenantsync.control.database import ControlDatabase
from tenantsync.control.directory import Directory
from tenantsync.control.inbox import Inbox, State
from tenantsync.control.profiles import TenantProfiles
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.hooks import Hooks
from tenantsync.sync.parking import Parking
from tenantsync.sync.system import SystemEventHandler
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.resolver import TenantResolver
from tenantsync.tenants import Tenant

ACME, NEW = "93ce0187-9290-491b-9f06-be209b3d2f92", "2f0c1c1e-4a8a-4d4e-9c52-9f1a3a0f7a11"
NOON = 1_793_000_400_000


class House:
    """One tenant in a file of its own, an inbox, and everything that system events touch."""

    def __init__(self, folder, url, policy):
        self.told = []
        self.hooks = Hooks()
        self.isolation = DatabaseIsolation(f"sqlite:///{folder}/{{key}}.db")
        self.place = self.isolation.place("acme")
        self.control = ControlDatabase(url, connect_timeout=1)
        self.catalog = Catalog(self.control)
        self.inbox = Inbox(self.control)
        self.profiles = TenantProfiles(self.control)
        self.directory = Directory(
            [Tenant(ACME, "acme", self.place)], self.catalog, self.isolation, refresh_after=0.0
        )
        self.parking = Parking(self.inbox)
        self.handler = IdentitySyncHandler(
            TenantResolver(self.directory),
            isolation=self.isolation,
            parking=self.parking,
            hooks=self.hooks,
            observers=[self.told.append],
        )
        self.policy = policy
        self.system = SystemEventHandler(
            self.handler,
            self.profiles,
            application_id=APPLICATION,
            find=self.directory.find,
            suspend=self.suspend,
            hooks=self.hooks,
            policy=policy,
        )

    def suspend(self, key):
        """Suspend a tenant, at once for all that ask the directory."""
        self.catalog.suspend(key)
        self.directory.forget()

    def close(self):
        """Close whatever was opened."""
        self.handler.close()
        self.parking.close()
        self.control.close()

    def parked(self):
        """Return what waits in the inbox, as pairs of type and reason."""
        return [(entry.type, entry.reason) for entry in self.inbox.list(state=State.PARKED)]

    def reasons(self):
        """Return why deliveries were answered as they were."""
        return [delivery.reason for delivery in self.told]


def moment(at):
    """Return milliseconds as the provider writes them."""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")


def system_body(kind, at=NOON, **data):
    """Return the body of a system event."""
    return json.dumps({"event": kind, "timestamp": moment(at), "data": data}).encode()


def created(tenant=NEW, name="New Ltd", slug="new", **data):
    """Return the payload of `tenant.created`."""
    return {"tenant_id": tenant, "name": name, "slug": slug, "settings": {}, **data}


def granted(sub="ann", application=APPLICATION, access="GRANTED", tenant=ACME):
    """Return the payload of `tenant.app.granted`."""
    return {
        "tenant_id": tenant,
        "user_id": sub,
        "application_id": application,
        "access_type": access,
        "user_email": "ann@example.test",
    }
