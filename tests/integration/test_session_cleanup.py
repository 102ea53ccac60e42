"""Old local sessions are removed: in one place, over a fleet, and each day."""

import logging
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from guarding import ask, connected
from sqlalchemy import create_engine, event, insert

from tenantsync.errors import TenantNotIsolated, TenantNotMigrated, TenantUnavailable
from tenantsync.local_sessions import open_session
from tenantsync.models import Identity, IdentitySession
from tenantsync.sync.stale_sessions import Stale, StaleSessions
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.tenants import Placement, Tenant
from tenantsync.worker.cleanup import CleanupRule, ScheduledCleanup, SessionCleanup

NOON = datetime(2026, 8, 22, 12, tzinfo=UTC)
DAY = timedelta(days=1)
# Name -> days since it expired, and since it was revoked.
SESSIONS = {
    "open": (-5, None),
    "expired yesterday": (1, None),
    "expired 30 days ago": (30, None),
    "expired 31 days ago": (31, None),
    "revoked yesterday": (-5, 1),
    "revoked 31 days ago": (-5, 31),
    "revoked yesterday, expired 31 days ago": (31, 1),
    "both 31 days ago": (31, 31),
}


@pytest.fixture
def opened():
    """Give what opens SQLAlchemy sessions in places."""
    with EngineRegistry(max_connections=20, idle=20) as registry:
        yield TenantSessions(registry, DatabaseIsolation(None), limit=10, statement_timeout=10.0)


@pytest.fixture
def stale(opened):
    return StaleSessions(opened, stretch=3)


@pytest.fixture
def cleanup(stale):
    return SessionCleanup(stale, jobs=4, clock=lambda: NOON)


def fill(opened, place, sessions=SESSIONS):
    """Write Ann and her sessions."""
    with opened.session(place) as session:
        session.add(Identity(id="ann"))
        session.flush()
        rows = [
            {
                "id": name,
                "identity_id": "ann",
                "expires_at": NOON - expired * DAY,
                "revoked_at": None if revoked is None else NOON - revoked * DAY,
            }
            for name, (expired, revoked) in sessions.items()
        ]
        session.execute(insert(IdentitySession), rows)
        session.commit()


def left(place):
    return {name for (name,) in ask(place, "SELECT id FROM {s}av_identity_sessions")}


def old(count, days=40):
    return {f"s{number:04d}": (days, None) for number in range(count)}


def total(stale, place, **options):
    return sum(stale.remove(place, **({"before": NOON - 30 * DAY} | options)), Stale())


@pytest.mark.parametrize(
    ("rule", "counted", "gone"),
    [
        (
            {},
            Stale(expired=3, revoked=1),
            {
                "expired 31 days ago",
                "revoked 31 days ago",
                "revoked yesterday, expired 31 days ago",
                "both 31 days ago",
            },
        ),
        (
            {"expired_only": True},
            Stale(expired=3),
            {
                "expired 31 days ago",
                "revoked yesterday, expired 31 days ago",
                "both 31 days ago",
            },
        ),
        ({"before": NOON}, Stale(expired=5, revoked=2), SESSIONS.keys() - {"open"}),
        (
            {"before": NOON, "expired_only": True},
            Stale(expired=5),
            {name for name in SESSIONS if "expired" in name or "both" in name},
        ),
        ({"before": NOON - 365 * DAY}, Stale(), set()),
    ],
)
def test_the_rules(opened, stale, migrated_place, rule, counted, gone):
    """A dry run counts what then goes; what a rule does not name stays, also to the day."""
    fill(opened, migrated_place)

    assert total(stale, migrated_place, dry_run=True, **rule) == counted
    assert left(migrated_place) == SESSIONS.keys()
    assert total(stale, migrated_place, **rule) == counted
    assert left(migrated_place) == SESSIONS.keys() - gone
    assert total(stale, migrated_place, **rule) == Stale()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 7, 25])
def test_a_table_is_gone_through_in_stretches(opened, stale, migrated_place, count):
    """Whatever its length: each transaction sees a stretch of it, and none twice."""
    fill(opened, migrated_place, old(count) | {"t-open": (-1, None)})

    portions = list(stale.remove(migrated_place, before=NOON - 30 * DAY))

    assert all(portion.expired <= 3 for portion in portions)
    assert (sum(portions, Stale()), left(migrated_place)) == (Stale(expired=count), {"t-open"})


