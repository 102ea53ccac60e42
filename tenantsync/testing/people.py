"""People and what happens to them: payloads of the nineteen sync types, and whole streams."""

import hashlib
import random
import string
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from tenantsync.testing.delivery import iso, jsonb

__all__ = ["APP_ROLES", "SYNC_TYPES", "Ids", "Person", "make_people", "payload", "stream"]

APP_ROLES: Mapping[str, str] = MappingProxyType(
    {"admin": "Admin", "editor": "Editor", "viewer": "Viewer"}
)
"""Slugs and names of the emulator's application roles."""

_SUBJECT = ("sub", "email")
_MEMBER = ("membership_id", "sub", "email")
_NAMES = ("given_name", "family_name")
_ROLE = ("role_id", "role_name", "role_slug")
_PREVIOUS_ROLE = ("previous_role_id", "previous_role_name", "previous_role_slug")
_INVITE = ("invite_id", "membership_id", "email")
_LICENSE = ("license_type_id", "license_type_name")

# Which keys each type carries, as the provider sends it. See docs/reference/events.md.
_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "subject.created": (*_SUBJECT, *_NAMES, "subject_type"),
        "subject.updated": (*_SUBJECT, *_NAMES, "subject_type", "changed_fields"),
        "subject.deleted": _SUBJECT,
        "subject.deactivated": _SUBJECT,
        "member.joined": (*_MEMBER, *_NAMES, "tenant_roles"),
        "member.left": _MEMBER,
        "member.role_changed": (*_MEMBER, "tenant_roles", "previous_roles"),
        "member.suspended": _MEMBER,
        "member.activated": _MEMBER,
        "app_access.granted": (*_MEMBER, *_NAMES, *_ROLE),
        "app_access.revoked": _MEMBER,
        "app_access.role_changed": (*_MEMBER, *_NAMES, *_ROLE, *_PREVIOUS_ROLE),
        "invite.created": (*_INVITE, "tenant_roles", "invited_by_sub", "expires_at"),
        "invite.accepted": (*_INVITE, "tenant_roles", "sub", *_NAMES),
        "invite.deleted": _INVITE,
        "invite.expired": _INVITE,
        "license.assigned": ("assignment_id", *_SUBJECT, *_LICENSE),
        "license.revoked": ("assignment_id", *_SUBJECT),
        "license.changed": (
            "assignment_id",
            *_SUBJECT,
            *_LICENSE,
            "previous_license_type_id",
            "previous_license_type_name",
        ),
    }
)

SYNC_TYPES: tuple[str, ...] = tuple(_KEYS)
"""The nineteen event types that an application's webhook may carry."""

# One missing name is spelt in three ways, depending on where in AuthVital the event began.
_NAMES_ABSENT = ("subject.created", "subject.updated")
_NAMES_EMPTY = ("app_access.granted", "app_access.role_changed")

_FIRST_NAMES = ("Ada", "Bo", "Chi", "Dee", "Edda", "Femi", "Gül", "Håkon", "Inés", "Jun", "Kofi")
_LAST_NAMES = ("Lindqvist", "Okafor", "Müller", "O'Brien", "Nakamura", "Sørensen", "Duarte")
_MINUTE = 60_000
_START = 1_748_847_600_000  # an ordinary Monday morning: 2025-06-02T07:00:00Z


@dataclass(frozen=True, slots=True)
class Person:
    """Someone who belongs to a tenant, with what the provider knows of the membership.

    Args:
        sub: The subject id.
        email: The e-mail address, or None where the provider lost it.
        given_name: The given name, or None where unknown.
        family_name: The family name, or None where unknown.
        membership_id: The membership's id; a new one after leaving and joining again.
        tenant_roles: Slugs of the roles in the tenant.
        role: Slug of the role in the application, `""` for none.
    """

    sub: str
    email: str | None
    given_name: str | None = None
    family_name: str | None = None
    membership_id: str = "c" + "0" * 24
    tenant_roles: tuple[str, ...] = ("member",)
    role: str = "editor"

    @classmethod
    def named(cls, email: str, *, sub: str | None = None, tenant_id: str = "") -> "Person":
        """Return the person with this address: the same ids at every call.

        Args:
            email: The e-mail address.
            sub: The subject id; None derives it from the address.
            tenant_id: Makes the membership's id another one in each tenant.
        """
        sub = sub or str(uuid.uuid5(uuid.NAMESPACE_URL, f"mailto:{email}"))
        return cls(sub, email, membership_id=_cuid(f"{tenant_id}/{sub}"))


