"""The README's quick start does what it prints."""

import re
import shlex
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

README = Path(__file__).parents[2] / "README.md"
COMMAND = str(Path(sys.executable).with_name("tenantsync"))
READY = {"emulate": "emulator at", "serve": "Uvicorn running"}


def quick_start(language: str) -> str:
    """Return the first block of a language under the heading "Quick start"."""
    section = README.read_text().partition("## Quick start")[2]
    match = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert match is not None
    return match[1]


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def in_background(words: list[str], folder: Path) -> Iterator[None]:
    """Run a command until the block ends; enter the block once it says that it is ready."""
    process = subprocess.Popen(
        [COMMAND, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        said = ""
        while READY[words[0]] not in said:
            line = process.stdout.readline()
            assert line, f"{words} ended early and said: {said}"
            said += line
        yield
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_the_quick_start_runs_as_printed(tmp_path: Path) -> None:
    """Each command does what the README says, down to the row at the end."""
    emulator, server = free_port(), free_port()
    added = {
        "emulate": f" --port {emulator} --target http://127.0.0.1:{server}/webhooks/authvital",
        "serve": f" --port {server}",
    }
    lines = quick_start("console").splitlines()
    printed: list[str] = []
    with ExitStack() as running:
        for line in lines:
            if not line.startswith("$ "):
                assert printed.pop(0) == line
                continue
            command = line[2:].partition("#")[0].strip()
            words = shlex.split(command.removesuffix("&"))
            if words[0] == "pip":
                continue
            if words[0] == "sqlite3":
                rows = sqlite3.connect(tmp_path / words[1]).execute(words[2])
                printed = ["|".join(row) for row in rows]
            elif command.endswith("&"):
                words += shlex.split(added[words[1]])
                running.enter_context(in_background(words[1:], tmp_path))
            else:
                subprocess.run([COMMAND, *words[1:]], cwd=tmp_path, check=True)
                if words[1] == "init":
                    # The one thing that the README cannot know: which ports are free here.
                    config = tmp_path / "tenantsync.toml"
                    config.write_text(config.read_text().replace(":9400", f":{emulator}"))

    assert printed == []


def test_the_application_of_the_quick_start_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed module is a whole application, with the endpoint in it."""
    monkeypatch.chdir(tmp_path)
    subprocess.run([COMMAND, "init"], check=True)
    module: dict[str, object] = {}
    exec(quick_start("python"), module)  # noqa: S102 - the README is ours
    app = module["app"]
    assert isinstance(app, Starlette)

    with TestClient(app) as client:
        answer = client.post("/webhooks/authvital", json={})

    assert answer.status_code == 401
