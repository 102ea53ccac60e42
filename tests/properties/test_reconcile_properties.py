"""Whatever happens at the provider and on the way, two lists make the mirror say what it says."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from folding import clear, two_places
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from listing import NOW, House, Provider, as_list, row
from sqlalchemy import delete

from tenantsync.authvital.memberships import TenantMemberships
from tenantsync.control.reconciliations import reconciliations
from tenantsync.events import Dialect, Event
from tenantsync.sync.evidence import MARGIN, Evidence
from tenantsync.sync.merge import Person, clock_of, merge
from tenantsync.sync.reconcile import Reconciler
from tenantsync.tenants import Placement

START = int(NOW) * 1000
CAREFUL = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# -- facts of both kinds

MOMENTS = st.integers(0, 4).map(lambda n: START + 1_000 * n)
ROLES = st.sampled_from(["admin", "viewer"])
EMAILS = st.sampled_from(["a@corp.test", "b@corp.test"])
KINDS = st.sampled_from(
    [
        *("member.joined", "member.suspended", "member.activated", "member.left"),
        *("app_access.granted", "app_access.role_changed", "app_access.revoked"),
    ]
)


@st.composite
def events(draw: st.DrawFn, sub: str = "zoe") -> Event:
    """Draw an event about a person; of two with one id, both say the same."""
    kind, at = draw(KINDS), draw(MOMENTS)
    data = {"sub": sub, "membership_id": "m", "email": draw(EMAILS)}
    if kind.startswith("app_access"):
        data["role_slug"] = draw(ROLES)
    said = "".join(sorted(map(str, data.values())))
    return Event(
        id=f"{kind} {at} {said}",
        type=kind,
        timestamp=at,
        tenant_id="acme",
        application_id="ours",
        sub=sub,
        data=data,
        dialect=Dialect.SYNC,
    )


@st.composite
def evidences(draw: st.DrawFn, sub: str = "zoe") -> Evidence:
    """Draw what a list says of a person."""
    return Evidence(
        sub=sub,
        timestamp=draw(MOMENTS),
        tenant_id="acme",
        membership_id=draw(st.sampled_from(["m", "n"])),
        status=draw(st.sampled_from(["active", "suspended", "invited"])),
        app_role=draw(st.none() | ROLES),
        claims=draw(st.just({}) | EMAILS.map(lambda email: {"email": email})),
    )


def merged(facts: Sequence[Event | Evidence]) -> Person:
    """Return what is known after some facts."""
    state = None
    for fact in facts:
        state = merge(state, fact).state
    assert isinstance(state, Person)
    return state


def says(fact: Event | Evidence) -> dict[str, object]:
    """Return register -> what a fact says of it, worked out apart from the merge."""
    if isinstance(fact, Evidence):
        said: dict[str, object] = {"app_role": fact.app_role}
        said["membership"] = (fact.tenant_id, fact.membership_id, fact.status)
        return said | dict(fact.claims)
    said = {"email": fact.data["email"]} if "email" in fact.data else {}
    status = {
        "member.joined": "active",
        "member.activated": "active",
        "member.suspended": "suspended",
        "member.left": "left",
    }.get(fact.type)
    if status is not None:
        said["membership"] = (
            None if status == "left" else "acme",
            fact.data.get("membership_id"),
            status,
        )
    if fact.type in ("member.left", "app_access.revoked"):
        said["app_role"] = None
    elif fact.type.startswith("app_access"):
        said["app_role"] = fact.data["role_slug"]
    if fact.type in ("app_access.granted", "app_access.revoked"):
        said["has_app_access"] = fact.type.endswith("granted")
    return said


def expected(facts: Sequence[Event | Evidence]) -> dict[str, object]:
    """Return register -> what the newest of all facts about it says."""
    return {
        register: said[register]
        for fact in sorted(facts, key=clock_of)
        for said in [says(fact)]
        for register in said
    }


def known(person: Person) -> dict[str, object]:
    """Return register -> what is known, for the registers that `says` may have."""
    values = person.values
    names = ("tenant_id", "membership_id", "membership_status")
    found = {name: values[name] for name in ("app_role", "email", "has_app_access")}
    found["membership"] = tuple(values[name] for name in names)
    return {name: found[name] for name in found if name in person.clocks}


@settings(max_examples=500, deadline=None)
@given(st.lists(events() | evidences(), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_newest_fact_stands_in_whatever_order_they_come(facts, random):
    """Events and evidence are a set: neither order nor repetition counts, only their clocks."""
    shuffled = [*facts, *facts[:2]]
    random.shuffle(shuffled)

    assert merged(facts) == merged(shuffled)
    assert known(merged(shuffled)) == expected(facts)


# -- races in a database


@pytest.fixture(params=["sqlite", "postgresql"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> list[Placement]:
    """Give two migrated places."""
    return list(two_places(request, tmp_path))


@pytest.fixture
def control(tmp_path: Path) -> str:
    """Give the URL of a control database."""
    return f"sqlite:///{tmp_path / 'control.db'}"


@pytest.fixture
def racing(places: list[Placement], control: str) -> Iterator[House]:
    """Give a tenant `acme` in the first place."""
    with ExitStack() as stack:
        yield House(Provider(), {"acme": places[0]}, control, stack)


SEAMS = ("before", "fetched", "compared", "portion", "next portion", "leaving", "after")
STATUSES = {"ACTIVE": "active", "SUSPENDED": "suspended", "INVITED": "invited"}


@dataclass(frozen=True)
class Round:
    """One list, and what is delivered while it is taken.

    Args:
        taken_at: When the list is true.
        lines: Person -> what the list says of them; who is not in it is missing.
        live: Seam -> the events that are delivered there.
    """

    taken_at: int
    lines: dict[str, Evidence]
    live: dict[str, list[Event]]


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    """Draw a list of some of two people, and events about them at the seams."""
    taken_at = draw(MOMENTS)
    evidence = {}
    for sub in draw(st.sets(st.sampled_from(["zoe", "ann"]))):
        told = draw(evidences(sub))
        email = told.claims.get("email", "c@corp.test")
        evidence[sub] = replace(
            told,
            timestamp=taken_at,
            membership_id=f"{told.membership_id}-{sub}",
            claims={"email": email},
        )
    delivered = st.tuples(st.sampled_from(SEAMS), st.sampled_from(["zoe", "ann"]).flatmap(events))
    live: dict[str, list[Event]] = {}
    for seam, event in draw(st.lists(delivered, max_size=4)):
        live.setdefault(seam, []).append(event)
    return Round(taken_at, evidence, live)


class Race:
    """Reconciles rounds in a house, delivers at their seams, and keeps account of all facts.

    Args:
        house: One tenant, `acme`, of whom nothing is known.
    """

    def __init__(self, house: House) -> None:
        self.facts: list[Event | Evidence] = []
        self.left: list[Event] = []
        self._house = house
        self._waiting: dict[str, list[Event]] = {}
        self._now: Round | None = None
        self._before: Round | None = None

    def tenant_memberships(self, tenant_id: str) -> TenantMemberships:
        """Give the round's list, as the provider would; its owner is always in it."""
        now = self._now
        rows = [row("owner", email=None)]
        for sub, told in now.lines.items():
            status = next(name for name, known in STATUSES.items() if known == told.status)
            roles = [(self._house.provider.ours.id, told.app_role)] if told.app_role else []
            rows.append(
                row(
                    sub,
                    status=status,
                    membership=told.membership_id,
                    email=told.claims["email"],
                    roles=roles,
                )
            )
        self._deliver("fetched")
        return as_list(tenant_id, rows, date=now.taken_at + MARGIN)

    def apply_parked(self, tenant_id: str, events: Sequence[Event], **options: Any) -> Any:
        """Let people leave: who was heard of since the first of the two lists does not."""
        before, now = self._before, self._now
        for event in events:
            heard = [fact.timestamp for fact in self.facts if fact.sub == event.sub]
            assert event.sub not in {*before.lines, *now.lines}
            assert max(heard) < before.taken_at < now.taken_at
        self._deliver("leaving")
        self.facts += events
        self.left += events
        return self._house.handler.apply_parked(tenant_id, events, **options)

    def run(self, now: Round) -> None:
        """Reconcile once."""
        self._now, self._waiting = now, dict(now.live)
        reconciler = Reconciler(
            self,
            self,
            self._house.mirror,
            self._house.reconciliations,
            application_id=self._house.provider.ours.id,
            portion=1,
            clock=self._house.provider.now,
        )
        self._deliver("before")
        self.facts += now.lines.values()
        missing = self.missing()
        left = len(self.left)
        portions = iter(("portion", "next portion"))
        told = reconciler.reconcile_tenant(
            self._house.tenants[0],
            on_difference=lambda *_: self._deliver("compared"),
            on_portion=lambda *_: self._deliver(next(portions, "after")),
        )
        assert told.ok, told
        assert missing <= {event.sub for event in self.left[left:]}
        for seam in SEAMS:
            self._deliver(seam)
        if self._before is None or now.taken_at > self._before.taken_at:
            self._before = now

    def missing(self) -> set[str]:
        """Return who has missed both lists and cannot be heard of before they leave."""
        before, now = self._before, self._now
        if before is None or now.taken_at <= before.taken_at:
            return set()
        found = set()
        for sub in {"zoe", "ann"} - {*before.lines, *now.lines}:
            about = [fact for fact in self.facts if fact.sub == sub]
            coming = any(event.sub == sub for each in self._waiting.values() for event in each)
            gone = about and says_left(about)
            if about and not coming and not gone:
                newest = max(fact.timestamp for fact in about)
                found |= {sub} if newest < before.taken_at else set()
        return found

    def _deliver(self, seam: str) -> None:
        for event in self._waiting.pop(seam, ()):
            self.facts.append(event)
            self._house.handler.handle_blocking(event)


