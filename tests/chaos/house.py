"""A house for the chaos tests: tenants, a configuration, and what must be true of them all."""

import json
import socket
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from chaos.courier import Letter
from chaos.server import HOOKED
from fleets import write_revision
from folding import fold, stored
from guarding import ask, ledger

from tenantsync import TenantSync
from tenantsync.events import Event, parse
from tenantsync.migrate import upgrade
from tenantsync.migrate.control import upgrade_control
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Tenant
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.people import make_people, stream

APPLICATION = "cmwspxuxh0007ny7dn277ejhn"

EFFECTS = 'op.create_table("chaos_effects", sa.Column("event_id", sa.Text()))'
"""The table in which hooks leave a row per call, as the application's own migration."""


class House:
    """Tenants with their databases, and a control database of the same kind.

    Args:
        folder: For the configuration, and for SQLite files.
        emulator: A running one, whose keys are trusted.
        keys: The tenants' keys; the id of tenant `acme` is `id-acme`.
        database: URL of a PostgreSQL database for the tenants' schemas; None takes SQLite files.
        control: URL of the control database; None takes a SQLite file.
        urls: Tenant key -> URL of a place of its own.
        isolation: Further lines of the configuration's `[isolation]`.
        more: Further lines of the configuration.
    """

    def __init__(
        self,
        folder: Path,
        emulator: Emulator,
        keys: Sequence[str],
        *,
        database: str | None = None,
        control: str | None = None,
        urls: dict[str, str] | None = None,
        isolation: str = "",
        more: str = "",
    ) -> None:
        self.folder = folder
        revisions = folder / "versions"
        revisions.mkdir(parents=True)
        write_revision(revisions, "effects", EFFECTS)
        self.config = folder / "tenantsync.toml"
        self.config.write_text(
            _configuration(emulator, keys, database, control, urls or {}, isolation) + more
        )
        with TenantSync.from_toml(self.config) as sync:
            self.tenants: dict[str, Tenant] = {tenant.id: tenant for tenant in sync.tenants}
            locations = sync.settings.migrations.locations
            upgrade(sync.tenants, isolation=sync.isolation, locations=locations).check()
            upgrade_control(sync.control)
            self.control = sync.control.placement

    def adopt(self, tenant_id: str) -> None:
        """Take a tenant that was added at run time for one of the house."""
        with TenantSync.from_toml(self.config) as sync:
            (tenant,) = (tenant for tenant in sync.tenants if tenant.id == tenant_id)
        self.tenants[tenant_id] = tenant

    def configure(self, text: str) -> None:
        """Write another configuration, for processes that start from now on."""
        self.config.write_text(text)

    def rows(self) -> dict[str, list[Any]]:
        """Return the people and the tombstones of every tenant, by tenant id."""
        return {
            tenant.id: [
                *sorted(ask(tenant.placement, "SELECT id, clocks FROM {s}av_identities"), key=str),
                *sorted(ask(tenant.placement, "SELECT id FROM {s}av_identity_tombstones")),
            ]
            for tenant in self.tenants.values()
        }

    def ledgers(self) -> dict[str, list[str]]:
        """Return the ids in every tenant's ledger, by tenant id."""
        return {tenant.id: ledger(tenant.placement) for tenant in self.tenants.values()}

    def let_leases_end(self) -> None:
        """Make it as if the minute had passed that a killed worker's leases last."""
        ask(
            self.control,
            "UPDATE {s}lanes SET due_at = '2001-01-01 00:00:00.000000' WHERE owner IS NOT NULL",
        )

    def waiting(self) -> dict[str, int]:
        """Return how many events wait in the inbox, by tenant id."""
        query = "SELECT tenant_id, count(*) FROM {s}inbox WHERE state = 'parked' GROUP BY tenant_id"
        return {row[0]: row[1] for row in ask(self.control, query)}

    def entries(self) -> dict[tuple[str, str], tuple[str, str | None]]:
        """Return state and outcome of what the inbox holds, by tenant id and event id."""
        return {(row[0], row[1]): (row[2], row[3]) for row in self._entries()}

    def effects(self, tenant: Tenant) -> Counter[str]:
        """Return how often each event's hook left its mark."""
        return Counter(
            row[0] for row in ask(tenant.placement, "SELECT event_id FROM {s}chaos_effects")
        )

    def examine(self, post: Iterable[Letter], *, drained: bool = True) -> None:
        """Fail unless everything that was promised of these deliveries is true.

        Args:
            post: Everything that was ever sent.
            drained: Whether nothing may wait any more.
        """
        acknowledged, events = _read(post)
        entries = self.entries()
        if drained:
            waiting = [key for key, (state, _) in entries.items() if state == "parked"]
            assert not waiting, f"{len(waiting)} events still wait"
        with EngineRegistry() as registry:
            for tenant in self.tenants.values():
                own = events.get(tenant.id, {})
                mirror = stored(registry, tenant.placement)
                applied = mirror.ledger.keys()
                assert applied <= own.keys(), "an event that nobody sent, or another tenant's"
                expected = fold(own[event_id] for event_id in applied)
                assert expected == mirror, f"{tenant.key} is not what its events say"
                for event_id in acknowledged[tenant.id] - applied:
                    state, outcome = entries.get((tenant.id, event_id), ("nowhere", None))
                    gone = own[event_id].sub in mirror.tombstones
                    kept = state in ("parked", "quarantined") or (gone and outcome == "stale")
                    assert kept, f"{tenant.key} lost {event_id}: {state}, {outcome}"
                self._examine_effects(tenant, own, applied, mirror.tombstones)

    def _examine_effects(
        self, tenant: Tenant, own: dict[str, Event], applied: Any, tombstones: Any
    ) -> None:
        effects = self.effects(tenant)
        assert effects.keys() <= applied, "a hook's effect outlived its event"
        for event_id in applied:
            event = own[event_id]
            hooked = event.type.startswith(HOOKED.removesuffix("*"))
            # Of an event for a person who was deleted before, hooks hear nothing.
            least = int(hooked and event.sub not in tombstones)
            assert least <= effects[event_id] <= int(hooked), (
                f"{event_id} ({event.type}) had {effects[event_id]} effects"
            )

    def _entries(self) -> list[tuple[str, str, str, str | None]]:
        query = "SELECT tenant_id, event_id, state, outcome FROM {s}inbox"
        return [tuple(row) for row in ask(self.control, query)]


