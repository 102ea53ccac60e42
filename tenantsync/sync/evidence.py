"""What a tenant's list says of its people, and when it may be believed. Pure: no SQL, no I/O.

A list is no event: it says what is, not what happened, and it may be wrong as a whole. So it is
checked as a whole first; then each line is evidence that goes through the same merge as events do,
with the time of the list for its clock. The rules stand in docs/explanation/reconcile.md.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from tenantsync.authvital.memberships import Membership, TenantMemberships
from tenantsync.errors import Unavailable
from tenantsync.events import MAX_TIMESTAMP, Dialect, Event
from tenantsync.tenants import MAX_ID_BYTES

__all__ = ["MARGIN", "Brake", "Evidence", "ListRefused", "Snapshot", "departure"]

MARGIN: Final = 5_000
"""Milliseconds by which a list is taken for older than its answer says: `Date` is cut to seconds,
and what was committed while the list was read may be missing from it."""

_FEWEST: Final = 5
"""Fewer than so many may lose their access without more ado, however small their tenant is."""
_LISTED: Final = "listed"
_STATUSES: Final[Mapping[str, str]] = {
    "ACTIVE": "active",
    "SUSPENDED": "suspended",
    "INVITED": "invited",
}


class ListRefused(Unavailable):
    """A list contradicts itself, or cannot be what was asked for; nothing of it is used."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one line of a list says of one person.

    Args:
        sub: The person.
        timestamp: When it was true by the provider's clock, in milliseconds since 1970.
        tenant_id: AuthVital's id of the tenant whose list it is.
        membership_id: The id of the person's membership there.
        status: `"active"`, `"suspended"` or `"invited"`.
        app_role: The role in our application, or None for none.
        claims: Column -> value of the profile claims that it carries, none of them empty.
        only_listed: Whether nothing of all that is used but that the person is in the list.
    """

    sub: str
    timestamp: int
    tenant_id: str
    membership_id: str
    status: str
    app_role: str | None = None
    claims: Mapping[str, str] = field(default_factory=dict, hash=False)
    only_listed: bool = False

    @property
    def denies(self) -> bool:
        """Whether it says that the person is no active member."""
        return self.status != "active" and not self.only_listed

    @property
    def clock(self) -> str:
        """Its clock, which sorts among those of events.

        Its end is made of what it says: two lists of one second that differ must not be taken for
        one, or what is mirrored would depend on which came first.
        """
        said = [self.tenant_id, self.membership_id, self.app_role, sorted(self.claims.items())]
        digest = hashlib.blake2b(msgspec.json.encode([self.status, *said]), digest_size=8)
        return f"{self.timestamp:013d}{int(self.denies)}list-{digest.hexdigest()}"

    def sighting(self) -> "Evidence":
        """Return the evidence that the person is in the list, and nothing else."""
        return replace(self, only_listed=True)

    def writes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (register, columns with their values) for all that it says."""
        if self.only_listed:
            # A register without columns: its clock is all that a row can be given of it.
            yield _LISTED, {}
            return
        for column, value in self.claims.items():
            yield column, {column: value}
        yield "app_role", {"app_role": self.app_role}
        yield (
            "membership",
            {
                "tenant_id": self.tenant_id,
                "membership_id": self.membership_id,
                "membership_status": self.status,
            },
        )


