"""Tenants added and removed while everything runs: killed, raced, refused, and under load."""

import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from guarding import ask, counts, ledger, make, people

from tenantsync.app import TenantSync
from tenantsync.control.catalog import Catalog, State
from tenantsync.control.database import ControlDatabase
from tenantsync.control.directory import Directory
from tenantsync.control.tables import tenants as table
from tenantsync.errors import (
    ConfigError,
    MigrationFailed,
    TenantSuspended,
    TenantSyncError,
    TenantUnavailable,
    UnknownTenant,
)
from tenantsync.migrate import status
from tenantsync.migrate.control import upgrade_control
from tenantsync.migrate.prepared import Prepared
from tenantsync.migrate.provision import ADDING, REMOVING, Outcome, Provisioner
from tenantsync.observe import Outcome as Applied
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.resolver import TenantResolver
from tenantsync.tenants import Placement

CONFIG = """
[authvital]
host = "https://auth.example.com"
application_id = "an-application"
[isolation]
{isolation}
[tenants.filed]
id = "id-of-filed"
"""
ACME = ("acme", "id-of-acme")
HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
LEAST = HOW_TO / "least-privilege.md"

# Adds or drops a tenant, and kills itself at the step whose label it is given.
PROGRAM = """
import os, signal, sys
from tenantsync.app import TenantSync
from tenantsync.migrate.provision import Provisioner

config, label, work = sys.argv[1:]

def at(reached):
    if reached == label:
        os.kill(os.getpid(), signal.SIGKILL)

with TenantSync.from_toml(config) as sync:
    tenants = Provisioner.of(sync.settings, sync.directory, sync.isolation, at=at)
    if work == "add":
        tenants.add("acme", "id-of-acme")
    else:
        tenants.remove("acme", drop=True)
"""


class House:
    """A configuration, and what is done with it.

    Args:
        file: The configuration file.
        stack: Closes what is opened.
    """

    def __init__(self, file: Path, stack: ExitStack) -> None:
        self.file = file
        self.sync = stack.enter_context(TenantSync.from_toml(file))
        self.tenants = self.provisioner()

    @property
    def catalog(self) -> Catalog:
        return self.sync.directory.catalog

    def provisioner(self, at=lambda label: None):
        sync = self.sync
        return Provisioner.of(sync.settings, sync.directory, sync.isolation, at=at)

    def place(self, key="acme", **options) -> Placement:
        return self.sync.isolation.place(key, **options)

    def standing(self):
        """Return key and state of all tenants' tables."""
        report = status(self.sync.tenants, isolation=self.sync.isolation)
        return {row.tenant: row.state.value for row in report.rows if row.tenant != "filed"}

    def killed_at(self, label, work="add"):
        """Run a process that is killed at a label; return whether it got there."""
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(self.file), label, work],
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode == -signal.SIGKILL


@pytest.fixture
def build(tmp_path, request):
    """Give what makes a house of one kind."""
    with ExitStack() as stack:

        def make_house(kind, extra=""):
            if kind == "sqlite":
                isolation = 'strategy = "database"\nurl = "sqlite:///tenants/{key}.db"'
            else:
                url = request.getfixturevalue("postgres").create_database()
                strategy = kind.partition("+")[0]
                if strategy == "database":
                    url += "_{key}"  # the name is the test's own already
                isolation = f'strategy = "{strategy}"\nurl = "{url}"'
                if kind.endswith("+role"):
                    isolation += f'\nrole = "role_{uuid4().hex[:12]}_{{key}}"'
            file = tmp_path / "tenantsync.toml"
            file.write_text(CONFIG.format(isolation=isolation + extra))
            return House(file, stack)

        yield make_house


KINDS = ("sqlite", "schema", "database", "schema+role", "database+role")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def house(build, kind):
    return build(kind)


