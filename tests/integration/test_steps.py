"""The writer announces each step when what the step says is true, and not before."""

import importlib

import pytest
from guarding import ledger, make

from tenantsync.observe import Outcome
from tenantsync.steps import Step
from tenantsync.sync.batch import Applier
from tenantsync.sync.hooks import Hooks
from tenantsync.sync.writer import Writer
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry

MODULES = ("writer", "apply", "batch", "postgres", "sqlite")


@pytest.mark.parametrize("kind", ["app_access.granted", "member.joined"])
def test_the_steps_of_a_write(migrated_place, monkeypatch, kind):
    """In their order; nothing is committed before the step that says so."""
    reached: list[tuple[Step, int]] = []
    hooks = Hooks()
    hooks.on("member.joined")(lambda event, session: reached.append(("hook", 0)))
    for name in MODULES:
        module = importlib.import_module(f"tenantsync.sync.{name}")
        if hasattr(module, "reach"):
            monkeypatch.setattr(
                module, "reach", lambda step: reached.append((step, len(ledger(migrated_place))))
            )
    with EngineRegistry() as registry:
        writer = Writer(Applier(registry, DatabaseIsolation(None)), hooks)
        assert writer.write_blocking(make(kind), migrated_place) is Outcome.APPLIED
        writer.close()

    hooked = [("hook", 0), (Step.HOOKED, 0)] if kind == "member.joined" else []
    written = [(Step.WRITTEN, 0)] if hooked or not migrated_place.is_postgres else []
    expected = [(Step.TAKEN, 0), (Step.READ, 0), *written, *hooked, (Step.COMMITTED, 1)]
    assert reached == expected
