"""Who refused a roster because of whom; and whose devices a device accepts beside it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "refusals",
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.Column("target", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("refused_at", sa.Float(precision=53), nullable=False),
        sa.Column("expires_at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["task"], ["tasks.task"]),
        sa.PrimaryKeyConstraint("task", "identity", "target"),
    )
    op.add_column("sessions", sa.Column("trusted", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("sessions", "trusted")
    op.drop_table("refusals")
