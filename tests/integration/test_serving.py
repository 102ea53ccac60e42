"""Heads of requests, over real sockets: how large they may be, and how long they may take."""

import asyncio
import socket
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from guarding import serving
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tenantsync.web.serving import MAX_HEADERS, BoundedHttpProtocol

WHOLE = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


class Hasty(BoundedHttpProtocol):
    """The protocol, for a test that does not wait long."""

    head_timeout = 0.1


async def slow(request):
    """Answer after a head may have taken too long, twice over."""
    await asyncio.sleep(3 * Hasty.head_timeout)
    return PlainTextResponse("slow")


@pytest.fixture(scope="module")
def port():
    """Give the port of a server that bears nobody for long."""
    app = Starlette(
        routes=[Route("/", lambda request: PlainTextResponse("here")), Route("/slow", slow)]
    )
    with serving(app, http=Hasty) as url:
        yield urlsplit(url).port


@contextmanager
def connected(port):
    """Give a connection that a test waits on for ten seconds at most."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def rest(connection):
    """Return what is said until the server ends the connection."""
    said = b""
    try:
        while received := connection.recv(65_536):
            said += received
    except ConnectionResetError:
        pass
    return said


@pytest.mark.parametrize("begun", [b"", b"POST / HT", WHOLE[:-2]])
def test_who_does_not_finish_a_head_is_sent_away(port, begun):
    """Said nothing, or half: the connection is free for somebody else soon."""
    with connected(port) as connection:
        connection.sendall(begun)

        assert rest(connection) == b""


def test_the_next_head_on_a_connection_may_not_take_for_ever_either(port):
    """Who was served once has no longer for the next request."""
    with connected(port) as connection:
        connection.sendall(WHOLE)
        assert connection.recv(65_536).endswith(b"here")
        connection.sendall(WHOLE[:-2])

        assert rest(connection) == b""


def test_an_answer_that_takes_long_is_not_broken_off(port):
    """What counts is the head, also where half of the next one waits behind it."""
    with connected(port) as connection:
        connection.sendall(WHOLE.replace(b"/ ", b"/slow ", 1) + WHOLE[:-2])

        assert rest(connection).endswith(b"slow")


@pytest.mark.parametrize(("more", "status"), [(-1, b"200"), (0, b"400")])
def test_headers_are_counted(port, more, status):
    """As many as the bound are served; the bound counts Host, too."""
    headers = b"".join(b"X-%d: 1\r\n" % number for number in range(MAX_HEADERS + more))
    with connected(port) as connection:
        connection.sendall(WHOLE[:-2] + headers + b"\r\n")

        assert connection.recv(65_536)[9:12] == status
