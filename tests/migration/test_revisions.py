"""New revision files, and the list of all."""

import pytest
from fleets import OURS, SchemaFleet, files
from sqlalchemy import ForeignKey, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenantsync.errors import ConfigError
from tenantsync.migrate import check, history, revise, upgrade
from tenantsync.models import (
    NAMING_CONVENTION,
    IdentityMixin,
    IdentitySessionMixin,
    SyncEventMixin,
    TombstoneMixin,
)


@pytest.fixture
def location(tmp_path):
    """Give a folder for an application's own revisions."""
    folder = tmp_path / "shop" / "versions"
    folder.mkdir(parents=True)
    return folder


def models():
    """Return an application's models: a column more, and a table of its own."""

    class Base(DeclarativeBase):
        pass

    Base.metadata.naming_convention = NAMING_CONVENTION

    class Identity(IdentityMixin, Base):
        shoe_size: Mapped[str | None] = mapped_column(Text())

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        of: Mapped[str] = mapped_column(ForeignKey("av_identities.id"))

    for mixin in (IdentitySessionMixin, SyncEventMixin, TombstoneMixin):
        type(mixin.__name__.removesuffix("Mixin"), (mixin, Base), {})
    return Base.metadata


def test_a_revision_begins_a_branch_and_the_next_continues_it(location):
    """The first one stands beside ours and after it, the second follows the first."""
    first = revise("add orders", location=location, locations=[location])
    second = revise("add lines", location=location, locations=[location])

    newest, before, *_, ours = history([location])
    assert (first.parent, second.parent) == (location, location)
    assert (newest.title, newest.after, newest.branches, newest.head) == (
        "add lines", (before.id,), ("shop",), True,
    )  # fmt: skip
    assert (before.title, before.after, before.depends_on) == ("add orders", (), (OURS,))
    assert (ours.id, ours.branches) == (OURS, ("tenantsync",))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_revision_is_written_from_models(location, tmp_path, request, kind):
    """What it holds brings tenants to what the models say, and the scratch tenant is gone."""
    if kind == "sqlite":
        tenants, isolation = files(tmp_path, 1)
    else:
        fleet = SchemaFleet(request.getfixturevalue("postgres").create_database(), 1)
        tenants, isolation = fleet.tenants, fleet.isolation
    options = {"location": location, "locations": [location], "isolation": isolation,
               "beside": tenants[0].placement, "models": models()}  # fmt: skip

    made = revise("add orders", **options)
    again = revise("nothing more", **options)

    source = made.read_text()
    assert "'orders'" in source
    assert "shoe_size" in source
    assert "drop_table('av_" not in source
    assert "op." not in again.read_text().partition("def upgrade")[2]
    upgrade(tenants, isolation=isolation, locations=[location]).check()
    assert check(tenants, isolation=isolation, locations=[location]).ok


def test_a_revision_goes_where_revisions_are(location, tmp_path):
    """A folder that no run would look into, or our own branch, is refused."""
    with pytest.raises(ConfigError, match="is not among"):
        revise("astray", location=tmp_path, locations=[location])
    with pytest.raises(ConfigError, match="tenantsync's own"):
        revise("ours", location=location, locations=[location], branch="tenantsync")


def test_several_branches_in_a_folder_must_be_told_apart(location):
    """Which one is continued is then for the author to say."""
    revise("one", location=location, locations=[location], branch="one")
    revise("two", location=location, locations=[location], branch="two")

    with pytest.raises(ConfigError, match="say which --branch"):
        revise("three", location=location, locations=[location])
    revise("three", location=location, locations=[location], branch="two")

    assert history([location])[0].branches == ("two",) or "two" in {
        branch for revision in history([location]) if revision.head for branch in revision.branches
    }
