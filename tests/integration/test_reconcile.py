"""Reconciliation against real databases: what it adds, changes and removes, and when it refuses."""

import threading
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import msgspec
import pytest
from listing import NOW, House, Provider, as_list, row
from sqlalchemy import insert, select, update

from tenantsync.authvital.client import IntegrationClient, IntegrationUnavailable
from tenantsync.models import Identity, IdentitySession
from tenantsync.sync.drift import DriftCounter, State
from tenantsync.sync.mirror import Mirror
from tenantsync.sync.pipeline import Pipeline
from tenantsync.sync.reconcile import Reconciler
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Placement
from tenantsync.testing.delivery import VirtualClock
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.server import Response

PATH = "/api/integration/tenant-memberships"


@pytest.fixture
def provider():
    return Provider()


@pytest.fixture
def acme(provider):
    return provider.tenant("acme")


@pytest.fixture
def house(provider, acme, migrated_place, tmp_path):
    with ExitStack() as stack:
        yield House(provider, {acme: migrated_place}, f"sqlite:///{tmp_path / 'c.db'}", stack)


def people(house, tenant_id):
    """Return `sub` -> membership status."""
    return {sub: found["membership_status"] for sub, found in house.rows(tenant_id).items()}


def crowd(provider, tenant_id, count):
    """Add so many members in silence, and return their ids."""
    return [provider.member(tenant_id, f"p{number}@corp.test") for number in range(count)]


# -- what a list brings


def test_the_first_run_is_the_backfill(house, provider, acme):
    """Everybody in the list gets a row, with status, names and the role in our application."""
    zoe = provider.member(acme, "zoe@corp.test", given_name="Zoe", family_name="Ünïcode")
    ann = provider.member(acme, "ann@corp.test")
    provider.do.replace_app_roles(acme, zoe, provider.ours.id, ["admin", "viewer"])
    provider.do.replace_app_roles(acme, ann, provider.theirs.id, ["viewer"])
    provider.do.set_status_quietly(acme, ann, "SUSPENDED")
    invitation = provider.do.invite(acme, "eve@corp.test")
    eve = provider.emulator.state.memberships[invitation.membership_id].user_id

    report = house.reconcile()

    (told,) = report.tenants
    assert (told.state, told.people, told.added) == (State.DONE, 3, 3)
    assert report.ok
    names = ("tenant_id", "membership_status", "app_role", "given_name", "family_name")
    assert {
        zoe: (acme, "active", "admin", "Zoe", "Ünïcode"),
        ann: (acme, "suspended", None, None, None),
        eve: (acme, "invited", None, None, None),
    } == {sub: tuple(found[name] for name in names) for sub, found in house.rows(acme).items()}
    assert house.ledger(acme) == []


def test_what_is_unchanged_is_confirmed_and_not_written(house, provider, acme):
    """Clocks and synced_at move; updated_at, created_at and the ledger do not."""
    (zoe,) = crowd(provider, acme, 1)
    house.reconcile()
    long_ago = house.rows(acme)[zoe]["synced_at"] - timedelta(hours=1)
    house.execute(acme, update(Identity).values(synced_at=long_ago, updated_at=long_ago))
    before = house.rows(acme)[zoe]

    (told,) = house.reconcile().tenants

    after = house.rows(acme)[zoe]
    assert (told.unchanged, told.changed, told.added) == (1, 0, 0)
    assert after["updated_at"] == long_ago
    assert after["synced_at"] > long_ago
    assert min(after["clocks"]) > max(before["clocks"])
    moving = ("clocks", "synced_at")
    assert {name: value for name, value in before.items() if name not in moving} == {
        name: value for name, value in after.items() if name not in moving
    }
    assert house.ledger(acme) == []


