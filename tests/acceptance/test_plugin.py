"""The pytest plugin, in the projects of others: each test here runs a pytest of its own."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

# Imported here once, and not in each inner run, which forgets what it imported.
import httpcore2  # noqa: F401
import pytest

import tenantsync.kit  # noqa: F401
from tenantsync.testing.chaos import Chaos

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
ACME, GLOBEX = "93ce0187-9290-491b-9f06-be209b3d2f92", "e2f80a4d-7d1c-4b53-9c1e-0f6a5d3b8c21"
CONFIG = f"""
[authvital]
host = "${{AUTHVITAL_HOST}}"
application_id = "shop"

[isolation]
strategy = "database"
url = "postgresql+psycopg://app:${{PASSWORD}}@db.example.test/{{key}}"

[tenants.acme]
id = "{ACME}"
[tenants.globex]
id = "{GLOBEX}"
"""


@pytest.fixture
def project(pytester, monkeypatch):
    """A project whose configuration names a database that is not there."""
    # Whether the environment's own registration is there or not, the plugin is loaded once.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makefile(".toml", tenantsync=CONFIG)
    return pytester


def run(project, *options):
    return project.runpytest_inprocess(
        "-p", "pytest_tenantsync", "-p", "no:cacheprovider", *options
    )


def test_the_fixtures(project):
    """Events reach the tenants' databases, which are fresh for each test and apart."""
    project.makepyfile(
        """
        import pytest
        from sqlalchemy import select, text

        from tenantsync import Outcome, TenantSync
        from tenantsync.models import Identity

        @pytest.mark.parametrize("round", [1, 2])
        def test_joining(authvital, tenant_databases, tenantsync_app, round):
            assert isinstance(tenantsync_app, TenantSync)
            assert list(tenant_databases) == ["acme", "globex"]
            first = authvital.deliver("member.joined", tenant="acme", sub="ann", id="e1")
            again = authvital.deliver("member.joined", tenant="acme", sub="ann", id="e1")
            assert (first, again) == (Outcome.APPLIED, Outcome.DUPLICATE)
            authvital.deliver("member.left", tenant="acme", sub="ann")
            authvital.deliver("member.joined", tenant="acme", email="ANN@example.test", sub="ann")
            with tenant_databases.session("acme") as session:
                ann = session.scalars(select(Identity)).one()
                assert (ann.id, ann.email, ann.membership_status) == (
                    "ann", "ANN@example.test", "active"
                )
            with tenant_databases.session("globex") as session:
                assert session.scalar(text("SELECT count(*) FROM av_identities")) == 0

        def test_nothing_but_the_fixture(tenant_databases, tmp_path):
            with tenant_databases.session("acme") as session:
                session.add(Identity(id="bob"))
            with tenant_databases.session("acme") as session:
                assert session.get_one(Identity, "bob").has_app_access
            assert list(tmp_path.iterdir()) == []
            with pytest.raises(LookupError, match="'nobody': there are acme, globex"):
                tenant_databases["nobody"]
        """
    )
    run(project).assert_outcomes(passed=3)


ORDER = """
    import pathlib

    from sqlalchemy import select
    from tenantsync.models import Identity

    LIFE = ("member.joined", "app_access.granted", "member.suspended", "member.activated") * 3

    {marker}
    def test_life(authvital, tenant_databases):
        for number, happened in enumerate(LIFE):
            authvital.deliver(happened, tenant="acme", sub="ann", id=str(number))
        with tenant_databases.session("acme") as session:
            assert session.scalars(select(Identity.membership_status)).all() == ["active"]
        sent = [answer.delivery.headers["X-AuthVital-Event-Id"] for answer in authvital.answers]
        assert set(sent) == set(map(str, range(len(LIFE))))
        pathlib.Path("order").write_text(" ".join(sent))
        assert {claim}
"""
HONEST = " ".join(map(str, range(12)))


def order_of(project, *options, marker="", claim="True"):
    project.makepyfile(test_order=ORDER.format(marker=marker, claim=claim))
    result = run(project, "test_order.py", *options)
    return (project.path / "order").read_text(), result


