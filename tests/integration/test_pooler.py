"""Behind PgBouncer: events, hooks, migrations and the command that tells whether it is safe."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import psycopg
import pytest
from click.testing import CliRunner
from fleets import SchemaFleet, write_revision
from guarding import ask, at_once, ledger, make, numbered, people, told
from postgres import _account, _die_with_parent, _free_port, _identity
from sqlalchemy import create_engine, make_url, select, text

from tenantsync.cli import commands
from tenantsync.errors import ConfigError, TenantUnavailable
from tenantsync.migrate import State, upgrade
from tenantsync.models import Identity
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.hooks import bound_session
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import DatabaseIsolation, schema_of
from tenantsync.tenancy.pooler import Pooling, find_pooling
from tenantsync.tenancy.verify import Safety, verify_isolation
from tenantsync.tenants import Placement

SCHEMAS = 20
HANDLERS = 3
CONCURRENTLY = """
with op.get_context().autocommit_block():
    op.create_index("ix_phone2", "av_identities", ["phone"], postgresql_concurrently=True)
"""


def _program() -> str:
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None and "CI" not in os.environ:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer, brew install pgbouncer")
    assert found, "install pgbouncer: apt-get install pgbouncer"
    return found


@pytest.fixture
def pooled(postgres, tmp_path_factory):
    """Give a function that starts a PgBouncer and returns a URL that leads through it."""
    program = _program()
    with ExitStack() as running:

        def start(url, mode="transaction", size=3, **settings):
            port = running.enter_context(_running(program, postgres.server, mode, size, settings))
            return make_url(url).set(host="127.0.0.1", port=port)

        yield start


@contextmanager
def _running(program, server, mode, size, settings):
    folder = server.directory / f"pgbouncer-{_free_port()}"
    folder.mkdir()
    port = _free_port()
    account = _account()
    options = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "trust",
        "auth_file": folder / "users",
        "pool_mode": mode,
        "default_pool_size": size,
        "query_wait_timeout": 20,
        **settings,
    }
    lines = [f"* = host={server.host} port={server.port}", "[pgbouncer]"]
    lines += [f"{name} = {value}" for name, value in options.items()]
    (folder / "pgbouncer.ini").write_text("\n".join(["[databases]", *lines, ""]))
    (folder / "users").write_text('"postgres" ""\n"app" ""\n')
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    process = subprocess.Popen(
        [program, "-q", str(folder / "pgbouncer.ini")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=_die_with_parent(),  # noqa: PLW1509 - before any thread of ours
        **_identity(account),
    )
    try:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stdout.read().decode()
            time.sleep(0.02)
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        process.stdout.close()


@pytest.fixture
def places(schema_places, pooled):
    """Give twenty migrated schemas by way of the pooler, and the same without."""
    direct = schema_places(SCHEMAS)
    url = pooled(direct[0].url)
    return [replace(place, url=url) for place in direct], direct


def note(event, session):
    person = session.scalars(select(Identity).where(Identity.id == event.sub)).one()
    person.nickname = f"{event.tenant_id}/{event.sub}"
    session.execute(text("INSERT INTO notes (event_id) VALUES (:id)"), {"id": event.id})


@contextmanager
def handlers(tenants, count=HANDLERS):
    with ExitStack() as running:
        made = [IdentitySyncHandler(tenants.get, observers=()) for _ in range(count)]
        yield [running.enter_context(handler) for handler in made]


@pytest.mark.parametrize("hooked", [False, True])
def test_events_of_twenty_schemas_through_three_sessions(places, hooked):
    """Several handlers at once, ten times as often as psycopg prepares: every row is right."""
    pooled, direct = places
    for place in direct:
        ask(place, "CREATE TABLE {s}notes (event_id text)")
    tenants = numbered(pooled)
    expected = {name: [] for name in tenants}
    with handlers(tenants) as running:
        jobs = []
        for number, name in enumerate(tenants):
            for turn in range(12):
                sub = f"{name}/p{turn % 4}"
                event = make("member.joined", sub, tenant=name, id=f"{name}/e{turn}")
                expected[name].append(event.id)
                jobs.append(partial(told, running[(number + turn) % HANDLERS], event))
        if hooked:
            for handler in running:
                handler.on("member.joined")(note)
        results = at_once(jobs)

    assert set(results) <= {Outcome.APPLIED, Outcome.STALE}
    for place, name in zip(direct, tenants, strict=True):
        assert ledger(place) == sorted(expected[name])
        assert people(place) == sorted(f"{name}/p{n}" for n in range(4))
        notes = sorted(row[0] for row in ask(place, "SELECT event_id FROM {s}notes"))
        assert notes == (sorted(expected[name]) if hooked else [])
        nicknames = {row[0] for row in ask(place, "SELECT nickname FROM {s}av_identities")}
        assert nicknames == ({f"{name}/{name}/p{n}" for n in range(4)} if hooked else {None})


def test_a_hook_that_marks_the_session_moves_nobody(places):
    """A plain SET rides on the shared session: the next tenants are bound and proven anew."""
    pooled, direct = places
    tenants = numbered(pooled)

    def wander(event, session):
        home = session.scalar(text("SELECT current_schema()"))
        session.execute(text("SET SESSION search_path TO tenant_0000, public"))
        session.execute(text(f"SET LOCAL search_path TO {home}"))

    with handlers(tenants) as running:
        for handler in running:
            handler.on("member.joined")(wander)
        results = at_once(
            partial(told, running[n % HANDLERS], make(kind, f"{name}/p", tenant=name))
            for kind in ("member.joined", "subject.updated")
            for n, name in enumerate(tenants)
        )

    assert set(results) <= {Outcome.APPLIED, Outcome.STALE}
    assert [people(place) for place in direct] == [[f"{name}/p"] for name in tenants]


def test_a_session_is_left_as_it_was_found(places):
    """After the events of many schemas no session of the pooler's is in any of them."""
    pooled, _ = places
    tenants = numbered(pooled)
    with handlers(tenants) as running:
        at_once(
            partial(told, running[n % HANDLERS], make("member.joined", tenant=name))
            for n, name in enumerate(tenants)
        )

    url = pooled[0].url.set(drivername="postgresql").render_as_string(hide_password=False)
    with ExitStack() as stack:
        for _ in range(3):  # as many as it has, each held in a transaction
            connection = stack.enter_context(psycopg.connect(url))
            assert connection.execute(
                "SELECT current_setting('search_path'), current_user::text,"
                " (SELECT count(*) FROM pg_prepared_statements)"
            ).fetchone() == ('"$user", public', "postgres", 0)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, Pooling.NONE),
        ("session", Pooling.SESSION),
        ("transaction", Pooling.TRANSACTION),
        ("transaction, going round", Pooling.TRANSACTION),
    ],
)
def test_what_stands_between_is_found_out(postgres, pooled, mode, size, expected):
    """No pooler, one by sessions, one by transactions, whichever session it hands out."""
    url = make_url(postgres.create_database())
    if mode is not None:
        mode, _, rounds = mode.partition(", ")
        size = max(size, 2) if mode == "session" else size
        url = pooled(url, mode, size, server_round_robin=int(bool(rounds)))
    engine = make_engine(url, pool_size=5)
    try:
        with ExitStack() as warm:
            for _ in range(size):  # the pooler opens all that it may
                warm.enter_context(engine.connect()).execute(text("SELECT 1"))
        if mode == "session":
            engine.dispose()
        with engine.connect() as connection:
            assert find_pooling(connection, engine.connect) is expected
    finally:
        engine.dispose()