def test_confirming_many_people_takes_one_statement(house, provider, acme, monkeypatch):
    """One UPDATE for two hundred people, as for two."""
    crowd(provider, acme, 200)
    house.reconcile()
    statements = []
    add = Pipeline.add
    monkeypatch.setattr(
        Pipeline,
        "add",
        lambda pipeline, *each: (statements.append(each[0].decode()), add(pipeline, *each))[1],
    )
    if not house.places[acme].is_postgres:
        with house.registry.connect(house.places[acme]) as connection:
            connection.connection.driver_connection.set_trace_callback(statements.append)

    (told,) = house.reconcile().tenants

    assert told.unchanged == 200
    assert sum(one.count("UPDATE") for one in statements) == 1
    assert sum(one.count("INSERT") for one in statements) == 0


def test_what_was_silent_is_caught_up_with(house, provider, acme):
    """Status, role and names follow the list, and only they count as changed."""
    zoe, ann, eve = crowd(provider, acme, 3)
    house.reconcile()
    provider.do.set_status_quietly(acme, zoe, "SUSPENDED")
    provider.do.replace_app_roles(acme, ann, provider.ours.id, ["admin"])
    provider.do.edit_profile(eve, email="eve@other.test", given_name="Eve")
    provider.do.edit_profile(zoe, given_name=None)
    differences = []

    (told,) = house.reconcile(on_difference=lambda _, each: differences.append(each)).tenants

    rows = house.rows(acme)
    assert (told.changed, told.unchanged) == (3, 0)
    assert rows[zoe]["membership_status"] == "suspended"
    assert rows[ann]["app_role"] == "admin"
    assert (rows[eve]["email"], rows[eve]["given_name"]) == ("eve@other.test", "Eve")
    assert {(each.sub, *each.columns) for each in differences} == {
        (zoe, "membership_status"),
        (ann, "app_role"),
        (eve, "given_name", "email"),
    }


def test_a_newer_webhook_wins_over_the_list(house, provider, acme):
    """The list was asked for before, and is taken after: what happened between them stands."""
    (zoe,) = crowd(provider, acme, 1)
    provider.do.replace_app_roles(acme, zoe, provider.ours.id, ["admin"])
    house.reconcile()

    def meanwhile(answer):
        provider.now.sleep(1)
        provider.do.suspend(acme, zoe)
        provider.do.set_app_role(acme, zoe, provider.ours.id, "viewer")
        house.deliver(provider.emulator.outbox.take())
        return answer

    provider.spoil = meanwhile
    house.reconcile()

    found = house.rows(acme)[zoe]
    assert (found["membership_status"], found["app_role"]) == ("suspended", "viewer")


def test_a_webhook_of_the_lists_last_seconds_wins(house, provider, acme):
    """The list was read, then something happened, and only then it was answered and dated."""
    (zoe,) = crowd(provider, acme, 1)
    provider.do.replace_app_roles(acme, zoe, provider.ours.id, ["admin"])
    house.reconcile()

    def meanwhile(answer):
        provider.do.suspend(acme, zoe)
        house.deliver(provider.emulator.outbox.take())
        return replace(answer, date=answer.date + 4_000)

    provider.spoil = meanwhile
    house.reconcile()

    assert people(house, acme) == {zoe: "suspended"}


def test_sessions_end_where_a_list_suspends(house, provider, acme):
    """In the same transaction, as when an event does."""
    zoe, ann = crowd(provider, acme, 2)
    house.reconcile()
    house.execute(
        acme,
        insert(IdentitySession).values(
            [
                {"id": sub, "identity_id": sub, "expires_at": house.rows(acme)[sub]["created_at"]}
                for sub in (zoe, ann)
            ]
        ),
    )
    provider.do.set_status_quietly(acme, zoe, "SUSPENDED")

    house.reconcile()

    table = IdentitySession.__table__
    ended = {
        found["id"]: found["revoked_at"] is not None
        for found in house._select(acme, select(table.c.id, table.c.revoked_at))
    }
    assert ended == {zoe: True, ann: False}


# -- absence


