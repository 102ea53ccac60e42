"""Anyone can sign up at the provider: a tenant id is a stranger's text until it is found."""

import json
import shutil
import unicodedata

import pytest
from guarding import APPLICATION, ask, body_of, counts, people

from tenantsync import TenantSync
from tenantsync.authvital.keys import KeyRing
from tenantsync.authvital.signatures import Verifier
from tenantsync.config import load
from tenantsync.observe import OutcomeCounter
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenancy.isolation import DatabaseIsolation, SchemaIsolation
from tenantsync.tenancy.resolver import ListedTenants, TenantResolver
from tenantsync.tenants import Placement, Tenant
from tenantsync.testing.emulator import Emulator
from tenantsync.web.webhook import WebhookRouter

KNOWN = "93ce0187-9290-491b-9f06-be209b3d2f9a"
HOSTILE = {
    "quote": "'",
    "sql": "'; DROP TABLE av_identities; --",
    "double quote": 'tenant_acme"; DROP SCHEMA tenant_acme CASCADE; --',
    "semicolon": f"{KNOWN};",
    "the key": "acme",
    "the schema": "tenant_acme",
    "public": "public",
    "64 KiB": "a" * 65_536,
    "known, then 64 KiB": KNOWN + "\u200b" * 20_000,
    "256 bytes": "a" * 256,
    "upper case": KNOWN.upper(),
    "full width": KNOWN.replace("9", "\uff19"),
    "homoglyph": KNOWN.replace("a", "\u0430"),
    "combining": KNOWN.replace("a", "a\u0301"),
    "zero width": KNOWN + "\u200b",
    "right to left": "\u202e" + KNOWN,
    "byte order mark": "\ufeff" + KNOWN,
    "trailing space": KNOWN + " ",
    "leading space": " " + KNOWN,
    "newline": KNOWN + "\n",
    "tab": "\t" + KNOWN,
    "percent": KNOWN.replace("-", "%2D"),
    "percent path": "..%2f..%2fetc%2fpasswd",
    "braces": KNOWN.replace("-", "", 1) + "{key}",
    "template": "{key}",
    "environment": "${HOME}",
    "separator": "../acme",
    "dots": "..",
    "dot": ".",
    "slash": "/",
    "backslash": "..\\acme",
    "absolute": "/var/acme",
    "drive": "C:\\acme",
    "url": "sqlite:///hostile.db",
    "wildcard": "%",
    "underscore": KNOWN[:-1] + "_",
    "format": "%s%s%n",
    "star": "*",
    "null word": "null",
    "number": "0",
    "emoji": "\U0001f4a9" * 60,
    "escape": "\x1b[2J",
    "delete": "\x7f",
    "line separator": "\u2028",
}
MALFORMED = {"nul": KNOWN + "\x00", "only nul": "\x00", "lone surrogate": KNOWN + "\ud800"}
WRONG_TYPES = (7, True, [KNOWN], {"id": KNOWN})


@pytest.fixture(scope="module")
def authvital():
    return Emulator()


def router_for(handler, authvital):
    """Return the door, with the emulator's keys fetched without a network."""
    ring = KeyRing("https://auth.example.test", fetch=lambda url, *, no_cache: jwks(authvital))
    return WebhookRouter(handler, application_id=APPLICATION, verifier=Verifier(ring))


def jwks(authvital):
    return json.dumps(authvital.jwks()).encode()


def knock(router, authvital, tenant, sub="ann", kind="member.joined"):
    """Deliver an event that is truly signed, and return the status and the answer."""
    delivery = authvital.delivery(body_of(kind, sub, tenant=tenant))
    return router.handle_blocking(delivery.body, delivery.headers)


def everything(place, folder):
    """Return what exists, in the folder and on the server: files, databases, schemas, tables."""
    found = [str(path) for path in sorted(folder.rglob("*")) if path.suffix in ("", ".db")]
    if place.is_postgres:
        for query in (
            "SELECT datname::text FROM pg_database ORDER BY 1",
            "SELECT nspname::text FROM pg_namespace ORDER BY 1",
            "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' ORDER BY 1",
            "SELECT rolname::text FROM pg_roles ORDER BY 1",
        ):
            found += [row[0] for row in ask(place, query)]
    return found


@pytest.fixture
def world(migrated_place, authvital, tmp_path):
    """A listed tenant, its place, and a door."""
    counter = OutcomeCounter()
    url = migrated_place.url.render_as_string(hide_password=False)
    isolation = SchemaIsolation(url) if migrated_place.is_postgres else DatabaseIsolation(url)
    source = ListedTenants([Tenant(KNOWN, "acme", isolation.place("acme"))])
    with IdentitySyncHandler(
        TenantResolver(source), isolation=isolation, observers=[counter]
    ) as handler:
        yield router_for(handler, authvital), migrated_place, counter


