"""What every command is given: which configuration file, read when a command first wants it."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from tenantsync.app import TenantSync
from tenantsync.config import Settings, load
from tenantsync.errors import ConfigError, TenantSyncError

__all__ = ["Context", "config_option", "failing", "hooks_option", "pass_context"]

_DEFAULT: Final = "tenantsync.toml"
_F = TypeVar("_F", bound=Callable[..., Any])


class Context:
    """The configuration of one call of the command line.

    Args:
        path: The configuration file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sync: TenantSync | None = None

    @cached_property
    def _settings(self) -> Settings:
        return load(self.path)

    def settings(self) -> Settings:
        """Return the configuration.

        Raises:
            ConfigError: The file is missing or wrong.
        """
        return self._settings

    def sync(self) -> TenantSync:
        """Return the application's TenantSync, with its hooks, where the configuration names it.

        Raises:
            ConfigError: The file is missing or wrong, or what `app` names cannot be imported.
        """
        if self._sync is None:
            settings = self.settings()
            self._sync = TenantSync(settings) if settings.app is None else _imported(settings.app)
        return self._sync

    def applying(self, *, with_hooks: bool) -> TenantSync:
        """Return the application's TenantSync for a command that applies events by itself.

        Args:
            with_hooks: Whether the application's hooks are to be called, so that it has to be
                known where they are.

        Raises:
            ConfigError: As `sync`; or the hooks are wanted and nothing says where they are.
        """
        settings = self.settings()
        if with_hooks and settings.app is None:
            raise ConfigError(
                f"{settings.path.name}: this applies events, and `app` does not say where the "
                'hooks are: write app = "package.module:name", or say --hooks none if there are '
                "none"
            )
        return self.sync()

    def close(self) -> None:
        """Close what a command opened."""
        if self._sync is not None:
            self._sync.close()


pass_context: Final = click.make_pass_decorator(Context)


def config_option(command: _F) -> _F:
    """Let a command take `-c/--config` too: it is accepted before and after the command."""
    return click.option(
        "-c",
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="TENANTSYNC_CONFIG",
        show_envvar=True,
        help=f"The configuration file; {_DEFAULT} by default.",
        expose_value=False,
        callback=_choose,
    )(command)


def hooks_option(command: _F) -> _F:
    """Let a command that applies events do so without the application's hooks."""
    return click.option(
        "--hooks",
        type=click.Choice(["none"]),
        help="Call no hooks. Without it, `app` in the configuration must say where they are.",
    )(command)


@contextmanager
def failing() -> Iterator[None]:
    """Tell what was asked wrongly (exit code 2) from what went wrong (1)."""
    try:
        yield
    except ConfigError:
        raise
    except TenantSyncError as error:
        raise click.ClickException(str(error)) from error


def _choose(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    chosen = context.find_object(Context)
    if chosen is None:
        context.obj = chosen = Context(path or Path(_DEFAULT))
        context.call_on_close(chosen.close)
    elif path is not None and _is_explicit(context):
        chosen.path = path


def _is_explicit(context: click.Context) -> bool:
    # The environment's value was taken already where the option stands before the command; seen
    # again after it, it must not win over what was written there.
    source = context.get_parameter_source("config")
    return source is not click.core.ParameterSource.ENVIRONMENT


def _imported(target: str) -> TenantSync:
    module, _, name = target.partition(":")
    # As the servers do: the application lies where the command is called.
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"app: {target!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove("")
    if not isinstance(found, TenantSync):
        raise ConfigError(f"app: {target!r} is a {type(found).__name__} and no TenantSync")
    return found
