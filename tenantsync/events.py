"""What AuthVital says, as one typed event: `parse` reads every dialect and refuses the rest.

No I/O and no trust: whoever calls `parse` has verified the bytes already. Whatever they are, the
answer is an `Event` or `Malformed`.
"""

import hashlib
import json
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType, NoneType
from typing import Any, Final

import msgspec

from tenantsync.errors import Malformed
from tenantsync.tenants import MAX_ID_BYTES

__all__ = [
    "MAX_DEPTH",
    "MAX_TIMESTAMP",
    "SYNC_TYPES",
    "SYSTEM_TYPES",
    "Dialect",
    "Event",
    "encode",
    "parse",
]

MAX_DEPTH: Final = 32
"""How deep objects and lists of a body may be nested; the body itself is the first level."""

MAX_TIMESTAMP: Final = 9_999_999_999_999
"""The last millisecond since 1970 that an event may carry (November 2286): thirteen digits."""

SYNC_TYPES: Final = (
    *("subject.created", "subject.updated", "subject.deleted", "subject.deactivated"),
    *("member.joined", "member.left", "member.role_changed", "member.suspended"),
    *("member.activated", "invite.created", "invite.accepted", "invite.deleted", "invite.expired"),
    *("app_access.granted", "app_access.revoked", "app_access.role_changed"),
    *("license.assigned", "license.revoked", "license.changed"),
)
"""The types of the sync webhook; each names one tenant and one application."""

SYSTEM_TYPES: Final = (
    *("tenant.created", "tenant.updated", "tenant.deleted", "tenant.suspended"),
    *("tenant.app.granted", "tenant.app.revoked"),
    *("application.created", "application.updated", "application.deleted"),
    *("sso.provider_added", "sso.provider_updated", "sso.provider_removed"),
)
"""The types of the system webhook, which speaks for the whole AuthVital instance."""

_MIRRORED: Final = frozenset(
    name for name in SYNC_TYPES if name.startswith(("subject.", "member.", "app_access."))
)
_APP_GRANTED: Final = "tenant.app.granted"
_APP_TYPES: Final = frozenset({_APP_GRANTED, "tenant.app.revoked"})

_TEXT: Final = ((str, NoneType), "must be a string or null")
_FLAG: Final = ((bool, NoneType), "must be true, false or null")
_LIST: Final = "must be a list of strings"
_TEXT_KEYS: Final = (
    *("preferred_username", "name", "given_name", "family_name", "middle_name", "nickname"),
    *("picture", "website", "gender", "birthdate", "zoneinfo", "locale", "email", "phone_number"),
    *("subject_type", "membership_id", "role_slug"),
)
_SHAPES: Final[Mapping[str, tuple[tuple[type, ...], str]]] = MappingProxyType(
    {
        **dict.fromkeys(_TEXT_KEYS, _TEXT),
        "email_verified": _FLAG,
        "phone_number_verified": _FLAG,
        "tenant_roles": ((list,), _LIST),
        "groups": ((list, NoneType), f"{_LIST} or null"),
        "changed_fields": ((list, NoneType), f"{_LIST} or null"),
    }
)

# datetime.fromisoformat alone would let much pass that is no ISO 8601: any character before the
# zone, a colon for the decimal point, zones with ninety minutes.
_INSTANT: Final = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?"
    r"(?:Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)",
    re.ASCII,
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_SPACED_COLON: Final = re.compile(rb'"\s+:')
_PLAIN_STEP: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}|[0-9]{1,6}")


