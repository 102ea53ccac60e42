"""The control database, its catalog, and the one list of all tenants."""

import json
import re
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from tenantsync.control.catalog import Catalog, State, Wish, place_of
from tenantsync.control.database import ControlDatabase, ControlMissing, ControlUnavailable
from tenantsync.control.directory import Directory
from tenantsync.control.profiles import profiles, provisions
from tenantsync.control.reconciliations import reconciliations
from tenantsync.control.tables import METADATA, SCHEMA, VERSION_TABLE, tenants
from tenantsync.errors import ConfigError, TenantUnavailable
from tenantsync.migrate.control import control_standing, upgrade_control
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Placement, Tenant

ISOLATION = DatabaseIsolation("sqlite:////nowhere/{key}.db")
NOWHERE = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def unmade(database_url):
    """A control database that nobody made yet."""
    with ControlDatabase(database_url) as made:
        yield made


@pytest.fixture
def control(unmade):
    upgrade_control(unmade)
    return unmade


@pytest.fixture
def catalog(control):
    return Catalog(control)


def wish(key="acme", tenant_id=None, **options):
    tenant_id = tenant_id or f"id-of-{key}"
    return Wish(key=key, id=tenant_id, place=options.pop("place", f"place-of-{key}"), **options)


def added(catalog, key, tenant_id=None, **options):
    """Put a tenant into service, without a place."""
    place = place_of(ISOLATION.place(key, url=options.get("url")))
    catalog.reserve(wish(key, tenant_id, place=place, **options))
    return catalog.move(key, State.ACTIVE)


def of_file(*keys):
    return [Tenant(f"id-of-{key}", key, ISOLATION.place(key)) for key in keys]


def ids(news):
    return {entry.key: entry.state for entry in news.entries}


def test_the_file_is_private_and_durable(tmp_path):
    """The SQLite file and its log are for their owner only; each commit reaches the disk."""
    file = tmp_path / "books" / "control.db"
    with ControlDatabase(f"sqlite:///{file}") as database:
        upgrade_control(database)
        with database.write() as connection:
            (mode,) = connection.exec_driver_sql("PRAGMA journal_mode").one()
            (level,) = connection.exec_driver_sql("PRAGMA synchronous").one()
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in file.parent.iterdir()}

    assert (mode, level) == ("wal", 2)
    assert modes == dict.fromkeys(("control.db", "control.db-wal", "control.db-shm"), 0o600)


def test_the_mode_that_somebody_gave_the_file_stays(tmp_path):
    """A file that is there is migrated and not made anew."""
    file = tmp_path / "control.db"
    file.touch()
    file.chmod(0o640)
    with ControlDatabase(f"sqlite:///{file}") as database:
        upgrade_control(database)

        assert Catalog(database).news().entries == ()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    """Where the file cannot be made, the error says which and why."""
    (tmp_path / "file").touch()
    with (
        ControlDatabase(f"sqlite:///{tmp_path}/file/control.db") as database,
        pytest.raises(ControlUnavailable, match=r"file/control\.db cannot be made"),
    ):
        upgrade_control(database)


def test_upgrading_again_and_at_once_changes_nothing(unmade):
    """Several may make the control database at the same time."""
    with ThreadPoolExecutor(6) as pool:
        heads = list(pool.map(lambda _: upgrade_control(unmade), range(6)))

    assert len(heads) == 6
    assert {(head, head) for head in heads} == {control_standing(unmade)}
    assert Catalog(unmade).news().mark.made == 0


def test_the_revisions_make_what_the_tables_say(control):
    """Migrations and table definitions agree."""
    with control.write() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, *_: name != VERSION_TABLE}
        )
        assert compare_metadata(context, METADATA) == []
    assert {profiles.name, provisions.name, reconciliations.name} <= set(METADATA.tables)


