"""How the fleet's commands show what they do, and what became of the tenants."""

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from tenantsync.migrate import Report, Row, State
from tenantsync.tenants import Tenant

__all__ = ["Screen"]

_FEW: Final = 50  # so many tenants are shown one by one
_WIDTH_OF_A_FILE: Final = 1000  # a line in a log is not folded at some terminal's width


class _Rate(ProgressColumn):
    """How many tenants a second."""

    def render(self, task: Task) -> Text:
        """Return the rate of the last moments."""
        return Text("" if task.speed is None else f"{task.speed:.0f}/s")


class Screen:
    """Shows one run: a bar on a terminal, a line for each tenant elsewhere, or JSON at the end.

    Args:
        tenants: All tenants of the run.
        as_json: Print one JSON document and nothing else.
    """

    def __init__(self, tenants: Sequence[Tenant], *, as_json: bool) -> None:
        self._total = len(tenants)
        self._as_json = as_json
        self._console = Console(highlight=False)
        self._plain = not self._console.is_terminal
        if self._plain:
            self._console = Console(highlight=False, width=_WIDTH_OF_A_FILE)
        self._width = max((len(tenant.key) for tenant in tenants), default=0)
        self._revisions: Counter[str] = Counter()

    @property
    def keeps_rows(self) -> bool:
        """Whether it wants the report to have a row for each tenant."""
        return self._as_json or (not self._plain and self._total <= _FEW)

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[Row, int, int], None]]:
        """Show what comes in as it comes in.

        Args:
            what: What is being done, in a word.
        """
        errors = Console(stderr=True)
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        )
        with bar:
            task = bar.add_task(what, total=self._total)
            failed = 0

            def note(row: Row, done: int, _: int) -> None:
                nonlocal failed
                failed += not row.ok
                self._revisions[row.after or "-"] += 1
                if self._plain and not self._as_json:
                    click.echo(self._line(row))
                told = f"{what}, {failed} failed" if failed else what
                bar.update(task, completed=done, description=told)

            yield note

    def show(self, report: Report, *, retry: Sequence[str] | None = None) -> None:
        """Print the report, and exit with 1 unless all is well.

        Args:
            report: What became of the tenants.
            retry: The command that did this; with the keys of those that failed it is offered.
        """
        if self._as_json:
            document = {
                "ok": report.ok,
                "heads": report.heads,
                "counts": report.counts,
                "left": report.left,
                "stopped": report.stopped,
                "tenants": [asdict(row) for row in report.rows],
            }
            click.echo(json.dumps(document, indent=2))
        else:
            self._show_rows(report)
            self._show_sums(report, retry)
        if not report.ok:
            raise click.exceptions.Exit(1)

    def _show_rows(self, report: Report) -> None:
        if self._plain:
            # Each had its line already. The failures are repeated where thousands came between.
            rows = [row for row in report.rows if not row.ok] if self._total > _FEW else []
            for row in rows:
                click.echo(self._line(row))
            return
        table = Table.grid(padding=(0, 2))
        for row in report.rows:
            style = "green" if row.ok else "red"
            table.add_row(
                escape(row.tenant),
                f"[{style}]{_state(row)}[/{style}]",
                escape(_revisions(row)),
                f"{row.seconds:.2f}s",
                escape(row.error or ""),
            )
        if report.rows:
            self._console.print(table)

    def _show_sums(self, report: Report, retry: Sequence[str] | None) -> None:
        counts = [f"{count} {state}" for state, count in report.counts.items()]
        if report.left:
            counts.append(f"{report.left} not begun")
        told = ", ".join(counts)
        total = f"{self._total} {'tenant' if self._total == 1 else 'tenants'}"
        if len(self._revisions) > 1:
            for revision, count in self._revisions.most_common():
                click.echo(f"{count} at {revision}")
        if report.stopped is not None:
            click.echo(f"The run was stopped: {report.stopped}.")
        click.echo(f"{total}{': ' if told else ''}{told}")
        failed = [row.tenant for row in report.rows if not row.ok]
        if retry is not None and failed:
            chosen = [part for key in failed for part in ("--tenant", key)]
            click.echo(f"To try again: {shlex.join([*retry, *chosen])}")

    def _line(self, row: Row) -> str:
        parts = (
            f"{row.tenant:<{self._width}}  {_state(row):<{_STATE_WIDTH}}",
            _revisions(row),
            f"{row.seconds:.2f}s",
            row.error or "",
        )
        return "  ".join(parts).rstrip()


_STATE_WIDTH: Final = max(map(len, State))


def _state(row: Row) -> str:
    return row.state if row.ok else row.state.upper()


def _revisions(row: Row) -> str:
    if row.before == row.after:
        return row.after or "-"
    return f"{row.before or '-'} -> {row.after or '-'}"
