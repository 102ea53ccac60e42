"""`tenantsync reconcile`: makes every tenant's mirror say what AuthVital's list says."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final, Self

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tenantsync.app import TenantSync
from tenantsync.authvital.memberships import TenantMemberships
from tenantsync.cli.context import Context, config_option, failing, hooks_option, pass_context
from tenantsync.cli.inbox_tables import printable
from tenantsync.config.check import identity
from tenantsync.errors import ConfigError
from tenantsync.migrate.control import upgrade_control
from tenantsync.sync.drift import Difference, Report, State, TenantReport
from tenantsync.sync.reconcile import Lists, Stopped
from tenantsync.sync.reconciling import client_of, reconciler_of
from tenantsync.tenants import Tenant

__all__ = ["reconcile"]

_FEW: Final = 50  # so many tenants that are well are shown one by one
_WIDTH_OF_A_FILE: Final = 1000  # a line in a log is not folded at some terminal's width
_COLUMNS: Final = ("tenant", "state", "added", "changed", "removed", "unchanged", "refused", "why")
_SHOWN: Final = frozenset({"membership_status", "app_role"})
"""Columns whose values a dry run prints; of the others, which are personal, only their names."""
_SHOW_CURSOR: Final = b"\x1b[?25h\n"


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
    found = _Found() if dry_run and as_json else None
    with failing():
        tenants = _chosen(sync, wanted)
        if not dry_run:
            upgrade_control(sync.control)
        with (
            client_of(sync.settings) as client,
            reconciler_of(
                sync,
                lists=_ListsInService(client, sync, tenants),
                prepare=partial(upgrade_control, sync.control),
            ) as reconciler,
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
                on_difference=found or (_differ if dry_run else None),
                stopping=stopping,
            )
    if as_json:
        _print(report, found)
    else:
        _show(report)
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


class _ListsInService:
    """The provider's lists, for tenants that are where they were when the run began.

    A run may take hours, and each tenant is looked up anew when its turn comes.

    Args:
        lists: The provider's.
        sync: Looks tenants up.
        tenants: As they were when the run began.
    """

    def __init__(self, lists: Lists, sync: TenantSync, tenants: Sequence[Tenant]) -> None:
        self._lists = lists
        self._sync = sync
        self._begun = {tenant.id: tenant.placement for tenant in tenants}

    def tenant_memberships(self, tenant_id: str) -> TenantMemberships:
        """Return every membership of a tenant.

        Raises:
            Stopped: The tenant is to be left alone by now.
        """
        self._sync.directory.forget()
        tenant = self._sync.resolver.find_blocking(tenant_id)
        if tenant is None:
            raise Stopped("the tenant is not in service any more")
        if tenant.suspended:
            raise Stopped("the tenant is suspended")
        now, then = tenant.placement, self._begun[tenant_id]
        # Not the whole placement: a password may have changed, which makes no other place of it.
        if identity(now.url, now.schema) != identity(then.url, then.schema):
            raise Stopped("the tenant was moved to another place: run this again")
        return self._lists.tenant_memberships(tenant_id)


@contextmanager
def _ending(stopping: threading.Event) -> Iterator[None]:
    """End at the next portion when interrupted, and at once the second time."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        for number in before:
            signal.signal(number, _end_at_once)
        stopping.set()
        # Past Python's buffers: the signal may have come while somebody was writing to them.
        os.write(2, b"stopping after what is under way (once more: at once)\n")

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


def _end_at_once(number: int, _: object) -> None:
    # Not by an exception: on its way out, Python waits for the threads, and they for AuthVital.
    if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


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
            # Lines on the same terminal go above the bar; those for a file go there.
            redirect_stdout=sys.stdout.isatty(),
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


class _Found:
    """Keeps the differences that a dry run finds, without what is personal in them."""

    def __init__(self) -> None:
        self._tenants: dict[str, list[dict[str, object]]] = {}
        # Few are unlike each other once names and addresses are left out, and there may be as many
        # differences as people.
        self._alike: dict[str, dict[str, object]] = {}

    def __call__(self, tenant: str, difference: Difference) -> None:
        """Keep one; from any thread, but those of one tenant from one at a time."""
        columns = {name: _values(name, each) for name, each in difference.columns.items()}
        self._tenants.setdefault(tenant, []).append(
            {
                "tenant": tenant,
                "what": difference.what,
                "sub": difference.sub,
                "columns": self._alike.setdefault(repr(columns), columns),
            }
        )

    def of(self, report: Report) -> list[dict[str, object]]:
        """Return them all, in the order of the tenants."""
        return [found for each in report.tenants for found in self._tenants.get(each.tenant, ())]


def _values(name: str, values: tuple[Any, Any]) -> object:
    if name not in _SHOWN:
        return None
    before, after = (None if value is None else str(value) for value in values)
    return {"before": before, "after": after}


def _differ(tenant: str, difference: Difference) -> None:
    told = ", ".join(_told(name, each) for name, each in difference.columns.items())
    line = f"{tenant}  {difference.what:<7}  {printable(difference.sub)}  {told}".rstrip()
    click.echo(line, file=sys.stdout)  # named, or click would go past the bar


def _told(name: str, values: tuple[object, object]) -> str:
    if name not in _SHOWN:
        return name
    before, after = ("-" if value is None else printable(str(value)) for value in values)
    return f"{name} {before} -> {after}"


def _print(report: Report, found: _Found | None) -> None:
    document: dict[str, object] = {
        "ok": report.ok,
        "counts": dict(report.counts),
        "tenants": [asdict(each) for each in report.tenants],
    }
    if found is not None:
        document["differences"] = found.of(report)
    json.dump(document, sys.stdout, indent=2)  # piece by piece: there may be many differences
    click.echo(file=sys.stdout)


def _show(report: Report) -> None:
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