@pytest.mark.parametrize("options", ["", "options"])
def test_migrating_through_a_shared_session_is_refused_with_a_sentence(
    postgres, pooled, tmp_path, options
):
    """Nothing is changed, and the sentence says what to set; with that, all goes well."""
    direct = SchemaFleet(postgres.create_database(), 3)
    upgrade(direct.tenants, isolation=direct.isolation).check()
    url = pooled(direct.url, ignore_startup_parameters=options)
    through = SchemaFleet(url.render_as_string(hide_password=False), 3)
    write_revision(tmp_path, "shop1", CONCURRENTLY)
    before = direct.versions()

    report = upgrade(through.tenants, isolation=through.isolation, locations=[tmp_path])

    assert report.counts == {State.FAILED: 3}
    for row in report.rows:
        assert row.error is not None
        assert row.error.endswith("needs a direct connection: set [isolation] migration_url")
    assert direct.versions() == before
    upgrade(
        through.tenants,
        isolation=through.isolation,
        locations=[tmp_path],
        place=lambda tenant: replace(tenant.placement, url=make_url(direct.url)),
    ).check()


def test_migrating_through_a_session_of_its_own_goes_well(postgres, pooled, tmp_path):
    """But for what needs settings of the session: that is refused, and nothing stands half-made."""
    direct = SchemaFleet(postgres.create_database(), 3)
    url = pooled(direct.url, "session").render_as_string(hide_password=False)
    through = SchemaFleet(url, 3)

    assert upgrade(through.tenants, isolation=through.isolation).counts == {State.UPGRADED: 3}

    before = direct.versions()
    write_revision(tmp_path, "shop1", CONCURRENTLY)
    report = upgrade(through.tenants, isolation=through.isolation, locations=[tmp_path])
    assert {row.ok for row in report.rows} == {False}
    assert direct.versions() == before