class Snapshot:
    """A list that can be believed, and the evidence that its lines are.

    Args:
        answer: The list as it was answered.
        tenant_id: The tenant that was asked about.
        application_id: Whose roles count.
        now: Our own time in milliseconds since 1970.
        skew: Milliseconds by which the provider's clock may be ahead of ours.

    Raises:
        ListRefused: It is empty, cut short, of another tenant or of the future, or contradicts
            itself.
    """

    def __init__(
        self,
        answer: TenantMemberships,
        *,
        tenant_id: str,
        application_id: str,
        now: int,
        skew: int = 300_000,
    ) -> None:
        if answer.tenant_id != tenant_id:
            raise ListRefused("the list is of another tenant than was asked about")
        if not answer.memberships:
            raise ListRefused("the list is empty, and a tenant always has an owner")
        if answer.total_count != len(answer.memberships):
            raise ListRefused(
                f"the list says that it has {answer.total_count} people, and has "
                f"{len(answer.memberships)}"
            )
        if answer.date > now + skew:
            # Its clock would win over every event until that moment has come.
            raise ListRefused(
                f"the list is dated {(answer.date - now) // 1000} s in the future: compare the "
                "clocks of AuthVital and of this machine"
            )
        self.taken_at: Final = answer.date - max(MARGIN, answer.waited)
        """When it was true by the provider's clock, in milliseconds since 1970."""
        if not 0 <= self.taken_at <= MAX_TIMESTAMP:
            raise ListRefused("the list is dated at a time that no event can have")
        self.tenant_id: Final = tenant_id
        self._application_id = application_id
        self._memberships = answer.memberships
        self._lines = _lines(answer.memberships)

    def __len__(self) -> int:
        """How many people are in it."""
        return len(self._lines)

    def __contains__(self, sub: str) -> bool:
        return sub in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def follows(self, previous: int | None) -> bool:
        """Whether it is newer than the list before; one that is not confirms nothing.

        Args:
            previous: When that was taken, in milliseconds since 1970; None where there was none.
        """
        return previous is None or previous < self.taken_at

    def __getitem__(self, sub: str) -> Evidence:
        """Return what it says of a person who is in it."""
        line = self._memberships[self._lines[sub]]
        ours = (role for role in line.roles if role.application_id == self._application_id)
        role = next(ours, None)
        said = {
            "email": line.user.email,
            "given_name": line.user.given_name,
            "family_name": line.user.family_name,
        }
        return Evidence(
            sub=sub,
            timestamp=self.taken_at,
            tenant_id=self.tenant_id,
            membership_id=line.id,
            status=_STATUSES[line.status],
            app_role=(role.slug or None) if role is not None else None,
            # A name that is missing here was not lost: it may never have been asked for.
            claims={column: value for column, value in said.items() if value},
        )


@dataclass(slots=True)
class Brake:
    """Decides whether a list would lock out more people than a list may.

    Args:
        share: Of a tenant's people with access, as a number from 0 to 1.
        people: How many have access now.
        losing: How many of them would lose it, or the role that they have.
    """

    share: float
    people: int = 0
    losing: int = 0

    @property
    def holds(self) -> bool:
        """Whether nothing may be taken away."""
        return self.losing >= _FEWEST and self.losing > self.share * self.people


def departure(
    tenant_id: str, application_id: str, sub: str, membership_id: str | None, at: int
) -> Event:
    """Return the `member.left` of a person who is missing from a tenant's list.

    The same for everybody who finds it out from the same list, so that it happens once.

    Args:
        tenant_id: The tenant.
        application_id: Our application.
        sub: The person.
        membership_id: Which membership ended, where that is known.
        at: When the list was taken, in milliseconds since 1970.
    """
    told = msgspec.json.encode([tenant_id, sub, at])
    data: dict[str, Any] = {"sub": sub}
    if membership_id is not None:
        data["membership_id"] = membership_id
    return Event(
        id=f"reconcile-{hashlib.sha256(told).hexdigest()}",
        type="member.left",
        timestamp=at,
        tenant_id=tenant_id,
        application_id=application_id,
        sub=sub,
        data=data,
        dialect=Dialect.SYNC,
    )


def _lines(memberships: Sequence[Membership]) -> dict[str, int]:
    """Return where in the list each person is.

    Raises:
        ListRefused: It contradicts itself, or says what cannot be kept.
    """
    lines: dict[str, int] = {}
    ids: set[str] = set()
    for number, line in enumerate(memberships):
        if line.status not in _STATUSES:
            raise ListRefused("the list has a status that is not known here")
        user = line.user
        texts = [user.id, line.id, user.email, user.given_name, user.family_name]
        texts += [role.slug for role in line.roles]
        if any(text and "\x00" in text for text in texts):
            raise ListRefused(
                "the list has a text with the character U+0000, which no database keeps"
            )
        if max(len(user.id.encode()), len(line.id.encode())) > MAX_ID_BYTES:
            raise ListRefused(f"the list has an id of more than {MAX_ID_BYTES} bytes")
        first = lines.setdefault(user.id, number)
        if first != number:
            if memberships[first] != line:
                raise ListRefused("the list says two different things of one person")
        elif line.id in ids:
            raise ListRefused("the list gives two people the same membership")
        ids.add(line.id)
    return lines
