"""The provider's senders on the virtual clock keep the schedules that the provider's code has."""

import json

import pytest

from tenantsync.testing.delivery import Delivery, VirtualClock
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.ladders import (
    SYNC_BROKER,
    SYNC_LEGACY,
    SYSTEM_BROKER,
    SYSTEM_LEGACY,
    CircuitBreaker,
    Reply,
    Sender,
)

START = 1_787_378_400.0  # a full minute, so that both kinds of looks fall on it


class Receiver:
    """Answers as it is told, and remembers when it was asked for what.

    Args:
        clock: The virtual clock.
        answers: The replies in their order; the last one for all that follow.
    """

    def __init__(self, clock: VirtualClock, *answers: int | Reply | None) -> None:
        self._clock = clock
        self._answers = list(answers)
        self.asked: list[tuple[float, bytes]] = []

    def __call__(self, delivery: Delivery) -> Reply:
        """Answer."""
        self.asked.append((self._clock() - START, delivery.body))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return answer if isinstance(answer, Reply) else Reply(answer)

    @property
    def times(self) -> list[float]:
        """Seconds from the start, one for each request."""
        return [at for at, _ in self.asked]


def unsigned(body: bytes) -> Delivery:
    return Delivery(body, {})


@pytest.fixture
def clock():
    return VirtualClock(START)


def sent(ladder, clock, *answers, at=0.0, **options):
    """Send one event to a receiver that answers so, and return its times and the posting."""
    receiver = Receiver(clock, *answers)
    sender = Sender(ladder, receiver, clock=clock, sign=unsigned, **options)
    sender.run(until=START + at)
    posting = sender.emit(b"{}")
    sender.run()
    return receiver.times, posting


def test_the_core_gives_an_event_up_after_81_minutes(clock):
    """Five attempts: at once, then a minute, 5, 15 and 60 minutes after the one before."""
    times, posting = sent(SYNC_LEGACY, clock, 500)

    assert times == [0, 60, 360, 1260, 4860]
    assert posting.given_up


def test_the_core_looks_once_a_minute(clock):
    """An event emitted between two looks has its second attempt late, at the next full minute."""
    times, _ = sent(SYNC_LEGACY, clock, 500, at=1.0)

    assert times == [1, 120, 420, 1320, 4920]


def test_the_broker_gives_an_event_up_after_seven_minutes(clock):
    """Five attempts: at the next look, then 10, 30, 60 and 300 seconds after the one before."""
    times, posting = sent(SYNC_BROKER, clock, 500, breaker=CircuitBreaker(threshold=6))

    assert times == [0, 10, 40, 100, 400]
    assert posting.given_up


def test_the_broker_looks_every_five_seconds(clock):
    """An event emitted between two looks waits for the next."""
    times, _ = sent(SYNC_BROKER, clock, 500, 200, at=1.0)

    assert times == [5, 15]


@pytest.mark.parametrize("status", [None, 302, 400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("ladder", [SYNC_LEGACY, SYNC_BROKER])
def test_sync_events_are_sent_again_after_whatever_is_no_success(clock, ladder, status):
    """Client errors, redirects and silence are failures like any other; the next 2xx ends it."""
    times, posting = sent(ladder, clock, status, 202)

    assert len(times) == 2
    assert posting.delivered
    assert not posting.given_up


@pytest.mark.parametrize("status", [200, 202, 204, 299])
@pytest.mark.parametrize("ladder", [SYNC_LEGACY, SYNC_BROKER, SYSTEM_LEGACY, SYSTEM_BROKER])
def test_any_success_is_the_end(clock, ladder, status):
    """After a 2xx no sender sends the event again."""
    times, posting = sent(ladder, clock, status)

    assert times == [0]
    assert posting.delivered


def test_the_core_sends_a_system_event_once(clock):
    """There is no second attempt on the system channel of the core."""
    times, posting = sent(SYSTEM_LEGACY, clock, 500)

    assert times == [0]
    assert posting.given_up


def test_the_broker_tries_a_system_event_for_41_hours(clock):
    """Ten attempts, each step as long as the ladder has it."""
    breaker = CircuitBreaker(threshold=11)
    times, posting = sent(SYSTEM_BROKER, clock, 503, breaker=breaker)

    assert times == [0, 10, 40, 100, 400, 1300, 4900, 19300, 62500, 148900]
    assert posting.given_up


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 413])
def test_a_client_error_ends_a_system_event_of_the_broker(clock, status):
    """4xx and 3xx are final on the broker's system channel."""
    times, posting = sent(SYSTEM_BROKER, clock, status, 200)

    assert times == [0]
    assert posting.given_up


