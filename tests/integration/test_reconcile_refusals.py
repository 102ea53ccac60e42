"""Reconciliation where somebody says no: the place refuses a person, AuthVital refuses a tenant."""

from contextlib import ExitStack

import pytest
from guarding import ask
from listing import NOW, House, Provider, as_list, row

from tenantsync.authvital.client import (
    IntegrationClient,
    IntegrationForbidden,
    IntegrationNotFound,
    IntegrationRefused,
    IntegrationUnavailable,
)
from tenantsync.errors import EventRefused
from tenantsync.sync import taking
from tenantsync.sync.drift import State
from tenantsync.tenants import Placement
from tenantsync.testing.delivery import VirtualClock
from tenantsync.testing.emulator import Emulator

UNIQUE = "CREATE UNIQUE INDEX one_address ON {s}av_identities (email)"


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


@pytest.fixture
def strict(migrated_place):
    """Make the place refuse two people with one address; return it."""
    ask(migrated_place, UNIQUE)
    return migrated_place


def status(house, acme):
    """Return `sub` -> membership status."""
    return {sub: found["membership_status"] for sub, found in house.rows(acme).items()}


# -- the place refuses somebody


def test_one_person_whom_the_place_refuses_holds_up_nobody(strict, house, provider, acme):
    """The others are added, changed and removed; it failed, and says for how many and why."""
    everyone = [provider.member(acme, f"p{number}@corp.test") for number in range(9)]
    assert house.reconcile().ok
    provider.do.edit_profile(everyone[3], email="p4@corp.test", given_name="Twice")
    provider.do.edit_profile(everyone[5], given_name="Eve")
    provider.do.remove_quietly(acme, everyone[8])
    new = provider.member(acme, "new@corp.test")

    (first,) = house.reconcile().tenants
    (second,) = house.reconcile().tenants

    assert (first.state, first.added, first.changed, first.removed) == (State.FAILED, 1, 1, 0)
    assert (second.state, second.unchanged, second.removed) == (State.FAILED, 8, 1)
    assert second.why.startswith("1 person of the list could not be written")
    assert "Integrity" in second.why or "Unique" in second.why
    assert "corp.test" not in second.why
    rows = house.rows(acme)
    assert rows[everyone[3]]["email"] == "p3@corp.test"
    assert rows[everyone[5]]["given_name"] == "Eve"
    assert rows[new]["membership_status"] == "active"
    assert rows[everyone[8]]["membership_status"] == "left"
    provider.do.edit_profile(everyone[4], email="free@corp.test")
    house.reconcile()
    assert house.reconcile().ok
    assert house.rows(acme)[everyone[3]]["email"] == "p4@corp.test"


def test_who_could_not_be_written_was_in_the_list(strict, house, provider, acme):
    """Missing from the next one only, they have missed one list and not two."""
    zoe, ann = (provider.member(acme, f"{name}@corp.test") for name in ("zoe", "ann"))
    house.reconcile()
    provider.do.edit_profile(ann, email="zoe@corp.test")
    house.reconcile()
    provider.do.remove_quietly(acme, ann)

    (once,) = house.reconcile().tenants
    after_one = status(house, acme)
    (twice,) = house.reconcile().tenants

    assert (once.removed, after_one) == (0, {zoe: "active", ann: "active"})
    assert (twice.removed, status(house, acme)) == (1, {zoe: "active", ann: "left"})


def test_a_row_that_takes_nothing_at_all_is_not_missing_either(house, provider, acme):
    """A trigger refuses even the mark that somebody was in the list: then none was believed."""
    place = house.places[acme]
    zoe, ann, bob = (provider.member(acme, f"{name}@corp.test") for name in ("zoe", "ann", "bob"))
    house.reconcile()
    believed = house.reconciliations.previous(acme)
    provider.do.remove_quietly(acme, bob)
    house.reconcile()
    frozen = house.reconciliations.previous(acme)
    assert frozen > believed
    if place.is_postgres:
        ask(
            place,
            "CREATE FUNCTION {s}no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
            " RAISE EXCEPTION 'no'; END$$",
        )
        ask(
            place,
            f"CREATE TRIGGER no BEFORE UPDATE ON {{s}}av_identities FOR EACH ROW"
            f" WHEN (old.id = '{ann}') EXECUTE FUNCTION {{s}}no()",
        )
    else:
        ask(
            place,
            f"CREATE TRIGGER no BEFORE UPDATE ON av_identities WHEN old.id = '{ann}'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END",
        )

    (told,) = house.reconcile().tenants

    assert (told.state, told.removed) == (State.FAILED, 1)
    assert house.reconciliations.previous(acme) == frozen
    assert status(house, acme) == {zoe: "active", ann: "active", bob: "left"}


