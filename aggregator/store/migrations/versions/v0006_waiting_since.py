"""A device that reports in anew while it waits keeps its place."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "sessions",
        sa.Column("waiting_since", sa.Float(precision=53), nullable=False, server_default="0"),
    )
    op.execute("UPDATE sessions SET waiting_since = received_at")


def downgrade() -> None:
    op.drop_column("sessions", "waiting_since")
