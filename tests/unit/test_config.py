"""The configuration: what it reads, what it refuses, and what it never says."""

import copy
import logging
import os
import pickle
import re
import tomllib
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tenantsync.config import Settings, fill, load, read
from tenantsync.config.sections import SECTIONS, TenantSettings, keys_of
from tenantsync.config.values import expand, show
from tenantsync.errors import ConfigError

FULL = """
app = "myapp.main:sync"
[authvital]
host = "https://auth.example.com/"
application_id = "cmwspxuxh0007ny7dn277ejhn"
issuer = "https://auth.example.com/"
audience = ["spa-client-id"]
client_id = "machine"
client_secret = "${AV_CLIENT_SECRET}"
default_app_access = false
max_age = 200
max_skew = 50
documented_dialect = true
[control]
url = "sqlite:///books/control.db"
[isolation]
strategy = "schema"
url = "postgresql+psycopg://app:${DB_PASSWORD}@db/main"
schema = "t_{key}"
role = "role_{key}"
migration_url = "postgresql+psycopg://owner:${OWNER_PASSWORD}@db/main"
max_connections = 11
max_engines = 12
connect_timeout = 3
statement_timeout = "1500ms"
accept_any_tenant = false
[tenants.acme]
id = "93ce0187-9290-491b-9f06-be209b3d2f92"
[tenants.globex]
id = "e2f80a4d-3bfa-4c0e-8a44-6ffa1a4f5c0e"
url = "postgresql+psycopg://app@elsewhere/globex"
schema = "people"
role = "globex"
[migrations]
locations = ["migrations/versions", "/srv/more"]
[worker]
inline = false
signals = "nats://user:${NATS_PASSWORD}@localhost:4222"
interval = "1m"
retain_bodies = "1d"
retain_ids = "2d"
retain_quarantine = "3d"
[reconcile]
every = "2h"
max_removal = 0.5
[provisioning]
on_tenant_created = "allowlist"
allowlist = ["a", "b"]
max_per_hour = 3
[pubsub]
audience = "https://us/push"
service_account = "push@project.iam.gserviceaccount.com"
issuer = "https://issuer.example.com"
jwks_url = "https://keys.example.com/certs"
"""
ENVIRON = {
    "AV_CLIENT_SECRET": "s3cret-client",
    "DB_PASSWORD": "p@ss/w:rd?#%{key}",
    "OWNER_PASSWORD": "s3cret-owner",
    "NATS_PASSWORD": "s3cret-nats",
}
AUTHVITAL = '[authvital]\nhost = "https://auth.example.com"\napplication_id = "app"\n'
FILES = AUTHVITAL + '[isolation]\nstrategy = "database"\nurl = "sqlite:///t/{key}.db"\n'
SCHEMAS = AUTHVITAL + '[isolation]\nstrategy = "schema"\nurl = "postgresql://app@db/main"\n'
DATABASES = AUTHVITAL + '[isolation]\nstrategy = "database"\nurl = "postgresql://app@db/t_{key}"\n'
SINGLE = AUTHVITAL + '[isolation]\nstrategy = "single"\nurl = "sqlite:///all.db"\n'


@pytest.fixture
def config(tmp_path):
    """Load a text as a configuration file of its own folder."""

    def load_text(text: str, environ: dict[str, str] | None = None) -> Settings:
        file = tmp_path / "tenantsync.toml"
        file.write_text(text, encoding="utf-8")
        return load(file, environ or {})

    return load_text


@pytest.fixture
def refusal(config, tmp_path):
    """Load a text that is refused, and return the message without the file's folder."""

    def refused(text: str, environ: dict[str, str] | None = None) -> str:
        with pytest.raises(ConfigError) as caught:
            config(text, environ)
        return str(caught.value).replace(f"{tmp_path}{os.sep}", "")

    return refused


