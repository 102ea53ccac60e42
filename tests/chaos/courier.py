"""Delivers as AuthVital does, only faster: signs each attempt, and tries until there is a 2xx."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

from chaos.background import Background
from chaos.server import PATH

from tenantsync.testing.delivery import Delivery, sign_system
from tenantsync.testing.emulator import Emulator

_TIMEOUT = 30.0
_PAUSES = (0.05, 0.4)


@dataclass
class Letter:
    """One event to deliver.

    Args:
        body: The raw bytes.
        id: Its event id, or a name of its own where the body has none.
        system: Whether it goes to the door for system webhooks.
        answers: What came of each request, the oldest first: a status, or None for no answer.
        outcomes: What the receiver said in each 2xx.
    """

    body: bytes
    id: str
    system: bool = False
    answers: list[int | None] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)

    @property
    def acknowledged(self) -> bool:
        """Whether some answer was a 2xx."""
        return any(answer is not None and 200 <= answer < 300 for answer in self.answers)


def letters(bodies: Iterable[bytes]) -> list[Letter]:
    """Return what delivers these sync events."""
    return [Letter(body, json.loads(body)["id"]) for body in bodies]


class Courier:
    """Senders on a thread of their own.

    Args:
        emulator: Signs.
        port: Of the receiver, on the loopback address.
        senders: How many connections there are.
        seed: Draws the pauses, and which events are sent twice.
        doubles: The share of events that are sent twice.
        once: Whether an event is sent once, whatever comes of it.
    """

    def __init__(
        self,
        emulator: Emulator,
        port: int,
        *,
        senders: int = 16,
        seed: int = 0,
        doubles: float = 0.05,
        once: bool = False,
    ) -> None:
        self._emulator = emulator
        self._port = port
        self._senders = senders
        self._chance = random.Random(seed)  # noqa: S311 - pauses, not secrets
        self._doubles = doubles
        self._once = once
        self.statuses: dict[int | None, int] = defaultdict(int)
        self.acknowledged = 0

    def __enter__(self) -> Self:
        self._background = Background()
        return self

    def __exit__(self, *_: object) -> None:
        self._background.close()

    def begin(self, post: Iterable[Letter]) -> "Future[None]":
        """Deliver in the background; the future is done when each met a 2xx."""
        return self._background.start(self._deliver(list(post)))

    def deliver(self, post: Iterable[Letter], *, patience: float = 120.0) -> None:
        """Deliver, and return when each met a 2xx."""
        self.begin(post).result(patience)

    def in_background(self, errand: Callable[[Self], None]) -> "Future[None]":
        """Run what delivers with this courier on one more thread."""
        pool = ThreadPoolExecutor(1)
        errands = pool.submit(errand, self)
        pool.shutdown(wait=False)  # the thread ends with the errand
        return errands

    async def _deliver(self, post: list[Letter]) -> None:
        twice = [letter for letter in post if self._chance.random() < self._doubles]
        waiting = iter([*post, *twice])
        async with asyncio.TaskGroup() as group:
            for _ in range(self._senders):
                group.create_task(self._send_all(waiting))

    async def _send_all(self, waiting: Iterable[Letter]) -> None:
        line = _Line(self._port)
        try:
            for letter in waiting:
                while True:
                    status, outcome = await line.ask(self._signed(letter), self._path(letter))
                    letter.answers.append(status)
                    self.statuses[status] += 1
                    if status is not None and 200 <= status < 300:
                        letter.outcomes.append(outcome)
                        self.acknowledged += 1
                        break
                    if self._once:
                        break
                    await asyncio.sleep(self._chance.uniform(*_PAUSES))
        finally:
            line.hang_up()

    def _path(self, letter: Letter) -> str:
        return f"{PATH}/system" if letter.system else PATH

    def _signed(self, letter: Letter) -> Delivery:
        if not letter.system:
            return self._emulator.delivery(letter.body)
        names = json.loads(letter.body)
        return sign_system(
            letter.body,
            self._emulator.keys.active,
            event_type=names["event"],
            timestamp=names["timestamp"],
        )


class _Line:
    """One connection, opened anew when it broke."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, delivery: Delivery, path: str) -> tuple[int | None, str]:
        """Send a request, and return status and outcome, or None where no answer came."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                return await self._ask(delivery, path)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError, IndexError):
            self.hang_up()
            return None, ""

    async def _ask(self, delivery: Delivery, path: str) -> tuple[int, str]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        headers = delivery.headers | {"Host": "test", "Content-Length": str(len(delivery.body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._writer.write(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + delivery.body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        if b"connection: close" in head.lower():
            self.hang_up()
        outcome = json.loads(body).get("outcome", "") if body else ""
        return int(head[9:12]), outcome

    def hang_up(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None
