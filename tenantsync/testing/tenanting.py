"""What happens to a local AuthVital's tenants, and who hears of it: systems, and no application."""

from collections.abc import Mapping
from typing import Any

from tenantsync.testing.delivery import iso
from tenantsync.testing.joining import Joining
from tenantsync.testing.tables import Tenant
from tenantsync.testing.telling import told

__all__ = ["Tenanting"]


class Tenanting(Joining):
    """Making, changing and deleting tenants."""

    def create_tenant(
        self,
        name: str,
        *,
        by: str | None = None,
        owner: str | None = None,
        id: str | None = None,
        subscribe: bool = True,
    ) -> Tenant:
        """Create a tenant: by a person, who then owns it, or as super-admin.

        Systems hear of it; of the owner's membership, nobody.

        Args:
            name: Its name; the slug is made of it.
            by: The `sub` of the person.
            owner: The `sub` of the owner that a super-admin names.
            id: Its id; None makes one.
            subscribe: Whether a super-admin's tenant with an owner gets the applications that
                every sign-up gets; systems hear of those before they hear of the tenant.
        """
        with self._state.lock:
            tenant = self._new_tenant(name, id)
            data: dict[str, Any] = {
                **_names(tenant),
                "created_at": iso(tenant.created_at),
                "settings": dict(tenant.settings),
            }
            first = by or owner
            if first is not None:
                membership = self._join(tenant.id, first, roles=["owner"])
                data |= told({"owner_email": self._state.users[first].email})
                if by is None and subscribe:
                    self._provide(membership)
            if by is not None:
                data["created_by_sub"] = by
            self._tell_systems("tenant.created", tenant.id, data)
            return tenant

    def change_tenant(
        self,
        tenant_id: str,
        *,
        name: str | None = None,
        slug: str | None = None,
        settings: Mapping[str, Any] | None = None,
        initiate_login_uri: str | None = None,
        by: str | None = None,
    ) -> None:
        """Change a tenant. Systems hear which fields changed, and of none if none did.

        A name or slug that stays as it was counts as no change; settings and the login address
        count whenever they are given.

        Args:
            tenant_id: Which.
            name: The new name; the slug stays.
            slug: The new slug, which another tenant may have had before.
            settings: All settings anew: any JSON object, however large.
            initiate_login_uri: Where people sign in; only a super-admin sets it.
            by: The `sub` of whoever does it; None is a super-admin.

        Raises:
            ValueError: Another tenant has the slug.
            TypeError: A person sets the login address, or a super-admin the settings.
        """
        if by is not None and initiate_login_uri is not None:
            raise TypeError("only a super-admin sets initiate_login_uri: leave `by` out")
        if by is None and settings is not None:
            raise TypeError("only a person of the tenant changes settings: say `by` whom")
        with self._state.lock:
            tenant = self._state.tenants[tenant_id]
            if any(one.slug == slug and one is not tenant for one in self._state.tenants.values()):
                raise ValueError(f"another tenant has the slug {slug!r}: rename that one first")
            changed = []
            if name is not None and name != tenant.name:
                tenant.name = name
                changed.append("name")
            if slug is not None and slug != tenant.slug:
                tenant.slug = slug
                changed.append("slug")
            if settings is not None:
                tenant.settings = dict(settings)
                changed.append("settings")
            if initiate_login_uri is not None:
                tenant.initiate_login_uri = initiate_login_uri
                changed.append("initiateLoginUri")
            if changed:
                self._tell_updated(tenant_id, changed, by=by)

    def rename_tenant(self, tenant_id: str, name: str, *, by: str | None = None) -> None:
        """Rename a tenant; its slug stays. See `change_tenant`."""
        self.change_tenant(tenant_id, name=name, by=by)

    def delete_tenant(self, tenant_id: str, *, refused: bool = False) -> None:
        """Delete a tenant with its memberships; systems hear of it, and nobody of the members.

        Args:
            tenant_id: Which.
            refused: Whether the database then refuses: systems were told before, and the tenant
                goes on living.
        """
        with self._state.lock:
            tenant = self._state.tenants[tenant_id]
            data = {**_names(tenant), "deleted_at": self._iso()}
            self._tell_systems("tenant.deleted", tenant_id, data)
            if not refused:
                self._forget_tenant(tenant_id)

    def _forget_tenant(self, tenant_id: str) -> None:
        for membership in self._state.members(tenant_id):
            self._forget_membership(membership)
        for key in [key for key in self._state.access if key[0] == tenant_id]:
            del self._state.access[key]
        for seat in [s for s in self._state.seats.values() if s.tenant_id == tenant_id]:
            del self._state.seats[seat.id]
        gone = [s for s in self._state.subscriptions.values() if s.tenant_id == tenant_id]
        for subscription in gone:
            del self._state.subscriptions[subscription.id]
        del self._state.tenants[tenant_id]

    def _tell_updated(self, tenant_id: str, fields: list[str], *, by: str | None = None) -> None:
        tenant = self._state.tenants[tenant_id]
        data = {
            **_names(tenant),
            "changed_fields": fields,
            "settings": dict(tenant.settings),
            **told({"updated_by_sub": by}),
        }
        self._tell_systems("tenant.updated", tenant_id, data)


def _names(tenant: Tenant) -> dict[str, str]:
    return {"tenant_id": tenant.id, "name": tenant.name, "slug": tenant.slug}
