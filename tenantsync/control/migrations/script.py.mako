"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """TODO: say what this makes, in a sentence."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """TODO: say what this takes away, in a sentence."""
    ${downgrades if downgrades else "pass"}