def passed(kind):
    """Return the labels that a kind of place passes when the first tenant is added."""
    own = {
        "sqlite": {"written", "copied"},
        "schema": set(),
        "database": {"template", "copied"},
        "schema+role": {"role"},
        "database+role": {"role"},
    }
    return [label for label in ADDING if label in {"reserved", "made", "activated"} | own[kind]]


def tables_of(place):
    """Return what the database says of its own tables."""
    if not place.is_postgres:
        return sorted(ask(place, "SELECT name, sql FROM sqlite_master"))
    return sorted(
        ask(
            place,
            "SELECT table_name, column_name, data_type, column_default"
            f" FROM information_schema.columns WHERE table_schema = '{place.schema or 'public'}'",
        )
    )


def test_a_tenant_is_added_kept_and_dropped(house, kind):
    """At each step the list, the place and the answers are as they should be."""
    labels = []
    tenants = house.provisioner(at=labels.append)

    first = tenants.add(*ACME)
    again = tenants.add(*ACME)
    assert (first.outcome, again.outcome) == (Outcome.ADDED, Outcome.UNCHANGED)
    assert first.copied == (kind in ("sqlite", "database"))
    assert labels == passed(kind)
    assert house.standing() == {"acme": "ok"}
    assert counts(house.place())["av_identities"] == 0

    assert house.sync.handle_blocking(make("member.joined", tenant="id-of-acme")) is Applied.APPLIED
    assert tenants.remove("acme").outcome is Outcome.REMOVED
    assert house.standing() == {}
    assert tenants.add(*ACME).outcome is Outcome.FINISHED
    assert people(house.place()) == ["ann"]

    labels.clear()
    dropped = tenants.remove("acme", drop=True)
    assert (dropped.outcome, dropped.stays) == (Outcome.DROPPED, None)
    assert labels == list(REMOVING)
    assert house.catalog.find("acme") is None
    assert tenants.add(*ACME).outcome is Outcome.ADDED
    assert people(house.place()) == []
    event = make("member.joined", "bob", tenant="id-of-acme")
    assert house.sync.handle_blocking(event) is Applied.APPLIED
    assert people(house.place()) == ["bob"]  # and not in the file that the server had open
    tenants.remove("acme", drop=True)


def test_copies_are_what_migrating_makes(build, kind):
    """The second tenant, made from what is prepared, has the tables that migrating makes."""
    house = build(kind)
    for number in range(3):
        house.tenants.add(f"t{number}", f"id{number}")
    plain = Provisioner(house.sync.directory, house.sync.isolation)
    plain._prepared.copy_file = plain._prepared.copy_database = lambda placement: False
    assert not plain.add("plain", "id-plain").copied

    assert tables_of(house.place("t2")) == tables_of(house.place("plain")) != []
    assert set(house.standing().values()) == {"ok"}


@pytest.mark.parametrize("label", ADDING)
def test_adding_is_finished_after_a_kill(build, kind, label):
    """Killed at any step, and run again: the tenant is in service, with all of its tables."""
    if label not in passed(kind):
        return
    house = build(kind)

    assert house.killed_at(label), "the step was not reached"
    entry = house.catalog.find("acme")
    assert entry.state is (State.ACTIVE if label == "activated" else State.PROVISIONING)
    assert house.standing() == ({"acme": "ok"} if label == "activated" else {})
    again = house.tenants.add(*ACME)
    house.tenants.add("fresh", "id-of-fresh")

    assert again.outcome is (Outcome.UNCHANGED if label == "activated" else Outcome.FINISHED)
    assert house.standing() == {"acme": "ok", "fresh": "ok"}
    assert tables_of(house.place()) == tables_of(house.place("fresh"))
    if kind == "sqlite":
        left = {file.name for file in house.file.parent.joinpath("tenants").iterdir()}
        assert left == {"acme.db", "fresh.db"}
    assert house.tenants.remove("acme", drop=True).outcome is Outcome.DROPPED