def test_who_is_missing_from_two_lists_has_left(house, provider, acme):
    """From one is not enough; then it is an event, in the ledger and before the hooks."""
    heard = []
    house.handler.on("member.left")(lambda event, session: heard.append(event.sub))
    zoe, ann = crowd(provider, acme, 2)
    house.reconcile()
    provider.do.remove_quietly(acme, ann)

    (first,) = house.reconcile().tenants
    after_first = people(house, acme)
    (second,) = house.reconcile().tenants
    (third,) = house.reconcile().tenants

    assert after_first == {zoe: "active", ann: "active"}
    assert people(house, acme) == {zoe: "active", ann: "left"}
    assert house.rows(acme)[ann]["tenant_id"] is None
    assert [first.removed, second.removed, third.removed] == [0, 1, 0]
    assert heard == [ann]
    ((kind, subject, outcome),) = [
        (found["type"], found["subject"], found["outcome"]) for found in house.ledger(acme)
    ]
    assert (kind, subject, outcome) == ("member.left", ann, "applied")


def test_who_is_back_in_the_second_list_has_not_left(house, provider, acme):
    """Two lists in a row, not two lists ever."""
    zoe, ann = crowd(provider, acme, 2)
    house.reconcile()
    for _ in range(3):
        provider.spoil = lambda answer: without(answer, ann)
        assert house.reconcile().tenants[0].people == 1
        provider.spoil = lambda answer: answer
        assert house.reconcile().tenants[0].people == 2

    assert people(house, acme) == {zoe: "active", ann: "active"}


def without(answer, *subs):
    """Return a list that lacks some people, and says so."""
    rows = [msgspec.json.decode(bytes(raw)) for raw in answer.memberships._raws]
    rows = [row for row in rows if row["user"]["id"] not in subs]
    return as_list(answer.tenant_id, rows, date=answer.date)


def test_two_lists_of_one_moment_are_one(house, provider, acme):
    """A cache that answers twice confirms nothing."""
    _, ann = crowd(provider, acme, 2)
    house.reconcile()
    provider.do.remove_quietly(acme, ann)
    house.reconcile()

    frozen = provider.tenant_memberships(acme)
    provider.spoil = lambda answer: replace(answer, date=frozen.date)
    assert house.reconcile().ok

    assert people(house, acme)[ann] == "active"


def test_who_joined_since_the_first_list_stays(house, provider, acme):
    """Their webhook is newer than the list in which they were missing."""
    crowd(provider, acme, 1)
    house.reconcile()
    invitation = provider.do.invite(acme, "eve@corp.test")
    provider.now.sleep(20)
    eve = provider.do.accept(invitation.id).user_id
    house.deliver(provider.emulator.outbox.take())
    provider.spoil = lambda answer: without(answer, eve)
    assert house.reconcile().tenants[0].people == 1

    assert people(house, acme)[eve] == "active"


def test_who_is_heard_of_while_a_list_is_taken_has_not_left(house, provider, acme):
    """They came back in silence, and the first event about them comes just before they leave."""
    owner, ann = crowd(provider, acme, 2)
    house.reconcile()
    provider.do.remove_quietly(acme, ann)
    house.reconcile()

    def meanwhile(*_):
        if provider.emulator.state.membership(acme, ann) is None:
            provider.do.add_member(acme, ann, silent=True)
            provider.do.grant_access(acme, ann, provider.ours.id)
            house.deliver(provider.emulator.outbox.take())

    (told,) = house.reconcile(on_portion=meanwhile).tenants

    assert (told.state, told.removed) == (State.DONE, 0)
    assert people(house, acme) == {owner: "active", ann: "active"}


def test_access_without_a_membership_ends_with_the_second_list(house, provider, acme):
    """A grant stands in for a membership of which nothing was said; the lists say something."""
    owner, ann = crowd(provider, acme, 2)
    provider.do.grant_access(acme, ann, provider.ours.id)
    house.deliver(provider.emulator.outbox.take())
    provider.do.remove_quietly(acme, ann)
    assert people(house, acme) == {ann: None}

    house.reconcile()
    house.reconcile()

    assert people(house, acme) == {owner: "active", ann: "left"}