def test_a_database_that_was_not_made_is_told_from_one_that_is_down(unmade):
    """Missing tables say so; a server that refuses says something else."""
    with pytest.raises(ControlMissing):
        Catalog(unmade).news()
    assert Catalog(unmade).find("acme") is None
    with ControlDatabase(NOWHERE) as down, pytest.raises(ControlUnavailable) as caught:
        Catalog(down).find("acme")
    assert not isinstance(caught.value, ControlMissing)


def test_an_error_rolls_all_of_it_back(catalog):
    """A transaction that fails leaves nothing behind, on either database."""
    added(catalog, "acme")

    def fail():
        with catalog.database.write() as connection:
            connection.execute(text("UPDATE changes SET made = 99"))
            connection.execute(tenants.delete())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert catalog.news().mark.made == 2
    assert ids(catalog.news()) == {"acme": State.ACTIVE}


def test_on_postgresql_the_tables_have_a_schema_of_their_own(postgres):
    """Nothing of it stands in `public`, and no search_path outlives a transaction."""
    url = postgres.create_database()
    with ControlDatabase(url) as database:
        upgrade_control(database)
        with database.read() as connection:
            inside = connection.scalar(text("SELECT current_schema()"))
        with postgres.connect(url.rpartition("/")[2]) as connection:
            found = connection.execute(
                "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^(pg_|information)'"
            ).fetchall()

    assert (inside, found) == (SCHEMA, [(SCHEMA,)])


def test_a_tenant_is_written_down_before_it_is_served(catalog):
    """A reservation is `provisioning`; reserving again finds it; then it is `active`."""
    first = catalog.reserve(wish())
    again = catalog.reserve(wish(made=False))
    active = catalog.move("acme", State.ACTIVE)

    assert first == again
    assert (first.state, active.state) == (State.PROVISIONING, State.ACTIVE)
    assert catalog.reserve(wish()) == active == catalog.find("acme")
    assert first.added_at.tzinfo is not None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (wish("acme", "another"), "the key 'acme' belongs to the tenant with the id 'id-of-acme'"),
        (wish("globex", "id-of-acme"), "the id 'id-of-acme' belongs to the tenant 'acme'"),
        (wish("globex", place="place-of-acme"), "the place of 'globex' belongs to the tenant"),
        (wish(schema="mine"), "with another url, schema or role"),
    ],
)
def test_what_another_tenant_has_is_refused(catalog, other, words):
    """No two tenants have one key, one id or one place."""
    catalog.reserve(wish())

    with pytest.raises(ConfigError, match=words):
        catalog.reserve(other)


def test_without_a_place_of_ones_own_many_share_one(catalog):
    """Where all tenants live in one place, places are not compared."""
    catalog.reserve(wish("acme", place=None))
    catalog.reserve(wish("globex", place=None))

    assert len(catalog.news().entries) == 2


def test_of_those_who_race_one_wins(catalog):
    """Many want one place at once: one gets it, and the others are told whose it is."""
    start = threading.Barrier(8)

    def race(number):
        start.wait()
        try:
            return catalog.reserve(wish(f"t{number}", place="the-one")).key
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(race, range(8)))

    (winner,) = [entry.key for entry in catalog.news().entries]
    assert results.count(winner) == 1
    assert sum(f"belongs to the tenant '{winner}'" in result for result in results) == 7


def test_the_data_of_a_removed_tenant_is_nobody_elses(catalog):
    """Its key, id and place stay taken; it may come back, or be dropped and forgotten."""
    added(catalog, "acme")
    catalog.move("acme", State.REMOVED)

    with pytest.raises(ConfigError, match="whose data is kept"):
        catalog.reserve(wish("acme", "another"))
    with pytest.raises(ConfigError, match="whose data is kept"):
        catalog.reserve(wish("globex", "id-of-acme"))
    place = place_of(ISOLATION.place("acme"))
    assert catalog.reserve(wish("acme", place=place)).state is State.PROVISIONING