@pytest.mark.parametrize("label", REMOVING)
def test_dropping_is_finished_after_a_kill(house, label):
    """Killed at any step, and run again: nothing of the tenant is left; it can be added anew."""
    house.tenants.add(*ACME)

    assert house.killed_at(label, "drop"), "the step was not reached"
    assert house.standing() == {}
    if label != "forgotten":
        with pytest.raises(ConfigError, match="is being dropped"):
            house.tenants.add(*ACME)
        with pytest.raises(ConfigError, match="is being dropped already"):
            house.tenants.remove("acme")
        assert house.tenants.remove("acme", drop=True).outcome is Outcome.DROPPED

    assert house.catalog.find("acme") is None
    assert house.tenants.add(*ACME).outcome is Outcome.ADDED
    assert people(house.place()) == []
    house.tenants.remove("acme", drop=True)


def test_added_twice_at_once_it_is_added(house):
    """The same call from many sides ends well on all of them."""
    start = threading.Barrier(4)

    def add(_):
        tenants = house.provisioner()
        start.wait()
        return tenants.add(*ACME).outcome

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(add, range(4)))

    assert set(outcomes) <= {Outcome.ADDED, Outcome.FINISHED, Outcome.UNCHANGED}
    assert house.standing() == {"acme": "ok"}
    house.tenants.remove("acme", drop=True)


def test_one_provisioner_serves_many_threads(build, kind):
    """What it prepares is prepared once, and each tenant gets a place of its own."""
    house = build(kind)
    keys = [f"t{number}" for number in range(8)]

    with ThreadPoolExecutor(4) as pool:
        added = list(pool.map(lambda key: house.tenants.add(key, f"id-{key}"), keys))

    assert {each.outcome for each in added} == {Outcome.ADDED}
    assert house.standing() == dict.fromkeys(keys, "ok")


def test_every_step_is_one_where_somebody_is_killed():
    """Each label belongs to a kind of place that the tests kill at."""
    assert {label for kind in KINDS for label in passed(kind)} == set(ADDING)


def test_of_two_tenants_for_one_key_one_wins(house):
    """The other is told whose it is, and nothing of it is left."""
    start = threading.Barrier(4)

    def add(number):
        tenants = house.provisioner()
        start.wait()
        try:
            return tenants.add("acme", f"id{number}").tenant.id
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(add, range(4)))

    entry = house.catalog.find("acme")
    assert results.count(entry.id) == 1
    assert sum(f"belongs to the tenant with the id '{entry.id}'" in each for each in results) == 3
    assert [tenant.key for tenant in house.sync.tenants] == ["filed", "acme"]
    house.tenants.remove("acme", drop=True)


@pytest.mark.parametrize("kind", ["sqlite", "schema"])
def test_none_of_the_events_is_lost_while_tenants_are_added(build, kind):
    """200 tenants are added under load; each event that is sent until it is taken, is in place."""
    house = build(kind)
    keys = [f"t{number:03}" for number in range(200)]
    directory = Directory((), Catalog(house.sync.control), house.sync.isolation, refresh_after=0.05)
    resolver = TenantResolver(directory, negative_ttl=0.05)
    waiting = threading.Event()

    def send(key):
        event = make("member.joined", f"{key}/ann", tenant=f"id-of-{key}", id=f"{key}/joined")
        refused = set()
        while True:
            try:
                return handler.handle_blocking(event), refused
            except (UnknownTenant, TenantUnavailable) as error:
                refused.add(type(error))
                waiting.wait(0.02)

    def add(some):
        tenants = house.provisioner()
        return [tenants.add(key, f"id-of-{key}").outcome for key in some]

    with (
        IdentitySyncHandler(resolver, isolation=house.sync.isolation, observers=()) as handler,
        ThreadPoolExecutor(10) as senders,
        ThreadPoolExecutor(2) as adders,
    ):
        # Sent from the last one on, so that most are sent long before their tenant is there.
        sent = [senders.submit(send, key) for key in sorted(keys, key=lambda key: key[::-1])]
        outcomes = [each for done in adders.map(add, (keys[::2], keys[1::2])) for each in done]
        results = [future.result(120) for future in sent]

    assert outcomes == [Outcome.ADDED] * 200
    assert {outcome for outcome, _ in results} == {Applied.APPLIED}
    assert UnknownTenant in set().union(*(refused for _, refused in results))
    for key in keys:
        assert people(house.place(key)) == [f"{key}/ann"]
        assert ledger(house.place(key)) == [f"{key}/joined"]