def test_who_has_left_stays_left(house, provider, acme):
    """A loud departure is none to be found out."""
    owner, ann = crowd(provider, acme, 2)
    provider.do.replace_app_roles(acme, ann, provider.ours.id, ["admin"])
    house.reconcile()
    provider.do.remove(acme, ann)
    house.deliver(provider.emulator.outbox.take())
    ledger = house.ledger(acme)

    reports = [house.reconcile() for _ in range(3)]

    assert [each.tenants[0].removed for each in reports] == [0, 0, 0]
    assert house.ledger(acme) == ledger
    assert people(house, acme) == {owner: "active", ann: "left"}


# -- the brake


def test_too_many_at_once_are_not_locked_out(house, provider, acme, caplog):
    """Nothing is taken away, what is new still comes, and it says so; unless it is allowed."""
    everyone = crowd(provider, acme, 20)
    house.reconcile()
    for sub in everyone[:3]:
        provider.do.set_status_quietly(acme, sub, "SUSPENDED")
    for sub in everyone[3:5]:
        provider.do.remove_quietly(acme, sub)
    house.reconcile()
    assert list(people(house, acme).values()).count("suspended") == 3
    for sub in everyone[5:8]:
        provider.do.set_status_quietly(acme, sub, "SUSPENDED")
    new = provider.member(acme, "new@corp.test")

    (held,) = house.reconcile().tenants

    status = people(house, acme)
    assert (held.state, held.held_back, held.removed, held.added) == (State.HELD_BACK, 5, 0, 1)
    assert not held.ok
    assert "5 of 17" in held.why
    assert [status[sub] for sub in (*everyone[3:8], new)] == ["active"] * 6
    (again,) = house.reconcile().tenants
    assert again.state is State.HELD_BACK
    (let,) = house.reconcile(allow_mass_removal=True).tenants
    assert (let.state, let.removed, let.changed) == (State.DONE, 2, 3)
    status = people(house, acme)
    assert [status[sub] for sub in everyone[3:8]] == ["left"] * 2 + ["suspended"] * 3


def test_a_list_without_any_roles_takes_none_away(house, provider, acme):
    """The provider leaves roles out where it does not understand that they were asked for."""
    everyone = crowd(provider, acme, 6)
    for sub in everyone:
        provider.do.replace_app_roles(acme, sub, provider.ours.id, ["viewer"])
    house.reconcile()
    for sub in everyone:
        provider.do.replace_app_roles(acme, sub, provider.ours.id, [])

    (held,) = house.reconcile().tenants

    assert (held.state, held.held_back) == (State.HELD_BACK, 6)
    assert {found["app_role"] for found in house.rows(acme).values()} == {"viewer"}


def test_a_list_that_was_held_back_is_not_one_of_two(house, provider, acme):
    """Whom it did not confirm must not seem to have been missing from it."""
    everyone = crowd(provider, acme, 10)
    house.reconcile()
    for sub in everyone[:5]:
        provider.do.set_status_quietly(acme, sub, "SUSPENDED")
    house.reconcile()
    for sub in everyone[:5]:
        provider.do.set_status_quietly(acme, sub, "ACTIVE")
    provider.spoil = lambda answer: without(answer, everyone[0])

    (told,) = house.reconcile().tenants

    assert (told.state, told.removed) == (State.DONE, 0)
    assert set(people(house, acme).values()) == {"active"}


# -- looking only


def test_a_dry_run_tells_and_writes_nothing(house, provider, acme):
    """Not even that it looked: the next list is the first."""
    zoe, ann, eve = crowd(provider, acme, 3)
    house.reconcile()
    provider.do.remove_quietly(acme, ann)
    house.reconcile()
    provider.do.set_status_quietly(acme, zoe, "SUSPENDED")
    new = provider.member(acme, "new@corp.test")
    before, snapshot = house.rows(acme), house.reconciliations.previous(acme)
    told = []

    (report,) = house.reconcile(dry_run=True, on_difference=lambda *each: told.append(each)).tenants

    assert (report.added, report.changed, report.removed, report.unchanged) == (1, 1, 1, 1)
    assert {(key, each.what, each.sub) for key, each in told} == {
        ("t0", "changed", zoe),
        ("t0", "removed", ann),
        ("t0", "added", new),
    }
    assert house.rows(acme) == before
    assert house.reconciliations.previous(acme) == snapshot
    assert eve in before
    counts = {name: getattr(report, name) for name in ("added", "changed", "removed")}
    (real,) = house.reconcile().tenants
    assert counts == {name: getattr(real, name) for name in counts}


