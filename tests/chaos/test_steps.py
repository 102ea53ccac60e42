"""A server killed at each named step of an event's way: nothing is lost, nothing happens twice."""

import json
import signal
from itertools import count
from pathlib import Path

import pytest
from chaos.courier import Courier, Letter, letters
from chaos.house import APPLICATION, House, free_port, lives
from chaos.processes import Child, Starter, until

from tenantsync.steps import Step
from tenantsync.testing.delivery import jsonb
from tenantsync.testing.emulator import Emulator

PROVISIONING = """
[provisioning]
on_tenant_created = "always"
max_per_hour = 1000
"""
PORTION = 12
_numbers = count(1)


class Story:
    """Deliveries that lead a server by every step, and what must be true after them.

    Args:
        house: Two tenants; the hooks of `globex` fail at first.
        authvital: Signs.
        number: Another one for each story, so that no two have events in common.
    """

    def __init__(self, house: House, authvital: Emulator, number: int) -> None:
        self.house = house
        acme, self.sore = house.tenants
        self.flag = house.folder / f"hooks-fail-{self.sore}"
        self.healthy = letters(lives(authvital, [acme], 3, seed=number))[:PORTION]
        self.parked = letters(lives(authvital, [self.sore], 3, seed=number))[:PORTION]
        person = json.loads(self.parked[0].body)["data"]["sub"]
        self.deletions = letters(
            authvital.event(
                "subject.deleted",
                tenant_id=tenant_id,
                application_id=APPLICATION,
                data={"sub": person, "email": None},
            )
            for tenant_id in (self.sore, acme)
        )
        unreadable = authvital.event(
            "member.joined", tenant_id=acme, application_id=APPLICATION, data={"email": "nobody"}
        )
        self.unreadable = [Letter(unreadable, f"unreadable-{number}")]
        self.born = f"id-born-{number}"
        self.announcement = [Letter(_created(authvital, self.born), self.born, system=True)]
        self.newcomers = letters(lives(authvital, [self.born], 2, seed=number)[:6])

    @property
    def promised(self) -> list[Letter]:
        """Everything that `House.examine` can judge."""
        return [*self.healthy, *self.parked, *self.deletions, *self.newcomers]

    def tell(self, courier: Courier) -> None:
        """Deliver everything, until each delivery met a 2xx."""
        courier.deliver(self.announcement)
        self.flag.touch()
        courier.deliver([*self.healthy, *self.parked, *self.unreadable, *self.newcomers])
        courier.deliver(self.deletions)
        self.flag.unlink()
        until(lambda: not self.house.waiting(), "the inbox should drain")


@pytest.fixture(params=["sqlite", "postgresql"])
def story(request, build, authvital) -> Story:
    """Give a story about tenants of its own."""
    house = build(request.param, ["acme", "globex"], more=PROVISIONING)
    return Story(house, authvital, next(_numbers))


@pytest.mark.parametrize("step", [step for step in Step if step is not Step.PRUNED])
def test_killed_at_a_step(story, step, starter, authvital):
    """The server dies of SIGKILL there, another one takes over, and all promises are kept."""
    port = free_port()
    config = story.house.config
    fate = (step.value, 1, signal.SIGKILL)
    first = starter.start("serve", config, port=port, fate=fate).ready()
    with Courier(authvital, port, senders=4) as courier:
        telling = courier.in_background(story.tell)
        assert first.ended() == -signal.SIGKILL
        assert first.struck()
        story.house.let_leases_end()
        second = starter.start("serve", config, port=port).ready()
        telling.result(120)

        assert set(courier.statuses) <= {None, 200, 202, 503}
    assert second.stop() in (0, -signal.SIGTERM)
    story.house.adopt(story.born)
    story.house.examine(story.promised)
    quarantined = [state for state, _ in story.house.entries().values() if state == "quarantined"]
    assert len(quarantined) == 1


@pytest.mark.parametrize("hit", range(1, 6))
def test_killed_while_pruning(story, hit, starter, authvital):
    """A pruner killed at any of its steps removed only what is too old; the next one goes on."""
    house, port = story.house, free_port()
    server = starter.start("serve", house.config, port=port).ready()
    with Courier(authvital, port, senders=4) as courier:
        story.tell(courier)
    server.stop()
    house.adopt(story.born)
    house.examine(story.promised)
    rows = house.rows()
    house.configure(house.config.read_text().replace("[worker]", '[worker]\nretain_ids = "0s"\n'
                    'retain_bodies = "0s"', 1))  # fmt: skip

    first = starter.start("prune", house.config, fate=(Step.PRUNED.value, hit, signal.SIGKILL))
    assert first.ended() == -signal.SIGKILL
    assert first.struck()
    second = starter.start("prune", house.config)
    assert second.ended() == 0

    assert house.rows() == rows
    assert not any(house.ledgers().values())
    assert {state for state, _ in house.entries().values()} == {"quarantined"}


def test_every_step_is_reached_on_purpose(build, starter: Starter, authvital, tmp_path: Path):
    """The steps that the tests above kill at are those of the code: one story meets them all."""
    house = build("sqlite", ["acme", "globex"], more=PROVISIONING)
    story = Story(house, authvital, next(_numbers))
    port = free_port()
    server: Child = starter.start("serve", house.config, port=port).ready()
    with Courier(authvital, port, senders=4) as courier:
        story.tell(courier)
    server.stop()
    pruner = starter.start("prune", house.config)
    assert pruner.ended() == 0

    assert {step.value for step in Step} == server.reached() | pruner.reached()


def _created(authvital: Emulator, tenant_id: str) -> bytes:
    """Return the announcement of a tenant, in the legacy sender's order of keys."""
    data = {"tenant_id": tenant_id, "name": "Born", "slug": "born", "settings": {}}
    return jsonb({"event": "tenant.created", "timestamp": "2026-11-23T10:00:00.000Z", "data": data})
