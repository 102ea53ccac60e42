"""One tenant of a hundred is in trouble: the sender hears only 2xx, and the others go on."""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import uuid4

import psycopg
import pytest
from chaos.courier import Courier, Letter, letters
from chaos.gate import Gate
from chaos.house import House, free_port, lives
from chaos.processes import Child, Starter, until
from guarding import ask

from tenantsync.tenants import Placement
from tenantsync.testing.emulator import Emulator

FAULTS = (
    "refuses",
    "hangs",
    "read_only",
    "lacks_a_table",
    "old_revision",
    "locked_by_a_migration",
    "forgotten_transaction",
)
GATED = ("refuses", "hangs")
"""The faults of which the way to the database is to blame; the other places are met directly."""

OTHERS = 100 - len(FAULTS)
EACH = 5
"""Events of each other tenant, while one is in trouble."""

READ_ONLY = """
CREATE FUNCTION {s}refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'cannot execute INSERT in a read-only transaction' USING ERRCODE = '25006';
END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {s}av_sync_events
  FOR EACH STATEMENT EXECUTE FUNCTION {s}refuse()
"""


@dataclass
class Town:
    """A hundred tenants behind one server.

    Args:
        house: The tenants.
        gates: Key -> the gate before the place of that tenant.
        real: Key -> the tenant's place, past the gate.
        server: The server's process.
        port: Where it serves.
        post: Everything that was ever sent.
    """

    house: House
    gates: dict[str, Gate]
    real: dict[str, Placement]
    server: Child
    port: int
    post: list[Letter]


@pytest.fixture(scope="module", params=["schema", "database"])
def town(request, tmp_path_factory, authvital: Emulator, nursery) -> Iterator[Town]:
    """Give tenants of which some have a schema beside the others, or a database of their own."""
    server = request.getfixturevalue("postgres_server")
    with ExitStack() as stack:
        made = [f"town_{uuid4().hex}" for _ in range(2 + len(FAULTS))]
        with server.connect() as connection:
            for name in made:
                connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        control, shared, *own = made
        gates, real, urls = {}, {}, {}
        for key, database in zip(FAULTS, own, strict=True):
            url = server.url(shared if request.param == "schema" else database)
            real[key] = Placement.of(url, f"tenant_{key}")
            if key in GATED:
                gates[key] = stack.enter_context(Gate(server.port))
                urls[key] = url.replace(f":{server.port}/", f":{gates[key].port}/")
            elif request.param == "database":
                # As a schema it has the URL of all, and so shares connections and batches.
                urls[key] = url
        house = House(
            tmp_path_factory.mktemp("town"),
            authvital,
            [*FAULTS, *(f"t{number:03d}" for number in range(OTHERS))],
            database=server.url(shared),
            control=server.url(control),
            urls=urls,
            isolation="connect_timeout = 1\nstatement_timeout = 1\n",
        )
        starter = Starter(nursery, tmp_path_factory.mktemp("children"))
        stack.callback(starter.end_all)
        port = free_port()
        child = starter.start("serve", house.config, port=port).ready()
        yield Town(house, gates, real, child, port, [])


@pytest.mark.parametrize("fault", FAULTS)
def test_one_tenant_in_trouble(town, fault, authvital, amount):
    """Only 2xx for anybody; the others' events are applied meanwhile; once repaired, all is."""
    house, bad = town.house, f"id-{fault}"
    good = [tenant_id for tenant_id in house.tenants if tenant_id.startswith("id-t0")]
    seed = FAULTS.index(fault)
    theirs = letters(lives(authvital, good, 4, seed=seed)[: EACH * OTHERS])
    every = letters(lives(authvital, [bad], amount.waiting // 4, seed=seed))
    before, during, after = every[:100], every[100 : 100 + amount.waiting], every[-200:]
    assert len(every) >= 300 + amount.waiting
    town.post += [*theirs, *before, *during, *after]
    mixed = [*theirs, *during]
    random.Random(seed).shuffle(mixed)  # noqa: S311 - an order, not a secret

    with Courier(authvital, town.port, senders=32) as courier:
        courier.deliver(before)
        with trouble(town, fault):
            courier.deliver(mixed, patience=600)
            settled = [letter for letter in theirs if "parked" not in letter.outcomes]
            waiting = house.waiting()
        hopeful = iter(after)
        until(
            lambda: _nudge(courier, hopeful) and not house.waiting(),
            "the inbox should drain once the tenant is well",
            patience=600,
        )
        courier.deliver(hopeful)
        until(lambda: not house.waiting(), "the inbox should drain")
        statuses = dict(courier.statuses)

    assert set(statuses) <= {200, 202}
    assert len(settled) == len(theirs), "another tenant's events were parked"
    assert set(waiting) == {bad}
    assert waiting[bad] > amount.waiting // 2
    assert town.server.alive()
    house.examine(town.post)


def trouble(town: Town, fault: str) -> ExitStack:
    """Break the fault's tenant now, and repair it when the block ends."""
    stack = ExitStack()
    place = town.real[fault]
    act: dict[str, Callable[[], object]] = {
        "refuses": town.gates["refuses"].shut,
        "hangs": town.gates["hangs"].jam,
        "read_only": lambda: ask(place, READ_ONLY),
        "lacks_a_table": lambda: ask(
            place, "ALTER TABLE {s}av_identity_tombstones RENAME TO hidden"
        ),
        "old_revision": lambda: ask(
            place, "ALTER TABLE {s}av_identities RENAME COLUMN clocks TO later"
        ),
        "locked_by_a_migration": lambda: _hold(
            stack, place, "LOCK TABLE {s}av_identities IN ACCESS EXCLUSIVE MODE"
        ),
        "forgotten_transaction": lambda: _hold(
            stack, place, "LOCK TABLE {s}av_sync_events IN SHARE MODE"
        ),
    }
    mend: dict[str, Callable[[], object]] = {
        "refuses": town.gates["refuses"].open,
        "hangs": town.gates["hangs"].open,
        "read_only": lambda: ask(
            place, "DROP TRIGGER refuse ON {s}av_sync_events; DROP FUNCTION {s}refuse()"
        ),
        "lacks_a_table": lambda: ask(
            place, "ALTER TABLE {s}hidden RENAME TO av_identity_tombstones"
        ),
        "old_revision": lambda: ask(
            place, "ALTER TABLE {s}av_identities RENAME COLUMN later TO clocks"
        ),
    }
    if fault in mend:
        stack.callback(mend[fault])
    act[fault]()
    return stack


def _hold(stack: ExitStack, place: Placement, statement: str) -> None:
    """Run a statement in a transaction that stays open until the stack unwinds."""
    url = place.url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg.connect(url)
    stack.callback(connection.close)
    connection.execute(statement.replace("{s}", f'"{place.schema}".'))


def _nudge(courier: Courier, hopeful: Iterator[Letter]) -> bool:
    """Send one more event of the tenant, as life goes on there."""
    letter = next(hopeful, None)
    if letter is not None:
        courier.deliver([letter])
    return True