def test_every_key_is_read(config, tmp_path):
    """Each key of the file ends in the setting of its name."""
    settings = config(FULL, ENVIRON)

    authvital = settings.authvital
    assert authvital.host == "https://auth.example.com"
    assert authvital.issuer == "https://auth.example.com/"
    assert authvital.application_id == "cmwspxuxh0007ny7dn277ejhn"
    assert authvital.audience == ("spa-client-id",)
    assert (authvital.client_id, authvital.client_secret) == ("machine", "s3cret-client")
    assert (
        authvital.default_app_access,
        authvital.max_age,
        authvital.max_skew,
        authvital.documented_dialect,
    ) == (False, 200, 50, True)
    isolation = settings.isolation
    assert (
        isolation.strategy,
        isolation.schema,
        isolation.role,
    ) == ("schema", "t_{key}", "role_{key}")
    assert (
        isolation.max_connections,
        isolation.max_engines,
        isolation.connect_timeout,
        isolation.statement_timeout,
        isolation.accept_any_tenant,
    ) == (11, 12, 3.0, 1.5, False)
    assert isolation.migration_url == "postgresql+psycopg://owner:s3cret-owner@db/main"
    assert settings.tenants["acme"].id == "93ce0187-9290-491b-9f06-be209b3d2f92"
    assert (
        TenantSettings(
            id="e2f80a4d-3bfa-4c0e-8a44-6ffa1a4f5c0e",
            url="postgresql+psycopg://app@elsewhere/globex",
            schema="people",
            role="globex",
        )
        == settings.tenants["globex"]
    )
    assert f"sqlite:///{tmp_path}/books/control.db" == settings.control.url
    assert (tmp_path / "migrations/versions", Path("/srv/more")) == settings.migrations.locations
    worker = settings.worker
    assert (
        worker.inline,
        worker.signals,
        worker.interval,
    ) == (False, "nats://user:s3cret-nats@localhost:4222", 60.0)
    assert (
        worker.retain_bodies,
        worker.retain_ids,
        worker.retain_quarantine,
    ) == (86_400, 172_800, 259_200)
    assert (settings.reconcile.every, settings.reconcile.max_removal) == (7_200, 0.5)
    assert (
        settings.provisioning.on_tenant_created,
        settings.provisioning.allowlist,
        settings.provisioning.max_per_hour,
    ) == ("allowlist", ("a", "b"), 3)
    assert (
        settings.pubsub.audience,
        settings.pubsub.service_account,
        settings.pubsub.issuer,
        settings.pubsub.jwks_url,
    ) == (
        "https://us/push",
        "push@project.iam.gserviceaccount.com",
        "https://issuer.example.com",
        "https://keys.example.com/certs",
    )
    assert ("myapp.main:sync", tmp_path / "tenantsync.toml") == (settings.app, settings.path)


def test_the_full_file_has_every_key_there_is():
    """The test above forgets none."""
    data = tomllib.loads(FULL)

    assert {name: set(keys_of(kind)) for name, kind in SECTIONS.items()} == {
        name: set(data[name]) for name in SECTIONS
    }
    assert set(keys_of(TenantSettings)) == set(data["tenants"]["globex"])


def test_what_is_left_out_has_its_default(config, tmp_path):
    """A file with what is required alone is a whole configuration."""
    settings = config(FILES)

    assert settings.app is None
    assert (
        settings.authvital.issuer,
        settings.authvital.audience,
        settings.authvital.client_id,
        settings.authvital.client_secret,
        settings.authvital.default_app_access,
        settings.authvital.max_age,
        settings.authvital.max_skew,
        settings.authvital.documented_dialect,
    ) == ("https://auth.example.com", (), None, None, True, 300, 60, False)
    isolation = settings.isolation
    assert (
        isolation.schema,
        isolation.role,
        isolation.migration_url,
        isolation.max_connections,
        isolation.max_engines,
        isolation.connect_timeout,
        isolation.statement_timeout,
        isolation.accept_any_tenant,
    ) == (None, None, None, 10, 64, 2.0, 5.0, False)
    assert settings.tenants == {}
    assert settings.migrations.locations == ()
    assert f"sqlite:///{tmp_path}/tenantsync.db" == settings.control.url
    assert (
        settings.worker.inline,
        settings.worker.signals,
        settings.worker.interval,
        settings.worker.retain_bodies,
        settings.worker.retain_ids,
        settings.worker.retain_quarantine,
    ) == (True, None, 5.0, 604_800.0, 3_024_000.0, 7_776_000.0)
    assert (settings.reconcile.every, settings.reconcile.max_removal) == (21_600.0, 0.2)
    assert (
        settings.provisioning.on_tenant_created,
        settings.provisioning.allowlist,
        settings.provisioning.max_per_hour,
    ) == ("ignore", (), 10)
    assert (
        settings.pubsub.audience,
        settings.pubsub.service_account,
        settings.pubsub.issuer,
        settings.pubsub.jwks_url,
    ) == (None, None, "https://accounts.google.com", "https://www.googleapis.com/oauth2/v3/certs")


def test_the_schema_strategy_has_a_template_by_default(config):
    """Schemas are named after the key unless the file says otherwise."""
    assert config(SCHEMAS).isolation.schema == "tenant_{key}"


def test_settings_are_values(config):
    """They compare, hash, travel to another process, and cannot be changed."""
    settings = config(FULL, ENVIRON)

    assert settings == pickle.loads(pickle.dumps(settings))  # noqa: S301 - our own bytes
    assert hash(settings) == hash(copy.copy(settings))
    with pytest.raises(AttributeError):
        settings.app = "other:app"
    with pytest.raises(AttributeError):
        settings.isolation.max_engines = 1
    with pytest.raises(TypeError):
        settings.tenants["evil"] = settings.tenants["acme"]


