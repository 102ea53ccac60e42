"""Add visits.

Revision ID: members_0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "members_0001"
down_revision = None
branch_labels = ("members",)
depends_on = "tenantsync_0001"


def upgrade() -> None:
    """Add the table."""
    person = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    instant = postgresql.TIMESTAMP(timezone=True, precision=3)
    op.create_table(
        "visits",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("person_id", person, nullable=False),
        sa.Column("at", sa.DateTime().with_variant(instant, "postgresql"), nullable=False),
        sa.ForeignKeyConstraint(
            ["person_id"],
            ["av_identities.id"],
            name="fk_visits_person_id_av_identities",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_visits_tenant_id", "visits", ["tenant_id"])
    op.create_index("ix_visits_person_id", "visits", ["person_id"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("visits")