def test_what_is_being_dropped_can_only_be_dropped(catalog):
    """From there no state follows; when it is forgotten, key and id are free."""
    added(catalog, "acme")
    catalog.suspend("acme")
    catalog.move("acme", State.DROPPING)

    with pytest.raises(ConfigError, match="is being dropped"):
        catalog.reserve(wish())
    with pytest.raises(ConfigError, match="is dropping and cannot become active"):
        catalog.move("acme", State.ACTIVE)
    assert catalog.forget("acme")
    assert not catalog.forget("acme")
    assert catalog.reserve(wish("acme", "another")).id == "another"
    assert catalog.news().suspended == {}


def test_only_what_is_being_dropped_can_be_forgotten(catalog):
    """A tenant in service is not lost by a stray call."""
    added(catalog, "acme")

    assert not catalog.forget("acme")
    assert catalog.find("acme") is not None
    with pytest.raises(ConfigError, match="no tenant 'globex'"):
        catalog.move("globex", State.ACTIVE)


def test_suspending_twice_is_suspending_once(catalog):
    """Suspend and resume say whether they changed something."""
    changed = [catalog.suspend("acme"), catalog.suspend("acme")]
    since = catalog.news().suspended
    changed += [catalog.resume("acme"), catalog.resume("acme")]

    assert changed == [True, False, True, False]
    assert list(since) == ["acme"]
    assert catalog.news().suspended == {}


def test_news_is_what_changed(catalog):
    """A reader gets everything once, then only what is new; after a deletion everything again."""
    added(catalog, "acme")
    first = catalog.news()
    added(catalog, "globex")
    second = catalog.news(first.mark)
    catalog.move("acme", State.DROPPING)
    catalog.forget("acme")
    third = catalog.news(second.mark)

    assert (first.whole, ids(first)) == (True, {"acme": State.ACTIVE})
    assert (second.whole, ids(second)) == (False, {"globex": State.ACTIVE})
    assert (third.whole, ids(third)) == (True, {"globex": State.ACTIVE})
    assert catalog.news(third.mark) is None
    assert catalog.news(replace(third.mark, made=10_000)).whole


def test_no_repr_shows_a_url(catalog):
    """A URL may hold a password; what is printed of an entry does not."""
    entry = catalog.reserve(wish(url="postgresql+psycopg://app:hunter2@db/x"))

    assert "hunter2" not in repr(entry)
    assert "hunter2" not in place_of(Placement.of("postgresql+psycopg://app:hunter2@db/x"))
    assert json.loads(place_of(Placement.of("postgresql+psycopg://a@db/x", "s")))[1:] == [
        *("db", "5432", "x", "s")
    ]


def test_the_file_is_served_before_there_is_a_control_database(unmade, clock):
    """Who never added or suspended anybody needs none; once there is one, it counts."""
    directory = Directory(of_file("acme"), Catalog(unmade), ISOLATION, clock=clock)

    assert directory.find("id-of-acme").key == "acme"
    assert directory.find("id-of-globex") is None
    assert [tenant.key for tenant in directory.list()] == ["acme"]

    upgrade_control(unmade)
    added(directory.catalog, "globex")
    directory.catalog.suspend("acme")
    clock.now += 2

    assert directory.find("id-of-globex").key == "globex"
    assert directory.find("id-of-acme").suspended
    assert [(each.key, each.suspended) for each in directory.list()] == [
        ("acme", True),
        ("globex", False),
    ]


def test_a_change_is_seen_when_the_catalog_is_asked_again(catalog, clock):
    """Until then the former answer stands, so that events do not each ask."""
    directory = Directory((), catalog, ISOLATION, refresh_after=1, clock=clock)
    added(catalog, "acme")
    before = directory.find("id-of-acme")
    catalog.suspend("acme")
    remembered = directory.find("id-of-acme")
    clock.now += 1
    after = directory.find("id-of-acme")
    catalog.resume("acme")
    catalog.move("acme", State.REMOVED)
    clock.now += 1

    assert (before.suspended, remembered.suspended, after.suspended) == (False, False, True)
    assert directory.find("id-of-acme") is None


