"""What the fixtures of the pytest plugin give, without a pytest run around it."""

from contextlib import ExitStack

import msgspec
import pytest
from sqlalchemy import select

from tenantsync.kit import Kit, Options, Rig
from tenantsync.models import Identity
from tenantsync.observe import Outcome
from tenantsync.testing import wicked

CONFIG = """
[authvital]
host = "https://auth.example.test"
application_id = "shop"

[isolation]
strategy = "database"
url = "postgresql+psycopg://db.example.test/{key}"
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    config = folder / "tenantsync.toml"
    config.write_text(CONFIG)
    with Rig(Options(config), tmp_path_factory.mktemp("rig")) as rig:
        yield rig


@pytest.fixture
def another(rig, tmp_path_factory):
    """Make what a test has; the second one is what the next test would have."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Kit(rig, tmp_path_factory.mktemp("t"), None).running())


@pytest.fixture
def kit(another):
    return another()


@pytest.fixture
def authvital(kit):
    return kit.authvital


def rows(kit, tenant="acme"):
    with kit.databases.session(tenant) as session:
        people = session.scalars(select(Identity)).all()
        session.expunge_all()
        return people


def test_a_member_keeps_the_membership_that_the_actions_made(kit, authvital):
    """An event that a test lets happen by itself speaks of the same membership and roles."""
    do, acme = authvital.actions, authvital.tenant_id("acme")
    member = do.accept(do.invite(acme, "ann@example.test", given_name="Ann", role="admin").id)
    do.set_app_role(acme, member.user_id, authvital.application_id, "viewer")
    authvital.deliver_waiting()

    authvital.deliver("member.suspended", tenant="acme", sub=member.user_id)
    (ann,) = rows(kit)
    assert (ann.membership_status, ann.membership_id) == ("suspended", member.id)

    authvital.deliver("member.joined", tenant="acme", sub=member.user_id)
    authvital.deliver("app_access.granted", tenant="acme", sub=member.user_id)
    (ann,) = rows(kit)
    assert (ann.membership_status, ann.membership_id) == ("active", member.id)
    assert (ann.given_name, ann.tenant_roles, ann.app_role) == ("Ann", ["admin"], "viewer")


def test_a_role_is_told_as_the_actions_would_tell_it(authvital):
    """With the ids of the emulator's tables; who has none gets what comes with access."""
    do, acme = authvital.actions, authvital.tenant_id("acme")
    member = do.add_member(acme, do.add_user("ann@example.test").id)
    authvital.deliver("app_access.granted", tenant="acme", sub=member.user_id)
    do.grant_access(acme, member.user_id, authvital.application_id)
    authvital.deliver_waiting()

    by_hand, by_action = (told(answer) for answer in authvital.answers)

    assert by_hand == by_action


def told(answer):
    event = msgspec.json.decode(answer.delivery.body)
    return event["type"], event["data"]


def test_who_belongs_elsewhere_has_one_membership_in_each_tenant(kit, authvital):
    """Where the actions made none, it is made of tenant and person: always the same one."""
    sub = authvital.actions.add_user("ann@example.test", given_name="Ann").id
    for tenant in ("acme", "globex"):
        authvital.deliver("member.joined", tenant=tenant, sub=sub)
    ((acme,), (globex,)) = (rows(kit, tenant) for tenant in ("acme", "globex"))
    assert (acme.email, acme.given_name) == ("ann@example.test", "Ann")
    assert acme.membership_id != globex.membership_id

    authvital.deliver("member.suspended", tenant="acme", sub=sub)

    assert rows(kit)[0].membership_id == acme.membership_id


def test_what_one_action_tells_is_of_one_millisecond(authvital):
    """So are a sign-up's two events with AuthVital; what happens later is newer all the same."""
    do, acme = authvital.actions, authvital.tenant_id("acme")
    sub = do.sign_up("ann@example.test", tenant_id=acme).user_id
    first = [(each.type, each.event["timestamp"]) for each in authvital.outbox]
    assert [event_type for event_type, _ in first] == ["subject.created", "member.joined"]
    assert len({moment for _, moment in first}) == 1

    # An action made of others: accepting takes a seat too.
    kind = next(iter(authvital.state.license_types))
    invitation = do.invite(acme, "bob@example.test", license_type_id=kind)
    authvital.deliver_waiting()
    do.accept(invitation.id)
    second = [each.event["timestamp"] for each in authvital.outbox]
    authvital.deliver_waiting()
    do.grant_access(acme, sub, authvital.application_id)
    authvital.deliver_waiting()
    authvital.deliver("member.left", tenant="acme", sub=sub)

    assert len(second) >= 2
    assert len(set(second)) == 1
    sent = [moment_of(answer) for answer in authvital.answers]
    assert sent == sorted(sent)
    assert len(set(sent)) == len(sent) - 1 - (len(second) - 1)


def moment_of(answer):
    return msgspec.json.decode(answer.delivery.body)["timestamp"]


def test_no_test_changes_the_keys_of_the_next(another):
    """One may rotate and revoke; the key that takes long to make is the same for all."""
    first = another()
    original = first.authvital.emulator.keys.active.kid
    assert first.authvital.deliver("member.joined", tenant="acme", sub="ann") is Outcome.APPLIED
    first.authvital.emulator.keys.rotate()
    body = first.authvital.answers[0].delivery.body
    wicked.revoked_key(first.authvital.emulator, first.authvital.emulator.delivery(body))
    assert original in published(first)
    first.authvital.emulator.keys.revoke(original)
    assert original not in published(first)

    second = another()

    assert published(second) == [original]
    assert second.authvital.deliver("member.joined", tenant="acme", sub="ann") is Outcome.APPLIED


def published(kit):
    return [key["kid"] for key in kit.authvital.emulator.jwks()["keys"]]
