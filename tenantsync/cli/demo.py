"""`tenantsync demo`: shows two streams of events becoming rows in four tenants' databases."""

import tempfile
from contextlib import nullcontext
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tenantsync.demo.run import Result, TenantResult, run
from tenantsync.errors import MigrationFailed

__all__ = ["demo"]


@click.command()
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Play in this empty folder and leave everything there, to look at.",
)
def demo(keep: Path | None) -> None:
    """Deliver real events to four tenants, and show what became of them.

    Everything runs on this machine: a local AuthVital, the endpoint, and a SQLite file per tenant.
    Ends with 0 if every answer and every row is as it must be.
    """
    console = Console(highlight=False)
    place = tempfile.TemporaryDirectory(prefix="tenantsync-demo-") if keep is None else None
    with place or nullcontext(str(keep)) as folder:
        try:
            result = run(
                Path(folder), say=lambda line: console.print(line, style="dim", soft_wrap=True)
            )
        except MigrationFailed as error:
            raise click.ClickException(str(error)) from error
    _show(console, result)
    if keep is not None:
        console.print(f"Left in {keep}: tenantsync.toml and tenants/*.db", soft_wrap=True)
    for problem in result.problems:
        console.print(f"WRONG: {problem}", style="red", markup=False, soft_wrap=True)
    if not result.ok:
        raise click.exceptions.Exit(1)
    console.print("Every row is what all events together say.", style="green")


def _show(console: Console, result: Result) -> None:
    for tenant in result.tenants:
        count = len(tenant.people)
        console.print(
            f"\n[bold]{tenant.key}[/bold]: {count or 'no'} {'person' if count == 1 else 'people'}"
        )
        if tenant.people:
            console.print(_people(tenant))
    console.print("To let in: who is active, has access, and is an active member.", style="dim")
    console.print("\n[bold]What the endpoint answered[/bold]")
    console.print(_outcomes(result))
    console.print(
        f"{result.recorded} recorded events ({result.foreign} of them for other applications, so "
        f"ignored) and {result.invented} invented ones, shuffled, a third of them twice: "
        f"{result.requests} requests in {result.seconds:.1f} s."
    )


def _people(tenant: TenantResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("person", no_wrap=True)
    # Two lines each, so that the table fits into 80 columns.
    for header in (
        "is_\nactive",
        "has_app_\naccess",
        "member-\nship",
        "app\nrole",
        "tenant\nroles",
    ):
        table.add_column(header)
    for person in tenant.people:
        table.add_row(
            escape(person.email or person.sub),
            _flag(person.is_active),
            _flag(person.has_app_access),
            person.membership or "",
            escape(person.app_role or ""),
            escape(", ".join(person.tenant_roles)),
        )
    return table


def _outcomes(result: Result) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("outcome")
    table.add_column("requests", justify="right")
    for outcome, count in sorted(result.outcomes.items()):
        table.add_row(escape(outcome), str(count))
    return table


def _flag(value: bool) -> str:
    return "yes" if value else "[red]no[/red]"
