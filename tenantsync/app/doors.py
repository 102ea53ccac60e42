"""The doors: who may knock, and which URLs they stand at."""

from functools import cached_property

from starlette.routing import Route
from starlette.types import ASGIApp

from tenantsync.app.parts import Parts
from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.signatures import SystemVerifier, Verifier
from tenantsync.authvital.tokens import TokenVerifier, google_issuers
from tenantsync.sync.system import AnnouncementPolicy, SystemEventHandler
from tenantsync.web.door import NotFound
from tenantsync.web.ops import Check, Readiness, ops_routes
from tenantsync.web.pubsub import PubSubRouter
from tenantsync.web.system import SystemWebhookRouter
from tenantsync.web.webhook import WebhookRouter

__all__ = ["Doors"]


class Doors(Parts):
    """The parts of a TenantSync, and the doors that lead to them."""

    @cached_property
    def keys(self) -> KeyRing:
        """AuthVital's public keys."""
        return KeyRing(f"{self.settings.authvital.host}/.well-known/jwks.json")

    @cached_property
    def webhook(self) -> WebhookRouter:
        """The door for sync webhooks."""
        settings = self.settings.authvital
        return WebhookRouter(
            self.handler,
            application_id=settings.application_id,
            verifier=Verifier(self.keys, max_age=settings.max_age, max_skew=settings.max_skew),
            documented_dialect=settings.documented_dialect,
        )

    @cached_property
    def system(self) -> SystemEventHandler:
        """What does what AuthVital says of tenants as a whole."""
        return SystemEventHandler(
            self.handler,
            self.profiles,
            application_id=self.settings.authvital.application_id,
            find=self.resolver.find_blocking,
            suspend=self._suspend,
            hooks=self._hooks,
            policy=self._policy,
        )

    @cached_property
    def system_webhook(self) -> SystemWebhookRouter:
        """The door for system webhooks."""
        return SystemWebhookRouter(self.system, verifier=SystemVerifier(self.keys))

    @cached_property
    def pubsub(self) -> PubSubRouter | None:
        """The door for Pub/Sub push; None where `[pubsub]` does not open it."""
        settings = self.settings.pubsub
        if settings.audience is None or settings.service_account is None:
            return None
        return PubSubRouter(
            self.handler,
            self.system,
            application_id=self.settings.authvital.application_id,
            tokens=TokenVerifier(
                KeyRing(settings.jwks_url, owner="Google", setting="pubsub.jwks_url"),
                issuers=google_issuers(settings.issuer),
                audience=[settings.audience],
            ),
            service_account=settings.service_account,
        )

    def routes(self, path: str = "/webhooks/authvital") -> list[Route]:
        """Return the routes to mount, at exactly these paths.

        The sync webhook at `path`, the system webhook at `system` beneath it, and Pub/Sub push at
        `pubsub` beneath it where `[pubsub]` opens that door. With a slash more, or less, there is
        a plain 404: where nothing is, frameworks redirect, and AuthVital may take what it finds
        there for success.

        Raises:
            ConfigError: The configuration's `[authvital]`, `[isolation]` or `[pubsub]` is
                incomplete, or `[worker] signals` wants an extra that is not installed.
        """
        _ = self.signals  # what is wrong with them is said now, not when an event is parked
        base = path.removesuffix("/")
        doors: dict[str, ASGIApp] = {path: self.webhook, f"{base}/system": self.system_webhook}
        if self.pubsub is not None:
            doors[f"{base}/pubsub"] = self.pubsub
        routes = []
        for exact, door in doors.items():
            sibling = exact.removesuffix("/") if exact.endswith("/") else f"{exact}/"
            routes.append(Route(exact, door))
            if sibling:
                routes.append(Route(sibling, NotFound()))
        return routes

    def ops_routes(self) -> list[Route]:
        """Return `/healthz`, `/readyz` and `/metrics`, to mount where strangers do not come."""
        # Keys and lists serve on through an outage for a while; then deliveries would be refused.
        checks = {
            "keys": Check(self.keys.refresh, fresh_for=60.0, lasts=3_600.0),
            "control": Check(self.inbox_totals, lasts=3_600.0),
        }
        metrics = self.metrics
        return ops_routes(Readiness(checks), metrics=None if metrics is None else metrics.render)

    @cached_property
    def _policy(self) -> AnnouncementPolicy:
        section = self.settings.provisioning
        return AnnouncementPolicy(section.on_tenant_created, section.allowlist)
