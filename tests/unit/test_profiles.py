"""What is remembered of the provider's tenants, on both databases; and the hour's limit."""

import time
from itertools import permutations

import pytest
from guarding import at_once
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from tenantsync.control.database import ControlDatabase, ControlMissing, ControlUnavailable
from tenantsync.control.profiles import (
    HOUR,
    Profile,
    TenantProfiles,
    is_storable,
    profiles,
    provisions,
)
from tenantsync.migrate.control import upgrade_control

NOWHERE = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"


@pytest.fixture
def unmade(database_url):
    """A control database that nobody made yet."""
    with ControlDatabase(database_url) as made:
        yield made


@pytest.fixture
def control(unmade):
    upgrade_control(unmade)
    return unmade


@pytest.fixture
def known(control):
    return TenantProfiles(control)


def clock(milliseconds, event_id="e"):
    return f"{milliseconds:013d}{event_id}"


def older(control, seconds):
    """Let that much time pass for every booking, by the database's own account."""
    with control.write() as connection:
        connection.execute(
            update(provisions).values(booked_at=provisions.c.booked_at - round(seconds * 1000))
        )


def test_a_name_is_remembered(known):
    """With the slug, and nothing else."""
    assert known.find("a") is None
    assert known.learn("a", clock(1), name="Acme", slug="acme")
    assert known.find("a") == Profile(tenant_id="a", name="Acme", slug="acme")


def test_the_greater_clock_wins_whatever_arrives_first(known):
    """Name and slug apart: an event that says nothing of one leaves it as it is."""
    told = [
        (clock(1), {"name": "One", "slug": "one"}),
        (clock(2), {"slug": "two"}),
        (clock(2, "f"), {"slug": "two-and-more"}),
        (clock(3), {"name": "Three"}),
    ]
    for number, order in enumerate(permutations(told)):
        for moment, values in order:
            known.learn(f"t{number}", moment, **values)
        found = known.find(f"t{number}")
        assert (found.name, found.slug) == ("Three", "two-and-more")


def test_what_is_older_or_the_same_is_no_news(known):
    """The caller can tell a repetition from a change."""
    assert known.learn("a", clock(2), name="Acme")
    assert not known.learn("a", clock(2), name="Acme")
    assert not known.learn("a", clock(1), name="Before")
    assert known.learn("a", clock(1), name="Before", slug="acme")
    assert known.find("a").name == "Acme"


def test_a_long_name_is_cut(known):
    """A stranger chose it."""
    known.learn("a", clock(1), name="é" * 5000, slug="s")
    assert known.find("a").name == "é" * 255


def test_ids_and_clocks_compare_by_their_bytes(known):
    """Capital letters come before small ones, whatever the server's language."""
    known.learn("Acme", clock(1, "a"), name="first")
    known.learn("Acme", clock(1, "B"), name="second")
    known.learn("acme", clock(1), name="other")
    assert known.find("Acme").name == "first"
    assert known.find("acme").name == "other"


def test_a_deletion_is_final(known):
    """No later name and no older deletion takes it back."""
    known.mark_deleted("a", clock(5))
    known.learn("a", clock(9), name="Acme")
    assert known.find("a") == Profile(tenant_id="a", name="Acme", deleted=True)


def test_what_was_heeded_is_remembered_by_its_clock(known):
    """A repetition is known, a later one is news; suspension and deletion are two things."""
    assert not known.heeded("a", "suspended", clock(5))
    known.mark_suspended("a", clock(5))
    known.mark_suspended("a", clock(3))
    assert known.heeded("a", "suspended", clock(5))
    assert known.heeded("a", "suspended", clock(4))
    assert not known.heeded("a", "suspended", clock(6))
    assert not known.heeded("a", "deleted", clock(1))
    assert not known.find("a").deleted


def test_strangers_fill_only_so_many_rows(control):
    """Anyone can make tenants at the provider; those that are known go on, the rest has no name."""
    few = TenantProfiles(control, max_profiles=3)
    for number in range(5):
        assert few.learn(f"t{number}", clock(1), name="Acme") == (number < 3)
    assert few.learn("t0", clock(2), name="Still heard")
    few.mark_deleted("t4", clock(1))
    assert few.find("t4") is None
    few.mark_provisioned("t4")
    assert few.find("t4").provisioned


def test_many_are_listed_at_once(known):
    """Those that nobody told of are left out."""
    for number in range(3):
        known.learn(f"t{number}", clock(1), name=f"Name {number}")
    wanted = [f"t{number}" for number in range(2)] + [f"x{number}" for number in range(1200)]

    found = known.list(wanted)
    assert {tenant_id: each.name for tenant_id, each in found.items()} == {
        "t0": "Name 0",
        "t1": "Name 1",
    }
    assert known.list([]) == {}


