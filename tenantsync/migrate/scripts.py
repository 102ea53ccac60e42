"""The revisions: where they are, how they follow from each other, and Alembic run on a place."""

import threading
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep, StampStep
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from tenantsync.errors import ConfigError
from tenantsync.migrate.moves import Kind, Move
from tenantsync.migrate.report import State, Stopped, sentence_about

__all__ = ["BRANCH", "VERSION_TABLE", "Scripts"]

VERSION_TABLE: Final = "tenantsync_version"
"""Where a place keeps the revisions that it stands at, apart from an application's own Alembic."""

BRANCH: Final = "tenantsync"
"""The branch of our own revisions."""

# Alembic keeps its context in globals of the process: two migrations at a time would run one
# tenant's statements on another's connection. They belong to the process, so their lock does too.
ALEMBIC: Final = threading.RLock()

_Steps = list[RevisionStep] | list[StampStep]


class Scripts:
    """All revisions: ours, and beside them a branch of the application's own.

    Args:
        locations: Folders with revisions of the application.

    Raises:
        ConfigError: A location is no folder, or the revisions cannot be read.
    """

    def __init__(self, locations: Sequence[Path | str] = ()) -> None:
        self.locations = tuple(Path(location).absolute() for location in locations)
        for folder in self.locations:
            if not folder.is_dir():
                raise ConfigError(f"[migrations] locations: {folder} is no folder")
        self._directory = self._read()
        self.heads = tuple(sorted(self._directory.get_heads()))

    def reread(self) -> "Scripts":
        """Return the same revisions with their modules run anew."""
        return Scripts(self.locations)

    def check(self, move: Move) -> None:
        """Do nothing if the target of a move is a revision.

        Raises:
            ConfigError: There is no such revision, or there are several.
        """
        try:
            self._directory.get_revisions(move.to)
        except CommandError as error:
            raise ConfigError(f"--to {move.to}: {sentence_about(error)}") from None

    def steps(self, move: Move, current: tuple[str, ...]) -> _Steps:
        """Return what Alembic would do to bring a place from these revisions to the target.

        Raises:
            Stopped: The revisions are none of ours, or there is no way from them to the target.
        """
        self._check_known(current)
        directory = self._directory
        try:
            # What alembic.command calls for each of its commands; there is no other door to it.
            match move.kind:
                case Kind.UPGRADE:
                    return directory._upgrade_revs(move.to, current)  # type: ignore[arg-type] # its stubs know one head only
                case Kind.DOWNGRADE:
                    return directory._downgrade_revs(move.to, current)  # type: ignore[arg-type] # its stubs know one head only
                case Kind.STAMP:
                    return self._stamps(move.to, current)
        except CommandError as error:
            raise Stopped(State.FAILED, f"{sentence_about(error)}", current) from None

    def passed(self, move: Move, current: tuple[str, ...]) -> list[Script]:
        """Return the revisions whose code that would run, in that order."""
        if move.kind is Kind.STAMP:
            return []
        steps = self.steps(move, current)
        return [step.revision for step in steps if isinstance(step, RevisionStep)]

    def at_head(self, current: tuple[str, ...], branch: str | None = None) -> bool:
        """Return whether these revisions are the newest, or imply them.

        Args:
            current: The revisions of a place.
            branch: Ask for this branch only.

        Raises:
            Stopped: They are none of ours.
        """
        self._check_known(current)
        # A revision that depends on another implies it, and only the former is in the table.
        implied = {script.revision for script in self._directory.get_all_current(current)}
        wanted = self.heads
        if branch is not None:
            wanted = tuple(s.revision for s in self._directory.get_revisions(f"{branch}@heads"))
        return implied.issuperset(wanted)

    def run(
        self, connection: Connection, schema: str | None, move: Move, *, apart: bool = False
    ) -> tuple[str, ...]:
        """Move a place and return the revisions that it stood at before.

        Args:
            connection: For PostgreSQL in a transaction that is bound to the place; for SQLite in
                none, because `env.py` begins it.
            schema: The PostgreSQL schema of the place.
            move: Where to.
            apart: PostgreSQL: the connection is in no transaction but has its place as a setting
                of the whole session, and each revision gets a transaction of its own.
        """
        attributes: dict[str, Any] = {"connection": connection, "schema": schema, "apart": apart}

        def work(current: tuple[str, ...], _: MigrationContext) -> _Steps:
            return self.steps(move, tuple(current))

        with self._environment(attributes, work) as config:
            self._directory.run_env()
        return tuple(sorted(config.attributes["before"]))

    def render(
        self,
        dialect: str,
        schema: str | None,
        move: Move,
        current: tuple[str, ...],
        listen: Callable[[MigrationContext], object],
    ) -> None:
        """Let Alembic write down what it would execute, without a database.

        Args:
            dialect: `postgresql` or `sqlite`.
            schema: What a revision is told that its schema is.
            move: Where to.
            current: The revisions that it starts from.
            listen: Is given the context before anything is written.
        """
        attributes: dict[str, Any] = {"dialect": dialect, "schema": schema, "listen": listen}
        steps = self.steps(move, current)
        with self._environment(
            attributes, lambda *_: steps, as_sql=True, starting_rev=list(current) or None
        ):
            self._directory.run_env()

    def current(self, connection: Connection, schema: str | None) -> tuple[str, ...]:
        """Return the revisions that a place stands at; empty for none."""
        options = {"version_table": VERSION_TABLE, "version_table_schema": schema}
        context = MigrationContext.configure(connection, opts=options)
        return tuple(sorted(context.get_current_heads()))

    def walk(self) -> Iterable[Script]:
        """Return all revisions, the newest first."""
        return self._directory.walk_revisions()

    def config(self, attributes: dict[str, Any] | None = None) -> Config:
        """Return the configuration for Alembic's own commands."""
        # Found through the import system: the working directory says nothing about where we are.
        ours = Path(str(files("tenant_migrations")))
        options = {
            "script_location": str(ours),
            "path_separator": "newline",  # the only one that no sane path holds
            "version_locations": "\n".join(map(str, (ours / "versions", *self.locations))),
        }
        # It would print to the terminal, where who called may be printing something else.
        config = Config(cmd_opts=Namespace(quiet=True), attributes=attributes)
        for name, value in options.items():
            config.set_main_option(name, value.replace("%", "%%"))
        return config

    def _read(self) -> ScriptDirectory:
        try:
            # Two revisions with one id are no more than a warning to Alembic, which takes one.
            with ALEMBIC, warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                directory = ScriptDirectory.from_config(self.config())
                directory.get_heads()
        except Exception as error:  # a revision is code, and may raise anything
            raise ConfigError(f"the revisions cannot be read: {sentence_about(error)}") from error
        return directory

    def _stamps(self, to: str, current: tuple[str, ...]) -> _Steps:
        steps = self._directory._stamp_revs(to, current)
        return [step for step in steps if set(step.from_revisions) != set(step.to_revisions)]

    def _check_known(self, current: tuple[str, ...]) -> None:
        try:
            self._directory.get_revisions(current)
        except CommandError:
            raise Stopped(
                State.AHEAD,
                f"it stands at {', '.join(current)}, which these migrations do not know: run a "
                "newer release, or set `[migrations] locations` to where that revision is",
                current,
            ) from None

    @contextmanager
    def _environment(
        self, attributes: dict[str, Any], work: Callable[..., _Steps], **options: object
    ) -> Iterator[Config]:
        config = self.config(attributes)
        with ALEMBIC, EnvironmentContext(config, self._directory, fn=work, **options):
            yield config
