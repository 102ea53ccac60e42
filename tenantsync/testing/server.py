"""A small HTTP server on a thread: answers by a function, and remembers what it was asked."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

__all__ = ["Faults", "Request", "Response", "Server"]

_MAX_BODY = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One request that the server received.

    Args:
        method: `GET`, `HEAD` or `POST`.
        path: The path without its query.
        query: What stands after the question mark, as it was sent.
        headers: Header names in small letters, and values.
        body: At most 1 MiB.
        client: The sender's address, without its port.
        at: When it came, in unix seconds.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    client: str
    at: float
    query: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """An answer.

    Args:
        status: The HTTP status.
        body: The raw bytes.
        headers: Beside `Content-Length` and, where it is not among them, `Date`.
        length: The `Content-Length` to claim; None is the true one. A greater one makes an answer
            that is cut off.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    length: int | None = None


@dataclass(slots=True)
class Faults:
    """What the JWKS endpoint, and by `spoil` any other, does wrong. Set it while all runs.

    Args:
        status: Answer with this status in place of 200.
        delay: Wait so many seconds before answering.
        hang: Never answer.
        body: Serve these bytes in place of the JWKS: garbage, or a set that a cache kept.
        spoil: Changes answers of other endpoints, by path: `/api/integration/tenant-memberships` or
            `/oauth/token`. Each function gets the honest answer and returns what is sent.
    """

    status: int | None = None
    delay: float = 0.0
    hang: bool = False
    body: bytes | None = None
    spoil: dict[str, Callable[[Response], Response]] = field(default_factory=dict)

    def clear(self) -> None:
        """Make the endpoint behave again."""
        self.status, self.delay, self.hang, self.body = None, 0.0, False, None
        self.spoil.clear()


class Server:
    """An HTTP server in threads of its own.

    Args:
        respond: Makes the answer to a request; called from many threads.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
    """

    def __init__(
        self, respond: Callable[[Request], Response], *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self._respond = respond
        self._log: list[Request] = []
        self._lock = threading.Lock()
        self._server = _Listener(host, port, self._answer)
        self._thread = threading.Thread(
            # With the default poll of half a second, each close would take that long.
            target=self._server.serve_forever,
            args=(0.05,),
            name="tenantsync-emulator",
            daemon=True,
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        host, port = self._server.server_address[:2]
        name = str(host)
        return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    @property
    def requests(self) -> list[Request]:
        """What was asked so far, oldest first."""
        with self._lock:
            return list(self._log)

    def close(self) -> None:
        """Stop listening. Answers that are under way are not waited for."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: Request) -> Response:
        with self._lock:
            self._log.append(request)
        return self._respond(request)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, answer: Callable[[Request], Response]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.answer = answer
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer would look its own name up in DNS here, which can take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the parent's
        """Stay silent where a client went away in the middle of its request."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    timeout = 30
    server: _Listener

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: what was asked is kept in the server's own list."""

    def _handle(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > _MAX_BODY:
            self._send(Response(413, b'{"error":"send a Content-Length of at most 1 MiB"}'))
            return
        request = Request(
            method=self.command,
            path=self.path.partition("?")[0],
            query=self.path.partition("?")[2],
            headers={name.lower(): value for name, value in self.headers.items()},
            body=self.rfile.read(int(length)),
            client=str(self.client_address[0]),
            at=time.time(),
        )
        self._send(self.server.answer(request))

    def _send(self, response: Response) -> None:
        self.send_response_only(response.status)
        if "Date" not in response.headers:
            self.send_header("Date", self.date_time_string())
        for name, value in response.headers.items():
            self.send_header(name, value)
        length = len(response.body) if response.length is None else response.length
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)
