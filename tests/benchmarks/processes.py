"""The processes of the benchmark: how they are started, told what to do, and how much they use."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

_HERE = Path(__file__).parent
_TICKS = os.sysconf("SC_CLK_TCK")


class Program:
    """One of the benchmark's own programs, spoken to in lines.

    Args:
        name: Its file, without the ending.
        arguments: Of its command line.
        environment: Further environment variables.
    """

    def __init__(self, name: str, *arguments: object, environment: dict[str, str] | None = None):
        self._process = subprocess.Popen(
            [sys.executable, str(_HERE / f"{name}.py"), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )
        self.name = name
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate()

    def read(self) -> Any:
        """Return the next line, which is JSON."""
        line = self._process.stdout.readline()  # type: ignore[union-attr] # it is a pipe
        if not line:
            raise RuntimeError(f"{self.name} ended: see above for why")
        return json.loads(line)

    def ask(self, **command: object) -> Any:
        """Send a command and return its answer."""
        self._process.stdin.write(json.dumps(command) + "\n")  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self.read()


def cpu_by_thread(pid: int) -> tuple[float, float]:
    """Return the CPU seconds of a process's first thread, and of all its others; Linux only."""
    first = others = 0.0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        used = _cpu(task / "stat")
        if task.name == str(pid):
            first += used
        else:
            others += used
    return first, others


def cpu_of_family(pid: int) -> float:
    """Return the CPU seconds of a process and its children, ended ones too; Linux only."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            total += _cpu(stat)
        elif stat.parent.name == str(pid):
            total += _cpu(stat, ended_children=True)
    return total


def _cpu(stat: Path, *, ended_children: bool = False) -> float:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 : 15 if ended_children else 13])) / _TICKS
