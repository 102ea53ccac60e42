"""How many events a second the endpoint takes, beside what the bare driver does with the same SQL.

Not a test: it asserts nothing about time. README.md here says what is measured, and how.
"""

import argparse
import contextlib
import json
import os
import pickle
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from places import make
from processes import Program, cpu_by_thread, cpu_of_family
from profiles import profile
from workload import Requests

from tenantsync.testing.keys import Keys
from tenantsync.testing.server import Response, Server

sys.path.insert(0, str(Path(__file__).parents[1]))
import postgres

_SETTINGS = {"synchronous_commit": "on", "shared_buffers": "256MB", "max_connections": "100"}
_APPLY, _VERIFY = "tenantsync", "verify and answer only"
_RECORDED = 4000
_FIRST_GUESS = 3000.0  # events a second, for how many to sign ahead

Sample = dict[str, Any]


class Scenario:
    """One database and one number of tenants: its processes, and how each contender is measured.

    Args:
        config: The configuration of both endpoints.
        requests: What is sent.
        arguments: The command line.
        postmaster: Process id of the server, or None for SQLite.
        folder: For the requests that are handed to the senders.
        stack: Ends the processes.
    """

    def __init__(
        self,
        config: Path,
        requests: Requests,
        arguments: argparse.Namespace,
        postmaster: int | None,
        folder: Path,
        stack: ExitStack,
    ) -> None:
        self.config = config
        self._requests = requests
        self._senders = arguments.senders
        self._postmaster = postmaster
        self._file = folder / "requests.pickle"
        self._sent = 0
        self._rate = _FIRST_GUESS
        self.reference = stack.enter_context(
            Program("reference", config, _RECORDED, arguments.max_engines)
        )
        self.recorded = self.reference.read()
        self.endpoint = stack.enter_context(Program("endpoint", config, "apply"))
        self._verifier = stack.enter_context(Program("endpoint", config, "verify"))
        self._sender = stack.enter_context(Program("sender"))
        self._ports = {each: each.read() for each in (self.endpoint, self._verifier)}
        self.answers: Counter[str] = Counter()

    def contenders(self) -> dict[str, Callable[[float], Sample]]:
        """Return everything that is measured, by name, in the order of a round."""
        ways = ("plain", "pipelined") if self._postmaster is not None else ("plain",)
        return {
            _APPLY: self.apply,
            _VERIFY: self.verify,
            **{
                reference_name(way, connections): self._replay(way, connections)
                for way in ways
                for connections in (1, self._senders)
            },
        }

    def apply(
        self, seconds: float, endpoint: Program | None = None, port: int | None = None
    ) -> Sample:
        """Measure the endpoint."""
        server = endpoint or self.endpoint
        wanted = int(self._rate * seconds * 1.5) + self._senders
        batch = self._requests.first(self._sent + wanted)[self._sent :]
        self._file.write_bytes(pickle.dumps(batch))
        sample = self._http(server, port or self._ports[server], seconds, cycle=False)
        self._sent += sample["events"]
        self._rate = sample["events"] / sample["seconds"]
        self.answers.update(sample["answers"])
        return sample

    def verify(self, seconds: float) -> Sample:
        """Measure the endpoint that does nothing with what it verified."""
        self._file.write_bytes(pickle.dumps(self._requests.first(2000)))
        return self._http(self._verifier, self._ports[self._verifier], seconds, cycle=True)

    def _http(self, server: Program, port: int, seconds: float, *, cycle: bool) -> Sample:
        before, database = cpu_by_thread(server.pid), self._database_cpu()
        sample: Sample = self._sender.ask(
            port=port,
            requests=str(self._file),
            senders=self._senders,
            seconds=seconds,
            cycle=cycle,
        )
        after = cpu_by_thread(server.pid)
        sample["sender_cpu"] = sample.pop("cpu")
        sample["loop_cpu"], sample["writer_cpu"] = after[0] - before[0], after[1] - before[1]
        sample["database_cpu"] = self._database_cpu() - database
        return sample

    def _replay(self, way: str, connections: int) -> Callable[[float], Sample]:
        def measure(seconds: float) -> Sample:
            database = self._database_cpu()
            sample: Sample = self.reference.ask(way=way, connections=connections, seconds=seconds)
            sample["client_cpu"] = sample.pop("cpu")
            sample["database_cpu"] = self._database_cpu() - database
            return sample

        return measure

    def _database_cpu(self) -> float:
        return 0.0 if self._postmaster is None else cpu_of_family(self._postmaster)