class Dialect(StrEnum):
    """Which of AuthVital's ways of writing an event a body used."""

    SYNC = "sync"
    SYSTEM = "system"
    PUBSUB = "pubsub"
    DOCUMENTED = "documented"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event of AuthVital, whatever channel and dialect it came by.

    Args:
        id: What makes a repeated delivery recognisable; `docs/reference/events.md` says what it
            is in each dialect. At most 255 bytes.
        type: For instance `"member.joined"`; may be one that nobody knows. At most 255 bytes.
        timestamp: When it happened by AuthVital's clock, in milliseconds since 1970, UTC.
        tenant_id: The tenant it names, of any length, or None.
        application_id: The application it names, or None.
        sub: The person it is about, or None. Never empty, at most 255 bytes.
        data: The payload. Checked where `mirrored` is true; otherwise any object.
        dialect: How it was written.
        stale: Whether nothing of it won against what is mirrored already; set for hooks.
    """

    id: str
    type: str
    timestamp: int
    tenant_id: str | None
    application_id: str | None
    sub: str | None
    data: dict[str, Any]
    dialect: Dialect
    stale: bool = False

    @property
    def occurred_at(self) -> datetime:
        """The timestamp as an aware UTC datetime."""
        return _EPOCH + self.timestamp * _MILLISECOND

    @property
    def mirrored(self) -> bool:
        """Whether it writes to the mirrored identities; the rest is only handed to hooks."""
        return _is_mirrored(self.type, self.data)

    # The payload is personal data, and representations end up in logs and tracebacks.

    def __repr__(self) -> str:
        return f"<Event {self.type!r} id={self.id!r} timestamp={self.timestamp}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("type", self.type), ("id", self.id), ("timestamp", self.timestamp)]


def parse(body: bytes, *, signed_at: int | None = None) -> Event:
    """Return the event that a request body holds.

    The dialects, and what makes a body malformed, are in `docs/reference/events.md`.

    Args:
        body: The raw bytes, already verified.
        signed_at: The time that the delivery's signature covers, in seconds since 1970. Only a
            body of the documented dialect, which has no timestamp of its own, needs it.

    Raises:
        Malformed: The bytes are no event. Nothing else is raised, whatever they are.
    """
    fields = _read_object(body)
    if fields.get("type") is not None:
        return _from_envelope(fields, "type", Dialect.SYNC)
    if fields.get("event") is not None:
        if "timestamp" in fields:
            return _from_system(fields)
        return _from_documented(fields, body, signed_at)
    if fields.get("event_type") is not None:
        return _from_pubsub(fields)
    if "message" in fields:
        return _from_push(fields["message"])
    raise Malformed("type", "is missing")


def encode(event: Event) -> bytes:
    """Return a body from which `parse` reads the event again; its dialect becomes `sync`."""
    fields = {
        "id": event.id,
        "type": event.type,
        "timestamp": event.occurred_at.isoformat(),
        "tenant_id": event.tenant_id,
        "application_id": event.application_id,
        "data": event.data,
    }
    return msgspec.json.encode(fields)


def _from_envelope(fields: dict[str, Any], type_key: str, dialect: Dialect) -> Event:
    event_id = _identifier(fields, "id")
    return _build(fields, type_key, dialect, event_id, _read_instant(fields.get("timestamp")))


def _from_system(fields: dict[str, Any]) -> Event:
    # The same event is sent in two key orders, depending on which process delivers it, and
    # carries no id: only its content tells that the two are one.
    digest = hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()
    return _build(fields, "event", Dialect.SYSTEM, digest, _read_instant(fields["timestamp"]))


def _from_documented(fields: dict[str, Any], body: bytes, signed_at: int | None) -> Event:
    if signed_at is None or not 0 <= signed_at * 1000 <= MAX_TIMESTAMP:
        raise Malformed("timestamp", "is missing, and no signed time stands in for it")
    data = _payload(fields)
    role = data.get("role")
    if role is not None:
        if not isinstance(role, str):
            raise Malformed("data.role", _TEXT[1])
        data.setdefault("role_slug", role)
        if _identifier(fields, "event").startswith("member."):
            data.setdefault("tenant_roles", [role] if role else [])
    digest = hashlib.sha256(b"%d." % signed_at + body).hexdigest()
    return _build(fields, "event", Dialect.DOCUMENTED, digest, signed_at * 1000)


def _from_pubsub(fields: dict[str, Any]) -> Event:
    if fields.get("source") != "authvital":
        raise Malformed("source", 'must be "authvital" where the type is in event_type')
    return _from_envelope(fields, "event_type", Dialect.PUBSUB)


def _from_push(message: object) -> Event:
    if not isinstance(message, dict):
        raise Malformed("message", "must be an object")
    encoded = message.get("data")
    if not isinstance(encoded, str):
        raise Malformed("message.data", "must be a string of base64")
    try:
        body = b64decode(encoded, validate=True)
    except ValueError:
        raise Malformed("message.data", "is not standard base64 with padding") from None
    try:
        return _from_pubsub(_read_object(body))
    except Malformed as error:
        inner = "" if error.field == "body" else f".{error.field}"
        raise Malformed(f"message.data{inner}", error.reason) from None


def _build(
    fields: dict[str, Any], type_key: str, dialect: Dialect, event_id: str, timestamp: int
) -> Event:
    event_type = _identifier(fields, type_key)
    data = _payload(fields)
    tenant_id = _reference(fields, data, "tenant_id")
    fallback = data if dialect is Dialect.SYSTEM or dialect is Dialect.PUBSUB else {}
    application_id = _reference(fields, fallback, "application_id")
    subject_key = "user_id" if event_type in _APP_TYPES else "sub"
    if _is_mirrored(event_type, data):
        sub: str | None = _identifier(data, subject_key, "data.")
        _check_claims(data)
    else:
        # Nothing is written for it, so an odd subject is no reason to refuse it.
        subject = data.get(subject_key)
        sub = subject if isinstance(subject, str) and _fits(subject) else None
    return Event(
        id=event_id,
        type=event_type,
        timestamp=timestamp,
        tenant_id=tenant_id,
        application_id=application_id,
        sub=sub,
        data=data,
        dialect=dialect,
    )


def _is_mirrored(event_type: str, data: dict[str, Any]) -> bool:
    if event_type in _MIRRORED:
        return True
    if event_type not in _APP_TYPES or data.get("user_id") is None:
        return False  # without a person it tells of a tenant's subscription
    return event_type != _APP_GRANTED or data.get("access_type") != "INVITED"


def _check_claims(data: dict[str, Any]) -> None:
    """Refuse a payload whose mirrored values have the wrong types."""
    for key, value in data.items():
        shape = _SHAPES.get(key)
        if shape is not None:
            kind = type(value)
            if kind not in shape[0] or (kind is list and not {*map(type, value)} <= {str}):
                raise Malformed(f"data.{key}", shape[1])


def _payload(fields: dict[str, Any]) -> dict[str, Any]:
    data = fields.get("data")
    if not isinstance(data, dict):
        raise Malformed("data", "must be an object")
    return data


def _identifier(fields: dict[str, Any], key: str, where: str = "") -> str:
    value = fields.get(key)
    if value is None:
        raise Malformed(where + key, "is missing")
    if not isinstance(value, str) or not _fits(value):
        raise Malformed(where + key, f"must be a string of 1 to {MAX_ID_BYTES} bytes of UTF-8")
    return value


def _fits(text: str) -> bool:
    return 0 < len(text.encode()) <= MAX_ID_BYTES


def _reference(fields: dict[str, Any], data: dict[str, Any], key: str) -> str | None:
    """Return the id that the envelope names, else the payload; `""` names nothing."""
    value, where = fields.get(key), key
    if value is None or value == "":
        value, where = data.get(key), f"data.{key}"
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise Malformed(where, _TEXT[1])
    return value


def _read_instant(text: object) -> int:
    """Return milliseconds since 1970, rounded down, for an ISO 8601 date, time and zone."""
    if text is None:
        raise Malformed("timestamp", "is missing")
    if not isinstance(text, str) or not _INSTANT.fullmatch(text):
        raise Malformed("timestamp", "must be an ISO 8601 date and time with a zone")
    try:
        milliseconds = (datetime.fromisoformat(text) - _EPOCH) // _MILLISECOND
    except ValueError:
        raise Malformed("timestamp", "is no date and time that exists") from None
    if not 0 <= milliseconds <= MAX_TIMESTAMP:
        raise Malformed("timestamp", "must lie between 1970 and November 2286")
    return milliseconds


def _read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that the bytes hold, refusing what readers disagree about."""
    try:
        tree = msgspec.json.decode(body)
        if isinstance(tree, dict):
            _refuse_ambiguity(tree, body)
            return tree
    except RecursionError:
        raise Malformed("body", f"is nested more than {MAX_DEPTH} levels deep") from None
    except UnicodeDecodeError:
        raise Malformed("body", "is not valid UTF-8") from None
    except ValueError:
        raise Malformed("body", "is not valid JSON") from None
    raise Malformed("body", "must be a JSON object")