def test_a_running_server_sees_what_changes(build):
    """Added, suspended, resumed and removed: after the time to live each is known."""
    house = build("sqlite")
    now = 0.0

    def clock():
        return now

    directory = Directory((), house.catalog, house.sync.isolation, clock=clock)
    resolver = TenantResolver(directory, clock=clock)
    with pytest.raises(UnknownTenant):
        resolver.resolve_blocking("id-of-acme")
    house.tenants.add(*ACME)
    with pytest.raises(UnknownTenant):
        resolver.resolve_blocking("id-of-acme")
    now += 5
    assert resolver.resolve_blocking("id-of-acme").key == "acme"
    house.tenants.suspend("acme")
    now += 30
    with pytest.raises(TenantSuspended):
        resolver.resolve_blocking("id-of-acme")
    house.tenants.resume("acme")
    now += 30
    assert resolver.resolve_blocking("id-of-acme").key == "acme"
    house.tenants.remove("acme")
    now += 30
    with pytest.raises(UnknownTenant):
        resolver.resolve_blocking("id-of-acme")


def test_the_catalog_may_be_on_postgresql_for_places_in_files(build, postgres):
    """Books and places need not be of one kind."""
    url = postgres.create_database()
    house = build("sqlite", extra=f'\n[control]\nurl = "{url}"')

    house.tenants.add(*ACME)

    assert house.standing() == {"acme": "ok"}
    assert not (house.file.parent / "tenantsync.db").exists()
    assert house.tenants.remove("acme", drop=True).outcome is Outcome.DROPPED


def test_all_may_share_one_place(build, tmp_path):
    """With the strategy `single` a tenant is a line in the list, and its place is everybody's."""
    house = build("sqlite")
    house.file.write_text(CONFIG.format(isolation='strategy = "single"\nurl = "sqlite:///one.db"'))
    with TenantSync.from_toml(house.file) as sync:
        tenants = Provisioner.of(sync.settings, sync.directory, sync.isolation)
        tenants.add(*ACME)
        tenants.add("globex", "id-of-globex")

        assert [tenant.key for tenant in sync.tenants] == ["filed", "acme", "globex"]
        assert tenants.remove("acme").outcome is Outcome.REMOVED
        forgotten = tenants.remove("acme", drop=True)
        assert (forgotten.what, forgotten.stays) == (None, "its place stays: all tenants share it")
        assert [tenant.key for tenant in sync.tenants] == ["filed", "globex"]
    assert (tmp_path / "one.db").is_file()


@pytest.mark.parametrize("kind", ["sqlite", "schema", "database"])
def test_where_other_people_live_nobody_moves_in(house):
    """A place with people of another tenant is refused, and stays out of service."""
    house.tenants.add("old", "id-of-old")
    event = make("member.joined", tenant="id-of-old")
    assert house.sync.handle_blocking(event) is Applied.APPLIED
    entry = house.catalog.find("old")
    place = house.place("old")
    with house.catalog.database.write() as connection:  # as if it was never added
        connection.exec_driver_sql("DELETE FROM tenants")
    url = place.url.render_as_string(hide_password=False)

    with pytest.raises(ConfigError, match="holds people of the tenant with the id 'id-of-old'"):
        house.tenants.add("new", "id-of-new", url=url, schema=place.schema)

    assert house.catalog.find("new").state is State.PROVISIONING
    assert house.tenants.remove("new").outcome is Outcome.REMOVED
    with pytest.raises(ConfigError, match="belongs to the tenant 'new', which was removed"):
        house.tenants.add("old", entry.id)
    assert house.tenants.remove("new", drop=True).what is None
    assert house.tenants.add("old", entry.id).outcome is Outcome.ADDED
    assert people(place) == ["ann"]


