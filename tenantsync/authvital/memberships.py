"""What the integration API tells: typed rows of its lists, read one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar, overload

import msgspec

__all__ = [
    "ApplicationMembership",
    "ApplicationMemberships",
    "LicenseHolder",
    "LicenseHolders",
    "Membership",
    "Role",
    "Rows",
    "Subject",
    "TenantMemberships",
    "TenantName",
    "Wire",
]

_Row = TypeVar("_Row", bound=msgspec.Struct)
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]


class Wire(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Read from camelCase JSON; members that nobody needs are not kept."""


class Subject(Wire, frozen=True, gc=False):
    """Who: the provider's user.

    Args:
        id: The `sub`.
        email: The address, or None.
        given_name: The given name, or None.
        family_name: The family name, or None.
    """

    id: _Id
    email: str | None = None
    given_name: str | None = None
    family_name: str | None = None


class Role(Wire, frozen=True, gc=False):
    """A role in an application; tenant roles are told by no endpoint.

    Args:
        slug: The role's short name, unique within its application.
        application_id: Whose role, or None where the list is of one application.
    """

    slug: str
    application_id: str | None = None


class TenantName(Wire, frozen=True, gc=False):
    """Which tenant a membership of an application is in."""

    id: _Id


class Membership(Wire, frozen=True, gc=False):
    """One person's membership of the tenant that was asked about.

    Args:
        id: The membership's id; another one after leaving and joining again.
        status: `ACTIVE`, `INVITED` or `SUSPENDED`, as the provider writes it.
        user: Who.
        roles: The roles in every application, in the provider's order.
    """

    id: _Id
    status: str
    user: Subject
    roles: tuple[Role, ...]


class ApplicationMembership(Wire, frozen=True, gc=False):
    """One membership, of any tenant, that has a role in the application that was asked about.

    Args:
        id: The membership's id.
        status: `ACTIVE`, `INVITED` or `SUSPENDED`.
        user: Who.
        tenant: Where.
        roles: The roles in this application.
    """

    id: _Id
    status: str
    user: Subject
    tenant: TenantName
    roles: tuple[Role, ...]


class LicenseHolder(Wire, frozen=True, gc=False):
    """Someone who holds a seat.

    Args:
        user_id: The `sub`.
        license_type_id: Id of the kind of seat.
        license_type_name: Name of the kind of seat.
        assigned_at: When it was given, ISO 8601.
    """

    user_id: _Id
    license_type_id: str
    license_type_name: str
    assigned_at: str


class Rows(Sequence[_Row], Generic[_Row]):
    """The rows of an answer. Each is made when it is asked for, and may then be let go.

    All of them were read once when the answer came, so none can fail later. Only the answer's own
    bytes are kept: 100,000 memberships as objects would take twice their size again.

    Args:
        raws: The JSON of each row.
        decoder: Reads one.
    """

    __slots__ = ("_decoder", "_raws")

    def __init__(self, raws: Sequence[msgspec.Raw], decoder: "msgspec.json.Decoder[_Row]") -> None:
        self._raws = raws
        self._decoder = decoder

    def __len__(self) -> int:
        return len(self._raws)

    def __iter__(self) -> Iterator[_Row]:
        return map(self._decoder.decode, self._raws)

    @overload
    def __getitem__(self, index: int) -> _Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows[_Row]": ...
    def __getitem__(self, index: int | slice) -> "_Row | Rows[_Row]":
        if isinstance(index, slice):
            return Rows(self._raws[index], self._decoder)
        return self._decoder.decode(self._raws[index])


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantMemberships:
    """The people of one tenant, as the provider answered; nothing of it is checked here.

    Args:
        tenant_id: The tenant that the answer says it is about.
        total_count: How many memberships the answer says that it holds.
        memberships: The memberships.
        date: The answer's `Date` in unix milliseconds: the provider's clock, in whole seconds.
        waited: Milliseconds from asking to the first byte of the answer. What the list says is true
            at some moment between `date - waited` and `date`, cut off to a second.
    """

    tenant_id: str
    total_count: int
    memberships: Rows[Membership]
    date: int
    waited: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationMemberships:
    """The people who have a role in one application, over all tenants.

    Args:
        application_id: The application's id.
        client_id: The credential that was asked about, as answered.
        total_count: How many memberships the answer says that it holds.
        memberships: The memberships.
        date: The answer's `Date` in unix milliseconds.
        waited: Milliseconds from asking to the first byte of the answer.
    """

    application_id: str
    client_id: str
    total_count: int
    memberships: Rows[ApplicationMembership]
    date: int
    waited: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenseHolders:
    """Who holds a seat of one application in one tenant.

    Args:
        holders: The people; the answer names neither tenant nor count.
        date: The answer's `Date` in unix milliseconds.
        waited: Milliseconds from asking to the first byte of the answer.
    """

    holders: Rows[LicenseHolder]
    date: int
    waited: int