def test_a_tenant_that_is_being_made_is_not_unknown(catalog, clock):
    """Its events are to come again."""
    directory = Directory((), catalog, ISOLATION, clock=clock)
    catalog.reserve(wish())

    with pytest.raises(TenantUnavailable, match="'acme' is being made"):
        directory.find("id-of-acme")
    assert directory.list() == []
    assert [line.state for line in directory.lines()] == ["provisioning"]


class Failing(Catalog):
    """A catalog that cannot be asked while `down` is set."""

    down: Exception | None = None
    asked = 0

    def news(self, since=None):
        self.asked += 1
        if self.down is not None:
            raise self.down
        return super().news(since)


@pytest.mark.parametrize("down", [ControlUnavailable("down"), ControlMissing("gone")])
def test_an_outage_changes_nothing_for_those_who_are_known(control, clock, down):
    """Tenants and suspensions are served as last known; who is not known is not unknown."""
    catalog = Failing(control)
    for key in ("acme", "globex"):
        added(catalog, key)
    catalog.suspend("globex")
    catalog.suspend("filed")
    directory = Directory(of_file("filed", "other"), catalog, ISOLATION, clock=clock)
    assert directory.find("nobody") is None

    catalog.down = down
    clock.now += 60

    assert not directory.find("id-of-acme").suspended
    assert directory.find("id-of-globex").suspended
    assert directory.find("id-of-filed").suspended
    assert not directory.find("id-of-other").suspended
    with pytest.raises(ControlUnavailable):
        directory.find("nobody")
    catalog.down = None
    clock.now += 60
    assert directory.find("nobody") is None


def test_an_outage_costs_one_attempt(control, clock):
    """While the control database is down, not every event waits for it."""
    catalog = Failing(control)
    catalog.down = ControlUnavailable("down")
    directory = Directory(of_file("acme"), catalog, ISOLATION, clock=clock)

    for _ in range(5):
        with pytest.raises(ControlUnavailable):
            directory.find("id-of-acme")

    assert catalog.asked == 1


def test_nobody_is_left_out_of_a_list_in_silence(control, clock):
    """Migrations go through the list: it is complete, or it is an error."""
    catalog = Failing(control)
    directory = Directory(of_file("acme"), catalog, ISOLATION, clock=clock)
    directory.find("id-of-acme")
    catalog.down = ControlUnavailable("down")

    with pytest.raises(ControlUnavailable):
        directory.list()


def test_one_asks_and_the_others_go_on(control, clock):
    """Who is known is not kept waiting while the catalog is slow to answer."""
    asked, answer = threading.Event(), threading.Event()

    class Slow(Catalog):
        def news(self, since=None):
            if since is not None:
                asked.set()
                assert answer.wait(10)
            return super().news(since)

    directory = Directory(of_file("acme"), Slow(control), ISOLATION, clock=clock)
    directory.find("id-of-acme")
    clock.now += 60
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(directory.find, "id-of-acme")
        assert asked.wait(10)
        found = directory.find("id-of-acme")
        answer.set()

        assert asking.result().key == found.key == "acme"


def test_in_an_outage_nobody_waits_for_who_asks(control, clock):
    """That may take seconds, and whoever waits holds a thread; what it finds is seen afterwards."""
    asked, answer = threading.Event(), threading.Event()

    class Silent(Failing):
        def news(self, since=None):
            if self.asked:
                asked.set()
                assert answer.wait(10)
            return super().news(since)

    catalog = Silent(control)
    catalog.down = ControlUnavailable("down")
    directory = Directory(of_file("acme"), catalog, ISOLATION, clock=clock)
    with pytest.raises(ControlUnavailable):
        directory.find("nobody")
    clock.now += 60
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(directory.find, "nobody")
        assert asked.wait(10)
        with pytest.raises(ControlUnavailable):
            pool.submit(directory.find, "somebody").result(5)
        catalog.down = None
        answer.set()

        assert asking.result(10) is None
    assert directory.find("somebody") is None


