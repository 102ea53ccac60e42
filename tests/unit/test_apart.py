"""Lanes of places in trouble: whose turn it is, and how many there may be."""

import pytest

from tenantsync.sync.apart import ApartLane, ApartLanes
from tenantsync.tenants import Placement

PLACES = [Placement.of("postgresql://db/main", f"tenant_{number}") for number in range(9)]
ELSEWHERE = Placement.of("postgresql://db/other", "tenant_0")


@pytest.fixture
def turns() -> list[ApartLane[str]]:
    return []


@pytest.fixture
def lanes(turns: list[ApartLane[str]]) -> ApartLanes[str]:
    """Give lanes whose turns begin by standing in a list."""
    return ApartLanes(lambda lane: not turns.append(lane))


def end(lanes, lane):
    """End a turn in which everything that waited was written."""
    lane.jobs.clear()
    lanes.pass_on(lane)


def test_two_of_one_database_have_their_turn_and_others_wait(lanes, turns):
    """Another database has a share of its own."""
    for place in (*PLACES[:4], ELSEWHERE):
        lanes.open(place, "job")

    assert [lane.place for lane in turns] == [PLACES[0], PLACES[1], ELSEWHERE]
    end(lanes, turns[1])
    assert turns[-1].place == PLACES[2]


def test_a_lane_that_is_empty_goes_and_one_that_is_not_stands_in_line_again(lanes, turns):
    """So that nobody with many events keeps the turn from those with one."""
    for place in PLACES[:3]:
        lanes.open(place, "job")
    first, second = turns
    first.jobs.append("another")
    lanes.pass_on(first)
    end(lanes, second)

    assert [lane.place for lane in turns] == [PLACES[0], PLACES[1], PLACES[2], PLACES[0]]
    assert PLACES[0] in lanes
    assert PLACES[1] not in lanes
    assert lanes.get(PLACES[1]) is None
    assert len(lanes) == 2


def test_alone_in_its_database_a_lane_has_its_turn_again_at_once(lanes, turns):
    """Nobody else waits."""
    lanes.open(PLACES[0], "job")
    lanes.pass_on(turns[0])

    assert turns == [lanes.get(PLACES[0])] * 2


def test_the_line_is_short(lanes):
    """Two have their turn and four wait: a seventh place would wait too long."""
    for place in PLACES[:6]:
        assert lanes.has_room(place)
        lanes.open(place, "job")

    assert not lanes.has_room(PLACES[6])
    assert lanes.has_room(ELSEWHERE)


def test_over_all_databases_there_is_a_bound_too(lanes):
    """Many servers in trouble at once do not pile up threads' work without end."""
    for number in range(32):
        assert lanes.has_room(Placement.of(f"postgresql://db/{number}"))
        lanes.open(Placement.of(f"postgresql://db/{number}"), "job")

    assert not lanes.has_room(ELSEWHERE)


def test_once_all_is_well_nothing_is_left(lanes, turns):
    """Neither lanes nor shares: the next trouble finds everything as it was."""
    for place in PLACES[:4]:
        lanes.open(place, "job")
    for number in range(4):
        end(lanes, turns[number])

    assert len(lanes) == 0
    assert lanes._shares == {}


def test_without_a_thread_nothing_is_left_behind():
    """Whoever comes next finds no lane that nobody works for."""
    lanes = ApartLanes(lambda lane: False)

    assert not lanes.open(PLACES[0], "job")
    assert len(lanes) == 0
    assert lanes._shares == {}


def test_without_another_thread_the_one_there_is_takes_the_next_lane(turns):
    """Its turn is over, so it has the time: the lane waits for no thread that never comes."""
    free = [True, True, False]

    def start(lane):
        turns.append(lane)
        return free.pop(0)

    lanes = ApartLanes(start)
    for place in PLACES[:3]:
        assert lanes.open(place, "job")
    turns[0].jobs.clear()

    following = lanes.pass_on(turns[0])

    assert following is lanes.get(PLACES[2])
    assert not following.due
    assert turns[1].due
