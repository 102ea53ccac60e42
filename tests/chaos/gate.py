"""A gate before a PostgreSQL server: open, shut (refuses), or stuck (accepts, and says nothing)."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Self

from chaos.background import Background


class Gate:
    """Passes connections on to another port of this machine, as long as it is open.

    Args:
        target: The port to pass on to.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._background = Background()
        self._server: asyncio.Server | None = None
        self._passing = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    def __enter__(self) -> Self:
        self._await(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._await(self._shut())
        self._background.close()

    def open(self) -> None:
        """Let connections through; those that were stuck are broken."""
        self._await(self._shut())
        self._await(self._open())

    def shut(self) -> None:
        """Refuse connections, and break those that there are."""
        self._await(self._shut())

    def jam(self) -> None:
        """Accept connections, and pass on nothing, on those that there are neither."""
        self._background.loop.call_soon_threadsafe(self._passing.clear)

    def _await(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._background.start(coroutine).result(10)

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self._passing.set()

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there = None
        try:
            await self._passing.wait()
            answers, there = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(there)
            await asyncio.wait(
                [
                    asyncio.ensure_future(self._pump(reader, there)),
                    asyncio.ensure_future(self._pump(answers, writer)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        except OSError:
            pass  # one side went away, and so does the other
        finally:
            for one in filter(None, (writer, there)):
                self._writers.discard(one)
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
