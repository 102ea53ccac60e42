"""The key ring on a clock of the test's own, and the fetch over real loopback HTTP."""

import base64
import contextlib
import http.server
import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tenantsync.authvital.keys import (
    MAX_JWKS_BYTES,
    FetchError,
    KeyRing,
    fetch_jwks,
    is_key_id,
    read_jwks,
)
from tenantsync.errors import KeysUnavailable, Untrusted

URL = "https://auth.example.com/.well-known/jwks.json"


def _base64url(number):
    size = (number.bit_length() + 7) // 8
    return base64.urlsafe_b64encode(number.to_bytes(size, "big")).rstrip(b"=").decode()


def _jwk(numbers, kid, /, **changes):
    entry = {
        "kty": "RSA",
        "n": _base64url(numbers.n),
        "e": _base64url(numbers.e),
        "kid": kid,
        "alg": "RS256",
        "use": "sig",
    }
    return {k: v for k, v in (entry | changes).items() if v is not None}


def _jwks(*entries):
    return json.dumps({"keys": entries}).encode()


def _numbers_of(bits, exponent=65_537):
    """Return numbers that look like a key of so many bits. Reading a key does not factor it."""
    return rsa.RSAPublicNumbers(exponent, (1 << bits) - 1)


@pytest.fixture(scope="module")
def numbers():
    return rsa.generate_private_key(65_537, 2048).public_key().public_numbers()


@pytest.fixture(scope="module")
def other_numbers():
    return rsa.generate_private_key(65_537, 2048).public_key().public_numbers()


class Clock:
    def __init__(self):
        self.now = 1000.0
        self.looks = 0

    def __call__(self):
        self.looks += 1
        return self.now


class AuthVital:
    """Answers fetches with `answer`, which is a document or an exception, and notes each."""

    def __init__(self, answer):
        self.answer = answer
        self.fetches = []

    def __call__(self, url, *, no_cache):
        self.fetches.append((url, no_cache))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def authvital(numbers):
    return AuthVital(_jwks(_jwk(numbers, "old")))


@pytest.fixture
def jobs():
    return []


@pytest.fixture
def ring(authvital, clock, jobs):
    return KeyRing(URL, fetch=authvital, clock=clock, spawn=jobs.append)


def test_making_a_ring_fetches_nothing(ring, authvital):
    """A constructor does not touch the network, and neither does asking what is held."""
    assert not ring.holds("old")
    assert authvital.fetches == []


def test_the_first_lookup_fetches_past_all_caches(ring, authvital, numbers):
    """A key never seen is fetched with the caches bypassed, and held from then on."""
    assert numbers == ring.find("old").public_numbers()
    assert numbers == ring.find("old").public_numbers()
    assert ring.holds("old")
    assert authvital.fetches == [(URL, True)]


def test_warming_up_fetches_once(ring, authvital):
    """A refresh fetches; a second one within the cooldown is content with the first."""
    ring.refresh()
    ring.refresh()

    assert ring.holds("old")
    assert len(authvital.fetches) == 1


def test_warming_up_says_when_the_keys_are_out_of_reach(ring, authvital):
    """A refresh that fails raises, and raises again within the cooldown without a second fetch."""
    authvital.answer = FetchError("it was answered with status 500, not 200")

    for _ in range(2):
        with pytest.raises(KeysUnavailable, match=r"status 500.*authvital\.host"):
            ring.refresh()
    assert len(authvital.fetches) == 1


def test_a_rotated_key_is_found_at_its_first_use(ring, authvital, clock, numbers, other_numbers):
    """AuthVital signs with a new key at once; the ring fetches it when it first sees its id."""
    ring.refresh()
    clock.now += 30
    authvital.answer = _jwks(_jwk(numbers, "old"), _jwk(other_numbers, "new"))

    assert other_numbers == ring.find("new").public_numbers()
    assert numbers == ring.find("old").public_numbers()
    assert len(authvital.fetches) == 2


def test_a_key_id_that_a_fresh_set_lacks_is_untrusted(ring, authvital):
    """A fetch that succeeds settles the matter: what it does not list is not AuthVital's."""
    with pytest.raises(Untrusted, match="'unknown' is not among the published keys"):
        ring.find("unknown")
    assert len(authvital.fetches) == 1


