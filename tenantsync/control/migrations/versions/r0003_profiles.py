"""Remember what the provider says of its tenants, and how many places were made of late.

Revision ID: control_0003
Revises: control_0002
"""

import sqlalchemy as sa
from alembic import op

revision = "control_0003"
down_revision = "control_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the two tables."""
    on_postgres = op.get_bind().dialect.name == "postgresql"
    identifier = sa.Text(collation="C") if on_postgres else sa.Text()

    op.create_table(
        "profiles",
        sa.Column("tenant_id", identifier, nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("slug", sa.Text()),
        sa.Column("name_clock", identifier),
        sa.Column("slug_clock", identifier),
        sa.Column("suspended_clock", identifier),
        sa.Column("deleted_clock", identifier),
        sa.Column("provisioned_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_profiles"),
    )
    op.create_table(
        "provisions",
        sa.Column("tenant_id", identifier, nullable=False),
        sa.Column("booked_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_provisions"),
    )


def downgrade() -> None:
    """Forget what the provider said of its tenants."""
    for table in ("provisions", "profiles"):
        op.drop_table(table)
