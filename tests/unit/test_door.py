"""What a stranger can cost a door: bounded memory, bounded time, nothing parsed, nothing told."""

import asyncio
import json
import threading
import tracemalloc

import pytest

from tenantsync.errors import KeysUnavailable, Malformed, TenantUnavailable, Untrusted
from tenantsync.observe import Outcome
from tenantsync.web.door import Door, Errand, NotFound

LIMIT = 64 * 1024
HEAD = [(b"content-type", b"application/json"), (b"x-proof", b"good")]


class Opened(Door[str]):
    """A door that trusts whoever says "good", and notes whose body it got to see."""

    name = "test"

    def __init__(self, *, outcome=Outcome.APPLIED, needs_network=False, **options):
        self.told = []
        self.judged = []
        self.fetched_on = []
        self._outcome = outcome
        self._needs_network = needs_network
        super().__init__(
            observe=self.told.append,
            headers=frozenset({"x-proof"}),
            **{"max_body": LIMIT, **options},
        )

    def _ready(self, headers):
        return not self._needs_network

    def _vouch(self, headers):
        self.fetched_on.append(threading.current_thread().name)
        if headers.get("x-proof") == "unreachable":
            raise KeysUnavailable("its keys cannot be fetched now")
        if headers.get("x-proof") != "good":
            raise Untrusted("no proof")
        return "vouched"

    def _judge(self, body, vouched, started):
        self.judged.append(body)
        if body == b"malformed":
            return Errand(self._do, self._do_blocking, Malformed("data.sub", "is missing"))
        return Errand(self._do, self._do_blocking)

    async def _do(self):
        return self._do_blocking()

    def _do_blocking(self):
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


def pieces(*bodies, then=None):
    """Return a `receive` that gives these pieces of a body; the last one ends it, unless `then`."""
    messages = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    if then is None:
        messages[-1]["more_body"] = False
    queue = iter(messages)

    async def receive():
        message = next(queue, None)
        return message if message is not None else await then()

    return receive


async def never():
    """Wait for a piece that does not come."""
    await asyncio.Event().wait()


async def gone():
    """Say that the client went away."""
    return {"type": "http.disconnect"}


async def ask(door, receive, headers=HEAD, method="POST"):
    """Return the status and the body of the answer, and its headers."""
    sent = []

    async def send(message):
        sent.append(message)

    await door({"type": "http", "method": method, "headers": headers}, receive, send)
    start, end = sent
    return start["status"], json.loads(end["body"] or b"{}"), dict(start["headers"])


def answer(door, receive, headers=HEAD, **options):
    return asyncio.run(ask(door, receive, headers, **options))


@pytest.fixture
def opened():
    doors = []

    def make(**options):
        doors.append(Opened(**options))
        return doors[-1]

    yield make
    for door in doors:
        door.close()


def test_a_body_in_one_piece_or_many_is_the_same_body(opened):
    """Whatever the network makes of it."""
    door = opened()
    for parts in ([b"abc"], [b"a", b"b", b"c"], [b"", b"abc", b""]):
        status, said, headers = answer(door, pieces(*parts))
        assert (status, said) == (200, {"outcome": "applied"})
        assert headers[b"content-type"] == b"application/json"
    assert door.judged == [b"abc"] * 3


def test_whoever_is_not_even_plausible_gets_no_byte_read(opened):
    """Neither a bad head nor a bad proof has its body looked at."""

    async def unread():
        raise AssertionError("the body was read")

    door = opened()
    json_head = (b"content-type", b"application/json")
    for status, headers, method in (
        (405, HEAD, "GET"),
        (415, [(b"x-proof", b"good")], "POST"),
        (415, [(b"content-type", b"text/plain"), (b"x-proof", b"good")], "POST"),
        (413, [*HEAD, (b"content-length", str(LIMIT + 1).encode())], "POST"),
        (413, [*HEAD, (b"content-length", b"9" * 100_000)], "POST"),
        (413, [*HEAD, (b"content-length", b"-1")], "POST"),
        (401, [json_head], "POST"),
        (401, [json_head, (b"x-proof", b"bad")], "POST"),
        (401, [*HEAD, (b"x-proof", b"good")], "POST"),
        (503, [json_head, (b"x-proof", b"unreachable")], "POST"),
    ):
        assert answer(door, unread, headers, method=method)[0] == status
    assert door.judged == []
    assert [delivery.error for delivery in door.told] == [*["Untrusted"] * 3, "KeysUnavailable"]


def test_a_key_is_waited_for_in_a_thread_and_without_a_body(opened):
    """The event loop goes on, and no body waits in memory for somebody's key."""
    door = opened(needs_network=True)
    assert answer(door, pieces(b"abc"))[0] == 200
    assert door.fetched_on[0].startswith("tenantsync-keys")


def test_a_body_of_single_bytes_costs_no_more_than_itself(opened):
    """Sixty thousand pieces stay under twice the limit while they are read."""
    door = opened()
    messages = iter([{"type": "http.request", "body": b"x", "more_body": True}] * LIMIT)
    peaks = []

    async def receive():
        message = next(messages, None)
        if message is None:
            peaks.append(tracemalloc.get_traced_memory()[1])
            return {"type": "http.request", "body": b"", "more_body": False}
        return message

    tracemalloc.start()
    try:
        assert answer(door, receive)[0] == 200
    finally:
        tracemalloc.stop()
    assert peaks[0] < 2 * LIMIT
    assert door.judged == [b"x" * LIMIT]


