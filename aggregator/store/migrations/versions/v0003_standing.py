"""Bans with their evidence, strikes, and the partners' lists of revoked devices."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bans",
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.Column("partner", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("cohort", sa.String(length=64), nullable=False),
        sa.Column("handle", sa.String(length=64), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("evidence", sa.LargeBinary(), nullable=False),
        sa.Column("transferable", sa.Boolean(), nullable=False),
        sa.Column("banned_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("identity"),
    )
    op.create_table(
        "strikes",
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.Column("cohort", sa.String(length=64), nullable=False),
        sa.Column("partner", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("weight", sa.Float(precision=53), nullable=False),
        sa.Column("struck_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("identity", "cohort"),
    )
    op.create_table(
        "revocation_lists",
        sa.Column("partner", sa.String(length=64), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("signed", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("partner"),
    )
    op.create_table(
        "revoked",
        sa.Column("partner", sa.String(length=64), nullable=False),
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("partner", "identity"),
    )
    op.create_index(op.f("ix_revoked_identity"), "revoked", ["identity"], unique=False)
    op.add_column(
        "sessions", sa.Column("partner", sa.String(length=64), nullable=False, server_default="")
    )


def downgrade() -> None:
    op.drop_column("sessions", "partner")
    op.drop_table("revoked")
    op.drop_table("revocation_lists")
    op.drop_table("strikes")
    op.drop_table("bans")
