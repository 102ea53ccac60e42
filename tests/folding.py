"""What the mirror must hold, worked out another way: per register, the greatest write of them all.

Nothing of `tenantsync.sync.merge` is used here, so that its mistakes are not repeated here. The
merge goes event by event; this goes register by register, over all events at once. Beside it: what
a place really holds, in the same form, and the events that property tests draw.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from sqlalchemy import Connection, Table, delete, select

from tenantsync.events import SYNC_TYPES, Dialect, Event
from tenantsync.models import Identity, IdentitySession, SyncEvent, Tombstone
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement

COLUMN_OF = {
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
CLAIM_OF = {column: claim for claim, column in COLUMN_OF.items()}
FALSE_WHEN_EMPTY = ("email_verified", "phone_verified")
DENIALS = (
    "subject.deactivated",
    "subject.deleted",
    "member.suspended",
    "member.left",
    "app_access.revoked",
    "tenant.app.revoked",
)
MIRRORED_TYPES = tuple(
    name for name in SYNC_TYPES if name.split(".")[0] in ("subject", "member", "app_access")
)
NOBODY = dict.fromkeys(CLAIM_OF) | {
    "email_verified": False,
    "phone_verified": False,
    "groups": [],
    "tenant_id": None,
    "membership_id": None,
    "membership_status": None,
    "tenant_roles": [],
    "app_role": None,
    "is_active": True,
}
UNPROMISED = ("synced_at", "updated_at")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SILENT = object()  # None is something that an event may say


@dataclass
class Mirror:
    """What a place holds, or shall hold.

    Args:
        rows: Subject -> column -> value; `clocks` as register -> clock, `created_at` in
            milliseconds since 1970; without the columns that nothing is promised of.
        tombstones: Subject -> clock.
        ledger: Event id -> its type, its subject, and when it happened.
    """

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    tombstones: dict[str, str] = field(default_factory=dict)
    ledger: dict[str, tuple[str, str | None, int]] = field(default_factory=dict)


def fold(events: Iterable[Event], *, default_app_access: bool = True) -> Mirror:
    """Return what one place shall hold after these events, in whatever order they came."""
    mirror = Mirror()
    once = {event.id: event for event in events if is_mirrored(event)}
    by_subject: dict[str, list[Event]] = {}
    for event in once.values():
        mirror.ledger[event.id] = (event.type, event.sub, event.timestamp)
        by_subject.setdefault(event.sub or "", []).append(event)
    for subject, told in by_subject.items():
        told.sort(key=moment)
        deletions = [event for event in told if event.type == "subject.deleted"]
        if deletions:
            mirror.tombstones[subject] = clock(deletions[-1])
        else:
            mirror.rows[subject] = _row(subject, told, default_app_access)
    return mirror


def is_mirrored(event: Event) -> bool:
    """Whether the event may write to the mirror."""
    if event.type in ("tenant.app.granted", "tenant.app.revoked"):
        invited = event.type.endswith("granted") and event.data.get("access_type") == "INVITED"
        return event.sub is not None and not invited
    return event.type in MIRRORED_TYPES


def moment(event: Event) -> tuple[int, int, bytes]:
    """Return what orders the writes: instant, then denial over grant, then the id's bytes."""
    return event.timestamp, int(event.type in DENIALS), event.id.encode()


def clock(event: Event) -> str:
    """Return the moment as the tables hold it."""
    instant, rank, event_id = moment(event)
    return str(instant).zfill(13) + str(rank) + event_id.decode()


def _row(subject: str, told: list[Event], default_app_access: bool) -> dict[str, Any]:
    """Return the row of a person of whom these events told, the latest last."""
    row = {"id": subject, **NOBODY, "has_app_access": default_app_access}
    clocks = {}
    for register in (*CLAIM_OF, "is_active", "has_app_access", "tenant_roles", "app_role"):
        saying = [
            (event, said) for event in told if (said := _said(event, register)) is not _SILENT
        ]
        if saying:
            latest, row[register] = saying[-1]
            clocks[register] = clock(latest)
    memberships = [event for event in told if _status(event)]
    if memberships:
        latest = memberships[-1]
        row["membership_status"] = _status(latest)
        row["membership_id"] = latest.data.get("membership_id") or None
        row["tenant_id"] = None if latest.type == "member.left" else latest.tenant_id
        clocks["membership"] = clock(latest)
    return row | {"clocks": clocks, "created_at": min(event.timestamp for event in told)}


