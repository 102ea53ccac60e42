"""Add accounts.

Revision ID: ledger_0001
"""

import sqlalchemy as sa
from alembic import op

revision = "ledger_0001"
down_revision = None
branch_labels = ("ledger",)
depends_on = "tenantsync_0001"


def upgrade() -> None:
    """Add the table, in the schema of whichever tenant is being migrated."""
    person = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    op.create_table(
        "accounts",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("owner_id", person, nullable=False),
        sa.Column("balance", sa.Numeric(12, 2), nullable=False, server_default="0"),
        sa.Column("label", sa.Text()),
        sa.UniqueConstraint("owner_id", name="uq_accounts_owner_id"),
        sa.ForeignKeyConstraint(
            ["owner_id"],
            ["av_identities.id"],
            name="fk_accounts_owner_id_av_identities",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("accounts")
