"""`tenantsync worker`: applies what waits in the inbox, beside or instead of the servers."""

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import click

from tenantsync.cli.context import Context, config_option, failing, hooks_option, pass_context
from tenantsync.cli.serve import log_to_stderr
from tenantsync.control.database import ControlMissing, ControlUnavailable
from tenantsync.migrate.control import upgrade_control
from tenantsync.worker.seams import Drained

__all__ = ["worker"]

_THREADS: Final = 2


@click.command()
@click.option("--threads", type=click.IntRange(1, 64), default=_THREADS, show_default=True,
              help="How many tenants are drained at once.")  # fmt: skip
@click.option("--once", is_flag=True, help="Drain what is due now, and end.")
@hooks_option
@config_option
@pass_context
def worker(context: Context, threads: int, once: bool, hooks: str | None) -> None:
    """Apply what waits in the inbox, and reconcile on schedule, until interrupted.

    Any number of them may run, on any machines, where the control database is PostgreSQL. SIGTERM
    or Ctrl-C finishes what is in flight and gives the leases back. With --once it exits with 1 if
    something stayed parked that should not have.
    """
    sync = context.applying(with_hooks=hooks is None)
    log_to_stderr()
    working = sync.worker(threads=threads, with_hooks=hooks is None)
    if not once:
        with suppress(ControlUnavailable):  # the worker says so, and goes on asking
            upgrade_control(sync.control)
        schedule = sync.schedule(with_hooks=hooks is None)
        stop = threading.Event()
        _on_signals(stop.set)
        if schedule is not None:
            schedule.start()
        click.echo("worker started (Ctrl-C ends it)")
        ended = working.run(stop)
        if schedule is not None:
            ended = schedule.stop() and ended
        click.echo("worker stopped" if ended else "worker stopped in the middle of something")
        if not ended:
            raise click.exceptions.Exit(1)
        return
    _on_signals(lambda: working.stop(timeout=0))
    drained = Drained()
    with failing():
        try:
            drained = working.drain_due()
            lanes = sync.inbox.lanes()
            stayed = sum(lane.waiting for lane in lanes if lane.known or lane.announced)
        except ControlMissing:
            stayed = 0  # nothing was ever put into it
    click.echo(_told(drained, stayed))
    if stayed:
        raise click.exceptions.Exit(1)


def _on_signals(end: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end())


def _told(drained: Drained, stayed: int) -> str:
    parts = [f"{count} {outcome}" for outcome, count in drained.settled.items()]
    if drained.quarantined:
        parts.append(f"{drained.quarantined} quarantined")
    if stayed:
        parts.append(f"{stayed} still parked: see `tenantsync inbox list --lanes`")
    return ", ".join(parts) or "nothing to do"
