"""Tasks that their operator has closed or deleted, and operators' tokens that were rotated."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("closed_at", sa.Float(precision=53)))
    op.add_column("tasks", sa.Column("deleted_at", sa.Float(precision=53)))
    op.create_table(
        "operator_tokens",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("made_at", sa.Float(precision=53), nullable=False),
        sa.Column("until", sa.Float(precision=53)),
        sa.PrimaryKeyConstraint("digest"),
    )


def downgrade() -> None:
    """A closed task stays as it is, finished or paused; the tokens of the settings count again."""
    op.drop_table("operator_tokens")
    op.drop_column("tasks", "deleted_at")
    op.drop_column("tasks", "closed_at")
