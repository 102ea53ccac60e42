"""What the fixtures of `pytest_tenantsync` give: the application, with databases of one test.

The one module of the test kit that knows the receiving half: it puts the two together.
"""

import importlib
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid4, uuid5

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from tenantsync.app import TenantSync
from tenantsync.config import Settings, load, read
from tenantsync.control.database import ControlDatabase
from tenantsync.errors import ConfigError
from tenantsync.migrate.control import upgrade_control
from tenantsync.migrate.runner import upgrade
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import DatabaseIsolation, schema_of
from tenantsync.tenants import Placement, Tenant, read_url
from tenantsync.testing.chaos import Chaos
from tenantsync.testing.courier import AuthVital, Post, Ticking
from tenantsync.testing.delivery import Delivery
from tenantsync.testing.emulator import Emulator
from tenantsync.testing.keys import Keys, SigningKey
from tenantsync.testing.tables import Subscription
from tenantsync.testing.tables import Tenant as Organisation

__all__ = ["Kit", "Options", "Rig", "TenantDatabases"]

_APPLICATION: Final = "application-under-test"
_NOWHERE: Final = "http://127.0.0.1:9"
_BROWSER: Final = "browser-under-test"
_MACHINE: Final = ("machine-under-test", "no-secret")
_FALLBACK: Final = ("acme", "globex")
_REPLACED: Final = ("url", "schema", "role", "migration_url")


@dataclass(frozen=True, slots=True)
class Options:
    """What the user's pytest configuration says.

    Args:
        config: The configuration file.
        tenants: `KEY` or `KEY=ID`; empty takes those of the file.
        database_url: A PostgreSQL server on which databases may be made; None takes SQLite.
    """

    config: Path
    tenants: tuple[str, ...] = ()
    database_url: str | None = None


