"""AuthVital's four senders on a virtual clock: when each tries again, gives up, or holds back.

Hours of retries take no time here: what sends is a function, so that a test may call an ASGI
application, a function of its own, or real HTTP. See docs/reference/provider.md for the schedules.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tenantsync.testing.delivery import LADDERS, TIMEOUT, Delivery, VirtualClock

__all__ = [
    "SYNC_BROKER",
    "SYNC_LEGACY",
    "SYSTEM_BROKER",
    "SYSTEM_LEGACY",
    "CircuitBreaker",
    "Ladder",
    "Posting",
    "Reply",
    "Sender",
    "Try",
    "hopeless",
]

_OUTBOX_WAITS = (*LADDERS["broker"], 900.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0)
_TOO_MANY = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """How one of the senders goes on after a failure.

    Args:
        waits: Seconds before the second, third, ... turn of an event, at the earliest; the last
            one counts for all that follow.
        requests: How many requests one event is worth.
        turns: How many times it may have its turn, those included when the circuit breaker kept
            the sender from asking.
        poll: The sender looks for what is due when its clock shows a multiple of so many seconds.
        at_once: Whether the first request goes out in the moment of the emission.
        sight: How many waiting events one look sees, the oldest first, due or not; None is all.
            Where more are stuck than it sees, younger ones starve.
        final: Whether a redirect or client error (but 429) ends it, as trying again is no use.
        breaker: Whether there is a circuit breaker.
    """

    waits: tuple[float, ...]
    requests: int
    turns: int
    poll: float
    at_once: bool = False
    sight: int | None = None
    final: bool = False
    breaker: bool = False


SYNC_LEGACY = Ladder(
    waits=LADDERS["legacy"], requests=5, turns=5, poll=60.0, at_once=True, sight=50
)
"""The core's own webhook delivery: a cron job each minute, for about 81 minutes."""

SYNC_BROKER = Ladder(waits=_OUTBOX_WAITS, requests=5, turns=10, poll=5.0, breaker=True)
"""The broker's webhook delivery: about 7 minutes, or 41 hours where its breaker holds it back."""

SYSTEM_LEGACY = Ladder(waits=(), requests=1, turns=1, poll=60.0, at_once=True)
"""The core's own system webhooks: one request, whatever comes of it."""

SYSTEM_BROKER = Ladder(
    waits=_OUTBOX_WAITS, requests=10, turns=10, poll=5.0, final=True, breaker=True
)
"""The broker's system webhooks: ten requests in 41 hours, but none after a client error."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the receiver answered, and when.

    Args:
        status: The HTTP status, or None where no answer came.
        seconds: How long the receiver took. Beyond 30 AuthVital no longer listens: whatever the
            receiver did, for the sender it failed.
    """

    status: int | None
    seconds: float = 0.0

    @property
    def heard(self) -> int | None:
        """The status that the sender sees."""
        return self.status if self.seconds <= TIMEOUT else None