def test_what_is_shown_of_settings_holds_no_secret(config):
    """The `repr` of settings may end in a log."""
    settings = config(FULL, ENVIRON)

    shown = "".join(
        map(repr, [settings, *(getattr(settings, name) for name in SECTIONS), settings.tenants])
    )
    assert "s3cret" not in shown
    assert "postgresql" not in shown
    assert "client_secret='***'" in shown


# Mistakes: file, key, what was wrong, what is allowed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            AUTHVITAL + 'max_age = "abc"',
            ('[authvital] max_age: expected a whole number of seconds from 1 to 86400, got "abc"'),
        ),
        (
            AUTHVITAL + "max_age = 0",
            ("[authvital] max_age: expected a whole number of seconds from 1 to 86400, got 0"),
        ),
        (
            AUTHVITAL + "max_skew = true",
            ("[authvital] max_skew: expected a whole number of seconds from 1 to 86400, got true"),
        ),
        (
            AUTHVITAL + "max_aeg = 3",
            '[authvital]: unknown key "max_aeg"; did you mean "max_age"?',
        ),
        (
            "[authvitl]\n",
            'unknown key "authvitl"; did you mean "authvital"?',
        ),
        (
            "max_skew = 1\n",
            'unknown key "max_skew"; it belongs under [authvital]',
        ),
        (
            AUTHVITAL + 'app = "a:b"\n',
            (
                '[authvital]: unknown key "app"; it belongs at the top of the file, '
                "above every section"
            ),
        ),
        (
            FILES + '[tenants.acme]\nidentity_number = "x"',
            ('[tenants.acme]: unknown key "identity_number"; allowed are id, role, schema, url'),
        ),
        (
            "[isolation]\n",
            (
                "[authvital] host: is required: an http(s) URL without a path, a "
                "query or credentials"
            ),
        ),
        (
            AUTHVITAL,
            '[isolation] strategy: is required: "schema", "database" or "single"',
        ),
        (
            AUTHVITAL + '[isolation]\nstrategy = "schemas"',
            ('[isolation] strategy: expected "schema", "database" or "single", got "schemas"'),
        ),
        (
            'authvital = "x"',
            (
                "[authvital]: expected a table, got a value that is not shown, as it "
                "may hold a password"
            ),
        ),
        ('app = "no colon"\n' + FILES, 'app: expected a path such as "myapp.main'),
        ("tenants = 3\n" + FILES, "[tenants]: expected a table for each tenant"),
        (FILES + "[tenants]\nacme = 3", "[tenants.acme]: expected a table, got 3"),
        (
            FILES + '[tenants.Acme]\nid = "x"',
            "[tenants]: tenant key 'Acme' is not",
        ),
        (
            FILES + '[tenants.acme]\nid = ""',
            "[tenants.acme] id: expected AuthVita",
        ),
        (
            FILES + f'[tenants.acme]\nid = "{"é" * 128}"',
            "[tenants.acme] id: is longer than 255 bytes",
        ),
        (
            FILES + "[tenants.acme]\n",
            "[tenants.acme] id: is required: AuthVital's",
        ),
        (FILES + "max_engines = 0.5", "[isolation] max_engines: expected a whole"),
        (
            FILES + "connect_timeout = nan",
            "[isolation] connect_timeout: expected a",
        ),
        (
            FILES + "connect_timeout = true",
            "[isolation] connect_timeout: expected",
        ),
        (FILES + 'connect_timeout = "2"', "[isolation] connect_timeout: expected"),
        (
            FILES + 'connect_timeout = "2h"',
            "[isolation] connect_timeout: expected",
        ),
        (
            FILES + "[reconcile]\nmax_removal = 1.1",
            "[reconcile] max_removal: expec",
        ),
        (
            FILES + "[reconcile]\nmax_removal = nan",
            "[reconcile] max_removal: expec",
        ),
        (FILES + "[reconcile]\nevery = 1979-05-27", "[reconcile] every: expected"),
        (
            FILES + '[migrations]\nlocations = "x"',
            "[migrations] locations: expecte",
        ),
        (
            FILES + "[migrations]\nlocations = [3]",
            "[migrations] locations: expecte",
        ),
        (
            FILES + '[provisioning]\nallowlist = [""]',
            "[provisioning] allowlist: ex",
        ),
        (FILES + '[worker]\nsignals = "nats"', "[worker] signals: expected a URL"),
        (
            FILES + '[pubsub]\njwks_url = "ftp://x"',
            "[pubsub] jwks_url: expected an",
        ),
        (
            FILES + '[pubsub]\naudience = "a\\u0000"',
            "[pubsub] audience: holds the",
        ),
        (
            FILES + '[pubsub]\naudience = "https://us/push"',
            "[pubsub] service_account: is required",
        ),
        (
            FILES + '[pubsub]\nservice_account = "push@us"',
            "[pubsub] audience: is required",
        ),
    ],
)
def test_a_mistake_is_named_by_file_key_and_what_is_allowed(refusal, text, message):
    """Whoever made it knows what to write instead."""
    assert refusal(text).startswith(f"tenantsync.toml: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[authvital\n", "tenantsync.toml: is no TOML: "),
        (b'app = "a:b"\napp = "a:b"\n', "(at line 2, column 12)"),
        (b"\n\n\xff", "tenantsync.toml: is not UTF-8 (at line 3)"),
        (b"a = " + b"1" * 5_000, "tenantsync.toml: cannot be read: a number is too long"),
        (b"a = " + b"[" * 20_000, "tenantsync.toml: "),
        (b"a = " + b"{a=" * 20_000, "tenantsync.toml: "),
    ],
    ids=["syntax", "twice", "encoding", "digits", "lists", "tables"],
)
def test_what_is_no_toml_is_named_by_its_line(tmp_path, content, message):
    """Syntax errors and Python's own limits are ConfigErrors too."""
    file = tmp_path / "tenantsync.toml"
    file.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        load(file, {})

    assert message in str(caught.value)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    """Some editors begin a file with one."""
    file = tmp_path / "tenantsync.toml"
    file.write_bytes(b"\xef\xbb\xbf" + FILES.encode())

    assert load(file, {}).isolation.strategy == "database"