def test_chaos_is_repeated_by_its_seed(project):
    """Off, nothing is moved; on, the seed says what is, and the rows are the same."""
    honest, result = order_of(project)
    assert honest == HONEST
    assert "authvital chaos" not in result.stdout.str()

    first, result = order_of(project, "--authvital-chaos-seed=7")
    result.assert_outcomes(passed=1)
    assert len(first.split()) > len(set(first.split()))
    unique = list(dict.fromkeys(first.split()))
    assert unique != sorted(unique, key=int)
    assert "repeat it with --authvital-chaos-seed=7" in result.stdout.str()
    assert order_of(project, "--authvital-chaos-seed=7")[0] == first
    assert order_of(project, "--authvital-chaos-seed=8")[0] not in (first, honest)
    assert order_of(project, "-o", "authvital_chaos=7")[0] == first


def test_a_drawn_seed_is_printed(project):
    """Who asks for chaos without a seed is told the one that was drawn, and can repeat it."""
    for options, marker in (
        (["--authvital-chaos"], ""),
        ([], "@__import__('pytest').mark.authvital_chaos"),
    ):
        order, result = order_of(project, *options, marker=marker, claim="not authvital")
        result.assert_outcomes(failed=1)
        (section,) = (line for line in result.outlines if line.startswith("the same order again"))
        seed = section.rpartition("=")[2]

        assert order_of(project, f"--authvital-chaos-seed={seed}", marker=marker)[0] == order


def test_the_flag_takes_no_path_for_its_seed(project):
    """What comes after it is what to run, and nothing else is run."""
    project.makepyfile(test_other="def test_it(): raise AssertionError")
    project.makepyfile(test_order=ORDER.format(marker="", claim="True"))

    for options in (["--authvital-chaos", "test_order.py"], ["test_order.py", "--authvital-chaos"]):
        result = run(project, *options)
        result.assert_outcomes(passed=1)
        assert "repeat it with --authvital-chaos-seed=" in result.stdout.str()


def test_the_seed_of_the_command_line_goes_before_all_others(project):
    """With the flag or without it, and before the setting; "random" draws one there too.

    An empty one is a shell's variable that nobody set: better no run than one in the order given.
    """
    seven = order_of(project, "--authvital-chaos-seed=7")[0]
    setting = ["-o", "authvital_chaos=8"]

    assert order_of(project, "--authvital-chaos", "--authvital-chaos-seed", "7")[0] == seven
    assert order_of(project, "--authvital-chaos-seed=7", *setting)[0] == seven
    drawn = order_of(project, "--authvital-chaos-seed=random", *setting)[1].stdout.str()
    (seed,) = re.findall("repeat it with --authvital-chaos-seed=(.*)", drawn)
    assert seed.isdigit()
    empty = run(project, "--authvital-chaos-seed=")
    assert empty.ret == pytest.ExitCode.USAGE_ERROR
    empty.stderr.fnmatch_lines(["*--authvital-chaos-seed is empty: name a seed*"])


def test_a_test_may_have_its_own_seed_or_none(project):
    """The marker's word goes before the command line's."""
    own = "@__import__('pytest').mark.authvital_chaos(seed=3)"
    first = order_of(project, marker=own)[0]
    assert first not in (HONEST, order_of(project, "--authvital-chaos-seed=7")[0])
    assert order_of(project, "--authvital-chaos-seed=7", marker=own)[0] == first
    never = "@__import__('pytest').mark.authvital_chaos(False)"
    assert order_of(project, "--authvital-chaos-seed=7", marker=never)[0] == HONEST


@pytest.mark.parametrize("seed", range(20))
def test_chaos_loses_nothing(seed):
    """Everything comes at least once, and much of it late or twice."""
    chaos = Chaos(seed)
    came = [out for number in range(100) for out in chaos.send(number)] + chaos.rest()

    assert set(came) == set(range(100))
    assert len(came) > 110
    assert list(dict.fromkeys(came)) != list(range(100))
    assert (len(chaos), chaos.rest()) == (0, [])


APPLICATION = """
    from starlette.applications import Starlette
    from tenantsync import TenantSync
    from tenantsync.models import Identity

    sync = TenantSync.from_toml("tenantsync.toml")

    def create_app(sync):
        return Starlette(routes=sync.routes("/hooks"), lifespan=sync.lifespan)

    @sync.on("member.joined")
    def welcome(event, session):
        session.get_one(Identity, event.sub).nickname = "welcome"
"""


