"""Releases know how many devices owed a vector: it decides how much removable noise stayed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "releases", sa.Column("masking_set", sa.Integer(), nullable=False, server_default="0")
    )


def downgrade() -> None:
    op.drop_column("releases", "masking_set")