def test_a_hostile_tenant_id_is_unknown_and_makes_nothing(world, authvital, tmp_path):
    """Every one of them is answered 202 `ignored`; no file, schema, table or row comes of it."""
    router, place, counter = world
    before = everything(place, tmp_path)

    answers = {name: knock(router, authvital, tenant) for name, tenant in HOSTILE.items()}

    ignored = (202, {"outcome": "ignored", "reason": "unknown tenant"})
    assert answers == dict.fromkeys(HOSTILE, ignored)
    assert everything(place, tmp_path) == before
    assert set(counts(place).values()) == {0}
    assert counter.reasons() == {"unknown_tenant": len(HOSTILE)}
    assert knock(router, authvital, KNOWN) == (200, {"outcome": "applied"})


def test_a_tenant_id_that_is_no_text_is_malformed(world, authvital, tmp_path):
    """What no database could hold, or is of another type, is refused before anybody looks."""
    router, place, _ = world
    before = everything(place, tmp_path)

    for tenant in (*MALFORMED.values(), *WRONG_TYPES):
        status, answer = knock(router, authvital, tenant)
        assert (status, answer["error"]) == (400, "malformed")
    assert everything(place, tmp_path) == before
    assert set(counts(place).values()) == {0}


def test_the_list_of_lookalikes_really_looks_alike():
    """Some of them would be the known id to a comparison that normalises or folds."""
    folded = [
        name
        for name, tenant in HOSTILE.items()
        if unicodedata.normalize("NFKC", tenant).casefold().strip() == KNOWN
    ]

    assert {"upper case", "full width", "trailing space", "newline"} <= set(folded)


def test_where_any_tenant_is_accepted_its_id_is_a_value_and_nothing_else(
    migrated_place, authvital, tmp_path
):
    """One place for all: whatever the id says it is stored as it came, if it can be stored."""
    before = everything(migrated_place, tmp_path)
    with IdentitySyncHandler(migrated_place, observers=()) as handler:
        router = router_for(handler, authvital)
        answers = {name: knock(router, authvital, tenant, name) for name, tenant in HOSTILE.items()}

    stored = {name: tenant for name, tenant in HOSTILE.items() if len(tenant.encode()) <= 255}
    assert {name: answers[name][0] for name in HOSTILE} == {
        name: 200 if name in stored else 202 for name in HOSTILE
    }
    assert dict(ask(migrated_place, "SELECT id, tenant_id FROM {s}av_identities")) == stored
    assert everything(migrated_place, tmp_path) == before


def test_hostile_people_are_values_too(world, authvital, tmp_path):
    """The same texts as subject ids: each is a row of its own, byte by byte."""
    router, place, _ = world
    before = everything(place, tmp_path)
    for name in HOSTILE.values():
        knock(router, authvital, KNOWN, name)

    assert people(place) == sorted(name for name in HOSTILE.values() if len(name.encode()) <= 255)
    assert everything(place, tmp_path) == before


def test_a_hostile_id_never_reaches_a_path_of_the_database_strategy(
    tmp_path, authvital, migrated_templates
):
    """With a file for each tenant, names of files come from the configuration only."""
    (tmp_path / "tenantsync.toml").write_text(
        f"""
        [authvital]
        host = "https://auth.example.test"
        application_id = "{APPLICATION}"
        [isolation]
        strategy = "database"
        url = "sqlite:///tenants/{{key}}.db"
        [tenants.acme]
        id = "{KNOWN}"
        """
    )
    folder = tmp_path / "tenants"
    folder.mkdir()
    shutil.copyfile(migrated_templates(0), folder / "acme.db")

    def files():
        # tenantsync.toml, and whatever the application keeps for itself beside it.
        return sorted(path for path in tmp_path.rglob("*") if path.parent != tmp_path)

    before = files()
    with TenantSync(load(tmp_path / "tenantsync.toml")) as sync:
        router = router_for(sync.handler, authvital)
        statuses = {knock(router, authvital, tenant)[0] for tenant in HOSTILE.values()}
        assert files() == before
        assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {
            "tenantsync",
            "tenants",
        }
        assert knock(router, authvital, KNOWN)[0] == 200

    assert statuses == {202}
    assert people(Placement.of(f"sqlite:///{folder / 'acme.db'}")) == ["ann"]
