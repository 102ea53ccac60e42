"""What machines ask a server: does it live, can it serve, and what did it count.

The answers hold names of checks and of errors, and no text of an error: whoever can reach the
server may ask.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

__all__ = ["Check", "Readiness", "ops_routes"]

_LOG: Final = logging.getLogger("tenantsync")
_OK: Final = "ok"
_SLOW: Final = "timeout"
_UNCACHED: Final = {"Cache-Control": "no-store"}  # an old answer of a proxy is a wrong one
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Check:
    """Something without which no delivery can be taken.

    Args:
        probe: Blocking; returns where all is well, and raises where it is not.
        fresh_for: Seconds after a good answer in which it is not asked again.
        lasts: Seconds that a good answer serves through an outage, as keys and the list of
            tenants do. The trouble is shown meanwhile, but the server stays ready.
    """

    probe: Callable[[], object]
    fresh_for: float = 0.0
    lasts: float = 0.0


@dataclass(frozen=True, slots=True)
class _Report:
    at: float
    ready: bool
    checks: Mapping[str, str]


class Readiness:
    """Runs the checks, at most once a second however many ask, and never waits long for one.

    A check that hangs is not begun again: it costs one thread, and no answer is held up by it.

    Args:
        checks: The checks by name; names are shown to whoever asks.
        timeout: Seconds after which the answer is given, whatever is not known by then.
        cached_for: Seconds that an answer is given again.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        timeout: float = 2.0,
        cached_for: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._checks = dict(checks)
        self._timeout = timeout
        self._cached_for = cached_for
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, Future[str]] = {}
        self._well_at: dict[str, float] = {}
        self._report: _Report | None = None

    async def look(self) -> tuple[bool, Mapping[str, str]]:
        """Return whether deliveries can be taken, and `"ok"` or the trouble by name of check."""
        report = self._report
        if report is None or self._clock() - report.at >= self._cached_for:
            report = self._note(await self._ask())
        return report.ready, report.checks

    async def _ask(self) -> Mapping[str, str]:
        running = {
            name: self._begun(name, check)
            for name, check in self._checks.items()
            if not self._was_well(name, check.fresh_for)
        }
        waiting = [asyncio.wrap_future(future) for future in running.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=self._timeout)
        return {name: _OK if name not in running else _said(running[name]) for name in self._checks}

    def _begun(self, name: str, check: Check) -> Future[str]:
        """Return the run of a check that is under way, or begin one."""
        with self._lock:
            if name in self._running:
                return self._running[name]
            future: Future[str] = Future()
            thread = threading.Thread(
                target=self._probe, args=(name, check, future), name="tenantsync-check", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # no thread to be had
                future.set_result(type(error).__name__)
            else:
                # The thread needs the lock to say that it is done, so it says it after this.
                self._running[name] = future
            return future

    def _probe(self, name: str, check: Check, future: Future[str]) -> None:
        said = _OK
        try:
            check.probe()
        except BaseException as error:  # nobody may wait for a thread that is gone
            # The class alone: the text may hold a host, a path or worse.
            said = type(error).__name__
        with self._lock:
            del self._running[name]
            if said == _OK:
                self._well_at[name] = self._clock()
        future.set_result(said)

    def _was_well(self, name: str, within: float) -> bool:
        well_at = self._well_at.get(name)
        return well_at is not None and self._clock() - well_at < within

    def _note(self, checks: Mapping[str, str]) -> _Report:
        ready = all(
            said == _OK or self._was_well(name, self._checks[name].lasts)
            for name, said in checks.items()
        )
        before, self._report = self._report, _Report(self._clock(), ready, checks)
        if before is None or before.ready != ready:
            _LOG.log(
                logging.INFO if ready else logging.WARNING,
                "tenantsync.ready" if ready else "tenantsync.not_ready",
                extra={"checks": dict(checks)},
            )
        return self._report


def _said(future: Future[str]) -> str:
    return future.result() if future.done() else _SLOW


def ops_routes(
    readiness: Readiness,
    *,
    metrics: Callable[[], bytes] | None = None,
) -> list[Route]:
    """Return the routes `/healthz`, `/readyz` and `/metrics`, at exactly these paths.

    Args:
        readiness: What has to be well before deliveries are sent here.
        metrics: Returns Prometheus' text, blocking, as `PrometheusObserver.render` does; None
            where the extra `metrics` is not installed, and `/metrics` says so.
    """

    async def alive(_request: Request) -> Response:
        # Asks nothing: to restart a process because its database is down makes two troubles of one.
        return JSONResponse({"status": "alive"}, headers=_UNCACHED)

    async def ready(_request: Request) -> Response:
        well, checks = await readiness.look()
        body = {"status": "ready" if well else "unavailable", "checks": dict(checks)}
        return JSONResponse(body, 200 if well else 503, headers=_UNCACHED)

    async def counted(_request: Request) -> Response:
        if metrics is None:
            return JSONResponse(
                {
                    "error": "not implemented",
                    "reason": 'metrics are not installed: pip install "tenantsync[metrics]"',
                },
                501,
            )
        text = await asyncio.to_thread(metrics)
        return Response(text, media_type=_METRICS_TYPE, headers=_UNCACHED)

    endpoints: Mapping[str, Callable[[Request], Awaitable[Response]]] = {
        "healthz": alive,
        "readyz": ready,
        "metrics": counted,
    }
    return [
        route
        for name, endpoint in endpoints.items()
        for route in (
            Route(f"/{name}", endpoint, methods=["GET"]),
            # Where nothing is, frameworks redirect; a plain 404 shows the mistake.
            Route(f"/{name}/", _not_found),
        )
    ]


async def _not_found(_request: Request) -> Response:
    return JSONResponse({"error": "not found", "reason": "the path is exact"}, 404)
