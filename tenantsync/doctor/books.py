"""Looks at tenantsync's own books: the control database, and the lanes of the inbox."""

import stat
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tenantsync.control.database import ControlDatabase, ControlMissing, ControlUnavailable
from tenantsync.control.inbox import Inbox, LaneInfo
from tenantsync.doctor.report import Finding, Level, Note
from tenantsync.migrate.control import control_standing

__all__ = ["Books", "ago", "examine_books", "lane_notes"]

_SHOWN: Final = 5
_SLOW: Final = 300.0  # seconds after which somebody should look why an event still waits
_LATE: Final = 86_400.0
_UNITS: Final = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
_RETRIES: Final = (
    "repair what it says; the worker tries again by itself, and `tenantsync inbox retry --tenant "
    "{key}` at once"
)


@dataclass(frozen=True, slots=True)
class Books:
    """What was found in the control database.

    Args:
        findings: What concerns all tenants.
        lanes: The lanes by tenant id; empty where they cannot be read.
    """

    findings: tuple[Finding, ...]
    lanes: dict[str, LaneInfo] = field(default_factory=dict)


def examine_books(database: ControlDatabase, inbox: Inbox, listed: Container[str]) -> Books:
    """Return what was found in the control database.

    Args:
        database: The control database.
        inbox: The inbox in it.
        listed: Ids of the tenants whose lanes are looked at with them.
    """
    try:
        found = [_standing(database), *_permissions(database)]
        lanes = {lane.tenant_id: lane for lane in inbox.lanes()}
    except ControlMissing:
        return Books(
            (
                Finding(
                    "control",
                    Level.OK,
                    "the control database was not made yet: it is, when it is first needed",
                ),
            )
        )
    except ControlUnavailable as error:
        return Books(
            (
                Finding(
                    "control",
                    Level.ERROR,
                    str(error),
                    "look whether [control] url is right and its server runs; until then nothing "
                    "can be parked, and what cannot be applied at once is answered 503",
                ),
            )
        )
    return Books((*found, *_strangers(lanes.values(), listed)), lanes)


def lane_notes(lane: LaneInfo, key: str, *, suspended: bool) -> list[Note]:
    """Return what is to be said of a tenant's lane.

    Args:
        lane: The lane.
        key: The tenant's key.
        suspended: Whether its events are meant to wait.
    """
    notes = []
    if lane.waiting:
        level = Level.OK if suspended else _level(lane)
        oldest = "" if lane.oldest is None else f", the oldest for {ago(lane.oldest)}"
        error = "" if lane.error is None or suspended else f"; it says: {lane.error}"
        notes.append(
            Note(
                level,
                f"{_count(lane.waiting)} in the inbox{oldest}{error}",
                None if level is Level.OK else _RETRIES.format(key=key),
            )
        )
    if lane.quarantined:
        notes.append(
            Note(
                Level.WARNING,
                f"{_count(lane.quarantined)} in quarantine: tried in vain, or not readable",
                f"`tenantsync inbox list --tenant {key} --state quarantined` says why; repair "
                "that, then `inbox retry`, or `inbox discard` what nobody wants",
            )
        )
    return notes


def ago(seconds: float) -> str:
    """Return a length of time in its largest unit, such as `3 h`."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "less than 1 s"


def _standing(database: ControlDatabase) -> Finding:
    current, head = control_standing(database)
    place = str(database.placement)
    if current == head:
        return Finding("control", Level.OK, f"the control database is at {head}: {place}")
    if current is None:
        raise ControlMissing("the control database has no tables yet")
    return Finding(
        "control",
        Level.WARNING,
        f"the control database is at {current}, and the newest revision is {head}",
        "start a server or a worker of this version: that migrates it",
    )


def _permissions(database: ControlDatabase) -> list[Finding]:
    if database.placement.is_postgres:
        return []
    file = Path(str(database.placement.url.database))
    try:
        mode = file.stat().st_mode
    except OSError:
        return []
    if not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return []
    return [
        Finding(
            "control",
            Level.WARNING,
            f"others than its owner may open {file.name}: it may hold URLs with passwords, and "
            "events",
            f"chmod 600 {file}",
        )
    ]


def _strangers(lanes: Iterable[LaneInfo], listed: Container[str]) -> list[Finding]:
    """Return what is to be said of lanes that belong to none of the tenants that are listed."""
    strange = [lane for lane in lanes if lane.tenant_id not in listed]
    found = [
        Finding("inbox", note.level, f"tenant id {lane.tenant_id!r}: {note.what}", note.remedy)
        for lane in strange
        if (lane.known or lane.announced) and lane.tenant_id
        for note in lane_notes(lane, lane.tenant_id, suspended=False)
    ]
    unreadable = sum(lane.quarantined for lane in strange if not lane.tenant_id)
    if unreadable:
        found.append(
            Finding(
                "inbox",
                Level.WARNING,
                f"{_count(unreadable)} in quarantine that could not be read",
                "`tenantsync inbox list --tenant '' --state quarantined` lists them",
            )
        )
    unknown = [one for one in strange if one.tenant_id and not (one.known or one.announced)]
    if unknown:
        waiting = sum(lane.waiting + lane.quarantined for lane in unknown)
        ids = [repr(lane.tenant_id) for lane in unknown[:_SHOWN]]
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        found.append(
            Finding(
                "inbox",
                Level.WARNING,
                f"{_count(waiting)} in the inbox of tenants that nobody registered: "
                f"{', '.join(ids)}{more}",
                "add those that are yours with `tenantsync tenants add KEY --id ID`; anybody can "
                "sign up at the provider",
            )
        )
    return found


def _level(lane: LaneInfo) -> Level:
    oldest = lane.oldest or 0.0
    if oldest > _LATE:
        return Level.ERROR
    return Level.WARNING if lane.error is not None or oldest > _SLOW else Level.OK


def _count(events: int) -> str:
    return "1 event is" if events == 1 else f"{events} events are"