def reference_name(way: str, connections: int) -> str:
    """Return what a reference is called in the report."""
    return f"bare driver, {way} x{connections}"


def measure(
    scenario: Scenario, rounds: int, seconds: float, warm_up: float
) -> dict[str, list[Sample]]:
    """Measure all contenders in turns, so that whatever else the machine does meets all of them."""
    contenders = scenario.contenders()
    for contender in contenders.values():
        contender(warm_up)
    scenario.answers.clear()
    samples: dict[str, list[Sample]] = {name: [] for name in contenders}
    for number in range(rounds):
        # Every other round the other way round: who comes first is not always the same one.
        names = list(contenders) if number % 2 == 0 else list(reversed(contenders))
        for name in names:
            samples[name].append(contenders[name](seconds / rounds))
    return samples


def report(samples: dict[str, list[Sample]]) -> dict[str, Any]:
    """Return the medians over the rounds, and the ratios that count."""
    rows = {name: _row(rounds) for name, rounds in samples.items()}
    references = [name for name in samples if name not in (_APPLY, _VERIFY)]
    ratios = {}
    for kind, among in (
        ("plain", [name for name in references if "plain" in name]),
        ("any", references),
    ):
        best = max(among, key=lambda name: rows[name]["rate"])
        paired = [
            _rate(ours) / _rate(theirs)
            for ours, theirs in zip(samples[_APPLY], samples[best], strict=True)
        ]
        ratios[kind] = {
            "over": best,
            "median": statistics.median(paired),
            "least": min(paired),
            "most": max(paired),
        }
    return {"rows": rows, "ratios": ratios}


def _rate(sample: Sample) -> float:
    return float(sample["events"] / sample["seconds"])


def _row(rounds: list[Sample]) -> dict[str, float]:
    rates = [_rate(sample) for sample in rounds]
    row = {
        "rate": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "p50_ms": statistics.median(sample["p50"] for sample in rounds) * 1e3,
        "p99_ms": statistics.median(sample["p99"] for sample in rounds) * 1e3,
    }
    events = sum(sample["events"] for sample in rounds)
    for name in ("loop_cpu", "writer_cpu", "client_cpu", "database_cpu", "sender_cpu"):
        if name in rounds[0]:
            row[f"{name}_us"] = sum(sample[name] for sample in rounds) / events * 1e6
    return row


def show(title: str, scenario: Scenario, result: dict[str, Any]) -> None:
    """Print one scenario for people."""
    say(f"\n{title}")
    say(f"  {'':<28}{'events/s':>9} {'(rounds)':>15}{'p50 ms':>9}{'p99 ms':>9}   CPU us an event")
    for name, row in result["rows"].items():
        spread = f"({row['least']:.0f}-{row['most']:.0f})"
        cpu = ", ".join(
            f"{key.removesuffix('_cpu_us')} {value:.0f}"
            for key, value in row.items()
            if key.endswith("_cpu_us") and value
        )
        say(
            f"  {name:<28}{row['rate']:>9.0f} {spread:>15}{row['p50_ms']:>9.2f}"
            f"{row['p99_ms']:>9.2f}   {cpu}"
        )
    for ratio in {ratio["over"]: ratio for ratio in result["ratios"].values()}.values():
        say(
            f"  {_APPLY} is {ratio['median']:.2f}x ({ratio['least']:.2f}-{ratio['most']:.2f}) "
            f"of: {ratio['over']}"
        )
    say(f"  answers: {dict(scenario.answers)}")


