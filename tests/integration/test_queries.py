"""The statements of `tenantsync.queries`, run in a schema and in a file."""

import itertools
import re
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from guarding import make
from sqlalchemy import Text, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenantsync.migrate import check, upgrade
from tenantsync.models import Identity, IdentityMixin, IdentitySession, IdentitySessionMixin
from tenantsync.queries import (
    count_by_role,
    is_live,
    live_sessions,
    may_enter,
    people_by_email,
    people_with_access,
    people_with_live_sessions,
)
from tenantsync.sync.authorise import judge
from tenantsync.sync.handler import IdentitySyncHandler
from tenantsync.sync.merge import invert_clocks
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenancy.registry import EngineRegistry
from tenantsync.tenancy.sessions import TenantSessions
from tenantsync.tenants import Placement, Tenant

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "query-people.md"
BLOCKS = re.MULTILINE | re.DOTALL
NOON = datetime(2026, 8, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
CLOCK = "17930004000000event"
STATUSES = ("active", "suspended", "invited")
MEMBER = {"membership_status": "active", "tenant_id": "acme"}


@pytest.fixture
def opened():
    """Give what opens sessions in places."""
    with EngineRegistry() as registry:
        yield TenantSessions(registry, DatabaseIsolation(None))


@pytest.fixture
def session(opened, migrated_place):
    with opened.session(migrated_place) as session:
        yield session


def add(session, name, **columns):
    session.add(Identity(id=name, **columns))
    session.flush()


def ids(session, statement):
    return sorted(person.id for person in session.scalars(statement))


@pytest.mark.parametrize("shared", [False, True])
def test_access_is_what_opens_a_requests_door(session, shared):
    """One rule, in SQL and in Python, for every combination of what can be known of a person."""
    memberships = [(None, None), *((status, "acme") for status in STATUSES), ("left", None)]
    memberships += [(status, "globex") for status in STATUSES if shared]
    cases = itertools.product((True, False), (True, False), memberships, (True, False))
    for number, (is_active, has_access, (status, tenant_id), named) in enumerate(cases):
        clocks = {"email": CLOCK, "app_role": CLOCK}
        clocks |= {"has_app_access": CLOCK} if named else {}
        clocks |= {"membership": CLOCK} if status else {}
        add(
            session,
            f"person-{number:03d}",
            is_active=is_active,
            has_app_access=has_access,
            membership_status=status,
            tenant_id=tenant_id,
            clocks=invert_clocks(clocks),
        )

    everybody = session.scalars(select(Identity)).all()
    welcome = [each.id for each in everybody if judge(each, "acme", shared=shared) is None]
    found = ids(session, people_with_access(Identity, tenant_id="acme" if shared else None))

    assert found == sorted(welcome)
    assert 0 < len(found) < len(everybody)


@pytest.mark.parametrize(
    ("clocks", "granted"),
    [
        ({}, False),
        ({CLOCK: "email"}, False),
        ({CLOCK: "has_app_access"}, True),
        ({CLOCK: "email has_app_access app_role", "other": "phone"}, True),
        ({"other": "phone", CLOCK: "app_role has_app_access"}, True),
        ({"1793000400000 has_app_access ": "email"}, False),
        ({CLOCK: "email has_app_access_too"}, False),
    ],
)
def test_only_an_event_grants_access_by_name(session, clocks, granted):
    """The register is looked for as a whole word, and not in the ids of events."""
    add(session, "ann", clocks=clocks)

    assert ids(session, people_with_access(Identity)) == (["ann"] if granted else [])


def test_access_follows_the_events(opened, migrated_place):
    """Who joined or was granted access is there; who left, or was only mentioned, is not."""
    with IdentitySyncHandler(migrated_place, observers=[]) as handler:
        for kind, sub in (
            ("member.joined", "ann"),
            ("app_access.granted", "bob"),
            ("subject.created", "cid"),
            ("member.joined", "dan"),
        ):
            handler.handle_blocking(make(kind, sub))
        handler.handle_blocking(make("member.left", "dan", at=1_793_000_500_000))

    with opened.session(migrated_place) as session:
        assert ids(session, people_with_access(Identity)) == ["ann", "bob"]
        assert ids(session, people_with_access(Identity, tenant_id="acme")) == ["ann"]
        assert ids(session, people_with_access(Identity, tenant_id="globex")) == []


def test_an_address_is_found_whatever_its_capitals(session):
    """In the row or in the question; and each person who has it."""
    for name, email in (
        ("ann", "Ann.Lee@Example.test"),
        ("bob", "ann.lee@example.test"),
        ("cid", "annxlee@example.test"),
        ("dan", None),
    ):
        add(session, name, email=email, is_active=name != "bob", **MEMBER)

    found = people_by_email(Identity, "ANN.LEE@example.TEST")

    assert ids(session, found) == ["ann", "bob"]
    assert ids(session, found.where(may_enter(Identity))) == ["ann"]
    assert ids(session, people_by_email(Identity, "ann_lee@example.test")) == []
    assert ids(session, people_by_email(Identity, "%")) == []
    assert ids(session, people_by_email(Identity, "")) == []


@pytest.mark.parametrize(
    "address", ["\0", "ann\0@example.test", "\ud800", "ann\udfff", "x" * 10_000]
)
def test_an_address_that_no_row_can_hold_is_nobodys(session, address):
    """An answer, and never an error of the driver's; the transaction can go on."""
    add(session, "ann", email="ann@example.test", **MEMBER)

    assert ids(session, people_by_email(Identity, address)) == []
    assert ids(session, people_by_email(Identity, address).where(may_enter(Identity))) == []
    assert ids(session, people_by_email(Identity, "ann@example.test")) == ["ann"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda now: is_live(IdentitySession, now=now),
        lambda now: live_sessions(IdentitySession, now=now),
        lambda now: people_with_live_sessions(Identity, IdentitySession, now=now),
    ],
)
def test_a_time_without_a_zone_is_refused(ask):
    """Where the question is made, and not where it is asked."""
    with pytest.raises(ValueError, match="zone"):
        ask(NOON.replace(tzinfo=None))


