"""Make the mirror: identities, their local sessions, the ledger, the tombstones.

Revision ID: tenantsync_0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "tenantsync_0001"
down_revision = None
branch_labels = ("tenantsync",)
depends_on = None


def upgrade() -> None:
    """Make the four tables, empty."""
    on_postgres = op.get_context().dialect.name == "postgresql"
    # Ids compare by bytes: SQLite does so unless told otherwise, PostgreSQL must be told.
    identifier = sa.Text(collation="C") if on_postgres else sa.Text()
    instant = postgresql.TIMESTAMP(timezone=True, precision=3) if on_postgres else sa.DateTime()
    texts = postgresql.ARRAY(sa.Text()) if on_postgres else sa.JSON()
    document = postgresql.JSONB() if on_postgres else sa.JSON()
    empty_texts = sa.text("'{}'" if on_postgres else "'[]'")
    now = sa.text("now()" if on_postgres else "(strftime('%Y-%m-%d %H:%M:%f000', 'now'))")

    op.create_table(
        "av_identities",
        sa.Column("id", identifier, nullable=False),
        sa.Column("username", sa.Text()),
        sa.Column("display_name", sa.Text()),
        sa.Column("given_name", sa.Text()),
        sa.Column("family_name", sa.Text()),
        sa.Column("middle_name", sa.Text()),
        sa.Column("nickname", sa.Text()),
        sa.Column("picture_url", sa.Text()),
        sa.Column("website", sa.Text()),
        sa.Column("gender", sa.Text()),
        sa.Column("birthdate", sa.Text()),
        sa.Column("zoneinfo", sa.Text()),
        sa.Column("locale", sa.Text()),
        sa.Column("email", sa.Text()),
        sa.Column("email_verified", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("phone", sa.Text()),
        sa.Column("phone_verified", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("tenant_id", identifier),
        sa.Column("app_role", sa.Text()),
        sa.Column("groups", texts, server_default=empty_texts),
        sa.Column("is_active", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("has_app_access", sa.Boolean(), server_default=sa.true(), nullable=False),
        sa.Column("synced_at", instant, server_default=now, nullable=False),
        sa.Column("created_at", instant, server_default=now, nullable=False),
        sa.Column("updated_at", instant, server_default=now, nullable=False),
        sa.Column("subject_type", sa.Text()),
        sa.Column("membership_id", identifier),
        sa.Column("membership_status", sa.Text()),
        sa.Column("tenant_roles", texts, server_default=empty_texts, nullable=False),
        sa.Column("clocks", document, server_default=sa.text("'{}'"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_av_identities"),
    )
    for column in ("email", "phone", "tenant_id", "username"):
        op.create_index(f"ix_av_identities_{column}", "av_identities", [column])

    op.create_table(
        "av_identity_sessions",
        sa.Column("id", identifier, nullable=False),
        sa.Column("identity_id", identifier, nullable=False),
        sa.Column("auth_session_id", identifier),
        sa.Column("device_info", sa.Text()),
        sa.Column("ip_address", sa.Text()),
        sa.Column("user_agent", sa.Text()),
        sa.Column("created_at", instant, server_default=now, nullable=False),
        sa.Column("last_active_at", instant, server_default=now, nullable=False),
        sa.Column("expires_at", instant, nullable=False),
        sa.Column("revoked_at", instant),
        sa.PrimaryKeyConstraint("id", name="pk_av_identity_sessions"),
        sa.ForeignKeyConstraint(
            ["identity_id"],
            ["av_identities.id"],
            name="fk_av_identity_sessions_identity_id_av_identities",
            ondelete="CASCADE",
            onupdate="CASCADE",
        ),
    )
    for column in ("auth_session_id", "identity_id"):
        op.create_index(f"ix_av_identity_sessions_{column}", "av_identity_sessions", [column])

    op.create_table(
        "av_sync_events",
        sa.Column("event_id", identifier, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", identifier),
        sa.Column("occurred_at", instant, nullable=False),
        sa.Column("received_at", instant, server_default=now, nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_av_sync_events"),
    )
    op.create_index("ix_av_sync_events_received_at", "av_sync_events", ["received_at"])

    op.create_table(
        "av_identity_tombstones",
        sa.Column("id", identifier, nullable=False),
        sa.Column("clock", identifier, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_av_identity_tombstones"),
    )


def downgrade() -> None:
    """Drop the four tables and all that they hold."""
    op.drop_table("av_identity_tombstones")
    op.drop_table("av_sync_events")
    op.drop_table("av_identity_sessions")
    op.drop_table("av_identities")