def test_within_the_cooldown_the_last_success_decides(ring, authvital, clock):
    """At most one fetch starts per cooldown; until then what it brought counts as fresh."""
    ring.refresh()
    clock.now += 29.9

    with pytest.raises(Untrusted):
        ring.find("unknown")
    assert len(authvital.fetches) == 1

    clock.now += 0.1
    with pytest.raises(Untrusted):
        ring.find("unknown")
    assert len(authvital.fetches) == 2


def test_within_the_cooldown_the_last_failure_decides(ring, authvital, clock):
    """Failures count for the cooldown too, and then nobody can say that a key id is wrong."""
    ring.refresh()
    clock.now += 30
    authvital.answer = OSError()

    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            ring.find("unknown")
    assert len(authvital.fetches) == 2

    clock.now += 30
    authvital.answer = _jwks(_jwk(_numbers_of(2048), "unknown"))
    assert ring.find("unknown").key_size == 2048


def test_a_flood_of_unknown_key_ids_leaves_nothing_behind(ring, authvital):
    """Strangers choose key ids: they cost neither fetches nor memory."""
    ring.refresh()
    before = dict(vars(ring))

    for number in range(5000):
        with pytest.raises(Untrusted):
            ring.find(f"key_{number}")
    assert before == vars(ring)
    assert len(authvital.fetches) == 1


@pytest.mark.parametrize("kid", ["", "k" * 256, "a b", "key\n", "schlüssel", "\ud800", "\x00"])
def test_what_cannot_be_a_key_id_is_not_looked_for(kid, ring, authvital):
    """A key id that no usable key can have is refused without a fetch."""
    with pytest.raises(Untrusted, match="not 1 to 255 visible ASCII characters"):
        ring.find(kid)
    assert not is_key_id(kid)
    assert authvital.fetches == []


def test_refusals_repeat_little_of_what_a_stranger_wrote(ring):
    """An error repeats at most 48 characters of the key id."""
    with pytest.raises(Untrusted) as refusal:
        ring.find("x" * 255)

    assert str(refusal.value).count("x") == 48


class Gate:
    """A fetch that ends when a given number of looks at the clock were taken."""

    def __init__(self, answer, looks):
        self.answer = answer
        self.fetches = 0
        self.now = 1000.0
        self._left = looks
        self._open = threading.Event()
        self._lock = threading.Lock()

    def clock(self):
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._open.set()
        return self.now

    def __call__(self, url, *, no_cache):
        self.fetches += 1
        assert self._open.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("kid", ["old", "unknown"])
def test_callers_at_the_same_time_share_one_fetch(kid, numbers):
    """Sixteen threads that miss a key cause one fetch, and all of them get what it brought."""
    # Each caller looks at the clock twice: for the held keys, and for the cooldown. Only when
    # all have done so does the fetch end.
    gate = Gate(_jwks(_jwk(numbers, "old")), looks=32)
    ring = KeyRing(URL, fetch=gate, clock=gate.clock)

    def look(_):
        try:
            return ring.find(kid).public_numbers()
        except Untrusted:
            return "untrusted"

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(look, range(16)))

    assert [numbers if kid == "old" else "untrusted"] * 16 == found
    assert gate.fetches == 1


def test_callers_at_the_same_time_share_one_failure():
    """A fetch that fails tells all who waited, each with an error of its own."""
    gate = Gate(OSError(), looks=16)
    ring = KeyRing(URL, fetch=gate, clock=gate.clock)

    def look(_):
        with pytest.raises(KeysUnavailable) as refusal:
            ring.find("old")
        return id(refusal.value), refusal.value

    with ThreadPoolExecutor(8) as pool:
        refusals = dict(pool.map(look, range(8)))

    assert len(refusals) == 8
    assert gate.fetches == 1


def test_a_known_key_never_waits(ring, authvital, clock, numbers):
    """While a fetch hangs, a held key is returned at once, even one that is due for a refresh."""
    ring.refresh()
    clock.now += 600
    began, end = threading.Event(), threading.Event()

    def hang(url, *, no_cache):
        began.set()
        assert end.wait(10)
        raise OSError

    ring._fetch = hang
    with ThreadPoolExecutor(1) as pool:
        stranger = pool.submit(ring.find, "unknown")
        assert began.wait(10)

        found = [ring.find("old").public_numbers() for _ in range(100)]
        assert not stranger.done()
        end.set()
        assert isinstance(stranger.exception(), KeysUnavailable)
    assert [numbers] * 100 == found


