"""Where the endpoint's time goes: py-spy's samples if it is installed, else cProfile's counts."""

import pstats
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from processes import Program

if TYPE_CHECKING:
    from ingest import Scenario

_LINES = 30
_HZ = 250


def profile(scenario: "Scenario", seconds: float, warm_up: float) -> None:
    """Print what the endpoint's threads do while it is kept busy."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    scenario.apply(warm_up)
    with tempfile.TemporaryDirectory() as folder:
        if spy:
            _sampled(scenario, seconds, spy, Path(folder) / "samples")
        else:
            _counted(scenario, seconds, Path(folder))


def _sampled(scenario: "Scenario", seconds: float, spy: str, output: Path) -> None:
    command = [spy, "record", "--pid", str(scenario.endpoint.pid), "--duration", f"{seconds:.0f}"]
    command += ["--rate", str(_HZ), "--format", "raw", "--threads", "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        sample = scenario.apply(seconds + 1)
    _say(f"{sample['events'] / sample['seconds']:.0f} events/s while it was watched")
    own: dict[str, Counter[str]] = defaultdict(Counter)
    under: dict[str, Counter[str]] = defaultdict(Counter)
    for line in output.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        kind = "event loop" if "MainThread" in thread else "writers"
        # A worker that waits for work is no idle thread to py-spy.
        if frames and not frames[-1].startswith("_worker (concurrent/futures/thread.py"):
            own[kind][frames[-1]] += int(count)
            under[kind].update(dict.fromkeys(frames, int(count)))
    for kind, counts in own.items():
        total = sum(counts.values())
        _say(f"\n{kind}: busy in {total / _HZ / seconds:.0%} of the samples")
        for title, chosen in (("in itself", counts), ("with what it calls", under[kind])):
            _say(f"  {title}")
            for frame, count in chosen.most_common(_LINES):
                _say(f"    {count / total:6.1%}  {frame}")


def _counted(scenario: "Scenario", seconds: float, folder: Path) -> None:
    environment = {"BENCHMARK_PROFILE": str(folder)}
    with Program("endpoint", scenario.config, "apply", environment=environment) as endpoint:
        sample = scenario.apply(seconds, endpoint, endpoint.read())
    _say(f"{sample['events'] / sample['seconds']:.0f} events/s while it was counted")
    for file in sorted(folder.glob("*.prof")):
        _say(f"\n{file.stem}")
        pstats.Stats(str(file)).sort_stats("tottime").print_stats(_LINES)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
