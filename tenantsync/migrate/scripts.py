"""What Alembic needs to be told: where the revisions are, and where a place keeps its own."""

import threading
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from tenantsync.errors import ConfigError
from tenantsync.migrate.report import State, Stopped, sentence_about

__all__ = ["VERSION_TABLE", "Scripts"]

VERSION_TABLE: Final = "tenantsync_version"
"""Where a place keeps the revisions that it stands at, apart from an application's own Alembic."""

# Alembic keeps its context in globals of the process: two migrations at a time would run one
# tenant's statements on another's connection. They belong to the process, so their lock does too.
_ALEMBIC: Final = threading.Lock()


class Scripts:
    """All revisions: ours, and beside them a branch of the application's own.

    Args:
        locations: Folders with revisions of the application.

    Raises:
        ConfigError: A location is no folder, or the revisions cannot be read.
    """

    def __init__(self, locations: Sequence[Path | str] = ()) -> None:
        self._locations = tuple(Path(location).absolute() for location in locations)
        for folder in self._locations:
            if not folder.is_dir():
                raise ConfigError(f"[migrations] locations: {folder} is no folder")
        try:
            # Two revisions with one id are no more than a warning to Alembic, which takes one.
            with _ALEMBIC, warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                self._directory = ScriptDirectory.from_config(self._config())
                self.heads = tuple(sorted(self._directory.get_heads()))
        except Exception as error:  # a revision is code, and may raise anything
            raise ConfigError(f"the revisions cannot be read: {sentence_about(error)}") from error

    def run(self, connection: Connection, schema: str | None) -> tuple[str, ...]:
        """Bring a place to head and return the revisions that it stood at before.

        Args:
            connection: For PostgreSQL in a transaction that is bound to the place; for SQLite in
                none, because `env.py` begins it.
            schema: The PostgreSQL schema of the place.
        """
        config = self._config()
        config.attributes.update(connection=connection, schema=schema)
        with _ALEMBIC:
            command.upgrade(config, "heads")
        return tuple(sorted(config.attributes["before"]))

    def current(self, connection: Connection, schema: str | None) -> tuple[str, ...]:
        """Return the revisions that a place stands at; empty for none."""
        options = {"version_table": VERSION_TABLE, "version_table_schema": schema}
        context = MigrationContext.configure(connection, opts=options)
        return tuple(sorted(context.get_current_heads()))

    def at_head(self, current: tuple[str, ...]) -> bool:
        """Return whether these revisions are the newest, or imply them.

        Raises:
            Stopped: They are none of ours.
        """
        try:
            # A revision that depends on another implies it, and only the former is in the table.
            implied = {script.revision for script in self._directory.get_all_current(current)}
        except CommandError:
            raise Stopped(
                State.FAILED,
                f"it stands at {', '.join(current)}, which these migrations do not know: run a "
                "newer release, or set `[migrations] locations` to where that revision is",
                current,
            ) from None
        return implied.issuperset(self.heads)

    def _config(self) -> Config:
        # Found through the import system: the working directory says nothing about where we are.
        ours = Path(str(files("tenant_migrations")))
        options = {
            "script_location": str(ours),
            "path_separator": "newline",  # the only one that no sane path holds
            "version_locations": "\n".join(map(str, (ours / "versions", *self._locations))),
        }
        config = Config()
        for name, value in options.items():
            config.set_main_option(name, value.replace("%", "%%"))
        return config