def test_an_old_set_is_refreshed_in_the_background(ring, authvital, clock, jobs):
    """From ten minutes on a lookup asks for one refresh, and does not wait for it."""
    ring.refresh()
    clock.now += 599
    ring.find("old")
    assert jobs == []

    clock.now += 1
    for _ in range(100):
        ring.find("old")
    assert len(jobs) == 1
    assert len(authvital.fetches) == 1

    jobs.pop()()
    ring.find("old")
    assert jobs == []
    assert len(authvital.fetches) == 2


def test_a_revoked_key_vanishes_with_the_next_set(ring, authvital, clock, jobs, other_numbers):
    """A set replaces the one before as a whole, so what AuthVital revoked is no longer believed."""
    ring.refresh()
    authvital.answer = _jwks(_jwk(other_numbers, "new"))
    clock.now += 600
    ring.find("old")
    jobs.pop()()

    assert ring.holds("new")
    with pytest.raises(Untrusted):
        ring.find("old")


def test_a_background_job_that_is_lost_does_no_harm(ring, authvital, clock, jobs):
    """The job is asked for again after the cooldown; a stranger's lookup does not wait for it."""
    ring.refresh()
    clock.now += 600
    ring.find("old")
    jobs.clear()

    with pytest.raises(Untrusted):
        ring.find("unknown")
    assert len(authvital.fetches) == 2

    clock.now += 600
    ring.find("old")
    assert len(jobs) == 1


def test_a_late_background_job_keeps_to_the_cooldown(ring, authvital, clock, jobs):
    """A job that runs after somebody else fetched fetches nothing."""
    ring.refresh()
    clock.now += 600
    ring.find("old")
    ring.refresh()
    jobs.pop()()

    assert len(authvital.fetches) == 2


def test_no_thread_to_be_had_is_no_reason_to_fail(authvital, clock, numbers):
    """A held key is returned also when the background refresh cannot be started."""

    def refuse(job):
        raise RuntimeError("can't start new thread")

    ring = KeyRing(URL, fetch=authvital, clock=clock, spawn=refuse)
    ring.refresh()
    clock.now += 600

    assert numbers == ring.find("old").public_numbers()


def test_background_refreshes_run_in_a_thread_by_default(clock, numbers):
    """Without a `spawn` of one's own, a thread fetches while the caller goes on."""
    fetched_by = []
    again = threading.Event()

    def fetch(url, *, no_cache):
        fetched_by.append(threading.current_thread())
        if len(fetched_by) == 2:
            again.set()
        return _jwks(_jwk(numbers, "old"))

    ring = KeyRing(URL, fetch=fetch, clock=clock)
    ring.refresh()
    clock.now += 600
    ring.find("old")

    assert again.wait(10)
    assert threading.current_thread() is fetched_by[0]
    assert fetched_by[1].daemon


def test_held_keys_serve_through_an_outage_of_a_day(ring, authvital, clock, jobs):
    """Stale keys are believed for 24 hours after the last success, and no longer."""
    ring.refresh()
    authvital.answer = OSError()
    for _ in range(24 * 6):
        clock.now += 600
        assert ring.find("old").key_size == 2048
        jobs.pop()()
    assert len(authvital.fetches) == 1 + 24 * 6

    clock.now += 0.1
    assert not ring.holds("old")
    with pytest.raises(KeysUnavailable):
        ring.find("old")

    authvital.answer = _jwks(_jwk(_numbers_of(2048), "old"))
    clock.now += 30
    assert ring.find("old").key_size == 2048


def test_age_counts_from_the_start_of_the_fetch(clock, numbers):
    """A slow answer says nothing about keys that were published while it was on its way."""

    def slow(url, *, no_cache):
        clock.now += 5
        return _jwks(_jwk(numbers, "old"))

    ring = KeyRing(URL, fetch=slow, clock=clock, max_stale=100.0)
    ring.refresh()

    clock.now += 95
    assert ring.holds("old")
    clock.now += 1
    assert not ring.holds("old")


