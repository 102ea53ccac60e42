"""A nursery of real processes: imports tenantsync once, and forks a server or worker per order.

Reads one JSON order per line: `{"start": "serve" | "work", ...}` forks a child and answers with its
process id; `{"wait": pid}` answers with how it ended; `{"execute": command, ...}` forks another
program. A child that serves says on `ready` (a file
that it makes) that it takes requests. So a restart costs milliseconds and no second of imports.
"""

import ctypes
import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import text
from starlette.applications import Starlette

from tenantsync import TenantSync
from tenantsync.steps import AUDIT_EVENT
from tenantsync.web.serving import BoundedHttpProtocol

PATH = "/webhooks/authvital"
HOOKED = "member.*"
"""The types whose effects are counted; the others go the way of events without hooks."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass
class Fate:
    """Where the process ends, or stands still.

    Args:
        step: Value of the step, or None for nowhere.
        hit: At which of its hits.
        signal: SIGKILL, or SIGSTOP.
        folder: Gets an empty file for each step that was reached, and `struck` when it struck.
    """

    step: str | None
    hit: int
    signal: int
    folder: Path

    def install(self) -> None:
        """Listen to the steps."""
        lock = threading.Lock()
        hits: Counter[str] = Counter()

        def hear(event: str, arguments: tuple[object, ...]) -> None:
            if event != AUDIT_EVENT:
                return
            step = str(arguments[0])
            with lock:
                hits[step] += 1
                hit = hits[step]
            if hit == 1:
                _touch(self.folder / f"step-{step}")
            if step == self.step and hit == self.hit:
                _touch(self.folder / "struck")
                os.kill(os.getpid(), self.signal)

        sys.addaudithook(hear)


class _Announcing(uvicorn.Server):
    """A server that makes a file when it is ready."""

    ready: Path

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell."""
        await super().startup(sockets)
        _touch(self.ready)


def application(config: str) -> tuple[TenantSync, Starlette]:
    """Return what the configuration describes, with a hook that leaves one row per call."""
    sync = TenantSync.from_toml(config)
    folder = Path(config).parent

    @sync.on(HOOKED)
    def count(event, session):
        # No constraint keeps it from being counted twice: the tests look for that.
        session.execute(text("INSERT INTO chaos_effects (event_id) VALUES (:id)"), {"id": event.id})
        if (folder / f"hooks-fail-{event.tenant_id}").exists():
            raise RuntimeError("the test wants this hook to fail")

    return sync, Starlette(routes=sync.routes(PATH), lifespan=sync.lifespan)


def serve(order: dict[str, Any]) -> None:
    """Serve on a port until SIGTERM."""
    folder = Path(str(order["folder"]))
    _, app = application(str(order["config"]))
    listener = socket.create_server(("127.0.0.1", int(str(order["port"]))), backlog=256)
    options = {
        "log_config": None,
        "access_log": False,
        "lifespan": "on",
        "http": BoundedHttpProtocol,
    }
    server = _Announcing(uvicorn.Config(app, timeout_graceful_shutdown=20, **options))
    server.ready = folder / "ready"
    server.run(sockets=[listener])


def work(order: dict[str, Any]) -> None:
    """Drain the inbox until SIGTERM, as a process beside the servers."""
    folder = Path(str(order["folder"]))
    sync, _ = application(str(order["config"]))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with sync:
        worker = sync.worker()
        _touch(folder / "ready")
        # On one thread: SIGSTOP must not catch another one that holds a lock of SQLite.
        while not stop.wait(0.05):
            worker.drain_due()


def prune(order: dict[str, Any]) -> None:
    """Prune once."""
    sync, _ = application(str(order["config"]))
    with sync:
        sync.worker()._pruner.run()


def main() -> None:
    """Obey until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    _die_with_parent()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            status = os.waitpid(order["wait"], 0)[1]
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer and "execute" in order:
                _become(order)
            elif not answer:
                _be_born(order)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _be_born(order: dict[str, Any]) -> None:
    """Become the child."""
    code = 1
    try:
        _die_with_parent()
        folder = Path(str(order["folder"]))
        with (folder / "log").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
        faulthandler.register(signal.SIGUSR1)  # for whoever wonders what it waits for
        step, hit, what = order.get("fate") or (None, 0, signal.SIGKILL)
        Fate(step, hit, what, folder).install()
        {"serve": serve, "work": work, "prune": prune}[str(order["start"])](order)
        code = 0
    except BaseException:
        logging.getLogger("chaos").exception("the child failed")
        raise
    finally:
        os._exit(code)


def _become(order: dict[str, Any]) -> None:
    """Become another program, under another account where one is named."""
    try:
        log = os.open(str(order["log"]), os.O_WRONLY | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.setsid()
        if order["account"]:
            user, group = order["account"]
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            os.chdir("/")
        _die_with_parent()  # a change of account forgets it
        command = list(map(str, order["execute"]))
        os.execv(command[0], command)  # noqa: S606 - no shell is what is wanted
    finally:
        os._exit(1)


def _touch(file: Path) -> None:
    os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    main()