def test_the_file_and_the_catalog_are_one_list(catalog, clock):
    """What the file has cannot be added; the control database's own place neither."""
    directory = Directory(of_file("acme"), catalog, ISOLATION, clock=clock)
    acme = ISOLATION.place("acme")

    def refused(key, tenant_id, place):
        with pytest.raises(ConfigError) as caught:
            directory.refuse(Tenant(tenant_id, key, place))
        return str(caught.value)

    assert "has a tenant 'acme' already" in refused("acme", "new", ISOLATION.place("x"))
    assert "has the id of 'new' already" in refused("new", "id-of-acme", ISOLATION.place("x"))
    assert "belongs to tenant 'acme' of the file" in refused("new", "new", acme)
    own = catalog.database.placement
    assert "is the control database" in refused("new", "new", own)
    directory.refuse(Tenant("new", "new", ISOLATION.place("new")))


def test_a_tenant_that_both_have_is_not_served_from_two_places(catalog, clock):
    """The file wins for who is the same; who is in the way of the file's is refused."""
    added(catalog, "same")
    added(catalog, "mine", "another-id")
    added(catalog, "squatter", url="sqlite:////nowhere/filed.db")
    directory = Directory(of_file("same", "mine", "filed"), catalog, ISOLATION, clock=clock)

    assert directory.find("id-of-same").key == "same"
    with pytest.raises(TenantUnavailable, match="has a tenant 'mine' already"):
        directory.find("another-id")
    with pytest.raises(TenantUnavailable, match="belongs to tenant 'filed' of the file"):
        directory.find("id-of-squatter")
    with pytest.raises(ConfigError, match="has a tenant 'mine' already"):
        directory.list()
    assert [(line.key, line.source) for line in directory.lines()] == [
        *((key, "file") for key in ("same", "mine", "filed")),
        *((key, "control") for key in ("mine", "squatter")),
    ]


def test_a_tenant_whose_place_is_not_allowed_any_more_stops_only_itself(catalog, clock):
    """After the configuration changed, the others are served, and the list says what is wrong."""
    added(catalog, "acme")
    added(catalog, "globex", url="sqlite:////nowhere/{other}.db".replace("{other}", "globex"))
    directory = Directory((), catalog, DatabaseIsolation(None), clock=clock)

    assert directory.find("id-of-globex").key == "globex"
    with pytest.raises(TenantUnavailable, match="has no url"):
        directory.find("id-of-acme")
    with pytest.raises(ConfigError, match="has no url"):
        directory.list()


def test_two_tenants_of_the_file_with_one_id_are_refused(catalog):
    """As in the file itself."""
    twice = [Tenant("one-id", key, ISOLATION.place(key)) for key in ("acme", "globex")]

    with pytest.raises(ConfigError, match="'globex' has the key or the id"):
        Directory(twice, catalog, ISOLATION)


def test_an_unreadable_folder_is_no_missing_file(tmp_path):
    """What cannot be looked at may be there: a name too long stands for it, also for root."""
    name = "x" * 300
    with (
        ControlDatabase(f"sqlite:///{Path(tmp_path, name)}") as database,
        pytest.raises(ControlUnavailable, match="cannot be reached") as caught,
    ):
        Catalog(database).news()
    assert not isinstance(caught.value, ControlMissing)


def test_the_reference_names_every_column():
    """No table or column of the control database is left out of docs/reference/tables.md."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "tables.md").read_text()
    page = page.partition("# The control database\n")[2]
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))

    for name, table in METADATA.tables.items():
        rows = [line.split("|")[1] for line in sections[name].splitlines() if line[:3] == "| `"]
        assert re.findall(r"`(\w+)`", " ".join(rows)) == [column.name for column in table.columns]
