"""`tenantsync init`: writes a configuration file to start from."""

from pathlib import Path

import click

from tenantsync.config.starter import write_starter

__all__ = ["init"]


@click.command()
@click.option(
    "--path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("tenantsync.toml"),
    show_default=True,
    help="The file to write. One that exists is never overwritten.",
)
def init(path: Path) -> None:
    """Write a commented configuration file to start from."""
    write_starter(path)
    click.echo(f"Wrote {path}. It works as it is with `tenantsync emulate` as the provider;")
    click.echo("set host, application_id and your tenants, then run `tenantsync migrate upgrade`.")
