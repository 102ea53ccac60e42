"""Reconciliation as a configuration makes it: what of the settings and the parts arrives in it."""

import time
from contextlib import contextmanager

import pytest
from guarding import make
from listing import Provider
from sqlalchemy import select

from tenantsync import TenantSync
from tenantsync.errors import ConfigError
from tenantsync.migrate import upgrade
from tenantsync.models import Identity
from tenantsync.sync.drift import State
from tenantsync.sync.reconciling import reconciler_of
from tenantsync.testing.delivery import VirtualClock
from tenantsync.testing.emulator import Emulator
from tenantsync.web.access import AccessRefused

SPA = "spa-client-id"
DATABASE = 'strategy = "database"\nurl = "sqlite:///places/{key}.db"'
SINGLE = 'strategy = "single"\nurl = "sqlite:///all.db"'


@pytest.fixture
def authvital():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def provider(authvital):
    """Give a provider whose lists, where they are not asked for by HTTP, are an hour old."""
    found = Provider(authvital, VirtualClock(time.time() - 3_600))
    found.ours.credentials["MACHINE"].trusted = True
    return found


@pytest.fixture
def acme(provider):
    return provider.tenant("acme")


@pytest.fixture
def configure(tmp_path, authvital, provider, acme):
    """Return what makes a TenantSync with one tenant, migrated."""

    @contextmanager
    def configure(authvital_section="", more="", isolation=DATABASE, **options):
        file = tmp_path / "tenantsync.toml"
        file.write_text(
            f'[authvital]\nhost = "{authvital.url}"\napplication_id = "{provider.ours.id}"\n'
            f'audience = ["{SPA}"]\n{authvital_section}\n[isolation]\n{isolation}\n'
            f'{more}\n[tenants.first]\nid = "{acme}"\n'
        )
        with TenantSync.from_toml(file, **options) as sync:
            upgrade(sync.tenants, isolation=sync.isolation).check()
            yield sync

    return configure


MACHINE = 'client_id = "machine"\nclient_secret = "canary"'


def rows(sync):
    """Return `sub` -> (membership status, access)."""
    with sync.session("first", read_only=True) as session:
        query = select(Identity.id, Identity.membership_status, Identity.has_app_access)
        return {sub: (status, access) for sub, status, access in session.execute(query)}


def reconcile(sync, provider, **options):
    """Reconcile ten seconds later, with the provider's own lists, and return the report."""
    provider.now.sleep(10)
    with reconciler_of(sync, lists=provider, prepare=sync._prepare, **options) as reconciler:
        return reconciler.reconcile(sync.tenants).tenants[0]


def test_whom_a_list_suspends_is_not_let_in_by_what_was_remembered(
    configure, authvital, provider, acme
):
    """The cache of the process that reconciles forgets them, and nobody else."""
    zoe, ann = (provider.member(acme, f"{name}@corp.test") for name in ("zoe", "ann"))
    with configure(MACHINE) as sync, sync.reconciler() as reconciler:
        assert reconciler.reconcile(sync.tenants).ok
        assert sync.drift.counts()["people_added"] == 2
        access = sync.access(cache=3_600)
        tokens = [
            f"Bearer {authvital.tokens.access(sub, acme, client_id=SPA)}" for sub in (zoe, ann)
        ]
        assert [access.admit_blocking(each).identity.id for each in tokens] == [zoe, ann]
        with sync.session("first") as session:
            session.get(Identity, ann).given_name = "Ann"  # nobody is told of it
        provider.do.set_status_quietly(acme, zoe, "SUSPENDED")
        (told,) = reconciler.reconcile(sync.tenants).tenants

        assert told.changed == 1
        with pytest.raises(AccessRefused) as caught:
            access.admit_blocking(tokens[0])
        assert caught.value.status_code == 403
        assert access.admit_blocking(tokens[1]).identity.given_name is None
        access.close()


def test_those_are_told_of_whose_rows_changed(configure, provider, acme):
    """After the commit; whoever is only confirmed is not among them, who leaves is."""
    zoe, ann = (provider.member(acme, f"{name}@corp.test") for name in ("zoe", "ann"))
    heard = []
    with configure() as sync:

        def changed(tenant_id, sub):
            heard.append((tenant_id, sub, rows(sync)[sub][0]))

        reconcile(sync, provider, changed=changed)
        assert sorted(heard) == sorted([(acme, zoe, "active"), (acme, ann, "active")])
        heard.clear()
        provider.do.set_status_quietly(acme, zoe, "SUSPENDED")

        reconcile(sync, provider, changed=changed)

        assert heard == [(acme, zoe, "suspended")]


def test_a_backfill_without_default_access_lets_nobody_in(configure, provider, acme):
    """Where access goes with a licence, a row is made for everybody and none has access."""
    zoe = provider.member(acme, "zoe@corp.test")
    with configure("default_app_access = false") as sync:
        assert reconcile(sync, provider).added == 1
        assert rows(sync) == {zoe: ("active", False)}


@pytest.mark.parametrize(
    ("section", "state"),
    [
        ("", State.HELD_BACK),
        ("[reconcile]\nmax_removal = 0.9", State.HELD_BACK),
        ("[reconcile]\nmax_removal = 1.0", State.DONE),
    ],
)
def test_the_brake_is_that_of_the_configuration(configure, provider, acme, section, state):
    """Six of six lose their access: more than a share of 0.9, and not more than all."""
    everyone = [provider.member(acme, f"p{number}@corp.test") for number in range(6)]
    with configure(more=section) as sync:
        reconcile(sync, provider)
        for sub in everyone:
            provider.do.set_status_quietly(acme, sub, "SUSPENDED")

        assert reconcile(sync, provider).state is state


@pytest.mark.parametrize(("isolation", "status"), [(DATABASE, "left"), (SINGLE, None)])
def test_a_shared_place_is_known_as_one(configure, provider, acme, isolation, status):
    """Whose membership was never told may be another tenant's there."""
    provider.member(acme, "zoe@corp.test")
    with configure(isolation=isolation) as sync:
        granted = make("app_access.granted", "guest", tenant=acme, at=1_600_000_000_000)
        sync.handle_blocking(granted)
        for _ in range(2):
            assert reconcile(sync, provider).ok

        assert rows(sync)["guest"] == (status, True)


def test_departures_come_by_a_door_of_their_own(configure, provider, acme):
    """Who watches can tell them from what a worker took out of the inbox."""
    seen = []
    with configure(observers=[seen.append]) as sync:
        _, ann = (provider.member(acme, f"{name}@corp.test") for name in ("zoe", "ann"))
        reconcile(sync, provider)
        provider.do.remove_quietly(acme, ann)
        for _ in range(2):
            reconcile(sync, provider)

    assert [(each.event_type, each.door) for each in seen] == [("member.left", "reconcile")]


def test_without_a_credential_nothing_is_reconciled(configure):
    """It says which key is missing."""
    with configure() as sync, pytest.raises(ConfigError, match="client_id"):
        sync.reconciler()