def _said(event: Event, register: str) -> object:
    """Return the value that the event gives to the register, or `_SILENT`."""
    kind, data = event.type, event.data
    if kind == "member.left" and register in ("tenant_roles", "groups", "app_role"):
        return None if register == "app_role" else []
    match register:
        case "is_active":
            return {"subject.created": True, "subject.deactivated": False}.get(kind, _SILENT)
        case "has_app_access":
            verb = kind.removeprefix("tenant.app.").removeprefix("app_access.")
            return {"granted": True, "revoked": False}.get(verb, _SILENT)
        case "tenant_roles":
            if kind in ("member.joined", "member.activated", "member.role_changed"):
                return data.get("tenant_roles", _SILENT)
            return _SILENT
        case "app_role":
            return _said_role(event)
    return _said_claim(event, register)


def _said_role(event: Event) -> object:
    kind, slug = event.type, event.data.get("role_slug", _SILENT)
    if kind.endswith("app.revoked") or kind == "app_access.revoked":
        return None
    if kind == "app_access.role_changed":
        return slug or None
    documented = event.dialect is Dialect.DOCUMENTED and kind in (
        "member.joined",
        "member.activated",
        "member.role_changed",
    )
    return (slug or _SILENT) if kind == "app_access.granted" or documented else _SILENT


def _said_claim(event: Event, column: str) -> object:
    claim = CLAIM_OF[column]
    if claim not in event.data:
        return _SILENT
    value = event.data[claim]
    empty = value is None or value == ""
    if event.type != "subject.updated":
        return _SILENT if empty else value
    named = event.data.get("changed_fields") or []
    if named and not any(name.split(".")[-1] in _spellings(claim) for name in named):
        return _SILENT
    if not empty:
        return value
    return False if column in FALSE_WHEN_EMPTY else [] if column == "groups" else None


@cache
def _spellings(claim: str) -> frozenset[str]:
    snakes = (claim, COLUMN_OF[claim])
    return frozenset(snakes) | {_camel(name) for name in snakes}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def _status(event: Event) -> str | None:
    return {
        "member.joined": "active",
        "member.activated": "active",
        "member.suspended": "suspended",
        "member.left": "left",
    }.get(event.type)


# What a place holds.


def two_places(request: pytest.FixtureRequest, tmp_path: Path) -> list[Placement]:
    """Return two empty places: SQLite files or schemas of one database, as the parameter says."""
    if request.param == "postgresql":
        return request.getfixturevalue("schema_places")(2)
    template = request.getfixturevalue("migrated_templates")(0)
    files = [shutil.copyfile(template, tmp_path / name) for name in ("one.db", "two.db")]
    return [Placement.of(f"sqlite:///{file}") for file in files]


def stored(registry: EngineRegistry, place: Placement) -> Mirror:
    """Return what the place holds now."""
    with registry.connect(place) as connection:
        mirror = Mirror()
        for row in _all(connection, place, Identity):
            kept = {name: value for name, value in row.items() if name not in UNPROMISED}
            registers = {
                register: moment
                for moment, together in row["clocks"].items()
                for register in together.split(" ")
            }
            kept |= {"clocks": registers, "created_at": _milliseconds(row["created_at"])}
            mirror.rows[row["id"]] = kept
        for row in _all(connection, place, Tombstone):
            mirror.tombstones[row["id"]] = row["clock"]
        for row in _all(connection, place, SyncEvent):
            at = _milliseconds(row["occurred_at"])
            mirror.ledger[row["event_id"]] = (row["type"], row["subject"], at)
    return mirror


def clear(registry: EngineRegistry, place: Placement) -> None:
    """Empty the place's tables."""
    with registry.connect(place) as connection, connection.begin():
        for model in (IdentitySession, Identity, Tombstone, SyncEvent):
            connection.execute(delete(_table(model)), execution_options=_translated(place))


def _all(connection: Connection, place: Placement, model: type) -> list[dict[str, Any]]:
    statement = select(_table(model))
    rows = connection.execute(statement, execution_options=_translated(place))
    return [dict(row) for row in rows.mappings()]


def _table(model: type) -> Table:
    return model.__table__


def _translated(place: Placement) -> dict[str, Any]:
    return {"schema_translate_map": {None: place.schema}} if place.is_postgres else {}