SPOILED = {
    "empty": b"",
    "text": b"<!doctype html><title>Sign in</title>",
    "invalid UTF-8": b'{"keys": ["\xff"]}',
    "deep": b"[" * 60_000,
    "null": b"null",
    "no list": b'{"keys": {}}',
    "another document": b'{"issuer": "https://auth.example.com"}',
    "no keys": b'{"keys": []}',
    "no usable key": b'{"keys": [null, 7, "key", [], {}, {"kid": "old"}]}',
    "too long": b" " * MAX_JWKS_BYTES + b'{"keys": []}',
    "no bytes": None,
}


@pytest.mark.parametrize("document", SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_document_is_a_failed_fetch_and_replaces_nothing(
    document, ring, authvital, clock, numbers
):
    """An answer without a usable key never takes the place of good keys."""
    ring.refresh()
    authvital.answer = document
    clock.now += 30

    with pytest.raises(KeysUnavailable):
        ring.find("unknown")
    assert numbers == ring.find("old").public_numbers()


def test_an_interrupted_fetch_lets_the_next_one_begin(ring, authvital, clock):
    """An interrupt reaches whoever fetched, and leaves no fetch behind for others to wait on."""
    authvital.answer = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        ring.refresh()
    with pytest.raises(KeysUnavailable, match="interrupted"):
        ring.refresh()

    clock.now += 30
    authvital.answer = _jwks(_jwk(_numbers_of(2048), "old"))
    ring.refresh()
    assert ring.holds("old")


def test_neither_errors_nor_logs_repeat_what_a_fetch_said(authvital, clock, caplog):
    """The text of a foreign exception may hold a URL with its password; only its type is told."""
    caplog.set_level(logging.DEBUG)
    authvital.answer = ValueError("https://admin:s3cret@auth.example.com refused")
    ring = KeyRing("https://admin:s3cret@auth.example.com/", fetch=authvital, clock=clock)

    with pytest.raises(KeysUnavailable, match="ValueError") as refusal:
        ring.refresh()
    told = [str(refusal.value), *(f"{record.__dict__}" for record in caplog.records)]
    assert len(told) == 2
    assert not [text for text in told if "s3cret" in text]
    assert refusal.value.__cause__ is None
    assert refusal.value.retry


# --- What a usable key is ---------------------------------------------------------------------

PRIVATE = {"d": "AQAB", "p": "AQAB", "q": "AQAB"}


@pytest.mark.parametrize(
    "changes",
    [
        {"kty": "EC"},
        {"kty": "oct"},
        {"kty": None},
        {"use": "enc"},
        {"use": None},
        {"alg": "RS512"},
        {"alg": "PS256"},
        {"alg": "none"},
        {"alg": None},
        {"kid": None},
        {"kid": ""},
        {"kid": "k" * 256},
        {"kid": "a b"},
        {"kid": 7},
        {"kid": ["old"]},
        {"n": None},
        {"n": 7},
        {"n": ""},
        {"n": "AQ=="},
        {"n": "AQAB AQAB"},
        {"n": "+/+/"},
        {"n": "A" * 1400},
        {"e": None},
        {"e": ""},
        {"e": "AA"},
        {"e": "A"},
        {"e": "A" * 20},
        PRIVATE,
        {"d": "AQAB"},
    ],
    ids=str,
)
def test_an_unusable_key_is_skipped(changes, numbers, other_numbers):
    """A key that is not exactly what AuthVital publishes spoils itself but not its neighbours."""
    document = _jwks(_jwk(numbers, "bad", **changes), _jwk(other_numbers, "good"))

    assert list(read_jwks(document)) == ["good"]


@pytest.mark.parametrize(
    "weak",
    [
        _numbers_of(1024),
        _numbers_of(2047),
        _numbers_of(8193),
        _numbers_of(2048, exponent=3),
        _numbers_of(2048, exponent=65_535),
        _numbers_of(2048, exponent=65_539 - 1),
        _numbers_of(2048, exponent=2**64 + 1),
        rsa.RSAPublicNumbers(65_537, (1 << 2048) - 2),
    ],
    ids=lambda numbers: f"{numbers.n.bit_length()} bits, e={numbers.e}",
)
def test_a_weak_key_is_skipped(weak, numbers):
    """Keys need 2048 to 8192 bits, an odd modulus, and an odd exponent of 65537 or some more."""
    assert list(read_jwks(_jwks(_jwk(weak, "weak"), _jwk(numbers, "good")))) == ["good"]


@pytest.mark.parametrize("bits", [2048, 2049, 3072, 4096, 8192])
def test_sizes_from_2048_to_8192_bits_are_used(bits):
    """AuthVital may choose longer keys without asking us."""
    assert bits == read_jwks(_jwks(_jwk(_numbers_of(bits), "key")))["key"].key_size


def test_a_leading_zero_byte_is_not_part_of_a_number(numbers):
    """Some encoders put a zero in front of the modulus; it is the same key."""
    padded = base64.urlsafe_b64encode(b"\0" + numbers.n.to_bytes(256, "big")).rstrip(b"=")

    keys = read_jwks(_jwks(_jwk(numbers, "key", n=padded.decode())))
    assert numbers == keys["key"].public_numbers()


def test_two_keys_of_one_id_are_both_dropped(numbers, other_numbers):
    """Which of two keys was meant is anybody's guess, so neither is believed."""
    twins = [_jwk(numbers, "twin"), _jwk(other_numbers, "twin")]

    assert list(read_jwks(_jwks(*twins, _jwk(numbers, "good")))) == ["good"]
    with pytest.raises(FetchError, match="no usable key"):
        read_jwks(_jwks(*twins))


def test_keys_of_other_kinds_do_not_disturb(numbers):
    """A set may hold keys for other purposes; RFC 7517 lets one of another type share a key id."""
    point = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    elliptic = {
        "kty": "EC",
        "crv": "P-256",
        "x": _base64url(point.x),
        "y": _base64url(point.y),
        "kid": "key",
        "alg": "ES256",
        "use": "sig",
    }

    assert list(read_jwks(_jwks(elliptic, _jwk(numbers, "key", x5t="ignored")))) == ["key"]


# --- The fetch, over real HTTP ----------------------------------------------------------------


@contextlib.contextmanager
def _serving(answer):
    """Serve `answer(handler, stop)` for every GET; yield the base URL and the requests seen."""
    stop = threading.Event()
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, dict(self.headers)))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                answer(self, stop)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _say(status, body=b"", **headers):
    def answer(handler, _stop):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def _downloads():
    return [t for t in threading.enumerate() if t.name == "tenantsync-jwks-download"]


