"""Applications, sign-on providers and tenants in the local AuthVital, and one moment per action."""

import json
from itertools import count
from pathlib import Path

import pytest

from tenantsync.testing.courier import Ticking
from tenantsync.testing.delivery import VirtualClock, iso
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.tables import SystemHook

NOW = 1_795_405_281.0
EXAMPLES = Path(__file__).parent.parent / "data" / "authvital-examples.jsonl"
TYPES = (
    "tenant.created",
    "tenant.updated",
    "tenant.deleted",
    "tenant.app.granted",
    "application.created",
    "application.updated",
    "application.deleted",
    "sso.provider_added",
    "sso.provider_updated",
    "sso.provider_removed",
)


@pytest.fixture
def authvital():
    numbers = count(1)
    made = Emulator(
        clock=VirtualClock(NOW), new_id=lambda: f"event-{next(numbers)}", issuer="-", seed=7
    )
    made.state.system_hooks.append(SystemHook("http://127.0.0.1:9/system", TYPES))
    return made


@pytest.fixture
def do(authvital):
    return authvital.actions


def told(authvital):
    """Take the one emission that waits."""
    (one,) = authvital.outbox.take()
    return one


def example(case):
    """Return what AuthVital sends: the published form of a case."""
    for line in EXAMPLES.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        if found["case"] == case:
            return found["body"]
    raise LookupError(case)


def keys(event):
    """Return the keys of an event, of its payload, and of the objects in there."""
    data = event["data"]
    inner = {name: list(value) for name, value in data.items() if isinstance(value, dict)}
    # Which values changed differs from case to case.
    inner.pop("previous_values", None)
    return list(event), list(data), inner


# -- applications


def test_every_event_of_the_super_admin_has_the_keys_of_the_real_one(authvital, do):
    """In their order, as the legacy core writes them; the tenant is null."""
    app = do.create_application("Cargo Board", redirect_uris=["https://cargo.test/callback"])
    do.change_application(app.id, name="Cargo Board 2")
    do.switch_application(app.id, on=False)
    do.delete_application(app.id)
    do.set_sso_provider("MICROSOFT")
    do.change_sso_provider("MICROSOFT", ["clientSecret", "allowedDomains"])
    do.remove_sso_provider("MICROSOFT")
    ours = authvital.outbox.take()
    cases = (
        "wire-application-created",
        "wire-application-updated",
        "wire-application-updated-disabled",
        "wire-application-deleted",
        "wire-sso-provider-added",
        "wire-sso-provider-updated",
        "wire-sso-provider-removed",
    )

    assert [keys(json.loads(one.body("legacy"))) for one in ours] == [
        keys(example(case)) for case in cases
    ]
    assert {one.data["tenant_id"] for one in ours} == {None}
    assert {one.tenant_id for one in ours} == {""}


def test_an_application_without_credentials_has_no_client_id(authvital, do):
    """All that belongs to the credential is null."""
    do.create_application("Night Ledger", client=False, access_mode="MANUAL_NO_DEFAULT")
    created = told(authvital).data

    assert created["client_id"] is None
    assert created["config"]["access_token_ttl_seconds"] is None
    assert created["application_type"] == "MANUAL_NO_DEFAULT"


def test_what_differs_is_told_with_what_it_was(authvital, do):
    """Under the provider's dotted names; what stays the same is no change."""
    app = do.create_application("App", licensing="FREE")
    authvital.outbox.take()
    do.change_application(
        app.id, name="App", licensing="PER_SEAT", webhook_url="http://x.test", on_sign_up=True
    )
    changed = told(authvital).data

    assert changed["changed_fields"] == ["licensing.mode", "webhook_url"]
    assert changed["previous_values"] == {"licensing.mode": "FREE", "webhook_url": None}
    assert changed["licensing"]["mode"] == "PER_SEAT"
    assert changed["licensing"]["auto_provision_on_signup"] is True


def test_some_changes_of_an_application_are_silent(authvital, do):
    """Its filter of events, for one; and what is not changed at all."""
    app = do.create_application("App")
    authvital.outbox.take()
    do.change_application(app.id, webhook_events=("member.*",), name="App")

    assert app.webhook_events == ("member.*",)
    assert len(authvital.outbox) == 0


def test_a_deleted_application_leaves_nothing(authvital, do):
    """Roles, access, subscriptions and seats go with it; it must be disabled first."""
    app = do.create_application("Seats", licensing="PER_SEAT", default_role="editor")
    kept = authvital.state.add_application("Kept", default_role="viewer")
    kind = authvital.state.add_license_type(app.id, "Pro")
    free = authvital.state.add_license_type(kept.id, "Free")
    owner = do.sign_up("owner@corp.test", tenant_name="Corp")
    do.subscribe(owner.tenant_id, kind.id)
    do.subscribe(owner.tenant_id, free.id)
    do.grant_access(owner.tenant_id, owner.user_id, app.id)
    do.grant_access(owner.tenant_id, owner.user_id, kept.id)
    with pytest.raises(ValueError, match="on=False"):
        do.delete_application(app.id)
    do.switch_application(app.id, on=False)
    with pytest.raises(ValueError, match="disabled already"):
        do.switch_application(app.id, on=False)
    authvital.outbox.take()
    do.delete_application(app.id)
    state = authvital.state

    assert told(authvital).type == "application.deleted"
    assert list(state.applications) == [kept.id]
    assert [one.application_id for one in state.access.values()] == [kept.id]
    assert [one.application_id for one in state.subscriptions.values()] == [kept.id]
    assert [state.role(one).slug for one in owner.role_ids] == ["viewer"]
    assert state.seats == {}


