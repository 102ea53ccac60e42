"""What the documentation of migrations shows does what it says."""

import re
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from tenantsync.migrate import upgrade
from tenantsync.migrate.scripts import VERSION_TABLE
from tenantsync.models import Base as Ours
from tenantsync.tenancy.engines import make_engine
from tenantsync.tenancy.isolation import DatabaseIsolation
from tenantsync.tenants import Tenant

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def blocks(page):
    return re.findall(
        r"^```python\n(.*?)^```", (HOW_TO / page).read_text(), re.MULTILINE | re.DOTALL
    )


def test_migrating_from_a_program(capsys):
    """The example of the page on migrating runs as printed."""
    (program,) = blocks("migrate.md")

    exec(compile(program, "migrate.md", "exec"), {})  # noqa: S102

    assert capsys.readouterr().out == "acme upgraded None tenantsync_0001 None\n"


def test_the_models_and_the_revision_of_the_page_agree(migrated_place, tmp_path):
    """The example's revision makes exactly what the example's models say, on both databases."""
    models, revision = blocks("extend-the-models.md")
    (tmp_path / "shop_0001.py").write_text(revision)
    namespace: dict[str, object] = {"__name__": "shop"}
    exec(compile(models, "extend-the-models.md", "exec", dont_inherit=True), namespace)  # noqa: S102

    upgrade(
        [Tenant("id-of-acme", "acme", migrated_place)],
        isolation=DatabaseIsolation(None),
        locations=[tmp_path],
    ).check()

    engine = make_engine(migrated_place.url)
    with engine.begin() as connection:
        if migrated_place.schema:
            connection.execute(text(f"SET LOCAL search_path TO {migrated_place.schema}"))
        others = {VERSION_TABLE, "av_sync_events", "av_identity_tombstones"}
        context = MigrationContext.configure(
            connection, opts={"include_name": lambda name, *_: name not in others}
        )
        differences = compare_metadata(context, namespace["Base"].metadata)
    engine.dispose()
    assert differences == []


def test_the_reference_names_every_column():
    """No table or column is left out of the reference."""
    page = (REFERENCE / "tables.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))

    for name, table in Ours.metadata.tables.items():
        rows = [line.split("|")[1] for line in sections[name].splitlines() if line[:3] == "| `"]
        assert re.findall(r"`(\w+)`", " ".join(rows)) == [column.name for column in table.columns]