def says_left(facts: Sequence[Event | Evidence]) -> bool:
    """Whether the newest word about a membership is that it ended."""
    return expected(facts).get("membership", ("", "", ""))[2] == "left"


@settings(CAREFUL, max_examples=80)
@given(
    st.lists(rounds(), min_size=1, max_size=4)
    # Only newer lists find anybody missing.
    | st.lists(rounds(), min_size=3, max_size=4, unique_by=lambda each: each.taken_at).map(
        lambda drawn: sorted(drawn, key=lambda each: each.taken_at)
    )
)
def test_lists_that_race_webhooks_never_undo_what_is_newer(racing, drawn):
    """Whichever events come at whichever seam, the newest facts stand, and only the gone leave."""
    place = racing.places["acme"]
    clear(racing.registry, place)
    with racing.control.write() as connection:
        connection.execute(delete(reconciliations))
    race = Race(racing)
    for each in drawn:
        race.run(each)

    stored = dict(racing.mirror.people(place))
    for sub in ("zoe", "ann"):
        about = [fact for fact in race.facts if fact.sub == sub]
        assert (sub in stored) is bool(about)
        if about:
            assert known(stored[sub]) == expected(about)
            assert stored[sub] == merged(about)


# -- the provider itself

_STATUS = {"ACTIVE": "active", "SUSPENDED": "suspended", "INVITED": "invited"}
_FATES = st.sampled_from(["now", "now", "lost", "late", "twice"])
DATA = st.data()
WHO, WHERE = st.integers(0, 3), st.integers(0, 1)  # four people: too few for the brake