def test_mistakes_with_applications_and_providers_are_sentences(authvital, do):
    """A field that does not exist, a provider that is not there."""
    app = do.create_application("App")
    with pytest.raises(TypeError, match="active cannot be changed"):
        do.change_application(app.id, active=False)
    with pytest.raises(LookupError, match="set_sso_provider"):
        do.remove_sso_provider("GOOGLE")
    with pytest.raises(LookupError, match="set_sso_provider"):
        do.change_sso_provider("GOOGLE", ["enabled"])
    with pytest.raises(TypeError, match="no secret"):
        do.change_sso_provider("GOOGLE", ["secret"])


# -- tenants


@pytest.fixture
def tenant(authvital, do):
    made = do.create_tenant("Corp")
    authvital.outbox.take()
    return made


def test_a_slug_changes_and_is_free_for_another_tenant(authvital, do, tenant):
    """It is no identifier: what was one tenant's is another's the next moment."""
    do.change_tenant(tenant.id, slug="corp-old")
    second = do.create_tenant("Corp")
    changed, created = authvital.outbox.take()

    assert (changed.data["slug"], changed.data["changed_fields"]) == ("corp-old", ["slug"])
    assert created.data["slug"] == second.slug == "corp"
    with pytest.raises(ValueError, match="rename that one first"):
        do.change_tenant(tenant.id, slug="corp")


def test_settings_are_told_whenever_they_are_given(authvital, do, tenant):
    """Also the same ones again; a name only where it is another."""
    owner = do.add_user("o@corp.test").id
    do.change_tenant(tenant.id, name="Corp", settings={"big": "x" * 90_000}, by=owner)
    do.change_tenant(tenant.id, settings=dict(tenant.settings), by=owner)
    do.change_tenant(tenant.id, name="Corp", slug="corp", by=owner)
    both = authvital.outbox.take()

    assert [one.data["changed_fields"] for one in both] == [["settings"]] * 2
    assert both[0].data["settings"] == {"big": "x" * 90_000}
    assert both[0].data["updated_by_sub"] == owner


def test_what_was_told_does_not_change_with_the_tenant(authvital, do, tenant):
    """The settings are those of the moment."""
    do.change_tenant(tenant.id, settings={"a": 1}, by="someone")
    tenant.settings["a"] = 2

    assert told(authvital).data["settings"] == {"a": 1}


def test_a_super_admin_sets_the_login_address_in_camel_case(authvital, do, tenant):
    """A person of the tenant cannot, and a super-admin changes no settings."""
    do.change_tenant(tenant.id, initiate_login_uri="https://corp.test/login")

    assert told(authvital).data["changed_fields"] == ["initiateLoginUri"]
    with pytest.raises(TypeError, match="super-admin sets"):
        do.change_tenant(tenant.id, initiate_login_uri="https://x.test", by="someone")
    with pytest.raises(TypeError, match="say `by` whom"):
        do.change_tenant(tenant.id, settings={})


def test_a_refused_deletion_was_told_all_the_same(authvital, do, tenant):
    """The tenant lives on, and its events come after its end."""
    member = do.add_member(tenant.id, do.add_user("x@corp.test").id, silent=True)
    do.delete_tenant(tenant.id, refused=True)

    assert told(authvital).type == "tenant.deleted"
    assert authvital.state.tenants[tenant.id] is tenant
    assert authvital.state.members(tenant.id) == [member]
    do.rename_tenant(tenant.id, "Still here")
    assert told(authvital).data["name"] == "Still here"


def test_an_anonymous_account_becomes_a_tenant_that_nobody_hears_of(authvital, do):
    """Neither the tenant nor the person nor the membership is told, of any of the channels."""
    app = authvital.state.add_application("App", on_sign_up=True)
    authvital.state.add_license_type(app.id, "Free")
    authvital.state.topic_events = ("*",)
    sub = do.sign_up_anonymously().id
    owner = do.upgrade_anonymous(sub, "Ann@Corp.test", given_name="Ann", tenant_name="Corp")
    other = do.upgrade_anonymous(
        do.sign_up_anonymously().id, "bob@corp.test", tenant_id=owner.tenant_id
    )

    assert len(authvital.outbox) == len(authvital.pubsub.topic) == 0
    assert authvital.state.tenants[owner.tenant_id].name == "Corp"
    assert authvital.state.users[sub].email == "ann@corp.test"
    assert (owner.tenant_roles, other.tenant_roles) == (["owner"], ["member"])
    with pytest.raises(ValueError, match="sign_up_anonymously"):
        do.upgrade_anonymous(sub, "again@corp.test")


# -- one moment


def test_all_that_one_action_tells_is_of_one_millisecond():
    """Even with a clock that ticks at every reading; the next action is later."""
    clock = Ticking(VirtualClock(NOW))
    authvital = Emulator(clock=clock, issuer="-", seed=7)
    app = authvital.state.add_application("App", default_role="editor", on_sign_up=True)
    authvital.state.add_license_type(app.id, "Free")
    authvital.state.system_hooks.append(SystemHook("-", TYPES))
    do = authvital.actions
    owner = do.sign_up("owner@corp.test", application_id=app.id)
    signed_up = {one.event["timestamp"] for one in authvital.outbox.take()}
    do.accept(do.invite(owner.tenant_id, "ann@corp.test").id)
    accepted = {one.event["timestamp"] for one in authvital.outbox.take()}

    assert len(signed_up) == len(accepted) == 1
    assert max(signed_up) < min(accepted)
    assert signed_up == {iso(owner.created_at)}
