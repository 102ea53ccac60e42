"""The examples, each in its framework and over real HTTP: as a team would mount them."""

import importlib.util
import re
import shutil
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from guarding import body_of, ledger, make, people, serving, told
from sqlalchemy import text
from werkzeug.serving import make_server

from tenantsync import IdentitySyncHandler, TenantSync, TenantUnavailable, UnknownTenant
from tenantsync.observe import Outcome
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.testing.emulator import Emulator

EXAMPLES = Path(__file__).parents[2] / "examples"
ACME, GLOBEX = "93ce0187-9290-491b-9f06-be209b3d2f92", "e2f80a4d-7d1c-4b53-9c1e-0f6a5d3b8c21"
PATH = "/webhooks/authvital"


def load(name):
    """Import an example from its file, fresh."""
    file = EXAMPLES / name
    spec = importlib.util.spec_from_file_location(f"example_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving_blocking(application):
    """Serve a WSGI application on a free loopback port, and give its base URL."""
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def authvital():
    with Emulator() as running:
        yield running


@pytest.fixture
def folder(tmp_path, monkeypatch, authvital, migrated_templates):
    """A folder with the examples' configuration and migrated tenants, as the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTHVITAL_HOST", authvital.url)
    shutil.copyfile(EXAMPLES / "tenantsync.toml", tmp_path / "tenantsync.toml")
    (tmp_path / "tenants").mkdir()
    for key in ("acme", "globex"):
        shutil.copyfile(migrated_templates(0), tmp_path / "tenants" / f"{key}.db")
    return tmp_path


FRAMEWORKS = {
    "starlette_app": ("app", serving),
    "fastapi_app": ("app", serving),
    "flask_app": ("app", serving_blocking),
    "django_app": ("application", serving_blocking),
}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_example_takes_deliveries(folder, authvital, name, caplog):
    """Applied, duplicate, foreign, forged, too large, wrong method, a database away: all of it."""
    attribute, serve = FRAMEWORKS[name]
    module = load(f"{name}.py")
    acme, globex = (tenant.placement for tenant in module.sync.tenants)
    caplog.set_level("INFO")

    def send(body, path=PATH, **headers):
        delivery = authvital.delivery(body)
        with httpx2.Client(trust_env=False) as client:
            return client.post(url + path, content=body, headers={**delivery.headers, **headers})

    join = body_of("member.joined", tenant=ACME, id="e-1")
    with module.sync, serve(getattr(module, attribute)) as url:
        assert (send(join).status_code, send(join).json()) == (200, {"outcome": "duplicate"})
        assert send(body_of("member.joined", "gus", tenant=GLOBEX)).json() == {"outcome": "applied"}
        assert send(body_of("member.joined", tenant="nobody")).status_code == 202
        assert send(body_of("member.joined", application="another")).json()["outcome"] == "ignored"
        forged = send(join, **{"X-AuthVital-Timestamp": "1"})
        assert (forged.status_code, forged.json()["error"]) == (401, "untrusted")
        assert send(b"{" + b" " * 300_000).status_code == 413
        assert send(b"{").json()["outcome"] == "parked"
        assert httpx2.get(url + PATH, trust_env=False).status_code == 405
        for mode in ("broker", "legacy"):
            slash = authvital.send(authvital.delivery(join), f"{url}{PATH}/", mode=mode)
            assert slash.status == 404
        (folder / "tenants" / "acme.db").rename(folder / "away.db")
        # The engine that is open still has the file; the next one finds it missing.
        module.sync.registry._dispose_unused()
        module.sync.registry._dispose_unused()
        away = send(body_of("member.joined", "bob", tenant=ACME, id="e-2"))
        assert (away.status_code, away.json()) == (202, {"outcome": "parked"})
        (folder / "away.db").rename(folder / "tenants" / "acme.db")
        assert send(body_of("member.joined", "bob", tenant=ACME, id="e-2")).status_code == 200

    assert (people(acme), people(globex)) == (["ann", "bob"], ["gus"])
    assert ledger(acme) == ["e-1", "e-2"]
    welcomed = [r.getMessage() for r in caplog.records if "new member" in r.getMessage()]
    assert welcomed[0] == f"{ACME} has a new member: ann"


class Vault(dict):
    """A secrets manager; it fails for what it does not have, and remembers what it was asked."""

    def __init__(self, secrets):
        super().__init__(secrets)
        self.asked = []

    def read(self, name):
        self.asked.append(name)
        return self[name]


@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
def test_tenants_from_a_secrets_manager(migrated_place):
    """Found through the catalogue; for later while the vault has no answer; else unknown."""
    example = load("secrets_manager.py")
    vault = Vault({"tenants/acme/database-url": str(migrated_place.url)})
    source = example.SecretTenants({ACME: "acme", GLOBEX: "globex"}, vault)
    with IdentitySyncHandler(source, observers=()) as handler:
        results = [
            told(handler, make("member.joined", tenant=tenant)) for tenant in (ACME, GLOBEX, "none")
        ]

    assert results == [Outcome.APPLIED, TenantUnavailable, UnknownTenant]
    assert vault.asked == ["tenants/acme/database-url", "tenants/globex/database-url"]
    assert people(migrated_place) == ["ann"]


def test_passwords_are_asked_for_at_each_connection(schema_places):
    """A rotated password is used without a restart."""
    example = load("secrets_manager.py")
    (place,) = schema_places(1)
    name = f"databases/{place.url.database}/password"
    vault = Vault({name: "first"})
    registry = EngineRegistry(factory=example.rotating_engines(vault), max_connections=2, idle=2)
    with registry:
        with registry.connect(place), registry.connect(place):
            pass
        with registry.connect(place) as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        with IdentitySyncHandler(place, registry=registry, observers=()) as handler:
            assert told(handler, make("member.joined")) is Outcome.APPLIED

    assert vault.asked == [name, name]


def test_a_source_goes_into_the_whole_application(folder, migrated_templates):
    """`from_toml` takes a source in place of the file's list."""
    example = load("secrets_manager.py")
    url = f"sqlite:///{folder / 'tenants' / 'globex.db'}"
    source = example.SecretTenants({"x": "acme"}, Vault({"tenants/acme/database-url": url}))
    with TenantSync.from_toml(folder / "tenantsync.toml", source=source) as sync:
        outcome = sync.handle_blocking(make("member.joined", tenant="x"))
        unknown = sync.handle_blocking(make("member.joined", tenant=ACME))

    assert (outcome, unknown) == (Outcome.APPLIED, Outcome.PARKED)


@pytest.mark.parametrize("page", ["frameworks.md", "bring-your-own-tenants.md"])
def test_the_programs_of_a_page_run_as_printed(folder, page):
    """The blocks of a how-to, one after the other, in one program."""
    text_of_page = (EXAMPLES.parent / "docs" / "how-to" / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text_of_page, re.MULTILINE | re.DOTALL)
    program = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, page, "exec"), program)  # noqa: S102

    assert len(blocks) >= 4
    if page == "bring-your-own-tenants.md":
        check_tenants_of_page(program)


def check_tenants_of_page(program):
    with program["handler"] as handler:
        assert told(handler, make("member.joined", tenant=ACME)) is Outcome.APPLIED
        assert told(handler, make("member.joined", tenant=GLOBEX)) is UnknownTenant
    places = [program["isolation"].place(key) for key in ("acme", "zeta")]
    assert [(place.url.host, place.schema) for place in places] == [
        ("db1", "tenant_acme"),
        ("db2", "tenant_zeta"),
    ]
    vault = Vault({"tenants/acme/database-url": "sqlite:///tenants/acme.db"})
    source = program["SecretTenants"]({ACME: "acme"}, vault)
    with TenantSync.from_toml(source=source, engine_factory=program["rotating"](Vault({}))) as sync:
        assert sync.handler._resolver.resolve_blocking(ACME).key == "acme"
        assert told(sync.handler, make("member.joined", tenant="none")) is Outcome.PARKED
