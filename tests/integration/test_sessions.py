"""Local sessions of people: opened at a login, used, listed and ended."""

import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from guarding import ask, make
from sqlalchemy import event, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase

from tenantsync.errors import ConfigError
from tenantsync.local_sessions import (
    SessionRefused,
    list_sessions,
    open_session,
    revoke_session,
    revoke_sessions,
    touch_session,
)
from tenantsync.models import Identity, IdentityMixin, IdentitySession, IdentitySessionMixin
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.tenants import Tenant

BLOCKS = re.MULTILINE | re.DOTALL
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sessions.md"
NOON = datetime(2026, 8, 22, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DEACTIVATED = "Your account has been deactivated."
NO_ACCESS = "You do not have access to this application."
NO_ID = ["", "unknown", "\0", "a\0b", "\ud800", "x" * 10_000, "' OR 1=1 --"]


@pytest.fixture
def opened():
    """Give what opens SQLAlchemy sessions in places."""
    with EngineRegistry() as registry:
        yield TenantSessions(registry, DatabaseIsolation(None))


@pytest.fixture
def session(opened, migrated_place):
    """Give a session in a place where Ann and Bob are members."""
    with opened.session(migrated_place) as session:
        add(session, "ann")
        add(session, "bob")
        session.commit()
        yield session


def add(session, name, **columns):
    member = {"membership_status": "active", "tenant_id": "acme"}
    session.add(Identity(id=name, **(member | columns)))
    session.flush()


def login(session, person="ann", at=NOON, **options):
    return open_session(session, person, expires_in=HOUR, now=at, **options).id


def live(session, person="ann", at=NOON):
    return [each.id for each in list_sessions(session, person, now=at)]


@contextmanager
def statements(session, word):
    """Collect the statements that begin with a word."""
    found = []

    def note(_connection, _cursor, statement, *_):
        if statement.startswith(word):
            found.append(statement)

    connection = session.connection()
    event.listen(connection, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(connection, "before_cursor_execute", note)


def test_a_session_is_what_was_asked_for(session):
    """The row holds the client's words and times of one clock, also after it is read again."""
    opened = open_session(
        session,
        "ann",
        expires_at=NOON + HOUR,
        now=NOON + timedelta(microseconds=1_999),
        auth_session_id="sid",
        device_info="a telephone",
        ip_address="192.0.2.1",
        user_agent="Mozilla",
    )
    session.commit()
    session.expire_all()

    assert isinstance(opened, IdentitySession)
    assert len(opened.id) == 36
    assert (opened.identity_id, opened.auth_session_id) == ("ann", "sid")
    assert (opened.device_info, opened.ip_address, opened.user_agent) == (
        "a telephone",
        "192.0.2.1",
        "Mozilla",
    )
    assert opened.created_at == opened.last_active_at == NOON + timedelta(milliseconds=1)
    assert (opened.expires_at, opened.revoked_at) == (NOON + HOUR, None)


def test_the_machine_has_a_clock_too(session):
    """Whoever gives no time gets the present."""
    before = datetime.now(UTC) - SECOND
    opened = open_session(session, "ann", expires_in=HOUR)

    assert before <= opened.created_at <= datetime.now(UTC)
    assert opened.expires_at - opened.created_at == HOUR
    assert touch_session(session, opened.id) is opened
    assert list_sessions(session, "ann") == [opened]
    assert revoke_session(session, opened.id)
    assert list_sessions(session, "ann") == []


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"is_active": False}, DEACTIVATED),
        ({"is_active": False, "has_app_access": False}, DEACTIVATED),
        ({"has_app_access": False}, NO_ACCESS),
        ({"membership_status": "left", "tenant_id": None}, NO_ACCESS),
        ({"membership_status": "suspended"}, NO_ACCESS),
        ({"membership_status": "invited"}, NO_ACCESS),
        ({"membership_status": None, "tenant_id": None}, NO_ACCESS),
    ],
)
def test_who_has_no_access_gets_no_session(session, columns, reason):
    """The error says what to tell the person, and nothing about them."""
    add(session, "eve", **columns)

    with pytest.raises(SessionRefused) as caught:
        login(session, "eve")

    assert caught.value.reason == reason
    assert "eve" not in str(caught.value)
    assert session.scalars(select(IdentitySession)).all() == []