def test_the_configured_migration_url_leads_past_the_pooler(postgres, pooled, tmp_path):
    """With one there is nothing to refuse; without it the command says what to set."""
    direct = postgres.create_database()
    url = pooled(direct).render_as_string(hide_password=False)

    refused = config(tmp_path, url)("migrate", "upgrade")
    done = config(tmp_path, url, direct)("migrate", "upgrade")

    assert refused.exit_code == 1
    assert "set [isolation] migration_url" in refused.output
    assert done.exit_code == 0
    run = config(tmp_path, url)
    assert run("migrate", "status").exit_code == 0
    for arguments in (["migrate", "check"], ["tenants", "add", "late", "--id", "id-late"]):
        result = run(*arguments)
        assert result.exit_code == 1
        assert "set [isolation] migration_url" in result.output


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("session", Outcome.APPLIED), ("statement", TenantUnavailable)],
)
@pytest.mark.parametrize("hooked", [False, True])
def test_events_by_sessions_are_applied_and_by_statements_refused(
    schema_places, pooled, mode, expected, hooked
):
    """Where each statement may go elsewhere nothing is written at all."""
    (direct,) = schema_places(1)
    place = replace(direct, url=pooled(direct.url, mode))
    with IdentitySyncHandler(place, observers=()) as handler:
        if hooked:
            handler.on("*")(lambda event, session: None)
        assert told(handler, make("member.joined", "ann")) is expected

    assert people(direct) == (["ann"] if expected is Outcome.APPLIED else [])


def test_roles_are_taken_through_the_pooler(schema_places, pooled):
    """Each transaction runs as its tenant's role, on sessions that all share one login."""
    direct = schema_places(4)
    names = [f"r_{direct[0].url.database[-12:]}_{place.schema}" for place in direct]
    try:
        for place, name in zip(direct, names, strict=True):
            ask(place, f"CREATE ROLE {name}")
            ask(place, f"GRANT USAGE ON SCHEMA {place.schema} TO {name}")
            ask(place, f"GRANT ALL ON ALL TABLES IN SCHEMA {place.schema} TO {name}")
        url = pooled(direct[0].url, size=2)
        places = [
            replace(place, url=url, role=name) for place, name in zip(direct, names, strict=True)
        ]
        tenants = numbered(places)
        seen = []
        with handlers(tenants) as running:
            for handler in running:
                handler.on("subject.updated")(
                    lambda _, session: seen.append(session.scalar(text("SELECT current_user")))
                )
            results = at_once(
                partial(told, running[n % HANDLERS], make(kind, f"{name}/p", tenant=name))
                for kind in ("member.joined", "subject.updated")
                for n, name in enumerate(tenants)
            )
        assert set(results) <= {Outcome.APPLIED, Outcome.STALE}
        assert set(seen) == set(names)
        assert verify_isolation(tenants.values(), isolation=DatabaseIsolation(None)).ok
    finally:
        for place, name in zip(direct, names, strict=True):
            ask(place, f"DROP OWNED BY {name}")
            ask(place, f"DROP ROLE {name}")


