"""The client of the integration API against the local AuthVital, over real loopback HTTP."""

import socket
import threading
from dataclasses import replace

import httpx2
import pytest

from tenantsync.authvital.client import (
    IntegrationClient,
    IntegrationNotFound,
    IntegrationRefused,
    IntegrationUnavailable,
)
from tenantsync.testing.delivery import VirtualClock
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.server import Response

NOW = 1_795_405_281.0
PATH = "/api/integration/tenant-memberships"


@pytest.fixture(scope="module")
def keys():
    return [SigningKey.generate(NOW + number) for number in range(2)]


@pytest.fixture
def clock():
    return VirtualClock(NOW)


@pytest.fixture
def authvital(keys, clock):
    spare = [keys[1]]
    ring = Keys(keys[0], clock=clock, generate=lambda at: spare.pop())
    with Emulator(keys=ring, clock=clock, sleep=clock.sleep, seed=5) as emulator:
        emulator.state.add_application(
            "Ours", machine="machine", secret="canary", spa="spa", default_role="editor"
        )
        yield emulator


@pytest.fixture
def ours(authvital):
    return next(iter(authvital.state.applications.values()))


@pytest.fixture
def tenant(authvital, ours):
    """A tenant with an owner, a member and someone who is only invited."""
    do = authvital.actions
    kind = authvital.state.add_license_type(ours.id, "Pro Seat")
    owner = do.sign_up("owner@corp.test", given_name="Zoe", tenant_name="Corp")
    do.subscribe(owner.tenant_id, kind.id, quantity=3)
    do.accept(do.invite(owner.tenant_id, "ann@corp.test", family_name="Ünïcode").id)
    do.invite(owner.tenant_id, "eve@corp.test")
    do.assign_seat(owner.tenant_id, owner.user_id, kind.id)
    return owner.tenant_id


@pytest.fixture
def client(authvital, clock):
    with IntegrationClient(
        authvital.url, "machine", "canary", clock=clock, sleep=clock.sleep, jitter=lambda: 1.0
    ) as client:
        yield client


def asked(authvital):
    return [request.path for request in authvital.requests]


def test_a_tenants_people_are_told_with_status_and_roles(authvital, ours, tenant, client):
    """The invited one too; the time is the provider's."""
    found = client.tenant_memberships(tenant)
    people = [
        (row.user.email, row.user.given_name, row.status, [role.slug for role in row.roles])
        for row in found.memberships
    ]

    assert people == [
        ("owner@corp.test", "Zoe", "ACTIVE", []),
        ("ann@corp.test", None, "ACTIVE", ["editor"]),
        ("eve@corp.test", None, "INVITED", []),
    ]
    assert found.memberships[1].roles[0].application_id == ours.id
    assert (found.tenant_id, found.total_count) == (tenant, 3)
    assert found.date == int(NOW) * 1000


def test_an_applications_people_and_seats_are_told(ours, tenant, client):
    """Those with a role; those with a seat."""
    people = client.application_memberships("spa")
    seats = client.license_holders(tenant, ours.id)

    assert people.application_id == ours.id
    assert [(row.user.email, row.tenant.id) for row in people.memberships] == [
        ("ann@corp.test", tenant)
    ]
    assert [holder.license_type_name for holder in seats.holders] == ["Pro Seat"]


