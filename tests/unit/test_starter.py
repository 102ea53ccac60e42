"""The file that `tenantsync init` writes: it works as it is, and its comments are true."""

import re
import tomllib

import pytest

from tenantsync.config import load, write_starter
from tenantsync.config.sections import SECTIONS, keys_of
from tenantsync.config.starter import STARTER
from tenantsync.errors import ConfigError

ENVIRON = {"DB_PASSWORD": "a@b", "OWNER_PASSWORD": "c", "AUTHVITAL_CLIENT_SECRET": "d"}


def uncommented(text):
    """Return a part of the starter with each setting and heading in force, prose left alone."""
    return re.sub(r"^# (?=\[[a-z.]+\]|[a-z_]+ = )", "", text, flags=re.MULTILINE)


def alternatives():
    """Return the starter with all that is commented, once for either kind of isolation."""
    before, files, schemas, after = re.split(
        r"(?=^(?:# )?strategy = )|(?=^# One table per tenant)", STARTER, flags=re.MULTILINE
    )
    before, after = uncommented(before), uncommented(after)
    # A tenant's own SQLite file goes with files only.
    at_one_server = re.sub(r'^url = "sqlite:.*$', "", after, flags=re.MULTILINE)
    return before + files + after, before + uncommented(schemas) + at_one_server


def test_the_starter_loads_as_it_is(tmp_path):
    """It is a configuration for SQLite files and the local stand-in of the provider."""
    path = write_starter(tmp_path / "tenantsync.toml")

    settings = load(path, {})

    assert ("database", f"sqlite:///{tmp_path}/tenants/{{key}}.db", ["acme"]) == (
        settings.isolation.strategy,
        settings.isolation.url,
        list(settings.tenants),
    )


def test_what_the_starter_leaves_out_loads_too(tmp_path):
    """Its comments are right: with all that is commented in force, it is a configuration."""
    path = tmp_path / "tenantsync.toml"
    with_files, with_schemas = alternatives()

    path.write_text(with_files)
    settings = load(path, ENVIRON)
    assert set(settings.tenants) == {"acme", "globex"}
    assert settings.app == "myapp.main:sync"
    assert settings.authvital.client_secret == "d"
    assert settings.authvital.audience
    assert settings.migrations.locations

    path.write_text(with_schemas)
    settings = load(path, ENVIRON)
    assert (settings.isolation.strategy, settings.isolation.role) == ("schema", "tenant_{key}")
    assert set(settings.tenants) == {"acme", "globex"}


@pytest.mark.parametrize("section", ["authvital", "reconcile"])
def test_the_starter_names_every_key_of_a_section(section):
    """Whoever sets it up finds all that there is to decide; the dialect is nobody's to need."""
    named = set(tomllib.loads(alternatives()[0])[section])

    assert named == set(keys_of(SECTIONS[section])) - {"documented_dialect"}


def test_the_starter_shows_the_defaults(tmp_path):
    """Where it shows a number, a switch or a time, that is what holds without the line."""
    path = write_starter(tmp_path / "tenantsync.toml")
    plain = load(path, {})
    shown, lines = re.subn(
        r"^# (?=\[reconcile\]|[a-z_]+ = (?:\d|true|false|\"\d))", "", STARTER, flags=re.MULTILINE
    )
    assert lines == 7

    path.write_text(shown)
    settings = load(path, {})

    for section in ("authvital", "isolation", "reconcile"):
        assert getattr(settings, section) == getattr(plain, section)


def test_the_starter_overwrites_nothing(tmp_path):
    """What was there stays as it was."""
    path = tmp_path / "tenantsync.toml"
    path.write_text("mine")

    with pytest.raises(ConfigError, match="is there already"):
        write_starter(path)

    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "message"), [("no/x.toml", "folder does not"), ("file/x", "cannot")]
)
def test_a_starter_that_cannot_be_written_says_why(tmp_path, name, message):
    """No folder, or none that could be."""
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match=message):
        write_starter(tmp_path / name)