@dataclass(frozen=True, slots=True)
class Try:
    """One request, or one turn at which the breaker was open.

    Args:
        at: When, in unix seconds of the virtual clock.
        status: The status that the sender saw, or None where it saw none.
        held_back: Whether the breaker was open, so that nothing was sent.
        statuses: Where there are several targets, the status that each of them gave; `status` is
            then that of a target that failed, if any did.
    """

    at: float
    status: int | None
    held_back: bool = False
    statuses: tuple[int | None, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the sender counts the event as delivered: any 2xx."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(slots=True, eq=False)
class Posting:
    """One event on its way.

    Args:
        body: The raw bytes, the same in every request.
        emitted: When it was emitted, in unix seconds of the virtual clock.
        due: The earliest time of its next turn, or None where there is no more.
        tries: Its turns so far, the oldest first.
    """

    body: bytes = field(repr=False)
    emitted: float
    due: float | None
    tries: list[Try] = field(default_factory=list)

    @property
    def delivered(self) -> bool:
        """Whether some request met a 2xx."""
        return any(one.ok for one in self.tries)

    @property
    def given_up(self) -> bool:
        """Whether the sender will never send it again, though it was not delivered."""
        return self.due is None and not self.delivered

    @property
    def requests(self) -> int:
        """How many turns were requests."""
        return sum(not one.held_back for one in self.tries)


class CircuitBreaker:
    """The broker's breaker: one for each URL, whoever's events failed there.

    Args:
        threshold: Failures in a row that open it. Only a success lets it count from zero again:
            when the cooldown is over, one more failure opens it anew.
        cooldown: Seconds that it stays open.
    """

    def __init__(self, *, threshold: int = 5, cooldown: float = 60.0) -> None:
        self._threshold = threshold
        self._cooldown = cooldown
        self._failures = 0
        self._open_until = -math.inf

    def is_open(self, now: float) -> bool:
        """Whether nothing may be sent now."""
        return now < self._open_until

    def failed(self, now: float) -> None:
        """Take note of a failure."""
        self._failures += 1
        if self._failures >= self._threshold:
            self._open_until = now + self._cooldown

    def succeeded(self) -> None:
        """Take note of a success."""
        self._failures = 0


@dataclass(frozen=True, slots=True)
class _Target:
    transport: Callable[[Delivery], Reply]
    breaker: CircuitBreaker | None


class Sender:
    """One of AuthVital's senders, with one URL to send to, or several of system webhooks.

        clock = VirtualClock(1_787_378_400.0)
        sender = Sender(SYNC_BROKER, transport, clock=clock, sign=emulator.delivery)
        posting = sender.emit(body)
        sender.run()

    Requests that AuthVital would send side by side are sent one after the other, in the same
    moment of the virtual clock. The receiver must be given the same clock.

    Args:
        ladder: Which of the senders.
        transport: Sends one delivery to the receiver.
        clock: Moved on by `run`, and by nothing else here.
        sign: Signs a body, for one request, with the time of the clock.
        double: Asked at each request whether another sender makes it too: two instances of the
            core, overlapping cron jobs, a broker beside a core that still delivers.
        breaker: To share one between senders to the same URL; None makes one where the ladder has
            one.
        others: Further targets, each with a breaker of its own. All are sent to in each turn, also
            those that took the event before: one that fails in a way that may pass brings it back
            to all of them.
    """

    def __init__(
        self,
        ladder: Ladder,
        transport: Callable[[Delivery], Reply],
        *,
        clock: VirtualClock,
        sign: Callable[[bytes], Delivery],
        double: Callable[[], bool] = lambda: False,
        breaker: CircuitBreaker | None = None,
        others: Sequence[Callable[[Delivery], Reply]] = (),
    ) -> None:
        self.postings: list[Posting] = []
        self._ladder = ladder
        self._clock = clock
        self._sign = sign
        self._double = double
        self._looked = -math.inf
        own = [_Target(each, CircuitBreaker() if ladder.breaker else None) for each in others]
        first = (breaker or CircuitBreaker()) if ladder.breaker else None
        self._targets = [_Target(transport, first), *own]

    def emit(self, body: bytes) -> Posting:
        """Take an event on, now; the legacy senders also send it at once.

        Args:
            body: The raw bytes; `Emulator.event` makes some.
        """
        posting = Posting(body, self._clock(), self._clock())
        self.postings.append(posting)
        if self._ladder.at_once:
            self._have_turn(posting)
        return posting

    def run(self, *, until: float | None = None) -> None:
        """Move the clock on, and send what becomes due.

        Args:
            until: Unix seconds at which the clock stands afterwards; None goes on until every
                event is delivered or given up.
        """
        while (look := self._next_look()) is not None and (until is None or look <= until):
            self._clock.sleep(look - self._clock())
            self._looked = look
            for posting in self._seen():
                if posting.due is not None and posting.due <= look:
                    self._have_turn(posting)
        if until is not None and until > self._clock():
            self._clock.sleep(until - self._clock())

    def _seen(self) -> list[Posting]:
        return [posting for posting in self.postings if posting.due is not None][
            : self._ladder.sight
        ]

    def _next_look(self) -> float | None:
        dues = [posting.due for posting in self._seen() if posting.due is not None]
        if not dues:
            return None
        poll = self._ladder.poll
        # What became due out of sight is found at the next look, neither in the past nor twice.
        earliest = max(min(dues), self._clock(), self._looked + poll)
        return math.ceil(earliest / poll) * poll

    def _have_turn(self, posting: Posting) -> None:
        now = ended = self._clock()
        tries: list[Try] = []
        for target in self._targets:
            done, ended = self._ask(target, posting.body, ended)
            tries.append(replace(done, at=now))
        again = [one for one in tries if self._may_pass(one)]
        failed = [one for one in tries if not one.ok]
        done = [*again, *failed, *tries][0]
        if len(tries) > 1:
            statuses = tuple(one.status for one in tries)
            held_back = all(one.held_back for one in tries)
            done = replace(done, held_back=held_back, statuses=statuses)
        posting.tries.append(done)
        posting.due = self._after(posting, ended) if again else None

    def _ask(self, target: _Target, body: bytes, now: float) -> tuple[Try, float]:
        """Send to one target, and return when it was done with."""
        if target.breaker is not None and target.breaker.is_open(now):
            return Try(now, None, held_back=True), now
        replies = [target.transport(self._sign(body))]
        if self._double():
            replies.append(target.transport(self._sign(body)))
        # Whichever of two senders met a success stores it.
        reply = next((one for one in replies if Try(now, one.heard).ok), replies[0])
        done = Try(now, reply.heard)
        ended = now + min(reply.seconds, TIMEOUT)
        if target.breaker is not None:
            if done.ok:
                target.breaker.succeeded()
            else:
                target.breaker.failed(ended)
        return done, ended

    def _may_pass(self, one: Try) -> bool:
        """Whether the sender tries again after this."""
        return not (one.ok or (self._ladder.final and hopeless(one.status)))

    def _after(self, posting: Posting, ended: float) -> float | None:
        spent = posting.requests >= self._ladder.requests
        if spent or len(posting.tries) >= self._ladder.turns:
            return None
        waits = self._ladder.waits
        return ended + waits[min(len(posting.tries), len(waits)) - 1]


def hopeless(status: int | None) -> bool:
    """Whether the broker's system channel takes a status for final: 3xx, and 4xx but 429."""
    return status is not None and 300 <= status < 500 and status != _TOO_MANY