def test_a_dry_run_says_what_would_be_held_back(house, provider, acme):
    """As the run itself says it afterwards."""
    for sub in crowd(provider, acme, 8):
        provider.do.replace_app_roles(acme, sub, provider.ours.id, ["viewer"])
    house.reconcile()
    for sub in list(people(house, acme))[:6]:
        provider.do.set_status_quietly(acme, sub, "SUSPENDED")

    (dry,) = house.reconcile(dry_run=True).tenants
    (wet,) = house.reconcile().tenants

    same = ("state", "added", "changed", "removed", "unchanged", "held_back", "why")
    assert [getattr(dry, name) for name in same] == [getattr(wet, name) for name in same]


# -- lists that are wrong, over HTTP


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate(NOW)


def as_json(change):
    """Return what changes an answer's document, and leaves the rest of it alone."""

    def spoil(response):
        document = msgspec.json.decode(response.body)
        return replace(response, body=msgspec.json.encode(change(document)))

    return spoil


BROKEN = {
    "empty": as_json(lambda told: told | {"memberships": [], "totalCount": 0}),
    "empty, and says otherwise": as_json(lambda told: told | {"memberships": []}),
    "lacks some": as_json(lambda told: told | {"memberships": told["memberships"][:1]}),
    "of another tenant": as_json(lambda told: told | {"tenantId": "another"}),
    "twice a person": as_json(
        lambda told: (
            told
            | {
                "memberships": [
                    *told["memberships"],
                    told["memberships"][0] | {"status": "SUSPENDED"},
                ],
                "totalCount": len(told["memberships"]) + 1,
            }
        )
    ),
    "cut off": lambda response: replace(response, body=response.body[:-40]),
    "cut off at a row": lambda response: replace(
        response, body=response.body[: response.body.index(b'},{"id"') + 1]
    ),
    "no JSON": lambda response: replace(response, body=b"<html>Bad Gateway</html>"),
    "null": lambda response: replace(response, body=b"null"),
    "an error": lambda response: Response(500, b'{"message":"Internal server error"}'),
    "unavailable": lambda response: Response(503, b""),
    "forbidden": lambda response: Response(403, b'{"message":"no"}'),
    "not found": lambda response: Response(404, b'{"message":"Tenant not found"}'),
    "a redirect": lambda response: Response(302, b"", {"Location": "/elsewhere"}),
    "undated": lambda response: replace(response, headers={**response.headers, "Date": "-"}),
    "of the future": lambda response: replace(
        response, headers={**response.headers, "Date": "Fri, 31 Dec 2049 23:59:59 GMT"}
    ),
}


@pytest.mark.parametrize("wrong", BROKEN.values(), ids=BROKEN)
def test_a_list_that_is_wrong_never_removes_anyone(wrong, key, migrated_place, tmp_path):
    """However often it comes: nothing changes, and the next good list is taken."""
    clock = VirtualClock(NOW)
    with ExitStack() as stack:
        authvital = stack.enter_context(
            Emulator(keys=Keys(key, clock=clock), clock=clock, sleep=clock.sleep, seed=3)
        )
        provider = Provider(authvital, clock)
        acme = provider.tenant("acme")
        crowd(provider, acme, 6)
        client = stack.enter_context(
            IntegrationClient(
                authvital.url, "machine", "canary", clock=clock, sleep=clock.sleep, attempts=2
            )
        )
        control = f"sqlite:///{tmp_path / 'c.db'}"
        house = House(provider, {acme: migrated_place}, control, stack, lists=client)
        assert house.reconcile().ok
        before = house.rows(acme)
        snapshot = house.reconciliations.previous(acme)

        authvital.faults.spoil[PATH] = wrong
        reports = [house.reconcile().tenants[0] for _ in range(3)]

        assert {each.state for each in reports} <= {State.REFUSED, State.FAILED}
        assert all("corp.test" not in each.why and "canary" not in each.why for each in reports)
        assert house.rows(acme) == before
        assert house.reconciliations.previous(acme) == snapshot
        del authvital.faults.spoil[PATH]
        assert house.reconcile().ok
        assert set(people(house, acme).values()) == {"active"}


