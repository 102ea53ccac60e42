"""Plays the demo: writes a configuration, migrates, serves, delivers, and checks every row."""

import json
import random
import socket
import sqlite3
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from starlette.applications import Starlette

from tenantsync.app import TenantSync
from tenantsync.demo.expect import MIRRORED, Person, fold
from tenantsync.errors import ConfigError
from tenantsync.migrate import migration_places, upgrade
from tenantsync.testing.delivery import Attempt
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.people import make_people, stream

try:
    import uvicorn
except ImportError:  # the `server` extra is optional
    uvicorn = None  # type: ignore[assignment] # absent is a case of its own, asked for below

__all__ = ["APPLICATION", "TENANTS", "Result", "TenantResult", "run"]

APPLICATION = "cmwspxuxh0007ny7dn277ejhn"
"""The application that most of the recorded events are for."""

TENANTS: Mapping[str, str] = MappingProxyType(
    {
        "corp": "8aa2aa5f-234f-4bb8-b7f2-9b3bd69d8573",
        "solo": "c598b231-a90e-4479-9fd1-09ccc144710c",
        "harbour": "93ce0187-9290-491b-9f06-be209b3d2f92",
        "empty": "e2f80a4d-7d1c-4b53-9c1e-0f6a5d3b8c21",
    }
)
"""Keys and ids: two tenants of the recording, one that the emulator invents, and one left alone."""

_PATH = "/webhooks/authvital"
_SENDERS = 16
_INVENTED_PEOPLE = 20
_CONFIG = """\
[authvital]
host = "{host}"
application_id = "{application}"

[isolation]
strategy = "database"
url = "sqlite:///tenants/{{key}}.db"
"""


