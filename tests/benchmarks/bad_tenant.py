"""What one bad tenant of a hundred costs the other 99, what a claim costs, and how fast it drains.

Not a test: it asserts nothing about time. README.md here says what is measured, and how.
"""

import argparse
import json
import os
import pickle
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from claims import measure_claims, park
from faults import FAULTS, GATED, Gate, Place, trouble
from processes import Program
from sqlalchemy import func, select
from town import BAD, OTHERS, PEOPLE, Town, bad_lives

from tenantsync import TenantSync
from tenantsync.control.tables import lanes
from tenantsync.migrate import upgrade

_PLACES = {"schema": "a schema beside the others", "database": "a database of its own"}
_AT_ONCE = 0.25  # seconds; only an open breaker answers an event of a bad tenant so soon
_LEAD = 3.0  # seconds of the same load before each measurement, at least
_PATIENCE = 600.0


class Phase(NamedTuple):
    """One measurement: latencies of the others in seconds, and all answers by label."""

    p50: float
    p99: float
    answers: dict[str, Counter[str]]
    late: float


class Drained(NamedTuple):
    """One drain: seconds until it began, seconds that it took, how many events; what is left."""

    began: float
    seconds: float
    events: int
    left: int


class Scenario:
    """One fault at one kind of place: a server process, 99 tenants, and the one that goes bad.

    Args:
        town: What all scenarios share.
        fault: A key of FAULTS.
        kind: A key of _PLACES.
        stack: Ends what is begun here.
    """

    def __init__(self, town: Town, fault: str, kind: str, stack: ExitStack) -> None:
        self._town = town
        self._arguments = town.arguments
        self._fault = fault
        key = f"bad_{town.number()}"
        database = "tenants"
        url = town.postgres.url(database)
        if kind == "database":
            database, url = key, town.database(key)
        self._gate: Gate | None = None
        if fault in GATED:
            port = town.postgres.port
            self._gate = stack.enter_context(Gate(port))
            url = url.replace(f":{port}/", f":{self._gate.port}/")
        self._place = Place(town.postgres.connect, database, f"tenant_{key}")
        self._control = None
        if self._arguments.control == "postgresql":
            self._control = f"control_{key}"
            town.database(self._control)
        config = self._configure(key, url if kind == "database" or self._gate else None)
        sync = stack.enter_context(TenantSync.from_toml(config))
        bad = [tenant for tenant in sync.tenants if tenant.id == BAD]
        upgrade(bad, isolation=sync.isolation).check()
        self._inbox, self._books = sync.inbox, sync.control
        self._port = stack.enter_context(
            Program("served", config, config.with_suffix(".log"))
        ).read()
        self._sender = stack.enter_context(Program("paced"))
        self._lives = bad_lives()
        # A connection that meets a schema for the first time reads its catalogue.
        joined = [("bad", request) for request in town.signed(list(islice(self._lives, PEOPLE)))]
        self._sent(joined, 100.0)
        self.measure(2 * max(_LEAD, self._arguments.seconds / 5), seed=0)

    def _configure(self, key: str, url: str | None) -> Path:
        config = self._town.folder / f"{key}.toml"
        control = f"sqlite:///{self._town.folder}/{key}.control.db"
        if self._control is not None:
            control = self._town.postgres.url(self._control)
        own = "" if url is None else f'url = "{url}"\n'
        config.write_text(
            f'{self._town.config.read_text()}\n[control]\nurl = "{control}"\n\n'
            f'[tenants.{key}]\nid = "{BAD}"\n{own}'
        )
        return config

    def healthy(self, seed: int) -> Phase:
        """Measure while nothing is the matter with anybody."""
        self._rest()
        return self.measure(self._arguments.seconds, seed)

    def bad(self, seed: int) -> tuple[Phase, Drained]:
        """Measure while one tenant is bad and much waits; repair it, and measure the drain."""
        with trouble(self._fault, self._place, self._gate):
            self._open_breaker()
            waiting = list(islice(self._lives, self._arguments.waiting))
            park(self._inbox, BAD, waiting)
            self._rest()
            phase = self.measure(self._arguments.seconds, seed)
        drained = self._drain()
        self._place.vacuum()
        return phase, drained

    def measure(self, seconds: float, seed: int) -> Phase:
        """Send to the others at the rate that was asked for, and to the bad one its share."""
        wanted = round(self._arguments.rate * seconds)
        others = self._town.signed(self._town.of_others(wanted, seed))
        bad = self._town.signed(list(islice(self._lives, wanted // OTHERS)))
        mixed: list[tuple[str, bytes]] = []
        for start in range(0, wanted, OTHERS):
            mixed += [("others", request) for request in others[start : start + OTHERS]]
            mixed += [("bad", request) for request in bad[start // OTHERS : start // OTHERS + 1]]
        sample = self._sent(mixed, self._arguments.rate * (OTHERS + 1) / OTHERS)
        latencies = sorted(sample["latencies"]["others"])
        answers = {label: Counter(each) for label, each in sample["answers"].items()}
        return Phase(
            latencies[len(latencies) // 2],
            latencies[len(latencies) * 99 // 100],
            answers,
            sample["late"],
        )

    def _sent(self, requests: list[tuple[str, bytes]], rate: float) -> Any:
        file = self._town.folder / "requests.pickle"
        file.write_bytes(pickle.dumps(requests))
        return self._sender.ask(port=self._port, requests=str(file), rate=rate)

    def _open_breaker(self) -> None:
        """Send events of the bad tenant until they are parked without its being asked."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            requests = self._town.signed(list(islice(self._lives, 10)))
            sample = self._sent([("bad", request) for request in requests], 5.0)
            # One may be the probe, which is slow.
            quick = sum(latency < _AT_ONCE for latency in sample["latencies"]["bad"])
            if quick >= 9 and sum(sample["answers"]["bad"].values()) == _parked(sample):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the breaker does not open: {sample['answers']}")

    def _rest(self) -> None:
        """Do now what the server would do at a moment of its own, in one of the measurements."""
        if self._control is not None:
            with self._town.postgres.connect(self._control) as connection:
                connection.execute("VACUUM (ANALYZE)")
        with self._town.postgres.connect() as connection:
            connection.execute("CHECKPOINT")
        # After a checkpoint each page that is written first costs more; and nobody starts cold.
        self.measure(max(_LEAD, self._arguments.seconds / 5), seed=0)

    def _drain(self) -> Drained:
        """Wake the lane of the tenant that was repaired, and wait until nothing is left in it."""
        repaired = time.perf_counter()
        full = left = self._waiting()
        self._inbox.wake([BAD])
        began = repaired
        while left and time.perf_counter() < repaired + _PATIENCE:
            if left == full:
                began = time.perf_counter()
            time.sleep(0.1)
            left = self._waiting()
        quarantined = self._inbox.totals().quarantined
        if quarantined:
            raise RuntimeError(f"{quarantined} events were given up; see `inbox list`")
        return Drained(began - repaired, time.perf_counter() - began, full - left, left)

    def _waiting(self) -> int:
        with self._books.read() as connection:
            return int(connection.scalar(select(func.coalesce(func.sum(lanes.c.waiting), 0))) or 0)


def _parked(sample: Any) -> int:
    return sum(n for answer, n in sample["answers"]["bad"].items() if answer.startswith("202"))


def measure_fault(town: Town, fault: str, kind: str) -> dict[str, Any]:
    """Measure all rounds of one scenario, print each, and return what is known of them."""
    say(f"\n{FAULTS[fault]}, {_PLACES[kind]}")
    healthy: list[Phase] = []
    bad: list[Phase] = []
    drained: list[Drained] = []
    with ExitStack() as stack:
        scenario = Scenario(town, fault, kind, stack)
        for number in range(1, town.arguments.rounds + 1):

            def spoilt(seed: int = number) -> None:
                phase, drain = scenario.bad(seed)
                bad.append(phase)
                drained.append(drain)

            turns: list[Callable[[], object]] = [
                lambda seed=number: healthy.append(scenario.healthy(seed)),
                spoilt,
            ]
            # Every other round the other way round: who comes first is not always the same one.
            for turn in turns if number % 2 else reversed(turns):
                turn()
            _show_round(number, healthy[-1], bad[-1], drained[-1])
    return {
        "fault": FAULTS[fault],
        "place": _PLACES[kind],
        "healthy": [[phase.p50 * 1e3, phase.p99 * 1e3] for phase in healthy],
        "bad": [[phase.p50 * 1e3, phase.p99 * 1e3] for phase in bad],
        "drained": [drain.events / max(drain.seconds, 1e-9) for drain in drained],
        "left": sum(drain.left for drain in drained),
        "answers": {
            name: {
                label: sum((phase.answers.get(label, Counter()) for phase in phases), Counter())
                for label in ("others", "bad")
            }
            for name, phases in (("healthy", healthy), ("bad", bad))
        },
    }


def _show_round(number: int, healthy: Phase, bad: Phase, drain: Drained) -> None:
    left = f", {drain.left} LEFT" if drain.left else ""
    late = max(healthy.late, bad.late) * 1e3
    say(
        f"  round {number}: healthy p50 {healthy.p50 * 1e3:.2f} p99 {healthy.p99 * 1e3:.2f} ms, "
        f"bad p50 {bad.p50 * 1e3:.2f} p99 {bad.p99 * 1e3:.2f} ms, "
        f"{bad.p50 / healthy.p50:.2f}x and {bad.p99 / healthy.p99:.2f}x; "
        f"drained {drain.events} in {drain.seconds:.1f} s, {drain.began:.1f} s after it was "
        f"repaired{left}; sender late {late:.1f} ms"
    )


def show(results: list[dict[str, Any]]) -> None:
    """Print what all scenarios came to as a table of Markdown."""
    say("\nThe other 99 tenants; medians of the rounds, ratios with the least and the most:\n")
    say("| Fault | Where | p50 ms, healthy | bad | p99 ms, healthy (rounds) | bad |"
        " p50 ratio (rounds) | p99 ratio (rounds) | drained, events/s |")  # fmt: skip
    say("|---|---|---|---|---|---|---|---|---|")
    for result in results:
        cells, ratios = [result["fault"], result["place"]], []
        for index in (0, 1):
            healthy, bad = ([row[index] for row in result[when]] for when in ("healthy", "bad"))
            # How far the same thing lies apart from round to round says what a ratio is worth.
            cells.append(_spread(healthy) if index else f"{statistics.median(healthy):.2f}")
            cells.append(f"{statistics.median(bad):.2f}")
            ratios.append(_spread([b / a for a, b in zip(healthy, bad, strict=True)]))
        cells += [*ratios, f"{statistics.median(result['drained']):.0f}"]
        say(f"| {' | '.join(cells)} |")
    for result in results:
        say(f"\n{result['fault']}, {result['place']}: answers")
        for when, labels in result["answers"].items():
            for label, answers in labels.items():
                say(f"  {when}, {label}: {dict(answers)}")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def say(text: str) -> None:
    """Print at once: a run takes long."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that was asked for, and return it."""
    results: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ts-", dir=arguments.folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # the server runs as another user where we are root
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        town = Town(folder, arguments, stack)
        say(
            f"{arguments.rate:g} events/s of 99 tenants, {arguments.seconds:g} s a measurement, "
            f"{arguments.rounds} rounds, {arguments.waiting} waiting; {os.cpu_count()} cores, "
            f"load {load}; PostgreSQL {town.postgres.version}, fsync on; "
            f"inbox in {arguments.control}; data in {folder.parent}"
        )
        if arguments.claims:
            waiting = list(islice(bad_lives(), arguments.waiting))
            claims = measure_claims(folder, town.database, waiting, arguments.claims, say)
        for fault in arguments.faults:
            results += [measure_fault(town, fault, kind) for kind in arguments.places]
        if results:
            show(results)
    return {"claims": claims, "faults": results}


def main() -> None:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=_some_of(FAULTS), default=list(FAULTS),
                        help=f"some of {','.join(FAULTS)}, or none")  # fmt: skip
    parser.add_argument("--places", type=_some_of(_PLACES), default=list(_PLACES),
                        help="schema, database or both")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="for each fault at each place")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--rate", type=float, default=200.0, help="events/s of the other 99")
    parser.add_argument("--waiting", type=int, default=50_000, help="events that wait")
    parser.add_argument("--claims", type=int, default=1000, help="of each kind, 0 for none")
    parser.add_argument("--control", choices=("postgresql", "sqlite"), default="postgresql",
                        help="where the server's inbox is")  # fmt: skip
    parser.add_argument("--folder", help="for the data; by default $TMPDIR or /tmp")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, too")
    arguments = parser.parse_args()
    results = run(arguments)
    if arguments.json:
        say(json.dumps(results, indent=2))


def _some_of(known: dict[str, str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        chosen = [] if text == "none" else text.split(",")
        unknown = [name for name in chosen if name not in known]
        if unknown:
            message = f"no {', '.join(unknown)}; there are {', '.join(known)}"
            raise argparse.ArgumentTypeError(message)
        return chosen

    return read


if __name__ == "__main__":
    main()
