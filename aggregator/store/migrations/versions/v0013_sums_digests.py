"""The digest of a partial sum; whether the service's own work for a cohort has failed."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("partial_sums", sa.Column("digest", sa.String(length=64)))
    op.add_column(
        "cohorts",
        sa.Column("service_failed", sa.Boolean(), nullable=False, server_default=sa.false()),
    )


def downgrade() -> None:
    op.drop_column("cohorts", "service_failed")
    op.drop_column("partial_sums", "digest")
