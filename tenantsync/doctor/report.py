"""What the doctor says: findings, each with a level and what to do, and all of them as a report."""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Level", "Note", "Report"]


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    """As it should be."""
    WARNING = "warning"
    """It works, and somebody should look at it."""
    ERROR = "error"
    """Events are not applied, or soon will not be."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        subject: What it was: `"configuration"`, `"keys"`, `"clock"`, `"control"`, `"inbox"`,
            `"files"` or `"tenant"`.
        level: How bad it is.
        what: What was found, in a sentence.
        remedy: What to do, in a sentence; None where there is nothing to do.
        tenant: The tenant's key; None for what concerns all of them.
    """

    subject: str
    level: Level
    what: str
    remedy: str | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """One finding about a tenant, before it is said which tenant it is.

    Args:
        level: How bad it is.
        what: What was found, in a sentence.
        remedy: What to do, in a sentence, or None.
    """

    level: Level
    what: str
    remedy: str | None = None

    def about(self, tenant: str) -> Finding:
        """Return it as the finding about a tenant with this key."""
        return Finding("tenant", self.level, self.what, self.remedy, tenant)


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found.

    Args:
        findings: What concerns all tenants first, then each tenant in the order of the fleet.
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error; there may be warnings."""
        return not self.counts[Level.ERROR]

    @property
    def counts(self) -> Counter[Level]:
        """How many findings there are of each level."""
        return Counter(finding.level for finding in self.findings)
