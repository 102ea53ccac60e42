"""`tenantsync migrate`: brings tenants' tables to head, and shows where they stand."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from tenantsync.app import TenantSync
from tenantsync.cli.context import Context, config_option, pass_context
from tenantsync.migrate import Report, Row, State, migration_places
from tenantsync.migrate import status as status_of
from tenantsync.migrate import upgrade as upgrade_all
from tenantsync.tenants import Tenant

__all__ = ["migrate"]

_WIDTH_OF_A_FILE = 1000  # a line in a log is not folded at some terminal's width


@click.group()
def migrate() -> None:
    """Make and change the tables in tenants' places."""


_tenant_option = click.option(
    "--tenant", "keys", multiple=True, metavar="KEY", help="Only this tenant; may be repeated."
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@migrate.command()
@_tenant_option
@_json_option
@config_option
@pass_context
def upgrade(context: Context, keys: tuple[str, ...], as_json: bool) -> None:
    """Bring every tenant to the newest revision, one after the other.

    Missing schemas, SQLite files and tenants' own PostgreSQL databases are made. A tenant that
    fails stays as it was, and the others go on. Exits with 1 if one failed.
    """
    sync = context.sync()
    tenants = _chosen(sync, keys)
    with _progress() as progress:
        task = progress.add_task("migrating", total=len(tenants))
        report = upgrade_all(
            tenants,
            isolation=sync.isolation,
            place=migration_places(sync.settings),
            locations=sync.settings.migrations.locations,
            factory=sync.engine_factory,
            on_progress=lambda row, done, _: progress.update(
                task, completed=done, description=row.tenant
            ),
        )
    _show(report, as_json=as_json)


@migrate.command()
@_tenant_option
@_json_option
@config_option
@pass_context
def status(context: Context, keys: tuple[str, ...], as_json: bool) -> None:
    """Show where every tenant stands. Makes and changes nothing.

    Exits with 1 unless all are at the newest revision.
    """
    sync = context.sync()
    report = status_of(
        _chosen(sync, keys),
        isolation=sync.isolation,
        place=migration_places(sync.settings),
        locations=sync.settings.migrations.locations,
        factory=sync.engine_factory,
    )
    _show(report, as_json=as_json)


def _chosen(sync: TenantSync, keys: Sequence[str]) -> list[Tenant]:
    known = {tenant.key: tenant for tenant in sync.tenants}
    section = sync.settings.isolation
    if not known and section.strategy == "single" and section.accept_any_tenant:
        # Nobody is listed where anybody is welcome, and all live in one place.
        known["any"] = Tenant("any", "any", sync.isolation.place("any"))
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f'; did you mean "{close[0]}"?' if close else ""
            raise click.UsageError(f'no tenant has the key "{key}"{hint}')
    return [known[key] for key in dict.fromkeys(keys)] if keys else list(known.values())


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        document = {
            "ok": report.ok,
            "heads": report.heads,
            "tenants": [asdict(row) for row in report.rows],
        }
        click.echo(json.dumps(document, indent=2))
    else:
        _show_table(report)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _show_table(report: Report) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_A_FILE)
    table = Table.grid(padding=(0, 2))
    for row in report.rows:
        style = "green" if row.ok else "red"
        state = row.state if row.ok else row.state.upper()
        table.add_row(
            escape(row.tenant),
            f"[{style}]{state}[/{style}]",
            escape(_revisions(row)),
            f"{row.seconds:.2f}s",
            escape(row.error or ""),
        )
    if report.rows:
        console.print(table)
    counts = [(state, sum(row.state == state for row in report.rows)) for state in State]
    told = ", ".join(f"{count} {state}" for state, count in counts if count)
    total = len(report.rows)
    console.print(f"{total} {'tenant' if total == 1 else 'tenants'}{': ' if told else ''}{told}")


def _revisions(row: Row) -> str:
    if row.before == row.after:
        return row.after or "-"
    return f"{row.before or '-'} -> {row.after or '-'}"