def test_the_index_of_the_page_is_used(opened, migrated_place, tmp_path):
    """The revision that the page shows serves the lookup, and nothing else than that index does."""
    (revision,) = re.findall(
        r'^```python\n(""".*?)^```', PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "shop_0001.py").write_text(revision)
    tenant = Tenant("id-of-acme", "acme", migrated_place)
    with opened.session(migrated_place) as session:
        people = [
            {"id": f"p{n:05d}", "email": f"Person{n}@example.test", "updated_at": NOON}
            for n in range(3_000)
        ]
        session.execute(insert(Identity), people)
        session.commit()
    statement = people_by_email(Identity, "person1234@EXAMPLE.test")

    before = plan(opened, migrated_place, statement)
    upgrade([tenant], isolation=DatabaseIsolation(None), locations=[tmp_path]).check()
    after = plan(opened, migrated_place, statement)
    drift = check([tenant], isolation=DatabaseIsolation(None), locations=[tmp_path])

    assert ("ix_av_identities_email_lower" in before, "ix_av_identities_email_lower" in after) == (
        False,
        True,
    )
    assert drift.ok
    with opened.session(migrated_place) as session:
        assert ids(session, statement) == ["p01234"]


def plan(opened, place, statement):
    """Return how the database goes about a statement, with what it knows of the table now."""
    with opened.session(place) as session:
        session.execute(text("ANALYZE av_identities"))
        session.commit()
        compiled = statement.compile(session.connection())
        words = "EXPLAIN" if place.is_postgres else "EXPLAIN QUERY PLAN"
        schema = f'"{place.schema}".' if place.schema else ""
        written = str(compiled).replace("__[SCHEMA__none].", schema)
        if not place.is_postgres:
            parameters = tuple(compiled.params[name] for name in compiled.positiontup)
        else:
            parameters = compiled.params
        rows = session.connection().exec_driver_sql(f"{words} {written}", parameters)
        return "\n".join(str(tuple(row)) for row in rows)


def test_people_with_live_sessions_come_once(session):
    """However many they have; and not at all with one that is over, or without access."""
    for name in ("ann", "bob", "cid", "dan"):
        add(session, name, is_active=name != "dan", **MEMBER)
    for number, (person, expires, revoked) in enumerate(
        [
            ("ann", NOON + HOUR, None),
            ("ann", NOON + HOUR, None),
            ("bob", NOON, None),
            ("cid", NOON + HOUR, NOON - HOUR),
            ("dan", NOON + HOUR, None),
        ]
    ):
        session.add(
            IdentitySession(
                id=str(number), identity_id=person, expires_at=expires, revoked_at=revoked
            )
        )
    session.flush()

    present = people_with_live_sessions(Identity, IdentitySession, now=NOON)
    earlier = people_with_live_sessions(Identity, IdentitySession, now=NOON - HOUR)
    elsewhere = people_with_live_sessions(Identity, IdentitySession, now=NOON, tenant_id="globex")

    assert [person.id for person in session.scalars(present)] == ["ann"]
    assert ids(session, earlier) == ["ann", "bob"]
    assert ids(session, elsewhere) == []
    assert ids(session, live_sessions(IdentitySession, now=NOON)) == ["0", "1"]
    open_ones = select(IdentitySession).where(is_live(IdentitySession, now=NOON))
    assert ids(session, open_ones) == ["0", "1", "4"]