def test_a_missing_file_says_how_to_make_one(tmp_path):
    """The first thing that a newcomer meets is a hint."""
    with pytest.raises(ConfigError, match="tenantsync init"):
        load(tmp_path / "tenantsync.toml", {})


@pytest.mark.parametrize("path", ["", "nul\x00"])
def test_a_path_that_is_no_file_is_refused(tmp_path, path):
    """A folder, or a name that no system has."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load(f"{tmp_path}/{path}", {})


def test_the_environment_is_read_only_when_none_is_given(config, tmp_path, monkeypatch):
    """Without one, `${NAME}` comes from the process's environment."""
    file = tmp_path / "tenantsync.toml"
    file.write_text(FILES.replace('"app"', '"${APPLICATION}"'))
    monkeypatch.setenv("APPLICATION", "from the process")

    assert load(file).authvital.application_id == "from the process"
    with pytest.raises(ConfigError, match="APPLICATION"):
        _ = load(file, {}).authvital


# Secrets


@pytest.mark.parametrize(
    "text",
    [
        AUTHVITAL.replace("https://", "https://user:hunter2@"),
        AUTHVITAL.replace("https://auth", "https://auth/hunter2@"),
        AUTHVITAL + 'client_secret = ["hunter2"]',
        FILES.replace("sqlite:///", "mysql://user:hunter2@db/"),
        FILES.replace("sqlite:///", "postgresql://user:hunter2@db:port/"),
        FILES.replace("sqlite:///", "postgresql://user:hunter2@db:99999/"),
        FILES.replace("sqlite:///", "postgresql://user:hunter2{}@db/"),
        FILES.replace("sqlite:///", "postgresql://user:hunter2\\n@db/"),
        FILES.replace("sqlite:///", "hunter2"),
        FILES.replace("sqlite:///t/{key}.db", "postgresql://user:hunter2@db/main"),
        SCHEMAS + 'migration_url = "hunter2"',
        FILES + '[control]\nurl = "hunter2"',
        FILES + '[worker]\nsignals = "hunter2"',
        FILES + '[tenants.acme]\nid = "a"\nurl = "hunter2"',
        DATABASES + 'migration_url = "postgresql://user:hunter2@db/one"',
        AUTHVITAL + 'max_age = "https://user:hunter2@db/main"',
    ],
)
def test_no_message_repeats_a_secret(refusal, text):
    """What may hold a password is never echoed, whatever is wrong with it."""
    assert "hunter2" not in refusal(text)


def test_what_the_environment_said_is_not_shown(refusal):
    """A message shows the reference of the file, not its value."""
    message = refusal(FILES + 'connect_timeout = "${TIMEOUT}"', {"TIMEOUT": "hunter2"})

    assert "hunter2" not in message
    assert message.endswith('got "${TIMEOUT}"')


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb", '"a\\nb"'),
        ("é", '"é"'),
        ("x" * 100, '"' + "x" * 60 + '..."'),
        (False, "false"),
        (1.5, "1.5"),
        (float("nan"), "nan"),
        (10**400, "a huge number"),
        ({}, "a table"),
        ([], "a list"),
        (None, "a date or time"),
    ],
)
def test_values_are_shown_short_and_on_one_line(value, shown):
    """A message stays one line in a log."""
    assert shown == show(value)