class Rig:
    """What all tests of a session share: a signing key, and migrated databases to copy.

    Args:
        options: What the user's pytest configuration says.
        folder: An empty folder of the session's own.
    """

    def __init__(self, options: Options, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._database = f"tenantsync_test_{uuid4().hex}"

    def __enter__(self) -> Self:
        """Make what is copied for each test.

        Raises:
            ConfigError: The configuration is missing or wrong.
            MigrationFailed: A tenant cannot be migrated.
        """
        with ExitStack() as undo:
            undo.callback(self.__exit__)
            self._prepare()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self.on_postgres:
            self._drop(self._database)

    @property
    def on_postgres(self) -> bool:
        """Whether tenants are schemas on PostgreSQL; otherwise they are SQLite files."""
        return self._options.database_url is not None

    @cached_property
    def key(self) -> SigningKey:
        """The key that signs at first: making one takes longer than most tests."""
        return SigningKey.generate(at=0)

    @cached_property
    def written(self) -> dict[str, Any]:
        """The configuration file as it is written.

        Raises:
            ConfigError: It is missing or wrong.
        """
        load(self._options.config)
        return tomllib.loads(self._options.config.read_bytes().decode("utf-8-sig"))

    @cached_property
    def registered(self) -> TenantSync | None:
        """The application's own TenantSync, where the configuration names it."""
        target = load(self._options.config).app
        if target is None:
            return None
        module, _, name = target.partition(":")
        # As the command line does: the application lies beside its configuration.
        folder = str(self._options.config.parent)
        sys.path.insert(0, folder)
        try:
            found = getattr(importlib.import_module(module), name)
        finally:
            sys.path.remove(folder)
        if not isinstance(found, TenantSync):
            raise ConfigError(f"app: {target!r} is a {type(found).__name__} and no TenantSync")
        return found

    def settings(self, folder: Path, *, host: str = _NOWHERE, database: str = "") -> Settings:
        """Return the user's configuration with every place in it replaced.

        Args:
            folder: Where SQLite files are, the control database's too.
            host: AuthVital's origin.
            database: The PostgreSQL database where schemas are.
        """
        data = {name: value for name, value in self.written.items() if name != "pubsub"}
        trust = {key: value for key, value in data["authvital"].items() if key != "issuer"}
        audience = [each for each in trust.get("audience", ()) if "${" not in each]
        trust |= {
            "host": host,
            "audience": audience or [_BROWSER],
            "client_id": _MACHINE[0],
            "client_secret": _MACHINE[1],
        }
        if "${" in trust["application_id"]:
            trust["application_id"] = _APPLICATION
        isolation = {key: value for key, value in data["isolation"].items() if key not in _REPLACED}
        shared = isolation["strategy"] == "single"
        if not self.on_postgres:
            file = "all" if shared else "{key}"
            isolation["url"] = _sqlite(folder, file)
            isolation["strategy"] = "single" if shared else "database"
        else:
            isolation["url"] = self._url(database).render_as_string(hide_password=False)
            schema = data["isolation"].get("schema")
            if not shared:
                isolation["strategy"] = "schema"
                isolation["schema"] = schema or "tenant_{key}"
            elif schema is not None:
                isolation["schema"] = schema
        worker = {key: value for key, value in data.get("worker", {}).items() if key != "signals"}
        data |= {
            "authvital": trust,
            "isolation": isolation,
            "control": {"url": _sqlite(folder, "control")},
            "worker": worker,
            "tenants": self._tenants(),
        }
        return read(data, path=self._options.config)

    @contextmanager
    def places(self, folder: Path, host: str) -> Iterator[Settings]:
        """Give the configuration with fresh places, migrated; they go when the block ends.

        Args:
            folder: An empty folder of the test's own.
            host: AuthVital's origin.
        """
        for file in self._folder.glob("*.db"):
            shutil.copyfile(file, folder / file.name)
        if not self.on_postgres:
            yield self.settings(folder, host=host)
            return
        database = f"{self._database}_{uuid4().hex[:8]}"
        self._on_server(f'CREATE DATABASE "{database}" TEMPLATE "{self._database}"')
        try:
            yield self.settings(folder, database=database, host=host)
        finally:
            self._drop(database)

    def _prepare(self) -> None:
        if self.on_postgres:
            self._on_server(f'CREATE DATABASE "{self._database}" TEMPLATE template0')
        settings = self.settings(self._folder, database=self._database)
        with TenantSync(settings) as sync:
            # Each tenant is migrated, and not one for all: a revision may write what differs.
            tenants = list({each.placement: each for each in sync.serving()}.values())
            locations = settings.migrations.locations
            upgrade(tenants, isolation=DatabaseIsolation(None), locations=locations).check()
        with closing(ControlDatabase(settings.control.url)) as control:
            upgrade_control(control)
        if self.on_postgres:
            # A database is copied only while nobody is connected to it.
            self._on_server(f'ALTER DATABASE "{self._database}" ALLOW_CONNECTIONS false')

    def _tenants(self) -> dict[str, dict[str, str]]:
        listed: dict[str, dict[str, str]] = {}
        for each in self._options.tenants:
            key, _, tenant_id = each.partition("=")
            listed[key.strip()] = {"id": tenant_id.strip() or _made_up(key.strip())}
        if listed:
            return listed
        written = self.written.get("tenants") or {key: {"id": _made_up(key)} for key in _FALLBACK}
        return {key: {"id": table["id"]} for key, table in written.items()}

    def _url(self, database: str) -> URL:
        return read_url(str(self._options.database_url)).set(database=database)

    def _drop(self, database: str) -> None:
        self._on_server(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def _on_server(self, statement: str) -> None:
        url = read_url(str(self._options.database_url))
        engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))