class Convergence(RuleBasedStateMachine):
    """Drives a local AuthVital and the way of its events; compares after two lists.

    Args:
        house: Two tenants whose places are empty.
    """

    def __init__(self, house: House) -> None:
        super().__init__()
        self.house = house
        self.provider = house.provider
        self.do = self.provider.do
        self.tenants = [tenant.id for tenant in house.tenants]
        self.late: list[object] = []
        self.delivered: list[Event] = []
        self.people: list[str] = []

    @initialize(future=st.sampled_from([None, "one", "each"]))
    def begin(self, future):
        self.do.future = future
        self.provider.emulator.outbox.drop()
        self.people = [self.do.add_user(f"p{n}@corp.test").id for n in range(4)]
        for tenant_id in self.tenants:
            # A list without anybody is refused.
            self.provider.member(tenant_id, f"owner@{tenant_id}.test")
            for sub in self.people[:3]:
                self.do.add_member(tenant_id, sub, silent=True)
                self.do.replace_app_roles(tenant_id, sub, self.provider.ours.id, ["editor"])

    def member(self, who, where):
        return self.provider.emulator.state.membership(self.tenants[where], self.people[who])

    def alive(self, who):
        return self.people[who] in self.provider.emulator.state.users

    @rule(who=WHO, where=WHERE, loud=st.booleans(), data=DATA)
    def join(self, who, where, loud, data):
        if not self.alive(who) or self.member(who, where) is not None:
            return
        user = self.provider.emulator.state.users[self.people[who]]
        if loud and user.email:
            self.do.accept(self.do.invite(self.tenants[where], user.email).id)
        else:
            self.do.add_member(self.tenants[where], user.id, silent=True)
        self.post(data)

    @rule(who=WHO, where=WHERE, loud=st.booleans(), data=DATA)
    def leave(self, who, where, loud, data):
        if self.member(who, where) is not None:
            leave = self.do.remove if loud else self.do.remove_quietly
            leave(self.tenants[where], self.people[who])
            self.post(data)

    @rule(
        who=WHO, where=WHERE, status=st.sampled_from(sorted(_STATUS)), loud=st.booleans(), data=DATA
    )
    def change_status(self, who, where, status, loud, data):
        if self.member(who, where) is None:
            return
        place = (self.tenants[where], self.people[who])
        if loud and status == "ACTIVE":
            self.do.activate(*place)
        elif loud and status == "SUSPENDED":
            self.do.suspend(*place)
        else:
            self.do.set_status_quietly(*place, status)
        self.post(data)

    @rule(
        who=WHO,
        where=WHERE,
        slug=st.sampled_from(["admin", "viewer", None]),
        loud=st.booleans(),
        data=DATA,
    )
    def give_role(self, who, where, slug, loud, data):
        if self.member(who, where) is None:
            return
        place = (self.tenants[where], self.people[who], self.provider.ours.id)
        if loud and slug:
            self.do.set_app_role(*place, slug)
        else:
            self.do.replace_app_roles(*place, [slug] if slug else [])
        self.post(data)

    @rule(who=WHO, where=WHERE, grant=st.booleans(), loud=st.booleans(), data=DATA)
    def change_access(self, who, where, grant, loud, data):
        if self.member(who, where) is not None:
            changes = {
                (True, True): self.do.grant_access,
                (True, False): self.do.grant_by_api,
                (False, True): self.do.revoke_access,
                (False, False): self.do.revoke_by_api,
            }
            change = changes[grant, loud]
            change(self.tenants[where], self.people[who], self.provider.ours.id)
            self.post(data)

    @rule(who=WHO, data=DATA)
    def deactivate(self, who, data):
        if self.do.future and self.alive(who):
            self.do.deactivate_user(self.people[who])
            self.post(data)

    @rule(who=WHO, name=st.sampled_from(["Zoe", "Ünï", None]), email=st.integers(0, 9), data=DATA)
    def rename(self, who, name, email, data):
        if self.alive(who):
            self.do.edit_profile(
                self.people[who], given_name=name, email=f"q{who}{email}@corp.test"
            )
            self.post(data)

    @rule(who=WHO, data=DATA)
    def delete(self, who, data):
        if self.alive(who):
            self.do.delete_user(self.people[who])
            self.post(data)

    @rule(seconds=st.sampled_from([0.001, 1, 5, 20]))
    def tick(self, seconds):
        self.provider.now.sleep(seconds)

    def post(self, data):
        """Send what was emitted on its way."""
        for emission in self.provider.emulator.outbox.take():
            fate = data.draw(_FATES)
            if fate == "late":
                self.late.append(emission)
            elif fate != "lost":
                self.send([emission] * (2 if fate == "twice" else 1))

    @rule(data=DATA)
    def catch_up(self, data):
        while self.late:
            self.send([self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))])

    def send(self, emissions):
        self.house.deliver(emissions)
        self.delivered += [
            emission
            for emission in emissions
            if emission.application_id == self.provider.ours.id and emission.channel == "sync"
        ]

    @rule()
    def reconcile(self):
        report = self.house.reconcile()
        assert report.ok, report

    @rule()
    def compare(self):
        self.reconcile()
        self.reconcile()
        for tenant_id in self.tenants:
            self.compare_tenant(tenant_id)

    def teardown(self):
        if self.people:
            self.compare()

    def compare_tenant(self, tenant_id):
        state = self.provider.emulator.state
        rows = self.house.rows(tenant_id)
        deleted = {
            each.data["sub"]
            for each in self.delivered
            if each.type == "subject.deleted" and each.tenant_id == tenant_id
        }
        members = {
            each.user_id: each for each in state.members(tenant_id) if each.user_id not in deleted
        }
        assert not deleted & rows.keys()
        assert members.keys() <= rows.keys()
        for sub, kept in rows.items():
            self.compare_flags(tenant_id, sub, kept)
            found = (kept["membership_status"], kept["tenant_id"], kept["app_role"])
            if sub not in members:
                assert found == ("left", None, None)
                continue
            member, user = members[sub], state.users[sub]
            ours = (self.provider.ours.roles.get(role_id) for role_id in member.role_ids)
            role = next((role.slug for role in ours if role is not None), None)
            assert found == (_STATUS[member.status], tenant_id, role)
            assert kept["membership_id"] == member.id
            assert (kept["email"], kept["given_name"] if user.given_name else None) == (
                user.email,
                user.given_name,
            )

    def compare_flags(self, tenant_id, sub, kept):
        """No list says anything of these: the events that arrived do, in the tenant they name."""
        access = self.told(tenant_id, sub, "app_access.granted", "app_access.revoked")
        assert kept["has_app_access"] == access
        active = self.told(tenant_id, sub, "subject.created", "subject.deactivated")
        assert kept["is_active"] == active

    def told(self, tenant_id, sub, grant, denial):
        """Return whether the newest of two kinds of events that arrived is the first kind."""
        said = [
            (each.event["timestamp"], each.type == denial, each.event["id"])
            for each in self.delivered
            if each.tenant_id == tenant_id
            and each.type in (grant, denial)
            and each.data["sub"] == sub
        ]
        return not max(said)[1] if said else True


def test_after_two_lists_the_mirror_is_the_provider(places, tmp_path):
    """Joining, leaving, roles, access, names and deletion; silent, loud, lost, late and twice."""
    with ExitStack() as stack:
        numbers = iter(range(1_000_000))

        def machine() -> Convergence:
            provider = Provider()
            homes = {provider.tenant(name): place for name, place in zip("ab", places, strict=True)}
            case = stack.enter_context(ExitStack())
            control = f"sqlite:///{tmp_path / f'control{next(numbers)}.db'}"
            house = House(provider, homes, control, case)
            for place in places:
                clear(house.registry, place)
            made = Convergence(house)
            finish = made.teardown

            def teardown() -> None:
                try:
                    finish()
                finally:
                    case.close()

            made.teardown = teardown
            return made

        run_state_machine_as_test(
            machine,
            settings=settings(CAREFUL, max_examples=60, stateful_step_count=30),
        )
