"""Remember when each tenant's list was last believed, and when it is to be asked for again.

Revision ID: control_0004
Revises: control_0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "control_0004"
down_revision = "control_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    on_postgres = op.get_bind().dialect.name == "postgresql"
    identifier = sa.Text(collation="C") if on_postgres else sa.Text()
    moment = postgresql.TIMESTAMP(timezone=True, precision=3) if on_postgres else sa.DateTime()

    op.create_table(
        "reconciliations",
        sa.Column("tenant_id", identifier, nullable=False),
        sa.Column("snapshot", sa.BigInteger()),
        sa.Column("reconciled_at", moment),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("due_at", moment),
        sa.Column("token", sa.Text()),
        sa.Column("owner", sa.Text()),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_reconciliations"),
    )
    op.create_index("ix_reconciliations_due_at", "reconciliations", ["due_at"])


def downgrade() -> None:
    """Forget when lists were believed; the next two begin anew."""
    op.drop_table("reconciliations")
