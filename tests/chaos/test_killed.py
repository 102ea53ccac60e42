"""Servers that are killed with SIGKILL: what got a 2xx is applied once, or waits in the inbox."""

import random
import signal

import pytest
from chaos.courier import Courier, letters
from chaos.house import free_port, lives
from chaos.processes import until

KINDS = ["sqlite", "postgresql"]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random_moments_under_load(kind, build, starter, authvital, amount):
    """Whenever the server dies, nothing is lost that it acknowledged, and nothing counted twice."""
    house = build(kind, ["acme", "globex", "initech"])
    post = letters(lives(authvital, house.tenants, 12 * amount.kills // 2))
    chance = random.Random(f"kills/{kind}")  # noqa: S311 - moments, not secrets
    # Half of the load on the average: more is acknowledged before the server is dead.
    per_kill = len(post) // amount.kills
    # The hooks of one tenant fail until half-time, so that the inbox and its worker are busy too.
    sore = house.folder / "hooks-fail-id-globex"
    sore.touch()
    port = free_port()
    kills = 0
    with Courier(authvital, port, senders=24) as courier:
        sending = courier.begin(post)
        while not sending.done():
            server = starter.start("serve", house.config, port=port).ready()
            if kills == amount.kills:
                break
            enough = courier.acknowledged + chance.randint(1, per_kill)
            until(lambda: courier.acknowledged >= enough or sending.done(), "events should flow")  # noqa: B023
            assert server.kill() == -signal.SIGKILL
            kills += 1
            if kills == amount.kills // 2:
                sore.unlink()
        sending.result(120)
        house.let_leases_end()
        until(lambda: not house.waiting(), "the inbox should drain")
        assert server.stop() in (0, -signal.SIGTERM)

    assert kills == amount.kills
    house.examine(post)