def test_roles_are_counted(session):
    """Of those with access only; who has no role is counted too."""
    for name, role, is_active in (
        ("ann", "admin", True),
        ("bob", "editor", True),
        ("cid", "editor", True),
        ("dan", "editor", False),
        ("eve", None, True),
    ):
        add(session, name, app_role=role, is_active=is_active, **MEMBER)

    counted = dict(map(tuple, session.execute(count_by_role(Identity))))

    assert counted == {"admin": 1, "editor": 2, None: 1}
    assert session.execute(count_by_role(Identity, tenant_id="globex")).all() == []


class Base(DeclarativeBase):
    pass


class Employee(IdentityMixin, Base):
    @property
    def greeting(self):
        return f"Dear {self.display_name}"


class Login(IdentitySessionMixin, Base):
    pass


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[str] = mapped_column(Text(), primary_key=True)


def test_an_applications_own_classes_are_what_comes_back(session):
    """And the statements can be refined, joined and counted like any other."""
    add(session, "ann", display_name="Ann", **MEMBER)
    add(session, "bob", display_name="Bob", **MEMBER)
    for number in range(2):
        session.add(Login(id=str(number), identity_id="bob", expires_at=NOON + HOUR))
    session.flush()

    (employee,) = session.scalars(people_with_access(Employee).where(Employee.id == "ann"))
    joined = (
        live_sessions(Login, now=NOON)
        .join(Employee, Employee.id == Login.identity_id)
        .with_only_columns(Employee.display_name, Login.id)
        .order_by(Login.id)
    )

    assert employee.greeting == "Dear Ann"
    assert session.execute(joined).all() == [("Bob", "0"), ("Bob", "1")]
    assert ids(session, people_with_live_sessions(Employee, Login, now=NOON)) == ["bob"]


def test_a_joined_person_is_not_taken_out_of_the_condition(session):
    """The ready-made models joined to themselves still ask of the session's own person."""
    add(session, "ann", is_active=False, **MEMBER)
    add(session, "bob", **MEMBER)
    session.add(IdentitySession(id="0", identity_id="ann", expires_at=NOON + HOUR))
    session.flush()

    joined = live_sessions(IdentitySession, now=NOON).join(Identity, Identity.id == "bob")

    assert ids(session, joined) == []


def test_the_statements_are_compiled_once(session):
    """None of them keeps SQLAlchemy from remembering what it made of it."""
    statements = [
        people_with_access(Identity, tenant_id="acme"),
        people_by_email(Identity, "ann@example.test"),
        people_with_live_sessions(Identity, IdentitySession, now=NOON),
        live_sessions(IdentitySession, now=NOON),
        count_by_role(Identity),
    ]

    assert all(statement._generate_cache_key() is not None for statement in statements)


def test_the_examples_of_the_page_run(opened, migrated_place, capsys):
    """Each as it is printed, in one session after the other."""
    with opened.session(migrated_place) as session:
        add(session, "ann", email="Ann@Example.test", app_role="admin", **MEMBER)
        session.add(
            IdentitySession(
                identity_id="ann", expires_at=datetime.now(UTC) + HOUR, ip_address="192.0.2.1"
            )
        )
        session.commit()

    class Sync:
        @contextmanager
        def session(self, key, *, read_only=False):
            with opened.session(migrated_place, read_only=read_only) as session:
                yield session

    programs = [
        block
        for block in re.findall(
            r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
        )
        if not block.startswith('"""')
    ]
    namespace = {"sync": Sync()}
    for program in programs:
        exec(compile(program, PAGE.name, "exec", dont_inherit=True), namespace)  # noqa: S102

    assert capsys.readouterr().out.split() == ["ann", "ann", "admin", "1", "ann", "192.0.2.1"]


def test_a_place_without_a_schema_is_public(postgres, opened):
    """A database of its own has its tables in `public`."""
    place = Placement.of(postgres.create_database())
    upgrade([Tenant("t", "t", place)], isolation=DatabaseIsolation(None)).check()

    with opened.session(place) as session:
        add(session, "ann", **MEMBER)

        assert ids(session, people_with_access(Identity)) == ["ann"]