def test_a_place_that_refuses_everybody_is_left_alone(house, provider, acme, monkeypatch):
    """Beyond a number of people it is no matter of single rows any more."""
    monkeypatch.setattr(taking, "_MOST_REFUSED", 3)
    place = house.places[acme]
    for number in range(9):
        provider.member(acme, f"p{number}@corp.test")
    house.reconcile()
    believed = house.reconciliations.previous(acme)
    ask(
        place,
        "UPDATE {s}av_identities SET email = 'taken@corp.test' WHERE email = 'p0@corp.test'",
    )
    if place.is_postgres:
        ask(place, "ALTER TABLE {s}av_identities ADD CHECK (email NOT LIKE 'q%')")
    else:
        ask(
            place,
            "CREATE TRIGGER no BEFORE UPDATE ON av_identities WHEN new.email LIKE 'q%'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
    for number, sub in enumerate(list(status(house, acme))):
        provider.do.edit_profile(sub, email=f"q{number}@corp.test")

    (told,) = house.reconcile().tenants

    assert told.state is State.FAILED
    assert told.why.startswith("at least 4 people of the list could not be written")
    assert house.reconciliations.previous(acme) == believed


def test_a_list_that_is_held_back_and_refused_says_both(strict, house, provider, acme):
    """Neither hides the other."""
    everyone = [provider.member(acme, f"p{number}@corp.test") for number in range(8)]
    house.reconcile()
    for sub in everyone[:6]:
        provider.do.set_status_quietly(acme, sub, "SUSPENDED")
    provider.do.edit_profile(everyone[7], email="p6@corp.test")

    (told,) = house.reconcile().tenants

    assert (told.state, told.held_back) == (State.FAILED, 6)
    assert "1 person of the list" in told.why
    assert "--allow-mass-removal" in told.why
    assert set(status(house, acme).values()) == {"active"}


def test_only_what_blames_the_evidence_is_tried_one_by_one(house, provider, acme):
    """A place that is not there is asked once for a portion, not once for a person."""
    asked = []

    class Gone:
        def take(self, placement, evidence, **options):
            asked.append(len(evidence))
            raise EventRefused("no") if len(asked) == 1 else IntegrationUnavailable("gone")

    taken = taking.Taking(Gone(), house.places[acme], take_away=True)
    provider.member(acme, "zoe@corp.test")
    provider.member(acme, "ann@corp.test")
    with pytest.raises(IntegrationUnavailable):
        taken._take([1, 2, 3, 4])

    assert asked == [4, 2]


# -- AuthVital refuses somebody


class Lists:
    """Answers from a table; what is an error there is raised."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def tenant_memberships(self, tenant_id):
        self.asked.append(tenant_id)
        answer = self.answers[tenant_id]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (IntegrationForbidden("not for this tenant"), 9),
        (IntegrationNotFound("no such tenant"), 9),
        (IntegrationRefused("the secret is wrong"), 5),
        (IntegrationUnavailable("AuthVital has trouble"), 5),
    ],
)
def test_what_one_tenant_is_refused_says_nothing_of_the_others(error, asked, tmp_path):
    """Only where AuthVital would fail for everybody are the others not asked for."""
    names = [f"id-{number}" for number in range(9)]
    nowhere = Placement.of(f"sqlite:///{tmp_path / 'none.db'}")
    lists = Lists(dict.fromkeys(names, error))
    lists.answers["id-8"] = as_list("id-8", [row("zoe")], date=int(NOW) * 1000)
    with ExitStack() as stack:
        house = House(
            Provider(),
            dict.fromkeys(names, nowhere),
            f"sqlite:///{tmp_path / 'c.db'}",
            stack,
            lists=lists,
        )
        house.reconcile()

    assert len(lists.asked) == asked


@pytest.mark.parametrize("secret", ["canary", "wrong"])
def test_the_client_tells_a_refused_tenant_from_a_refused_credential(secret):
    """A 403 of a list is about the tenant; what the token request says is about us."""
    clock = VirtualClock(NOW)
    with Emulator(clock=clock, sleep=clock.sleep, seed=3) as authvital:
        provider = Provider(authvital, clock)
        acme = provider.tenant("acme")
        provider.member(acme, "zoe@corp.test")
        provider.ours.credentials["MACHINE"].trusted = False
        with (
            IntegrationClient(authvital.url, "machine", secret, clock=clock) as client,
            pytest.raises(IntegrationRefused) as caught,
        ):
            client.tenant_memberships(acme)

    assert isinstance(caught.value, IntegrationForbidden) is (secret == "canary")
