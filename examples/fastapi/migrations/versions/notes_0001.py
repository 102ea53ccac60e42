"""Add notes.

Revision ID: notes_0001
"""

import sqlalchemy as sa
from alembic import op

revision = "notes_0001"
down_revision = None
branch_labels = ("notes",)
depends_on = "tenantsync_0001"


def upgrade() -> None:
    """Add the table."""
    person = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "notes",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("author_id", person, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["author_id"],
            ["av_identities.id"],
            name="fk_notes_author_id_av_identities",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_notes_author_id", "notes", ["author_id"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("notes")
