"""`tenantsync inbox`: what waits to be applied, what was given up on, and what to do with it."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Final, TypedDict, TypeVar, Unpack

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tenantsync.app import TenantSync
from tenantsync.cli.context import Context, config_option, failing, hooks_option, pass_context
from tenantsync.cli.durations import Duration
from tenantsync.cli.inbox_tables import (
    entry_document,
    printable,
    show_entries,
    show_entry,
    show_lanes,
)
from tenantsync.control.database import ControlMissing
from tenantsync.control.inbox import Entry, Filters, LaneInfo, State
from tenantsync.worker.loop import Worker
from tenantsync.worker.seams import Drained

__all__ = ["inbox"]

_OPEN: Final = (State.PARKED, State.QUARANTINED)
_MANY: Final = 1000
_F = TypeVar("_F", bound=Callable[..., object])


@click.group()
def inbox() -> None:
    """See and settle events that were accepted and are not applied yet."""


class _Wanted(TypedDict):
    """The options that say which events."""

    tenant: str | None
    type: str | None
    state: str | None
    older_than: float | None


def _wanted_options(states: Iterable[State]) -> Callable[[_F], _F]:
    options = (
        click.option("--tenant", metavar="KEY|ID",
                     help="Only of this tenant; '' for those whose tenant cannot be read."),
        click.option("--type", metavar="TYPE",
                     help="Only of this type, such as member.joined or 'member.*'."),
        click.option("--state", type=click.Choice([state.value for state in states]),
                     help="Only in this state."),
        click.option("--older-than", type=Duration(),
                     help="Only what came longer ago than that: 90s, 15m, 2h or 3d."),
    )  # fmt: skip

    def add(command: _F) -> _F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_numbers = click.argument("numbers", metavar="[ID]...", nargs=-1, type=click.IntRange(1))
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@inbox.command("list")
@_wanted_options(State)
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True,
              help="How many at most.")  # fmt: skip
@click.option("--lanes", "by_lanes", is_flag=True, help="One line for each tenant instead.")
@_json_option
@config_option
@pass_context
def list_(
    context: Context, limit: int, by_lanes: bool, as_json: bool, **wanted: Unpack[_Wanted]
) -> None:
    """List events in the inbox, the oldest first; or, with --lanes, how many each tenant has."""
    if by_lanes and (wanted["type"] or wanted["state"] or wanted["older_than"] is not None):
        raise click.UsageError("--lanes goes with --tenant only")
    sync = context.sync()
    lanes: Sequence[LaneInfo] = ()
    entries: Sequence[Entry] = ()
    with failing():
        keys = _keys(sync)
        try:
            filters = _filters(sync, keys, wanted)
            if by_lanes:
                lanes = _lanes(sync, filters)
            else:
                entries = sync.inbox.list(**filters, limit=limit + 1)
        except ControlMissing:
            pass  # nothing was ever put into it
    if by_lanes:
        show_lanes(lanes, keys, as_json=as_json)
    else:
        show_entries(entries[:limit], keys, more=len(entries) > limit, as_json=as_json)


@inbox.command()
@click.argument("number", metavar="ID", type=click.IntRange(1))
@click.option("--body", "with_body", is_flag=True,
              help="Print its body too, which holds personal data.")  # fmt: skip
@_json_option
@config_option
@pass_context
def show(context: Context, number: int, with_body: bool, as_json: bool) -> None:
    """Show one event of the inbox: what became of it, and why."""
    sync = context.sync()
    with failing():
        entry = _found(sync, number)
        keys = _keys(sync)
    if as_json:
        document = entry_document(entry, keys.get(entry.tenant_id), with_body=with_body)
        click.echo(json.dumps(document, indent=2))
    else:
        show_entry(entry, keys.get(entry.tenant_id), with_body=with_body)


@inbox.command()
@_numbers
@_wanted_options(_OPEN)
@_json_option
@hooks_option
@config_option
@pass_context
def retry(
    context: Context,
    numbers: tuple[int, ...],
    as_json: bool,
    hooks: str | None,
    **wanted: Unpack[_Wanted],
) -> None:
    """Put events back, out of quarantine too, and apply them now.

    Those with these IDs, or those that the options say, or all. Exits with 1 if one of them is not
    applied afterwards.
    """
    _refuse_both(numbers, wanted)
    sync = context.applying(with_hooks=hooks is None)
    with failing():
        keys = _keys(sync)
        try:
            if numbers:
                filters = Filters(numbers=numbers)
                tenant_ids = {_found(sync, number).tenant_id for number in numbers}
            else:
                filters = _filters(sync, keys, wanted)
                tenant_ids = _touched(sync, filters)
            count = sync.inbox.retry(**filters)
            lanes = {lane.tenant_id: lane for lane in sync.inbox.lanes()}
            # What nobody registered cannot be applied, whatever is tried.
            worth = [
                each
                for each in sorted(tenant_ids)
                if each in lanes and (lanes[each].known or lanes[each].announced)
            ]
            worker = sync.worker(threads=1, with_hooks=hooks is None)
            results = _drained(worker, worth, quiet=as_json)
            lanes = {lane.tenant_id: lane for lane in sync.inbox.lanes()}
        except ControlMissing:
            count, tenant_ids, lanes, results = 0, set(), {}, {}
    rows = [
        _result(tenant_id, keys.get(tenant_id), results.get(tenant_id), lanes.get(tenant_id))
        for tenant_id in sorted(tenant_ids)
    ]
    ok = all(row.ok for row in rows)
    if as_json:
        document = {"ok": ok, "put_back": count, "tenants": [asdict(row) for row in rows]}
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(f"{_events(count)} put back")
        for row in rows:
            click.echo(str(row))
    if not ok:
        raise click.exceptions.Exit(1)


@inbox.command()
@_numbers
@_wanted_options(_OPEN)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs; needs --yes.")
@config_option
@pass_context
def discard(
    context: Context, numbers: tuple[int, ...], yes: bool, as_json: bool, **wanted: Unpack[_Wanted]
) -> None:
    """Give events up for good, and erase their bodies.

    Those with these IDs, or those that the options say. The mirror then lacks what they say.
    """
    _refuse_both(numbers, wanted)
    if as_json and not yes:
        raise click.UsageError("a program cannot be asked: give --yes beside --json")
    if not numbers and all(value is None for value in wanted.values()):
        raise click.UsageError("say which: give IDs, or --tenant, --type, --state, --older-than")
    sync = context.sync()
    count = 0
    with failing():
        try:
            filters = Filters(numbers=numbers) if numbers else _filters(sync, _keys(sync), wanted)
            for number in numbers:
                _found(sync, number)
            found = len(list(islice(_open_ones(sync, filters), _MANY)))
            if found and not yes:
                _confirm(found)
            if found:
                count = sync.inbox.discard(**filters)
        except ControlMissing:
            pass  # nothing was ever put into it
    click.echo(json.dumps({"discarded": count}) if as_json else f"{_events(count)} discarded")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """What became of one tenant's lane.

    Args:
        tenant: The tenant's key, if it has one.
        tenant_id: Its id; empty where none could be read.
        settled: How many events the tenant has now, by outcome.
        waiting: How many are still parked.
        quarantined: How many were given up on.
        error: What is in the way, or None.
        held_by: The other worker that has the lane now, or None.
    """

    tenant: str | None
    tenant_id: str
    settled: dict[str, int]
    waiting: int
    quarantined: int
    error: str | None
    held_by: str | None

    @property
    def ok(self) -> bool:
        """Whether nothing is left; whoever has the lane goes on with it, which is no failure."""
        return self.held_by is not None or not (self.error or self.waiting or self.quarantined)

    def __str__(self) -> str:
        """A line for people."""
        parts = [f"{count} {outcome}" for outcome, count in self.settled.items()]
        if self.waiting:
            parts.append(f"{self.waiting} still parked")
        if self.quarantined:
            parts.append(f"{self.quarantined} quarantined")
        if self.held_by:
            parts.append(f"{self.held_by} is at it now")
        name = self.tenant or printable(self.tenant_id) or "-"
        error = f": {printable(self.error)}" if self.error else ""
        return f"{name}  {', '.join(parts) or 'nothing to do'}{error}"


def _result(
    tenant_id: str, key: str | None, drained: Drained | None, lane: LaneInfo | None
) -> _Result:
    waiting = 0 if lane is None else lane.waiting
    given_up = 0 if drained is None else drained.quarantined
    error = None
    if not tenant_id:
        given_up = 0 if lane is None else lane.quarantined
        error = "what cannot be read cannot be applied"
    elif lane is not None and not (lane.known or lane.announced):
        error = "nobody registered this tenant: `tenantsync tenants add KEY --id ID`"
    elif waiting or given_up:
        error = (None if lane is None else lane.error) or (drained and drained.error) or None
    return _Result(
        tenant=key,
        tenant_id=tenant_id,
        settled={} if drained is None else dict(drained.settled),
        waiting=waiting,
        quarantined=given_up,
        error=error,
        held_by=lane.held_by if lane is not None and waiting else None,
    )


def _drained(worker: Worker, tenant_ids: Sequence[str], *, quiet: bool) -> dict[str, Drained]:
    """Drain lanes until nothing of them is left to do now, and say so meanwhile."""
    errors = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=errors,
        transient=True,
        disable=quiet or not errors.is_terminal,
    )
    applied = done = 0
    with bar:
        task = bar.add_task("draining", total=len(tenant_ids))

        def told(_: str, drained: Drained) -> None:
            nonlocal applied, done
            applied += drained.settled.total()
            done += 1
            bar.update(task, completed=done, description=f"draining, {_events(applied)} done")

        return worker.drain_now(tenant_ids, told=told)


def _filters(sync: TenantSync, keys: dict[str, str], wanted: _Wanted) -> Filters:
    return Filters(
        tenant_id=None if wanted["tenant"] is None else _tenant_id(sync, keys, wanted["tenant"]),
        type=wanted["type"],
        state=None if wanted["state"] is None else State(wanted["state"]),
        older_than=wanted["older_than"],
    )


def _tenant_id(sync: TenantSync, keys: dict[str, str], told: str) -> str:
    """Return the id of the tenant that a key, or an id, names."""
    by_key = {key: tenant_id for tenant_id, key in keys.items()}
    if told in by_key:
        return by_key[told]
    # A typing error must not look like an empty inbox.
    if told and told not in keys and not sync.inbox.list(tenant_id=told, limit=1):
        raise click.UsageError(
            f"no tenant has the key or the id {told!r}, and nothing in the inbox is of it"
        )
    return told


def _keys(sync: TenantSync) -> dict[str, str]:
    """Return the keys of all tenants that anybody knows, by id."""
    listed = {line.id: line.key for line in sync.directory.lines()}
    return {tenant.id: tenant.key for tenant in sync.tenants} | listed


def _found(sync: TenantSync, number: int) -> Entry:
    try:
        entry = sync.inbox.show(number)
    except ControlMissing:
        entry = None
    if entry is None:
        raise click.UsageError(f"there is no event {number} in the inbox")
    return entry


def _lanes(sync: TenantSync, filters: Filters) -> list[LaneInfo]:
    chosen = filters.get("tenant_id")
    return [lane for lane in sync.inbox.lanes() if chosen in (None, lane.tenant_id)]


def _touched(sync: TenantSync, filters: Filters) -> set[str]:
    """Return the ids of the tenants that have an event which the filters mean."""
    if filters.get("type") or filters.get("older_than") is not None:
        return {entry.tenant_id for entry in _open_ones(sync, filters)}
    state = filters.get("state")
    return {
        lane.tenant_id
        for lane in _lanes(sync, filters)
        if (state is not State.QUARANTINED and lane.waiting)
        or (state is not State.PARKED and lane.quarantined)
    }


def _open_ones(sync: TenantSync, filters: Filters) -> Iterator[Entry]:
    """Yield the events that the filters mean, of those that may be retried or discarded."""
    state = filters.get("state")
    for each in _OPEN if state is None else (state,):
        after = 0
        while some := sync.inbox.list(limit=_MANY, after=after, **(filters | Filters(state=each))):
            yield from some
            after = some[-1].number


def _confirm(count: int) -> None:
    told = f"{_MANY} events or more" if count >= _MANY else _events(count)
    if not click.confirm(f"{told} will never be applied, and the bodies are erased. Go on?"):
        raise click.UsageError("nothing was done")


def _refuse_both(numbers: Sequence[int], wanted: _Wanted) -> None:
    if numbers and any(value is not None for value in wanted.values()):
        raise click.UsageError("give IDs, or options that say which events, but not both")


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count} events"
