"""How uvicorn reads requests for `tenantsync serve`. Needs the extra `server`."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["MAX_HEADERS", "BoundedHttpProtocol"]

MAX_HEADERS: Final = 100
"""How many headers a request may have. AuthVital sends about a dozen, and proxies add a few."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with a bound on headers, which it has none for.

    Ten thousand of them would cost more than a megabyte a connection before any door is asked.
    """

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one too many makes the parser answer 400."""
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError("too many headers")
        super().on_header(name, value)
