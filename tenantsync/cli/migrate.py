"""`tenantsync migrate`: brings tenants' tables to head, and shows where they stand."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypedDict, TypeVar, Unpack

import click
from sqlalchemy import MetaData

from tenantsync.app import TenantSync
from tenantsync.cli.context import Context, config_option, pass_context
from tenantsync.cli.reporting import Screen
from tenantsync.control.database import ControlMissing
from tenantsync.errors import ConfigError, TenantSyncError
from tenantsync.migrate import (
    Kind,
    Move,
    Pace,
    Report,
    Row,
    State,
    choose,
    history,
    migration_places,
    plan,
    revise,
)
from tenantsync.migrate import check as check_all
from tenantsync.migrate import downgrade as downgrade_all
from tenantsync.migrate import stamp as stamp_all
from tenantsync.migrate import status as status_of
from tenantsync.migrate import upgrade as upgrade_all
from tenantsync.tenants import Tenant

__all__ = ["migrate"]

_JOBS: Final = 4
_F = TypeVar("_F", bound=Callable[..., Any])


@click.group()
def migrate() -> None:
    """Make and change the tables in tenants' places.

    Exits with 0 if all is well, 1 if some tenant is not, 2 if it was asked wrongly.
    """


class _Share(click.ParamType[int | float]):
    """A number of tenants, or a share of them such as `10%`."""

    name = "N|N%"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | float:
        """Return an int for a number, a float for a share."""
        told = str(value)
        try:
            share = float(told[:-1]) / 100 if told.endswith("%") else int(told)
        except ValueError:
            share = 0
        if share <= 0 or (isinstance(share, float) and share > 1):
            self.fail(f'"{told}" is no number of tenants: write 50, or 10%', param, ctx)
        return share


class _Chosen(TypedDict):
    """The options that say which tenants."""

    wanted: tuple[str, ...]
    excluded: tuple[str, ...]
    as_json: bool


class _Run(_Chosen):
    """The options of a run that changes something."""

    jobs: int
    lock_timeout: float
    statement_timeout: float
    wait: bool
    fail_fast: bool
    max_failures: int | None
    canary: int
    wave: int | float | None
    dry_run: bool


def _options(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def add(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_of_tenants = _options(
    click.option("--tenant", "wanted", multiple=True, metavar="KEY",
                 help="Only this tenant, or those that match a pattern such as 'eu_*'; may be "
                 "repeated."),
    click.option("--exclude", "excluded", multiple=True, metavar="KEY",
                 help="Not this tenant, or not those that match a pattern; may be repeated."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs."),
)  # fmt: skip
_jobs = click.option(
    "--jobs", type=click.IntRange(1), default=_JOBS, show_default=True, help="How many at once."
)
_of_runs = _options(
    _of_tenants,
    _jobs,
    click.option("--dry-run", is_flag=True, help="Print what would be run, and run nothing."),
    click.option("--canary", type=click.IntRange(0), default=0, metavar="N",
                 help="N tenants go first; if one of them fails, the run ends."),
    click.option("--wave", type=_Share(),
                 help="Migrate in waves of so many; end after a wave in which more than "
                 "--max-failures (without it, one) failed."),
    click.option("--fail-fast", is_flag=True, help="End the run with the first failure."),
    click.option("--max-failures", type=click.IntRange(0), metavar="N",
                 help="End the run when more than N tenants failed."),
    click.option("--lock-timeout", type=click.FloatRange(0.01), default=2.0, show_default=True,
                 metavar="SECONDS", help="How long to wait for a lock, three times."),
    click.option("--statement-timeout", type=click.FloatRange(0), default=0.0, metavar="SECONDS",
                 help="How long one statement may take; as long as it takes by default."),
    click.option("--wait", is_flag=True,
                 help="Wait for another run that is migrating a tenant, and do not skip it."),
)  # fmt: skip


@migrate.command()
@_of_runs
@click.option("--to", default="heads", show_default=True, metavar="REV", help="Stop there.")
@config_option
@pass_context
def upgrade(context: Context, to: str, **run: Unpack[_Run]) -> None:
    """Bring every tenant to the newest revision.

    Missing schemas, SQLite files and tenants' own PostgreSQL databases are made. A tenant that
    fails stays as it was, and the others go on.
    """
    _run(context, Move(Kind.UPGRADE, to), run, upgrade_all)


@migrate.command()
@_of_runs
@click.option(
    "--to", required=True, metavar="BRANCH@REV", help="Go back to there, or to BRANCH@base."
)
@click.option("--yes", is_flag=True, help="Tables may be dropped, with all that they hold.")
@config_option
@pass_context
def downgrade(context: Context, to: str, yes: bool, **run: Unpack[_Run]) -> None:
    """Bring tenants back to an older revision."""

    def work(tenants: list[Tenant], **options: Any) -> Report:
        return downgrade_all(tenants, drop_tables=yes, **options)

    _run(context, Move(Kind.DOWNGRADE, to), run, work)


@migrate.command()
@_of_runs
@click.option("--to", required=True, metavar="REV", help="The revision that they stand at.")
@config_option
@pass_context
def stamp(context: Context, to: str, **run: Unpack[_Run]) -> None:
    """Say that tenants stand at a revision, and touch none of their tables."""
    _run(context, Move(Kind.STAMP, to), run, stamp_all)


@migrate.command()
@_of_tenants
@_jobs
@config_option
@pass_context
def status(context: Context, jobs: int, **chosen: Unpack[_Chosen]) -> None:
    """Show where every tenant stands. Makes and changes nothing.

    Exits with 1 unless all are at the newest revision.
    """
    _ask(context, jobs, chosen, status_of)


@migrate.command()
@_of_tenants
@_jobs
@config_option
@pass_context
def check(context: Context, jobs: int, **chosen: Unpack[_Chosen]) -> None:
    """Compare every tenant's tables with what the migrations make.

    For that a scratch tenant is made and dropped again: a schema beside the others, or a temporary
    SQLite file. Exits with 1 if a tenant is not at head, or its tables differ.
    """
    _ask(context, jobs, chosen, check_all)


@migrate.command("history")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@config_option
@pass_context
def show_history(context: Context, as_json: bool) -> None:
    """List all revisions, the newest first: tenantsync's, and the application's own."""
    revisions = history(context.settings().migrations.locations)
    if as_json:
        click.echo(json.dumps([asdict(revision) for revision in revisions], indent=2))
        return
    width = max((len(revision.id) for revision in revisions), default=0)
    for revision in revisions:
        before = ", ".join((*revision.after, *revision.depends_on)) or "-"
        head = " (head)" if revision.head else ""
        branches = f"[{', '.join(revision.branches)}]" if revision.branches else "[-]"
        click.echo(f"{revision.id:<{width}}  {branches}  after {before}  {revision.title}{head}")


@migrate.command()
@click.option("-m", "--message", required=True, help="What it does, in a few words.")
@click.option("--autogenerate", is_flag=True,
              help="Write down what makes a tenant at head into what --models say.")  # fmt: skip
@click.option("--models", metavar="MODULE:NAME",
              help="A declarative base or a MetaData of the application's.")  # fmt: skip
@click.option("--branch", help="The branch that it continues, or begins.")
@click.option("--location", type=click.Path(path_type=Path),
              help="Which of [migrations] locations it goes to.")  # fmt: skip
@config_option
@pass_context
def revision(
    context: Context,
    message: str,
    autogenerate: bool,
    models: str | None,
    branch: str | None,
    location: Path | None,
) -> None:
    """Make a revision file for the application's own tables."""
    sync = context.sync()
    locations = sync.settings.migrations.locations
    if autogenerate and models is None:
        raise click.UsageError("--autogenerate needs --models MODULE:NAME")
    if location is None:
        if len(locations) != 1:
            count = "none" if not locations else "several"
            raise click.UsageError(f"[migrations] locations names {count}: say which --location")
        location = locations[0]
    beside = None
    if autogenerate:
        tenants = _all(sync)
        if not tenants:
            raise click.UsageError("there is no tenant that says which kind of database it is for")
        beside = migration_places(sync.settings)(tenants[0])
    made = revise(
        message,
        location=location,
        locations=locations,
        branch=branch,
        models=_imported(models) if autogenerate and models else None,
        beside=beside,
        isolation=sync.isolation,
        factory=sync.engine_factory,
    )
    click.echo(f"made {made}")


