"""`tenantsync tenants`: who is there, and adding, suspending and removing them at run time."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tenantsync.app import TenantSync
from tenantsync.cli.context import Context, config_option, pass_context
from tenantsync.config.values import Wrong, database_url
from tenantsync.control.directory import Listed
from tenantsync.errors import ConfigError, TenantSyncError
from tenantsync.migrate import migration_places
from tenantsync.migrate import status as status_of
from tenantsync.migrate.provision import Outcome, Provisioner
from tenantsync.tenants import Tenant

__all__ = ["tenants"]

_WIDTH_OF_A_FILE = 1000  # a line in a log is not folded at some terminal's width


@click.group()
def tenants() -> None:
    """See, add, suspend and remove tenants, without a restart."""


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@tenants.command("list")
@_json_option
@config_option
@pass_context
def list_(context: Context, as_json: bool) -> None:
    """List all tenants: those of the configuration file, and those that were added.

    Exits with 1 if one of them cannot be served.
    """
    with _failing():
        lines = context.sync().directory.lines()
    if as_json:
        click.echo(json.dumps([_document(line) for line in lines], indent=2))
    else:
        _show_table(lines)
    if any(line.trouble for line in lines):
        raise click.exceptions.Exit(1)


@tenants.command()
@click.argument("key")
@_json_option
@config_option
@pass_context
def show(context: Context, key: str, as_json: bool) -> None:
    """Show one tenant: its id, where it lives, and how its tables stand.

    Exits with 1 if it cannot be served, or its tables are not at the newest revision.
    """
    sync = context.sync()
    with _failing():
        line = next((line for line in sync.directory.lines() if line.key == key), None)
    if line is None:
        raise ConfigError(f"there is no tenant {key!r}")
    document = _document(line)
    ok = line.trouble is None
    if line.placement is not None and line.state in ("active", "suspended"):
        report = status_of(
            [Tenant(line.id, line.key, line.placement)],
            isolation=sync.isolation,
            place=migration_places(sync.settings),
            locations=sync.settings.migrations.locations,
            factory=sync.engine_factory,
        )
        (row,) = report.rows
        document |= {"tables": row.state.value, "revision": row.after, "error": row.error}
        ok = ok and row.ok
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        width = max(map(len, document))
        for name, value in document.items():
            if value is not None:
                click.echo(f"{name:<{width}}  {value}")
    if not ok:
        raise click.exceptions.Exit(1)


@tenants.command()
@click.argument("key")
@click.option("--id", "tenant_id", required=True, help="AuthVital's id of the tenant.")
@click.option("--url", help="Its own database URL; by default as the configuration says.")
@click.option("--schema", help="Its own PostgreSQL schema.")
@click.option("--role", help="Its own PostgreSQL role.")
@config_option
@pass_context
def add(
    context: Context,
    key: str,
    tenant_id: str,
    url: str | None,
    schema: str | None,
    role: str | None,
) -> None:
    """Make a place for a tenant, with its tables, and put it into service.

    Safe to run again, also after it was interrupted. A running server sees the tenant within
    seconds.
    """
    sync = context.sync()
    with _failing():
        added = _provisioner(sync).add(
            key,
            tenant_id,
            url=None if url is None else _read_url(url, sync.settings.path.parent),
            schema=schema,
            role=role,
        )
    place = added.tenant.placement
    match added.outcome:
        case Outcome.UNCHANGED:
            click.echo(f"{key} was added before: {place}")
        case _:
            click.echo(f"{key} {added.outcome.value} in {added.seconds:.2f}s: {place}")


@tenants.command()
@click.argument("key")
@config_option
@pass_context
def suspend(context: Context, key: str) -> None:
    """Apply no events to a tenant until it is resumed.

    Its events are answered so that they come again. Works for tenants of the file too.
    """
    with _failing():
        new = _provisioner(context.sync()).suspend(key)
    click.echo(f"{key} {'is suspended' if new else 'was suspended already'}")


@tenants.command()
@click.argument("key")
@config_option
@pass_context
def resume(context: Context, key: str) -> None:
    """Apply events to a suspended tenant again."""
    with _failing():
        was = _provisioner(context.sync()).resume(key)
    click.echo(f"{key} {'is resumed' if was else 'was not suspended'}")


@tenants.command()
@click.argument("key")
@click.option("--drop", is_flag=True, help="Drop its data too: its file, database or schema.")
@click.option("--yes", is_flag=True, help="Do not ask for the key to be typed.")
@config_option
@pass_context
def remove(context: Context, key: str, drop: bool, yes: bool) -> None:
    """Take a tenant out of service. Its data is kept, unless you say --drop."""
    sync = context.sync()
    if drop and not yes and not sync.directory.is_listed(key):
        _ask(key)
    with _failing():
        removed = _provisioner(sync).remove(key, drop=drop)
    match removed.outcome:
        case Outcome.UNCHANGED:
            click.echo(f"{key} was removed before; its data is kept")
        case Outcome.DROPPED:
            done = f"{removed.what} is dropped" if removed.what else "forgotten"
            click.echo(f"{key} is removed, and {done}{_and(removed.stays)}")
        case _:
            click.echo(f"{key} is removed; its data is kept")


def _provisioner(sync: TenantSync) -> Provisioner:
    return Provisioner.of(
        sync.settings, sync.directory, sync.isolation, factory=sync.engine_factory
    )


def _and(sentence: str | None) -> str:
    return f"; {sentence}" if sentence else ""


def _ask(key: str) -> None:
    typed = click.prompt(
        f"This deletes all data of {key}. Type its key to go on", default="", show_default=False
    )
    if typed != key:
        raise click.UsageError("that is not the key; nothing was done")


@contextmanager
def _failing() -> Iterator[None]:
    """Tell what was asked wrongly (exit code 2) from what went wrong (1)."""
    try:
        yield
    except ConfigError:
        raise
    except TenantSyncError as error:
        raise click.ClickException(str(error)) from error


def _read_url(url: str, folder: Path) -> str:
    try:
        return database_url(url, folder)
    except Wrong as error:
        raise click.UsageError(f"--url {error}") from error
    except (TypeError, ValueError) as error:
        raise click.UsageError("--url is no database URL") from error


def _document(line: Listed) -> dict[str, Any]:
    return {
        "key": line.key,
        "id": line.id,
        "state": line.state,
        "source": line.source,
        "place": None if line.placement is None else str(line.placement),
        "role": None if line.placement is None else line.placement.role,
        "since": None if line.since is None else line.since.isoformat(),
        "trouble": line.trouble,
    }


def _show_table(lines: Sequence[Listed]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_A_FILE)
    table = Table.grid(padding=(0, 2))
    for line in lines:
        style = "green" if line.state == "active" and not line.trouble else "yellow"
        table.add_row(
            escape(line.key),
            f"[{style}]{line.state}[/{style}]",
            line.source,
            escape(line.id),
            escape(line.trouble or str(line.placement)),
        )
    if lines:
        console.print(table)
    total = len(lines)
    console.print(f"{total} {'tenant' if total == 1 else 'tenants'}")
