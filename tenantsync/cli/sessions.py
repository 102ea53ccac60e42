"""`tenantsync sessions`: what becomes of people's local sessions when they are over."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tenantsync.app import TenantSync
from tenantsync.cli.context import Context, config_option, failing, pass_context
from tenantsync.cli.durations import Duration
from tenantsync.errors import ConfigError
from tenantsync.migrate import choose
from tenantsync.sync.stale_sessions import StaleSessions
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.tenants import Tenant
from tenantsync.worker.cleanup import Cleaned, CleanupReport, CleanupRule, SessionCleanup

__all__ = ["sessions"]

_FEW: Final = 50  # so many tenants are shown one by one


@click.group()
def sessions() -> None:
    """Look after the local sessions of people."""


@sessions.command()
@click.option(
    "--tenant",
    "wanted",
    multiple=True,
    metavar="KEY",
    help="Only this tenant, or those that match a pattern such as 'eu_*'; may be repeated.",
)
@click.option(
    "--older-than",
    type=Duration(),
    default="30d",
    show_default=True,
    help="Only what ended longer ago than that: 90s, 15m, 2h or 3d.",
)
@click.option(
    "--expired-only",
    is_flag=True,
    help="Leave sessions that were revoked until they have expired that long ago.",
)
@click.option("--dry-run", is_flag=True, help="Count, and remove nothing.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="How many tenants are gone through at once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@config_option
@pass_context
def cleanup(
    context: Context,
    wanted: tuple[str, ...],
    older_than: float,
    expired_only: bool,
    dry_run: bool,
    jobs: int,
    as_json: bool,
) -> None:
    """Remove sessions that expired or were revoked long ago, at every tenant.

    Exits with 1 if it failed at a tenant; the others are done all the same.
    """  # fmt: skip
    sync = context.sync()
    with failing():
        tenants = _chosen(sync, wanted)
        with _progress(len({tenant.placement for tenant in tenants})) as step:
            report = _cleanup(sync, jobs).run(
                tenants,
                rule=CleanupRule(older_than=older_than, expired_only=expired_only),
                dry_run=dry_run,
                told=step,
            )
    if as_json:
        click.echo(json.dumps(_document(report), indent=2))
    else:
        _show(report)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _chosen(sync: TenantSync, wanted: tuple[str, ...]) -> list[Tenant]:
    every = sync.tenants
    if not every and sync.settings.isolation.accept_any_tenant:
        every = (Tenant("any", "any", sync.isolation.place("any")),)
    try:
        return choose(every, wanted)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _cleanup(sync: TenantSync, jobs: int) -> SessionCleanup:
    limits = sync.settings.isolation
    jobs = min(jobs, limits.max_connections)
    opened = TenantSessions(
        sync.registry, sync.isolation, limit=jobs, statement_timeout=limits.statement_timeout
    )
    return SessionCleanup(StaleSessions(opened), jobs=jobs)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Cleaned], None]]:
    """Show a bar on a terminal, and give what moves it."""
    errors = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
    with bar:
        task = bar.add_task("cleaning up", total=total)
        failed = 0

        def step(row: Cleaned) -> None:
            nonlocal failed
            failed += not row.ok
            told = f"cleaning up, {failed} failed" if failed else "cleaning up"
            bar.update(task, advance=1, description=told)

        yield step


def _show(report: CleanupReport) -> None:
    width = max((len(_name(row)) for row in report.rows), default=0)
    for row in report.rows:
        if len(report.rows) <= _FEW or not row.ok:
            click.echo(f"{_name(row):<{width}}  {_line(row)}")
    verb = "would be removed" if report.dry_run else "removed"
    failed = f", {report.failed} failed" if report.failed else ""
    click.echo(f"{_whom(report)}: {_counted(report.removed, 'session')} {verb}{failed}")


def _name(row: Cleaned) -> str:
    return ", ".join((row.tenant, *row.also[:2])) + (", ..." if len(row.also) > 2 else "")


def _line(row: Cleaned) -> str:
    if row.suspended:
        return "suspended, left alone"
    counts = f"{row.expired} expired, {row.revoked} revoked"
    return counts if row.error is None else f"{counts}, then FAILED: {row.error}"


def _whom(report: CleanupReport) -> str:
    places = len(report.rows)
    tenants = sum(1 + len(row.also) for row in report.rows)
    told = _counted(tenants, "tenant")
    return told if places == tenants else f"{_counted(places, 'place')} of {told}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what if count == 1 else f'{what}s'}"


def _document(report: CleanupReport) -> dict[str, object]:
    return {
        "ok": report.ok,
        "dry_run": report.dry_run,
        **asdict(report.rule),
        "removed": report.removed,
        "expired": report.expired,
        "revoked": report.revoked,
        "failed": report.failed,
        "tenants": [asdict(row) for row in report.rows],
    }