def _run(context: Context, move: Move, run: _Run, work: Callable[..., Report]) -> None:
    sync = context.sync()
    tenants = _chosen(sync, run)
    if run["dry_run"]:
        _show_plan(sync, tenants, move, run["jobs"])
        return
    screen = Screen(tenants, as_json=run["as_json"])
    pace = Pace(
        jobs=run["jobs"],
        lock_timeout=run["lock_timeout"],
        statement_timeout=run["statement_timeout"],
        wait=float("inf") if run["wait"] else 0.0,
        fail_fast=run["fail_fast"],
        max_failures=run["max_failures"],
        canary=run["canary"],
        wave=run["wave"],
        keep_rows=screen.keeps_rows,
    )
    upgraded: set[str] = set()
    with screen.progress(move.kind) as note:

        def told(row: Row, done: int, total: int) -> None:
            if row.state is State.UPGRADED:
                upgraded.add(row.tenant)
            note(row, done, total)

        report = work(tenants, to=move.to, on_progress=told, **_places(sync), **pace)
    _wake(sync, [tenant.id for tenant in tenants if tenant.key in upgraded])
    retry = ["tenantsync", "-c", str(context.path), "migrate", str(move.kind)]
    if move.to != "heads":
        retry += ["--to", move.to]
    screen.show(report, retry=retry)


