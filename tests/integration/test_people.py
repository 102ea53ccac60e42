"""What a TenantSync offers an application: sessions by key, access, and the provider's lists."""

import asyncio
import gc

import pytest
from guarding import APPLICATION, make
from sqlalchemy import select

from tenantsync import TenantSync
from tenantsync.errors import ConfigError, TenantSuspended, UnknownTenant
from tenantsync.migrate import upgrade
from tenantsync.migrate.provision import Provisioner
from tenantsync.models import Identity
from tenantsync.observe import Outcome
from tenantsync.testing.emulator import Emulator
from tenantsync.web.access import AccessRefused

SPA = "spa-client-id"


@pytest.fixture
def authvital():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def configure(tmp_path, authvital):
    """Return what makes a TenantSync with one tenant, migrated, and closes it at the end."""
    made = []

    def configure(more="", isolation=""):
        file = tmp_path / "tenantsync.toml"
        file.write_text(
            f'[authvital]\nhost = "{authvital.url}"\napplication_id = "{APPLICATION}"\n'
            f'audience = ["{SPA}"]\n{more}\n'
            f'[isolation]\nstrategy = "database"\nurl = "sqlite:///places/{{key}}.db"\n{isolation}\n'
            '[tenants.first]\nid = "acme"\n'
        )
        sync = TenantSync.from_toml(file)
        made.append(sync)
        upgrade(sync.tenants, isolation=sync.isolation).check()
        return sync

    yield configure
    for sync in made:
        sync.close()


def test_a_session_is_opened_by_the_tenants_key(configure):
    """It sees what the events wrote, and an unknown key is told as such."""
    sync = configure()
    sync.handle_blocking(make("member.joined"))

    with sync.session("first", read_only=True) as session:
        assert session.scalars(select(Identity.id)).all() == ["ann"]
    with pytest.raises(UnknownTenant, match="there is no tenant 'second'"), sync.session("second"):
        pass


def test_a_tenant_added_at_run_time_has_sessions_and_a_suspended_one_has_none(configure):
    """The key is looked up in the same list as events' ids are."""
    sync = configure()
    with pytest.raises(UnknownTenant), sync.session("second"):
        pass
    provisioner = Provisioner.of(sync.settings, sync.directory, sync.isolation)
    provisioner.add("second", "globex")

    with sync.session("second") as session:
        assert session.scalars(select(Identity.id)).all() == []
    provisioner.suspend("second")
    with pytest.raises(TenantSuspended), sync.session("second"):
        pass


def test_async_sessions_are_closed_with_the_application(configure):
    """Lifespan leaves no connection behind, also not those of async sessions."""
    sync = configure()
    sync.handle_blocking(make("member.joined"))

    async def main():
        async with sync.lifespan(), sync.async_session("first") as session:
            return (await session.scalars(select(Identity.id))).all()

    assert asyncio.run(main()) == ["ann"]
    assert not sync.async_sessions._held


@pytest.mark.parametrize("connections", [1, 2, 10, 100])
def test_sessions_leave_connections_for_events(configure, connections):
    """Open sessions and look-ups never take all that a server gives, where it gives enough."""
    sync = configure(isolation=f"max_connections = {connections}")
    taken = sync.sessions._limit + sync.access()._authoriser._sessions._limit

    assert taken <= max(2, connections * 0.6)


@pytest.mark.parametrize("parked", [False, True])
def test_an_event_empties_the_cache_of_its_person(configure, authvital, parked):
    """Who left a moment ago is not let in by what was remembered, in the process that heard."""
    sync = configure()
    sync.start()
    sync.handle_blocking(make("member.joined", "ann"))
    sync.handle_blocking(make("member.joined", "bob"))
    access = sync.access(cache=3_600)
    ann, bob = (
        f"Bearer {authvital.tokens.access(sub, 'acme', client_id=SPA)}" for sub in ("ann", "bob")
    )
    assert access.admit_blocking(ann).tenant.key == "first"
    assert access.admit_blocking(bob).identity.id == "bob"

    if parked:

        @sync.on("member.left")
        def fail(event, session):
            raise LookupError

    outcome = sync.handle_blocking(make("member.left", "ann", at=1_793_000_500_000))

    assert outcome is (Outcome.PARKED if parked else Outcome.APPLIED)
    with pytest.raises(AccessRefused) as caught:
        access.admit_blocking(ann)
    assert caught.value.status_code == 403
    assert access.admit_blocking(bob).identity.id == "bob"
    access.close()


def test_a_control_that_nobody_holds_is_not_held_by_the_application(configure):
    """One for each test or request leaves nothing behind that events would be told of."""
    sync = configure()
    for _ in range(5):
        sync.access(cache=60).close()
    gc.collect()
    kept = sync.access(cache=60)

    assert len(sync._forgetting) == 1
    kept.close()


def test_lists_are_asked_for_on_schedule_where_there_is_a_credential(configure):
    """Without one there is nothing to ask with, and asking by hand says so."""
    sync = configure()
    assert sync.schedule() is None
    with pytest.raises(ConfigError, match="client_id"):
        sync.reconciler()

    with_credential = configure('client_id = "machine"\nclient_secret = "secret"')
    schedule = with_credential.schedule()
    assert schedule is not None
    schedule.stop()


def test_what_reconciling_finds_is_among_the_metrics(configure):
    """The counters are there from the start, so that a scrape never misses the first."""
    text = configure().metrics.render().decode()

    assert 'tenantsync_reconcile_total{what="people_removed"} 0.0' in text