def test_a_fetch_returns_the_bytes():
    """The document arrives as it was sent, and a fetch says which caches it may be served from."""
    with _serving(_say(200, b'{"keys":[]}')) as (base, requests):
        assert fetch_jwks(f"{base}/jwks.json", no_cache=True) == b'{"keys":[]}'
        assert fetch_jwks(f"{base}/jwks.json", no_cache=False) == b'{"keys":[]}'

    paths, headers = zip(*requests, strict=True)
    assert paths == ("/jwks.json", "/jwks.json")
    assert [each.get("Cache-Control") for each in headers] == ["no-cache", None]
    assert {"identity"} == {each["Accept-Encoding"] for each in headers}


def test_a_ring_works_over_http(numbers):
    """The ring and its default fetch find a key on a real server."""
    with _serving(_say(200, _jwks(_jwk(numbers, "key")))) as (base, requests):
        ring = KeyRing(f"{base}/.well-known/jwks.json")

        assert numbers == ring.find("key").public_numbers()
    assert [path for path, _ in requests] == ["/.well-known/jwks.json"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    """Keys come from the host that was configured, or not at all."""
    with (
        _serving(_say(status, Location="/elsewhere")) as (base, requests),
        pytest.raises(FetchError, match=f"status {status}, not 200"),
    ):
        fetch_jwks(f"{base}/jwks.json", no_cache=True)
    assert len(requests) == 1


@pytest.mark.parametrize("status", [201, 204, 404, 429, 500, 503])
def test_only_status_200_brings_keys(status):
    """An answer of another status is a failure, whatever it carries."""
    with (
        _serving(_say(status, b"" if status == 204 else b'{"keys":[]}')) as (base, _),
        pytest.raises(FetchError, match=f"status {status}, not 200"),
    ):
        fetch_jwks(base, no_cache=True)


def test_an_answer_of_the_greatest_length_is_taken():
    """64 KiB are allowed, and one byte more is not."""
    with _serving(_say(200, b" " * MAX_JWKS_BYTES)) as (base, _):
        assert len(fetch_jwks(base, no_cache=True)) == MAX_JWKS_BYTES
    with (
        _serving(_say(200, b" " * (MAX_JWKS_BYTES + 1))) as (base, _),
        pytest.raises(FetchError, match="longer than 65536 bytes"),
    ):
        fetch_jwks(base, no_cache=True)


def test_an_endless_answer_is_cut():
    """A server that says nothing of the length is read up to the limit only."""

    def pour(handler, stop):
        handler.send_response(200)
        handler.end_headers()
        while not stop.is_set():
            handler.wfile.write(b" " * 8192)

    with (
        _serving(pour) as (base, _),
        pytest.raises(FetchError, match="longer than 65536 bytes"),
    ):
        fetch_jwks(base, no_cache=True)


def test_a_compressed_answer_is_refused():
    """A compressed answer could be small on the wire and huge in memory; none was asked for."""
    with (
        _serving(_say(200, b"\x1f\x8b", Content_Encoding="gzip")) as (base, _),
        pytest.raises(FetchError, match="compressed"),
    ):
        fetch_jwks(base, no_cache=True)


def test_an_answer_that_breaks_off_is_a_failure():
    """Half a document is none."""
    with (
        _serving(_say(200, b'{"keys":[', Content_Length="100")) as (base, _),
        pytest.raises(FetchError, match="could not be reached"),
    ):
        fetch_jwks(base, no_cache=True)


def _drip_headers(handler, stop):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not stop.wait(0.01):
        handler.wfile.write(b"x")


def _drip_body(handler, stop):
    handler.send_response(200)
    handler.send_header("Content-Length", "60000")
    handler.end_headers()
    while not stop.wait(0.01):
        handler.wfile.write(b" ")


def _stay_silent(_handler, stop):
    assert stop.wait(10)


@pytest.mark.parametrize("answer", [_drip_headers, _drip_body, _stay_silent])
def test_the_time_is_for_the_whole_answer(answer):
    """A server that drips its answer gets no more time than one that is silent."""
    with _serving(answer) as (base, _):
        began = time.monotonic()
        with pytest.raises(FetchError, match=r"within 0\.2 s"):
            fetch_jwks(base, no_cache=True, timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 1.0

        # The server still drips; the download ends all the same.
        for thread in _downloads():
            thread.join(5)
        assert _downloads() == []


def test_a_name_that_is_looked_up_for_ever_does_not_hold_the_caller(monkeypatch):
    """The lookup of a name counts too, and what it leads to afterwards is given up."""
    known = threading.Event()
    look_up = socket.getaddrinfo

    def slowly(*arguments, **options):
        assert known.wait(10)
        return look_up(*arguments, **options)

    with _serving(_say(200, b"{}")) as (base, requests):
        monkeypatch.setattr(socket, "getaddrinfo", slowly)
        with pytest.raises(FetchError, match=r"within 0\.1 s"):
            fetch_jwks(base, no_cache=True, timeout=0.1)
        known.set()
        for thread in _downloads():
            thread.join(5)
        assert _downloads() == []
    assert requests == []


def test_a_server_that_is_not_there_is_a_failure():
    """A refused connection says what kind of failure it was."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError, match=r"could not be reached \(.*refused\)"):
            fetch_jwks(f"http://127.0.0.1:{taken.getsockname()[1]}/", no_cache=True)


@pytest.mark.parametrize(
    "url", ["", "jwks.json", "ftp://auth.example.com/", "http://a\x00b/", "http://"]
)
def test_a_url_that_leads_nowhere_is_a_failure(url):
    """What is no URL of HTTP fails like a server that is not there."""
    with pytest.raises(FetchError, match="could not be reached"):
        fetch_jwks(url, no_cache=True)


def test_a_url_with_a_password_is_refused():
    """HTTP clients log URLs, so one that holds a password is not used."""
    with pytest.raises(FetchError, match="take it out") as refusal:
        fetch_jwks("http://admin:s3cret@127.0.0.1:9/", no_cache=True)
    assert "s3cret" not in str(refusal.value)
