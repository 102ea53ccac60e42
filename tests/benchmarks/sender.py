"""The senders, in a process of their own: many connections that each wait for their answer.

Reads one JSON command per line, `{"port", "requests", "senders", "seconds", "cycle"}`, where
`requests` is a file of pickled request bytes, and writes one JSON line about what came of it.
"""

import asyncio
import json
import pickle
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import uvloop


class Sender(asyncio.Protocol):
    """One keep-alive connection: the next request goes out when the last one is answered."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport):
        self._transport = transport
        self._send()

    def data_received(self, data):
        received = self._received + data
        head, separator, body = received.partition(b"\r\n\r\n")
        if not separator or len(body) < _length(head):
            self._received = received
            return
        self._received = b""
        self._run.answered(time.perf_counter() - self._sent_at, head[9:12], body)
        self._send()

    def connection_lost(self, error):
        self._run.left()

    def _send(self):
        request = self._run.next_request()
        if request is None:
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)


class Run:
    """What all senders of one measurement share."""

    def __init__(self, requests: Iterator[bytes], senders: int, seconds: float) -> None:
        self.latencies: list[float] = []
        self.answers: Counter[str] = Counter()
        self.done = asyncio.get_running_loop().create_future()
        self.started = time.perf_counter()
        self.ended = self.started
        self._requests = requests
        self._present = senders
        self._deadline = self.started + seconds

    def next_request(self) -> bytes | None:
        if time.perf_counter() >= self._deadline:
            return None
        return next(self._requests, None)

    def answered(self, seconds: float, status: bytes, body: bytes) -> None:
        self.latencies.append(seconds)
        self.answers[f"{status.decode()} {body.decode()}"] += 1

    def left(self) -> None:
        self._present -= 1
        if not self._present:
            self.ended = time.perf_counter()
            self.done.set_result(None)


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


async def send(command: dict[str, object], requests: list[bytes]) -> dict[str, object]:
    """Send for a while, and return what was measured."""
    loop = asyncio.get_running_loop()
    cpu = _cpu()
    source = cycle(requests) if command["cycle"] else iter(requests)
    run = Run(source, command["senders"], command["seconds"])
    for _ in range(command["senders"]):
        await loop.create_connection(lambda: Sender(run), "127.0.0.1", command["port"])
    await run.done
    latencies = sorted(run.latencies)
    return {
        "events": len(latencies),
        "seconds": run.ended - run.started,
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[len(latencies) * 99 // 100],
        "answers": dict(run.answers),
        "cpu": _cpu() - cpu,
    }


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Obey until the input ends."""
    for line in sys.stdin:
        command = json.loads(line)
        # Only the benchmark itself writes this file.
        requests = pickle.loads(Path(command["requests"]).read_bytes())  # noqa: S301
        sys.stdout.write(json.dumps(uvloop.run(send(command, requests))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
