"""`tenantsync doctor`: what is wrong, and what to do."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tenantsync.cli.context import Context, config_option, pass_context
from tenantsync.cli.inbox_tables import printable
from tenantsync.doctor import Finding, Level, Report, examine
from tenantsync.errors import ConfigError

__all__ = ["doctor"]

_FEW: Final = 20  # so many tenants that are well are shown one by one
_COLOURS: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}
_WORDS: Final = {Level.OK: "ok", Level.WARNING: "WARNING", Level.ERROR: "ERROR"}


@click.command()
@click.option("--tenant", "wanted", multiple=True, metavar="KEY",
              help="Only this tenant, or those that match a pattern such as 'eu_*'; may be "
              "repeated.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 64), default=4, show_default=True,
              help="How many databases are looked at at once.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@config_option
@pass_context
def doctor(context: Context, wanted: tuple[str, ...], jobs: int, as_json: bool) -> None:
    """Look at everything that is needed: say what is wrong, and what to do.

    The configuration, AuthVital's keys and its clock, the control database, and of every tenant its
    database, tables, isolation and inbox. Changes nothing. Exits with 1 if there is an error.
    """
    sync = context.sync()
    try:
        with _progress(quiet=as_json) as note:
            report = examine(sync, tenants=wanted, jobs=jobs, on_progress=note)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        document = {
            "ok": report.ok,
            "counts": {level.value: report.counts[level] for level in Level},
            "findings": [asdict(finding) for finding in report.findings],
        }
        click.echo(json.dumps(document, indent=2))
    else:
        _show(report)
    if not report.ok:
        raise click.exceptions.Exit(1)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    errors = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=quiet or not errors.is_terminal,
    )
    with bar:
        task = bar.add_task("looking", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(report: Report) -> None:
    levels: dict[str, set[Level]] = {}
    for finding in report.findings:
        if finding.tenant is not None:
            levels.setdefault(finding.tenant, set()).add(finding.level)
    well = sum(each == {Level.OK} for each in levels.values())
    for finding in report.findings:
        # Thousands that are well would bury the one that is not.
        if finding.tenant is None or finding.level is not Level.OK or well <= _FEW:
            _say(finding)
    if well > _FEW:
        _say(Finding("tenants", Level.OK, f"{well} of {len(levels)} tenants are well"))
    counts = report.counts
    parts = (
        _count(len(levels), "tenant") + " looked at",
        _count(counts[Level.ERROR], "error"),
        _count(counts[Level.WARNING], "warning"),
    )
    click.echo(", ".join(parts))


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _say(finding: Finding) -> None:
    level = click.style(f"{_WORDS[finding.level]:<7}", fg=_COLOURS[finding.level])
    subject = finding.subject if finding.tenant is None else f"tenant {finding.tenant}"
    click.echo(f"{level}  {subject}: {printable(finding.what)}")
    if finding.remedy is not None and finding.level is not Level.OK:
        click.echo(f"         -> {printable(finding.remedy)}")