@pytest.mark.parametrize("unknown", NO_ID)
def test_a_stranger_gets_no_session(session, unknown):
    """Whatever they call themselves, and the transaction can go on."""
    with pytest.raises(SessionRefused) as caught:
        login(session, unknown)

    assert caught.value.reason == NO_ACCESS
    assert login(session, "ann")


def test_access_granted_by_name_is_enough(opened, migrated_place):
    """As at a request's door: nothing was ever said of a membership."""
    with IdentitySyncHandler(migrated_place, observers=[]) as handler:
        handler.handle_blocking(make("app_access.granted", "ann"))

    with opened.session(migrated_place) as session:
        assert [login(session)] == live(session)


def test_where_tenants_share_a_place_the_tenant_is_asked_for(session):
    """A member of another tenant neither opens a session nor uses one."""
    with pytest.raises(SessionRefused):
        login(session, tenant_id="globex")
    opened = login(session, tenant_id="acme")

    assert touch_session(session, opened, now=NOON, tenant_id="globex") is None
    assert touch_session(session, opened, now=NOON, tenant_id="acme").id == opened
    assert list_sessions(session, "ann", now=NOON, tenant_id="globex") == []


@pytest.mark.parametrize(
    "end",
    [
        {},
        {"expires_in": HOUR, "expires_at": NOON + HOUR},
        {"expires_in": timedelta(0)},
        {"expires_in": -HOUR},
        {"expires_at": NOON},
    ],
)
def test_a_session_ends_once_and_in_the_future(session, end):
    """Anything else is a mistake in the program that asks."""
    with pytest.raises(ConfigError):
        open_session(session, "ann", now=NOON, **end)


@pytest.mark.parametrize("which", ["now", "expires_at"])
def test_a_time_without_a_zone_is_refused(session, which):
    """It would be taken for the time of wherever the server stands."""
    times = {"now": NOON, "expires_at": NOON + HOUR}
    times[which] = times[which].replace(tzinfo=None)

    with pytest.raises(ValueError, match="zone"):
        open_session(session, "ann", **times)


@pytest.mark.parametrize("name", ["ann", "\0"])
@pytest.mark.parametrize("ask", [touch_session, list_sessions, revoke_session, revoke_sessions])
def test_a_present_without_a_zone_is_refused(session, ask, name):
    """Whoever or whatever is asked for: a program's mistake does not hide behind a stranger's."""
    with pytest.raises(ValueError, match="zone"):
        ask(session, name, now=NOON.replace(tzinfo=None))


def test_what_a_client_says_of_itself_is_kept_as_far_as_it_can_be(session):
    """No header of a stranger's makes a login fail."""
    opened = open_session(
        session,
        "ann",
        expires_in=HOUR,
        now=NOON,
        user_agent="a\0b\ud800c" + "x" * 5_000,
        device_info="",
    )
    session.commit()
    session.expire_all()

    assert opened.user_agent == ("ab?c" + "x" * 5_000)[:1_000]
    assert (opened.device_info, opened.ip_address) == ("", None)


class Base(DeclarativeBase):
    pass


class Employee(IdentityMixin, Base):
    pass


class Login(IdentitySessionMixin, Base):
    pass


def test_an_applications_own_class_is_what_comes_back(session):
    """Every function takes it."""
    opened = open_session(session, "ann", expires_in=HOUR, now=NOON, model=Login)

    assert type(opened) is Login
    assert touch_session(session, opened.id, now=NOON, model=Login) is opened
    assert list_sessions(session, "ann", now=NOON, model=Login) == [opened]
    assert revoke_sessions(session, "ann", keep=opened.id, now=NOON, model=Login) == 0
    assert revoke_session(session, opened.id, now=NOON, model=Login)
    assert opened.revoked_at == NOON


