"""The digest of a partial sum."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("partial_sums", sa.Column("digest", sa.String(length=64)))


def downgrade() -> None:
    op.drop_column("partial_sums", "digest")