# The environment


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain $ $$ $NAME", "plain $ $$ $NAME"),
        ("${A}", "a b"),
        ("<${A}|${_B1}>", "<a b|${A}>"),
        ("$${A}", "${A}"),
        ("$$${A}", "$${A}"),
        ("$${", "${"),
    ],
)
def test_references_are_replaced_once(template, expected):
    """A value is not looked into again, and `$${` is a literal."""
    assert expected == expand(template, {"A": "a b", "_B1": "${A}"})


@pytest.mark.parametrize("template", ["${", "${}", "${A", "${A-B}", "${1}", "a ${ A }", "${A${A}}"])
def test_a_malformed_reference_is_an_error(refusal, template):
    """Half a reference is a slip, not a text."""
    message = refusal(FILES.replace('"app"', f'"{template}"'), {"A": "a"})

    assert '[authvital] application_id: "${" starts a reference' in message


@pytest.mark.parametrize("value", ["\udcff", "a\x00b"])
def test_a_variable_that_is_no_text_is_an_error(refusal, value):
    """Bytes that are not UTF-8 reach Python as lone surrogates."""
    message = refusal(FILES.replace('"app"', '"${ODD}"'), {"ODD": value})

    assert "the environment variable ODD is not valid UTF-8 text" in message


def test_values_inside_a_url_are_encoded_by_position():
    """A value stays in the part of the URL where it was written."""
    odd = "a@b/c?d#e%f:g{key} é+&="
    environ = {"ODD": odd, "HOST": "[::1]:5433"}

    url = make_url(
        expand("postgresql://u${ODD}:p${ODD}@${HOST}/d${ODD}?q=${ODD}&r=x", environ, url=True)
    )

    assert (f"u{odd}", f"p{odd}", "::1", 5433, f"d{odd}", odd) == (
        url.username,
        url.password,
        url.host,
        url.port,
        url.database,
        url.query["q"],
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("${URL}", "postgresql://a:b@h/t_{key}?x=1"),
        ("${URL}&y=${ODD}", "postgresql://a:b@h/t_{key}?x=1&y=${ODD}"),
        ("${SCHEME}://h/d", "postgresql+psycopg://h/d"),
        ("x?y=${ODD}", "x?y=a%2Fb%26"),
        ("$${${ODD}", "${a/b&"),
    ],
)
def test_a_url_that_comes_whole_is_taken_as_it_is(template, expected):
    """What stands before the address itself cannot be encoded."""
    environ = {
        "URL": "postgresql://a:b@h/t_{key}?x=1",
        "SCHEME": "postgresql+psycopg",
        "ODD": "a/b&",
    }

    assert expected.replace("${ODD}", "a/b&") == expand(template, environ, url=True)


def test_a_missing_variable_fails_only_its_section(config):
    """Whoever does not need the section can go on."""
    settings = config(FILES + '[pubsub]\naudience = "${A}"\nservice_account = "${B}${C}"\n')

    assert settings.isolation.strategy == "database"
    with pytest.raises(ConfigError) as caught:
        _ = settings.pubsub
    assert "[pubsub] audience: the environment variable A is not set" in str(caught.value)
    assert "service_account: the environment variables B and C are not set" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "section", "attribute"),
    [
        (FILES.replace('"app"', '"${A}"\nclient_id = "${X}"'), "authvital", None),
        (AUTHVITAL + 'client_id = "${X}"\n' + FILES[len(AUTHVITAL) :], "authvital", "client_id"),
        (
            AUTHVITAL + 'client_secret = "${X}"\n' + FILES[len(AUTHVITAL) :],
            "authvital",
            "client_secret",
        ),
        (SCHEMAS + 'migration_url = "${X}"', "isolation", "migration_url"),
    ],
)
def test_logins_of_other_programs_need_not_be_there(config, text, section, attribute):
    """A server does without the logins of migrations and of reconciliation."""
    settings = config(text, {"A": "app"})

    found = getattr(settings, section)
    assert "Deferred" in repr(found) or "***" in repr(found)
    if attribute is not None:
        with pytest.raises(ConfigError, match="the environment variable X is not set"):
            getattr(found, attribute)


def test_a_tenant_without_its_variable_fails_the_tenants(config):
    """All tenants that lack one are named; the rest of the file is there."""
    settings = config(
        FILES
        + '[tenants.a]\nid = "1"\n[tenants.b]\nid = "${B}"\n[tenants.c]\nid = "3"\nurl = "${C}"\n'
    )

    assert settings.isolation.strategy == "database"
    with pytest.raises(ConfigError) as caught:
        _ = settings.tenants
    assert "[tenants.b] id" in str(caught.value)
    assert "[tenants.c] url" in str(caught.value)


