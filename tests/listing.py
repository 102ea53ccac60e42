"""A local AuthVital without HTTP, whose lists go straight to the reconciliation of some places."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import msgspec
from sqlalchemy import select

from tenantsync.authvital.memberships import Membership, Rows, TenantMemberships
from tenantsync.control.database import ControlDatabase
from tenantsync.control.reconciliations import Reconciliations
from tenantsync.events import parse
from tenantsync.migrate.control import upgrade_control
from tenantsync.models import Identity, SyncEvent
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.mirror import Mirror
from tenantsync.sync.reconcile import Reconciler
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement, Tenant
from tenantsync.testing.delivery import VirtualClock
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.listing import Call, Listing
from tenantsync.testing.outbox import Emission

NOW = 1_795_405_281.0
_DECODER = msgspec.json.Decoder(Membership)


def as_list(
    tenant_id: str,
    rows: Sequence[dict[str, Any]],
    *,
    date: int,
    total_count: int | None = None,
    waited: int = 0,
) -> TenantMemberships:
    """Return a list of these rows, each as the provider writes it."""
    raws = [msgspec.Raw(msgspec.json.encode(row)) for row in rows]
    return TenantMemberships(
        tenant_id=tenant_id,
        total_count=len(rows) if total_count is None else total_count,
        memberships=Rows(raws, _DECODER),
        date=date,
        waited=waited,
    )


def row(
    sub: str,
    *,
    status: str = "ACTIVE",
    membership: str | None = None,
    email: str | None = "",
    roles: Sequence[tuple[str, str]] = (),
    **names: str | None,
) -> dict[str, Any]:
    """Return one line of a list.

    Args:
        sub: Who.
        status: As the provider writes it.
        membership: Its id; None makes one of the `sub`.
        email: The address; "" makes one of the `sub`.
        roles: (application id, slug) of each role.
        names: `givenName` and `familyName`.
    """
    return {
        "id": membership or f"m-{sub}",
        "status": status,
        "user": {"id": sub, "email": f"{sub}@corp.test" if email == "" else email, **names},
        "roles": [{"slug": slug, "applicationId": application} for application, slug in roles],
    }


class Provider:
    """A local AuthVital: its state, and its lists as the client would return them.

    Attributes:
        now: The one clock that the provider and we agree on.
        ours: Our application.
        spoil: Changes a list before it is returned.

    Args:
        emulator: The rest of it; None makes one that is never served.
        clock: The emulator's clock.
    """

    def __init__(self, emulator: Emulator | None = None, clock: VirtualClock | None = None) -> None:
        self.now = clock or VirtualClock(NOW)
        self.emulator = emulator or Emulator(clock=self.now, sleep=self.now.sleep, seed=7)
        self.ours = self.emulator.state.add_application(
            "Ours", default_role="editor", machine="machine", secret="canary"
        )
        self.theirs = self.emulator.state.add_application("Theirs", default_role="viewer")
        self.do = self.emulator.actions
        self.spoil: Callable[[TenantMemberships], TenantMemberships] = lambda answer: answer
        self.asked: list[str] = []
        self._listing = Listing(self.emulator.state, self.now)

    def tenant(self, name: str, *, subscribed: bool = True) -> str:
        """Make a tenant that has our application, and return its id."""
        tenant_id = self.do.create_tenant(name).id
        if subscribed:
            kind = self.emulator.state.add_license_type(self.ours.id, f"Seat {name}")
            self.do.subscribe(tenant_id, kind.id, quantity=100)
        self.emulator.outbox.drop()
        return tenant_id

    def member(self, tenant_id: str, email: str, **names: str) -> str:
        """Add a member in silence, and return their `sub`."""
        user = self.do.add_user(email, **names)
        self.do.add_member(tenant_id, user.id, silent=True)
        return user.id

    def tenant_memberships(self, tenant_id: str) -> TenantMemberships:
        """Return a tenant's list."""
        self.asked.append(tenant_id)
        credential = replace(self.ours.credentials["MACHINE"], trusted=True)
        call = Call(credential, {"tenantId": tenant_id, "includeRoles": "true"})
        answer: Any = self._listing.answer("tenant-memberships", call)
        return self.spoil(as_list(tenant_id, answer["memberships"], date=int(self.now()) * 1000))


class House:
    """Tenants, each in a place, and all that keeps them like the provider.

    Args:
        provider: The provider.
        places: Tenant id -> where it lives.
        control: URL of the control database.
        stack: Closes what was opened.
        lists: Where the lists come from; None is the provider itself.
        reconciler: Further arguments of the Reconciler.
    """

    def __init__(
        self,
        provider: Provider,
        places: dict[str, Placement],
        control: str,
        stack: ExitStack,
        *,
        lists: Any = None,
        **reconciler: Any,
    ) -> None:
        self.provider = provider
        self.places = places
        self.tenants = [
            Tenant(tenant_id, f"t{number}", place)
            for number, (tenant_id, place) in enumerate(places.items())
        ]
        self.registry = stack.enter_context(EngineRegistry())
        by_id = {tenant.id: tenant for tenant in self.tenants}
        self.handler = stack.enter_context(
            IdentitySyncHandler(by_id.get, registry=self.registry, observers=[])
        )
        self.control = stack.enter_context(ControlDatabase(control))
        upgrade_control(self.control)
        self.reconciliations = Reconciliations(self.control)
        self.mirror = Mirror(self.registry, DatabaseIsolation(None))
        arguments: dict[str, Any] = {
            "application_id": provider.ours.id,
            "clock": provider.now,
            **reconciler,
        }
        self.reconciler = Reconciler(
            lists or provider, self.handler, self.mirror, self.reconciliations, **arguments
        )

    def deliver(self, emissions: Sequence[Emission]) -> list[Outcome]:
        """Deliver what our application hears of those emissions."""
        return [
            self.handler.handle_blocking(parse(emission.body()))
            for emission in emissions
            if emission.application_id == self.provider.ours.id and emission.channel == "sync"
        ]

    def reconcile(self, **options: Any) -> Any:
        """Reconcile all tenants, ten seconds after what happened before."""
        self.provider.now.sleep(10)
        return self.reconciler.reconcile(self.tenants, jobs=1, **options)

    def rows(self, tenant_id: str) -> dict[str, dict[str, Any]]:
        """Return all rows of a tenant's place by id."""
        table = Identity.__table__
        return {found["id"]: dict(found) for found in self._select(tenant_id, select(table))}

    def ledger(self, tenant_id: str) -> list[dict[str, Any]]:
        """Return the ledger of a tenant's place."""
        return [dict(found) for found in self._select(tenant_id, select(SyncEvent.__table__))]

    def execute(self, tenant_id: str, statement: Any) -> None:
        """Run a statement in a tenant's place."""
        place = self.places[tenant_id]
        with self.registry.connect(place) as connection, connection.begin():
            _translated(connection, place).execute(statement)

    def _select(self, tenant_id: str, query: Any) -> list[Any]:
        place = self.places[tenant_id]
        with self.registry.connect(place) as connection, connection.begin():
            return list(_translated(connection, place).execute(query).mappings())


def _translated(connection: Any, place: Placement) -> Any:
    return connection.execution_options(schema_translate_map={None: place.schema})
