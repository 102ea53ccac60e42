"""How the demo must end: a plain fold over all events in the order in which they happened.

It knows the rules (docs/explanation/merge-rules.md) and none of the code that mirrors by them.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["MIRRORED", "Person", "fold"]

MIRRORED = frozenset(
    {
        "subject.created",
        "member.joined",
        "member.left",
        "member.suspended",
        "member.activated",
        "app_access.granted",
        "app_access.revoked",
        "app_access.role_changed",
    }
)
"""Those types of the demo's streams that change somebody's row."""

_DENIALS = frozenset({"member.left", "member.suspended", "app_access.revoked"})
_STATUS = {
    "member.joined": "active",
    "member.activated": "active",
    "member.suspended": "suspended",
    "member.left": "left",
}


@dataclass(frozen=True, slots=True)
class Person:
    """What the demo shows of one row.

    Args:
        sub: The subject id.
        email: The address, or None.
        is_active: Whether the account may be used at all.
        has_app_access: Whether this application may be used.
        membership: `active`, `suspended`, `left`, or None where nothing was heard of it.
        app_role: The role in the application, or None.
        tenant_roles: The roles in the tenant.
    """

    sub: str
    email: str | None = None
    is_active: bool = True
    has_app_access: bool = True
    membership: str | None = None
    app_role: str | None = None
    tenant_roles: tuple[str, ...] = ()


def fold(bodies: Iterable[bytes], *, tenant_id: str, application_id: str) -> dict[str, Person]:
    """Return the people whom a tenant must know after all these events, by their subject ids.

    Args:
        bodies: Sync events in any order; repeated ones change nothing.
        tenant_id: The tenant.
        application_id: The application whose events count.
    """
    events = [json.loads(body) for body in bodies]
    mine = [
        event
        for event in events
        if (event["tenant_id"], event["application_id"]) == (tenant_id, application_id)
        and event["type"] in MIRRORED
    ]
    # At one moment, what takes something away counts as the later.
    mine.sort(key=lambda event: (event["timestamp"], event["type"] in _DENIALS, event["id"]))
    people: dict[str, Person] = {}
    for event in mine:
        sub = event["data"]["sub"]
        people[sub] = _after(people.get(sub, Person(sub)), event["type"], event["data"])
    return people


def _after(person: Person, event_type: str, data: dict[str, Any]) -> Person:
    person = replace(
        person,
        email=data.get("email") or person.email,
        membership=_STATUS.get(event_type, person.membership),
    )
    if event_type == "member.left":
        return replace(person, tenant_roles=(), app_role=None)
    if event_type in ("member.joined", "member.activated") and "tenant_roles" in data:
        return replace(person, tenant_roles=tuple(data["tenant_roles"]))
    if event_type == "app_access.granted":
        return replace(person, has_app_access=True, app_role=data["role_slug"] or person.app_role)
    if event_type == "app_access.role_changed":
        return replace(person, app_role=data["role_slug"] or None)
    if event_type == "app_access.revoked":
        return replace(person, has_app_access=False, app_role=None)
    return person