def say(text: str) -> None:
    """Print at once: a run takes minutes."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that was asked for, and return the report."""
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="ts-", dir=arguments.folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)  # the server runs as another user where we are root
        keys = Keys()
        pem = keys.active.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        jwks = Server(lambda request: Response(200, json.dumps(keys.jwks()).encode()))
        stack.callback(jwks.close)
        pool = stack.enter_context(ProcessPoolExecutor(os.cpu_count(), get_context("spawn")))
        server = None
        if "postgresql" in arguments.database:
            server = postgres.start(folder / "pg", fsync=True, settings=_SETTINGS)
            stack.callback(server.stop)
        say(_about(arguments, folder, server))
        for tenants in arguments.tenants:
            requests = Requests(tenants, keys.active, pem, pool, time.time())
            for database in arguments.database:
                title = f"{database}, {tenants} tenant{'s' * (tenants > 1)}"
                with (
                    ExitStack() as inner,
                    _places(
                        folder, database, tenants, jwks.url, server, arguments.max_engines
                    ) as config,
                ):
                    scenario = Scenario(
                        config,
                        requests,
                        arguments,
                        server.process.pid if server and database == "postgresql" else None,
                        folder,
                        inner,
                    )
                    if arguments.profile:
                        say(f"\n{title}")
                        profile(scenario, arguments.seconds, 1 + tenants / 200)
                        continue
                    # A connection that meets a schema for the first time reads its catalogue.
                    warm_up = 1 + tenants / 200
                    samples = measure(scenario, arguments.rounds, arguments.seconds, warm_up)
                    results[title] = report(samples) | {"answers": dict(scenario.answers)}
                    show(title, scenario, results[title])
    return results


@contextlib.contextmanager
def _places(
    folder: Path,
    database: str,
    tenants: int,
    host: str,
    server: postgres.Server | None,
    max_engines: int,
) -> Iterator[Path]:
    """Make the places of a scenario, and take their files away afterwards."""
    own, url = folder / f"{database}-{tenants}", None
    if server and database == "postgresql":
        name = f"bench_{tenants}"
        with server.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}")
        url = server.url(name)
    started = time.perf_counter()
    config = make(own, tenants, host=host, url=url, max_engines=max_engines)
    say(f"\nmade {tenants} places in {time.perf_counter() - started:.1f} s")
    yield config
    shutil.rmtree(own)


def _about(arguments: argparse.Namespace, folder: Path, server: postgres.Server | None) -> str:
    same = Path(__file__).stat().st_dev == folder.stat().st_dev
    disk = "the disk" if same else "ANOTHER file system than that"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    each = f"{arguments.seconds:g} s in {arguments.rounds} rounds for each contender"
    files = f"at most {arguments.max_engines} SQLite files open"
    lines = [
        f"{arguments.senders} senders, {each}; {os.cpu_count()} cores, load {load}",
        f"data in {folder.parent}, on {disk} of this file; {files}",
    ]
    if server:
        with server.connect() as connection:
            shown = [
                f"{name}={connection.execute(f'SHOW {name}').fetchone()[0]}"
                for name in ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
            ]
        lines.append(f"PostgreSQL {server.version}: {', '.join(shown)}")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--senders", type=int, default=32, help="connections kept busy")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each contender, in all")
    parser.add_argument("--rounds", type=int, default=5, help="that these seconds are split into")
    parser.add_argument("--tenants", type=numbers, default=[1, 1000], help="such as 1,1000")
    parser.add_argument(
        "--database", type=lambda text: text.split(","), default=["postgresql", "sqlite"]
    )
    parser.add_argument("--max-engines", type=int, default=64, help="SQLite files open at once")
    parser.add_argument("--folder", help="for the data; by default $TMPDIR or /tmp")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, too")
    parser.add_argument("--profile", action="store_true", help="show where the time goes, instead")
    arguments = parser.parse_args()
    results = run(arguments)
    if arguments.json:
        say(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
