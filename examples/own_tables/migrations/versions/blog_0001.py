"""Add signatures, posts and orders.

Revision ID: blog_0001
"""

import sqlalchemy as sa
from alembic import op

revision = "blog_0001"
down_revision = None
branch_labels = ("blog",)
depends_on = "tenantsync_0001"


def upgrade() -> None:
    """Add the column and the tables."""
    # The collation of the column that it points at, or PostgreSQL cannot use the index in a join.
    person = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.add_column("av_identities", sa.Column("signature", sa.Text()))
    op.create_table(
        "posts",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("author_id", person, nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["author_id"],
            ["av_identities.id"],
            name="fk_posts_author_id_av_identities",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_posts_author_id", "posts", ["author_id"])
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("buyer_id", person),
        sa.Column("state", sa.Text(), nullable=False, server_default="open"),
        sa.ForeignKeyConstraint(
            ["buyer_id"],
            ["av_identities.id"],
            name="fk_orders_buyer_id_av_identities",
            ondelete="SET NULL",
        ),
    )
    op.create_index("ix_orders_buyer_id", "orders", ["buyer_id"])


def downgrade() -> None:
    """Drop them."""
    op.drop_table("orders")
    op.drop_table("posts")
    op.drop_column("av_identities", "signature")
