"""`tenantsync tenants`: who is there, and adding, suspending and removing them at run time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tenantsync.app import TenantSync
from tenantsync.cli.context import Context, config_option, failing, pass_context
from tenantsync.cli.inbox_tables import printable
from tenantsync.config.values import Wrong, database_url
from tenantsync.control.directory import Listed
from tenantsync.errors import ConfigError
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
    sync = context.sync()
    with failing():
        lines = sync.directory.lines()
        names = _names(sync, lines)
    if as_json:
        documents = [_document(line, names.get(line.id)) for line in lines]
        click.echo(json.dumps(documents, indent=2))
    else:
        _show_table(lines, names)
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
    with failing():
        line = next((line for line in sync.directory.lines() if line.key == key), None)
        if line is None:
            raise ConfigError(f"there is no tenant {key!r}")
        document = _document(line, _names(sync, [line]).get(line.id))
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
                click.echo(f"{name:<{width}}  {printable(str(value))}")
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
    seconds, and events that came before are applied.
    """
    sync = context.sync()
    with failing():
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
    with failing():
        sync.wake([tenant_id])


@tenants.command()
@click.argument("key")
@config_option
@pass_context
def suspend(context: Context, key: str) -> None:
    """Apply no events to a tenant until it is resumed.

    They wait in the inbox. Works for tenants of the file too.
    """
    with failing():
        new = _provisioner(context.sync()).suspend(key)
    click.echo(f"{key} {'is suspended' if new else 'was suspended already'}")


@tenants.command()
@click.argument("key")
@config_option
@pass_context
def resume(context: Context, key: str) -> None:
    """Apply events to a suspended tenant again, those first that came meanwhile."""
    sync = context.sync()
    with failing():
        was = _provisioner(sync).resume(key)
        ids = [line.id for line in sync.directory.lines() if line.key == key]
    click.echo(f"{key} {'is resumed' if was else 'was not suspended'}")
    with failing():
        sync.wake(ids)


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
    with failing():
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


def _read_url(url: str, folder: Path) -> str:
    try:
        return database_url(url, folder)
    except Wrong as error:
        raise click.UsageError(f"--url {error}") from error
    except (TypeError, ValueError) as error:
        raise click.UsageError("--url is no database URL") from error


def _names(sync: TenantSync, lines: Sequence[Listed]) -> dict[str, str]:
    """Return the names that the provider told, by id."""
    profiles = sync.profiles.list([line.id for line in lines])
    return {
        tenant_id: profile.name
        for tenant_id, profile in profiles.items()
        if profile.name is not None
    }


def _document(line: Listed, name: str | None) -> dict[str, Any]:
    return {
        "key": line.key,
        "id": line.id,
        "name": name,
        "state": line.state,
        "source": line.source,
        "place": None if line.placement is None else str(line.placement),
        "role": None if line.placement is None else line.placement.role,
        "since": None if line.since is None else line.since.isoformat(),
        "trouble": line.trouble,
    }


def _show_table(lines: Sequence[Listed], names: Mapping[str, str]) -> None:
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
            # Whoever named the tenant may have chosen what a terminal obeys.
            *([escape(printable(names.get(line.id, "")))] if names else []),
            escape(line.trouble or str(line.placement)),
        )
    if lines:
        console.print(table)
    total = len(lines)
    console.print(f"{total} {'tenant' if total == 1 else 'tenants'}")
