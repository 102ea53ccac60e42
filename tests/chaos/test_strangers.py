"""Strangers at a real server's door: little memory, no row, and the authentic are served still."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from chaos.background import Background
from chaos.courier import Courier, letters
from chaos.house import free_port, lives
from chaos.processes import until
from chaos.server import PATH

from tenantsync.web.webhook import MAX_BODY_BYTES

CONNECTIONS = 192
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
FORGED = (
    "X-AuthVital-Signature: c2lnbmF0dXJl\r\nX-AuthVital-Key-Id: {kid}\r\n"
    "X-AuthVital-Timestamp: {now}\r\n"
)
SLACK = 16 * 1024 * 1024
"""What the interpreter's own pools may take beside the requests."""

Attack = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]


async def unsigned_flood(reader, writer, forged):
    """Send bodies as large as allowed, with made-up signatures, one after the other."""
    body = bytes(MAX_BODY_BYTES)
    for _ in range(20):
        writer.write(f"{HEAD}{forged}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        await answer(reader)


async def single_bytes(reader, writer, forged):
    """Send a body in chunks of one byte each."""
    writer.write(f"{HEAD}{forged}Transfer-Encoding: chunked\r\n\r\n".encode())
    for _ in range(MAX_BODY_BYTES // 4 // 1024):
        writer.write(b"1\r\nx\r\n" * 1024)
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    await answer(reader)


async def endless_chunks(reader, writer, forged):
    """Send chunks without end, and read no answer."""
    writer.write(f"{HEAD}{forged}Transfer-Encoding: chunked\r\n\r\n".encode())
    chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
    for _ in range(256):
        writer.write(chunk)
        await writer.drain()


async def lying_length(reader, writer, forged):
    """Announce little and send much, or announce much and send nothing more."""
    writer.write(f"{HEAD}{forged}Content-Length: 2\r\n\r\n".encode() + bytes(4 * MAX_BODY_BYTES))
    with contextlib.suppress(OSError):
        await writer.drain()
    await reader.read()
    again, more = await asyncio.open_connection(*writer.get_extra_info("peername"))
    more.write(f"{HEAD}{forged}Content-Length: 10000000000\r\n\r\n".encode())
    await answer(again)
    more.transport.abort()


async def ten_thousand_headers(reader, writer, forged):
    """Send more headers than anybody reads."""
    many = "".join(f"X-Header-{number}: value\r\n" for number in range(10_000))
    writer.write(f"{HEAD}{forged}{many}Content-Length: 2\r\n\r\n{{}}".encode())
    await reader.read(65_536)


async def slow_loris(reader, writer, forged):
    """Send nearly the whole body, and then nothing for as long as the server bears it."""
    length = f"Content-Length: {MAX_BODY_BYTES}\r\n\r\n"
    writer.write(f"{HEAD}{forged}{length}".encode() + bytes(MAX_BODY_BYTES - 1))
    await writer.drain()
    await reader.read()


async def slow_headers(reader, writer, forged):
    """Send half a header, and then nothing."""
    writer.write(HEAD.encode() + b"X-Half: ")
    await writer.drain()
    await reader.read()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Read one answer, and return its status line."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return head.partition(b"\r\n")[0]


@contextmanager
def besieged(port: int, attack: Attack, forged: str) -> Iterator[Counter[str]]:
    """Let many connections attack for as long as the block runs, or until they are through."""
    met: Counter[str] = Counter()
    background = Background()

    async def one() -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            met["refused"] += 1
            return
        met["begun"] += 1
        try:
            await attack(reader, writer, forged)
            met["through"] += 1
        except (OSError, asyncio.IncompleteReadError):
            met["broken off"] += 1
        finally:
            writer.transport.abort()

    async def all_of_them() -> None:
        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))

    try:
        attacking = background.start(all_of_them())
        until(lambda: met["begun"] + met["refused"] == CONNECTIONS, "the attack should begin")
        yield met
        if attack not in (slow_loris, slow_headers):
            attacking.result(60)
    finally:
        background.close()


@pytest.mark.parametrize(
    "attack",
    [
        unsigned_flood,
        single_bytes,
        endless_chunks,
        lying_length,
        ten_thousand_headers,
        slow_loris,
        slow_headers,
    ],
)
def test_strangers_cost_little_and_keep_nobody_out(attack, build, starter, authvital):
    """Under an attack memory stays bounded, authentic events are applied, and no other row is."""
    house = build("sqlite", ["acme"])
    port = free_port()
    server = starter.start("serve", house.config, port=port).ready()
    every = letters(lives(authvital, house.tenants, 60))
    warm_up, post = every[:50], every[50:250]
    assert len(post) == 200
    forged = FORGED.format(kid=authvital.keys.active.kid, now=int(time.time()))
    with Courier(authvital, port, senders=8) as courier:
        courier.deliver(warm_up)
        server.forget_peak()
        before = server.rss()
        with besieged(port, attack, forged) as met:
            courier.deliver(post, patience=30)

        assert set(courier.statuses) == {200}
    assert met["begun"] == CONNECTIONS
    assert server.alive()
    assert server.peak() - before < CONNECTIONS * 2 * MAX_BODY_BYTES + SLACK
    assert not house.entries()
    server.stop()
    house.examine([*warm_up, *post])