def test_what_is_removed_is_committed_stretch_by_stretch(opened, stale, migrated_place):
    """Whoever stops asking keeps what is done, and holds no lock."""
    fill(opened, migrated_place, old(7))

    with closing(stale.remove(migrated_place, before=NOON)) as removing:
        assert next(removing) == Stale(expired=3)

        assert left(migrated_place) == {"s0003", "s0004", "s0005", "s0006"}
        ask(migrated_place, "DELETE FROM {s}av_identity_sessions WHERE id = 's0003'")
        assert next(removing) == Stale(expired=3)
        assert left(migrated_place) == set()


def test_where_nothing_is_old_nothing_is_written(opened, migrated_place):
    """Looking takes no write lock: a writer that holds SQLite's is not waited for."""
    fill(opened, migrated_place)
    stale = StaleSessions(opened)

    with connected(migrated_place) as other:
        other.execute("BEGIN IMMEDIATE" if not migrated_place.is_postgres else "BEGIN")
        assert total(stale, migrated_place, before=NOON - 365 * DAY) == Stale()
        assert total(stale, migrated_place, dry_run=True) == Stale(expired=3, revoked=1)
        other.execute("ROLLBACK")


def test_a_row_that_somebody_holds_is_left_for_the_next_time(opened, schema_places):
    """Without waiting for it."""
    (place,) = schema_places(1)
    fill(opened, place, old(5))
    stale = StaleSessions(opened)

    with opened.session(place) as holder:
        holder.get(IdentitySession, "s0002", with_for_update=True)
        first = total(stale, place)
        holder.rollback()

    assert (first, left(place)) == (Stale(expired=4), {"s0002"})
    assert (total(stale, place), left(place)) == (Stale(expired=1), set())


def test_a_session_that_was_prolonged_meanwhile_stays(opened, schema_places):
    """What is removed is asked again at the moment of removing."""
    (place,) = schema_places(1)
    fill(opened, place, old(2))
    stale = StaleSessions(opened)

    def prolong(_connection, _cursor, statement, *_):
        if statement.startswith("DELETE"):
            ask(
                place,
                "UPDATE {s}av_identity_sessions SET expires_at = now() + interval '1 year'"
                " WHERE id = 's0000'",
            )

    engine = create_engine(place.url)
    event.listen(engine, "before_cursor_execute", prolong)
    removed = total(stale, Placement.of(engine, place.schema))
    engine.dispose()

    assert (removed, left(place)) == (Stale(expired=1), {"s0000"})


def test_two_may_clean_one_place_at_once(opened, migrated_place):
    """They remove each session once, between them, and neither fails."""
    fill(opened, migrated_place, old(60))
    start = threading.Barrier(2)
    counted, failures = [], []

    def clean():
        start.wait(30)
        try:
            counted.append(total(StaleSessions(opened, stretch=5), migrated_place).expired)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=clean) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    total(StaleSessions(opened), migrated_place)

    assert failures == []
    assert left(migrated_place) == set()
    assert sum(counted) <= 60


def test_a_place_that_is_another_is_refused(opened, schema_places):
    """Whatever the isolation says, rows are removed only where it proved to be."""

    class Astray(DatabaseIsolation):
        def bind(self, cursor, placement):
            super().bind(cursor, Placement(placement.url, "tenant_0001"))

    places = schema_places(2)
    for place in places:
        fill(opened, place)
    with EngineRegistry() as registry:
        stale = StaleSessions(TenantSessions(registry, Astray(None)))

        with pytest.raises(TenantNotIsolated):
            total(stale, places[0])

    assert [left(place) for place in places] == [SESSIONS.keys(), SESSIONS.keys()]


def test_missing_tables_are_said_to_be(stale, migrated_place):
    """The error is a sentence, and not the driver's."""
    ask(migrated_place, "ALTER TABLE {s}av_identity_sessions RENAME TO hidden")

    with pytest.raises(TenantNotMigrated):
        total(stale, migrated_place)


def test_an_applications_own_table_may_keep_sessions(opened, stale, migrated_place):
    """Then it says what is in the way, and no row is named."""
    fill(opened, migrated_place)
    ask(
        migrated_place,
        "CREATE TABLE {s}carts (session_id text REFERENCES {s}av_identity_sessions (id))".replace(
            "REFERENCES {s}", "REFERENCES {s}" if migrated_place.is_postgres else "REFERENCES "
        ),
    )
    ask(migrated_place, "INSERT INTO {s}carts VALUES ('expired 31 days ago')")

    with pytest.raises(TenantUnavailable, match="let its foreign key cascade") as caught:
        total(stale, migrated_place)

    assert "31 days" not in str(caught.value)


