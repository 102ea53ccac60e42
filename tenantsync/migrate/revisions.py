"""Revision files: the history of them, and how a new one is made."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alembic import command
from alembic.script import Script
from alembic.util import CommandError
from sqlalchemy import MetaData, text

from tenantsync.errors import ConfigError
from tenantsync.migrate.connections import Connections
from tenantsync.migrate.report import Stopped, sentence_about
from tenantsync.migrate.scratch import scratch
from tenantsync.migrate.scripts import ALEMBIC, BRANCH, VERSION_TABLE, Scripts
from tenantsync.models import Base
from tenantsync.tenancy.engines import EngineFactory, make_engine
from tenantsync.tenancy.isolation import Isolation
from tenantsync.tenants import Placement

__all__ = ["Revision", "history", "revise"]


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision.

    Args:
        id: Its id.
        after: The revisions that it follows in its branch.
        depends_on: The revisions of other branches that must come before.
        branches: The names of the branches that it belongs to.
        title: The first line of its file.
        head: Whether nothing follows.
    """

    id: str
    after: tuple[str, ...]
    depends_on: tuple[str, ...]
    branches: tuple[str, ...]
    title: str
    head: bool


def history(locations: Sequence[Path | str] = ()) -> list[Revision]:
    """Return all revisions, the newest first: ours and the application's own.

    Raises:
        ConfigError: A location is no folder, or the revisions cannot be read.
    """
    return [
        Revision(
            script.revision,
            _names(script.down_revision),
            _names(script.dependencies),
            tuple(sorted(script.branch_labels)),
            (script.doc or "").strip(),
            script.is_head,
        )
        for script in Scripts(locations).walk()
    ]


def revise(
    message: str,
    *,
    location: Path | str,
    locations: Sequence[Path | str],
    branch: str | None = None,
    models: MetaData | None = None,
    beside: Placement | None = None,
    isolation: Isolation | None = None,
    factory: EngineFactory | None = None,
) -> Path:
    """Make a revision file of the application's own, and return its path.

    Args:
        message: What it does, in a few words.
        location: The folder that it goes to; one of `locations`.
        locations: All folders with revisions of the application.
        branch: The branch that it continues, or begins if there is none of that name. Left out, it
            continues the only one that is in the folder, or begins one with the folder's name.
        models: Write down what makes a tenant at head into what these say; None leaves it empty.
        beside: A tenant's place, which says which kind of database; needed with `models`.
        isolation: How places are made, bound and proven; needed with `models`.
        factory: Makes the engine of a database.

    Raises:
        ConfigError: The folder is none of the locations, or the branch is not to be found or ours.
    """
    folder = Path(location).absolute()
    if folder not in [Path(each).absolute() for each in locations]:
        raise ConfigError(f"{folder} is not among [migrations] locations: add it there")
    folder.mkdir(parents=True, exist_ok=True)
    scripts = Scripts(locations)
    options = _continued(scripts, folder, branch)
    if models is None:
        return _made(scripts, message, folder, {}, options)
    if beside is None or isolation is None:
        raise ConfigError("to compare with models, give a tenant's place and the isolation")
    makes = factory or partial(make_engine, lock_timeout=2.0)
    try:
        with scratch(beside, isolation, scripts, makes) as place:
            return _compared(scripts, message, folder, options, models, place, isolation, makes)
    except Stopped as stopped:
        raise ConfigError(f"a tenant to compare with could not be made: {stopped}") from stopped


def _continued(scripts: Scripts, folder: Path, branch: str | None) -> dict[str, Any]:
    """Return which revision the new one follows, as Alembic's command wants it."""
    if branch == BRANCH:
        raise ConfigError(f"the branch {BRANCH!r} is tenantsync's own: choose another name")
    known = [script for script in scripts.walk() if script.is_head]
    here = [script for script in known if Path(script.path).parent == folder]
    if branch is None:
        if len(here) > 1:
            names = ", ".join(script.revision for script in here)
            raise ConfigError(f"several branches end in {folder} ({names}): say which --branch")
        if here:
            return {"head": here[0].revision}
        branch = folder.name if folder.name != "versions" else folder.parent.name
    for script in known:
        if branch in script.branch_labels:
            return {"head": script.revision}
    # It stands beside ours, and comes after all of ours that is there now: it may point at it.
    ours = [script.revision for script in known if BRANCH in script.branch_labels]
    return {"head": "base", "branch_label": branch, "depends_on": ours}


def _compared(
    scripts: Scripts,
    message: str,
    folder: Path,
    options: dict[str, Any],
    models: MetaData,
    place: Placement,
    isolation: Isolation,
    factory: EngineFactory,
) -> Path:
    ours = {VERSION_TABLE, *Base.metadata.tables} - set(models.tables)

    def include(name: str | None, kind: str, _: object) -> bool:
        return kind != "table" or name not in ours

    connections = Connections(factory)
    try:
        with connections.use(place, make=False) as connection:
            given = {"connection": connection, "metadata": models, "include_name": include}
            if not place.is_postgres:
                return _made(scripts, message, folder, given, options, autogenerate=True)
            with connection.begin():
                connection.execute(
                    text("SELECT set_config('search_path', :schema, true)"),
                    {"schema": place.schema},
                )
                given["schema"] = place.schema
                return _made(scripts, message, folder, given, options, autogenerate=True)
    finally:
        connections.close()


def _made(
    scripts: Scripts,
    message: str,
    folder: Path,
    attributes: dict[str, Any],
    options: dict[str, Any],
    *,
    autogenerate: bool = False,
) -> Path:
    config = scripts.config(attributes)
    try:
        with ALEMBIC:
            made = command.revision(
                config, message, autogenerate=autogenerate, version_path=str(folder), **options
            )
    except CommandError as error:
        raise ConfigError(sentence_about(error)) from error
    assert isinstance(made, Script)
    return Path(made.path)


def _names(names: str | Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)
