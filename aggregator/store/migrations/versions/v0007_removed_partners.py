"""Partners that were removed are remembered."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "removed_partners",
        sa.Column("partner_key", sa.String(length=64), nullable=False),
        sa.Column("removed_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("partner_key"),
    )


def downgrade() -> None:
    op.drop_table("removed_partners")
