"""Where ended cohorts lost their devices, and which devices do not deal."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "drop_outs",
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("step", sa.String(length=16), nullable=False),
        sa.Column("devices", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["tasks.task"]),
        sa.PrimaryKeyConstraint("task", "step"),
    )
    op.create_table(
        "not_dealing",
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.Column("cohorts", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.Float(precision=53), nullable=False),
        sa.Column("last_at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["tasks.task"]),
        sa.PrimaryKeyConstraint("task", "identity"),
    )


def downgrade() -> None:
    op.drop_table("not_dealing")
    op.drop_table("drop_outs")
