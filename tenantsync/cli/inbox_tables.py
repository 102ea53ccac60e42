"""How events and lanes of the inbox are shown: as tables for people, as documents for programs."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tenantsync.control.inbox import Entry, LaneInfo, State
from tenantsync.doctor.books import ago

__all__ = ["entry_document", "printable", "show_entries", "show_entry", "show_lanes"]

_WIDTH_OF_A_FILE: Final = 1000  # a line in a log is not folded at some terminal's width
_STYLES: Final = {
    State.PARKED: "yellow",
    State.QUARANTINED: "red",
    State.APPLIED: "green",
    State.DISCARDED: "dim",
}


def printable(text: str) -> str:
    """Return a text of somebody else's without anything that a terminal obeys."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def show_entries(
    entries: Sequence[Entry], keys: Mapping[str, str], *, more: bool, as_json: bool
) -> None:
    """Print a list of events.

    Args:
        entries: The events.
        keys: The keys of tenants by id.
        more: Whether there are more than these.
        as_json: Print a document instead.
    """
    if as_json:
        documents = [entry_document(entry, keys.get(entry.tenant_id)) for entry in entries]
        click.echo(json.dumps({"events": documents, "more": more}, indent=2))
        return
    console, table = _console(), Table.grid(padding=(0, 2))
    for entry in entries:
        style = _STYLES[entry.state]
        table.add_row(
            str(entry.number),
            _name(entry.tenant_id, keys),
            escape(printable(entry.type)) or "-",
            f"[{style}]{entry.state}[/{style}]",
            f"{ago(entry.age)} ago",
            escape(printable(_why(entry))),
        )
    if entries:
        console.print(table)
    count = "1 event" if len(entries) == 1 else f"{len(entries)} events"
    console.print(f"{count}, and there are more: see --limit" if more else count)


def show_lanes(lanes: Sequence[LaneInfo], keys: Mapping[str, str], *, as_json: bool) -> None:
    """Print how many events each tenant has.

    Args:
        lanes: The lanes.
        keys: The keys of tenants by id.
        as_json: Print a document instead.
    """
    if as_json:
        documents = [_lane_document(lane, keys.get(lane.tenant_id)) for lane in lanes]
        click.echo(json.dumps({"lanes": documents}, indent=2))
        return
    console, table = _console(), Table.grid(padding=(0, 2))
    for lane in lanes:
        table.add_row(
            _name(lane.tenant_id, keys),
            f"{lane.waiting} parked",
            f"{lane.quarantined} quarantined",
            "-" if lane.oldest is None else f"oldest {ago(lane.oldest)}",
            escape(printable(_state_of(lane))),
            escape(printable(lane.error or "")),
        )
    if lanes:
        console.print(table)
    console.print("1 tenant" if len(lanes) == 1 else f"{len(lanes)} tenants")


def show_entry(entry: Entry, key: str | None, *, with_body: bool) -> None:
    """Print one event.

    Args:
        entry: The event.
        key: Its tenant's key, if it has one.
        with_body: Print the body too.
    """
    document = entry_document(entry, key, with_body=False)
    width = max(map(len, document))
    for name, value in document.items():
        if value is not None:
            click.echo(f"{name:<{width}}  {printable(str(value))}")
    if with_body:
        click.echo()
        told = "(erased)" if entry.body is None else entry.body.decode("utf-8", "replace")
        click.echo("\n".join(printable(line) for line in told.splitlines()))


def entry_document(entry: Entry, key: str | None, *, with_body: bool = False) -> dict[str, Any]:
    """Return an event as JSON has it.

    Args:
        entry: The event.
        key: Its tenant's key, if it has one.
        with_body: Whether the body is in it: as text, or in base64 where it is none.
    """
    document: dict[str, Any] = {
        "id": entry.number,
        "tenant": key,
        "tenant_id": entry.tenant_id,
        "event_id": entry.event_id,
        "type": entry.type,
        "subject": entry.subject,
        "timestamp": _moment(entry.timestamp),
        "door": entry.door,
        "received_at": entry.received_at.isoformat(),
        "age": round(entry.age, 3),
        "state": entry.state.value,
        "reason": entry.reason,
        "attempts": entry.attempts,
        "error": entry.error,
        "due_at": entry.due_at.isoformat() if entry.state is State.PARKED else None,
        "settled_at": None if entry.settled_at is None else entry.settled_at.isoformat(),
        "outcome": entry.outcome,
        "size": entry.size,
        "digest": entry.digest,
    }
    if with_body:
        document |= _body_document(entry.body)
    return document


def _body_document(body: bytes | None) -> dict[str, str | None]:
    if body is None:
        return {"body": None}
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}


def _lane_document(lane: LaneInfo, key: str | None) -> dict[str, Any]:
    return {
        "tenant": key,
        "tenant_id": lane.tenant_id,
        "known": lane.known,
        "waiting": lane.waiting,
        "quarantined": lane.quarantined,
        "bytes": lane.bytes,
        "oldest": None if lane.oldest is None else round(lane.oldest, 3),
        "attempts": lane.attempts,
        "error": lane.error,
        "since": None if lane.since is None else lane.since.isoformat(),
        "due_at": None if lane.due_at is None else lane.due_at.isoformat(),
        "held_by": lane.held_by,
    }


def _state_of(lane: LaneInfo) -> str:
    if lane.held_by is not None:
        return f"held by {lane.held_by}"
    if not lane.waiting:
        return ""
    if not (lane.known or lane.announced):
        return "nobody registered this tenant"
    if lane.attempts:
        times = "once" if lane.attempts == 1 else f"{lane.attempts} times in a row"
        return f"failed {times}"
    return "due" if lane.due_at is not None else "sleeps"


def _why(entry: Entry) -> str:
    match entry.state:
        case State.APPLIED:
            return entry.outcome or ""
        case State.DISCARDED:
            return "by an operator"
        case _:
            tried = f", tried {entry.attempts} times" if entry.attempts else ""
            return f"{entry.error or entry.reason}{tried}"


def _name(tenant_id: str, keys: Mapping[str, str]) -> str:
    key = keys.get(tenant_id)
    return key if key is not None else escape(printable(tenant_id)) or "-"


def _moment(milliseconds: int) -> str:
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{milliseconds} ms"


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_OF_A_FILE)