def test_an_isolation_without_its_variable_fails_when_it_is_needed(config):
    """The rest of the file is there, and two tenants with one id are an error all the same."""
    text = FILES.replace("sqlite:///t", "sqlite:///${FOLDER}")

    with pytest.raises(ConfigError, match="FOLDER"):
        _ = config(text).isolation
    with pytest.raises(ConfigError, match="two tenants never have one id"):
        config(text + '[tenants.a]\nid = "1"\n[tenants.b]\nid = "1"\n')


def test_an_app_without_its_variable_fails_when_it_is_needed(config):
    """The key above all sections is one of its own."""
    settings = config('app = "${APP}"\n' + FILES)

    with pytest.raises(ConfigError, match=r"app: the environment variable APP is not set"):
        _ = settings.app


# URLs


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("https://auth.example.com/", "https://auth.example.com"),
        ("HTTP://127.0.0.1:9400", "http://127.0.0.1:9400"),
        ("http://[::1]:9400", "http://[::1]:9400"),
    ],
)
def test_the_host_is_an_origin(config, host, expected):
    """Scheme, host and port, without a trailing slash."""
    assert expected == config(FILES.replace("https://auth.example.com", host)).authvital.host


@pytest.mark.parametrize(
    "host",
    [
        "auth.example.com",
        "ftp://auth.example.com",
        "https://",
        "https://auth.example.com/path",
        "https://auth.example.com//",
        "https://auth.example.com?",
        "https://auth.example.com/?q=1",
        "https://auth.example.com#",
        "https://user@auth.example.com",
        "https://auth.example.com:",
        "https://auth.example.com:0",
        "https://auth.example.com:65536",
        "https://auth.example.com:x",
        "https://[::1",
        "https://auth example.com",
        "https://auth.example.com\\t",
        "https://auth\\\\example.com",
    ],
)
def test_the_host_is_nothing_else(refusal, host):
    """No path, query, fragment, credentials or blanks."""
    message = refusal(FILES.replace("https://auth.example.com", host))

    assert "[authvital] host: expected an http(s) URL" in message


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///t/{key}.db", "t/{key}.db"),
        ("sqlite:///../{key}.db", "../{key}.db"),
        ("sqlite:///a%20b/{key}.db?timeout=3", "a b/{key}.db"),
    ],
)
def test_files_are_beside_the_configuration(config, tmp_path, url, path):
    """A relative file of SQLite is relative to the file that names it."""
    settings = config(FILES.replace("sqlite:///t/{key}.db", url))

    parsed = make_url(settings.isolation.url)
    assert f"{tmp_path}/{path}" == parsed.database
    assert ({"timeout": "3"} if "?" in url else {}) == dict(parsed.query)


def test_an_absolute_file_stays_where_it_is(config):
    """Four slashes."""
    url = "sqlite:////srv/{key}.db"

    assert url == config(FILES.replace("sqlite:///t/{key}.db", url)).isolation.url


def test_a_folder_with_an_odd_name_is_a_folder(tmp_path):
    """Whatever the folder is called, files are found in it and tenants stay apart."""
    folder = tmp_path / "a?b {key} %41#é"
    folder.mkdir()
    (folder / "tenantsync.toml").write_text(FILES)

    url = load(folder / "tenantsync.toml", {}).isolation.url

    assert f"{folder}/t/acme.db" == make_url(fill(url, "acme")).database


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite:///t/{key}/",
        "sqlite://host/{key}.db",
        "sqlite:///file:{key}?uri=true",
        "sqlite:///{key}.db?uri=true",
        "sqlite+aiosqlite:///{key}.db",
        "mysql://h/{key}",
        "postgresql+asyncpg://h/{key}",
        "postgresql://h:0/{key}",
        "{key}",
    ],
)
def test_databases_that_cannot_be_used_are_refused(refusal, url):
    """Memory, other drivers and other products."""
    assert "[isolation] url: " in refusal(FILES.replace("sqlite:///t/{key}.db", url))


