"""What the bare driver does with the same SQL, one event per commit, in a process of its own.

First lets tenantsync apply some events one by one, and records every statement with its values.
Then reads one JSON command per line, `{"way", "connections", "seconds"}`, replays the recording
with fresh ids, and writes one JSON line about it. The merge is not repeated: what it would write is
in the recording.
"""

import json
import sqlite3
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import psycopg
from psycopg.rows import tuple_row
from workload import RUN_LENGTH, events, run_token

from tenantsync import Tenant, TenantSync, parse
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.pipeline import Pipeline
from tenantsync.tenancy.resolver import ListedTenants

_RECORDED_RUN = 0x7A9E0000
_OPENINGS = ("BEGIN",)


@dataclass(slots=True)
class Statement:
    """One statement: how it was run, its text and its values."""

    how: str
    sql: Any
    values: Any


@dataclass(slots=True)
class Transaction:
    """The statements of one event, with a break wherever an answer was read."""

    tenant: Tenant
    parts: list[list[Statement]] = field(default_factory=list)

    def renamed(self, old: str, new: str) -> "Transaction":
        """Return it with other ids."""
        return Transaction(
            self.tenant,
            [
                [Statement(s.how, s.sql, _replaced(s.values, old, new)) for s in part]
                for part in self.parts
            ],
        )


_Runs = list[tuple[Callable[[Transaction], None], Iterator[Transaction]]]
"""What each thread runs, and from where it takes the next transaction."""


