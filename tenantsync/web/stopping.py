"""How `tenantsync serve` stops: what is in flight is finished, the rest is answered 503.

Needs the extra `server`.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tenantsync.web.answers import RETRY_AFTER

__all__ = ["GracefulServer"]

_STOPPING: Final = {"error": "unavailable", "reason": "stopping"}


class GracefulServer(uvicorn.Server):
    """uvicorn's server, which by itself refuses connections from the first moment on.

    A refused connection is as good as a 503 for AuthVital, but not for whatever stands between: a
    proxy may take the machine for broken. So it listens until what was in flight is finished.

    Args:
        app: The application.
        longest: Seconds that what is in flight may take, before it is broken off.
        clock: Monotonic seconds.
        options: As `uvicorn.Config` takes them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        longest: float,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        self._door = _Door(app)
        self._longest = longest
        self._clock = clock
        self._deadline = 0.0
        self._in_flight: frozenset[asyncio.Task[None]] = frozenset()
        # By then nothing is in flight but refusals.
        super().__init__(uvicorn.Config(self._door, timeout_graceful_shutdown=1, **options))

    async def on_tick(self, counter: int) -> bool:
        """Return whether to exit: after a signal, once what was in flight is finished."""
        wanted = await super().on_tick(counter)
        if not wanted or self.force_exit:
            return wanted
        if not self._door.closed:
            self._door.closed = True
            self._in_flight = frozenset(self.server_state.tasks)
            self._deadline = self._clock() + self._longest
        return all(task.done() for task in self._in_flight) or self._clock() >= self._deadline


class _Door:
    """The application, or a 503 for everything once it is closed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.closed or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {"Retry-After": str(RETRY_AFTER), "Connection": "close"}
        await JSONResponse(_STOPPING, 503, headers)(scope, receive, send)
