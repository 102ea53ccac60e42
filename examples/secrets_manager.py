"""Tenants whose database URLs and passwords stay in a secrets manager.

`SecretTenants` tells where a tenant lives; `rotating_engines` asks for the password at each new
connection, so that a rotated one is used without a restart.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol

from sqlalchemy import Engine, event
from sqlalchemy.engine import URL

from tenantsync import EngineFactory, Placement, Tenant, make_engine


class Secrets(Protocol):
    """What is needed of a secrets manager; boto3, hvac and their like are soon wrapped."""

    def read(self, name: str) -> str:
        """Return a secret.

        Raises:
            Exception: The secrets manager does not answer. The event is then answered 503, and
                AuthVital sends it again.
        """


class SecretTenants:
    """A tenant source: who is a tenant stands in a catalogue, where it lives is a secret.

    Args:
        keys: AuthVital's tenant id -> the tenant's key. The id is a stranger's text until it is
            found here; the name of the secret is made from the key.
        secrets: The secrets manager.
    """

    def __init__(self, keys: Mapping[str, str], secrets: Secrets) -> None:
        self._keys = keys
        self._secrets = secrets

    def find(self, tenant_id: str) -> Tenant | None:
        """Return the tenant, or None where the catalogue has none: that event is ignored."""
        key = self._keys.get(tenant_id)
        if key is None:
            return None
        url = self._secrets.read(f"tenants/{key}/database-url")
        return Tenant(tenant_id, key, Placement.of(url))


def rotating_engines(secrets: Secrets) -> EngineFactory:
    """Return a factory of engines that ask for their password whenever they connect."""

    def factory(url: URL, *, pool_size: int) -> Engine:
        engine = make_engine(url, pool_size=pool_size)

        @event.listens_for(engine, "do_connect")
        def connect(
            dialect: object, record: object, arguments: object, options: MutableMapping[str, Any]
        ) -> None:
            options["password"] = secrets.read(f"databases/{url.database}/password")

        return engine

    return factory
