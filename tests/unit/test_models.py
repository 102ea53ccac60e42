"""The models: what they write, what they give back, and how an application extends them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import ForeignKey, Text, insert, inspect, null, select, text
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tenantsync.models import (
    Base,
    Identity,
    IdentityMixin,
    IdentitySession,
    IdentitySessionMixin,
    SyncEvent,
    SyncEventMixin,
    Tombstone,
    TombstoneMixin,
)
from tenantsync.tenancy.engines import make_engine

NOON = datetime(2030, 1, 1, 12, 0, 0, 123_000, UTC)


@pytest.fixture
def session(migrated_place):
    """Give a session in a migrated place."""
    engine = make_engine(migrated_place.url)
    translate = {None: migrated_place.schema}
    with Session(engine.execution_options(schema_translate_map=translate)) as session:
        yield session
    engine.dispose()


def test_a_new_person_starts_with_the_published_defaults(session):
    """A row that names nothing but its id has the defaults of the provider's schema."""
    session.add(Identity(id="u1"))
    session.flush()
    session.expire_all()

    person = session.get_one(Identity, "u1")

    assert (person.is_active, person.has_app_access) == (True, True)
    assert (person.email_verified, person.phone_verified) == (False, False)
    assert (person.groups, person.tenant_roles, person.clocks) == ([], [], {})
    assert abs(person.created_at - datetime.now(UTC)) < timedelta(minutes=5)
    assert person.created_at.tzinfo is UTC
    assert (person.email, person.tenant_id, person.membership_status) == (None, None, None)


def test_values_come_back_as_they_went_in(session):
    """Lists, clocks and times are the same on both databases."""
    session.add(
        Identity(
            id="u1",
            groups=["a", 'b"c', "d,{}", ""],
            tenant_roles=["owner"],
            clocks={"1": ["email"]},
            created_at=NOON,
        )
    )
    session.flush()
    session.expire_all()

    person = session.get_one(Identity, "u1")

    assert person.groups == ["a", 'b"c', "d,{}", ""]
    assert person.tenant_roles == ["owner"]
    assert person.clocks == {"1": ["email"]}
    assert person.created_at == NOON


def test_a_null_list_reads_as_an_empty_one(session):
    """The published schema lets `groups` be NULL and means a list."""
    session.execute(insert(Identity).values(id="u1", groups=null()))

    assert session.get_one(Identity, "u1").groups == []
    assert session.scalar(select(Identity.id).where(Identity.groups.is_(None))) == "u1"


def test_times_are_kept_to_the_millisecond_in_utc(session):
    """Another zone is converted, and what is below a millisecond is cut off, not rounded up."""
    kathmandu = timezone(timedelta(hours=5, minutes=45))
    written = datetime(2030, 1, 1, 17, 45, 0, 123_999, kathmandu)
    session.add(Identity(id="u1", created_at=written))
    session.flush()
    session.expire_all()

    assert session.get_one(Identity, "u1").created_at == NOON


def test_a_time_without_a_zone_is_refused(session):
    """It names no instant, so it is not written."""
    session.add(Identity(id="u1", created_at=datetime(2030, 1, 1)))  # noqa: DTZ001

    with pytest.raises(StatementError, match="a time without a zone names no instant"):
        session.flush()


@pytest.mark.parametrize("migrated_place", ["sqlite"], indirect=True)
def test_defaults_and_values_have_one_format_on_sqlite(session):
    """What the database's clock writes sorts among what we write."""
    session.add_all([Identity(id="u1"), Identity(id="u2", created_at=NOON)])
    session.flush()

    texts = session.scalars(text("SELECT created_at FROM av_identities ORDER BY id")).all()

    assert texts[1] == "2030-01-01 12:00:00.123000"
    assert datetime.strptime(texts[0], "%Y-%m-%d %H:%M:%S.%f").microsecond % 1000 == 0  # noqa: DTZ007
    assert len(texts[0]) == len(texts[1])


