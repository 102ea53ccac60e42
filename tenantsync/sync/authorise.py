"""Whether a person may come in: the questions that a valid token does not answer.

What is asked, and why a token is no proof of membership, stands in
`docs/explanation/authorisation.md`.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cachetools import LRUCache, TTLCache

from tenantsync.control.database import ControlUnavailable
from tenantsync.control.denials import Denials
from tenantsync.errors import (
    TenantNotMigrated,
    TenantSuspended,
    TenantSyncError,
    TenantUnavailable,
    UnknownTenant,
)
from tenantsync.models import Identity, IdentityMixin
from tenantsync.sync.failures import translate
from tenantsync.sync.merge import revert_clocks
from tenantsync.sync.threads import FairThreads
from tenantsync.tenancy.resolver import TenantResolver
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.tenants import Tenant

__all__ = ["DENIALS", "Admitted", "Authoriser", "Denial", "Denied", "judge"]

DENIALS: Final = frozenset(
    {
        "app_access.revoked",
        "member.left",
        "member.suspended",
        "subject.deactivated",
        "subject.deleted",
        "tenant.app.revoked",
    }
)
"""The types of events that take access away."""

_REMEMBERED: Final = 20_000
_AGAIN: Final = 1.0
"""Seconds after which an inbox that did not answer is asked again."""
_GRACE: Final = 60.0
"""Seconds before an outage of the inbox in which a lane must have been seen empty."""


class Denial(StrEnum):
    """Why a person is not let in; for logs and metrics, not for the person."""

    DEACTIVATED = "deactivated"
    """The account is not active at the provider."""

    NO_ACCESS = "no_access"
    """The person has no access to this application."""

    NO_MEMBER = "no_member"
    """The person is no active member of the token's tenant."""

    UNKNOWN_PERSON = "unknown_person"
    """The tenant's database has no such person."""

    UNKNOWN_TENANT = "unknown_tenant"
    """No source knows the token's tenant."""

    SUSPENDED_TENANT = "suspended_tenant"
    """An operator suspended the tenant."""

    WAITING = "waiting"
    """A denial for the person was accepted and is not applied yet."""

    @property
    def reason(self) -> str:
        """What the person is told, in the words of the provider's guide."""
        if self is Denial.DEACTIVATED:
            return "Your account has been deactivated."
        return "You do not have access to this application."