def test_hooks_of_the_application_run(project):
    """They are those of the object that the configuration names; a test's own end with it."""
    project.makepyfile(shop=APPLICATION)
    project.makefile(".toml", tenantsync='app = "shop:sync"\n' + CONFIG)
    project.makepyfile(
        test_shop="""
        import pytest
        from sqlalchemy import select
        from tenantsync.models import Identity

        heard = []

        @pytest.mark.parametrize("round", [1, 2])
        def test_joining(authvital, tenantsync_app, tenant_databases, round):
            if round == 1:
                tenantsync_app.on("*")(lambda event, session: heard.append(event.type))
            authvital.deliver("member.joined", tenant="acme", sub="ann")
            with tenant_databases.session("acme") as session:
                assert session.scalars(select(Identity.nickname)).all() == ["welcome"]
            assert heard == ["member.joined"]
        """
    )
    run(project).assert_outcomes(passed=2)


def test_where_deliveries_go(project):
    """Into an ASGI application, or over HTTP to one that is served; also system events."""
    project.makepyfile(shop=APPLICATION)
    project.makepyfile(
        test_shop="""
        import pytest
        from shop import create_app
        from starlette.testclient import TestClient
        from tenantsync import Outcome
        from tenantsync.testing import wicked
        from tenantsync.testing.courier import NotDelivered
        from tenantsync.testing.emulator import Emulator
        from tenantsync.testing.tables import SystemHook

        def test_straight_into_it(authvital, tenantsync_app):
            app = create_app(tenantsync_app)
            authvital.send_to(app, path="/hooks")
            with TestClient(app):
                assert authvital.deliver("member.joined", tenant="acme", sub="a") is Outcome.APPLIED
            assert authvital.answers[0].status == 200
            authvital.send_to(app, path="/elsewhere")
            with pytest.raises(NotDelivered, match="member.left was answered 404"):
                authvital.deliver("member.left", tenant="acme", sub="a")

        def test_over_http(authvital):
            with Emulator() as stranger:
                authvital.send_to(stranger.url + "/", path="/hooks")
                with pytest.raises(NotDelivered, match="answered 404"):
                    authvital.deliver("member.joined", tenant="acme", sub="ann")
                assert [each.path for each in stranger.requests] == ["/hooks"]
                url = stranger.url
            authvital.send_to(url)
            with pytest.raises(ConnectionError, match="did not answer"):
                authvital.deliver("member.joined", tenant="acme", sub="ann")

        def test_what_must_be_refused(authvital):
            body = authvital.emulator.event(
                "member.joined", tenant_id="x", application_id="shop", data={}
            )
            forged = wicked.forged(authvital.emulator, authvital.emulator.delivery(body))
            assert authvital.send(forged).status == 401
            with pytest.raises(TypeError, match="give sub, email, or both"):
                authvital.deliver("member.joined", tenant="acme")

        def test_what_authvital_would_tell(authvital, tenant_databases):
            authvital.state.system_hooks.append(SystemHook("-", ("tenant.app.granted",)))
            do, acme = authvital.actions, authvital.tenant_id("acme")
            member = do.accept(do.invite(acme, "ann@example.test", given_name="Ann").id)
            do.grant_access(acme, member.user_id, authvital.application_id)
            authvital.deliver_waiting()
            assert [answer.type for answer in authvital.answers][:2] == [
                "tenant.app.granted", "invite.accepted"
            ]
            assert {answer.status for answer in authvital.answers} == {200}
            authvital.deliver("member.suspended", tenant="acme", sub=member.user_id)
            with tenant_databases.session(acme) as session:
                row = session.connection().exec_driver_sql(
                    "SELECT email, given_name, app_role, membership_status FROM av_identities"
                ).one()
            assert row == ("ann@example.test", "Ann", "editor", "suspended")

        def test_what_was_parked_is_applied(authvital, tenantsync_app, tenant_databases):
            working = []

            @tenantsync_app.on("member.joined")
            def fail(event, session):
                assert working

            joined = authvital.deliver("member.joined", tenant="acme", sub="ann")
            assert joined is Outcome.PARKED
            working.append(True)
            with tenant_databases.session("acme") as session:
                query = "SELECT id FROM av_identities"
                assert session.connection().exec_driver_sql(query).scalars().all() == ["ann"]
        """
    )
    run(project).assert_outcomes(passed=5)


