"""What it costs to claim a lane and to give it back, however much waits in it or beside it."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from workload import Named, tenant_id

from tenantsync.control.database import ControlDatabase
from tenantsync.control.inbox import Arrival, Inbox
from tenantsync.migrate.control import upgrade_control

_ONE, _MANY = tenant_id(0), tenant_id(1)
_AT_ONCE = 500
_BLOCK = 50
_FAR = 86_400.0


def park(inbox: Inbox, tenant: str, events: Sequence[Named]) -> None:
    """Park events of one tenant, as its open breaker would have."""
    arrivals = [
        Arrival(
            tenant_id=tenant,
            event_id=event_id,
            type=kind,
            subject=None,
            timestamp=number,
            body=body,
            signed_at=None,
            door="direct",
            reason="unavailable",
        )
        for number, (event_id, kind, body) in enumerate(events)
    ]
    for start in range(0, len(arrivals), _AT_ONCE):
        inbox.park(arrivals[start : start + _AT_ONCE])


def measure_claims(
    folder: Path,
    make_database: Callable[[str], str],
    events: Sequence[Named],
    times: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure claims on SQLite and PostgreSQL in turns, print a table of Markdown, return it.

    Args:
        folder: For the SQLite files.
        make_database: Makes a PostgreSQL database of that name and returns its URL.
        events: What waits, where much does.
        times: How often each is measured.
        say: Prints a line.
    """
    measured: list[dict[str, Any]] = []
    say("\nA claim: Inbox.claim and Inbox.release, a commit each\n")
    say("| Control database | Waiting | claim and release, median ms | p99 ms |"
        " claim alone, median ms | p99 ms |")  # fmt: skip
    say("|---|---|---|---|---|---|")
    for kind in ("sqlite", "postgresql"):
        with ExitStack() as stack:
            inboxes = {}
            for index, name in enumerate(_situations(len(events))):
                url = f"sqlite:///{folder}/claims_{index}.db"
                if kind == "postgresql":
                    url = make_database(f"claims_{index}")
                database = stack.enter_context(ControlDatabase(url))
                upgrade_control(database)
                inboxes[name] = Inbox(database)
                _fill(inboxes[name], index, events)
            for name, samples in _claimed(inboxes, times).items():
                row = {"control": kind, "waiting": name} | _row(samples)
                measured.append(row)
                numbers = [f"{value:.2f}" for value in _row(samples).values()]
                say(f"| {kind} | {name} | {' | '.join(numbers)} |")
    return measured


def _situations(many: int) -> list[str]:
    return ["one event, in its lane", f"{many:,} in the lane", f"{many:,} in another's lane"]


def _fill(inbox: Inbox, index: int, events: Sequence[Named]) -> None:
    if index > 0:
        park(inbox, _MANY, events)
    if index == 2:
        # Its tenant is bad: the lane is given back, to be tried again after a while.
        lane = inbox.claim("benchmark")
        assert lane is not None, "a lane with events is due"
        inbox.release(lane, retry_in=_FAR, error="the tenant is down")
    if index != 1:
        park(inbox, _ONE, events[:1])


def _claimed(inboxes: dict[str, Inbox], times: int) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of each claim and of each claim with its release, in turns."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in inboxes}
    for block in range(-1, -(-times // _BLOCK)):
        for name, inbox in inboxes.items():
            found = [_once(inbox) for _ in range(_BLOCK)]
            if block >= 0:  # the first ones only warm up
                samples[name] += found
    return samples


def _once(inbox: Inbox) -> tuple[float, float]:
    started = time.perf_counter()
    lane = inbox.claim("benchmark")
    claimed = time.perf_counter()
    assert lane is not None, "the lane is due"
    inbox.release(lane)
    return claimed - started, time.perf_counter() - started


def _row(samples: list[tuple[float, float]]) -> dict[str, float]:
    alone, both = (sorted(each) for each in zip(*samples, strict=True))
    return {
        "median_ms": statistics.median(both) * 1e3,
        "p99_ms": both[len(both) * 99 // 100] * 1e3,
        "claim_median_ms": statistics.median(alone) * 1e3,
        "claim_p99_ms": alone[len(alone) * 99 // 100] * 1e3,
    }
