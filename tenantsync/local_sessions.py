"""Local sessions of people: your application opens one at its login, and ends it.

The provider tells nobody of its own sessions. So a row of `av_identity_sessions` is what your
application writes there, and what a denial ends (docs/how-to/sessions.md). All functions take an
SQLAlchemy session that is bound to a tenant's place; committing is yours.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypedDict, Unpack, cast

from sqlalchemy import ColumnElement, CursorResult, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from typing_extensions import TypeVar

from tenantsync.errors import ConfigError, TenantSyncError
from tenantsync.models import Identity, IdentitySession, IdentitySessionMixin
from tenantsync.queries import is_storable, live_sessions, may_enter

__all__ = [
    "Client",
    "SessionRefused",
    "is_stale",
    "list_sessions",
    "open_session",
    "revoke_session",
    "revoke_sessions",
    "touch_session",
]

_S = TypeVar("_S", bound=IdentitySessionMixin, default=IdentitySession)

_MODEL: Final[Any] = IdentitySession
"""What stands in where no model is given; the type variable's default says so to checkers."""

_MINUTE: Final = timedelta(minutes=1)
_LONGEST_TEXT: Final = 1000
_LONGEST_ID: Final = 255
_DEACTIVATED: Final = "Your account has been deactivated."
_NO_ACCESS: Final = "You do not have access to this application."


