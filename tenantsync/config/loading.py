"""Reads a configuration file: TOML in, settings out, and every mistake named by file and key."""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tenantsync.config.check import check, check_pubsub
from tenantsync.config.sections import (
    APP,
    SECTIONS,
    Deferred,
    IsolationSettings,
    Key,
    KeyInfo,
    Section,
    TenantSettings,
    keys_of,
)
from tenantsync.config.settings import Settings
from tenantsync.config.values import Missing, Wrong, expand, show
from tenantsync.errors import ConfigError
from tenantsync.tenants import check_key

__all__ = ["load", "read"]

_S = TypeVar("_S", bound=Section)


def load(path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> Settings:
    """Read a configuration file.

    Args:
        path: The TOML file. Relative paths in it are relative to its folder.
        environ: Where `${NAME}` is looked up; the process's environment by default.

    Raises:
        ConfigError: The file cannot be read, is no TOML, or says something that is not allowed. The
            message names file and key, and never repeats a secret.
    """
    try:
        content = Path(path).read_bytes().decode("utf-8-sig")
        data = tomllib.loads(content)
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file; run `tenantsync init` to write one"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: is not UTF-8 (at line {line})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is no TOML: {error}") from None
    except (ValueError, RecursionError):
        # Python's limits, not TOML's: the digits of a number, the depth of brackets, a path with
        # U+0000.
        raise ConfigError(
            f"{path}: cannot be read: a number is too long or a value is nested too deeply"
        ) from None
    return read(data, path=path, environ=environ)


def read(
    data: Mapping[str, Any],
    *,
    path: str | os.PathLike[str],
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings of a configuration that was parsed already.

    Args:
        data: The tables of the file.
        path: The file that they are said to come from.
        environ: Where `${NAME}` is looked up; the process's environment by default.

    Raises:
        ConfigError: As `load` does.
    """
    absolute = Path(path).absolute()
    reader = _Reader(str(path), absolute.parent, os.environ if environ is None else environ)
    reader.refuse_unknown_sections(data)
    app = reader.app(data["app"]) if "app" in data else None
    sections = {
        name: reader.section(kind, name, data.get(name, {})) for name, kind in SECTIONS.items()
    }
    tenants = reader.tenants(data.get("tenants", {}))
    isolation = sections["isolation"]
    if not isinstance(isolation, IsolationSettings | Deferred):
        raise TypeError("the section [isolation] is of another kind")
    check(str(path), isolation, tenants)
    check_pubsub(str(path), sections["pubsub"])
    return Settings(
        path=absolute,
        _app=app,
        _sections=sections,
        _tenants=tenants,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    file: str
    folder: Path
    environ: Mapping[str, str]

    def wrong(self, section: str, key: str, sentence: str) -> ConfigError:
        place = " ".join(part for part in (f"[{section}]" if section else "", key) if part)
        return ConfigError(f"{self.file}: {place}: {sentence}")

    def refuse_unknown_sections(self, data: Mapping[str, Any]) -> None:
        known = ("app", *SECTIONS, "tenants")
        for name in data:
            if name not in known:
                raise ConfigError(f"{self.file}: unknown {_hint(name, known)}")

    def section(self, kind: type[_S], name: str, table: object) -> _S | Deferred:
        """Return the section, or what it lacks from the environment."""
        if not isinstance(table, dict):
            raise self.wrong(name, "", f"expected a table, got {show(table, secret=True)}")
        keys = keys_of(kind)
        for given in table:
            if given not in keys:
                raise self.wrong(name, "", f"unknown {_hint(given, keys)}")
        values: dict[str, Any] = {}
        missing: list[str] = []
        for key, info in keys.items():
            if key not in table and info.facts.default is None:
                if info.required:
                    raise self.wrong(name, key, f"is required: {info.facts.allowed}")
                continue
            value = self.value(name, key, info, table.get(key, info.facts.default))
            if isinstance(value, Deferred) and not info.facts.alone:
                missing.append(value.message)
            values[info.attribute] = value
        return Deferred("; ".join(missing)) if missing else kind(**values)

    def value(self, section: str, key: str, info: KeyInfo, raw: object) -> object:
        """Return the setting that the key's value stands for, or what it lacks."""
        facts = info.facts
        try:
            return _converted(self._expanded(raw, facts), info, self.folder)
        except Missing as error:
            sentence = (
                f"the environment variable {error.names[0]} is not set"
                if len(error.names) == 1
                else f"the environment variables {' and '.join(error.names)} are not set"
            )
            return Deferred(str(self.wrong(section, key, sentence)))
        except Wrong as error:
            raise self.wrong(section, key, str(error)) from None
        except (msgspec.ValidationError, ValueError, TypeError, OverflowError):
            # What stands in the file is shown, not what the environment made of it.
            got = show(raw, secret=facts.secret)
            raise self.wrong(section, key, f"expected {facts.allowed}, got {got}") from None

    def app(self, value: object) -> str | Deferred:
        """Return the path of the application's object, or what it lacks."""
        app = self.value("", "app", KeyInfo("app", str, required=False, facts=APP), value)
        return app if isinstance(app, Deferred) else str(app)

    def tenants(self, table: object) -> dict[str, TenantSettings | Deferred]:
        if not isinstance(table, dict):
            raise self.wrong("tenants", "", "expected a table for each tenant")
        tenants: dict[str, TenantSettings | Deferred] = {}
        for key, each in table.items():
            try:
                check_key(key)
            except ConfigError as error:
                raise self.wrong("tenants", "", str(error)) from None
            tenants[key] = self.section(TenantSettings, f"tenants.{key}", each)
        return tenants

    def _expanded(self, value: object, facts: Key) -> object:
        if isinstance(value, str):
            if "\x00" in value:
                raise Wrong("holds the character U+0000")
            return expand(value, self.environ, url=facts.url)
        if isinstance(value, list):
            return [self._expanded(each, facts) for each in value]
        return value


def _converted(value: object, info: KeyInfo, folder: Path) -> object:
    if info.facts.parse is not None:
        return info.facts.parse(value, folder)
    converted: object = msgspec.convert(value, info.type)
    return converted


def _hint(name: str, known: Iterable[str]) -> str:
    """Return the unknown name, and the name that was probably meant."""
    names = sorted(known)
    shown = show(name)
    homes = [f"[{section}]" for section, kind in SECTIONS.items() if name in keys_of(kind)]
    if close := difflib.get_close_matches(name, names, n=1):
        return f"key {shown}; did you mean {show(close[0])}?"
    if homes:
        return f"key {shown}; it belongs under {' or '.join(homes)}"
    if name == "app":
        return 'key "app"; it belongs at the top of the file, above every section'
    return f"key {shown}; allowed are {', '.join(names)}"
