"""Whether a person may come in, as a function of what was told of them: against a small oracle."""

import itertools
from dataclasses import dataclass, replace
from functools import partial

import pytest
from guarding import at_once, make
from hypothesis import given
from hypothesis import strategies as st

from tenantsync.control.database import ControlDatabase
from tenantsync.control.denials import Denials
from tenantsync.control.inbox import Arrival, Inbox
from tenantsync.errors import TenantUnavailable
from tenantsync.events import SYNC_TYPES, SYSTEM_TYPES
from tenantsync.migrate.control import upgrade_control
from tenantsync.models import Identity
from tenantsync.sync.authorise import DENIALS, Authoriser, Denied, judge
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.merge import clock_of, invert_clocks
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenancy.resolver import TenantResolver
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.tenants import Tenant

DEACTIVATED = "Your account has been deactivated."
NO_ACCESS = "You do not have access to this application."

ACCOUNTS = (None, "subject.created", "subject.deactivated")
GRANTS = (None, "app_access.granted", "app_access.revoked")
MEMBERSHIPS = (None, "joined", "joined elsewhere", "suspended", "left")
WAITING = (None, "harmless", "another's", *sorted(DENIALS), "in quarantine")


@dataclass(frozen=True)
class Case:
    """What was told of one person, and what waits for them."""

    account: str | None
    grant: str | None
    membership: str | None
    waiting: str | None

    @property
    def sub(self):
        return "/".join(map(str, (self.account, self.grant, self.membership, self.waiting)))

    def events(self):
        """Return what was applied; the first one only makes the row."""
        yield make("member.role_changed", self.sub)
        for kind in (self.account, self.grant):
            if kind is not None:
                yield make(kind, self.sub)
        if self.membership is not None:
            kind = f"member.{self.membership.split()[0]}"
            tenant = "globex" if "elsewhere" in self.membership else "acme"
            yield make(kind, self.sub, tenant=tenant)


CASES = [Case(*told) for told in itertools.product(ACCOUNTS, GRANTS, MEMBERSHIPS, WAITING)]


def expected(case, *, default, shared=False):
    """Return what a person is told; None lets them in. From the rules, not from the code."""
    if case.waiting in DENIALS or case.waiting == "in quarantine":
        return NO_ACCESS
    if case.account == "subject.deactivated":
        return DEACTIVATED
    if case.grant == "app_access.revoked" or (case.grant is None and not default):
        return NO_ACCESS
    if case.membership == "joined":
        return None
    if case.membership is None and case.grant == "app_access.granted" and not shared:
        return None
    return NO_ACCESS


def would_come_in(case, *, default):
    """Whether nothing but what waits is in a person's way."""
    return expected(replace(case, waiting=None), default=default) is None


def told(authoriser, tenant, sub):
    """Return what a person is told; None for who comes in."""
    try:
        assert authoriser.authorise_blocking(tenant, sub).identity.id == sub
    except Denied as denied:
        return str(denied)
    return None


class Tenants:
    """Three that can be looked up, and one that cannot."""

    def __init__(self, place):
        self.place = place

    def find(self, tenant_id):
        if tenant_id == "broken":
            raise OSError
        if tenant_id in ("acme", "suspended"):
            return Tenant(tenant_id, tenant_id, self.place, tenant_id == "suspended")
        return None


def parked(case):
    """Return what waits for a person, as the inbox is given it."""
    kind = {"harmless": "member.joined", "another's": "member.left", "in quarantine": "member.left"}
    sub = f"not {case.sub}" if case.waiting == "another's" else case.sub
    type_ = kind.get(case.waiting, case.waiting)
    return Arrival(
        tenant_id="acme", event_id=case.sub, type=type_, subject=sub, timestamp=1, body=b"{}",
        signed_at=None, door="test", reason="test",
    )  # fmt: skip


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
def test_the_answer_is_that_of_the_oracle_for_every_person(tmp_path, migrated_place, default):
    """Every combination of registers and of what waits, in a real database and a real inbox."""
    with (
        ControlDatabase(f"sqlite:///{tmp_path / 'control.db'}") as control,
        EngineRegistry() as registry,
        IdentitySyncHandler(
            migrated_place, registry=registry, default_app_access=default, observers=()
        ) as handler,
    ):
        upgrade_control(control)
        inbox = Inbox(control)
        for waiting, store in ((False, inbox.park), (True, inbox.quarantine)):
            store(
                [
                    parked(case)
                    for case in CASES
                    if case.waiting and (case.waiting == "in quarantine") is waiting
                ]
            )
        at_once(
            [
                partial(handler.handle_blocking, event)
                for case in CASES
                if case.waiting not in DENIALS or would_come_in(case, default=default)
                for event in case.events()
            ]
        )
        isolation = DatabaseIsolation(None)
        sessions = TenantSessions(registry, isolation)
        resolver = TenantResolver(Tenants(migrated_place))
        authoriser = Authoriser(resolver, sessions, denials=Denials(control, DENIALS))
        for case in CASES:
            assert told(authoriser, "acme", case.sub) == expected(case, default=default), case
            assert told(authoriser, "suspended", case.sub) == NO_ACCESS
            assert told(authoriser, "nobody's", case.sub) == NO_ACCESS
            assert told(authoriser, "acme", f"unknown {case.sub}") == NO_ACCESS
            with pytest.raises(TenantUnavailable):
                authoriser.authorise_blocking("broken", case.sub)
        authoriser.close()


@given(
    active=st.booleans(),
    access=st.booleans(),
    status=st.sampled_from([None, "active", "suspended", "left", "invited"]),
    tenant=st.sampled_from([None, "acme", "globex", ""]),
    written=st.sets(st.sampled_from(["membership", "has_app_access", "is_active", "email"])),
    shared=st.booleans(),
)
def test_who_comes_in_is_active_has_access_and_belongs_to_the_tenant(
    active, access, status, tenant, written, shared
):
    """Also for rows that no sequence of events makes: each answer that lets in has all reasons."""
    row = Identity(
        id="ann",
        is_active=active,
        has_app_access=access,
        membership_status=status,
        tenant_id=tenant,
        clocks=invert_clocks(dict.fromkeys(written, "0" * 13 + "0e")),
    )
    member = status == "active" and tenant == "acme"
    granted = status is None and "membership" not in written and "has_app_access" in written
    stands_in = granted and not shared

    let_in = judge(row, "acme", shared=shared) is None

    assert let_in == (active and access and (member or stands_in))


def test_what_denies_is_what_outranks_a_grant():
    """The merge rules know which events deny; the inbox is asked for the very same types."""
    ranked = {
        kind
        for kind in {*SYNC_TYPES, *SYSTEM_TYPES}
        if clock_of(make(kind, at=5, id="e")).startswith(f"{5:013d}1")
    }
    assert ranked == DENIALS