def test_a_person_deleted_meanwhile_is_refused(opened, schema_places):
    """After we looked, and before the row was written; the caller's transaction can go on."""
    (place,) = schema_places(1)
    with opened.session(place) as session:
        add(session, "ann")
        add(session, "bob")
        session.commit()
        event.listen(
            session,
            "before_flush",
            lambda *_: ask(place, "DELETE FROM {s}av_identities WHERE id = 'ann'"),
        )

        with pytest.raises(SessionRefused):
            login(session)

        assert [login(session, "bob")] == live(session, "bob")


def test_another_constraint_is_the_callers_own(session, migrated_place):
    """It is not taken for a refusal."""
    session.rollback()
    ask(migrated_place, "CREATE UNIQUE INDEX only_one ON {s}av_identity_sessions (identity_id)")
    login(session)

    with pytest.raises(IntegrityError):
        login(session)

    assert len(live(session)) == 1


def test_using_a_session_is_written_down_once_a_minute(session):
    """A request each second must not be a write each second."""
    opened = login(session)
    seen = []

    with statements(session, "UPDATE") as updates:
        for seconds in (1, 59, 60, 61, 119, 120):
            found = touch_session(session, opened, now=NOON + seconds * SECOND)
            seen.append((found.last_active_at - NOON).total_seconds())

    assert (seen, len(updates)) == ([0, 0, 60, 60, 60, 120], 2)
    touch_session(session, opened, now=NOON + 121 * SECOND, every=SECOND)
    session.commit()
    session.expire_all()
    assert session.get(IdentitySession, opened).last_active_at == NOON + 121 * SECOND


def test_a_clock_that_lags_takes_nothing_back(session):
    """Two machines do not quite agree on the time."""
    opened = login(session)

    found = touch_session(session, opened, now=NOON - HOUR)

    assert found.last_active_at == NOON


def test_of_two_requests_at_once_the_later_time_stands(opened, schema_places):
    """The second knows an old time, and must not write over a newer one."""
    (place,) = schema_places(1)
    with opened.session(place) as slow, opened.session(place) as quick:
        add(slow, "ann")
        name = login(slow)
        slow.commit()
        known = slow.get(IdentitySession, name)
        assert known.last_active_at == NOON
        touch_session(quick, name, now=NOON + 500 * SECOND)
        quick.commit()

        touch_session(slow, name, now=NOON + 100 * SECOND)
        slow.commit()

        slow.expire_all()
        assert known.last_active_at == NOON + 500 * SECOND


@pytest.mark.parametrize("sent", NO_ID)
def test_whatever_a_client_sends_is_no_session(session, sent):
    """A cookie is a stranger's words: an answer, and never an error of the driver's."""
    login(session)

    assert touch_session(session, sent, now=NOON) is None
    assert revoke_session(session, sent, now=NOON) is False
    assert revoke_sessions(session, "ann", keep=sent, now=NOON) == 1


@pytest.mark.parametrize("sent", NO_ID)
def test_whatever_a_client_sends_is_no_person(session, sent):
    """So with a person's id: nobody has a session, and nobody's is ended."""
    opened = login(session)

    assert list_sessions(session, sent, now=NOON) == []
    assert revoke_sessions(session, sent, now=NOON) == 0
    assert revoke_session(session, opened, identity_id=sent, now=NOON) is False
    assert live(session) == [opened]


def test_a_session_lives_until_its_end_and_not_at_it(session):
    """To the millisecond, on both databases."""
    opened = login(session)
    last = NOON + HOUR - timedelta(milliseconds=1)

    assert touch_session(session, opened, now=last) is not None
    assert touch_session(session, opened, now=NOON + HOUR) is None
    assert (live(session, at=last), live(session, at=NOON + HOUR)) == ([opened], [])


