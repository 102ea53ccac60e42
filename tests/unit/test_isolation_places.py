"""Where the strategies put tenants, which names they refuse, and what counts as a proof."""

import os

import pytest
from sqlalchemy.engine import make_url

from tenantsync.errors import ConfigError, TenantNotIsolated
from tenantsync.sync.postgres import lock_key
from tenantsync.tenancy.isolation import (
    DatabaseIsolation,
    SchemaIsolation,
    SingleIsolation,
    schema_of,
)
from tenantsync.tenants import Placement, Tenant, check_key, check_schema, read_url

MAIN = "postgresql+psycopg://app:hunter2@db/main"
STRATEGIES = (DatabaseIsolation(None), SchemaIsolation(MAIN), SingleIsolation(MAIN))


def place(isolation, key="acme", **overrides):
    made = isolation.place(key, **overrides)
    return made.url.render_as_string(hide_password=False), made.schema, made.role


def test_a_database_for_each_tenant():
    """The key goes into the URL, and into the role where there is one."""
    files = DatabaseIsolation("sqlite:///tenants/{key}.db")
    databases = DatabaseIsolation("postgresql://app@db/tenant_{key}", role="role_{key}")

    assert place(files) == ("sqlite:///tenants/acme.db", None, None)
    assert place(databases) == ("postgresql+psycopg://app@db/tenant_acme", None, "role_acme")


def test_a_schema_for_each_tenant():
    """One URL for all; the key goes into the schema."""
    assert place(SchemaIsolation(MAIN)) == (MAIN, "tenant_acme", None)
    assert place(SchemaIsolation(MAIN, schema="{key}_x", role="{key}")) == (MAIN, "acme_x", "acme")


def test_one_place_for_all():
    """Whoever the tenant is; one that wants a place of its own is refused."""
    single = SingleIsolation(MAIN, schema="people", role="writer")

    assert place(single, "acme") == place(single, "globex") == (MAIN, "people", "writer")
    for wish in ({"url": MAIN}, {"schema": "x"}, {"role": "x"}):
        with pytest.raises(ConfigError, match='strategy is "single"'):
            single.place("acme", **wish)


def test_a_tenants_own_wishes_win():
    """What a tenant is given overrides the strategy, piece by piece, with its key filled in."""
    other = "postgresql+psycopg://app@other/main"

    assert place(SchemaIsolation(MAIN), url=other) == (other, "tenant_acme", None)
    assert place(SchemaIsolation(MAIN), schema="x_{key}") == (MAIN, "x_acme", None)
    assert place(DatabaseIsolation(None), url=other, schema="s", role="r") == (other, "s", "r")


def test_a_tenant_without_any_url_has_no_place():
    """Neither the strategy nor the tenant says where."""
    with pytest.raises(ConfigError, match="'acme' has no url"):
        DatabaseIsolation(None).place("acme")


@pytest.mark.parametrize(
    "name",
    ["", "a" * 64, "ä" * 32, "a\x00", "pg_tenant", "pg_", "information_schema", "\ud800" * 22],
)
def test_a_schema_that_postgresql_would_change_or_refuse_is_not_allowed(name):
    """Longer names are cut off silently, and two tenants would meet; some are its own."""
    with pytest.raises(ConfigError, match="is not allowed"):
        check_schema(name)
    with pytest.raises(ConfigError, match="is not allowed"):
        Placement(make_url(MAIN), name)
    with pytest.raises(ConfigError, match="is not allowed"):
        Placement(make_url(MAIN), "good", name)


@pytest.mark.parametrize(
    "name", ["a", "a" * 63, "ä" * 31, 'a"b', "Tenant", "a b", "public", "ü'--"]
)
def test_any_other_name_is_kept_as_it_is(name):
    """Quotes, capitals and spaces are fine: every statement quotes the name."""
    assert check_schema(name) == name


@pytest.mark.parametrize(
    "key", ["", "A", "1a", "_a", "a-b", "a.b", "a/b", "..", "é", "a" * 49, "a\n"]
)
def test_a_key_is_a_plain_word(key):
    """It becomes part of file names, schemas and roles."""
    with pytest.raises(ConfigError, match="is not allowed"):
        check_key(key)
    with pytest.raises(ConfigError, match="is not allowed"):
        Tenant("id", key, Placement.of("sqlite:///a.db"))