def test_one_token_serves_many_calls_from_many_threads(authvital, tenant, client):
    """Until it is about to end."""
    threads = [threading.Thread(target=client.tenant_memberships, args=(tenant,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert asked(authvital).count("/oauth/token") == 1
    assert asked(authvital).count(PATH) == 8


def test_a_token_outlives_no_revoked_key(authvital, tenant, client):
    """The provider refuses it at once; the next one is signed with the new key."""
    client.tenant_memberships(tenant)
    authvital.keys.revoke()

    assert client.tenant_memberships(tenant).total_count == 3
    assert asked(authvital) == ["/oauth/token", PATH, PATH, "/oauth/token", PATH]


def test_the_throttle_is_waited_for(authvital, tenant, client, clock):
    """A hundred calls a minute; the hundred and first waits for what is left of it."""
    client.tenant_memberships(tenant)
    authvital.integration.throttle.on = True
    clock.sleep(60)
    for _ in range(100):
        client.tenant_memberships(tenant)
    before = clock()
    client.tenant_memberships(tenant)

    assert clock() - before == 60.0


def test_a_wrong_secret_and_a_narrow_credential_are_refused(authvital, ours, tenant, clock):
    """Each with what to do; a scope that is not allowed, a tenant that is not granted."""
    wrong = IntegrationClient(authvital.url, "machine", "other", clock=clock, sleep=clock.sleep)
    with wrong, pytest.raises(IntegrationRefused, match="status 401: Invalid client_secret"):
        wrong.tenant_memberships(tenant)
    right = IntegrationClient(authvital.url, "machine", "canary", clock=clock, sleep=clock.sleep)
    credential = ours.credentials["MACHINE"]
    credential.trusted = False
    with right, pytest.raises(IntegrationRefused, match="status 403"):
        right.tenant_memberships(tenant)
    credential.scopes = ("integration:write",)
    fresh = IntegrationClient(authvital.url, "machine", "canary", clock=clock, sleep=clock.sleep)
    with fresh, pytest.raises(IntegrationRefused, match="status 400: invalid_scope"):
        fresh.tenant_memberships(tenant)


def test_an_unknown_tenant_and_application_are_not_found(client):
    """The provider's own words, told apart from a page that is not there."""
    with pytest.raises(IntegrationNotFound):
        client.tenant_memberships("nowhere")
    with pytest.raises(IntegrationNotFound):
        client.application_memberships("nobody")


def test_a_list_cut_off_in_its_json_is_never_a_list(authvital, tenant, client):
    """Wherever the cut is, with a length that fits it and with one that does not."""
    honest = client.tenant_memberships(tenant)
    for cut in range(0, 400, 37):
        authvital.faults.spoil[PATH] = lambda answer, cut=cut: replace(
            answer, body=answer.body[:cut]
        )
        with pytest.raises(IntegrationUnavailable):
            client.tenant_memberships(tenant)
        authvital.faults.spoil[PATH] = lambda answer, cut=cut: replace(
            answer, body=answer.body[:cut], length=len(answer.body)
        )
        with pytest.raises(IntegrationUnavailable, match="RemoteProtocolError"):
            client.tenant_memberships(tenant)
    authvital.faults.clear()

    assert list(client.tenant_memberships(tenant).memberships) == list(honest.memberships)


def test_an_outage_is_waited_out(authvital, tenant, client, clock):
    """Two failures, then the list; a longer one is an error that says what was met."""
    failures = [Response(502), Response(503)]
    authvital.faults.spoil[PATH] = lambda answer: failures.pop() if failures else answer
    found = client.tenant_memberships(tenant)
    authvital.faults.spoil[PATH] = lambda answer: Response(500, b"<html>")
    with pytest.raises(IntegrationUnavailable, match="status 500"):
        client.tenant_memberships(tenant)

    assert found.total_count == 3
    assert clock() - NOW == 0.5 + 1.0 + 0.5 + 1.0 + 2.0 + 4.0


def test_nobody_there_is_an_error_that_says_so(clock):
    """After five tries."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = IntegrationClient(url, "machine", "canary", clock=clock, sleep=clock.sleep)
        with client, pytest.raises(IntegrationUnavailable, match="ConnectError"):
            client.tenant_memberships("t")


def test_a_silent_provider_is_left_in_time(clock):
    """It takes the connection and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client = IntegrationClient(
            url, "machine", "canary", clock=clock, sleep=clock.sleep, timeout=0.05, attempts=2
        )
        with client, pytest.raises(IntegrationUnavailable, match="ReadTimeout"):
            client.tenant_memberships("t")


def test_the_environment_chooses_no_proxy(authvital, tenant, client, monkeypatch):
    """A secret goes to the configured host, and nowhere else."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with IntegrationClient(authvital.url, "machine", "canary") as own:
        assert own.tenant_memberships(tenant).total_count == 3


def test_a_given_http_client_is_used(authvital, tenant, clock):
    """For a deployment that needs a proxy, a CA or a client certificate of its own."""
    seen = []
    with httpx2.Client(
        trust_env=False, event_hooks={"request": [lambda request: seen.append(request.url.path)]}
    ) as http:
        IntegrationClient(
            authvital.url, "machine", "canary", http=http, clock=clock
        ).tenant_memberships(tenant)

    assert seen == ["/oauth/token", PATH]