def lives(
    emulator: Emulator, tenant_ids: Iterable[str], people: int, *, seed: int = 0
) -> list[bytes]:
    """Return what happens to so many people of each tenant, the tenants' events interleaved."""
    streams = [
        stream(tenant_id, APPLICATION, make_people(people, seed=seed + 7 * index), seed=seed)
        for index, tenant_id in enumerate(tenant_ids)
    ]
    longest = max(map(len, streams))
    return [one[index] for index in range(longest) for one in streams if index < len(one)]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read(post: Iterable[Letter]) -> tuple[dict[str, set[str]], dict[str, dict[str, Event]]]:
    acknowledged: dict[str, set[str]] = defaultdict(set)
    events: dict[str, dict[str, Event]] = defaultdict(dict)
    for letter in post:
        if letter.system:
            continue
        event = parse(letter.body)
        events[event.tenant_id][event.id] = event
        mirrored = event.type.split(".")[0] in ("subject", "member", "app_access")
        if letter.acknowledged and mirrored:
            acknowledged[event.tenant_id].add(event.id)
    return acknowledged, events


def _configuration(
    emulator: Emulator,
    keys: Sequence[str],
    database: str | None,
    control: str | None,
    urls: dict[str, str],
    isolation: str,
) -> str:
    if database is None:
        isolation += 'strategy = "database"\nurl = "sqlite:///places/{key}.db"\n'
    else:
        isolation += f'strategy = "schema"\nurl = {json.dumps(database)}\n'
    lines = [
        f'[authvital]\nhost = "{emulator.url}"\napplication_id = "{APPLICATION}"',
        f"[control]\nurl = {json.dumps(control or 'sqlite:///control.db')}",
        f"[isolation]\n{isolation}",
        '[worker]\ninterval = "0.2s"',
        '[migrations]\nlocations = ["versions"]',
    ]
    for key in keys:
        own = f"url = {json.dumps(urls[key])}\n" if key in urls else ""
        lines.append(f'[tenants.{key}]\nid = "id-{key}"\n{own}')
    return "\n".join(lines) + "\n"
