"""The provider's own retries, on a virtual clock, against a receiver and tenants with outages."""

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from folding import fold, histories, stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.signatures import Verifier
from tenantsync.control.database import ControlDatabase
from tenantsync.control.inbox import Inbox
from tenantsync.events import Dialect, Event, parse
from tenantsync.migrate.control import upgrade_control
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.parking import Parking
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenancy.resolver import TenantResolver
from tenantsync.tenants import Placement, Tenant
from tenantsync.testing.delivery import Delivery, VirtualClock
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.ladders import SYNC_BROKER, SYNC_LEGACY, Reply, Sender
from tenantsync.web.webhook import WebhookRouter
from tenantsync.worker.drain import Drainer

START = 1_787_378_400.0
APPLICATION = "app"
PLACES = {"t1": "a", "T1": "b", "t2": "c"}
EXAMPLES = 300 if os.environ.get("TENANTSYNC_CHAOS") == "full" else 40
DAY = 86_400.0


@dataclass(frozen=True)
class Outage:
    """Something is out of order for a while.

    Args:
        what: `down` (the receiver), `deaf` (its answers are lost), `slow` (they come too late), or
            the id of a tenant whose database is locked.
        begins: Seconds from the start.
        lasts: Seconds.
    """

    what: str
    begins: float
    lasts: float


outages = st.lists(
    st.builds(
        Outage,
        st.sampled_from(["down", "down", "deaf", "slow", *PLACES]),
        st.integers(0, 7_200).map(float),
        st.sampled_from([1.0, 40.0, 130.0, 500.0, 4_000.0, DAY]),
    ),
    max_size=5,
)