def test_nothing_is_copied_that_migrations_fill(build, kind, tmp_path):
    """Where a revision of the application leaves rows, each place gets its own."""
    versions = tmp_path / "versions"
    versions.mkdir()
    (versions / "mine.py").write_text(
        "import uuid\nimport sqlalchemy as sa\nfrom alembic import op\n"
        "revision = 'mine'\ndown_revision = None\ndepends_on = 'tenantsync_0001'\n"
        "def upgrade():\n"
        "    table = op.create_table('marks', sa.Column('id', sa.Text(), primary_key=True))\n"
        "    op.bulk_insert(table, [{'id': str(uuid.uuid4())}])\n"
    )
    house = build(kind, extra='\n[migrations]\nlocations = ["versions"]')

    for key in ("one", "two"):
        assert not house.tenants.add(key, key).copied

    marks = [ask(house.place(key), "SELECT id FROM {s}marks") for key in ("one", "two")]
    assert len(marks[0]) == len(marks[1]) == 1
    assert marks[0] != marks[1]


def test_a_file_is_never_overwritten(tmp_path):
    """What somebody else made in the last moment stays; the copy says that it made nothing."""
    target = tmp_path / "acme.db"

    def migrate(place):
        engine = make_engine(place.url, create=True)
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE TABLE t (x)")
        engine.dispose()

    def meanwhile(label):
        if label == "written":
            target.write_text("precious")

    prepared = Prepared(migrate, make_engine, name="", at=meanwhile)

    assert not prepared.copy_file(Placement.of(f"sqlite:///{target}"))
    assert target.read_text() == "precious"
    assert [file.name for file in tmp_path.iterdir()] == ["acme.db"]


def test_a_log_that_outlived_its_file_is_not_replayed(build):
    """What a former file left beside it does not get into the new one."""
    house = build("sqlite")
    folder = house.file.parent / "tenants"
    folder.mkdir()
    for suffix in ("-wal", "-shm"):
        (folder / f"acme.db{suffix}").write_bytes(b"not a log" * 1000)

    house.tenants.add(*ACME)

    assert house.standing() == {"acme": "ok"}


@pytest.mark.parametrize("kind", ["sqlite", "schema"])
def test_a_place_that_cannot_be_made_is_finished_later(house, tmp_path):
    """The failure names what is wrong; after it is repaired, the same call goes on."""
    if house.place().is_postgres:
        # A table of the name that ours have, in the schema that the tenant will get.
        with psycopg.connect(
            house.place().url.set(drivername="postgresql").render_as_string(hide_password=False)
        ) as connection:
            connection.execute("CREATE SCHEMA tenant_acme")
            connection.execute("CREATE TABLE tenant_acme.av_identities (id int)")

        def repair():
            ask(house.place(), "DROP TABLE {s}av_identities")
    else:
        (tmp_path / "tenants").mkdir()
        (tmp_path / "tenants" / "acme.db").write_text("this is no database, for sure it is not")

        def repair():
            (tmp_path / "tenants" / "acme.db").unlink()

    with pytest.raises((MigrationFailed, TenantSyncError)):
        house.tenants.add(*ACME)
    assert house.catalog.find("acme").state is State.PROVISIONING
    with pytest.raises(TenantUnavailable, match="is being made"):
        house.sync.directory.find("id-of-acme")
    repair()

    assert house.tenants.add(*ACME).outcome is Outcome.FINISHED
    assert house.standing() == {"acme": "ok"}


