"""Make the inbox: events that wait, a lane for each tenant, and what strangers hold together.

Revision ID: control_0002
Revises: control_0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "control_0002"
down_revision = "control_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the three tables; strangers hold nothing yet."""
    on_postgres = op.get_bind().dialect.name == "postgresql"
    identifier = sa.Text(collation="C") if on_postgres else sa.Text()
    moment = postgresql.TIMESTAMP(timezone=True, precision=3) if on_postgres else sa.DateTime()
    number = sa.BigInteger() if on_postgres else sa.Integer()

    op.create_table(
        "inbox",
        sa.Column("number", number, sa.Identity(), nullable=False),
        sa.Column("tenant_id", identifier, nullable=False),
        sa.Column("event_id", identifier, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", identifier),
        sa.Column("timestamp", sa.BigInteger(), nullable=False),
        sa.Column("signed_at", sa.BigInteger()),
        sa.Column("door", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary()),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("received_at", moment, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("due_at", moment, nullable=False),
        sa.Column("settled_at", moment),
        sa.Column("outcome", sa.Text()),
        sa.PrimaryKeyConstraint("number", name="pk_inbox"),
        sa.UniqueConstraint("tenant_id", "event_id", name="uq_inbox_tenant_id"),
        sqlite_autoincrement=True,
    )
    parked = sa.text("state = 'parked'")
    for name, columns in (
        ("ix_inbox_due", ["tenant_id", "due_at", "number"]),
        ("ix_inbox_waiting", ["tenant_id", "received_at"]),
    ):
        op.create_index(name, "inbox", columns, postgresql_where=parked, sqlite_where=parked)
    op.create_index("ix_inbox_subject", "inbox", ["tenant_id", "subject"])
    settled = sa.text("settled_at IS NOT NULL")
    op.create_index(
        "ix_inbox_settled",
        "inbox",
        ["state", "settled_at"],
        postgresql_where=settled,
        sqlite_where=settled,
    )
    kept = sa.text("state = 'applied' AND body IS NOT NULL")
    op.create_index(
        "ix_inbox_bodies", "inbox", ["settled_at"], postgresql_where=kept, sqlite_where=kept
    )
    op.create_table(
        "lanes",
        sa.Column("tenant_id", identifier, nullable=False),
        sa.Column("known", sa.Boolean(), nullable=False),
        sa.Column("waiting", sa.BigInteger(), nullable=False),
        sa.Column("quarantined", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("since", moment),
        sa.Column("due_at", moment),
        sa.Column("token", sa.Text()),
        sa.Column("owner", sa.Text()),
        sa.Column("woken", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_lanes"),
    )
    op.create_index("ix_lanes_due_at", "lanes", ["due_at"])
    strangers = op.create_table(
        "strangers",
        sa.Column("only", sa.Boolean(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("only", name="pk_strangers"),
    )
    op.bulk_insert(strangers, [{"only": True, "events": 0, "bytes": 0}])


def downgrade() -> None:
    """Forget every event that waits."""
    for table in ("strangers", "lanes", "inbox"):
        op.drop_table(table)