def _milliseconds(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(milliseconds=1)


# What property tests draw: few people, tenants and instants, so that they meet.

PEOPLE = ("ana", "Ana", "ANA")
TENANTS = ("t1", "T1", "t2")
INSTANTS = (0, 1_787_378_400_000, 1_787_378_400_001, 9_999_999_999_999)
# Their order by bytes is not that of any language, nor of UTF-16: "ﬁ" < "𐀀".
EVENT_IDS = ("a", "A", "aa", "aA", "Aa", "b", "B", "z", "Z", "_", "~", "0", "10", "9", " ", "a b")
EVENT_IDS += ("é", "É", "ﬁ", "𐀀", "'", '"', "\\", "$1", "@", "%s", "{}", "😀")
OTHER_TYPES = (
    "tenant.app.granted",
    "tenant.app.revoked",
    "invite.accepted",
    "license.assigned",
    "subject.promoted",
)


_ABSENT = object()
_TEXTS = (_ABSENT, None, "", "ana", "Ana", "Zoë \"'\\%s @ $1 {,} NULL 😀")
_FLAGS = (_ABSENT, None, True, False)
_ROLES = (_ABSENT, [], ["owner"], ["Owner", "owner"], ["", 'a"b,{c}\\', "NULL"])
_FIELDS = (
    *(_ABSENT, None, [], ["given_name"], ["givenName", "email"], ["profile.given_name"]),
    *(["data.profile.givenName"], ["emailVerified"], ["email_verified", "groups"], ["mood"]),
    *(["picture", "phone"], ["pictureUrl", "phone_number"], ["tenant_roles", ""]),
)
_PAYLOAD: dict[str, tuple[object, ...]] = {
    "given_name": _TEXTS,
    "email": _TEXTS,
    "email_verified": _FLAGS,
    "groups": (*_ROLES, None),
    "tenant_roles": _ROLES,
    "role_slug": _TEXTS,
    "membership_id": _TEXTS,
}
_ONE_MORE = [
    (claim, text)
    for text in _TEXTS
    for claim in COLUMN_OF
    if "verified" not in claim and claim != "groups"
]
_TYPES = MIRRORED_TYPES * 2 + OTHER_TYPES


@st.composite
def histories(draw: st.DrawFn, *, max_size: int = 16) -> list[Event]:
    """Draw events, no two with one id."""
    # One draw of bytes, a byte per choice: drawing each value by itself takes ten times as long,
    # and it is the number of examples that finds things.
    size = 8 + len(_PAYLOAD)
    total = size * draw(st.integers(0, max_size))
    rolled = draw(st.binary(min_size=total, max_size=total))
    free = list(EVENT_IDS)
    return [
        _event(free.pop(rolled[start] % len(free)), rolled[start + 1 : start + size])
        for start in range(0, total, size)
    ]


def _event(event_id: str, rolled: bytes) -> Event:
    """Return the event that the bytes stand for, as `parse` would make it."""
    kind, subject, instant, tenant, form, more, fields = (
        options[roll % len(options)]
        for roll, options in zip(
            rolled,
            (_TYPES, PEOPLE, INSTANTS, TENANTS, range(3), _ONE_MORE, _FIELDS),
            strict=False,
        )
    )
    data = {
        name: options[roll % len(options)]
        for roll, (name, options) in zip(rolled[7:], _PAYLOAD.items(), strict=True)
    }
    data.setdefault(*more)
    dialect, subject_key = Dialect.SYNC, "sub"
    if kind.startswith("tenant.app."):
        dialect, subject_key = Dialect.SYSTEM, "user_id"
        data["access_type"] = ("GRANTED", "INVITED", "AUTO_FREE")[form]
        subject = None if rolled[-1] % 8 == 7 else subject
    elif kind.startswith("member.") and form == 1:
        dialect = Dialect.DOCUMENTED
    elif kind == "subject.updated":
        data["changed_fields"] = fields
    data[subject_key] = subject
    return Event(
        id=event_id,
        type=kind,
        timestamp=instant,
        tenant_id=tenant,
        application_id="app",
        sub=subject,
        data={name: value for name, value in data.items() if value is not _ABSENT},
        dialect=dialect,
    )


@st.composite
def deliveries(draw: st.DrawFn, history: list[Event]) -> list[Event]:
    """Draw an order in which the events arrive, each up to three times."""
    rolled = draw(st.binary(min_size=len(history), max_size=len(history)))
    copies = [
        event
        for event, roll in zip(history, rolled, strict=True)
        for _ in range(max(1, roll % 8 - 4))
    ]
    places = draw(st.binary(min_size=len(copies), max_size=len(copies)))
    order = sorted(range(len(copies)), key=places.__getitem__)
    return [copies[index] for index in order]
