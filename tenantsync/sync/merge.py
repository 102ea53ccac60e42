"""What an event, or evidence, does to what is known of one person. Pure: no SQL, no clock, no I/O.

Every mirrored value is a register with a clock of its own, and the greater clock wins, whatever
arrives first. No rule may look at what arrived before: the result must be a function of the set of
facts alone, or two databases that saw them in different orders would differ for ever. The rules
stand in docs/explanation/merge-rules.md.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tenantsync.events import Dialect, Event
from tenantsync.sync.evidence import Evidence

__all__ = [
    "CLAIMS",
    "EVERY_SESSION",
    "Fact",
    "Merged",
    "Person",
    "Tombstone",
    "clock_of",
    "invert_clocks",
    "merge",
    "revert_clocks",
]

Fact = Event | Evidence
"""What can be merged: something that happened, or something that was seen to be so."""

CLAIMS: Final[Mapping[str, str]] = {
    "preferred_username": "username",
    "name": "display_name",
    "given_name": "given_name",
    "family_name": "family_name",
    "middle_name": "middle_name",
    "nickname": "nickname",
    "picture": "picture_url",
    "website": "website",
    "gender": "gender",
    "birthdate": "birthdate",
    "zoneinfo": "zoneinfo",
    "locale": "locale",
    "email": "email",
    "email_verified": "email_verified",
    "phone_number": "phone",
    "phone_number_verified": "phone_verified",
    "subject_type": "subject_type",
    "groups": "groups",
}
"""Profile claim -> column of `av_identities` (docs/reference/tables.md)."""

EVERY_SESSION: Final = 9_999_999_999_999
"""A moment, in milliseconds since 1970, before which every session was created."""

_NOT_NULL: Final[Mapping[str, Any]] = {
    "email_verified": False,
    "phone_verified": False,
    "groups": [],
}
_NAMES: Final[Mapping[str, str]] = {
    **CLAIMS,
    **{column: column for column in CLAIMS.values()},
}
_DENIALS: Final = {
    "subject.deactivated": "is_active",
    "member.suspended": "membership",
    "member.left": "membership",
    "app_access.revoked": "has_app_access",
    "tenant.app.revoked": "has_app_access",
}
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])([A-Z])")


@dataclass(frozen=True, slots=True)
class Person:
    """What is known of one person in one place.

    Args:
        values: Column of `av_identities` -> value, for every mirrored column but the id.
        clocks: Register -> clock of the write that it holds; a default has none.
        created: The least event timestamp seen, in milliseconds since 1970.
    """

    values: Mapping[str, Any]
    clocks: Mapping[str, str]
    created: int

    @classmethod
    def unknown(cls, *, default_app_access: bool) -> "Person":
        """Return the person of whom no event was seen."""
        values: dict[str, Any] = dict.fromkeys(CLAIMS.values())
        values.update(_NOT_NULL)
        values.update(
            tenant_id=None,
            membership_id=None,
            membership_status=None,
            tenant_roles=[],
            app_role=None,
            is_active=True,
            has_app_access=default_app_access,
        )
        return cls(values, {}, EVERY_SESSION)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of a deleted person: that they were deleted, and when. Final."""

    clock: str


@dataclass(frozen=True, slots=True)
class Merged:
    """What one fact did.

    Args:
        state: What is known now; the very object that was given where nothing changed.
        applied: Whether a register won, or a row or a tombstone was made.
        sessions_before: End the person's sessions created before this moment, in milliseconds
            since 1970; None leaves them alone.
    """

    state: Person | Tombstone
    applied: bool
    sessions_before: int | None = field(default=None)


def clock_of(event: Fact) -> str:
    """Return the event's clock: a string that sorts as (instant, rank, event id by bytes).

    Python orders strings by code point, which is the order of their UTF-8 bytes. On the same
    instant a denial outranks a grant: of two answers given at once, the safe one stands. Evidence
    has an id too, made of what it says.
    """
    if isinstance(event, Evidence):
        return event.clock
    rank = 1 if event.type in _DENIALS or event.type == "subject.deleted" else 0
    return f"{event.timestamp:013d}{rank}{event.id}"


