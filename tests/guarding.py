"""Events, places and questions that the tests of isolation, failures and doors share."""

import itertools
import json
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import uvicorn

from tenantsync.errors import TenantSyncError
from tenantsync.events import Event, parse
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenants import Placement, Tenant
from tenantsync.testing.people import SYNC_TYPES, Person, payload

APPLICATION = "cmwspxuxh0007ny7dn277ejhn"
NOON = 1_793_000_400_000
TABLES = ("av_identities", "av_sync_events", "av_identity_tombstones", "av_identity_sessions")

_numbers = itertools.count(1)


def body_of(
    kind: str,
    sub: str = "ann",
    *,
    tenant: str | None = "acme",
    at: int = NOON,
    id: str | None = None,  # noqa: A002 - the wire's word
    application: str = APPLICATION,
    **data: object,
) -> bytes:
    """Return the body of a sync event with the payload that the provider would send."""
    content: Mapping[str, object] = data
    if kind in SYNC_TYPES:
        content = payload(kind, Person(sub, f"{sub}@example.test", "Ann", "Lee"), **data)
    moment = datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")
    return json.dumps(
        {
            "id": id or f"event-{next(_numbers)}",
            "type": kind,
            "timestamp": moment,
            "tenant_id": tenant,
            "application_id": application,
            "data": content,
        }
    ).encode()


def make(kind: str, sub: str = "ann", **options: Any) -> Event:
    """Return a sync event: see `body_of`."""
    return parse(body_of(kind, sub, **options))


def numbered(places: Iterable[Placement]) -> dict[str, Tenant]:
    """Return tenants by id, one for each place: `t0`, `t1`, ..."""
    return {f"t{n}": Tenant(f"t{n}", f"t{n}", place) for n, place in enumerate(places)}


@contextmanager
def connected(place: Placement) -> Iterator[Any]:
    """Give a driver's connection to the place's database, past everything that is tested."""
    if place.is_postgres:
        url = place.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            yield connection
        return
    connection = sqlite3.connect(str(place.url.database), isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def ask(place: Placement, query: str, schema: str | None = None) -> list[tuple[Any, ...]]:
    """Return what the database answers; `{s}` stands for the schema and its dot."""
    name = schema or place.schema or "public"
    prefix = f'"{name}".' if place.is_postgres else ""
    with connected(place) as connection:
        cursor = connection.execute(query.replace("{s}", prefix))
        return cursor.fetchall() if cursor.description else []


def people(place: Placement) -> list[str]:
    """Return the ids of the people in a place, sorted."""
    return sorted(row[0] for row in ask(place, "SELECT id FROM {s}av_identities"))


def ledger(place: Placement) -> list[str]:
    """Return the ids of the events in a place's ledger, sorted."""
    return sorted(row[0] for row in ask(place, "SELECT event_id FROM {s}av_sync_events"))


def counts(place: Placement) -> dict[str, int]:
    """Return how many rows each of our tables has in a place."""
    return {table: ask(place, f"SELECT count(*) FROM {{s}}{table}")[0][0] for table in TABLES}


def told(handler: IdentitySyncHandler, event: Event) -> Outcome | type[TenantSyncError]:
    """Handle an event, and return its outcome or the class of its error."""
    try:
        return handler.handle_blocking(event)
    except TenantSyncError as error:
        return type(error)


def at_once(jobs: Iterable[Callable[[], Any]], *, threads: int = 16) -> list[Any]:
    """Run jobs on many threads that all start together, and return their results in order."""
    waiting = list(jobs)
    start = threading.Barrier(min(threads, len(waiting)) or 1)
    begun = threading.local()

    def run(job: Callable[[], Any]) -> Any:
        if not getattr(begun, "yes", False):
            begun.yes = True
            start.wait(30)
        return job()

    with ThreadPoolExecutor(min(threads, len(waiting)) or 1) as pool:
        return list(pool.map(run, waiting))


class _Announcing(uvicorn.Server):
    """A server that says when it is ready, so that nobody has to wait and look."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell."""
        await super().startup(sockets)
        self.ready.set()


@contextmanager
def serving(
    app: Any, *, interface: Any = "asgi3", lifespan: Any = "on", http: Any = "auto"
) -> Iterator[str]:
    """Serve an application with uvicorn on a free loopback port, and give its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan=lifespan, interface=interface, http=http
    )
    server = _Announcing(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert server.ready.wait(30), "the application did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