class Ids:
    """Makes ids of the shapes that AuthVital's database makes.

    Args:
        seed: The same ids for the same seed; None makes others each time.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self._letters = string.digits + string.ascii_lowercase

    def uuid(self) -> str:
        """Return an id of a user, a tenant or an event."""
        return str(uuid.UUID(int=self._random.getrandbits(128), version=4))

    def cuid(self) -> str:
        """Return an id of anything else."""
        return "c" + "".join(self._random.choices(self._letters, k=24))


def payload(event_type: str, person: Person, /, **overrides: object) -> dict[str, Any]:
    """Return the `data` of an event about a person, with the keys that AuthVital sends.

    Args:
        event_type: One of `SYNC_TYPES`.
        person: Whom it is about. Unknown names come out absent, null or `""`, as the type has it.
        overrides: Further keys, or other values for the keys above.

    Raises:
        ValueError: The type is not one of the nineteen.
    """
    if event_type not in _KEYS:
        raise ValueError(f"{event_type!r} is no sync type: use one of {', '.join(SYNC_TYPES)}")
    facts = _facts(person)
    data = {key: facts[key] for key in _KEYS[event_type]}
    for name in _NAMES:
        if name in data and data[name] is None:
            if event_type in _NAMES_ABSENT:
                del data[name]
            elif event_type in _NAMES_EMPTY:
                data[name] = ""
    return data | overrides


def make_people(count: int, *, seed: int = 0, domain: str = "example.test") -> list[Person]:
    """Return made-up people, the same for the same seed; the first one owns the tenant.

    Args:
        count: How many.
        seed: Any number; other seeds make other people.
        domain: The domain of their addresses.
    """
    rng = random.Random(f"people/{seed}")
    people = []
    for index in range(count):
        first, last = rng.choice(_FIRST_NAMES), rng.choice(_LAST_NAMES)
        plain = unicodedata.normalize("NFKD", first.lower()).encode("ascii", "ignore").decode()
        people.append(
            Person(
                sub=_uuid(rng),
                email=f"{plain}.{index + 1}@{domain}",
                given_name=first,
                family_name=None if rng.random() < 0.2 else last,
                membership_id=_cuid(str(rng.random())),
                tenant_roles=("owner",) if index == 0 else (rng.choice(("member", "admin")),),
                role=rng.choice(tuple(APP_ROLES)),
            )
        )
    return people


def stream(
    tenant_id: str,
    application_id: str,
    people: Sequence[Person],
    *,
    seed: int = 0,
    start: int = _START,
) -> list[bytes]:
    """Return the sync events of a tenant's life as bodies, in the order in which they happened.

    The first person signs up, the others accept invitations; then access is granted and revoked,
    roles change, members are suspended, activated, leave, and some come back. Only types that
    AuthVital sends today occur. The same arguments make the same bytes.

    Args:
        tenant_id: The tenant.
        application_id: The application whose webhook hears of it.
        people: Who; see `make_people`.
        seed: Any number; other seeds make other lives.
        start: When the first thing happens, in unix milliseconds.
    """
    rng = random.Random(f"stream/{seed}/{tenant_id}")
    happenings = [
        (moment, event_type, data)
        for index, person in enumerate(people)
        for moment, event_type, data in _life(person, rng, start + index * _MINUTE, index)
    ]
    happenings.sort(key=lambda happening: happening[0])
    return [
        jsonb(
            {
                "id": _uuid(rng),
                "type": event_type,
                "timestamp": iso(moment),
                "tenant_id": tenant_id,
                "application_id": application_id,
                "data": data,
            }
        )
        for moment, event_type, data in happenings
    ]


_Happening = tuple[int, str, dict[str, Any]]


def _life(person: Person, rng: random.Random, moment: int, index: int) -> Iterator[_Happening]:
    if index == 0:
        yield moment, "subject.created", payload("subject.created", person)
        yield moment, "member.joined", payload("member.joined", person)
        return
    yield from _join(person, moment)
    suspended = access = False
    for step in range(rng.randrange(2, 9)):
        moment += rng.randrange(1, 240 * _MINUTE)
        event_type = _next(rng, first=step == 0, access=access, suspended=suspended)
        overrides: dict[str, Any] = {}
        if event_type == "app_access.role_changed":
            before, person = person, replace(person, role=_other(person.role, rng))
            overrides = {
                f"previous_{key}": value
                for key, value in payload("app_access.granted", before).items()
                if key in _ROLE
            }
        yield moment, event_type, payload(event_type, person, **overrides)
        access = {"app_access.granted": True, "app_access.revoked": False}.get(event_type, access)
        suspended = {"member.suspended": True, "member.activated": False}.get(event_type, suspended)
    if index % 4 == 0:
        moment += rng.randrange(1, 240 * _MINUTE)
        yield moment, "member.left", payload("member.left", person)
    if index % 8 == 0:
        moment += rng.randrange(1, 240 * _MINUTE)
        yield from _join(replace(person, membership_id=_cuid(str(rng.random()))), moment)


def _join(person: Person, moment: int) -> Iterator[_Happening]:
    # Both are sent in the same millisecond, and race.
    yield moment, "invite.accepted", payload("invite.accepted", person)
    yield moment, "member.joined", payload("member.joined", person)


def _next(rng: random.Random, *, first: bool, access: bool, suspended: bool) -> str:
    if first:
        return "app_access.granted"
    # Trouble is rarer than its end, so that most people are well at any time.
    choices = ["member.activated"] * 3 if suspended else ["member.suspended"]
    if access:
        choices += ["app_access.role_changed", "app_access.role_changed", "app_access.revoked"]
    else:
        choices += ["app_access.granted"] * 3
    return rng.choice(choices)


def _facts(person: Person) -> dict[str, Any]:
    """Return every key that some type carries, with this person's value."""
    previous = "viewer" if person.role != "viewer" else "editor"
    return {
        "sub": person.sub,
        "email": person.email,
        "given_name": person.given_name,
        "family_name": person.family_name,
        "subject_type": "user",
        "changed_fields": ["email", "given_name", "family_name"],
        "membership_id": person.membership_id,
        "tenant_roles": list(person.tenant_roles),
        "previous_roles": ["member"],
        "role_id": _role_id(person.role),
        "role_name": APP_ROLES.get(person.role, person.role.title()),
        "role_slug": person.role,
        "previous_role_id": _role_id(previous),
        "previous_role_name": APP_ROLES[previous],
        "previous_role_slug": previous,
        "invite_id": _cuid(f"invite/{person.membership_id}"),
        "invited_by_sub": str(uuid.uuid5(uuid.NAMESPACE_URL, "mailto:owner@example.test")),
        "expires_at": "2026-12-31T00:00:00.000Z",
        "assignment_id": _cuid(f"assignment/{person.membership_id}"),
        "license_type_id": _cuid("license/pro"),
        "license_type_name": "Pro Seat",
        "previous_license_type_id": _cuid("license/basic"),
        "previous_license_type_name": "Basic Seat",
    }


def _role_id(slug: str) -> str:
    return _cuid(f"role/{slug}") if slug else ""


def _other(role: str, rng: random.Random) -> str:
    return rng.choice([slug for slug in APP_ROLES if slug != role])


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _cuid(text: str) -> str:
    """Return an id of the shape that AuthVital's database makes, derived from a text."""
    letters = string.digits + string.ascii_lowercase
    digest = hashlib.sha256(text.encode()).digest()
    return "c" + "".join(letters[byte % len(letters)] for byte in digest[:24])