def config(folder, url, migration_url=None, tenants=2):
    lines = [
        "[authvital]",
        'host = "https://auth.example.com"',
        'application_id = "an-application"',
        "[isolation]",
        'strategy = "schema"',
        'schema = "tenant_{key}"',
        f'url = "{url}"',
    ]
    if migration_url is not None:
        lines.append(f'migration_url = "{migration_url}"')
    for number in range(tenants):
        lines += [f"[tenants.t{number}]", f'id = "id-{number}"']
    (folder / "tenantsync.toml").write_text("\n".join(lines))

    def run(*arguments):
        return CliRunner().invoke(commands, ["-c", str(folder / "tenantsync.toml"), *arguments])

    return run


def test_the_command_says_that_a_pooler_is_safe(postgres, pooled, tmp_path):
    """Behind a pooler by transactions, with a direct URL for migrations, all is well."""
    direct = postgres.create_database()
    url = pooled(direct).render_as_string(hide_password=False)
    run = config(tmp_path, url, direct)
    assert run("migrate", "upgrade").exit_code == 0

    result = run("verify-isolation")

    *rows, verdict = result.output.splitlines()
    assert rows == ["t0  safe  pooler by transaction", "t1  safe  pooler by transaction"]
    assert verdict == (
        "Safe behind a pooler that shares sessions between transactions. Migrations need a direct "
        "connection: set [isolation] migration_url."
    )
    assert result.exit_code == 0
    for schema in ("tenant_t0", "tenant_t1"):
        place = Placement.of(direct, schema)
        assert ask(place, "SELECT count(*) FROM {s}av_identity_tombstones") == [(0,)]


def test_the_command_says_that_a_pooler_by_statements_is_not(postgres, pooled, tmp_path):
    """Each statement might go elsewhere: that is said plainly, and the exit code is 1."""
    direct = postgres.create_database()
    url = pooled(direct, "statement").render_as_string(hide_password=False)
    run = config(tmp_path, url, direct)
    assert run("migrate", "upgrade").exit_code == 0

    result = run("verify-isolation", "--tenant", "t1", "--json")

    assert result.exit_code == 1
    document = json.loads(result.output)
    assert document["ok"] is False
    assert document["sentence"].startswith("NOT SAFE for 1 tenant:")
    assert [(row["tenant"], row["safety"]) for row in document["tenants"]] == [("t1", "unsafe")]


def test_what_cannot_be_tried_is_not_called_safe(postgres, tmp_path):
    """A tenant without its tables is told apart, and a wrong key is a wrong question."""
    run = config(tmp_path, postgres.create_database())
    assert run("migrate", "upgrade", "--tenant", "t0").exit_code == 0

    result = run("verify-isolation")

    assert result.exit_code == 1
    assert "t0  safe  no pooler" in result.output
    assert "t1  U" in result.output
    assert run("verify-isolation", "--tenant", "t7").exit_code == 2


def test_a_pooler_without_a_second_session_is_not_called_unsafe(schema_places, pooled):
    """It could not be tried, and that is what is said."""
    direct = schema_places(1)
    url = pooled(direct[0].url, size=1, query_wait_timeout=1)
    tenants = numbered(replace(place, url=url) for place in direct)

    verdict = verify_isolation(tenants.values(), isolation=DatabaseIsolation(None))

    (finding,) = verdict.findings
    assert (finding.safety, finding.pooling) == (Safety.UNKNOWN, Pooling.TRANSACTION)
    assert verdict.sentence == "Not known for 1 tenant."


