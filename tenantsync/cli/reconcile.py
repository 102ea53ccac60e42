"""`tenantsync reconcile`: makes every tenant's mirror say what AuthVital's list says."""

import json
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from typing import Final, Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tenantsync.app import TenantSync
from tenantsync.cli.context import Context, config_option, failing, hooks_option, pass_context
from tenantsync.cli.inbox_tables import printable
from tenantsync.errors import ConfigError
from tenantsync.migrate.control import upgrade_control
from tenantsync.sync.drift import Difference, Report, State, TenantReport
from tenantsync.sync.reconciling import reconciler_of
from tenantsync.tenants import Tenant

__all__ = ["reconcile"]

_FEW: Final = 50  # so many tenants that are well are shown one by one
_WIDTH_OF_A_FILE: Final = 1000  # a line in a log is not folded at some terminal's width
_COLUMNS: Final = ("tenant", "state", "added", "changed", "removed", "unchanged", "refused", "why")
_SHOWN: Final = frozenset({"membership_status", "app_role"})
"""Columns whose values a dry run prints; of the others, which are personal, only their names."""


@click.command()
@click.option("--tenant", "wanted", multiple=True, metavar="KEY",
              help="Only this tenant, or those that match a pattern such as 'eu_*'; may be "
              "repeated.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what is different, and write nothing.")
@click.option("--allow-mass-removal", is_flag=True,
              help="Take access away from however many people the lists do.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 16), default=2, show_default=True,
              help="How many tenants at once; each keeps its list in memory.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@hooks_option
@config_option
@pass_context
def reconcile(
    context: Context,
    wanted: tuple[str, ...],
    dry_run: bool,
    allow_mass_removal: bool,
    jobs: int,
    as_json: bool,
    hooks: str | None,
) -> None:
    """Make the mirror of every tenant say what AuthVital's list of its members says.

    The first run fills it. Who is missing from two lists in a row has left. Webhooks that are newer
    than a list win over it. Exits with 1 if a tenant failed, or if something was not taken away
    because that would have locked out too many people at once.
    """
    sync = context.sync() if dry_run else context.applying(with_hooks=hooks is None)
    stopping = threading.Event()
    with failing():
        tenants = _chosen(sync, wanted)
        if not dry_run:
            upgrade_control(sync.control)
        with (
            reconciler_of(sync, prepare=partial(upgrade_control, sync.control)) as reconciler,
            _ending(stopping),
            _Screen(tenants, quiet=as_json) as screen,
        ):
            report = reconciler.reconcile(
                tenants,
                dry_run=dry_run,
                allow_mass_removal=allow_mass_removal,
                with_hooks=hooks is None,
                jobs=jobs,
                on_progress=screen.tenant,
                on_portion=screen.people,
                on_difference=_differ if dry_run and not as_json else None,
                stopping=stopping,
            )
    _show(report, as_json=as_json)
    if not report.ok or stopping.is_set():
        raise click.exceptions.Exit(1)


def _chosen(sync: TenantSync, wanted: Sequence[str]) -> list[Tenant]:
    tenants = list(sync.tenants)
    for pattern in wanted:
        if not any(fnmatchcase(tenant.key, pattern) for tenant in tenants):
            raise click.UsageError(f"there is no tenant {pattern!r}: see `tenantsync tenants list`")
    chosen = [
        tenant
        for tenant in tenants
        if not wanted or any(fnmatchcase(tenant.key, pattern) for pattern in wanted)
    ]
    if not chosen:
        raise ConfigError("there are no tenants: see `tenantsync tenants add`")
    return chosen


@contextmanager
def _ending(stopping: threading.Event) -> Iterator[None]:
    """End at the next portion when interrupted, and at once the second time."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        restore()
        stopping.set()
        # Past Python's buffers: the signal may have come while somebody was writing to them.
        os.write(2, b"stopping after what is under way (once more: at once)\n")

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


class _Screen:
    """A progress bar: of tenants, or of people where there is one tenant."""

    def __init__(self, tenants: Sequence[Tenant], *, quiet: bool) -> None:
        self._single = len(tenants) == 1
        errors = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=quiet or not errors.is_terminal,
        )
        self._task = self._bar.add_task("reconciling", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tenant(self, _: TenantReport, done: int, total: int) -> None:
        if not self._single:
            self._bar.update(self._task, completed=done, total=total)

    def people(self, _: str, done: int, total: int) -> None:
        if self._single:
            self._bar.update(self._task, completed=done, total=total)


def _differ(tenant: str, difference: Difference) -> None:
    told = ", ".join(_told(name, each) for name, each in difference.columns.items())
    click.echo(f"{tenant}  {difference.what:<7}  {printable(difference.sub)}  {told}".rstrip())


def _told(name: str, values: tuple[object, object]) -> str:
    if name not in _SHOWN:
        return name
    before, after = ("-" if value is None else printable(str(value)) for value in values)
    return f"{name} {before} -> {after}"


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        document = {
            "ok": report.ok,
            "counts": dict(report.counts),
            "tenants": [asdict(each) for each in report.tenants],
        }
        click.echo(json.dumps(document, indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_A_FILE)
    # Thousands that are well would bury the one that is not.
    few = len(report.tenants) <= _FEW
    rows = [each for each in report.tenants if few or not each.ok]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in ("tenant", "state", "why") else "right")
    for each in rows:
        style = "green" if each.state is State.DONE else "yellow" if each.ok else "red"
        numbers = (each.added, each.changed, each.removed, each.unchanged, each.held_back)
        state = each.state.value.replace("_", " ")
        table.add_row(
            escape(each.tenant),
            f"[{style}]{state}[/{style}]",
            *map(str, numbers),
            escape(printable(each.why or "")),
        )
    if rows:
        console.print(table)
    click.echo(_summed(report))


def _summed(report: Report) -> str:
    total = len(report.tenants)
    dry = " (nothing was written)" if any(each.dry_run for each in report.tenants) else ""
    states = ", ".join(
        f"{count} {state.replace('_', ' ')}" for state, count in sorted(report.counts.items())
    )
    people: Mapping[str, int] = {
        name: sum(getattr(each, name) for each in report.tenants)
        for name in ("added", "changed", "removed", "unchanged")
    }
    told = ", ".join(f"{count} {name}" for name, count in people.items())
    return f"{total} {'tenant' if total == 1 else 'tenants'}: {states}; people: {told}{dry}"