def test_sqlite_has_no_schemas():
    """A schema for a file is a mistake, and not ignored."""
    with pytest.raises(ConfigError, match="SQLite has no schemas"):
        SchemaIsolation("sqlite:///main.db").place("acme")


@pytest.mark.parametrize(
    "url", ["mysql://app:hunter2@db/x", "hunter2", "postgresql+asyncpg://app:hunter2@db/x", ""]
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url):
    """It may hold a password."""
    with pytest.raises(ConfigError) as caught:
        read_url(url)

    assert "hunter2" not in str(caught.value)


def test_a_place_shows_no_password():
    """Neither for people, nor in representations that end in tracebacks."""
    made = SchemaIsolation(MAIN).place("acme")

    for shown in (str(made), repr(made), repr(Tenant("id", "acme", made))):
        assert "hunter2" not in shown
    assert str(made).endswith("schema tenant_acme")


def test_places_of_one_server_are_counted_together():
    """Host and port say which server; a file has none."""
    names = ("@db/a", "@db:5432/b", "/c?host=db", "@DB2/d", "@db:5433/e")
    servers = [Placement.of(f"postgresql://{name}").server for name in names]

    assert servers == ["db:5432", "db:5432", "db:5432", "DB2:5432", "db:5433"]
    assert Placement.of("sqlite:///a.db").server is None


def test_every_place_has_a_lock_of_its_own():
    """The same for every process, whatever it calls the tenant."""
    schemas = [f"tenant_{number}" for number in range(1000)]
    keys = {lock_key(Placement(make_url(MAIN), schema)) for schema in schemas}

    assert len(keys) == 1000
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert lock_key(Placement.of(MAIN)) == lock_key(Placement.of(MAIN, "public"))


@pytest.mark.parametrize("isolation", STRATEGIES)
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (None, "did not say where it is"),
        ((None, "app", "app", "7"), "in schema None"),
        (("public", "app", "app", "7"), "in schema 'public'"),
        (("tenant_globex", "app", "app", "7"), "in schema 'tenant_globex'"),
        (("Tenant_acme", "app", "app", "7"), "in schema 'Tenant_acme'"),
        (("tenant_acme", "tenant_globex", "app", "7"), "runs as 'tenant_globex'"),
    ],
)
def test_another_place_is_no_proof(isolation, answer, complaint):
    """Whatever the strategy: another schema, none, or another user is refused."""
    with pytest.raises(TenantNotIsolated, match=complaint):
        isolation.confirm(answer, Placement.of(MAIN, "tenant_acme"))


@pytest.mark.parametrize("isolation", STRATEGIES)
def test_the_right_place_is_proof_and_names_the_transaction(isolation):
    """Schema and user as wanted: the login, or the role where one is wanted."""
    mine = Placement.of(MAIN, "tenant_acme")
    as_role = Placement(mine.url, mine.schema, "writer")

    assert isolation.confirm(("tenant_acme", "app", "app", "7"), mine) == "7"
    assert isolation.confirm(("tenant_acme", "writer", "app", "8"), as_role) == "8"
    with pytest.raises(TenantNotIsolated, match="not as 'writer'"):
        isolation.confirm(("tenant_acme", "app", "app", "9"), as_role)
    assert schema_of(Placement.of(MAIN)) == "public"


def test_a_file_is_proven_by_its_real_path(tmp_path, monkeypatch):
    """Relative paths and links to the same file are the same place; another file is not."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "acme.db"
    file.touch()
    os.symlink(file, tmp_path / "link.db")
    isolation = DatabaseIsolation(None)
    for name in ("acme.db", str(file), "link.db", "./acme.db"):
        isolation.confirm((0, "main", str(file)), Placement.of(f"sqlite:///{name}"))

    for name in ("globex.db", ":memory:", ""):
        with pytest.raises(TenantNotIsolated, match="another file"):
            isolation.confirm((0, "main", str(file)), Placement.of(f"sqlite:///{name}"))
    with pytest.raises(TenantNotIsolated):
        isolation.confirm((0, "main", ""), Placement.of("sqlite:///acme.db"))
    assert isolation.confirm((0, "main", ""), Placement.of("sqlite://")) == ""
