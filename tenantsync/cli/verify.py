"""`tenantsync verify-isolation`: are tenants kept apart, also behind a pooler?"""

import json
from dataclasses import asdict
from typing import Final

import click

from tenantsync.cli.context import Context, config_option, pass_context
from tenantsync.errors import ConfigError
from tenantsync.migrate import choose
from tenantsync.tenancy.pooler import Pooling
from tenantsync.tenancy.verify import Finding, Safety, verify_isolation
from tenantsync.tenants import Tenant

__all__ = ["verify"]

_POOLERS: Final = {
    None: "",
    Pooling.NONE: "no pooler",
    Pooling.SESSION: "pooler by session",
    Pooling.TRANSACTION: "pooler by transaction",
}


@click.command("verify-isolation")
@click.option("--tenant", "wanted", multiple=True, metavar="KEY",
              help="Only this tenant, or those that match a pattern such as 'eu_*'; may be "
              "repeated.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@config_option
@pass_context
def verify(context: Context, wanted: tuple[str, ...], as_json: bool) -> None:
    """Try whether tenants' transactions are their own, over the URLs that events take.

    At each tenant a row is written, read back and rolled back, with another transaction beside it.
    Exits with 0 if all are safe, 1 if one is not or could not be tried.
    """
    sync = context.sync()
    every = sync.tenants
    if not every and sync.settings.isolation.accept_any_tenant:
        every = (Tenant("any", "any", sync.isolation.place("any")),)
    try:
        tenants = choose(every, wanted)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    width = max((len(tenant.key) for tenant in tenants), default=0)

    def show(finding: Finding) -> None:
        if not as_json:
            told = finding.safety if finding.safety is Safety.SAFE else finding.safety.upper()
            parts = (f"{finding.tenant:<{width}}", told, _POOLERS[finding.pooling], finding.error)
            click.echo("  ".join(part for part in parts if part))

    verdict = verify_isolation(
        tenants, isolation=sync.isolation, factory=sync.engine_factory, on_finding=show
    )
    if as_json:
        document = {
            "ok": verdict.ok,
            "sentence": verdict.sentence,
            "tenants": [asdict(finding) for finding in verdict.findings],
        }
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(verdict.sentence)
    if not verdict.ok:
        raise click.exceptions.Exit(1)
