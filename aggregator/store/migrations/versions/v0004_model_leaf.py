"""A model version knows the leaf of the ledger's record that made it: offers name it."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "versions", sa.Column("leaf_index", sa.BigInteger(), nullable=False, server_default="-1")
    )


def downgrade() -> None:
    op.drop_column("versions", "leaf_index")
