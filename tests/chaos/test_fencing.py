"""A worker that slept past its lease settles nothing that another one did."""

import signal

import pytest
from chaos.courier import Courier, letters
from chaos.house import free_port, lives
from chaos.processes import until
from guarding import ask

from tenantsync.steps import Step


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("step", [Step.CLAIMED, Step.LOADED, Step.DRAINED])
def test_a_worker_that_was_stopped_settles_nothing(kind, step, build, starter, authvital):
    """SIGSTOP holds a worker until another has done its work; when it goes on, nothing changes."""
    house = build(kind, ["acme"])
    house.configure(house.config.read_text().replace("[worker]", "[worker]\ninline = false", 1))
    (tenant,) = house.tenants.values()
    flag = house.folder / f"hooks-fail-{tenant.id}"
    flag.touch()
    post = letters(lives(authvital, house.tenants, 12))
    port = free_port()
    server = starter.start("serve", house.config, port=port).ready()
    with Courier(authvital, port) as courier:
        courier.deliver(post)
    server.stop()
    flag.unlink()
    assert len(house.waiting()) == 1

    sleeper = starter.start("work", house.config, fate=(step.value, 1, signal.SIGSTOP))
    until(sleeper.stopped, "the first worker should be stopped")
    ((its_token,),) = tokens(house)
    house.let_leases_end()
    other = starter.start("work", house.config, fate=(Step.LOADED.value, 1, signal.SIGSTOP))
    until(other.stopped, "the other worker should have the lane")
    held, settled = tokens(house), settlements(house)
    assert held != [(its_token,)]
    sleeper.signal(signal.SIGCONT)
    # It finishes what is in flight before it ends.
    assert sleeper.stop() == 0

    assert tokens(house) == held
    assert settlements(house) == settled
    other.signal(signal.SIGCONT)
    until(lambda: not house.waiting(), "the other worker should drain the inbox")
    assert other.stop() == 0
    house.examine(post)


def tokens(house) -> list[tuple[object, ...]]:
    """Return the token of every lane."""
    return ask(house.control, "SELECT token FROM {s}lanes")


def settlements(house) -> list[tuple[object, ...]]:
    """Return what the inbox knows of every event."""
    return sorted(
        ask(house.control, "SELECT number, state, outcome, settled_at, attempts FROM {s}inbox")
    )