class Tape:
    """Records what the drivers are told, from the statement that begins a transaction on."""

    def __init__(self) -> None:
        self._parts: list[list[Statement]] = []
        self._reading = True

    def note(self, how: str, sql: Any, values: Any) -> None:
        text = sql.decode() if isinstance(sql, bytes) else str(sql)
        if not self._parts and not text.startswith(_OPENINGS):
            return  # a connection is being opened
        if text == "COMMIT":
            return  # every way of replaying has its own
        if self._reading:
            self._parts.append([])
        self._reading = False
        self._parts[-1].append(Statement(how, sql, values))

    def read(self) -> None:
        self._reading = True

    def cut(self, tenant: Tenant) -> Transaction:
        """Return what was recorded since the last cut."""
        parts, self._parts, self._reading = self._parts, [], True
        return Transaction(tenant, parts)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Listen to both drivers."""
        tape = self

        class Cursor(sqlite3.Cursor):
            def execute(self, sql, values=()):
                tape.note("execute", sql, values)
                return super().execute(sql, values)

        class Connection(sqlite3.Connection):
            def cursor(self, factory=Cursor):
                return super().cursor(factory)

            def execute(self, sql, values=()):
                return self.cursor().execute(sql, values)

            def executemany(self, sql, values):
                values = list(values)
                tape.note("executemany", sql, values)
                return super().executemany(sql, values)

        run = Pipeline.run

        def noted(pipeline, *options):
            for sql, given in pipeline._statements:
                values = [None if value is None else value.decode() for value in given]
                if b"'lock_timeout'" in sql:
                    # A batch of ours gives way after a moment; the reference has nobody to give
                    # way to, and waits its turn.
                    values = ["0"] * len(values)
                tape.note("raw", sql, values)
            tape.read()
            return run(pipeline, *options)

        with ExitStack() as patches:
            patches.enter_context(
                patch("sqlite3.connect", partial(sqlite3.connect, factory=Connection))
            )
            patches.enter_context(patch.object(Pipeline, "run", noted))
            yield


def record(config: str, count: int) -> list[Transaction]:
    """Return what tenantsync tells the database about so many events, one transaction each."""
    tape = Tape()
    transactions = []
    with TenantSync.from_toml(config) as sync:
        isolation, by_id = sync.isolation, {tenant.id: tenant for tenant in sync.tenants}
    # On its own, so that nothing is asked of the control database.
    handler = IdentitySyncHandler(ListedTenants(by_id.values()), isolation=isolation, observers=())
    with tape.recording(), handler:
        source = events(len(by_id), run=_RECORDED_RUN, seed=1)
        for _ in range(count):
            event = parse(next(source)[2])
            handler.handle_blocking(event)
            transactions.append(tape.cut(by_id[event.tenant_id or ""]))
    return transactions


class Replay:
    """Runs recorded transactions, each with its own commit.

    Args:
        recorded: What to run.
        open_files: How many SQLite files stay open at once.
    """

    def __init__(self, recorded: Sequence[Transaction], open_files: int) -> None:
        self._recorded = recorded
        self._open_files = open_files
        self._run = _RECORDED_RUN
        self._postgres = recorded[0].tenant.placement.is_postgres
        # Both stay open: a backend that never saw a schema is much slower than one that did.
        self._connections: list[psycopg.Connection[Any]] = []
        self._files: list[OrderedDict[str, sqlite3.Connection]] = []

    def measure(self, way: str, connections: int, seconds: float) -> dict[str, object]:
        """Run for a while, and return what was measured."""
        waiting = [*self._renamed(), *self._renamed()]
        if self._postgres:
            runs = self._postgres_runners(way, waiting, connections)
        else:
            runs = self._sqlite_runners(waiting, connections)
        return _race(runs, seconds)

    def _renamed(self) -> list[Transaction]:
        self._run += 1
        old, new = run_token(_RECORDED_RUN), run_token(self._run)
        return [transaction.renamed(old, new) for transaction in self._recorded]

    def _postgres_runners(
        self, way: str, waiting: Iterable[Transaction], connections: int
    ) -> _Runs:
        url = self._recorded[0].tenant.placement.url.set(drivername="postgresql")
        while len(self._connections) < connections:
            self._connections.append(
                # In autocommit, because what was recorded begins its transactions itself.
                psycopg.connect(
                    url.render_as_string(hide_password=False),
                    autocommit=True,
                    row_factory=tuple_row,
                )
            )
        run = _run_pipelined if way == "pipelined" else _run_plainly
        shared = iter(waiting)
        return [(partial(run, each), shared) for each in self._connections[:connections]]

    def _sqlite_runners(self, waiting: Iterable[Transaction], connections: int) -> _Runs:
        # Every file belongs to one thread, so that none of them waits for another's lock.
        shares: list[list[Transaction]] = [[] for _ in range(connections)]
        for transaction in waiting:
            shares[hash(transaction.tenant.key) % connections].append(transaction)
        while len(self._files) < connections:
            self._files.append(OrderedDict())
        most = max(1, self._open_files // connections)
        return [
            (partial(_run_in_file, files, most), iter(share))
            for files, share in zip(self._files, shares, strict=False)
            if share
        ]


def _run_plainly(connection: psycopg.Connection[Any], transaction: Transaction) -> None:
    cursor = psycopg.RawCursor(connection)
    for part in transaction.parts:
        for statement in part:
            cursor.execute(statement.sql, statement.values)
            if cursor.description:
                cursor.fetchall()
    cursor.execute("COMMIT")


def _run_pipelined(connection: psycopg.Connection[Any], transaction: Transaction) -> None:
    last = transaction.parts[-1]
    for part in transaction.parts:
        cursors = []
        with connection.pipeline():
            for statement in part:
                cursor = psycopg.RawCursor(connection)
                cursor.execute(statement.sql, statement.values)
                cursors.append(cursor)
            if part is last:
                connection.execute("COMMIT")
        for cursor in cursors:
            if cursor.description:
                cursor.fetchall()


def _run_in_file(
    files: OrderedDict[str, sqlite3.Connection], most: int, transaction: Transaction
) -> None:
    key = transaction.tenant.key
    connection = files.get(key)
    if connection is None:
        if len(files) >= most:
            files.popitem(last=False)[1].close()
        connection = files[key] = _opened(str(transaction.tenant.placement.url.database))
    files.move_to_end(key)
    for part in transaction.parts:
        for statement in part:
            if statement.how == "executemany":
                connection.executemany(statement.sql, statement.values)
            else:
                connection.execute(statement.sql, statement.values).fetchall()
    connection.commit()


def _opened(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()
    return connection


def _race(runs: _Runs, seconds: float) -> dict[str, object]:
    latencies: list[float] = []
    failures: list[BaseException] = []
    start = threading.Barrier(len(runs) + 1)
    deadline = [0.0]

    def work(run: Callable[[Transaction], None], waiting: Iterator[Transaction]) -> None:
        start.wait()
        try:
            for transaction in waiting:
                began = time.perf_counter()
                run(transaction)
                ended = time.perf_counter()
                latencies.append(ended - began)
                if ended >= deadline[0]:
                    return
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=run) for run in runs]
    for thread in threads:
        thread.start()
    cpu = time.process_time()
    began = time.perf_counter()
    deadline[0] = began + seconds
    start.wait()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if failures:
        raise failures[0]
    latencies.sort()
    return {
        "events": len(latencies),
        "seconds": took,
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[len(latencies) * 99 // 100],
        "cpu": time.process_time() - cpu,
    }


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, list | tuple):
        return type(value)(_replaced(item, old, new) for item in value)
    return value


def main() -> None:
    """Record, say so, and obey until the input ends."""
    config, count, open_files = sys.argv[1:]
    assert len(run_token(_RECORDED_RUN)) == RUN_LENGTH
    recorded = record(config, int(count))
    replay = Replay(recorded, int(open_files))
    statements = [sum(map(len, transaction.parts)) for transaction in recorded]
    _say({"transactions": len(recorded), "statements": max(statements)})
    for line in sys.stdin:
        _say(replay.measure(**json.loads(line)))


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
