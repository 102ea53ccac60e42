"""What is wrong with the signals of a configuration is said when a program starts."""

import pytest
from guarding import APPLICATION, make

from tenantsync import TenantSync
from tenantsync.errors import ConfigError
from tenantsync.migrate.control import upgrade_control
from tenantsync.observe import Outcome
from tenantsync.worker import nats


@pytest.fixture
def config(tmp_path):
    """A configuration whose signals want the extra `nats`, and whose tenant has no tables."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(
        f"""
        [authvital]
        host = "http://127.0.0.1:9"
        application_id = "{APPLICATION}"
        [isolation]
        strategy = "database"
        [worker]
        inline = false
        signals = "nats://127.0.0.1:9"
        [tenants.acme]
        id = "acme"
        url = "sqlite:///{tmp_path / "never-made.db"}"
        """
    )
    return file


@pytest.mark.parametrize("begin", ["start", "routes"])
def test_a_missing_extra_fails_at_the_start(config, monkeypatch, begin):
    """Not when the first event is parked, with a sender who waits."""
    monkeypatch.setattr(nats, "_INSTALLED", False)

    with TenantSync.from_toml(config) as sync, pytest.raises(ConfigError, match="pip install"):
        getattr(sync, begin)()


def test_who_never_started_has_answers_all_the_same(config, monkeypatch):
    """A program may give events to the handler by itself: workers are not told, that is all."""
    monkeypatch.setattr(nats, "_INSTALLED", False)

    with TenantSync.from_toml(config) as sync:
        upgrade_control(sync.control)
        outcomes = [sync.handle_blocking(make("member.joined", id=f"e{n}")) for n in range(3)]

    assert outcomes == [Outcome.PARKED] * 3


def test_a_signal_that_fails_keeps_the_worker_here_from_nothing(config):
    """It is woken for every tenant, whatever becomes of those elsewhere."""
    woken = []

    class Broken:
        def publish(self, tenant_id):
            raise OSError("down")

        def listen(self, wake):
            pass

        def close(self):
            pass

    with TenantSync.from_toml(config, signals=Broken()) as sync:
        upgrade_control(sync.control)
        sync._inline = sync.worker()
        sync._inline.wake = woken.append
        for number in range(2):
            event = make("member.joined", id=f"e{number}")
            assert sync.handle_blocking(event) is Outcome.PARKED

    assert woken == ["acme", "acme"]