def test_one_tenants_trouble_stays_its_own(opened, cleanup, schema_places, tmp_path):
    """Missing tables, a missing file, a server that is away: the rest of the fleet is cleaned."""
    places = [
        *schema_places(3),
        Placement.of(f"sqlite:///{tmp_path / 'missing.db'}"),
        Placement.of("postgresql+psycopg://nobody:hunter2@127.0.0.1:1/nothing"),
    ]
    for place in places[:3]:
        fill(opened, place)
    ask(places[1], "ALTER TABLE {s}av_identity_sessions RENAME TO hidden")
    tenants = [Tenant(f"id{n}", f"t{n}", place) for n, place in enumerate(places)]

    seen = []
    report = cleanup.run(tenants, told=seen.append)

    assert [(row.tenant, row.expired, row.revoked, row.ok) for row in report.rows] == [
        ("t0", 3, 1, True),
        ("t1", 0, 0, False),
        ("t2", 3, 1, True),
        ("t3", 0, 0, False),
        ("t4", 0, 0, False),
    ]
    assert (report.ok, report.failed, report.left) == (False, 3, 0)
    assert (report.removed, report.expired, report.revoked) == (8, 6, 2)
    assert sorted(row.tenant for row in seen) == ["t0", "t1", "t2", "t3", "t4"]
    assert "migrate upgrade" in str(report.rows[1].error)
    assert "hunter2" not in str(report.rows)


def test_a_dry_run_counts_each_tenant(opened, cleanup, schema_places):
    """And writes nothing."""
    places = schema_places(2)
    fill(opened, places[0])
    fill(opened, places[1], old(5))
    tenants = [Tenant(f"id{n}", f"t{n}", place) for n, place in enumerate(places)]

    report = cleanup.run(tenants, dry_run=True)

    assert [(row.tenant, row.removed) for row in report.rows] == [("t0", 4), ("t1", 5)]
    assert (report.dry_run, report.rule) == (True, CleanupRule(older_than=30 * 86_400.0))
    assert [len(left(place)) for place in places] == [8, 5]


def test_who_shares_a_place_is_counted_once(opened, cleanup, migrated_place):
    """Under the strategy `single`; and a place is left alone only if all of them are suspended."""
    fill(opened, migrated_place)
    pair = [
        Tenant("1", "acme", migrated_place, suspended=True),
        Tenant("2", "globex", migrated_place, suspended=True),
    ]

    (row,) = cleanup.run(pair).rows
    assert (row.tenant, row.also, row.suspended, row.removed) == ("acme", ("globex",), True, 0)

    (row,) = cleanup.run([pair[0], Tenant("2", "globex", migrated_place)]).rows
    assert (row.tenant, row.also, row.suspended, row.removed) == ("acme", ("globex",), False, 4)


class Watched(StaleSessions):
    """Lets a number of places meet, and counts how many are gone through at once."""

    def __init__(self, parties):
        self.meeting = threading.Barrier(parties)
        self.lock = threading.Lock()
        self.now = self.most = 0

    def remove(self, placement, **_):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.meeting.wait(30)
        with self.lock:
            self.now -= 1
        yield Stale(expired=1)


def nowhere(count):
    return [
        Tenant(f"id{n}", f"t{n}", Placement.of(f"sqlite:////nowhere/{n}.db")) for n in range(count)
    ]


def test_so_many_places_are_gone_through_at_once_and_no_more():
    """Three, and then three more: each waits until two others are there."""
    watched = Watched(3)

    report = SessionCleanup(watched, jobs=3).run(nowhere(9))

    assert (watched.most, report.removed) == (3, 9)


def test_what_nobody_foresaw_stays_with_its_tenant():
    """And only its class is told."""

    class Broken(StaleSessions):
        def __init__(self):
            pass

        def remove(self, placement, **_):
            yield Stale(expired=2)
            raise RuntimeError("ann@example.test")

    (row,) = SessionCleanup(Broken()).run(nowhere(1)).rows

    assert (row.expired, row.error) == (2, "unexpected RuntimeError")


