"""What can be the matter with one tenant's database: a gate before it, and faults inside it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

import psycopg

FAULTS = {
    "refused": "connection refused",
    "hangs": "accepts and hangs",
    "read-only": "read-only",
    "table-missing": "table missing",
    "old-revision": "old revision",
    "table-locked": "table locked by a migration",
    "row-locked": "rows locked by a forgotten transaction",
}
"""Every fault, and what it is called in the report."""

GATED = frozenset({"refused", "hangs"})
"""The faults of which the way to the database is to blame."""

# What a database says that was made a standby. A default of the login would not do: each
# transaction of tenantsync asks for READ WRITE, whatever the default is.
_READ_ONLY = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'cannot execute INSERT in a read-only transaction' USING ERRCODE = '25006';
END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON av_sync_events
  FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON av_identities
  FOR EACH STATEMENT EXECUTE FUNCTION refuse();
"""
_DONE_AND_UNDONE = {
    "read-only": (_READ_ONLY, "DROP FUNCTION refuse() CASCADE"),
    "table-missing": (
        "ALTER TABLE av_identities RENAME TO hidden",
        "ALTER TABLE hidden RENAME TO av_identities",
    ),
    # A column that this release reads, and the revision before would not have made.
    "old-revision": (
        "ALTER TABLE av_identities RENAME COLUMN clocks TO hidden",
        "ALTER TABLE av_identities RENAME COLUMN hidden TO clocks",
    ),
}
_LEFT_OPEN = {
    "table-locked": "LOCK TABLE av_identities IN ACCESS EXCLUSIVE MODE",
    "row-locked": "UPDATE av_identities SET synced_at = synced_at",
}


@dataclass(frozen=True)
class Place:
    """The bad tenant's place, as somebody reaches it who does not come through the gate.

    Args:
        server: Connects to a database of that name, in autocommit.
        database: Its name.
        schema: The schema in it.
    """

    server: Callable[[str], "psycopg.Connection[tuple[object, ...]]"]
    database: str
    schema: str

    @contextmanager
    def connected(self) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
        """Give a connection on which names mean this place's tables; closed at the end."""
        with self.server(self.database) as connection:
            connection.execute(f'SET search_path = "{self.schema}"')
            yield connection

    def vacuum(self) -> None:
        """Clear up after many events."""
        with self.connected() as connection:
            connection.execute("VACUUM (ANALYZE) av_identities, av_sync_events")


@contextmanager
def trouble(fault: str, place: Place, gate: "Gate | None") -> Iterator[None]:
    """Break the tenant's place, and repair it when the block ends.

    Args:
        fault: A key of FAULTS.
        place: The tenant's place.
        gate: What its connections go through; needed for the faults in GATED.
    """
    with ExitStack() as stack:
        if fault in GATED:
            assert gate is not None, f"{fault} needs a gate"
            (gate.shut if fault == "refused" else gate.stick)()
            stack.callback(gate.open)
        elif fault in _LEFT_OPEN:
            connection = stack.enter_context(place.connected())
            stack.enter_context(connection.transaction(force_rollback=True))
            connection.execute(_LEFT_OPEN[fault])
        else:
            done, undone = _DONE_AND_UNDONE[fault]
            connection = stack.enter_context(place.connected())
            connection.execute(done)
            stack.callback(connection.execute, undone)
        yield


class Gate:
    """Passes connections on to a port of this machine: open, shut (refuses) or stuck (hangs).

    Args:
        target: The port.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._stuck = False
        self._transports: set[asyncio.Transport] = set()
        self._server: asyncio.Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open(self) -> None:
        """Let connections through; those that were stuck are broken."""
        self._await(self._open)

    def shut(self) -> None:
        """Refuse connections, and break those that there are."""
        self._await(self._shut)

    def stick(self) -> None:
        """Accept connections and pass nothing on, on those that there are neither."""
        self._await(self._stick)

    def _await(self, do: Callable[[], object]) -> None:
        async def act() -> None:
            answer = do()
            if asyncio.iscoroutine(answer):
                await answer

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    async def _open(self) -> None:
        await self._shut()
        self._stuck = False
        self._server = await self._loop.create_server(
            lambda: _Side(self, self._accept), "127.0.0.1", self.port
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for transport in list(self._transports):
            transport.abort()
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def _stick(self) -> None:
        self._stuck = True
        for transport in self._transports:
            transport.pause_reading()

    def joined(self, transport: asyncio.Transport) -> None:
        """Remember a connection, to break it."""
        self._transports.add(transport)

    def left(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""
        self._transports.discard(transport)

    def _accept(self, side: "_Side") -> None:
        side.transport.pause_reading()
        if not self._stuck:
            task = self._loop.create_task(self._connect(side))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, side: "_Side") -> None:
        try:
            _, other = await self._loop.create_connection(
                lambda: _Side(self), "127.0.0.1", self._target
            )
        except OSError:
            side.transport.abort()
            return
        side.other, other.other = other.transport, side.transport
        if side.transport.is_closing():
            other.transport.abort()
        elif not self._stuck:
            side.transport.resume_reading()


class _Side(asyncio.Protocol):
    """One of the two connections of a pair."""

    def __init__(self, gate: Gate, accepted: Callable[["_Side"], None] | None = None) -> None:
        self._gate = gate
        self._accepted = accepted
        self.transport: asyncio.Transport
        self.other: asyncio.Transport | None = None

    def connection_made(self, transport):
        self.transport = transport
        self._gate.joined(transport)
        if self._accepted is not None:
            self._accepted(self)

    def data_received(self, data):
        # No backpressure: a question is answered before the next one comes, and both are small.
        if self.other is not None:
            self.other.write(data)

    def connection_lost(self, error):
        self._gate.left(self.transport)
        if self.other is not None:
            self.other.abort()
