"""Which announced tenants are made, how many, and what a crash on the way leaves behind."""

import pytest
from guarding import at_once
from sqlalchemy import update

from tenantsync.control.database import ControlDatabase, ControlUnavailable
from tenantsync.control.inbox import Arrival, Inbox, Stored
from tenantsync.control.profiles import TenantProfiles, provisions
from tenantsync.errors import ConfigError, TenantUnavailable
from tenantsync.migrate.control import upgrade_control
from tenantsync.sync.parking import Parking
from tenantsync.sync.system import AnnouncementPolicy, key_of
from tenantsync.tenants import check_key
from tenantsync.worker.provisioning import ProvisioningDelayed, TenantProvisioning

ALWAYS = AnnouncementPolicy("always")
CLOCK = f"{1:013d}e"


@pytest.fixture
def control(database_url):
    with ControlDatabase(database_url) as made:
        upgrade_control(made)
        yield made


@pytest.fixture
def profiles(control):
    return TenantProfiles(control)


class Ground:
    """Where places are made; notes each, and may be told to fail."""

    def __init__(self):
        self.made = []
        self.suspended = []
        self.trouble = None
        self.meanwhile = None

    def add(self, key, tenant_id):
        if self.trouble is not None:
            raise self.trouble
        self.made.append((key, tenant_id))
        if self.meanwhile is not None:
            self.meanwhile()

    def suspend(self, key):
        self.suspended.append(key)


@pytest.fixture
def ground():
    return Ground()


@pytest.fixture
def provisioning(profiles, ground):
    def make(policy=ALWAYS, **options):
        return TenantProvisioning(policy, profiles, ground.add, suspend=ground.suspend, **options)

    return make


def test_the_policy_says_who_gets_a_place(provisioning):
    """Nobody, those of the list, or anybody; never an id that cannot be kept."""
    allowed = {
        name: [
            tenant_id
            for tenant_id in ("a", "b", "", "x" * 256)
            if provisioning(AnnouncementPolicy(name, ("a", "", "x" * 256))).allows(tenant_id)
        ]
        for name in ("ignore", "allowlist", "always")
    }
    assert allowed == {"ignore": [], "allowlist": ["a"], "always": ["a", "b"]}


def test_the_key_comes_from_a_digest(provisioning, ground):
    """What a stranger calls a tenant names nothing of ours."""
    hostile = "../../etc'; DROP TABLE tenants --"

    key = provisioning().provision(hostile)
    assert key == key_of(hostile) == check_key(key)
    assert key == "t_22fa13b331a1"
    assert ground.made == [(key, hostile)]


def test_a_tenant_is_made_once(provisioning, ground, profiles):
    """Whoever removes it afterwards does not want it made again because of an old announcement."""
    provisioning().provision("a")

    assert profiles.find("a").provisioned
    assert not provisioning().allows("a")
    with pytest.raises(ConfigError, match="not to be made"):
        provisioning().provision("a")
    assert len(ground.made) == 1


def test_a_tenant_that_the_provider_deleted_is_never_made(provisioning, ground, profiles):
    """Its announcement may come after its end."""
    profiles.mark_deleted("a", CLOCK)

    assert not provisioning().allows("a")
    with pytest.raises(ConfigError):
        provisioning().provision("a")
    assert ground.made == []


def test_a_tenant_that_is_deleted_while_it_is_made_is_suspended(provisioning, ground, profiles):
    """Its place stays, and nobody is let in."""
    ground.meanwhile = lambda: profiles.mark_deleted("a", CLOCK)

    key = provisioning().provision("a")
    assert ground.suspended == [key]


def test_the_hours_limit_says_how_long_to_wait(provisioning, ground, control):
    """It is for later, and the drainer is told when."""
    busy = provisioning(max_per_hour=2)
    busy.provision("a")
    busy.provision("b")
    with pytest.raises(ProvisioningDelayed, match="max_per_hour") as caught:
        busy.provision("c")

    assert caught.value.retry
    assert 3500 < caught.value.retry_in <= 3600
    assert [tenant_id for _, tenant_id in ground.made] == ["a", "b"]
    with control.write() as connection:
        connection.execute(update(provisions).values(booked_at=0))
    assert busy.provision("c")


def test_a_limit_of_none_makes_nothing(provisioning, ground):
    """Whatever the policy says."""
    with pytest.raises(ProvisioningDelayed):
        provisioning(max_per_hour=0).provision("a")
    assert ground.made == []


def test_workers_on_several_machines_stay_within_the_limit(provisioning, ground):
    """All count in one place."""
    workers = [provisioning(max_per_hour=3) for _ in range(6)]

    def attempt(worker, tenant_id):
        try:
            return worker.provision(tenant_id)
        except ProvisioningDelayed:
            return None

    jobs = [
        lambda worker=worker, n=n: attempt(worker, f"t{n}") for n, worker in enumerate(workers * 2)
    ]
    made = [key for key in at_once(jobs, threads=6) if key]
    assert len(made) == len(ground.made) == 3


def test_a_failure_is_repeated_without_counting_twice(provisioning, ground):
    """The database was away; the second attempt finishes, and the limit is one."""
    ground.trouble = TenantUnavailable("its server is away")
    single = provisioning(max_per_hour=1)
    with pytest.raises(TenantUnavailable):
        single.provision("a")
    assert single.allows("a")

    ground.trouble = None
    assert single.provision("a")


def test_a_worker_hears_of_an_announcement_and_not_of_strangers(control):
    """It is to look at once whether the tenant is made; a stranger's event wakes nobody."""
    heard = []
    parking = Parking(Inbox(control), parked=heard.append)
    for tenant_id, announced in (("a", True), ("b", False)):
        arrival = Arrival(
            tenant_id=tenant_id,
            event_id="e",
            type="tenant.created",
            subject=None,
            timestamp=1,
            body=b"{}",
            signed_at=None,
            door="test",
            reason="provisioning",
            known=False,
            announced=announced,
        )
        assert parking.park_blocking(arrival) is Stored.PARKED
    parking.close()

    assert heard == [frozenset({"a"})]


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_whoever_is_killed_once_the_place_is_made_finishes_later(provisioning, ground):
    """Making is repeated, which does nothing, and the rest is done."""

    def kill():
        raise Killed

    ground.meanwhile = kill
    with pytest.raises(Killed):
        provisioning(max_per_hour=1).provision("a")

    ground.meanwhile = None
    assert provisioning(max_per_hour=1).allows("a")
    key = provisioning(max_per_hour=1).provision("a")
    assert ground.made == [(key, "a"), (key, "a")]


def test_nobody_is_made_while_the_control_database_is_away(ground):
    """What was deleted or counted is not known then."""
    with ControlDatabase("postgresql+psycopg://x@127.0.0.1:1/x", connect_timeout=1) as gone:
        lost = TenantProvisioning(ALWAYS, TenantProfiles(gone), ground.add, suspend=ground.suspend)
        with pytest.raises(ControlUnavailable):
            lost.allows("a")
        with pytest.raises(ControlUnavailable):
            lost.provision("a")
    assert ground.made == []