def test_people_may_share_names_addresses_and_numbers(session):
    """People swap and reuse them; the mirror does not refuse the truth."""
    for number in (1, 2):
        session.add(Identity(id=f"u{number}", email="a@example.com", username="a", phone="1"))

    session.flush()

    assert session.scalars(select(Identity.id).order_by(Identity.id)).all() == ["u1", "u2"]


def test_sessions_go_with_their_person(session):
    """Deleting the row of a person deletes the sessions, by the database itself."""
    person = Identity(id="u1", sessions=[IdentitySession(expires_at=NOON)])
    session.add_all([person, Identity(id="u2", sessions=[IdentitySession(expires_at=NOON)])])
    session.flush()
    assert person.sessions[0].identity is person

    session.delete(person)
    session.flush()

    assert session.scalars(select(IdentitySession.identity_id)).all() == ["u2"]


def test_sessions_get_an_id_and_need_a_person(session):
    """A session's id is made for it; one of nobody is refused."""
    session.add(IdentitySession(identity_id="nobody", expires_at=NOON))

    with pytest.raises(IntegrityError):
        session.flush()


def test_the_ledger_knows_an_event_once(session):
    """The second row of one event id is refused; ids that differ by case are two."""
    for event_id in ("e1", "E1"):
        session.add(SyncEvent(event_id=event_id, type="t", occurred_at=NOON, outcome="applied"))
    session.flush()
    session.expunge_all()
    session.add(SyncEvent(event_id="e1", type="t", occurred_at=NOON, outcome="applied"))

    with pytest.raises(IntegrityError):
        session.flush()


def test_clocks_sort_by_bytes(session):
    """Capitals come before small letters on every database."""
    session.add_all([Tombstone(id=clock, clock=clock) for clock in ("a", "B", "A", "b", "é")])
    session.flush()

    assert session.scalars(select(Tombstone.clock).order_by(Tombstone.clock)).all() == [
        "A", "B", "a", "b", "é",
    ]  # fmt: skip


def test_updated_at_moves_with_every_write_of_the_application(session):
    """An application that changes a row through the model moves `updated_at`."""
    long_ago = datetime(2000, 1, 1, tzinfo=UTC)
    person = Identity(id="u1", updated_at=long_ago)
    session.add(person)
    session.flush()

    person.nickname = "Ada"
    session.flush()

    assert person.updated_at > long_ago


class Own(DeclarativeBase):
    """An application's base, without our naming convention."""


class Person(IdentityMixin, Own):
    """People, with a column of the application's own."""

    shoe_size: Mapped[str | None] = mapped_column(Text())


class Order(Own):
    """A table of the application's own that points at people."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(Text(), primary_key=True)
    person_id: Mapped[str] = mapped_column(ForeignKey("av_identities.id", ondelete="CASCADE"))


for _mixin in (IdentitySessionMixin, SyncEventMixin, TombstoneMixin):
    type(f"Own{_mixin.__name__}", (_mixin, Own), {})


def test_an_application_extends_the_models():
    """Its table has all of our columns first and its own beside them."""
    ours = [column.name for column in Base.metadata.tables["av_identities"].columns]

    table = Person.__table__

    assert table.name == "av_identities"
    assert {column.name for column in table.columns} == {*ours, "shoe_size"}
    assert inspect(Order).columns["person_id"].references(table.c.id)


@pytest.mark.parametrize("table", sorted(Base.metadata.tables))
def test_names_are_ours_on_any_base(table):
    """Indexes and foreign keys are called the same on a base without our naming convention."""

    def names(base):
        made = base.metadata.tables[table]
        return {thing.name for thing in (*made.indexes, *made.foreign_key_constraints)}

    assert names(Own) == names(Base)


def test_no_table_names_a_schema():
    """The place decides where a table stands."""
    assert {table.schema for table in Base.metadata.tables.values()} == {None}
