"""What one value of the configuration may be: references to the environment, durations, URLs.

Every function is pure. None of them repeats a value in an error: `show` alone does, where it may.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from tenantsync.errors import ConfigError
from tenantsync.tenants import MAX_ID_BYTES, check_schema, read_url

__all__ = [
    "Missing",
    "Parse",
    "Wrong",
    "database_url",
    "duration",
    "endpoint",
    "expand",
    "fill",
    "folders",
    "identifier",
    "import_path",
    "name_template",
    "origin",
    "server_url",
    "show",
    "text",
]

Parse = Callable[[object, Path], object]
"""Turns a value of the file, and the file's folder, into the value of a setting.

Raises `Wrong` with a sentence; ValueError or TypeError where "expected ..., got ..." says enough.
"""

_SHOWN: Final = 60
_MAX_PORT: Final = 65_535
_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\{")
_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|s|m|h|d)")
_SECONDS: Final = (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3_600.0), ("d", 86_400.0))
# The user part of a URL as SQLAlchemy finds it: a password may hold anything but "@".
_USER_PART: Final = re.compile(r"[^:/]*(?::[^@]*)?@")
_HOST: Final = re.compile(r"[^\s/\\?#@<>\"{}|^`\x00-\x20\x7f]+")
_SQLITE: Final = re.compile(r"(sqlite:///)([^?]*)(\?.*)?", re.DOTALL)


class Wrong(Exception):  # becomes a ConfigError once file and key are known
    """A value is not allowed; the message is a sentence without the value."""


class Missing(Exception):  # a fact that is kept, and raised as ConfigError when needed
    """Environment variables that a value refers to are not set."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.names = names


def fill(template: str, key: str) -> str:
    """Return the template with each `{key}` replaced by a tenant's key.

    Args:
        template: A URL, schema or role name. `{key}` is the only field there is.
        key: The tenant's key.

    Raises:
        ConfigError: The template holds another brace. It is not repeated: it may hold a password.
    """
    # Not str.format: a field there can look into attributes, and a format can be huge.
    if set("{}") & set(template.replace("{key}", "")):
        raise ConfigError(
            "only {key} may stand in braces; in a URL write %7B and %7D for braces that are meant"
        )
    return template.replace("{key}", key)


def expand(template: str, environ: Mapping[str, str], *, url: bool = False) -> str:
    """Return the text with each `${NAME}` replaced by the environment's value; `$${` is `${`.

    Args:
        template: The text of the file.
        environ: The environment.
        url: Whether the text is a URL. A value inside one is percent-encoded, so that a password
            with `@` or `/` stays a password; a URL that is one `${NAME}` and nothing else is taken
            as it is.

    Raises:
        Missing: Variables are not set.
        Wrong: A reference has no closing brace or no proper name, or a value is not text.
    """
    alone = _REFERENCE.fullmatch(template)
    encode = url and not (alone and alone.group(1))
    missing: list[str] = []

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if match.group() == "$${":
            return "${"
        if name is None:
            raise Wrong(
                '"${" starts a reference to the environment: write ${NAME}, with letters, digits '
                "and underscores, or $${ for a literal ${"
            )
        value = environ.get(name)
        if value is None:
            missing.append(name)
            return ""
        if not _is_text(value):
            raise Wrong(f"the environment variable {name} is not valid UTF-8 text")
        return _encoded(value, template, match.start()) if encode else value

    expanded = _REFERENCE.sub(replace, template)
    if missing:
        raise Missing(tuple(dict.fromkeys(missing)))
    return expanded


def show(value: object, *, secret: bool = False) -> str:
    """Return a value for a message: short, on one line, and hidden where it may be a secret."""
    if isinstance(value, str):
        # An "@" is how a URL with a password looks, also where none was expected.
        if secret or "@" in value:
            return "a value that is not shown, as it may hold a password"
        short = value if len(value) <= _SHOWN else value[:_SHOWN] + "..."
        return json.dumps(short, ensure_ascii=not value.isprintable())
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int):  # Python refuses to write out the largest ones
        return repr(value) if abs(value) < 10**_SHOWN else "a huge number"
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list | tuple) else "a date or time"