# -- trouble


class Lists:
    """Answers from a table; what is an error there is raised.

    Args:
        answers: Tenant id -> list or error.
    """

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def tenant_memberships(self, tenant_id):
        self.asked.append(tenant_id)
        answer = self.answers[tenant_id]
        if isinstance(answer, Exception):
            raise answer
        return answer


def fleet(stack, places, answers, control, **options):
    """Return a house of many tenants, and the lists that they are given."""
    provider = Provider()
    lists = Lists(answers)
    return House(provider, places, control, stack, lists=lists, **options), lists


def test_one_tenants_trouble_stays_its_own(schema_places, tmp_path):
    """A database that is down, a list that is wrong and a suspension: the others are done."""
    names = [f"id-{number}" for number in range(6)]
    places = dict(zip(names, schema_places(6), strict=True))
    places["id-1"] = Placement.of("postgresql+psycopg://nobody@127.0.0.1:1/nowhere")
    date = int(NOW) * 1000
    answers = {name: as_list(name, [row("zoe")], date=date) for name in names}
    answers["id-2"] = as_list("id-3", [row("eve")], date=date)
    answers["id-3"] = IntegrationUnavailable("AuthVital has trouble")
    answers["id-4"] = RuntimeError("personal")
    counter = DriftCounter()
    with ExitStack() as stack:
        house, _ = fleet(stack, places, answers, f"sqlite:///{tmp_path / 'c.db'}", observer=counter)
        house.tenants[5] = replace(house.tenants[5], suspended=True)
        seen = []

        report = house.reconciler.reconcile(
            house.tenants, jobs=3, on_progress=lambda each, done, of: seen.append((done, of))
        )

        states = [each.state for each in report.tenants]
        assert states == ["done", "failed", "refused", "failed", "failed", "skipped"]
        assert [each.tenant for each in report.tenants] == [f"t{number}" for number in range(6)]
        assert not report.ok
        assert sorted(seen) == [(number, 6) for number in range(1, 7)]
        assert "personal" not in str(report)
        assert list(house.rows("id-0")) == ["zoe"]
        assert house.rows("id-2") == {}
        assert counter.counts() == {
            **dict.fromkeys(counter.counts(), 0),
            "tenants_done": 1,
            "tenants_refused": 1,
            "tenants_failed": 3,
            "people_added": 1,
        }


def test_a_provider_that_fails_for_everybody_is_not_asked_for_everybody(tmp_path):
    """After five tenants in a row the rest is left for later."""
    names = [f"id-{number}" for number in range(20)]
    nowhere = Placement.of(f"sqlite:///{tmp_path / 'none.db'}")
    answers = dict.fromkeys(names, IntegrationUnavailable("AuthVital has trouble"))
    with ExitStack() as stack:
        house, lists = fleet(
            stack, dict.fromkeys(names, nowhere), answers, f"sqlite:///{tmp_path / 'c.db'}"
        )

        report = house.reconcile()

        assert len(lists.asked) == 5
        assert dict(report.counts) == {"failed": 5, "skipped": 15}