@pytest.mark.parametrize("status", [None, 429, 500])
def test_other_failures_of_a_system_event_are_tried_again(clock, status):
    """Silence, 429 and 5xx are not final on the broker's system channel."""
    times, _ = sent(SYSTEM_BROKER, clock, status, 200)

    assert times == [0, 10]


@pytest.mark.parametrize("ladder", [SYNC_LEGACY, SYNC_BROKER])
def test_an_answer_after_thirty_seconds_is_not_heard(clock, ladder):
    """What the receiver committed too late comes again, and its wait begins at the timeout."""
    times, posting = sent(ladder, clock, Reply(200, seconds=31), Reply(200, seconds=30))

    assert times == ([0, 120] if ladder is SYNC_LEGACY else [0, 40])
    assert [one.status for one in posting.tries] == [None, 200]


def test_five_failures_of_anyone_hold_back_everyone(clock):
    """The breaker is the URL's: another event waits for a minute, and spends no request on that."""
    receiver = Receiver(clock, 500, 500, 500, 500, 500, 200)
    sender = Sender(SYNC_BROKER, receiver, clock=clock, sign=unsigned)
    for number in range(5):
        sender.emit(b"%d" % number)
    sender.run(until=START + 5)
    late = sender.emit(b"late")
    sender.run()

    assert [one.held_back for one in late.tries] == [True, True, True, False]
    assert [one.at - START for one in late.tries] == [5, 15, 45, 105]
    assert late.requests == 1
    assert all(posting.delivered for posting in sender.postings)


def test_while_the_breaker_is_open_an_event_climbs_and_may_be_41_hours_late(clock):
    """Held back nine times by a breaker that others keep open, an event arrives at its tenth."""
    breaker = CircuitBreaker(threshold=1, cooldown=148_800.0)
    breaker.failed(START)
    times, posting = sent(SYNC_BROKER, clock, 200, breaker=breaker)

    assert times == [148_900]
    assert posting.requests == 1


def test_an_event_that_is_held_back_ten_times_is_given_up(clock):
    """The outbox has ten turns for an event, whether or not anything was sent."""
    breaker = CircuitBreaker(threshold=1, cooldown=1e9)
    breaker.failed(START)
    times, posting = sent(SYNC_BROKER, clock, 200, breaker=breaker)

    assert times == []
    assert len(posting.tries) == 10
    assert posting.given_up


def test_the_breaker_opens_again_at_the_first_failure_after_its_minute(clock):
    """Only a success lets it count to five again."""
    breaker = CircuitBreaker()
    for _ in range(5):
        assert not breaker.is_open(START)
        breaker.failed(START)
    assert breaker.is_open(START + 59)
    assert not breaker.is_open(START + 60)
    breaker.failed(START + 60)
    assert breaker.is_open(START + 119)
    breaker.succeeded()
    breaker.failed(START + 120)

    assert not breaker.is_open(START + 120)


def test_more_than_fifty_stuck_events_starve_a_younger_one(clock):
    """The core's look sees the fifty oldest that wait, due or not: the next is sent much later."""
    receiver = Receiver(clock, 500)
    sender = Sender(SYNC_LEGACY, receiver, clock=clock, sign=unsigned)
    for number in range(50):
        sender.emit(b"%d" % number)
    sender.emit(b"young")
    sender.run()

    assert [at for at, body in receiver.asked if body == b"young"][:2] == [0, 4920]


def test_two_senders_send_the_same_event(clock):
    """Where two deliver, the receiver gets the event twice, and one success is enough."""
    receiver = Receiver(clock, 500, 200)
    sender = Sender(SYNC_LEGACY, receiver, clock=clock, sign=unsigned, double=lambda: True)
    posting = sender.emit(b"{}")
    sender.run()

    assert receiver.times == [0, 0]
    assert posting.delivered