class Sticky(DatabaseIsolation):
    """Sets the place for the whole session: what `SET` without LOCAL does."""

    def bind(self, cursor, placement):
        """Bind the session."""
        cursor.execute("SELECT set_config('search_path', %s, false)", (schema_of(placement),))


def test_what_stays_behind_is_noticed(schema_places):
    """The check itself is checked: settings that outlive their transaction are not safe."""
    tenants = numbered(schema_places(2)).values()

    verdict = verify_isolation(tenants, isolation=Sticky(None))

    assert {finding.safety for finding in verdict.findings} == {Safety.UNSAFE}
    assert verify_isolation(tenants, isolation=DatabaseIsolation(None)).ok


def test_an_engine_in_autocommit_is_noticed(schema_places):
    """Where each statement is a transaction of its own, nothing is bound."""

    def factory(url, *, pool_size):
        return create_engine(url, pool_size=pool_size, isolation_level="AUTOCOMMIT")

    verdict = verify_isolation(
        numbered(schema_places(1)).values(), isolation=DatabaseIsolation(None), factory=factory
    )

    assert [finding.safety for finding in verdict.findings] == [Safety.UNSAFE]


def test_a_file_is_tried_too(migrated_place):
    """One place of either kind: a canary is written, found, and gone."""
    tenants = numbered([migrated_place]).values()

    assert verify_isolation(tenants, isolation=DatabaseIsolation(None)).ok
    assert ask(migrated_place, "SELECT count(*) FROM {s}av_identity_tombstones") == [(0,)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [("", None), ("?prepare_threshold=none", None), ("?prepare_threshold=7", 7)],
)
def test_nothing_is_prepared_unless_the_url_says_so(postgres, query, expected):
    """Psycopg prepares on the fifth use by itself; our engines tell it not to."""
    engine = make_engine(make_url(postgres.create_database() + query))
    with engine.connect() as connection:
        assert connection.connection.driver_connection.prepare_threshold == expected
    engine.dispose()


def test_a_wrong_threshold_is_refused():
    """A sentence, and not a TypeError on the fifth use."""
    with pytest.raises(ConfigError, match="must be a number or none"):
        make_engine(make_url("postgresql+psycopg://localhost/x?prepare_threshold=often"))


CHANGES = (
    "ALTER TABLE {s}av_identities ADD COLUMN shoe_size integer",
    "ALTER TABLE {s}av_identities ALTER COLUMN nickname TYPE varchar(300)",
)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("own", [False, True])
def test_a_migration_under_a_running_server_breaks_no_statement(schema_places, change, own):
    """The same hook before and after, on one session: no `cached plan must not change ...`.

    Also on an engine of the application's own, where psycopg prepares.
    """
    (place,) = schema_places(1)
    engine = create_engine(place.url, pool_size=1, max_overflow=0)
    target = Placement(place.url, place.schema, engine=engine) if own else place

    def look(event, session):
        session.execute(text("SELECT * FROM av_identities")).all()
        session.scalars(select(Identity)).all()

    with IdentitySyncHandler(target, observers=()) as handler:
        handler.on("*")(look)
        results = [told(handler, make("member.joined", f"p{n}")) for n in range(8)]
        ask(place, change)
        results += [told(handler, make("member.joined", f"q{n}")) for n in range(8)]

    engine.dispose()
    assert results == [Outcome.APPLIED] * 16


def test_the_same_words_at_tenants_of_different_revisions(schema_places):
    """One session, many tenants, half of them migrated: `SELECT *` is right at each."""
    places = schema_places(6)
    for place in places[::2]:
        ask(place, CHANGES[0])
    engine = make_engine(places[0].url)
    widths = []
    for place in places * 3:
        with engine.begin() as connection:
            connection.execute(text(f"SET LOCAL search_path TO {place.schema}"))
            result = bound_session(connection, place).execute(text("SELECT * FROM av_identities"))
            widths.append(len(result.keys()))
    engine.dispose()

    assert [width - min(widths) for width in widths] == [1, 0] * 9