def _wake(sync: TenantSync, tenant_ids: list[str]) -> None:
    """Have events applied that waited for the migration."""
    if not tenant_ids:
        return
    try:
        sync.wake(tenant_ids)
    except ControlMissing:
        return  # nothing was ever put into the inbox
    except TenantSyncError as error:
        # They are migrated all the same, and their lanes come due by themselves.
        click.echo(f"What waits in the inbox for them is applied later: {error}", err=True)


def _ask(context: Context, jobs: int, chosen: _Chosen, work: Callable[..., Report]) -> None:
    sync = context.sync()
    tenants = _chosen(sync, chosen)
    screen = Screen(tenants, as_json=chosen["as_json"])
    with screen.progress("looking") as note:
        report = work(
            tenants, on_progress=note, jobs=jobs, keep_rows=screen.keeps_rows, **_places(sync)
        )
    screen.show(report)


def _show_plan(sync: TenantSync, tenants: list[Tenant], move: Move, jobs: int) -> None:
    planned, report = plan(tenants, move=move, jobs=jobs, **_places(sync))
    for each in planned:
        recording = each.recording
        count = "1 tenant" if each.tenants == 1 else f"{each.tenants} tenants"
        start = ", ".join(recording.start) or "nothing"
        click.echo(f"-- {count} from {start} on {recording.dialect}, such as {each.example}:")
        if recording.reason is not None:
            click.echo(f"-- run by Alembic at each tenant, because {recording.reason}")
        elif not recording.statements:
            click.echo("-- nothing to do")
        for statement in recording.statements:
            click.echo(f"{statement};")
        click.echo()
    unfit = [row for row in report.rows if row.state not in _CLEAR]
    for row in unfit:
        click.echo(f"-- {row.tenant}: {row.state.upper()}: {row.error}")
    if unfit:
        raise click.exceptions.Exit(1)


_CLEAR: Final = (State.OK, State.BEHIND, State.MISSING, State.UNVERSIONED)


def _places(sync: TenantSync) -> dict[str, Any]:
    return {
        "isolation": sync.isolation,
        "place": migration_places(sync.settings),
        "locations": sync.settings.migrations.locations,
        "factory": sync.engine_factory,
    }


def _all(sync: TenantSync) -> list[Tenant]:
    section = sync.settings.isolation
    tenants = list(sync.tenants)
    if not tenants and section.strategy == "single" and section.accept_any_tenant:
        # Nobody is listed where anybody is welcome, and all live in one place.
        tenants = [Tenant("any", "any", sync.isolation.place("any"))]
    return tenants


def _chosen(sync: TenantSync, chosen: _Chosen | _Run) -> list[Tenant]:
    try:
        return choose(_all(sync), chosen["wanted"], chosen["excluded"])
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _imported(target: str) -> MetaData:
    module, _, name = target.partition(":")
    # As the servers do: the application lies where the command is called.
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise click.UsageError(f"--models: {target!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove("")
    metadata = getattr(found, "metadata", found)
    if not isinstance(metadata, MetaData):
        raise click.UsageError(f"--models: {target!r} is neither a declarative base nor MetaData")
    return metadata