def _refuse_ambiguity(tree: dict[str, Any], body: bytes) -> None:
    """Refuse a tree that is too deep, lost a key to its double, or holds U+0000."""
    data = tree.get("data")
    # Braces inside strings only add to the count, so two of them are this object and its data.
    if isinstance(data, dict) and body.count(b"{") == 2 and body.count(b"[") <= MAX_DEPTH - 2:
        keys = len(tree) + len(data)
    else:
        keys = _count_keys(tree, 1)
    # In valid JSON each key ends in a quote with a colon behind it, and text inside strings can
    # only add such places: as many places as keys means that no key was overwritten by another.
    if body.count(b'":') != keys or (len(body.split()) > 1 and _SPACED_COLON.search(body)):
        _refuse_repeated_keys(body)
    # U+0000 can stand in JSON only as this escape; what follows a doubled backslash is no escape.
    if b"\\u0000" in body:
        _refuse_null_characters(tree)


def _count_keys(node: dict[str, Any] | list[Any], depth: int) -> int:
    """Return how many keys all objects of the tree have together."""
    if depth > MAX_DEPTH:
        raise RecursionError
    keys = len(node) if isinstance(node, dict) else 0
    for child in node.values() if isinstance(node, dict) else node:
        kind = type(child)
        if kind is dict or kind is list:
            keys += _count_keys(child, depth + 1)
    return keys


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON with all its keys, repeated ones too."""


def _refuse_repeated_keys(body: bytes) -> None:
    for path, node in _walk(json.loads(body.decode(), object_pairs_hook=_Pairs)):
        seen: set[str] = set()
        for key, _ in node if isinstance(node, _Pairs) else ():
            if key in seen:
                raise Malformed(_dotted((*path, key)), "appears twice")
            seen.add(key)


def _refuse_null_characters(tree: dict[str, Any]) -> None:
    for path, node in _walk(tree):
        texts = node if isinstance(node, dict) else (node,) if isinstance(node, str) else ()
        if any("\x00" in text for text in texts):
            raise Malformed(_dotted(path), "holds the character U+0000")


def _walk(tree: object) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield every value of the tree with its path, without recursion."""
    waiting: list[tuple[tuple[str | int, ...], Any]] = [((), tree)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        children: Any = ()
        if isinstance(node, dict):
            children = node.items()
        elif isinstance(node, _Pairs):
            children = node
        elif isinstance(node, list):
            children = enumerate(node)
        waiting.extend(((*path, key), child) for key, child in children)


def _dotted(path: tuple[str | int, ...]) -> str:
    # A key may be anything, a person's address too, and the path ends up in logs.
    steps = map(str, path[:8])
    return ".".join(step if _PLAIN_STEP.fullmatch(step) else "?" for step in steps) or "body"
