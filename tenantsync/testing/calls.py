"""A request to the integration API that passed its guards, and how it is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tenantsync.testing.tables import Credential

__all__ = ["Call", "Refused"]


class Refused(Exception):
    """An answer that is no 200.

    Args:
        status: The status.
        message: What the provider says.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Call:
    """A request that passed the guards of token and scope.

    Args:
        credential: Who asks.
        query: The query's names and values.
    """

    credential: Credential
    query: Mapping[str, str] = field(repr=False)

    def need(self, *names: str) -> list[str]:
        """Return the values of these names, or refuse."""
        for name in names:
            if not self.query.get(name):
                raise Refused(400, f"{name} is required")
        return [self.query[name] for name in names]

    def may(self, tenant_id: str) -> None:
        """Refuse unless the credential may be told of this tenant."""
        if not self.credential.may_read(tenant_id):
            raise Refused(403, "This client is not authorized for the requested tenant")

    def may_all(self) -> None:
        """Refuse unless the credential may be told of every tenant."""
        if not self.credential.trusted:
            raise Refused(403, "This client is not trusted for all tenants")
