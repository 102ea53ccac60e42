"""The command line: skins over functions that a program can call."""

import sys
from importlib.metadata import version

import click

from tenantsync.cli.context import config_option
from tenantsync.cli.demo import demo
from tenantsync.cli.doctor import doctor
from tenantsync.cli.emulate import emulate, send
from tenantsync.cli.inbox import inbox
from tenantsync.cli.init import init
from tenantsync.cli.migrate import migrate
from tenantsync.cli.reconcile import reconcile
from tenantsync.cli.serve import serve
from tenantsync.cli.sessions import sessions
from tenantsync.cli.tenants import tenants
from tenantsync.cli.verify import verify
from tenantsync.cli.worker import worker
from tenantsync.errors import TenantSyncError

__all__ = ["commands", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("tenantsync"), prog_name="tenantsync")
@config_option
def commands() -> None:
    """Mirror AuthVital's identities into each tenant's own database or schema."""


_COMMANDS = (
    *(init, demo, serve, worker, doctor),
    *(tenants, migrate, inbox, reconcile, sessions, verify, emulate, send),
)
for _command in _COMMANDS:
    commands.add_command(_command)


def main() -> None:
    """Run the command line: exit 0 all well, 1 something failed, 2 asked wrongly."""
    try:
        commands(prog_name="tenantsync")
    except TenantSyncError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