# Strategies


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SCHEMAS.replace("postgresql://app@db/main", "sqlite:///x.db"), "SQLite has no schemas"),
        (SCHEMAS + 'schema = "people"', "[isolation] schema: must contain {key}"),
        (SCHEMAS + 'schema = "tenant_{name}"', "[isolation] schema: only {key} may stand in"),
        (SCHEMAS + 'schema = "{key.__class__}"', "[isolation] schema: only {key} may stand in"),
        (SCHEMAS + 'schema = "{key:>60}"', "[isolation] schema: only {key} may stand in"),
        (SCHEMAS + 'schema = "pg_{key}"', "[isolation] schema: name 'pg_a' is not allowed"),
        (SCHEMAS + 'role = ""', "[isolation] role: expected a role's name"),
        (
            SCHEMAS + f'schema = "{"s" * 60}_{{key}}"\n[tenants.acme]\nid = "1"',
            "[tenants.acme] schema: name 'sss",
        ),
        (
            SCHEMAS + f'role = "{"r" * 60}_{{key}}"\n[tenants.acme]\nid = "1"',
            "[tenants.acme] role: name 'rrr",
        ),
        (
            SCHEMAS + '[tenants.acme]\nid = "1"\nurl = "sqlite:///x.db"',
            "[tenants.acme] url: SQLite has no schemas",
        ),
        (SCHEMAS.replace("url =", "# url ="), "[isolation] url: is required"),
        (SCHEMAS + "accept_any_tenant = true", "[isolation] accept_any_tenant: only the strategy"),
        (FILES + 'schema = "tenant_{key}"', "[isolation] schema: only the strategies"),
        (FILES + 'role = "tenant_{key}"', "[isolation] url: SQLite has no roles"),
        (FILES.replace("{key}", "all"), "[isolation] url: must contain {key}"),
        (
            FILES.replace("{key}", "all") + '[tenants.acme]\nid = "1"',
            "[isolation] url: must contain {key}",
        ),
        (
            FILES.replace("url =", "# url =") + '[tenants.a]\nid = "1"',
            "[isolation] url: is required",
        ),
        (
            FILES + '[tenants.acme]\nid = "1"\nschema = "people"',
            "[tenants.acme] url: SQLite has no schemas",
        ),
        (
            FILES + '[tenants.acme]\nid = "1"\nrole = "people"',
            "[tenants.acme] url: SQLite has no roles",
        ),
        (
            DATABASES.replace("t_", "t" * 40) + f'[tenants.{"k" * 40}]\nid = "1"',
            "url: the database's name is longer than 63 bytes",
        ),
        (
            DATABASES + 'migration_url = "postgresql://owner@db/main"',
            "[isolation] migration_url: must contain {key}",
        ),
        (
            FILES + 'migration_url = "postgresql://owner@db/t_{key}"',
            "[isolation] migration_url: is a login to PostgreSQL",
        ),
        (
            SCHEMAS + 'migration_url = "sqlite:///x.db"',
            "[isolation] migration_url: is a login to PostgreSQL",
        ),
        (SINGLE, '[isolation] strategy: "single" needs to know its tenants'),
        (SINGLE.replace("url =", "# url ="), "[isolation] url: is required"),
        (SINGLE.replace("all.db", "{key}.db"), "[isolation] url: the strategy"),
        (SINGLE + 'schema = "t_{key}"', "[isolation] schema: the strategy"),
        (SINGLE + 'role = "t_{key}"', "[isolation] role: the strategy"),
        (
            SINGLE + 'accept_any_tenant = true\nschema = "x"',
            "[isolation] url: SQLite has no schemas",
        ),
        (SINGLE + '[tenants.a]\nid = "1"\nurl = "sqlite:///x.db"', "[tenants.a] url: the strategy"),
        (SINGLE + '[tenants.a]\nid = "1"\nschema = "x"', "[tenants.a] schema: the strategy"),
        (SINGLE + '[tenants.a]\nid = "1"\nrole = "x"', "[tenants.a] role: the strategy"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(refusal, text, message):
    """Each strategy says what it needs and what it cannot do."""
    assert message in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        SINGLE + "accept_any_tenant = true",
        SINGLE + '[tenants.a]\nid = "1"\n[tenants.b]\nid = "2"',
        FILES.replace("url =", "# url =") + '[tenants.a]\nid = "1"\nurl = "sqlite:///a.db"',
        FILES.replace("url =", "# url ="),
        FILES.replace("{key}", "main") + '[tenants.a]\nid = "1"\nurl = "postgresql://h/a"',
        SCHEMAS + 'schema = "people"\n[tenants.a]\nid = "1"\nschema = "a"',
        SCHEMAS + 'role = "app"\n[tenants.a]\nid = "1"\n[tenants.b]\nid = "2"',
        DATABASES + 'role = "t_{key}"\nmigration_url = "postgresql://owner@db/t_{key}"',
        DATABASES + '[tenants.a]\nid = "1"\n[tenants.b]\nid = "2"\nschema = "b"',
    ],
)
def test_keys_that_go_together_load(config, text):
    """What can be meant can be written."""
    assert config(text).isolation.strategy in text