def test_a_hook_that_fails_keeps_nobody_else_in(house, provider, acme):
    """The tenant failed and is done again; those whose hook is content leave, also later ones."""
    everyone = crowd(provider, acme, 5)
    house.reconcile()
    for sub in everyone[:2]:
        provider.do.remove_quietly(acme, sub)
    house.reconcile()
    failing = {everyone[0]}

    @house.handler.on("member.left")
    def leave(event, session):
        if event.sub in failing:
            raise RuntimeError("no")

    (first,) = house.reconcile().tenants
    assert (first.state, first.removed, first.unchanged) == (State.FAILED, 1, 3)
    assert "hook" in first.why
    assert first.snapshot == house.reconciliations.previous(acme)
    status = people(house, acme)
    assert [status[sub] for sub in everyone] == ["active", "left", "active", "active", "active"]
    provider.do.remove_quietly(acme, everyone[2])
    later = [house.reconcile().tenants[0] for _ in range(2)]

    assert [(each.state, each.removed) for each in later] == [(State.FAILED, 0), (State.FAILED, 1)]
    assert people(house, acme)[everyone[2]] == "left"
    failing.clear()
    (last,) = house.reconcile().tenants
    assert (last.state, last.removed) == (State.DONE, 1)
    assert people(house, acme)[everyone[0]] == "left"


def test_a_run_that_is_stopped_leaves_what_it_did_and_is_done_again(house, provider, acme):
    """After a portion; nobody is removed by half a run."""
    crowd(provider, acme, 7)
    house.reconciler._portion = 3
    stopping = threading.Event()
    seen = []

    def stop(key, done, total):
        seen.append((key, done, total))
        stopping.set()

    (told,) = house.reconcile(stopping=stopping, on_portion=stop).tenants

    assert (told.state, told.why) == (State.SKIPPED, "the run was stopped")
    assert len(people(house, acme)) == 3
    assert house.reconciliations.previous(acme) is None
    (again,) = house.reconcile(on_portion=lambda *each: seen.append(each)).tenants
    assert (again.added, again.unchanged) == (4, 3)
    assert seen[-1] == ("t0", 7, 7)


def test_tenants_that_share_a_place_leave_each_other_alone(migrated_place, tmp_path):
    """Who is missing from one tenant's list and belongs to another stays; the latest list wins."""
    provider = Provider()
    acme, globex = provider.tenant("acme"), provider.tenant("globex")
    zoe, ann = provider.member(acme, "zoe@corp.test"), provider.member(globex, "ann@corp.test")
    bob = provider.member(acme, "bob@corp.test")
    provider.do.add_member(globex, bob, silent=True)
    with ExitStack() as stack:
        house = House(
            provider,
            {acme: migrated_place, globex: migrated_place},
            f"sqlite:///{tmp_path / 'c.db'}",
            stack,
            shared=True,
        )
        for _ in range(3):
            house.reconcile()
        status = people(house, acme)
        assert status == {zoe: "active", ann: "active", bob: "active"}
        provider.do.remove_quietly(acme, zoe)
        for _ in range(3):
            provider.now.sleep(10)
            house.reconciler.reconcile(house.tenants[:1])

        assert people(house, acme) == {zoe: "left", ann: "active", bob: "active"}


def test_a_report_counts_departures_only_where_they_were(house, provider, acme):
    """A second reconciler that found out the same at the same time counts nobody twice."""
    zoe, ann = crowd(provider, acme, 2)
    house.reconcile()
    provider.do.remove_quietly(acme, ann)
    house.reconcile()
    provider.now.sleep(10)
    barrier = threading.Barrier(2)

    def together(answer):
        barrier.wait(30)
        return answer

    provider.spoil = together
    other = Reconciler(
        provider,
        house.handler,
        Mirror(house.registry, DatabaseIsolation(None)),
        house.reconciliations,
        application_id=provider.ours.id,
        clock=provider.now,
    )
    reports = []
    threads = [
        threading.Thread(target=lambda one=one: reports.append(one.reconcile(house.tenants)))
        for one in (house.reconciler, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert [report.ok for report in reports] == [True, True]
    assert sum(report.tenants[0].removed for report in reports) == 1
    assert people(house, acme) == {zoe: "active", ann: "left"}
