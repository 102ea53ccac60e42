"""The endpoint under measurement, in a process of its own: `endpoint.py CONFIG verify|apply`.

Writes its port as a line, serves until SIGTERM. With BENCHMARK_PROFILE set it also writes there
what cProfile saw, one file per thread.
"""

import cProfile
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from workload import APPLICATION, PATH

from tenantsync import TenantSync
from tenantsync.authvital.signatures import Verifier
from tenantsync.events import Event
from tenantsync.observe import Outcome
from tenantsync.web.webhook import WebhookRouter


class AnswersAtOnce:
    """In the handler's place: takes every event for applied."""

    async def handle(self, event: Event, **_: object) -> Outcome:
        """Say so."""
        return Outcome.APPLIED

    def handle_blocking(self, event: Event, **_: object) -> Outcome:
        """Say so, to a caller without an event loop."""
        return Outcome.APPLIED

    def observe(self, delivery: object) -> None:
        """Tell nobody."""


def application(config: str, *, verify_only: bool) -> Starlette:
    """Return the application that `tenantsync serve` would run, or the same without the work."""
    sync = TenantSync.from_toml(config)
    routes = sync.routes(PATH)
    if verify_only:
        settings = sync.settings.authvital
        routes = [
            Route(
                PATH,
                WebhookRouter(
                    AnswersAtOnce(),  # type: ignore[arg-type] # as much of a handler as is called
                    application_id=APPLICATION,
                    verifier=Verifier(sync.keys, max_age=settings.max_age),
                ),
            )
        ]
    return Starlette(routes=routes, lifespan=sync.lifespan)


def main() -> None:
    """Serve."""
    config, kind = sys.argv[1:]
    app = application(config, verify_only=kind == "verify")
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            log_level="warning",
            access_log=False,
            lifespan="on",
        )
    )
    folder = os.environ.get("BENCHMARK_PROFILE")
    if folder:
        _profiled(server, listener, Path(folder))
    else:
        server.run(sockets=[listener])


def _profiled(server: uvicorn.Server, listener: socket.socket, folder: Path) -> None:
    profiles: dict[str, cProfile.Profile] = {}

    def begin(*_: object) -> None:
        # Called by the first event in each new thread, in that thread.
        profile = profiles[threading.current_thread().name] = cProfile.Profile()
        profile.enable()

    threading.setprofile(begin)
    # uvicorn raises the signal that ended it once more, which would end us before we write.
    signal.signal(signal.SIGTERM, lambda *_: None)
    loop = profiles["event loop"] = cProfile.Profile()
    loop.runcall(server.run, sockets=[listener])
    for name, profile in profiles.items():
        profile.create_stats()
        profile.dump_stats(folder / f"{name}.prof")


if __name__ == "__main__":
    main()