# No two tenants alike


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        (FILES, "", 'url = "sqlite:///t/a.db"'),
        (FILES, "", 'url = "sqlite:///./t/x/../a.db"'),
        (FILES, 'url = "sqlite:///linked.db"', 'url = "sqlite:///real.db"'),
        (FILES, 'url = "sqlite:///hard.db"', 'url = "sqlite:///real.db"'),
        (SCHEMAS, "", 'schema = "tenant_a"'),
        (SCHEMAS, "", 'schema = "tenant_a"\nurl = "postgresql://other:pw@DB:5432/main?x=1"'),
        (
            SCHEMAS,
            'url = "postgresql://localhost/m"\nschema = "s"',
            'url = "postgresql+psycopg://127.0.0.1:5432/m"\nschema = "s"',
        ),
        (
            SCHEMAS,
            'url = "postgresql:///m?host=db.&port=5433"\nschema = "s"',
            'url = "postgresql://db:5433/m"\nschema = "s"',
        ),
        (
            SCHEMAS,
            'url = "postgresql:///m?host=b&host=a"\nschema = "s"',
            'url = "postgresql:///m?host=a&host=b"\nschema = "s"',
        ),
        (DATABASES, "", 'url = "postgresql://db/t_a"'),
        (DATABASES, "", 'url = "postgresql://db/t_a"\nschema = "public"'),
        (DATABASES.replace("app@db/t_{key}", "{key}@db/main"), "", ""),
        (DATABASES, 'url = "postgresql://me@db"', 'url = "postgresql://db/me"'),
    ],
)
def test_two_tenants_in_one_place_are_an_error(refusal, tmp_path, text, first, second):
    """However the place is spelt."""
    (tmp_path / "real.db").touch()
    (tmp_path / "linked.db").symlink_to("real.db")
    (tmp_path / "hard.db").hardlink_to(tmp_path / "real.db")

    message = refusal(f'{text}[tenants.a]\nid = "1"\n{first}\n[tenants.b]\nid = "2"\n{second}\n')

    assert message == (
        "tenantsync.toml: [tenants.b]: lives in the same place as [tenants.a]; give one of them "
        "another url or schema"
    )


@pytest.mark.parametrize(
    ("text", "second"),
    [
        (FILES, 'url = "sqlite:///t/A.db"'),
        (SCHEMAS, 'schema = "Tenant_a"'),
        (SCHEMAS, 'schema = "tenant_a"\nurl = "postgresql://db:5433/main"'),
        (SCHEMAS, 'schema = "tenant_a"\nurl = "postgresql://db/other"'),
        (SCHEMAS, 'schema = "tenant_a"\nurl = "postgresql://other/main"'),
    ],
)
def test_places_that_differ_are_two_places(config, text, second):
    """Names are compared as the database does."""
    settings = config(f'{text}[tenants.a]\nid = "1"\n[tenants.b]\nid = "2"\n{second}\n')

    assert {"a", "b"} == set(settings.tenants)


def test_two_tenants_with_one_id_are_an_error(refusal):
    """AuthVital's tenant is one tenant here."""
    message = refusal(FILES + '[tenants.a]\nid = "1"\n[tenants.b]\nid = "1"\n')

    assert message == (
        "tenantsync.toml: [tenants.b] id: is the id of [tenants.a] too; two tenants never have "
        "one id"
    )


def test_ten_thousand_tenants_are_read(tmp_path):
    """A large fleet is a file too."""
    data = tomllib.loads(SCHEMAS)
    data["tenants"] = {f"t{number}": {"id": str(number)} for number in range(10_000)}

    assert len(read(data, path=tmp_path / "x.toml", environ={}).tenants) == 10_000


# Templates


def test_a_template_is_filled_with_the_key():
    """Wherever it stands, and as often."""
    assert fill("a/{key}_{key}", "acme") == "a/acme_acme"


@pytest.mark.parametrize(
    "template", ["{", "}", "{}", "{{key}}", "{key", "{key!r}", "{0}", "{ key }"]
)
def test_other_braces_are_an_error(template):
    """There is one field, and no way to look into it."""
    with pytest.raises(ConfigError, match=r"only \{key\} may stand in braces"):
        fill(template, "acme")


# The documentation


def test_the_reference_names_every_key():
    """docs/reference/config.md has a row for each key, in its section, and no row too many."""
    page = Path(__file__).parents[2].joinpath("docs/reference/config.md").read_text()
    documented: dict[str, set[str]] = {}
    for part in page.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        if section := re.fullmatch(r"`\[([a-z]+)(?:\.KEY)?\]`.*", title):
            documented[section[1]] = set(re.findall(r"^\| `(\w+)` \|", body, flags=re.MULTILINE))

    assert {
        **{name: set(keys_of(kind)) for name, kind in SECTIONS.items()},
        "tenants": set(keys_of(TenantSettings)),
    } == documented


def test_the_reference_shows_a_file_that_loads(config):
    """Its example is a configuration."""
    page = Path(__file__).parents[2].joinpath("docs/reference/config.md").read_text()
    for example in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL):
        assert config(example, {"DB_PASSWORD": "x"}).tenants


def test_reading_logs_nothing(config, caplog):
    """A library that only reads has nothing to tell the log."""
    with caplog.at_level(logging.DEBUG):
        config(FULL, ENVIRON)

    assert caplog.records == []
