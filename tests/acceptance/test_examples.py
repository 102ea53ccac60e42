"""The example projects: their READMEs as printed, their own tests, their models and revisions."""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy import text

from tenantsync.cli import commands
from tenantsync.migrate import upgrade
from tenantsync.migrate.scripts import VERSION_TABLE
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Tenant

EXAMPLES = Path(__file__).parents[2] / "examples"
PROJECTS = {
    "own_tables": "blog",
    "fastapi": "notes",
    "schema_per_tenant": "ledger",
    "single_database": "members",
}
READY = {"tenantsync": "emulator at", "uvicorn": "Uvicorn running"}
ON_POSTGRES = "schema_per_tenant"


@pytest.fixture
def project(request, tmp_path, monkeypatch):
    """A copy of the example that the test names, as the current folder."""
    folder = tmp_path / request.param
    copy(request.param, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    if request.param == ON_POSTGRES:
        url = request.getfixturevalue("postgres").create_database()
        monkeypatch.setenv("DATABASE_URL", url)
    return folder


def copy(name, folder):
    left = shutil.ignore_patterns("__pycache__", "tenants", "*.db")
    shutil.copytree(EXAMPLES / name, folder, ignore=left)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def in_background(words: list[str]) -> Iterator[None]:
    """Run a program until the block ends; enter the block once it says that it is ready."""
    program = str(Path(sys.executable).with_name(words[0]))
    process = subprocess.Popen(
        [program, *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
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


class Terminal:
    """Runs the lines of a README; ports and databases are those that are free here."""

    def __init__(self, environ):
        self.emulator, self.server = free_port(), free_port()
        self.database = environ.get("DATABASE_URL", "").replace("+psycopg", "")
        config = Path("tenantsync.toml")
        written = config.read_text()
        assert ":9400" in written
        config.write_text(written.replace(":9400", f":{self.emulator}"))

    def begin(self, words):
        """Return the command for a line that ends with `&`."""
        if words[0] == "uvicorn":
            return [*words, "--port", str(self.server)]
        target = f"http://127.0.0.1:{self.server}/webhooks/authvital"
        return [*words, "--port", str(self.emulator), "--target", target]

    def run(self, words):
        """Run a command in the foreground and return the lines that it prints."""
        if words[0] in ("createdb", "export"):
            return []  # the fixture did
        if words[0] == "tenantsync":
            done = CliRunner().invoke(commands, words[1:], catch_exceptions=False)
            assert done.exit_code == 0, done.output
            return []
        if words[0] == "sqlite3":
            with contextlib.closing(sqlite3.connect(words[1])) as connection:
                return ["|".join(map(str, row)) for row in connection.execute(words[2])]
        if words[0] == "psql":
            with psycopg.connect(self.database) as connection:
                return ["|".join(map(str, row)) for row in connection.execute(words[3])]
        assert words[:2] == ["curl", "-si"]
        url = "http://" + words[2].replace("localhost:8000", f"127.0.0.1:{self.server}")
        answer = httpx2.get(url, trust_env=False)
        return [f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}"]


@pytest.mark.parametrize("project", PROJECTS, indirect=True)
def test_the_readme_does_what_it_prints(project):
    """Migrate, start a provider and the application, send, and look: as a user would."""
    (block,) = re.findall(r"```console\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    terminal = Terminal(os.environ)
    printed = []
    looked = 0
    with ExitStack() as running:
        for line in block.splitlines():
            if not line.startswith("$ "):
                assert printed.pop(0) == line
                looked += 1
                continue
            assert printed == []
            command = line[2:]
            words = shlex.split(command.removesuffix("&"))
            if command.endswith("&"):
                running.enter_context(in_background(terminal.begin(words)))
            else:
                printed = terminal.run(words)

    assert printed == []
    assert looked >= 1


@pytest.mark.parametrize("project", PROJECTS, indirect=True)
def test_the_projects_own_tests_pass(project, monkeypatch):
    """They need neither a server nor an environment."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    command = [sys.executable, "-m", "pytest", "-p", "pytest_tenantsync", "-W", "error", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)


def test_the_ledgers_tests_pass_on_postgres_too(tmp_path, postgres_server):
    """With the one option that its README names."""
    folder = tmp_path / ON_POSTGRES
    copy(ON_POSTGRES, folder)
    option = f"--tenantsync-database-url={postgres_server.url()}"
    command = [sys.executable, "-m", "pytest", "-p", "pytest_tenantsync", "-q", option]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", PROJECTS)
def test_models_and_revisions_agree(name, migrated_place):
    """The revisions make exactly what the models say, on both databases."""
    versions = EXAMPLES / name / "migrations" / "versions"
    base = load(EXAMPLES / name / f"{PROJECTS[name]}.py").Base

    upgrade(
        [Tenant("id-of-acme", "acme", migrated_place)],
        isolation=DatabaseIsolation(None),
        locations=[versions],
    ).check()

    engine = make_engine(migrated_place.url)
    with engine.begin() as connection:
        if migrated_place.schema:
            connection.execute(text(f"SET LOCAL search_path TO {migrated_place.schema}"))
        others = {VERSION_TABLE, "av_sync_events", "av_identity_tombstones"}
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, *_: name not in others}
        )
        differences = compare_metadata(context, base.metadata)
    engine.dispose()
    assert differences == []


def load(file):
    """Import a module from its file, fresh."""
    spec = importlib.util.spec_from_file_location(f"example_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_list_of_examples_names_each():
    """The index and the folder agree."""
    index = (EXAMPLES / "README.md").read_text()
    there = {
        each.name
        for each in EXAMPLES.iterdir()
        if (each / "README.md").exists() or each.suffix == ".py"
    }

    assert {Path(link).name for link in re.findall(r"\]\(([\w./]+)\)", index)} == there | {
        "tenantsync.toml"
    }
    assert there >= set(PROJECTS)
