"""A denial ends the person's local sessions in the transaction that applies it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from tenantsync.events import Dialect, Event
from tenantsync.models import Identity, IdentitySession
from tenantsync.observe import Outcome
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.hooks import bound_session
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenants import Placement

NOON = datetime(2026, 8, 22, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DENIALS = ["member.left", "member.suspended", "app_access.revoked", "subject.deactivated"]


def event(event_type: str, at: datetime) -> Event:
    """Make an event about Ann."""
    return Event(
        id=f"{event_type} {at}",
        type=event_type,
        timestamp=round(at.timestamp() * 1000),
        tenant_id="acme",
        application_id="app",
        sub="ann",
        data={"sub": "ann"},
        dialect=Dialect.SYNC,
    )


def opened(at: datetime) -> IdentitySession:
    """Make a session of Ann's that was opened then."""
    return IdentitySession(
        id=f"{at:%H:%M}", identity_id="ann", created_at=at, expires_at=at + timedelta(days=1)
    )


def ended(session: Session) -> dict[str, bool]:
    """Return which sessions are over, by the time of their opening."""
    rows = session.execute(select(IdentitySession.id, IdentitySession.revoked_at))
    return {name: revoked_at is not None for name, revoked_at in rows}


@contextmanager
def inside(registry: EngineRegistry, placement: Placement) -> Iterator[Session]:
    """Give a session in the placement, whose transaction is committed at the end."""
    with (
        registry.connect(placement) as connection,
        connection.begin(),
        bound_session(connection, placement) as session,
    ):
        yield session


@pytest.mark.parametrize("denial", DENIALS)
def test_a_denial_that_wins_ends_every_session(migrated_place: Placement, denial: str) -> None:
    """Also those opened after it: who may not come in has no business being inside."""
    registry = EngineRegistry()
    with registry, IdentitySyncHandler(migrated_place, registry=registry) as handler:
        handler.handle_blocking(event("member.joined", NOON - MINUTE))
        with inside(registry, migrated_place) as session:
            session.add_all([opened(NOON - MINUTE), opened(NOON + MINUTE)])
            session.commit()

        outcome = handler.handle_blocking(event(denial, NOON))

        with inside(registry, migrated_place) as session:
            assert outcome is Outcome.APPLIED
            assert ended(session) == {"11:59": True, "12:01": True}


@pytest.mark.parametrize(
    ("denial", "later_grant"),
    [
        ("member.left", "member.joined"),
        ("member.suspended", "member.activated"),
        ("app_access.revoked", "app_access.granted"),
        ("subject.deactivated", "subject.created"),
    ],
)
def test_a_stale_denial_ends_older_sessions_only(
    migrated_place: Placement, denial: str, later_grant: str
) -> None:
    """The session opened after it was opened by somebody who was let in again."""
    registry = EngineRegistry()
    with registry, IdentitySyncHandler(migrated_place, registry=registry) as handler:
        for kind in ("member.joined", "app_access.granted", later_grant):
            handler.handle_blocking(event(kind, NOON + MINUTE))
        # These two would win registers of a leaver; here the denial must find nothing to win.
        handler.handle_blocking(event("member.left", NOON + MINUTE / 2))
        handler.handle_blocking(event("app_access.revoked", NOON + MINUTE / 2))
        with inside(registry, migrated_place) as session:
            session.add_all([opened(NOON - MINUTE), opened(NOON + 2 * MINUTE)])
            session.commit()

        handler.handle_blocking(event(denial, NOON))

        with inside(registry, migrated_place) as session:
            assert ended(session) == {"11:59": True, "12:02": False}


def test_a_deletion_takes_the_sessions_with_it(migrated_place: Placement) -> None:
    """Neither the row nor anything that hangs on it is left."""
    registry = EngineRegistry()
    with registry, IdentitySyncHandler(migrated_place, registry=registry) as handler:
        handler.handle_blocking(event("member.joined", NOON))
        with inside(registry, migrated_place) as session:
            session.add(opened(NOON))
            session.commit()

        handler.handle_blocking(event("subject.deleted", NOON))

        with inside(registry, migrated_place) as session:
            assert ended(session) == {}
            assert session.scalars(select(Identity)).all() == []
