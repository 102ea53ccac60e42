"""How uvicorn reads requests for `tenantsync serve`. Needs the extra `server`."""

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["MAX_HEADERS", "BoundedHttpProtocol"]

MAX_HEADERS: Final = 100
"""How many headers a request may have. AuthVital sends about a dozen, and proxies add a few."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds on the head of a request, which it has none for.

    Ten thousand headers would cost more than a megabyte a connection before any door is asked; and
    whoever sends half a head would keep a connection for ever, until there are no more to be had.
    """

    head_timeout: float = 20.0
    """Seconds that a head may take, from the connection or the head's first byte on."""

    _late: asyncio.TimerHandle | None = None
    _unanswered = 0

    def connection_made(  # type: ignore[override] # as uvicorn's own
        self, transport: asyncio.Transport
    ) -> None:
        """Wait for the first head, not for ever."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._forget_head()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Wait for the rest of the head, not for ever."""
        super().on_message_begin()
        if self._late is None:
            self._expect_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one too many makes the parser answer 400."""
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Take the head; how long a body may take is the door's business."""
        self._forget_head()
        self._unanswered += 1
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        self._unanswered -= 1
        super().on_response_complete()

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(self.head_timeout, self._give_up)

    def _forget_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        # The head may be of the next request, while the answer to this one is under way.
        if self._unanswered:
            self._expect_head()
        else:
            self.transport.abort()