def test_every_attempt_is_signed_anew(clock):
    """Body and event id stay; the signed timestamp is that of the attempt."""
    emulator = Emulator(keys=Keys(SigningKey.generate(START), clock=clock), clock=clock)
    seen: list[Delivery] = []

    def refuse(delivery: Delivery) -> Reply:
        seen.append(delivery)
        return Reply(500)

    sender = Sender(SYNC_LEGACY, refuse, clock=clock, sign=emulator.delivery)
    body = emulator.event("member.left", tenant_id="t", application_id="a", data={"sub": "s"})
    sender.emit(body)
    sender.run()

    assert {delivery.body for delivery in seen} == {body}
    assert {one.headers["X-AuthVital-Event-Id"] for one in seen} == {json.loads(body)["id"]}
    stamps = [int(delivery.headers["X-AuthVital-Timestamp"]) - START for delivery in seen]
    assert stamps == [0, 60, 360, 1260, 4860]


def test_the_clock_stops_where_it_is_told_to(clock):
    """Events that are emitted in between have their turns in between."""
    receiver = Receiver(clock, 500)
    sender = Sender(SYNC_LEGACY, receiver, clock=clock, sign=unsigned)
    sender.emit(b"first")
    sender.run(until=START + 90)
    sender.emit(b"second")
    sender.run(until=START + 400)

    assert clock() == START + 400
    assert receiver.asked == [(0, b"first"), (60, b"first"), (90, b"second"), (180, b"second"),
                              (360, b"first")]  # fmt: skip


# -- several targets


def fanned(clock, *targets, ladder=SYSTEM_BROKER):
    """Send one system event to several receivers; return the posting."""
    first, *others = targets
    sender = Sender(ladder, first, clock=clock, sign=unsigned, others=others)
    posting = sender.emit(b"{}")
    sender.run()
    return posting


def test_one_target_that_fails_brings_an_event_back_to_all(clock):
    """Also to the one that took it at once, with the same bytes."""
    good, bad = Receiver(clock, 200), Receiver(clock, 503, 503, 200)
    posting = fanned(clock, good, bad)

    assert good.times == bad.times == [0, 10, 40]
    assert {body for _, body in good.asked} == {b"{}"}
    assert [one.statuses for one in posting.tries] == [(200, 503), (200, 503), (200, 200)]
    assert [one.status for one in posting.tries] == [503, 503, 200]
    assert posting.delivered


def test_a_target_that_refuses_for_good_brings_nothing_back(clock):
    """The event ends as failed, though others took it."""
    good, gone = Receiver(clock, 200), Receiver(clock, 410)
    posting = fanned(clock, good, gone)

    assert good.times == gone.times == [0]
    assert posting.given_up


def test_a_target_that_refuses_for_good_is_asked_again_for_anothers_sake(clock):
    """While one may yet take the event, all get it."""
    gone, bad = Receiver(clock, 410), Receiver(clock, 429, 200)
    posting = fanned(clock, gone, bad)

    assert gone.times == bad.times == [0, 10]
    assert [one.status for one in posting.tries] == [429, 410]
    assert posting.given_up


def test_each_target_has_a_breaker_of_its_own(clock):
    """The one that always fails is left out for a minute; that too brings the event back to all."""
    good, bad = Receiver(clock, 200), Receiver(clock, 500)
    posting = fanned(clock, good, bad)

    assert good.times == [0, 10, 40, 100, 400, 1300, 4900, 19300, 62500, 148900]
    assert bad.times == good.times
    assert posting.given_up
    clock = VirtualClock(START)
    good, bad = Receiver(clock, 200), Receiver(clock, 500)
    sender = Sender(SYSTEM_BROKER, bad, clock=clock, sign=unsigned, others=[good])
    for number in range(6):
        sender.emit(b"%d" % number)
    sender.run(until=START)

    assert (len(bad.asked), len(good.asked)) == (5, 6)
    assert not sender.postings[5].tries[0].held_back
    assert sender.postings[5].tries[0].statuses == (None, 200)


def test_a_turn_is_held_back_where_every_breaker_is_open(clock):
    """Then nothing was sent to anybody."""
    one, other = Receiver(clock, 500), Receiver(clock, 500)
    sender = Sender(SYSTEM_BROKER, one, clock=clock, sign=unsigned, others=[other])
    for number in range(6):
        sender.emit(b"%d" % number)
    sender.run(until=START)

    assert sender.postings[5].tries[0].held_back
    assert sender.postings[5].requests == 0
    assert len(one.asked) == len(other.asked) == 5


def test_the_core_sends_once_to_each_target(clock):
    """Whatever comes of it at any of them."""
    one, other = Receiver(clock, 500), Receiver(clock, 200)
    posting = fanned(clock, one, other, ladder=SYSTEM_LEGACY)

    assert one.times == other.times == [0]
    assert posting.given_up
