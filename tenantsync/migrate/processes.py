"""Processes of our own for revisions that Alembic must run: it can do one at a time in each.

They are spawned, not forked, and end when whoever started them does, whichever way: what one is
doing then is one tenant's transaction, which ends as well or never was.
"""

import multiprocessing
import pickle
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from tenantsync.migrate.connections import Connections
from tenantsync.migrate.mover import Mover
from tenantsync.migrate.moves import Found, Limits, Move
from tenantsync.migrate.recording import Recorder
from tenantsync.migrate.report import State, Stopped, sentence_about
from tenantsync.migrate.scripts import Scripts
from tenantsync.tenancy.engines import EngineFactory
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenants import Placement

__all__ = ["Assistant", "Orders"]


@dataclass(frozen=True, slots=True)
class Orders:
    """All that a process needs to know before it is given the first place.

    Args:
        isolation: How places are made, bound and proven.
        factory: Makes the engine of a database.
        locations: Folders with revisions of the application.
        move: The target.
        limits: How long one tenant may wait.
    """

    isolation: Isolation
    factory: EngineFactory
    locations: tuple[Path, ...]
    move: Move
    limits: Limits

    def portable(self) -> bool:
        """Return whether they can be given to another process."""
        try:
            pickle.dumps(self)
        except Exception:  # whatever it is, they stay here
            return False
        return True


class Assistant:
    """A process that moves places, one at a time; started when it is first asked. For one thread.

    Args:
        orders: What it needs to know.
    """

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._running: tuple[SpawnProcess, Connection] | None = None

    def move(self, placement: Placement) -> Found:
        """Bring a place to the target, there.

        Raises:
            Stopped: It could not be done, or the process ended before it answered.
        """
        _, pipe = self._running or self._start()
        try:
            pipe.send(placement)
            answer = pipe.recv()
        except (EOFError, OSError) as error:
            code = self.close()
            raise Stopped(
                State.FAILED,
                f"the process that migrated it ended with {code}: see its output, "
                "then run this again",
            ) from error
        if isinstance(answer, Stopped):
            raise answer
        assert isinstance(answer, Found)
        return answer

    def close(self) -> int | None:
        """Let it end, which it does when it is done with what it is doing; return its exit code."""
        if self._running is None:
            return None
        process, pipe = self._running
        self._running = None
        pipe.close()
        process.join()
        code = process.exitcode
        process.close()
        return code

    def _start(self) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._orders), name="tenantsync-migrate", daemon=True
        )
        process.start()
        theirs.close()
        self._running = process, ours
        return self._running


def _serve(pipe: Connection, orders: Orders) -> None:
    # Ctrl-C is sent to the whole group; who started us decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connections = Connections(orders.factory)
    scripts = Scripts(orders.locations)
    mover = Mover(
        orders.isolation,
        scripts,
        Recorder(scripts, orders.move),
        orders.move,
        orders.limits,
        connections,
    )
    try:
        while True:
            pipe.send(_attempt(mover, pipe.recv()))
    except EOFError:
        connections.close()


def _attempt(mover: Mover, placement: Placement) -> Found | Stopped:
    try:
        return mover.move(placement, alembic=True)
    except Stopped as stopped:
        return stopped
    except Exception as error:  # it is told to who asked
        return Stopped(State.FAILED, sentence_about(error))