def test_more_than_the_limit_is_not_taken_in(opened):
    """In one piece or in many, the answer comes with the first byte too many."""
    door = opened()
    for parts in ([b"x" * (LIMIT + 1)], [b"x" * LIMIT, b"x"], [b"x"] * (LIMIT + 1)):
        assert answer(door, pieces(*parts, then=never))[0] == 413
    assert door.judged == []
    assert answer(door, pieces(b"x" * LIMIT))[0] == 200


def test_a_body_that_dawdles_is_given_up(opened):
    """The time is for all of it: a byte now and then does not make it longer."""
    door = opened(read_timeout=0.05)

    async def dripping():
        await asyncio.sleep(0.004)
        return {"type": "http.request", "body": b"x", "more_body": True}

    for receive in (never, pieces(b"half", then=never), dripping):
        status, said, headers = answer(door, receive)
        assert (status, said["error"]) == (408, "too slow")
        assert headers[b"connection"] == b"close"
    assert door.judged == []


def test_a_client_that_goes_away_is_forgotten(opened):
    """Half a body is no event."""
    door = opened()
    assert answer(door, gone)[0] == 400
    assert answer(door, pieces(b"half", then=gone))[0] == 400
    assert door.judged == []


def test_bodies_on_their_way_are_counted_and_ordinary_ones_pass(opened):
    """Strangers that fill all places hold up nobody whose body comes at once."""
    door = opened(max_reading=2)

    async def scene():
        slow = [
            asyncio.create_task(ask(door, pieces(b"half", then=never))),
            asyncio.create_task(ask(door, pieces(b"half", then=never))),
        ]
        await asyncio.sleep(0)
        third = await ask(door, pieces(b"a", b"b"))
        whole = await ask(door, pieces(b"whole"))
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return third, whole, await ask(door, pieces(b"a", b"b"))

    third, whole, after = asyncio.run(scene())
    assert third[0] == 503
    assert b"retry-after" in third[2]
    assert (whole[0], after[0]) == (200, 200)
    assert door.judged == [b"whole", b"ab"]


def test_ten_thousand_headers_are_only_looked_at(opened):
    """Those that do not count are skipped, and nothing is made of them."""
    door = opened()
    crowd = [(b"x-other", b"v" * 50)] * 10_000

    tracemalloc.start()
    try:
        assert answer(door, pieces(b"abc"), [*crowd, *HEAD])[0] == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * LIMIT

    assert answer(door, pieces(b"abc"), [*HEAD, *[(b"x-proof", b"good")] * 10_000])[0] == 401


def test_the_two_functions_answer_as_the_application_does(opened):
    """For a framework that has read the request already."""
    for outcome, status in ((Outcome.APPLIED, 200), (Outcome.PARKED, 202)):
        door = opened(outcome=outcome)
        for body, headers in ((b"abc", {"x-proof": "good"}), (b"abc", {"x-proof": "bad"})):
            expected = status if headers["x-proof"] == "good" else 401
            assert asyncio.run(door.handle(body, headers))[0] == expected
            assert door.handle_blocking(body, headers)[0] == expected
        too_long = b"x" * (LIMIT + 1)
        assert asyncio.run(door.handle(too_long, {"x-proof": "good"}))[0] == 413
        assert door.handle_blocking(too_long, {"x-proof": "good"})[0] == 413


def test_what_is_kept_although_it_is_malformed_says_so(opened):
    """202: it is stored, and the sender learns which field is odd."""
    door = opened(outcome=Outcome.PARKED)
    expected = (
        202,
        {
            "outcome": "parked",
            "reason": "malformed",
            "field": "data.sub",
            "detail": "is missing",
        },
    )
    assert door.handle_blocking(b"malformed", {"x-proof": "good"}) == expected
    assert asyncio.run(door.handle(b"malformed", {"x-proof": "good"})) == expected


def test_what_is_malformed_and_not_kept_is_not_said_to_be(opened):
    """202 all the same, since sending it again would not help: the answer says what is true."""
    door = opened(outcome=Outcome.IGNORED)
    expected = (
        202,
        {
            "outcome": "ignored",
            "reason": "malformed",
            "field": "data.sub",
            "detail": "is missing",
        },
    )
    assert door.handle_blocking(b"malformed", {"x-proof": "good"}) == expected
    assert asyncio.run(door.handle(b"malformed", {"x-proof": "good"})) == expected


def test_what_is_malformed_and_cannot_be_kept_is_told_of_once(opened):
    """400 where there is no inbox, 503 where it does not answer; the observers hear of both."""
    for error, status in (
        (Malformed("data.sub", "is missing"), 400),
        (TenantUnavailable("the inbox is away"), 503),
    ):
        door = opened(outcome=error)
        assert door.handle_blocking(b"malformed", {"x-proof": "good"})[0] == status
        assert asyncio.run(door.handle(b"malformed", {"x-proof": "good"}))[0] == status
        assert [delivery.error for delivery in door.told] == [type(error).__name__] * 2
        # An event's failure is the handler's to tell.
        assert door.handle_blocking(b"an event", {"x-proof": "good"})[0] == status
        assert len(door.told) == 2


def test_a_door_speaks_http_only(opened):
    """A WebSocket is a mistake of the mounting, and said to be one."""
    with pytest.raises(RuntimeError, match="HTTP only"):
        asyncio.run(opened()({"type": "websocket"}, never, never))


def test_beside_the_door_there_is_nothing():
    """404 in JSON, whatever the method."""
    assert answer(NotFound(), never, method="GET")[0] == 404