@pytest.mark.parametrize(
    "denial", ["subject.deactivated", "member.left", "member.suspended", "app_access.revoked"]
)
def test_a_denial_that_commits_during_a_login_is_not_escaped(opened, schema_places, denial):
    """It cannot end a session that it does not see; the session is dead all the same."""
    (place,) = schema_places(1)
    with IdentitySyncHandler(place, observers=[]) as handler, opened.session(place) as session:
        handler.handle_blocking(make("member.joined"))
        name = login(session)

        handler.handle_blocking(make(denial, at=1_793_000_500_000))
        session.commit()

        assert session.get(IdentitySession, name).revoked_at is None
        assert touch_session(session, name, now=NOON) is None
        assert live(session) == []


def test_sessions_are_listed_by_their_last_use(session):
    """Only live ones, and only the person's own."""
    first, second, third = (login(session, at=NOON + n * SECOND) for n in range(3))
    login(session, "bob")
    over = open_session(session, "ann", expires_in=SECOND, now=NOON).id
    revoke_session(session, second, now=NOON)
    touch_session(session, first, now=NOON + 100 * SECOND)

    assert live(session, at=NOON + 100 * SECOND) == [first, third]
    assert live(session, at=NOON) == [first, third, over]
    assert live(session, "nobody") == []


def test_a_session_is_ended_once(session):
    """And the first time stands."""
    opened = login(session)

    assert revoke_session(session, opened, now=NOON)
    assert not revoke_session(session, opened, now=NOON + HOUR)
    assert not revoke_session(session, "unknown", now=NOON)
    session.expire_all()
    assert session.get(IdentitySession, opened).revoked_at == NOON
    assert touch_session(session, opened, now=NOON) is None


def test_nobody_ends_another_persons_session(session):
    """Ids in a form are whatever was put there."""
    opened = login(session)

    assert not revoke_session(session, opened, identity_id="bob", now=NOON)
    assert live(session) == [opened]
    assert revoke_session(session, opened, identity_id="ann", now=NOON)
    assert live(session) == []


def test_all_sessions_of_a_person_are_ended(session):
    """Or all but the one that asks for it; other people's go on."""
    mine, phone, tablet = (login(session) for _ in range(3))
    others = login(session, "bob")

    assert revoke_sessions(session, "ann", keep=mine, now=NOON) == 2
    assert (live(session), live(session, "bob")) == ([mine], [others])
    assert touch_session(session, phone, now=NOON) is None
    assert touch_session(session, tablet, now=NOON) is None
    assert revoke_sessions(session, "ann", now=NOON) == 1
    assert (live(session), live(session, "bob")) == ([], [others])
    assert revoke_sessions(session, "ann", now=NOON) == 0


def test_nothing_is_committed_for_the_caller(opened, migrated_place, session):
    """Their transaction may yet fail."""
    login(session)
    session.rollback()

    assert live(session) == []


def test_the_examples_of_the_page_run(opened, migrated_place, session, capsys):
    """Each as it is printed, one after the other."""
    session.rollback()

    class Sync:
        tenants = (Tenant("id", "acme", migrated_place),)
        isolation = DatabaseIsolation(None)

        @contextmanager
        def session(self, key, *, read_only=False):
            with opened.session(migrated_place, read_only=read_only) as session:
                yield session

    sync = Sync()
    namespace = {"sync": sync, "person_id": "ann"}
    with EngineRegistry() as sync.registry:
        for program in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), BLOCKS):
            exec(compile(program, PAGE.name, "exec", dont_inherit=True), namespace)  # noqa: S102

    assert capsys.readouterr().out.split("\n") == [
        "ann",
        "a telephone 192.0.2.1",
        "1 other sessions ended",
        "You are logged out.",
        NO_ACCESS,
        "0 True",
        "",
    ]
