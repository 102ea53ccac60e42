"""What a local AuthVital's super-admin does with applications and sign-on providers.

Systems hear of it, under no tenant; applications hear nothing, not even of themselves.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tenantsync.testing.delivery import iso
from tenantsync.testing.tables import AccessMode, Application, License, Provider
from tenantsync.testing.telling import Telling

__all__ = ["Administering"]

_SEATS = 5  # how many seats AuthVital writes down for an application that says nothing of them

# What counts as a change, under the name by which it is told.
_TOLD_AS = MappingProxyType(
    {
        "name": "name",
        "description": "description",
        "licensing": "licensing.mode",
        "access_mode": "access_mode",
        "webhook_url": "webhook_url",
        "webhook_enabled": "webhook_enabled",
    }
)
_SILENT = ("webhook_events", "default_role", "on_sign_up", "to_owner")
_SSO_FIELDS = (
    "clientId",
    "clientSecret",
    "enabled",
    "scopes",
    "allowedDomains",
    "autoCreateUser",
    "autoLinkExisting",
)


class Administering(Telling):
    """Applications and single sign-on, which belong to the whole instance."""

    def create_application(
        self,
        name: str,
        *,
        description: str | None = None,
        redirect_uris: Sequence[str] = (),
        licensing: License = "FREE",
        access_mode: AccessMode = "AUTOMATIC",
        client: bool = True,
        **options: Any,
    ) -> Application:
        """Create an application as super-admin; `state.add_application` does it in silence.

        Args:
            name: Its name; the slug is made of it.
            description: A text, or None.
            redirect_uris: Where its browser credential may send people back to.
            licensing: How access is paid for.
            access_mode: How members come by access: told, and without effect here.
            client: Whether it gets credentials at once; without, `client_id` is null.
            options: Further arguments of `State.add_application`.
        """
        with self._state.lock:
            application = self._state.add_application(name, licensing=licensing, **options)
            application.description, application.access_mode = description, access_mode
            application.created_at = self._now()
            if not client:
                application.credentials.clear()
            data = {
                **_about(application),
                "created_at": iso(application.created_at),
                "config": {
                    "redirect_uris": list(redirect_uris),
                    "post_logout_redirect_uris": [],
                    "initiate_login_uri": None,
                    "access_token_ttl_seconds": 3600 if client else None,
                    "refresh_token_ttl_seconds": 604_800 if client else None,
                },
                "licensing": _licensing(application),
            }
            self._tell_systems("application.created", "", data, application.id)
            return application

    def change_application(self, application_id: str, **changes: Any) -> None:
        """Change an application's fields; systems hear of some of them, and only if they differ.

        Args:
            application_id: Which.
            changes: Fields of `Application`. Told are `name`, `description`, `licensing`,
                `access_mode`, `webhook_url` and `webhook_enabled`; in silence change
                `webhook_events`, `default_role`, `on_sign_up` and `to_owner`.

        Raises:
            TypeError: Another field is named.
        """
        wrong = changes.keys() - _TOLD_AS.keys() - set(_SILENT)
        if wrong:
            known = ", ".join((*_TOLD_AS, *_SILENT))
            raise TypeError(
                f"{', '.join(sorted(wrong))} cannot be changed: choose of {known}, "
                "or use switch_application"
            )
        with self._state.lock:
            application = self._state.applications[application_id]
            previous = {name: getattr(application, name) for name in changes}
            for name, value in changes.items():
                setattr(application, name, value)
            differing = {
                told_as: previous[name]
                for name, told_as in _TOLD_AS.items()
                if name in changes and changes[name] != previous[name]
            }
            if differing:
                self._tell_changed(application, differing)

    def switch_application(self, application_id: str, *, on: bool) -> None:
        """Enable or disable an application; only a disabled one can be deleted.

        Raises:
            ValueError: It is so already.
        """
        with self._state.lock:
            application = self._state.applications[application_id]
            if application.active is on:
                raise ValueError(
                    f"{application.name!r} is {'enabled' if on else 'disabled'} already: "
                    f"switch it with on={not on}"
                )
            application.active = on
            self._tell_changed(application, {"is_active": not on})

    def delete_application(self, application_id: str) -> None:
        """Delete a disabled application with its roles, subscriptions, access and seats.

        Raises:
            ValueError: It is enabled.
        """
        with self._state.lock:
            application = self._state.applications[application_id]
            if application.active:
                raise ValueError(
                    f"{application.name!r} is enabled: switch_application(..., on=False) first"
                )
            about = _about(application)
            kept = ("application_id", "tenant_id", "name", "slug", "client_id")
            data = {**{name: about[name] for name in kept}, "deleted_at": self._iso()}
            self._forget_application(application)
            self._tell_systems("application.deleted", "", data, application.id)

    def set_sso_provider(self, provider: Provider, *, enabled: bool = True) -> None:
        """Set up a sign-on provider: told as added every time, also when it was there."""
        with self._state.lock:
            self._state.sso_providers.add(provider)
            data = {**_sso(provider), "display_name": provider, "is_enabled": enabled}
            self._tell_systems("sso.provider_added", "", data)

    def change_sso_provider(self, provider: Provider, fields: Sequence[str]) -> None:
        """Change a sign-on provider; systems hear the names of the fields, and no values.

        Args:
            provider: Which.
            fields: As AuthVital's API spells them: `clientId`, `clientSecret`, `enabled`, `scopes`,
                `allowedDomains`, `autoCreateUser`, `autoLinkExisting`.

        Raises:
            TypeError: Another field is named.
            LookupError: The provider is not set up.
        """
        wrong = [name for name in fields if name not in _SSO_FIELDS]
        if wrong:
            raise TypeError(
                f"a provider has no {', '.join(wrong)}: choose of {', '.join(_SSO_FIELDS)}"
            )
        with self._state.lock:
            self._need_provider(provider)
            data = {**_sso(provider), "changed_fields": list(fields)}
            self._tell_systems("sso.provider_updated", "", data)

    def remove_sso_provider(self, provider: Provider) -> None:
        """Remove a sign-on provider.

        Raises:
            LookupError: The provider is not set up.
        """
        with self._state.lock:
            self._need_provider(provider)
            self._state.sso_providers.remove(provider)
            data = {**_sso(provider), "removed_at": self._iso()}
            self._tell_systems("sso.provider_removed", "", data)

    def _need_provider(self, provider: Provider) -> None:
        if provider not in self._state.sso_providers:
            raise LookupError(f"{provider} is not set up: call set_sso_provider() first")

    def _tell_changed(self, application: Application, previous: Mapping[str, Any]) -> None:
        data = {
            **_about(application),
            "changed_fields": list(previous),
            "previous_values": dict(previous),
            "licensing": _licensing(application),
        }
        self._tell_systems("application.updated", "", data, application.id)

    def _forget_application(self, application: Application) -> None:
        state = self._state
        gone = application.id
        del state.applications[gone]
        for membership in state.memberships.values():
            kept = [one for one in membership.role_ids if one not in application.roles]
            membership.role_ids[:] = kept
        for key in [key for key in state.access if key[2] == gone]:
            del state.access[key]
        for table in (state.license_types, state.subscriptions, state.seats):
            for id_ in [row.id for row in table.values() if row.application_id == gone]:
                del table[id_]


def _about(application: Application) -> dict[str, Any]:
    first = next(iter(application.credentials.values()), None)
    return {
        "application_id": application.id,
        "tenant_id": None,
        "name": application.name,
        "description": application.description,
        "slug": application.slug,
        "client_id": None if first is None else first.client_id,
        "application_type": application.access_mode,
        "is_active": application.active,
    }


def _licensing(application: Application) -> dict[str, Any]:
    return {
        "mode": application.licensing,
        "allow_mixed": False,
        "default_seat_count": _SEATS,
        "auto_provision_on_signup": application.on_sign_up,
        "auto_grant_to_owner": application.to_owner,
    }


def _sso(provider: Provider) -> dict[str, Any]:
    return {"provider_id": provider, "tenant_id": None, "provider_type": provider}
