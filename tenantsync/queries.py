"""Questions to a tenant's people, as statements that a program refines and runs in its own session.

Each takes the model to select: `tenantsync.models.Identity`, or your own class of the mixin. No
statement names a tenant's place: run it in a session that is bound to one.
"""

from datetime import datetime
from typing import Final, TypeVar

from sqlalchemy import Boolean, ColumnElement, Select, and_, false, func, or_, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import aliased
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from tenantsync.models import Identity, IdentityMixin, IdentitySessionMixin

__all__ = [
    "count_by_role",
    "is_live",
    "is_storable",
    "live_sessions",
    "may_enter",
    "people_by_email",
    "people_with_access",
    "people_with_live_sessions",
]

_P = TypeVar("_P", bound=IdentityMixin)
_S = TypeVar("_S", bound=IdentitySessionMixin)

_ACTIVE: Final = "active"

# A row's `clocks` say which event wrote what: {clock: "register register"}.
_GRANTED_POSTGRES: Final = """EXISTS (SELECT 1 FROM jsonb_each_text(@) AS written
 WHERE strpos(' ' || written.value || ' ', ' has_app_access ') > 0)"""
_GRANTED_FILE: Final = """EXISTS (SELECT 1 FROM json_each(@) AS written
 WHERE instr(' ' || written.value || ' ', ' has_app_access ') > 0)"""


class _GrantedByName(FunctionElement[bool]):
    """Whether access was ever written by an event, and is not what a new row starts with."""

    name = "granted_by_name"
    type = Boolean()
    inherit_cache = True


@compiles(_GrantedByName, "postgresql")
def _granted_postgresql(element: _GrantedByName, compiler: SQLCompiler, **options: object) -> str:
    return _GRANTED_POSTGRES.replace("@", compiler.process(element.clauses, **options))


@compiles(_GrantedByName, "sqlite")
def _granted_sqlite(element: _GrantedByName, compiler: SQLCompiler, **options: object) -> str:
    return _GRANTED_FILE.replace("@", compiler.process(element.clauses, **options))


def may_enter(model: type[IdentityMixin], *, tenant_id: str | None = None) -> ColumnElement[bool]:
    """Return the condition under which a person has access, as far as the mirror knows.

    The account is active, access to this application is not taken away, and membership is active.
    Where nothing was ever said of a membership, access that was granted by name stands in for it;
    access that a new row merely starts with does not. A denial that still waits in the inbox is
    not seen here: ask `docs/how-to/authorise.md` for a request's door.

    Args:
        model: The people.
        tenant_id: AuthVital's id of the tenant that there must be a membership with. Give it where
            several tenants share a place; nobody can say there which of them granted access, so
            that a grant does not stand in. None where the place is one tenant's.
    """
    welcome = model.membership_status == _ACTIVE
    if tenant_id is None:
        granted = and_(model.membership_status.is_(None), _GrantedByName(model.clocks))
        welcome = or_(welcome, granted)
    else:
        welcome = and_(welcome, model.tenant_id == tenant_id)
    return and_(model.is_active, model.has_app_access, welcome)


def is_live(model: type[IdentitySessionMixin], *, now: datetime) -> ColumnElement[bool]:
    """Return the condition under which a session is neither revoked nor expired.

    It does not ask about the person: `live_sessions` does.

    Args:
        model: The sessions.
        now: The present, with its zone.

    Raises:
        ValueError: The time has no zone.
    """
    # Here, and not where the statement runs, which would wrap the error in one of SQLAlchemy's.
    if now.tzinfo is None:
        raise ValueError("a time without a zone names no instant: give it one, such as UTC")
    return and_(model.revoked_at.is_(None), model.expires_at > now)


def is_storable(text: str) -> bool:
    """Whether a database may be asked for a text: some drivers raise for what no row can hold.

    That is U+0000, and half a surrogate pair.
    """
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def people_with_access(model: type[_P], *, tenant_id: str | None = None) -> Select[_P]:
    """Return the people who have access: see `may_enter`."""
    return select(model).where(may_enter(model, tenant_id=tenant_id))


def people_by_email(model: type[_P], email: str) -> Select[_P]:
    """Return the people with an e-mail address, whatever its capitals, with access or without.

    There may be several, because people swap and reuse addresses, and a mirror keeps what it is
    told: never take the one that happens to come first for who is asking. SQLite knows the
    capitals of ASCII only.

    It reads every row unless there is an index on `lower(email)`: docs/how-to/query-people.md.
    An address that no row can hold is nobody's: see `is_storable`.
    """
    if not is_storable(email):
        return select(model).where(false())
    return select(model).where(func.lower(model.email) == func.lower(email))


def people_with_live_sessions(
    model: type[_P],
    sessions: type[IdentitySessionMixin],
    *,
    now: datetime,
    tenant_id: str | None = None,
) -> Select[_P]:
    """Return the people with access who have a live session, each of them once.

    Args:
        model: The people.
        sessions: Their sessions.
        now: The present, with its zone.
        tenant_id: As for `may_enter`.

    Raises:
        ValueError: The time has no zone.
    """
    live = select(sessions.id).where(sessions.identity_id == model.id, is_live(sessions, now=now))
    return people_with_access(model, tenant_id=tenant_id).where(live.exists())


def live_sessions(model: type[_S], *, now: datetime, tenant_id: str | None = None) -> Select[_S]:
    """Return the sessions that are live, of people who have access.

    A denial ends the sessions that it sees. One that was opened in the same moment escapes it, and
    is not live all the same, because its person has no access.

    Args:
        model: The sessions.
        now: The present, with its zone.
        tenant_id: As for `may_enter`.

    Raises:
        ValueError: The time has no zone.
    """
    # An alias, so that a program that joins the people does not take them out of the condition.
    person = aliased(Identity)
    allowed = select(person.id).where(
        person.id == model.identity_id, may_enter(person, tenant_id=tenant_id)
    )
    return select(model).where(is_live(model, now=now), allowed.exists())


def count_by_role(
    model: type[IdentityMixin], *, tenant_id: str | None = None
) -> Select[str | None, int]:
    """Return how many people with access have each role in this application, by role.

    Who has no role counts under None, wherever the database sorts that.
    """
    return (
        select(model.app_role, func.count())
        .where(may_enter(model, tenant_id=tenant_id))
        .group_by(model.app_role)
        .order_by(model.app_role)
    )
