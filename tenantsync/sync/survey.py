"""What a tenant's list would change, found out before anything is changed. Writes nothing."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, TypeVar

from tenantsync.sync.evidence import Brake, Snapshot
from tenantsync.sync.merge import Person, Tombstone, merge
from tenantsync.sync.mirror import Mirror
from tenantsync.sync.standing import is_missing, loses, may_enter
from tenantsync.tenants import Tenant

__all__ = ["Differs", "Survey", "portions", "survey"]

Differs = Callable[[str, str, Mapping[str, tuple[Any, Any]]], object]
"""Told of each difference: what it is, of whom, and column -> (as it is, as it would be)."""

_PORTION: Final = 500
_T = TypeVar("_T")


@dataclass(slots=True)
class Survey:
    """What a list would change.

    Args:
        brake: How many people would lose their access.
        added: How many people are not known.
        changed: Of how many something is different.
        unchanged: How many are as they are, or are known better from newer events.
        demoted: How many of those in the list would lose their access, or their role.
        missing: Who has left: their id and that of their membership.
    """

    brake: Brake
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    demoted: int = 0
    missing: list[tuple[str, str | None]] = field(default_factory=list)


def survey(
    mirror: Mirror,
    tenant: Tenant,
    snapshot: Snapshot,
    *,
    horizon: int | None,
    max_removal: float,
    shared: bool,
    differs: Differs,
) -> Survey:
    """Compare everybody whom a tenant's place knows with the tenant's list.

    Args:
        mirror: The mirrored people.
        tenant: Whose place.
        snapshot: The tenant's list.
        horizon: When the list before was taken; None where nobody may be taken for gone.
        max_removal: As for `Brake`.
        shared: Whether all tenants share one place.
        differs: Told of each difference.

    Raises:
        TenantSyncError: The place cannot be read now.
    """
    found = Survey(Brake(max_removal))
    unseen = set(snapshot)
    for sub, person in mirror.people(tenant.placement):
        enters = may_enter(person, tenant.id)
        found.brake.people += enters
        if sub in snapshot:
            unseen.discard(sub)
            after = merge(person, snapshot[sub]).state
            found.demoted += loses(person, after, tenant.id)
            columns = _differences(person, after)
            if columns:
                found.changed += 1
                differs("changed", sub, columns)
            else:
                found.unchanged += 1
        elif horizon is not None and is_missing(person, tenant.id, previous=horizon, shared=shared):
            found.brake.losing += enters
            found.missing.append((sub, person.values["membership_id"]))
            differs(
                "removed", sub, {"membership_status": (person.values["membership_status"], "left")}
            )
    found.brake.losing += found.demoted
    unknown = Person.unknown(default_app_access=mirror.default_app_access)
    for portion in portions(unseen, _PORTION):
        buried = mirror.buried(tenant.placement, portion)
        found.unchanged += len(buried)
        found.added += len(portion) - len(buried)
        for sub in portion:
            if sub not in buried:
                differs("added", sub, _differences(unknown, merge(unknown, snapshot[sub]).state))
    return found


def portions(everything: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield lists of at most so many, until all were in one."""
    rest = iter(everything)
    while portion := list(islice(rest, size)):
        yield portion


def _differences(before: Person, after: Person | Tombstone) -> dict[str, tuple[Any, Any]]:
    if after is before or isinstance(after, Tombstone):
        return {}
    return {
        column: (before.values[column], value)
        for column, value in after.values.items()
        if value != before.values[column]
    }
