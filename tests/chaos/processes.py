"""Real processes that are killed, stopped and started again: the servers, and their PostgreSQL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import postgres as server_programs
import psycopg
from postgres import Server

_PROGRAM = Path(__file__).with_name("server.py")
PATIENCE = 60.0
"""Seconds after which waiting for another process is a failure."""


def until(happened: Callable[[], Any], what: str, *, patience: float = PATIENCE) -> Any:
    """Ask again and again until another process has done something, and return the answer.

    Args:
        happened: Answers something true once it has.
        what: A sentence for the failure.
        patience: Seconds.
    """
    deadline = time.monotonic() + patience
    while True:
        answer = happened()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {patience} seconds"
        time.sleep(0.01)


class Nursery:
    """The process that forks the others: see `server.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # its children die with it
        self._process.communicate()

    def ask(self, **order: object) -> int:
        """Give an order, and return the answer."""
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the nursery died"
        return int(answer)


@dataclass
class Child:
    """One process that serves or works.

    Args:
        nursery: Who forked it.
        pid: Its process id.
        folder: What it says of itself: see `server.Fate`.
    """

    nursery: Nursery
    pid: int
    folder: Path
    _code: int | None = None

    def ready(self) -> Self:
        """Wait until it takes requests, and return it."""
        until(
            lambda: (self.folder / "ready").exists() or not self.alive(),
            "a server should be ready",
        )
        return self

    def alive(self) -> bool:
        """Whether it has not ended."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        return state != "Z"

    def stopped(self) -> bool:
        """Whether SIGSTOP has it."""
        assert self.alive(), f"process {self.pid} ended"
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    def struck(self) -> bool:
        """Whether its fate struck."""
        return (self.folder / "struck").exists()

    def reached(self) -> set[str]:
        """Return the steps that it came by."""
        return {file.name.removeprefix("step-") for file in self.folder.glob("step-*")}

    def signal(self, number: int) -> None:
        """Send it a signal, if it is there."""
        if self.alive():
            os.kill(self.pid, number)

    def kill(self) -> int:
        """Kill it as a crash would, and return how it ended."""
        self.signal(signal.SIGKILL)
        return self.ended()

    def stop(self) -> int:
        """Ask it to stop, and return how it ended."""
        self.signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        """Wait until it ends, and return its exit code, or minus the signal."""
        if self._code is None:
            try:
                until(lambda: not self.alive(), f"process {self.pid} should end")
            except AssertionError as error:
                self.signal(signal.SIGUSR1)
                time.sleep(0.5)
                error.add_note((self.folder / "log").read_text()[-8000:])
                raise
            self._code = self.nursery.ask(wait=self.pid)
        return self._code

    def rss(self) -> int:
        """Return how much memory it has in use, in bytes."""
        return self._memory("VmRSS")

    def peak(self) -> int:
        """Return the most memory that it ever had in use, in bytes."""
        return self._memory("VmHWM")

    def forget_peak(self) -> None:
        """Let `peak` begin anew."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _memory(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise LookupError(name)


class Starter:
    """Starts children with a folder each.

    Args:
        nursery: Who forks them.
        folder: Where theirs go.
    """

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self._nursery = nursery
        self._folder = folder
        self._numbers = count(1)
        self.children: list[Child] = []

    def start(
        self,
        what: str,
        config: Path,
        *,
        port: int = 0,
        fate: tuple[str, int, int] | None = None,
    ) -> Child:
        """Start a child.

        Args:
            what: `serve` or `work`.
            config: Its configuration.
            port: Where it serves.
            fate: At which step, at which of its hits, which signal strikes it.
        """
        folder = self._folder / f"child-{next(self._numbers)}"
        folder.mkdir(parents=True)
        pid = self._nursery.ask(
            start=what, config=str(config), folder=str(folder), port=port, fate=fate
        )
        self.children.append(Child(self._nursery, pid, folder))
        return self.children[-1]

    def end_all(self) -> None:
        """Kill whoever is left."""
        for child in self.children:
            if child.alive():
                child.kill()


class RestartablePostgres:
    """A PostgreSQL server that is killed, and started again on the same data and port.

    Args:
        nursery: Who starts it again.
        server: A server that was just made, and now belongs to this.
    """

    def __init__(self, nursery: Nursery, server: Server) -> None:
        self.server = server
        self._nursery = nursery
        self._pid: int | None = None  # the first process is the server's own

    def crash(self, number: int = signal.SIGQUIT) -> None:
        """End it: SIGQUIT is the immediate mode, SIGKILL leaves its other processes behind."""
        if self._pid is None:
            self.server.process.send_signal(number)
            self.server.process.wait()
        else:
            os.kill(self._pid, number)
            self._nursery.ask(wait=self._pid)

    def rise(self) -> None:
        """Start it again; it recovers by itself."""
        # Processes that a SIGKILL left behind hold its memory until they notice; it then refuses.
        until(self._risen, "PostgreSQL should start again")

    def _risen(self) -> bool:
        account = server_programs._account()
        self._pid = self._nursery.ask(
            execute=self.server.process.args,
            log=str(self.server.directory / "log"),
            account=(account.pw_uid, account.pw_gid) if account else None,
        )
        while Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            with suppress(psycopg.OperationalError):
                self.server.connect().close()
                return True
            time.sleep(0.02)
        self._nursery.ask(wait=self._pid)
        return False

    def stop(self) -> None:
        """End it for good."""
        self.crash()
        shutil.rmtree(self.server.directory, ignore_errors=True)
