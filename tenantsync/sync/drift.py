"""What reconciliation found and did: for each tenant, for a whole run, and summed up."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

__all__ = ["Difference", "DriftCounter", "Report", "State", "TenantReport"]

_PEOPLE: Final = ("added", "changed", "removed", "unchanged", "held_back")


class State(StrEnum):
    """How the reconciliation of one tenant ended."""

    DONE = "done"
    """The mirror says what the list says, or what newer events say."""
    HELD_BACK = "held_back"
    """Too many people would have lost their access: nothing was taken away, the rest was done."""
    REFUSED = "refused"
    """The list was not believed; nothing was changed."""
    FAILED = "failed"
    """The list was not to be had, or the tenant's database did not take it to the end."""
    SKIPPED = "skipped"
    """It was not begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a list says otherwise than the mirror, of one person. Personal data: not for logs.

    Args:
        what: `"added"`, `"changed"` or `"removed"`.
        sub: Who.
        columns: Column -> what it is, and what it would be.
    """

    what: str
    sub: str = field(repr=False)
    columns: Mapping[str, tuple[Any, Any]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantReport:
    """What became of one tenant.

    Args:
        tenant: Its key.
        tenant_id: AuthVital's id.
        state: How it ended.
        people: How many are in the list.
        added: How many were not known.
        changed: Of how many something was different.
        removed: How many are not members any more, by two lists.
        unchanged: How many are as they were, or are known better from newer events.
        held_back: How many would have lost their access and did not.
        why: Why it ended otherwise than done, in a sentence without personal data; or None.
        snapshot: When the list was taken by the provider's clock, in milliseconds since 1970.
        dry_run: Whether nothing was written.
        seconds: How long it took.
    """

    tenant: str
    tenant_id: str
    state: State
    people: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    held_back: int = 0
    why: str | None = None
    snapshot: int | None = None
    dry_run: bool = False
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there is nothing to look at."""
        return self.state in (State.DONE, State.SKIPPED)

    def fields(self) -> dict[str, Any]:
        """Return what a log record says of it."""
        return {
            "tenant": self.tenant,
            "state": self.state.value,
            "people": self.people,
            **{name: getattr(self, name) for name in _PEOPLE},
            "dry_run": self.dry_run,
            "reason": self.why,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all tenants of a run, in their order.

    Args:
        tenants: One for each.
    """

    tenants: Sequence[TenantReport]

    @property
    def ok(self) -> bool:
        """Whether no tenant failed, was refused or held back."""
        return all(each.ok for each in self.tenants)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many tenants ended how, by state; those that did not occur are left out."""
        return MappingProxyType(Counter(each.state.value for each in self.tenants))


class DriftCounter:
    """Sums up what reconciliation found since it was made. May be told from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def __call__(self, tenant: TenantReport, /) -> None:
        """Count one tenant. A dry run is none: it would count the same people again and again."""
        if tenant.dry_run:
            return
        with self._lock:
            self._counts[f"tenants_{tenant.state}"] += 1
            for name in _PEOPLE:
                self._counts[f"people_{name}"] += getattr(tenant, name)

    def counts(self) -> dict[str, int]:
        """Return the numbers by a few fixed names, every name always there: for metrics."""
        names = [f"tenants_{state}" for state in State] + [f"people_{name}" for name in _PEOPLE]
        with self._lock:
            return {name: self._counts[name] for name in names}