MODELS = """
    from sqlalchemy import ForeignKey, Text
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    from tenantsync.models import IdentityMixin

    class Base(DeclarativeBase):
        pass

    class Identity(IdentityMixin, Base):
        shoe_size: Mapped[str | None] = mapped_column(Text())
"""
REVISION = """
    import sqlalchemy as sa
    from alembic import op

    revision = "shop_0001"
    down_revision = None
    branch_labels = ("shop",)
    depends_on = "tenantsync_0001"

    def upgrade():
        op.add_column("av_identities", sa.Column("shoe_size", sa.Text()))
"""
TABLES = """
    import pytest
    from models import Identity
    from sqlalchemy import select, text

    @pytest.mark.parametrize("round", [1, 2])
    def test_own_tables(authvital, tenant_databases, round):
        authvital.deliver("member.joined", tenant="acme", sub="ann")
        with tenant_databases.session("acme") as session:
            session.get_one(Identity, "ann").shoe_size = "38"
        with tenant_databases.session({other!r}) as session:
            assert session.scalars(select(Identity.shoe_size)).all() == {seen}
            assert session.scalar(text("SELECT count(*) FROM av_identities")) == {count}
"""
SINGLE = """
[authvital]
host = "https://auth.example.test"
application_id = "shop"
[isolation]
strategy = "single"
url = "postgresql+psycopg://db.example.test/main"
[migrations]
locations = ["revisions"]
[tenants.acme]
id = "a"
[tenants.globex]
id = "b"
"""


@pytest.mark.parametrize("strategy", ["database", "schema", "single"])
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_places_are_like_the_configured_ones(project, request, strategy, database):
    """With the application's own tables; apart, or shared by all where they are shared."""
    apart = CONFIG.replace('"database"', f'"{strategy}"') + '[migrations]\nlocations=["revisions"]'
    if strategy == "schema":
        apart = apart.replace("/{key}", '/main"\nschema = "Our {key}')
    project.makefile(".toml", tenantsync=SINGLE if strategy == "single" else apart)
    project.makepyfile(models=MODELS, **{"revisions/shop_0001": REVISION})
    shared = strategy == "single"
    tables = TABLES.format(other="globex", seen=["38"] if shared else [], count=int(shared))
    project.makepyfile(test_tables=tables)
    options = []
    if database == "postgresql":
        server = request.getfixturevalue("postgres_server")
        options = [f"--tenantsync-database-url={server.url()}"]

    run(project, "test_tables.py", *options).assert_outcomes(passed=2)

    if database == "postgresql":
        with server.connect() as connection:
            left = "SELECT count(*) FROM pg_database WHERE datname LIKE 'tenantsync_test_%'"
            assert connection.execute(left).fetchone() == (0,)


def test_tenants_of_the_tests(project):
    """Named in pytest's configuration where those of the file are too many, or none."""
    project.makepyfile(
        """
        def test_names(authvital, tenant_databases):
            assert list(tenant_databases) == ["initech", "umbrella"]
            assert tenant_databases["initech"].id == "one"
            authvital.deliver("member.joined", tenant="umbrella", sub="ann")
            with tenant_databases.session("umbrella") as session:
                query = "SELECT id FROM av_identities"
                assert session.connection().exec_driver_sql(query).scalars().all() == ["ann"]
        """
    )
    options = ["-o", "tenantsync_tenants=initech=one\numbrella"]
    run(project, *options).assert_outcomes(passed=1)


def test_a_wrong_configuration_is_told_once_and_plainly(project):
    """The message is the one that every command has."""
    project.makepyfile("def test_it(authvital): pass\ndef test_too(tenant_databases): pass")
    result = run(project, "-o", "tenantsync_config=nowhere.toml")

    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*nowhere.toml: there is no such file; run `tenantsync init`*"])


def test_the_page_runs_as_printed(project):
    """Each block of the how-to is a file of tests, in the project that it names."""
    shutil.copytree(ROOT / "examples" / "fastapi", project.path, dirs_exist_ok=True)
    (project.path / "test_notes.py").unlink()
    page = (ROOT / "docs" / "how-to" / "test-your-application.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks):
        (project.path / f"test_block_{number}.py").write_text(block)

    run(project).assert_outcomes(passed=7)
    run(project, "--authvital-chaos-seed=1", "-k", "not new_member").assert_outcomes(
        passed=6, deselected=1
    )


def test_who_uses_no_fixture_pays_nothing(project):
    """Without them, pytest imports neither the package nor any of its libraries."""
    program = "import sys, pytest_tenantsync; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert "pytest_tenantsync" in roots
    assert roots.isdisjoint({"tenantsync", "sqlalchemy", "starlette", "alembic", "msgspec", "jwt"})


def test_the_plugin_is_registered():
    """An installed tenantsync brings its fixtures along."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["entry-points"]["pytest11"] == {"pytest_tenantsync": "pytest_tenantsync"}
