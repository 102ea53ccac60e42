"""Many statements in one round trip, over libpq's pipeline mode.

psycopg's own pipeline talks to the server after each statement. Here all are sent at once and all
answers are read at once, which for a batch of many small statements is most of the client's work.
Nothing is prepared: it would serve one schema only, and cost the server memory for each.
"""

import re
import selectors
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, cast

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from tenantsync.tenancy.engines import ServerSilent

__all__ = ["Pipeline", "Row", "StatementFailed", "text_array"]

_PLACEHOLDER: Final = re.compile(r"%([s%])")
_FAILED: Final = (ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE)

Row = tuple[bytes | None, ...]
"""One row of an answer, in PostgreSQL's text form."""


class StatementFailed(Exception):  # a carrier between two modules, never seen outside
    """One of the statements failed, and those after it were skipped; its cause is the error.

    Args:
        index: Which one it was, in the order in which they were added.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class Pipeline:
    """Statements that wait to be sent together.

    It is also as much of a cursor as those need who only send: `execute` adds a statement with
    `%s` for its parameters.

    Args:
        raw: The driver's connection. Nobody else uses it meanwhile.
    """

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self._raw = raw
        self._statements: list[tuple[bytes, Sequence[bytes | None]]] = []

    def __len__(self) -> int:
        """How many statements wait."""
        return len(self._statements)

    def add(self, statement: bytes, parameters: Sequence[bytes | None] = ()) -> None:
        """Add one statement.

        Args:
            statement: With `$1` and so on for its parameters.
            parameters: In PostgreSQL's text form; None is NULL.
        """
        self._statements.append((statement, parameters))

    def execute(self, operation: str, parameters: Sequence[str | None] = ()) -> None:
        """Add one statement as the driver's cursors take it, with `%s` for each parameter."""
        encoded = [None if value is None else value.encode() for value in parameters]
        self.add(_numbered(operation), encoded)

    def run(self, timeout: float | None = None) -> list[Row | None]:
        """Send all statements, and return the first row of each, or None where it has none.

        Args:
            timeout: Seconds of silence after which the connection is closed: a server that hangs
                keeps none of its own timeouts. None waits for as long as it takes.

        Raises:
            StatementFailed: One of them failed; it says which.
            ServerSilent: The server did not answer in time.
            psycopg.OperationalError: The connection broke.
        """
        pgconn = self._raw.pgconn
        with _pipeline_mode(pgconn):
            for statement, parameters in self._statements:
                pgconn.send_query_params(statement, parameters)
            pgconn.pipeline_sync()
            results = _exchange(pgconn, timeout)
        return [_first_row(self._check(*each)) for each in enumerate(results)]

    def _check(self, index: int, result: PGresult) -> PGresult:
        if result.status in _FAILED:
            error = psycopg.errors.error_from_result(result, self._raw.info.encoding)
            raise StatementFailed(index) from error
        return result


def text_array(values: Sequence[str]) -> bytes:
    """Return a `text[]` in PostgreSQL's text form."""
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return ("{" + ",".join(f'"{value}"' for value in quoted) + "}").encode()


@lru_cache(maxsize=64)
def _numbered(operation: str) -> bytes:
    """Return the statement with `$1` and so on in place of each `%s`."""
    numbers = iter(range(1, len(operation)))
    numbered = _PLACEHOLDER.sub(
        lambda match: "%" if match[1] == "%" else f"${next(numbers)}", operation
    )
    return numbered.encode()


@contextmanager
def _pipeline_mode(pgconn: PGconn) -> Iterator[None]:
    pgconn.enter_pipeline_mode()
    nonblocking, pgconn.nonblocking = pgconn.nonblocking, 1
    try:
        yield
    finally:
        # A broken connection is not worth leaving in good order: the pool throws it away.
        if pgconn.status == ConnStatus.OK:
            pgconn.nonblocking = nonblocking
            pgconn.exit_pipeline_mode()


def _exchange(pgconn: PGconn, timeout: float | None) -> list[PGresult]:
    """Send what is queued, and return all results up to the sync.

    Reads while it writes: a server that cannot get rid of its answers stops reading.
    """
    results: list[PGresult] = []
    unsent = pgconn.flush()
    with selectors.DefaultSelector() as selector:
        selector.register(pgconn.socket, _interest(unsent))
        while True:
            ready = selector.select(timeout)
            if not ready:
                pgconn.finish()
                raise ServerSilent(f"no answer within {timeout:g} s: the connection was closed")
            ((_, events),) = ready
            if events & selectors.EVENT_READ:
                pgconn.consume_input()
                if _collect(pgconn, results):
                    return results
            if unsent:
                unsent = pgconn.flush()
                if not unsent:
                    selector.modify(pgconn.socket, _interest(unsent))


def _interest(unsent: int) -> int:
    return selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0)


def _collect(pgconn: PGconn, results: list[PGresult]) -> bool:
    """Take what has arrived; return whether that was all."""
    while not pgconn.is_busy():
        result = pgconn.get_result()
        if result is None:  # the end of one statement's results
            if pgconn.status != ConnStatus.OK:
                raise psycopg.OperationalError("the server ended the connection")
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            return True
        results.append(result)
    return False


def _first_row(result: PGresult) -> Row | None:
    if result.ntuples == 0:
        return None
    return cast("Row", tuple(result.get_value(0, column) for column in range(result.nfields)))