def text(value: object, _folder: Path) -> str:
    """Return a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def identifier(value: object, folder: Path) -> str:
    """Return an opaque id of AuthVital: 1 to 255 bytes of UTF-8."""
    if len(text(value, folder).encode()) > MAX_ID_BYTES:
        raise Wrong(f"is longer than {MAX_ID_BYTES} bytes, which no id of AuthVital is")
    return text(value, folder)


def import_path(value: object, folder: Path) -> str:
    """Return a path such as `"package.module:name"`."""
    module, colon, name = text(value, folder).partition(":")
    if not colon or not all(part.isidentifier() for part in (module + "." + name).split(".")):
        raise ValueError
    return text(value, folder)


def duration(low: float, high: float) -> Parse:
    """Return a parser of durations from `low` to `high` seconds: a number, or `"5m"`."""

    def parse(value: object, _folder: Path) -> float:
        if isinstance(value, str):
            match = _DURATION.fullmatch(value)
            if match is None:
                raise ValueError
            seconds = float(match.group(1)) * dict(_SECONDS)[match.group(2)]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            seconds = value
        else:
            raise TypeError
        # Compared before it is converted: a whole number may be too large for a float, and NaN is
        # in no range.
        if not low <= seconds <= high:
            raise ValueError
        return float(seconds)

    return parse


def name_template(value: object, folder: Path) -> str:
    """Return the template of a schema or role name, checked with the shortest key."""
    try:
        check_schema(fill(text(value, folder), "a"))
    except ConfigError as error:
        raise Wrong(str(error)) from None
    return text(value, folder)


def origin(value: object, folder: Path) -> str:
    """Return an http(s) URL of scheme, host and port only, without a trailing slash."""
    url = endpoint(value, folder)
    parts = urlsplit(url)
    if parts.path not in ("", "/") or "?" in url or "#" in url:
        raise ValueError
    return f"{parts.scheme}://{parts.netloc}"


def endpoint(value: object, folder: Path) -> str:
    """Return an http(s) URL without credentials."""
    url = text(value, folder)
    parts = urlsplit(url)  # ValueError: brackets that do not match
    port = parts.port  # ValueError: no number, or out of range
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or port == 0
        or parts.netloc.endswith(":")
        or not _HOST.fullmatch(parts.netloc)
        or not url.isprintable()
        or " " in url
    ):
        raise ValueError
    return url


def server_url(value: object, folder: Path) -> str:
    """Return the URL of a server for signals, of any scheme."""
    url = text(value, folder)
    parts = urlsplit(url)
    if not parts.scheme or not parts.hostname or not url.isprintable():
        raise ValueError
    return url


def folders(value: object, folder: Path) -> tuple[Path, ...]:
    """Return paths as absolute ones, relative to the file's folder."""
    if not isinstance(value, list | tuple):
        raise TypeError
    return tuple(folder / text(path, folder) for path in value)


def database_url(value: object, folder: Path) -> str:
    """Return a database URL or template; the file of SQLite becomes an absolute path."""
    url = text(value, folder)
    if not url.isprintable():
        raise Wrong("holds a line break or a control character")
    match = _SQLITE.fullmatch(url)
    if match is not None and match.group(2) and not unquote(match.group(2)).startswith("/"):
        place = quote(folder.as_posix(), safe="/")
        url = f"{match.group(1)}{place}/{match.group(2)}{match.group(3) or ''}"
        _check_memory(unquote(match.group(2)))
    try:
        parsed = read_url(fill(url, "a"))
    except ConfigError as error:
        raise Wrong(str(error)) from None
    except ValueError:
        raise Wrong("the port is no number") from None
    if parsed.port is not None and not 1 <= parsed.port <= _MAX_PORT:
        raise Wrong(f"the port must be from 1 to {_MAX_PORT}")
    if parsed.get_backend_name() == "sqlite":
        if parsed.host or parsed.username:
            raise Wrong('SQLite has no host: write three slashes, as in "sqlite:///file.db"')
        _check_memory(parsed.database or "")
        if "uri" in parsed.query:
            raise Wrong('SQLite URIs are not supported: write "sqlite:///file.db"')
    return url


def _check_memory(file: str) -> None:
    # Each connection to a database in memory has a new, empty one.
    if not file or file.startswith((":memory:", "file:")) or file.endswith("/"):
        raise Wrong('SQLite needs the name of a file: write "sqlite:///file.db"')


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # the operating system's bytes were not UTF-8
        return False
    return "\x00" not in value


def _encoded(value: str, template: str, index: int) -> str:
    scheme = template.find("://")
    start = scheme + 3 if scheme >= 0 else 0
    if index < start:
        return value
    user = _USER_PART.match(template, start) if scheme >= 0 else None
    host = user.end() if user else start
    if index < host:
        return quote(value, safe="")
    path = min((at for mark in "/?" if (at := template.find(mark, host)) >= 0), default=None)
    if scheme >= 0 and (path is None or index < path):
        return quote(value, safe=":[],")  # a port, and the brackets of IPv6, belong to a host
    query = template.find("?", host)
    if 0 <= query < index:
        return quote(value, safe="")
    return quote(value, safe="/") if scheme >= 0 else value
