"""Fetches a JWKS over HTTP: within a time, within a size, and without following anybody."""

import contextlib
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import httpx2

__all__ = ["MAX_JWKS_BYTES", "FetchError", "fetch_jwks"]

MAX_JWKS_BYTES = 65_536
"""A longer JWKS is not read; AuthVital's holds a handful of keys of about 450 bytes."""


class FetchError(Exception):
    """The JWKS could not be had. The message is a clause that says why, without the URL."""


def fetch_jwks(
    url: str, *, no_cache: bool, timeout: float = 5.0, max_bytes: int = MAX_JWKS_BYTES
) -> bytes:
    """Return the JWKS at the URL. Redirects and compressed answers are refused.

    Proxies and credentials of the environment are not used; a deployment that needs them hands
    its own `Fetch` to the ring.

    Args:
        url: Where the JWKS is.
        no_cache: Whether to send `Cache-Control: no-cache`.
        timeout: Seconds for everything together, the lookup of the name included.
        max_bytes: The longest answer that is taken.

    Raises:
        FetchError: Not reached, not answered in time, not status 200, too long, or the URL holds
            a password.
    """
    download = _Download(url, no_cache=no_cache, timeout=timeout, max_bytes=max_bytes)
    threading.Thread(target=download.run, name="tenantsync-jwks-download", daemon=True).start()
    try:
        return download.answer.result(timeout)
    except TimeoutError:
        download.abandon()
        raise FetchError(f"it was not answered in full within {timeout:g} s") from None


class _Download:
    """One GET, run in a thread of its own.

    A socket's timeout starts anew with every byte, and the lookup of a name has none, so only
    a caller in another thread can keep time. The socket's own timeout is longer than the caller's
    and merely ends a thread whose peer has vanished.
    """

    def __init__(self, url: str, *, no_cache: bool, timeout: float, max_bytes: int) -> None:
        self.answer: Future[bytes] = Future()
        self._url = url
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if no_cache:
            self._headers["Cache-Control"] = "no-cache"
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._socket: socket.socket | None = None
        self._abandoned = False

    def run(self) -> None:
        try:
            self.answer.set_result(self._get())
        except FetchError as failure:
            self.answer.set_exception(failure)
        except Exception as error:  # a thread has nobody above it to tell
            # The text of a TransportError is that of the operating system or of OpenSSL.
            told = str(error) if isinstance(error, httpx2.TransportError) else type(error).__name__
            self.answer.set_exception(FetchError(f"it could not be reached ({told:.200})"))

    def abandon(self) -> None:
        """Make the thread end soon. It closes its own socket.

        Closing it here could hand its descriptor's number to another connection, from which
        the thread would then read.
        """
        self._abandoned = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _get(self) -> bytes:
        url = httpx2.URL(self._url)
        if url.userinfo:
            # The client logs URLs. Nobody needs a password for public keys.
            raise FetchError("its URL holds a user name or password; take it out")
        body = bytearray()
        with (
            httpx2.Client(trust_env=False, timeout=self._timeout + 1.0) as client,
            client.stream(
                "GET",
                url,
                headers=self._headers,
                follow_redirects=False,
                extensions={"trace": self._trace},
            ) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise FetchError(f"it was answered with status {response.status_code}, not 200")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise FetchError("it was answered compressed, which was not asked for")
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > self._max_bytes:
                    raise FetchError(f"its answer is longer than {self._max_bytes} bytes")
        return bytes(body)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event not in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            return
        # First the socket, then the flag; `abandon` does it the other way round. So one of the
        # two always sees the other, whoever comes first.
        connected: socket.socket = info["return_value"].get_extra_info("socket")
        self._socket = connected
        if self._abandoned:
            connected.close()  # the client forgets a connection whose trace raises
            raise FetchError("nobody waits for it any more")