def merge(
    state: Person | Tombstone | None, event: Fact, *, default_app_access: bool = True
) -> Merged:
    """Return what is known of a person after one more event.

    Args:
        state: What was known: None for a person never mentioned.
        event: A mirrored event about that person, or evidence.
        default_app_access: What `has_app_access` is until an event says something of it.
    """
    clock = clock_of(event)
    if isinstance(event, Event) and event.type == "subject.deleted":
        if isinstance(state, Tombstone) and state.clock >= clock:
            return Merged(state, applied=False)
        return Merged(Tombstone(clock), applied=True)
    if isinstance(state, Tombstone):
        return Merged(state, applied=False)

    before = state or Person.unknown(default_app_access=default_app_access)
    values: dict[str, Any] = {}
    clocks: dict[str, str] = {}
    for register, written in _writes(event):
        if clock > before.clocks.get(register, ""):
            clocks[register] = clock
            values.update(written)
    denied = _denied(event)
    sessions_before = None
    if denied is not None:
        sessions_before = EVERY_SESSION if denied in clocks else event.timestamp
    created = min(before.created, event.timestamp)
    if state is not None and not clocks and created == state.created:
        return Merged(state, applied=False, sessions_before=sessions_before)
    after = Person({**before.values, **values}, {**before.clocks, **clocks}, created)
    return Merged(after, bool(clocks) or state is None, sessions_before)


def invert_clocks(clocks: Mapping[str, str]) -> dict[str, str]:
    """Return clock -> its registers, separated by spaces: the form that a row keeps.

    One event writes several registers with one clock, which is by far the longer of the two.
    """
    inverted: dict[str, str] = {}
    for register, clock in clocks.items():
        held = inverted.get(clock)
        inverted[clock] = f"{held} {register}" if held else register
    return inverted


def revert_clocks(inverted: Mapping[str, str]) -> dict[str, str]:
    """Return register -> clock from what `invert_clocks` made."""
    return {
        register: clock for clock, registers in inverted.items() for register in registers.split()
    }


def _denied(event: Fact) -> str | None:
    """Return the register in which it denies something; None where it does not."""
    if isinstance(event, Evidence):
        return "membership" if event.denies else None
    return _DENIALS.get(event.type)


def _writes(event: Fact) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (register, columns with their values) for all that the event says.

    What the event's own row of the table says comes last, so that it stands where the payload
    carries a claim of the same name.
    """
    if isinstance(event, Evidence):
        yield from event.writes()
        return
    data = event.data
    if event.type == "subject.updated":
        yield from _updated(data)
        return
    for claim, column in CLAIMS.items():
        value = data.get(claim)
        # Missing names are absent, null or "" depending on the provider's emitting code; none of
        # the three means that the person lost their name (docs/reference/provider.md).
        if value is not None and value != "":
            yield column, {column: value}
    yield from _own_writes(event)


def _updated(data: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    named = {_column_of(name) for name in data.get("changed_fields") or ()}
    for claim, column in CLAIMS.items():
        if claim in data and (not named or column in named):
            value = data[claim]
            empty = value is None or value == ""
            yield column, {column: _NOT_NULL.get(column) if empty else value}


def _column_of(name: str) -> str | None:
    """Return the column that an entry of `changed_fields` means: snake, camel or dotted."""
    return _NAMES.get(_CAMEL.sub(r"_\1", name.rpartition(".")[2]).lower())


def _own_writes(event: Event) -> Iterator[tuple[str, dict[str, Any]]]:
    data = event.data
    match event.type:
        case "subject.created":
            yield "is_active", {"is_active": True}
        case "subject.deactivated":
            yield "is_active", {"is_active": False}
        case "member.joined" | "member.activated":
            yield _membership(event, "active")
            yield from _roles(event)
        case "member.role_changed":
            yield from _roles(event)
        case "member.suspended":
            yield _membership(event, "suspended")
        case "member.left":
            yield _membership(event, "left")
            yield "tenant_roles", {"tenant_roles": []}
            yield "app_role", {"app_role": None}
            yield "groups", {"groups": []}
        case "app_access.granted":
            yield "has_app_access", {"has_app_access": True}
            if data.get("role_slug"):
                yield "app_role", {"app_role": data["role_slug"]}
        case "app_access.role_changed":
            if "role_slug" in data:
                yield "app_role", {"app_role": data["role_slug"] or None}
        case "tenant.app.granted":
            yield "has_app_access", {"has_app_access": True}
        case "app_access.revoked" | "tenant.app.revoked":
            yield "has_app_access", {"has_app_access": False}
            yield "app_role", {"app_role": None}


def _membership(event: Event, status: str) -> tuple[str, dict[str, Any]]:
    # One register of three columns: a status that belonged to another membership would lie.
    return "membership", {
        "tenant_id": None if status == "left" else event.tenant_id,
        "membership_id": event.data.get("membership_id") or None,
        "membership_status": status,
    }


def _roles(event: Event) -> Iterator[tuple[str, dict[str, Any]]]:
    data = event.data
    for name in ("tenant_roles", "groups"):
        if data.get(name) is not None:
            yield name, {name: data[name]}
    if event.dialect is Dialect.DOCUMENTED and data.get("role_slug"):
        yield "app_role", {"app_role": data["role_slug"]}