@dataclass(frozen=True, slots=True)
class TenantResult:
    """What one tenant's database holds in the end.

    Args:
        key: The tenant's key.
        file: Its SQLite file.
        people: Its rows, ordered by address.
    """

    key: str
    file: Path
    people: tuple[Person, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """How the demo went.

    Args:
        tenants: In the order of the configuration.
        outcomes: How often the endpoint answered what.
        recorded: How many recorded events there are.
        foreign: How many of them are for other applications.
        invented: How many events the emulator made up.
        requests: How many requests were sent: all of those, shuffled, a third of them twice.
        seconds: How long the delivering took.
        problems: What is not as it must be, in sentences; none if all went well.
    """

    tenants: tuple[TenantResult, ...]
    outcomes: Mapping[str, int]
    recorded: int
    foreign: int
    invented: int
    requests: int
    seconds: float
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every answer and every row is as it must be."""
        return not self.problems


def run(
    folder: Path,
    *,
    say: Callable[[str], object] = lambda line: None,
    seed: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Play the demo in a folder.

    Args:
        folder: An empty folder, or one to be made; the configuration and the databases stay in it.
        say: Called with a line at each step.
        seed: Draws the order of the deliveries.
        clock: Seconds that only ever go forward.

    Raises:
        ConfigError: The folder is not empty, or uvicorn is not installed.
        MigrationFailed: A tenant's database could not be made.
    """
    if uvicorn is None:
        raise ConfigError("the demo serves over HTTP: pip install 'tenantsync[server]'")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty: give the demo a folder of its own")
    recorded = _recorded()
    invented = stream(
        TENANTS["harbour"], APPLICATION, make_people(_INVENTED_PEOPLE, domain="harbour.test")
    )
    bodies = [*recorded, *invented]
    requests = _shuffled(bodies, seed)
    with Emulator() as authvital:
        say(f"a local AuthVital serves its keys at {authvital.url}")
        config = _write_config(folder, authvital.url)
        say(f"wrote {config}")
        sync = TenantSync.from_toml(config)
        _migrate(sync, say)
        with _serving(sync) as url:
            say(f"tenantsync serves at {url}")
            say(f"delivering {len(requests)} requests, {_SENDERS} at a time ...")
            began = clock()
            with ThreadPoolExecutor(_SENDERS) as senders:
                attempts = list(
                    senders.map(
                        lambda body: authvital.send(authvital.delivery(body), url), requests
                    )
                )
            seconds = clock() - began
    tenants = tuple(
        TenantResult(key, file, _people(file))
        for key, file in ((key, folder / "tenants" / f"{key}.db") for key in TENANTS)
    )
    return Result(
        tenants=tenants,
        outcomes=Counter(_outcome(attempt) for attempt in attempts),
        recorded=len(recorded),
        foreign=sum(json.loads(body)["application_id"] != APPLICATION for body in recorded),
        invented=len(invented),
        requests=len(requests),
        seconds=seconds,
        problems=(*_wrong_answers(attempts), *_wrong_rows(tenants, bodies)),
    )


def _recorded() -> list[bytes]:
    text = (files("tenantsync.demo") / "recorded.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["body"].encode() for line in text.splitlines()]


def _shuffled(bodies: Sequence[bytes], seed: int) -> list[bytes]:
    rng = random.Random(seed)
    requests = [*bodies, *rng.sample(bodies, len(bodies) // 3)]
    rng.shuffle(requests)
    return requests


def _write_config(folder: Path, host: str) -> Path:
    file = folder / "tenantsync.toml"
    text = _CONFIG.format(host=host, application=APPLICATION)
    for key, tenant_id in TENANTS.items():
        text += f'\n[tenants.{key}]\nid = "{tenant_id}"\n'
    file.write_text(text, encoding="utf-8")
    return file


def _migrate(sync: TenantSync, say: Callable[[str], object]) -> None:
    report = upgrade(sync.tenants, isolation=sync.isolation, place=migration_places(sync.settings))
    report.check()
    say(f"made a database for each of {len(report.rows)} tenants: {', '.join(TENANTS)}")


@contextmanager
def _serving(sync: TenantSync) -> Iterator[str]:
    app = Starlette(routes=sync.routes(_PATH), lifespan=sync.lifespan)
    app.router.redirect_slashes = False
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        thread = threading.Thread(
            target=server.run, args=([listener],), name="tenantsync-demo", daemon=True
        )
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("the demo's endpoint did not start; its log says why")
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}{_PATH}"
        finally:
            server.should_exit = True
            thread.join()


def _people(file: Path) -> tuple[Person, ...]:
    # By the standard library alone: what the demo shows is what any program would see. The mode
    # makes no file, and lets the last one out fold SQLite's log into the database.
    query = (
        "SELECT id, email, is_active, has_app_access, membership_status, app_role, tenant_roles "
        "FROM av_identities ORDER BY email, id"
    )
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True)) as connection:
        rows = connection.execute(query).fetchall()
    return tuple(
        Person(sub, email, bool(active), bool(access), membership, role, tuple(json.loads(roles)))
        for sub, email, active, access, membership, role, roles in rows
    )


def _outcome(attempt: Attempt) -> str:
    """Return the outcome that the endpoint told, or how it failed to tell one."""
    if attempt.status is None:
        return (attempt.error or "no answer").partition(":")[0]
    try:
        return str(json.loads(attempt.answer)["outcome"])
    except (ValueError, KeyError, TypeError):
        return f"status {attempt.status}"


def _wrong_answers(attempts: Sequence[Attempt]) -> Iterator[str]:
    """Tell which events were not answered as they must be, in whatever order they came."""
    failed = Counter(_outcome(attempt) for attempt in attempts if not attempt.ok)
    for outcome, count in failed.items():
        yield f"{count} requests were not accepted: {outcome}"
    told: defaultdict[bytes, list[str]] = defaultdict(list)
    for attempt in attempts:
        if attempt.ok:
            told[attempt.delivery.body].append(_outcome(attempt))
    for body, outcomes in told.items():
        event = json.loads(body)
        if not _as_it_must_be(event, Counter(outcomes)):
            yield f"event {event['id']} ({event['type']}) was answered {', '.join(outcomes)}"


def _as_it_must_be(event: Mapping[str, str], outcomes: Counter[str]) -> bool:
    if event["application_id"] != APPLICATION:
        return set(outcomes) == {"ignored"}
    if event["type"] not in MIRRORED:
        return set(outcomes) <= {"ignored", "duplicate"} and outcomes["ignored"] > 0
    # Whatever comes first is applied, or finds newer facts there; the rest are repetitions.
    return outcomes["applied"] + outcomes["stale"] == 1 and outcomes["duplicate"] == (
        outcomes.total() - 1
    )


def _wrong_rows(tenants: Sequence[TenantResult], bodies: Sequence[bytes]) -> Iterator[str]:
    """Tell which rows are not what all events together say."""
    for tenant in tenants:
        expected = fold(bodies, tenant_id=TENANTS[tenant.key], application_id=APPLICATION)
        found = {person.sub: person for person in tenant.people}
        if len(found) != len(expected):
            yield f"tenant {tenant.key}: {len(found)} people, where {len(expected)} belong"
        for sub in expected.keys() & found.keys():
            if found[sub] != expected[sub]:
                yield f"tenant {tenant.key}: {sub} is {found[sub]}, not {expected[sub]}"
        for sub in found.keys() - expected.keys():
            yield f"tenant {tenant.key}: {sub} does not belong there"