class Denied(TenantSyncError):
    """The token is good, and the person may not come in.

    Args:
        denial: Why.
    """

    def __init__(self, denial: Denial) -> None:
        super().__init__(denial.reason)
        self.denial = denial


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who may come in.

    Args:
        identity: The person's row, loaded, and not attached to any session.
        tenant: Of which tenant they are a member.
    """

    identity: IdentityMixin
    tenant: Tenant


def judge(person: IdentityMixin, tenant_id: str, *, shared: bool = False) -> Denial | None:
    """Return why a person may not come in, or None if they may. Pure.

    Args:
        person: The row.
        tenant_id: The token's tenant.
        shared: Whether several tenants share the place. Then nobody can say which of them granted
            access, so that a grant does not stand in for a membership.
    """
    if person.is_active is not True:
        return Denial.DEACTIVATED
    if person.has_app_access is not True:
        return Denial.NO_ACCESS
    written = revert_clocks(person.clocks)
    if person.membership_status is None and "membership" not in written:
        # The provider tells an application of a join only if the invitation named it. Who was
        # given access in so many words is a member; who has it by default may be anybody.
        stands_in = "has_app_access" in written and not shared
        return None if stands_in else Denial.NO_MEMBER
    if person.membership_status == "active" and person.tenant_id == tenant_id:
        return None
    return Denial.NO_MEMBER


class Authoriser:
    """Answers whether a person may come in, from the tenant's own database.

    Args:
        resolver: Finds tenants.
        sessions: Opens the tenants' databases; a `limit` of `threads` is right, and a
            `statement_timeout`, so that who hangs lets go.
        denials: What the inbox holds against people; None where there is no inbox.
        model: The class of `av_identities`: the application's own, if it has one.
        shared: Whether all tenants share one place.
        cache: Seconds for which who was let in is let in again without a look. None by default:
            then access ends in the moment in which an event is committed or parked, by whichever
            process. See `forget`.
        threads: How many look-ups run at once, half of them at most for one tenant.
        patience: Seconds that a caller waits.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        resolver: TenantResolver,
        sessions: TenantSessions,
        *,
        denials: Denials | None = None,
        model: type[IdentityMixin] = Identity,
        shared: bool = False,
        cache: float = 0.0,
        threads: int = 4,
        patience: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = resolver
        self._sessions = sessions
        self._lookout = None if denials is None else _Lookout(denials, clock)
        self._model = model
        self._shared = shared
        self._memory = _Memory(cache, clock) if cache > 0 else None
        self._patience = patience
        self._threads = FairThreads(
            threads, share=max(1, threads // 2), name="tenantsync-authorise"
        )

    async def authorise(self, tenant_id: str, sub: str) -> Admitted:
        """Return who comes in.

        Args:
            tenant_id: The token's tenant.
            sub: The token's person.

        Raises:
            Denied: They may not; `denial` says why.
            Unavailable: It cannot be said now; nobody is let in.
        """
        try:
            tenant = await self._resolver.resolve(tenant_id)
        except (UnknownTenant, TenantSuspended) as error:
            raise _denied(error) from None
        known = self._known(tenant, sub)
        if known is not None:
            return known
        answer = self._threads.submit(tenant.placement, lambda: self._look(tenant, sub))
        try:
            async with asyncio.timeout(self._patience):
                return await asyncio.wrap_future(answer)
        except TimeoutError:
            raise TenantUnavailable(
                f"tenant {tenant.key!r} took longer than {self._patience:g} s"
            ) from None

    def authorise_blocking(self, tenant_id: str, sub: str) -> Admitted:
        """Return who comes in, as `authorise` does, for a caller without an event loop."""
        try:
            tenant = self._resolver.resolve_blocking(tenant_id)
        except (UnknownTenant, TenantSuspended) as error:
            raise _denied(error) from None
        return self._known(tenant, sub) or self._look(tenant, sub)

    def forget(self, tenant_id: str, sub: str | None) -> None:
        """Look a person up anew from now on: an event about them was applied or parked.

        Args:
            tenant_id: The provider's id of the tenant.
            sub: The person; None stands for nobody.
        """
        if self._memory is not None and sub is not None:
            self._memory.forget((tenant_id, sub))

    def close(self) -> None:
        """End the threads, if there ever were any."""
        self._threads.close()

    def _known(self, tenant: Tenant, sub: str) -> Admitted | None:
        identity = None if self._memory is None else self._memory.recall((tenant.id, sub))
        return None if identity is None else Admitted(identity, tenant)

    def _look(self, tenant: Tenant, sub: str) -> Admitted:
        if self._memory is None:
            return Admitted(self._found(tenant, sub), tenant)
        who, identity = (tenant.id, sub), None
        ticket = self._memory.begin(who)
        try:
            identity = self._found(tenant, sub)
        finally:
            self._memory.end(who, ticket, identity)
        return Admitted(identity, tenant)

    def _found(self, tenant: Tenant, sub: str) -> IdentityMixin:
        # The inbox first: a denial that is applied between the two looks has left the inbox only
        # after it was committed in the row. The other way round it could be seen in neither.
        if self._lookout is not None and self._lookout.denied(tenant.id, sub):
            raise Denied(Denial.WAITING)
        identity = self._row(tenant, sub)
        if identity is None:
            raise Denied(Denial.UNKNOWN_PERSON)
        denial = judge(identity, tenant.id, shared=self._shared)
        if denial is not None:
            raise Denied(denial)
        return identity

    def _row(self, tenant: Tenant, sub: str) -> IdentityMixin | None:
        try:
            with self._sessions.session(tenant, read_only=True) as session:
                identity = session.get(self._model, sub)
                if identity is not None:
                    session.expunge(identity)
                return identity
        except TenantSyncError:
            raise
        except Exception as error:  # whatever the driver raises means "cannot say"
            found = translate(error, tenant.placement)
            if isinstance(found, TenantNotMigrated):
                raise found from error
            raise TenantUnavailable(
                f"tenant {tenant.key!r} could not be asked: {type(error).__name__}"
            ) from error


def _denied(error: UnknownTenant | TenantSuspended) -> Denied:
    unknown = isinstance(error, UnknownTenant)
    return Denied(Denial.UNKNOWN_TENANT if unknown else Denial.SUSPENDED_TENANT)


class _Lookout:
    """Asks the inbox, and knows what to say while it does not answer.

    In an outage nothing is parked, so a lane that was seen empty just before it stays empty. For
    every other lane nobody can say.

    Args:
        denials: Asks.
        clock: Monotonic seconds.
    """

    def __init__(self, denials: Denials, clock: Callable[[], float]) -> None:
        self._denials = denials
        self._clock = clock
        self._lock = threading.Lock()
        self._empty: LRUCache[str, float] = LRUCache(_REMEMBERED)  # tenant -> when it was seen so
        self._down_since: float | None = None
        self._again_at = 0.0
        self._trouble: ControlUnavailable | None = None

    def denied(self, tenant_id: str, sub: str) -> bool:
        """Whether a denial waits for a person.

        Raises:
            ControlUnavailable: The inbox does not answer, and the tenant's lane was not empty, or
                not looked at just before.
        """
        now = self._clock()
        with self._lock:
            if self._trouble is not None:
                if now < self._again_at:
                    return self._remembered(tenant_id, self._trouble)
                self._again_at = now + _AGAIN  # one tries, the others do not wait for it
        try:
            found = self._denials.waiting(tenant_id, sub)
        except ControlUnavailable as error:
            with self._lock:
                if self._down_since is None:
                    self._down_since = now
                self._trouble, self._again_at = error, self._clock() + _AGAIN
                return self._remembered(tenant_id, error)
        with self._lock:
            self._down_since = self._trouble = None
            if found.anything:
                self._empty.pop(tenant_id, None)
            else:
                self._empty[tenant_id] = now
        return found.denied

    def _remembered(self, tenant_id: str, error: ControlUnavailable) -> bool:
        seen = self._empty.get(tenant_id)
        if seen is None or self._down_since is None or seen < self._down_since - _GRACE:
            raise ControlUnavailable(
                "nobody can say whether a denial waits in the inbox: the control database does "
                "not answer"
            ) from error
        return False


class _Memory:
    """Who was let in a moment ago.

    Args:
        seconds: How long a moment is.
        clock: Monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._people: TTLCache[tuple[str, str], IdentityMixin] = TTLCache(
            _REMEMBERED, seconds, timer=clock
        )
        self._readings: dict[tuple[str, str], object] = {}

    def recall(self, who: tuple[str, str]) -> IdentityMixin | None:
        """Return the person's row, or None."""
        with self._lock:
            return self._people.get(who)

    def begin(self, who: tuple[str, str]) -> object:
        """Return a ticket for a row that is about to be read."""
        ticket = object()
        with self._lock:
            self._readings[who] = ticket
        return ticket

    def end(self, who: tuple[str, str], ticket: object, row: IdentityMixin | None) -> None:
        """Keep the row that was read, unless it was forgotten, or read again, meanwhile."""
        with self._lock:
            if self._readings.get(who) is ticket:
                del self._readings[who]
                if row is not None:
                    self._people[who] = row

    def forget(self, who: tuple[str, str]) -> None:
        """Forget a row, and do not keep one that is being read."""
        with self._lock:
            self._people.pop(who, None)
            self._readings.pop(who, None)