class SessionRefused(TenantSyncError):
    """No session is opened, because the person has no access.

    Args:
        reason: What to tell the person, in a sentence: the same words as at a request's door.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"no session was opened; tell the person: {reason}")
        self.reason = reason


class Client(TypedDict, total=False):
    """What an application may keep about who opened a session, and where.

    Attributes:
        auth_session_id: The session at the provider. It changes with each refresh there.
        device_info: The device, in words of your own.
        ip_address: Where the request came from.
        user_agent: The header of that name.
    """

    auth_session_id: str | None
    device_info: str | None
    ip_address: str | None
    user_agent: str | None


def open_session(
    session: Session,
    identity_id: str,
    *,
    expires_in: timedelta | None = None,
    expires_at: datetime | None = None,
    now: datetime | None = None,
    tenant_id: str | None = None,
    model: type[_S] = _MODEL,
    **client: Unpack[Client],
) -> _S:
    """Open a session of a person who has access, and return it, flushed.

    Its id is random and may go into a cookie. Texts about the client are cut at 1,000 characters.

    Args:
        session: Bound to the tenant's place.
        identity_id: The person, by the provider's id.
        expires_in: How long it may live; give this or `expires_at`.
        expires_at: When it ends.
        now: The present, with its zone; by default what the machine's clock says.
        tenant_id: Demand a membership with this tenant, by AuthVital's id: where several tenants
            share a place.
        model: Your own class of the mixin, if you have one.
        client: See `Client`.

    Raises:
        SessionRefused: The person is not known, not active, or has no access: see
            `tenantsync.queries.may_enter`.
        ConfigError: No end was given, two were, or one that is not in the future.
        ValueError: A time has no zone.
    """
    moment = _moment(now)
    if (expires_in is None) == (expires_at is None):
        raise ConfigError("say when the session ends: give expires_in or expires_at, and not both")
    end = _moment(expires_at) if expires_in is None else moment + expires_in
    if end <= moment:
        raise ConfigError("the session would be over before it begins: let it end in the future")
    _refuse_denied(session, identity_id, tenant_id)
    opened = model()
    opened.identity_id = identity_id
    opened.auth_session_id = _kept(client.get("auth_session_id"))
    opened.device_info = _kept(client.get("device_info"))
    opened.ip_address = _kept(client.get("ip_address"))
    opened.user_agent = _kept(client.get("user_agent"))
    # By one clock all of them: a denial ends the sessions that were created before it.
    opened.created_at = opened.last_active_at = moment
    opened.expires_at = end
    try:
        with session.begin_nested():
            session.add(opened)
    except IntegrityError:
        # The person may have been deleted after we looked; any other reason is the caller's.
        _refuse_denied(session, identity_id, tenant_id)
        raise
    return opened


def touch_session(
    session: Session,
    session_id: str,
    *,
    now: datetime | None = None,
    every: timedelta = _MINUTE,
    tenant_id: str | None = None,
    model: type[_S] = _MODEL,
) -> _S | None:
    """Return the session if it is live, and note that it was used; otherwise None.

    Call it for each request: it writes only where `last_active_at` is older than `every`.

    Args:
        session: Bound to the tenant's place.
        session_id: What the client sent, whatever that is.
        now: The present, with its zone; by default what the machine's clock says.
        every: The least time between two writes.
        tenant_id: As for `open_session`.
        model: Your own class of the mixin, if you have one.

    Returns:
        The session, or None where it is unknown, revoked, expired, or of a person who has no
        access any more.

    Raises:
        ValueError: The time has no zone.
    """
    moment = _moment(now)
    if not _is_id(session_id):
        return None
    live = live_sessions(model, now=moment, tenant_id=tenant_id).where(model.id == session_id)
    found = session.scalars(live).one_or_none()
    if found is not None and moment - found.last_active_at >= every:
        session.execute(
            update(model)
            .where(model.id == session_id, model.last_active_at <= moment - every)
            .values(last_active_at=moment)
        )
    return found


def list_sessions(
    session: Session,
    identity_id: str,
    *,
    now: datetime | None = None,
    tenant_id: str | None = None,
    model: type[_S] = _MODEL,
) -> Sequence[_S]:
    """Return the person's live sessions, the one that was used last first.

    Args:
        session: Bound to the tenant's place.
        identity_id: The person, by the provider's id.
        now: The present, with its zone; by default what the machine's clock says.
        tenant_id: As for `open_session`.
        model: Your own class of the mixin, if you have one.

    Raises:
        ValueError: The time has no zone.
    """
    live = live_sessions(model, now=_moment(now), tenant_id=tenant_id)
    if not _is_id(identity_id):
        return []
    return session.scalars(
        live.where(model.identity_id == identity_id).order_by(model.last_active_at.desc(), model.id)
    ).all()


def revoke_session(
    session: Session,
    session_id: str,
    *,
    identity_id: str | None = None,
    now: datetime | None = None,
    model: type[IdentitySessionMixin] = IdentitySession,
) -> bool:
    """End a session, and return whether it was open until now.

    Args:
        session: Bound to the tenant's place.
        session_id: What the client sent, whatever that is.
        identity_id: End it only if it is this person's: give it where people choose from a list.
        now: The present, with its zone; by default what the machine's clock says.
        model: Your own class of the mixin, if you have one.

    Raises:
        ValueError: The time has no zone.
    """
    moment = _moment(now)
    if not _is_id(session_id) or not _is_id(identity_id or ""):
        return False
    chosen = model.id == session_id
    if identity_id is not None:
        chosen &= model.identity_id == identity_id
    return _revoke(session, model, chosen, moment) > 0


def revoke_sessions(
    session: Session,
    identity_id: str,
    *,
    keep: str | None = None,
    now: datetime | None = None,
    model: type[IdentitySessionMixin] = IdentitySession,
) -> int:
    """End the sessions of a person, and return how many were not revoked before.

    Those that expired count too: another machine's clock may think otherwise of them.

    Args:
        session: Bound to the tenant's place.
        identity_id: The person, by the provider's id.
        keep: The id of a session that goes on, such as the one that asks for this.
        now: The present, with its zone; by default what the machine's clock says.
        model: Your own class of the mixin, if you have one.

    Raises:
        ValueError: The time has no zone.
    """
    moment = _moment(now)
    if not _is_id(identity_id):
        return 0
    chosen = model.identity_id == identity_id
    if keep is not None and _is_id(keep):
        chosen &= model.id != keep
    return _revoke(session, model, chosen, moment)


def is_stale(
    model: type[IdentitySessionMixin], *, before: datetime, expired_only: bool = False
) -> ColumnElement[bool]:
    """Return the condition under which a session is old enough to be removed.

    Args:
        model: The sessions.
        before: Those that expired or were revoked earlier than this, with its zone.
        expired_only: Whether those that were revoked stay until they have expired that long ago.
    """
    expired = model.expires_at < before
    return expired if expired_only else or_(expired, model.revoked_at < before)


def _refuse_denied(session: Session, identity_id: str, tenant_id: str | None) -> None:
    """Refuse who has no access.

    Raises:
        SessionRefused: The person is not known, not active, or has no access.
    """
    found = None
    if _is_id(identity_id):
        found = session.execute(
            select(Identity.is_active, may_enter(Identity, tenant_id=tenant_id)).where(
                Identity.id == identity_id
            )
        ).one_or_none()
    is_active, allowed = found or (True, False)
    if not is_active:
        raise SessionRefused(_DEACTIVATED)
    if not allowed:
        raise SessionRefused(_NO_ACCESS)


def _revoke(
    session: Session,
    model: type[IdentitySessionMixin],
    chosen: ColumnElement[bool],
    moment: datetime,
) -> int:
    revoking = update(model).where(chosen, model.revoked_at.is_(None))
    result = session.execute(revoking.values(revoked_at=moment))
    return cast("CursorResult[Any]", result).rowcount


def _moment(given: datetime | None) -> datetime:
    """Return the moment as a row keeps it: in UTC, cut to the millisecond.

    Raises:
        ValueError: It has no zone.
    """
    moment = datetime.now(UTC) if given is None else given
    if moment.tzinfo is None:
        raise ValueError("a time without a zone names no instant: give it one, such as UTC")
    moment = moment.astimezone(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _is_id(text: str) -> bool:
    """Whether a row may have it for an id, and a database may be asked for it."""
    return len(text) <= _LONGEST_ID and is_storable(text)


def _kept(text: str | None) -> str | None:
    """Return as much of a text about the client as a row keeps: it is whatever a stranger sent."""
    if text is None:
        return None
    whole = text.replace("\0", "").encode("utf-8", "replace").decode()
    return whole[:_LONGEST_TEXT]