class World:
    """A receiver with three tenants, on the virtual clock.

    Args:
        folder: Holds the SQLite files.
        clock: The virtual clock.
        key: What AuthVital signs with.
        registered: Tenant id -> unix seconds of the virtual clock from which it is registered.
        outages: What is out of order, and when.
    """

    def __init__(
        self,
        folder: Path,
        clock: VirtualClock,
        key: SigningKey,
        registered: dict[str, float],
        outages: list[Outage],
    ) -> None:
        self.clock = clock
        self.emulator = Emulator(keys=Keys(key, clock=clock), clock=clock)
        self.places = {
            name: Placement.of(f"sqlite:///{folder}/{file}.db") for name, file in PLACES.items()
        }
        self.committed: dict[str, Event] = {}
        self._registered = registered
        self._outages = outages
        self._locks: dict[str, sqlite3.Connection] = {}
        self._control = ControlDatabase(f"sqlite:///{folder}/control.db")
        self.inbox = Inbox(self._control)
        self.registry = EngineRegistry(
            patience=0.2, factory=partial(make_engine, connect_timeout=0.2, lock_timeout=0.01)
        )
        self._parking = Parking(self.inbox)
        self.handler = IdentitySyncHandler(
            TenantResolver(self, clock=clock),
            registry=self.registry,
            parking=self._parking,
            statement_timeout=0.1,
            observers=(),
        )
        jwks = json.dumps(self.emulator.jwks()).encode()
        # The ring's own clock stands still: there is nothing to fetch anew.
        keys = KeyRing("http://keys.test", fetch=lambda url, no_cache: jwks, clock=lambda: 0.0)
        self._router = WebhookRouter(
            self.handler, application_id=APPLICATION, verifier=Verifier(keys, clock=clock)
        )

    def find(self, tenant_id: str) -> Tenant | None:
        """Return a tenant once it is registered."""
        if self.clock() < self._registered.get(tenant_id, float("inf")):
            return None
        return Tenant(tenant_id, f"k{PLACES[tenant_id]}", self.places[tenant_id])

    def receive(self, delivery: Delivery) -> Reply:
        """Take a delivery, as far as nothing is out of order."""
        broken = self._broken()
        if "down" in broken:
            return Reply(None)
        self._lock_only(broken & self.places.keys())
        status, answer = self._router.handle_blocking(delivery.body, delivery.headers)
        assert status in (200, 202), (status, answer)
        event = parse(delivery.body)
        self.committed[event.id] = event
        if "deaf" in broken:
            return Reply(None)
        return Reply(status, seconds=31.0 if "slow" in broken else 0.1)

    def drain(self, *, repaired: bool = False) -> None:
        """Let a worker have a turn; when all is repaired, for as long as anything waits."""
        if repaired:
            self._outages = []
            self._registered = dict.fromkeys(PLACES, 0.0)
        self._lock_only(self._broken() & self.places.keys())
        drainer = Drainer(self.inbox, self.handler, owner="test")
        for _ in range(20 if repaired else 1):
            for tenant_id in PLACES:
                self.handler.forget(tenant_id)
                if repaired:
                    self.inbox.wake([tenant_id])
                    self.inbox.retry(tenant_id=tenant_id)
                lane = drainer.claim(tenant_id)
                if lane is not None:
                    drainer.drain(lane)
            if not self.inbox.lanes():
                return

    def close(self) -> None:
        """End it."""
        self._lock_only(set())
        self._router.close()
        self.handler.close()
        self._parking.close()
        self.registry.close()
        self._control.close()

    def _broken(self) -> set[str]:
        now = self.clock() - START
        return {
            outage.what
            for outage in self._outages
            if outage.begins <= now < outage.begins + outage.lasts
        }

    def _lock_only(self, names: set[str]) -> None:
        for name in self._locks.keys() - names:
            self._locks.pop(name).close()
        for name in names - self._locks.keys():
            connection = sqlite3.connect(str(self.places[name].url.database), isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            self._locks[name] = connection


@pytest.fixture(scope="module")
def key() -> SigningKey:
    """Give the key that AuthVital signs with."""
    return SigningKey.generate(START)


@pytest.fixture
def fresh(migrated_templates, tmp_path) -> Iterator[object]:
    """Give what makes the world anew for each example."""
    control = tmp_path / "control.db"
    with ControlDatabase(f"sqlite:///{control}") as database:
        upgrade_control(database)
    template = migrated_templates(0)

    @contextmanager
    def make(folder: Path, *arguments: object) -> Iterator[World]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copyfile(control, folder / "control.db")
        for name in PLACES.values():
            shutil.copyfile(template, folder / f"{name}.db")
        with ExitStack() as stack:
            world = World(folder, *arguments)
            stack.callback(world.close)
            yield world

    return make


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=histories(max_size=12),
    outages=outages,
    registered=st.tuples(*(st.sampled_from([0.0, 0.0, 600.0, DAY]) for _ in PLACES)),
    ladder=st.sampled_from([SYNC_LEGACY, SYNC_BROKER]),
    seed=st.integers(0, 2**32),
)
def test_whatever_was_delivered_is_mirrored(
    fresh, key, tmp_path, history, outages, registered, ladder, seed
):
    """The mirror is the fold of all events that were delivered at least once, heard or not."""
    chance = random.Random(seed)  # noqa: S311 - moments, not secrets
    clock = VirtualClock(START)
    since = {name: START + at for name, at in zip(PLACES, registered, strict=True)}
    with fresh(tmp_path / "world", clock, key, since, outages) as world:
        sender = Sender(
            ladder,
            world.receive,
            clock=clock,
            sign=world.emulator.delivery,
            double=lambda: chance.random() < 0.2,
        )
        for event in history:
            if event.dialect is Dialect.SYNC:
                sender.run(until=clock() + chance.choice([0.0, 0.5, 30.0, 1_200.0]))
                sender.emit(body_of(world.emulator, event))
                if chance.random() < 0.2:
                    world.drain()
        sender.run()
        heard = {json.loads(one.body)["id"] for one in sender.postings if one.delivered}
        world.drain(repaired=True)

        assert heard <= world.committed.keys()
        assert not world.inbox.lanes()
        for tenant_id, place in world.places.items():
            own = [e for e in world.committed.values() if e.tenant_id == tenant_id]
            told, held = fold(own), stored(world.registry, place)
            assert told.rows == held.rows
            assert told.tombstones.keys() == held.tombstones.keys()
            # What the inbox held of the dead is erased unapplied.
            assert held.ledger.items() <= told.ledger.items()
            missing = told.ledger.keys() - held.ledger.keys()
            assert {told.ledger[one][1] for one in missing} <= told.tombstones.keys()


def body_of(emulator: Emulator, event: Event) -> bytes:
    """Return the event as AuthVital would send it."""
    return emulator.event(
        event.type,
        tenant_id=str(event.tenant_id),
        application_id=APPLICATION,
        data=event.data,
        id=event.id,
        timestamp=event.timestamp,
    )