def test_a_run_ends_where_it_is_stopped(opened, stale, migrated_place):
    """What was not begun is said; what was begun keeps what is done."""
    fill(opened, migrated_place, old(7))
    stopping = threading.Event()
    cleanup = SessionCleanup(stale, jobs=1, clock=lambda: NOON)

    class Stopping(StaleSessions):
        def __init__(self):
            pass

        def remove(self, placement, **options):
            for portion in stale.remove(placement, **options):
                stopping.set()
                yield portion

    tenants = [Tenant("id", "acme", migrated_place), *nowhere(2)]
    report = SessionCleanup(Stopping(), jobs=1, clock=lambda: NOON).run(tenants, stopping=stopping)

    assert [(row.tenant, row.removed) for row in report.rows] == [("acme", 3)]
    assert (report.left, len(left(migrated_place))) == (2, 4)
    assert cleanup.run(tenants, stopping=stopping).left == 3


def test_an_interruption_ends_the_run():
    """Ctrl-C while it shows what was done: the rest is not begun, and the caller is not stopped."""
    begun = []

    class Noting(StaleSessions):
        def __init__(self):
            pass

        def remove(self, placement, **_):
            begun.append(placement)
            yield Stale()

    def interrupt(_row):
        raise KeyboardInterrupt

    stopping = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        SessionCleanup(Noting(), jobs=1).run(
            nowhere(200), told=interrupt, stopping=stopping, pause=0.01
        )

    assert 0 < len(begun) < 200
    assert not stopping.is_set()


def test_an_interruption_ends_what_is_begun_at_the_next_stretch():
    """A large table is not gone through to its end after Ctrl-C."""
    portions = []
    begun, pause = threading.Event(), threading.Event()

    class Long(StaleSessions):
        def __init__(self):
            pass

        def remove(self, placement, **_):
            if "0.db" in str(placement):
                begun.wait(30)
                return
            while len(portions) < 500:
                portions.append(placement)
                begun.set()
                pause.wait(0.01)
                yield Stale()

    def interrupt(_row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SessionCleanup(Long(), jobs=2).run(nowhere(2), told=interrupt)

    assert 0 < len(portions) < 500


def test_each_day_and_whatever_happens(opened, stale, migrated_place, caplog):
    """A round that fails is followed by the next; a tenant that fails is named in the log."""
    fill(opened, migrated_place)
    stopping = threading.Event()
    rounds = []

    def tenants():
        rounds.append(len(rounds))
        if rounds[-1] == 0:
            raise TenantUnavailable("the control database does not answer")
        if rounds[-1] == 2:
            stopping.set()
        return [Tenant("id", "acme", migrated_place), *nowhere(1)]

    schedule = ScheduledCleanup(
        SessionCleanup(stale, clock=lambda: NOON), tenants=tenants, every=0.0, spread=0.0
    )
    with caplog.at_level(logging.INFO, "tenantsync"):
        schedule.run(stopping)

    assert rounds == [0, 1, 2]
    assert len(left(migrated_place)) == 4
    told = [(record.message, getattr(record, "error", None)) for record in caplog.records]
    assert told[0] == ("tenantsync.cleanup_failed", "TenantUnavailable")
    assert "does not exist" in str(told[1][1])
    cleaned = [each for each in caplog.records if each.message == "tenantsync.sessions_cleaned"]
    assert [(each.places, each.expired, each.revoked, each.failed) for each in cleaned] == [
        (2, 3, 1, 1),
        (0, 0, 0, 0),
    ]


def test_the_first_round_comes_within_the_hour():
    """A server that is restarted each night cleans too; and several do not begin at once."""

    class Waits(threading.Event):
        def __init__(self):
            super().__init__()
            self.pauses = []

        def wait(self, timeout=None):
            self.pauses.append(timeout)
            return len(self.pauses) > 2

    stopping = Waits()
    ScheduledCleanup(SessionCleanup(Watched(1)), tenants=list, jitter=lambda: 0.5).run(stopping)

    assert stopping.pauses == [1_800.0, 86_400.0, 86_400.0]


def test_what_is_open_stays_open(opened, cleanup, migrated_place):
    """A session of a moment ago survives any rule."""
    with opened.session(migrated_place) as session:
        session.add(Identity(id="ann", membership_status="active", tenant_id="acme"))
        session.flush()
        name = open_session(session, "ann", expires_in=timedelta(seconds=1), now=NOON).id
        session.commit()

    report = cleanup.run([Tenant("id", "acme", migrated_place)], rule=CleanupRule(older_than=0.0))

    assert (report.removed, left(migrated_place)) == (0, {name})
