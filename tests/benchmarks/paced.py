"""Sends at a fixed rate, in a process of its own, whether or not there were answers (open loop).

Reads one JSON command per line, `{"port", "requests", "rate"}`, where `requests` is a file of
pickled pairs, each a label and the bytes of a request, and writes one JSON line: for each label the
latencies in the order of sending, in seconds, and how often there was which answer; and `late`, the
99th percentile of how many seconds behind its time a request was sent.
"""

import asyncio
import json
import pickle
import sys
import time
from collections import Counter, defaultdict, deque
from pathlib import Path

import uvloop

_CONNECTIONS = 32
_PATIENCE = 60.0
NO_ANSWER = "no answer"


class Line(asyncio.Protocol):
    """One keep-alive connection, with one request under way at most."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._received = b""
        self._request: tuple[str, int, float] | None = None

    def connection_made(self, transport):
        self.transport = transport

    def send(self, label: str, number: int, request: bytes, since: float) -> None:
        """Send a request, whose latency counts since then."""
        self._request = (label, number, since)
        self.transport.write(request)

    def data_received(self, data):
        received = self._received + data
        head, separator, body = received.partition(b"\r\n\r\n")
        if not separator or len(body) < _length(head):
            self._received = received
            return
        self._received = b""
        request, self._request = self._request, None
        self._run.answered(request, f"{head[9:12].decode()} {body.decode()}")
        if not self.transport.is_closing():
            self._run.free.append(self)

    def connection_lost(self, error):
        if self in self._run.free:
            self._run.free.remove(self)
        if self._request is not None:
            self._run.answered(self._request, NO_ANSWER)


class Run:
    """One measurement."""

    def __init__(self, requests: list[tuple[str, bytes]], port: int, rate: float) -> None:
        self.free: deque[Line] = deque()
        self.answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._requests = requests
        self._port = port
        self._rate = rate
        self._latencies: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self._late: list[float] = []
        self._missing = len(requests)
        self._done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, object]:
        """Send all requests, wait for their answers, and return what was measured."""
        for _ in range(_CONNECTIONS):
            self.free.append(await self._open())
        started = time.perf_counter()
        for number, (label, request) in enumerate(self._requests):
            due = started + number / self._rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            since = time.perf_counter()
            self._late.append(since - due)
            if self.free:
                # The one that rested longest: none rests until the server gives it up.
                self.free.popleft().send(label, number, request, since)
            else:
                task = self._loop.create_task(self._send_anew(label, number, request, since))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._done.wait()
        except TimeoutError:
            self.answers["all"][NO_ANSWER] += self._missing
        for line in self.free:
            line.transport.close()
        return {
            "latencies": {
                label: [latency for _, latency in sorted(by_number.items())]
                for label, by_number in self._latencies.items()
            },
            "answers": self.answers,
            "late": sorted(self._late)[len(self._late) * 99 // 100],
        }

    def answered(self, request: tuple[str, int, float] | None, answer: str) -> None:
        """Note an answer, or that there will be none."""
        assert request is not None, f"an answer to nothing: {answer}"
        label, number, since = request
        self._latencies[label][number] = time.perf_counter() - since
        self.answers[label][answer] += 1
        self._missing -= 1
        if not self._missing:
            self._done.set()

    async def _open(self) -> Line:
        _, line = await self._loop.create_connection(lambda: Line(self), "127.0.0.1", self._port)
        return line

    async def _send_anew(self, label: str, number: int, request: bytes, since: float) -> None:
        (await self._open()).send(label, number, request, since)


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


def main() -> None:
    """Obey until the input ends."""
    for line in sys.stdin:
        command = json.loads(line)
        # Only the benchmark itself writes this file.
        requests = pickle.loads(Path(command["requests"]).read_bytes())  # noqa: S301

        async def measure(command=command, requests=requests) -> dict[str, object]:
            return await Run(requests, command["port"], command["rate"]).run()

        sys.stdout.write(json.dumps(uvloop.run(measure())) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