def test_a_database_that_is_down_leaves_no_trace(build):
    """Where the place cannot even be looked at, nothing is written down."""
    house = build("sqlite")

    with pytest.raises(TenantUnavailable, match="cannot be reached"):
        house.tenants.add(*ACME, url="postgresql+psycopg://nobody@127.0.0.1:1/nothing")

    assert house.catalog.find("acme") is None


def test_a_database_that_others_need_is_not_dropped(build):
    """One that was made for a tenant stays while another one has a schema in it."""
    house = build("database")
    house.tenants.add(*ACME)
    url = house.place().url.render_as_string(hide_password=False)
    house.tenants.add("globex", "id-of-globex", url=url, schema="globex")

    with pytest.raises(ConfigError, match="tenant 'globex' lives in the place of 'acme' too"):
        house.tenants.remove("acme", drop=True)
    assert house.standing() == {"acme": "ok", "globex": "ok"}
    assert house.tenants.remove("globex", drop=True).what == "schema 'globex'"
    assert house.tenants.remove("acme", drop=True).outcome is Outcome.DROPPED


def test_the_control_database_is_not_dropped_with_a_tenant(build, postgres):
    """Where a tenant's own database holds our books too, it stays."""
    house = build("database")
    house.tenants.add(*ACME)
    url = house.place().url.render_as_string(hide_password=False)
    with ControlDatabase(url) as inside:
        upgrade_control(inside)
        directory = Directory((), Catalog(inside), house.sync.isolation)
        tenants = Provisioner(directory, house.sync.isolation)
        with inside.write() as connection:  # as if the place had been made by these books
            entry = house.catalog.find("acme")
            columns = {name: getattr(entry, name) for name in ("key", "id", "place", "added_at")}
            connection.execute(
                table.insert().values(**columns, made=True, state=State.ACTIVE, changed=1)
            )
        with pytest.raises(ConfigError, match="holds the control database"):
            tenants.remove("acme", drop=True)
    house.tenants.remove("acme", drop=True)


class Least:
    """Two logins that may little, and a database for them.

    Args:
        postgres: The server.
    """

    def __init__(self, postgres) -> None:
        self.postgres = postgres
        mark = uuid4().hex[:10]
        self.app, self.owner, self.role = f"app_{mark}", f"ddl_{mark}", f"t_{mark}_{{key}}"
        self.url = postgres.create_database()
        self.database = self.url.rpartition("/")[2]
        names = {"app": self.app, "owner": self.owner, "main": self.database}
        told = re.search(r"```sql\n(.*?)```", LEAST.read_text(), re.DOTALL).group(1)
        with postgres.connect(self.database) as connection:
            for line in told.splitlines():
                if line and not line.startswith("--"):
                    words = re.sub(r"\b(app|owner|main)\b", lambda m: names[m.group()], line)
                    connection.execute(words)

    def as_(self, login):
        return self.url.replace("postgres@", f"{login}@")

    def connect(self, login):
        return psycopg.connect(self.as_(login).replace("+psycopg", ""), autocommit=True)


@pytest.fixture
def least(postgres):
    return Least(postgres)


