"""Removes local sessions that ended long ago from one place, a stretch of the table at a time.

No statement reads more than one stretch, so that none runs into a timeout however large the table
is; and none waits for a row that somebody else holds, which is left for the next time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, delete, func, select, true
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import IntegrityError as Kept
from sqlalchemy.orm import Session

from tenantsync.errors import TenantNotMigrated, TenantSyncError, TenantUnavailable
from tenantsync.local_sessions import is_stale
from tenantsync.models import IdentitySession
from tenantsync.sync.failures import translate
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.tenants import Placement

__all__ = ["Stale", "StaleSessions"]

_ID: Final = IdentitySession.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """How many sessions were removed, or would be.

    Args:
        expired: Those that expired long ago.
        revoked: Those that were revoked long ago and did not expire as long ago.
    """

    expired: int = 0
    revoked: int = 0

    def __add__(self, other: "Stale") -> "Stale":
        return Stale(expired=self.expired + other.expired, revoked=self.revoked + other.revoked)


class StaleSessions:
    """Removes old sessions from places, or counts them.

    Args:
        sessions: Opens SQLAlchemy sessions in places.
        stretch: How many rows are read, and may be removed, in one transaction.
    """

    def __init__(self, sessions: TenantSessions, *, stretch: int = 1_000) -> None:
        self._sessions = sessions
        self._stretch = stretch

    def remove(
        self,
        placement: Placement,
        *,
        before: datetime,
        expired_only: bool = False,
        dry_run: bool = False,
    ) -> Iterator[Stale]:
        """Remove the sessions that ended before a moment, a stretch with each step.

        Args:
            placement: Whose sessions.
            before: Those that expired or were revoked earlier than this, with its zone.
            expired_only: Whether those that were revoked stay until they have expired that long.
            dry_run: Count only, and write nothing.

        Yields:
            How many those of the stretch were; whoever stops asking ends it early.

        Raises:
            TenantSyncError: The place cannot be had now, or refused.
        """
        stale = is_stale(IdentitySession, before=before, expired_only=expired_only)
        expired = IdentitySession.expires_at < before
        last: str | None = None
        while True:
            with self._asking(placement, read_only=True) as session:
                edge = self._edge(session, last)
                chosen = _between(last, edge) & stale
                found = _count(session, chosen, expired)
            if found != Stale() and not dry_run:
                # Looked at first, because a transaction that writes has SQLite's one lock.
                with self._asking(placement, read_only=False) as session:
                    found = _remove(session, chosen, expired)
                    session.commit()
            yield found
            if edge is None:
                return
            last = edge

    def _edge(self, session: Session, last: str | None) -> str | None:
        """Return the id that ends the stretch; None where the table ends in it."""
        # By the primary key: there is no index on the times, and one would cost every login.
        following = select(_ID).where(_between(last, None)).order_by(_ID)
        return session.scalar(following.offset(self._stretch - 1).limit(1))

    @contextmanager
    def _asking(self, placement: Placement, *, read_only: bool) -> Iterator[Session]:
        try:
            with self._sessions.session(placement, read_only=read_only) as session:
                yield session
        except TenantSyncError:
            raise
        except Exception as error:
            raise _told(error, placement) from error


def _between(last: str | None, edge: str | None) -> ColumnElement[bool]:
    after = true() if last is None else last < _ID
    return after if edge is None else after & (edge >= _ID)


def _count(session: Session, chosen: ColumnElement[bool], expired: ColumnElement[bool]) -> Stale:
    every, old = session.execute(
        select(func.count(), func.count().filter(expired)).where(chosen)
    ).one()
    return Stale(expired=old, revoked=every - old)


def _remove(session: Session, chosen: ColumnElement[bool], expired: ColumnElement[bool]) -> Stale:
    free = select(_ID).where(chosen).with_for_update(skip_locked=True)
    answers = session.scalars(
        delete(IdentitySession)
        .where(_ID.in_(free))
        .returning(expired)
        .execution_options(synchronize_session=False)
    ).all()
    old = sum(answers)
    return Stale(expired=old, revoked=len(answers) - old)


def _told(error: Exception, placement: Placement) -> TenantSyncError:
    """Return what the operator is told in place of a driver's error."""
    found = translate(error, placement)
    if isinstance(found, TenantNotMigrated):
        return found
    if isinstance(error, Kept):
        return TenantUnavailable(
            f"a table of the application's own in {placement} keeps old sessions from being "
            "removed: let its foreign key cascade, or set it to NULL"
        )
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    state = getattr(cause, "sqlstate", None)
    name = f"{type(cause).__name__} {state}" if state else type(cause).__name__
    return TenantUnavailable(f"{placement} did not answer, or refused ({name})")
