"""Make the catalog: tenants added at run time, suspensions, and the count of their changes.

Revision ID: control_0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "control_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the three tables; the count starts at nought."""
    on_postgres = op.get_bind().dialect.name == "postgresql"
    identifier = sa.Text(collation="C") if on_postgres else sa.Text()
    moment = postgresql.TIMESTAMP(timezone=True, precision=3) if on_postgres else sa.DateTime()

    op.create_table(
        "tenants",
        sa.Column("key", identifier, nullable=False),
        sa.Column("id", identifier, nullable=False),
        sa.Column("url", sa.Text()),
        sa.Column("schema", sa.Text()),
        sa.Column("role", sa.Text()),
        sa.Column("place", identifier),
        sa.Column("made", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("added_at", moment, nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_tenants"),
        sa.UniqueConstraint("id", name="uq_tenants_id"),
        sa.UniqueConstraint("place", name="uq_tenants_place"),
    )
    op.create_index("ix_tenants_changed", "tenants", ["changed"])
    op.create_table(
        "suspensions",
        sa.Column("key", identifier, nullable=False),
        sa.Column("since", moment, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_suspensions"),
    )
    changes = op.create_table(
        "changes",
        sa.Column("only", sa.Boolean(), nullable=False),
        sa.Column("made", sa.BigInteger(), nullable=False),
        sa.Column("deleted", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("only", name="pk_changes"),
    )
    op.bulk_insert(changes, [{"only": True, "made": 0, "deleted": 0}])


def downgrade() -> None:
    """Forget every tenant that was added, and every suspension."""
    for table in ("changes", "suspensions", "tenants"):
        op.drop_table(table)