@pytest.fixture
def small(least, tmp_path):
    """A house whose application may do nothing but take its tenants' roles."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(
        CONFIG.format(
            isolation=f'strategy = "schema"\nurl = "{least.as_(least.app)}"\n'
            f'migration_url = "{least.as_(least.owner)}"\nrole = "{least.role}"'
        )
    )
    with ExitStack() as stack:
        yield House(file, stack)


def test_postgresql_itself_keeps_tenants_apart(small, least):
    """Events are applied in the tenant's role; to another one's tables it has no access."""
    for key in ("acme", "globex"):
        small.tenants.add(key, f"id-of-{key}")
        event = make("member.joined", f"{key}/ann", tenant=f"id-of-{key}")
        assert small.sync.handle_blocking(event) is Applied.APPLIED

    with least.connect(least.app) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):  # being a member gives nothing
            connection.execute("SELECT * FROM tenant_acme.av_identities")
        connection.execute(f"SET ROLE {least.role.format(key='acme')}")
        found = connection.execute("SELECT id FROM tenant_acme.av_identities").fetchall()
        assert found == [("acme/ann",)]
        for statement in (
            "SELECT * FROM tenant_globex.av_identities",
            "INSERT INTO tenant_globex.av_identity_tombstones VALUES ('x', 'y')",
            "DROP TABLE tenant_globex.av_identities",
            "CREATE TABLE tenant_globex.mine (id int)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_a_hook_that_looks_into_another_tenant_is_refused(small, least):
    """Raw SQL of the application runs in the tenant's role too."""
    small.tenants.add(*ACME)
    small.tenants.add("globex", "id-of-globex")
    refused = []

    @small.sync.on("member.joined")
    def look(event, session):
        try:
            session.connection().exec_driver_sql("SELECT * FROM tenant_globex.av_identities")
        except Exception as error:
            refused.append(type(error.orig))
            raise

    outcome = small.sync.handle_blocking(make("member.joined", tenant="id-of-acme"))
    assert outcome is Applied.PARKED
    assert refused == [psycopg.errors.InsufficientPrivilege]


def test_the_role_goes_with_the_tenant(small, least):
    """A role that was made for a tenant is dropped with it; one that was there before stays."""
    acme, globex = (least.role.format(key=key) for key in ("acme", "globex"))
    with least.connect(least.owner) as connection:
        connection.execute(f"CREATE ROLE {globex}")
    small.tenants.add(*ACME)
    small.tenants.add("globex", "id-of-globex")

    first = small.tenants.remove("acme", drop=True)
    second = small.tenants.remove("globex", drop=True)

    assert (first.what, first.stays) == ("schema 'tenant_acme'", None)
    assert second.stays == f"the role {globex!r} stays: it was not made by tenantsync"
    with least.connect(least.owner) as connection:
        found = connection.execute(
            "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", [[acme, globex]]
        ).fetchall()
    assert found == [(globex,)]


def test_tables_that_the_owner_has_are_the_roles_to_use(small, least):
    """Made by hand or before there was a role: the role may use them, and later ones."""
    small.tenants.add(*ACME)
    with least.connect(least.owner) as connection:
        connection.execute("CREATE TABLE tenant_acme.later (id int)")
    with least.connect(least.app) as connection:
        connection.execute(f"SET ROLE {least.role.format(key='acme')}")
        connection.execute("INSERT INTO tenant_acme.later VALUES (1)")


def test_without_the_right_to_make_roles_the_error_says_what_to_run(small, least):
    """The sentence has the two statements; once somebody ran them, the same call goes on."""
    role = least.role.format(key="acme")
    with least.postgres.connect() as connection:
        connection.execute(f"ALTER ROLE {least.owner} NOCREATEROLE")

        with pytest.raises(ConfigError, match="CREATEROLE") as caught:
            small.tenants.add(*ACME)
        for statement in str(caught.value).partition("run: ")[2].split("; "):
            connection.execute(statement)

    assert small.tenants.add(*ACME).outcome is Outcome.FINISHED
    event = make("member.joined", tenant="id-of-acme")
    assert small.sync.handle_blocking(event) is Applied.APPLIED
    small.tenants.remove("acme", drop=True)
    with least.postgres.connect() as connection:
        connection.execute(f"DROP ROLE {role}")


def test_the_example_of_the_page_runs(capsys):
    """What docs/how-to/provision.md shows does what it says."""
    (program,) = re.findall(
        r"^```python\n(.*?)^```", (HOW_TO / "provision.md").read_text(), re.MULTILINE | re.DOTALL
    )

    exec(compile(program, "provision.md", "exec"), {})  # noqa: S102

    assert capsys.readouterr().out == "added globex\nTrue True\nfile globex.db\n"
