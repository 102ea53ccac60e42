"""Whatever a file says, it loads or it is a ConfigError; whatever a password is, it arrives."""

import contextlib
import tomllib
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from tenantsync.config import fill, load, read
from tenantsync.config.sections import SECTIONS, TenantSettings, keys_of
from tenantsync.config.values import expand
from tenantsync.errors import ConfigError

VALUES = st.one_of(
    st.text(),
    st.integers(),
    st.integers(min_value=10**400, max_value=10**400 + 5),
    st.floats(),
    st.booleans(),
    st.dates(),
    st.datetimes(),
    st.sampled_from(
        [
            "${A}",
            "${MISSING}",
            "${",
            "$${",
            "{key}",
            "5s",
            "schema",
            "database",
            "single",
            "always",
            "a.b:c",
            "https://h",
            "http://[::1",
            "sqlite:///{key}.db",
            "sqlite:///x.db",
            "postgresql://u:${A}@h/{key}",
            "postgresql://h:x/d",
            "nats://h",
        ]
    ),
)
ANY = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ENVIRON = st.fixed_dictionaries({"A": st.text(st.characters(exclude_categories=()))})


def table(kind):
    """Tables with the section's keys, and sometimes others, and any values."""
    known = st.sampled_from(sorted(keys_of(kind)))
    return st.dictionaries(known, ANY, max_size=6) | st.dictionaries(st.text(), ANY, max_size=2)


def likely(kind, **required):
    """Tables with what is required in order, so that what follows it is looked at too."""
    return st.builds(lambda some: {**some, **required}, table(kind))


ISOLATION = st.builds(
    lambda some, strategy, url: {**some, "strategy": strategy, "url": url},
    st.dictionaries(st.sampled_from(["schema", "role", "migration_url"]), VALUES, max_size=2),
    st.sampled_from(["schema", "database", "single"]),
    st.sampled_from(
        ["sqlite:///{key}.db", "sqlite:///x.db", "postgresql://h/d", "postgresql://u:${A}@h/{key}"]
    ),
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        "app": ANY,
        "tenants": ANY
        | st.dictionaries(st.sampled_from(["a", "b", "C"]), likely(TenantSettings, id="1"))
        | st.dictionaries(st.sampled_from(["a", "b", "c"]), table(TenantSettings)),
        **{name: table(kind) for name, kind in SECTIONS.items()},
    },
)
SOUND = st.builds(
    lambda file, isolation: {
        **file,
        "authvital": {"host": "https://h", "application_id": "app"},
        "isolation": isolation,
    },
    st.fixed_dictionaries(
        {},
        optional={
            "tenants": st.dictionaries(
                st.sampled_from(["a", "b", "c"]),
                st.fixed_dictionaries(
                    {"id": st.text(max_size=2)},
                    optional={"url": VALUES, "schema": VALUES, "role": VALUES},
                ),
            )
        },
    ),
    ISOLATION,
)


def look_at_everything(found):
    """Look at each section; a variable that is not set is a ConfigError there."""
    for name in ("app", *SECTIONS, "tenants"):
        with contextlib.suppress(ConfigError):
            repr(getattr(found, name))


@settings(max_examples=500, deadline=None)
@given(data=st.dictionaries(st.text(), ANY, max_size=4) | FILES | SOUND, environ=ENVIRON)
def test_any_table_loads_or_is_a_config_error(data, environ):
    """No value, however odd, makes reading fail in a second way."""
    with contextlib.suppress(ConfigError):
        look_at_everything(read(data, path="tenantsync.toml", environ=environ))


@settings(max_examples=200, deadline=None)
@given(content=st.binary() | st.text().map(str.encode))
def test_any_file_loads_or_is_a_config_error(tmp_path_factory, content):
    """No bytes, however odd, make reading fail in a second way."""
    file = Path(tmp_path_factory.getbasetemp()) / "any.toml"
    file.write_bytes(content)

    with contextlib.suppress(ConfigError):
        load(file, {})


@settings(max_examples=200, deadline=None)
@given(
    section=st.sampled_from(["authvital", "isolation", "worker"]),
    line=st.text(st.characters(exclude_categories=("Cs",)), max_size=30),
)
def test_any_line_in_a_sound_file_loads_or_is_a_config_error(section, line):
    """A slip of the keyboard is named, not a crash."""
    text = (
        '[authvital]\nhost = "https://h"\napplication_id = "a"\n'
        '[isolation]\nstrategy = "database"\nurl = "sqlite:///{key}.db"\n[worker]\n'
    ).replace(f"[{section}]\n", f"[{section}]\n{line}\n")
    with contextlib.suppress(ConfigError, tomllib.TOMLDecodeError):
        look_at_everything(read(tomllib.loads(text), path="tenantsync.toml", environ={}))


PASSWORDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"))


@settings(max_examples=500, deadline=None)
@given(user=PASSWORDS, password=PASSWORDS, database=PASSWORDS, option=PASSWORDS)
def test_any_password_survives_the_url(user, password, database, option):
    """What the environment holds is what the driver gets, in every part of the URL."""
    environ = {"USER": user, "PASSWORD": password, "DATABASE": database, "OPTION": option}
    template = "postgresql+psycopg://${USER}:${PASSWORD}@db:5432/d${DATABASE}?o=x${OPTION}"

    url = make_url(expand(template, environ, url=True))

    assert (user, password, "db", 5432, f"d{database}", f"x{option}") == (
        url.username,
        url.password,
        url.host,
        url.port,
        url.database,
        url.query["o"],
    )


@settings(max_examples=300, deadline=None)
@given(password=PASSWORDS.filter(bool), folder=PASSWORDS)
def test_any_password_survives_a_template(password, folder):
    """Braces in a password are no field, and the key goes only where the file says."""
    template = "postgresql+psycopg://app:${PASSWORD}@db/t_{key}_${FOLDER}"
    environ = {"PASSWORD": password, "FOLDER": folder}

    url = make_url(fill(expand(template, environ, url=True), "acme"))

    assert (password, f"t_acme_{folder}") == (url.password, url.database)


@settings(max_examples=200, deadline=None)
@given(secret=st.text(st.characters(categories=("L", "N")), min_size=8), data=st.data())
def test_no_message_and_no_repr_shows_a_secret(secret, data):
    """Wherever a secret key is wrong or right, its value stays inside."""
    secret = f"s3cret{secret}"
    url = data.draw(
        st.sampled_from(
            ["{}", "mysql://u:{}@h/d", "postgresql://u:{}@h:x/d", "postgresql://u:{}@h/d", "${{{}"]
        )
    ).format(secret)
    where, key = data.draw(
        st.sampled_from(
            [
                ("isolation", "url"),
                ("isolation", "migration_url"),
                ("control", "url"),
                ("worker", "signals"),
                ("authvital", "client_secret"),
            ]
        )
    )
    file = {
        "authvital": {"host": "https://h", "application_id": "a"},
        "isolation": {"strategy": "database", "url": "sqlite:///{key}.db"},
    }
    file.setdefault(where, {})[key] = url
    try:
        found = read(file, path="tenantsync.toml", environ={})
        shown = "".join(repr(getattr(found, name)) for name in SECTIONS)
    except ConfigError as error:
        shown = str(error)

    assert secret not in shown