class TenantDatabases:
    """The tenants' databases of one test: fresh, migrated, gone afterwards.

    Args:
        tenants: The tenants.
        settle: Called before anybody looks into one.
    """

    def __init__(self, tenants: Iterable[Tenant], settle: Callable[[], object]) -> None:
        self._tenants = {tenant.key: tenant for tenant in tenants}
        self._settle = settle
        self._engines: dict[Placement, Engine] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._tenants)

    def __len__(self) -> int:
        return len(self._tenants)

    def __getitem__(self, tenant: str) -> Tenant:
        """Return a tenant by its key, or by AuthVital's id.

        Raises:
            LookupError: The test has no such tenant; the message names those that it has.
        """
        for each in self._tenants.values():
            if tenant in (each.key, each.id):
                return each
        raise LookupError(f"there is no tenant {tenant!r}: there are {', '.join(self._tenants)}")

    @contextmanager
    def session(self, tenant: str) -> Iterator[Session]:
        """Give a session in a tenant's place, for any models; it commits when the block ends.

        What chaos keeps back is delivered before, and what was parked is applied.

        Args:
            tenant: The tenant's key, or AuthVital's id.

        Raises:
            LookupError: The test has no such tenant.
        """
        placement = self[tenant].placement
        self._settle()
        with Session(self._engine(placement)) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close all connections."""
        for engine in self._engines.values():
            engine.dispose()

    def _engine(self, placement: Placement) -> Engine:
        if placement not in self._engines:
            self._engines[placement] = _engine_in(placement)
        return self._engines[placement]


class Kit:
    """What one test has; each part is made when it is first asked for.

    Args:
        rig: What all tests share.
        folder: An empty folder of the test's own.
        chaos: The seed of the order in which deliveries come, or None for the order given.
    """

    def __init__(self, rig: Rig, folder: Path, chaos: str | None) -> None:
        self._rig = rig
        self._folder = folder
        self._chaos = chaos

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Hold the databases, the emulator and the application for the time of a test."""
        clock = Ticking(time.time)
        # The key is shared, and which keys are published is not: a test may rotate and revoke.
        emulator = Emulator(keys=Keys(self._rig.key, clock=clock), clock=clock, seed=0)
        with emulator, self._rig.places(self._folder, emulator.url) as settings:
            own = self._rig.registered
            self.sync = TenantSync(settings) if own is None else own.with_settings(settings)
            tenants = self.sync.directory.list()
            self.authvital = self._authvital(emulator, settings, tenants)
            self.databases = TenantDatabases(tenants, self.authvital.settle)
            with self.sync, closing(self.databases):
                yield self

    def _authvital(
        self, emulator: Emulator, settings: Settings, tenants: Iterable[Tenant]
    ) -> AuthVital:
        ids = {tenant.key: tenant.id for tenant in tenants}
        _acquaint(emulator, settings, ids)
        return AuthVital(
            emulator,
            application_id=settings.authvital.application_id,
            tenants=ids,
            post=_post(self.sync),
            drain=lambda: self.sync.worker(threads=1).drain_now(ids.values()),
            chaos=None if self._chaos is None else Chaos(self._chaos),
        )


def _acquaint(emulator: Emulator, settings: Settings, ids: Mapping[str, str]) -> None:
    """Tell the emulator of the application and of its tenants, which are subscribed to it."""
    machine, secret = _MACHINE
    application = emulator.state.add_application(
        "Application",
        id=settings.authvital.application_id,
        spa=settings.authvital.audience[0],
        machine=machine,
        secret=secret,
        default_role="editor",
    )
    kind = emulator.state.add_license_type(application.id, "Free")
    for key, tenant_id in ids.items():
        emulator.state.tenants[tenant_id] = Organisation(tenant_id, key, key)
        made = Subscription(emulator.state.ids.cuid(), tenant_id, application.id, kind.id)
        emulator.state.subscriptions[made.id] = made


def _post(sync: TenantSync) -> Post:
    def post(delivery: Delivery, system: bool) -> tuple[int, Mapping[str, str]]:
        door = sync.system_webhook if system else sync.webhook
        return door.handle_blocking(delivery.body, dict(delivery.headers))

    return post


def _engine_in(placement: Placement) -> Engine:
    """Return an engine each of whose connections stays in the place: it has no other use."""
    if not placement.is_postgres:
        return make_engine(placement.url)
    engine = create_engine(placement.url, poolclass=NullPool)
    schema = schema_of(placement)

    @event.listens_for(engine, "begin")
    def enter(connection: Connection) -> None:
        connection.execute(
            text("SELECT set_config('search_path', quote_ident(:schema), true)"), {"schema": schema}
        )

    return engine.execution_options(schema_translate_map={None: schema})


def _sqlite(folder: Path, name: str) -> str:
    return f"sqlite:///{quote(folder.as_posix(), safe='/')}/{name}.db"


def _made_up(key: str) -> str:
    return str(uuid5(NAMESPACE_URL, f"tenantsync-test:{key}"))