def test_two_that_hear_of_a_tenant_at_once_make_one_row(known):
    """The greatest clock is kept, and nobody fails."""
    at_once([lambda n=n: known.learn("a", clock(n), name=f"{n}") for n in range(24)], threads=8)
    assert known.find("a").name == "23"


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from("ab"), st.sampled_from([None, "x", "y"])),
        max_size=6,
    )
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_are_a_function_of_the_set_of_events(known, control, events):
    """Whatever the order and repetition, the result is that of the greatest clock."""
    with control.write() as connection:
        connection.execute(delete(profiles))
    # One event says one thing: an id is never used twice.
    said = {clock(at, event_id): name for at, event_id, name in events}
    for at, event_id, _ in [*events, *reversed(events)]:
        moment = clock(at, event_id)
        known.learn("a", moment, name=said[moment])
    named = [moment for moment, name in said.items() if name is not None]
    found = known.find("a")
    assert (found.name if found else None) == (said[max(named)] if named else None)


# The hour's limit


def test_no_more_than_the_limit_are_booked_in_an_hour(known, control):
    """The next one is told how long to wait, and may go on when the first has left the hour."""
    for number in range(3):
        assert known.book(f"t{number}", per_hour=3) == 0.0
        older(control, 600)

    seconds = known.book("t3", per_hour=3)
    assert HOUR - 1800 - 60 < seconds <= HOUR - 1800
    older(control, seconds - 1)
    assert 0 < known.book("t3", per_hour=3) <= 1
    older(control, 1)
    assert known.book("t3", per_hour=3) == 0.0
    assert known.book("t4", per_hour=3) > 0


def test_whoever_was_counted_goes_on(known, control):
    """A tenant that was interrupted while it was made takes no second place."""
    assert known.book("a", per_hour=1) == 0.0
    assert known.is_booked("a")
    assert known.book("a", per_hour=1) == 0.0
    assert known.book("b", per_hour=1) > 0
    assert not known.is_booked("b")
    older(control, HOUR)
    assert known.book("b", per_hour=1) == 0.0
    assert known.book("a", per_hour=1) > 0


def test_a_limit_that_was_lowered_holds(known):
    """So many must leave the hour that fewer than the limit remain."""
    for number in range(4):
        known.book(f"t{number}", per_hour=10)
    assert HOUR - 60 < known.book("x", per_hour=2) <= HOUR
    assert known.book("x", per_hour=0) == HOUR


def test_several_workers_stay_within_the_limit_together(control):
    """Each has a connection of its own, and none oversteps."""
    workers = [TenantProfiles(control) for _ in range(8)]
    jobs = [
        lambda worker=worker, n=n: worker.book(f"t{n}", per_hour=5)
        for n, worker in enumerate(workers * 4)
    ]
    waits = at_once(jobs, threads=8)
    assert sum(seconds == 0.0 for seconds in waits) == 5


# Without a control database


def test_a_missing_control_database_is_made_once(unmade):
    """The first write makes it; a file that vanished later is not made anew."""
    made = []

    def prepare():
        made.append(upgrade_control(unmade))

    known = TenantProfiles(unmade, prepare=prepare)
    assert known.find("a") is None
    assert known.list(["a"]) == {}
    assert not known.heeded("a", "deleted", clock(1))
    assert known.learn("a", clock(1), name="Acme")
    assert known.learn("b", clock(1), name="Globex")
    assert len(made) == 1


def test_without_anybody_to_make_it_a_write_fails(unmade):
    """It is a passing trouble, as every outage is."""
    with pytest.raises(ControlMissing):
        TenantProfiles(unmade).learn("a", clock(1), name="Acme")


def test_an_outage_is_never_an_empty_answer():
    """Whoever asks is told that nobody can say."""
    with ControlDatabase(NOWHERE, connect_timeout=1) as gone:
        lost = TenantProfiles(gone)
        for ask in (
            lambda: lost.find("a"),
            lambda: lost.list(["a"]),
            lambda: lost.learn("a", clock(1), name="x"),
            lambda: lost.mark_deleted("a", clock(1)),
            lambda: lost.book("a", per_hour=1),
            lambda: lost.is_booked("a"),
        ):
            with pytest.raises(ControlUnavailable):
                ask()


def test_the_clock_is_the_databases(known, control):
    """Bookings carry its time in milliseconds; here it runs on this machine."""
    known.book("a", per_hour=1)
    with control.read() as connection:
        booked_at = connection.scalar(select(provisions.c.booked_at))
    assert abs(time.time() * 1000 - booked_at) < 60_000


@pytest.mark.parametrize(
    ("tenant_id", "storable"),
    [(None, False), ("", False), ("a", True), ("é" * 127, True), ("é" * 128, False)],
)
def test_an_id_has_1_to_255_bytes(tenant_id, storable):
    """Others are never kept."""
    assert is_storable(tenant_id) is storable
