"""Signals of your own: workers are woken through PostgreSQL's NOTIFY, without a broker.

Give it to TenantSync in place of `[worker] signals`. LISTEN needs a session: connect to the server
itself, and not through a transaction pooler. Another broker takes the same three methods.
"""

import contextlib
import queue
import threading
from collections.abc import Callable

import psycopg


class PostgresSignals:
    """Wakes every worker that listens; all but one then find nothing to do.

    Args:
        conninfo: The database, as libpq spells it; the control database will do.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._waiting: queue.Queue[str] = queue.Queue(maxsize=1000)
        self._wake: Callable[[str], None] = lambda tenant_id: None
        self._closed = threading.Event()
        self._begin = threading.Lock()
        self._thread: threading.Thread | None = None

    def publish(self, tenant_id: str) -> None:
        """Send a signal soon, or never: the worker's interval makes up for it."""
        with contextlib.suppress(queue.Full, RuntimeError):
            self._waiting.put_nowait(tenant_id)
            self._start()

    def listen(self, wake: Callable[[str], None]) -> None:
        """Begin to call the function for the signals of all processes."""
        self._wake = wake
        self._start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        with self._begin:
            if self._thread is None:
                thread = threading.Thread(target=self._run, daemon=True)
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        while not self._closed.is_set():
            # Whatever the outage is, the next attempt may fare better.
            with (
                contextlib.suppress(psycopg.Error),
                psycopg.connect(self._conninfo, autocommit=True, connect_timeout=2) as connection,
            ):
                connection.execute("LISTEN tenantsync")
                while not self._closed.is_set():
                    with contextlib.suppress(queue.Empty):
                        while True:
                            tenant_id = self._waiting.get_nowait()
                            connection.execute("SELECT pg_notify('tenantsync', %s)", (tenant_id,))
                    for heard in connection.notifies(timeout=0.2):
                        self._wake(heard.payload)
            self._closed.wait(1.0)
