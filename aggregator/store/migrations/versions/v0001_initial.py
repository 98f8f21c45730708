"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ledger_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "ledger_leaves",
        sa.Column("leaf_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("leaf_index"),
    )
    op.create_table(
        "partners",
        sa.Column("partner_key", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("added_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("partner_key"),
    )
    op.create_table(
        "tasks",
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.Column("manifest_signature", sa.LargeBinary(), nullable=False),
        sa.Column("manifest_digest", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("charges", sa.Integer(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("cohort", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("task"),
        sa.UniqueConstraint("manifest_digest"),
    )
    op.create_table(
        "cohorts",
        sa.Column("cohort", sa.String(length=64), nullable=False),
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("phase", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("charge", sa.Integer(), nullable=True),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.Float(precision=53), nullable=False),
        sa.Column("ended_at", sa.Float(precision=53), nullable=True),
        sa.Column("opener", sa.String(length=64), nullable=True),
        sa.Column("opener_until", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(
            ["task"],
            ["tasks.task"],
        ),
        sa.PrimaryKeyConstraint("cohort"),
        sa.UniqueConstraint("task", "model_version", "attempt"),
    )
    op.create_index(op.f("ix_cohorts_state"), "cohorts", ["state"], unique=False)
    op.create_index(op.f("ix_cohorts_task"), "cohorts", ["task"], unique=False)
    op.create_table(
        "releases",
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("release", sa.Integer(), nullable=False),
        sa.Column("cohort", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("survivors", sa.Integer(), nullable=False),
        sa.Column("leaf_index", sa.BigInteger(), nullable=False),
        sa.Column("view", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task"],
            ["tasks.task"],
        ),
        sa.PrimaryKeyConstraint("task", "release"),
        sa.UniqueConstraint("cohort"),
    )
    op.create_table(
        "sessions",
        sa.Column("session", sa.String(length=64), nullable=False),
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.Column("advert", sa.LargeBinary(), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.Float(precision=53), nullable=False),
        sa.Column("cohort", sa.String(length=64), nullable=True),
        sa.Column("roster_index", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["task"],
            ["tasks.task"],
        ),
        sa.PrimaryKeyConstraint("session"),
    )
    op.create_index(op.f("ix_sessions_cohort"), "sessions", ["cohort"], unique=False)
    op.create_index("sessions_waiting", "sessions", ["task", "cohort", "identity"], unique=False)
    op.create_table(
        "versions",
        sa.Column("task", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("optimiser_digest", sa.String(length=64), nullable=True),
        sa.Column("opened_at", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(
            ["task"],
            ["tasks.task"],
        ),
        sa.PrimaryKeyConstraint("task", "version"),
    )
    op.create_index(op.f("ix_versions_digest"), "versions", ["digest"], unique=False)
    op.create_table(
        "cohort_events",
        sa.Column("cohort", sa.String(length=64), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cohort"],
            ["cohorts.cohort"],
        ),
        sa.PrimaryKeyConstraint("cohort", "seq"),
    )
    op.create_table(
        "contributions",
        sa.Column("cohort", sa.String(length=64), nullable=False),
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.Column("shard", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cohort"],
            ["cohorts.cohort"],
        ),
        sa.PrimaryKeyConstraint("cohort", "identity"),
    )
    op.create_table(
        "mail",
        sa.Column("session", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session"],
            ["sessions.session"],
        ),
        sa.PrimaryKeyConstraint("session", "number"),
    )
    op.create_table(
        "partial_sums",
        sa.Column("cohort", sa.String(length=64), nullable=False),
        sa.Column("shard", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cohort"],
            ["cohorts.cohort"],
        ),
        sa.PrimaryKeyConstraint("cohort", "shard"),
    )


def downgrade() -> None:
    op.drop_table("partial_sums")
    op.drop_table("mail")
    op.drop_table("contributions")
    op.drop_table("cohort_events")
    op.drop_index(op.f("ix_versions_digest"), table_name="versions")
    op.drop_table("versions")
    op.drop_index("sessions_waiting", table_name="sessions")
    op.drop_index(op.f("ix_sessions_cohort"), table_name="sessions")
    op.drop_table("sessions")
    op.drop_table("releases")
    op.drop_index(op.f("ix_cohorts_task"), table_name="cohorts")
    op.drop_index(op.f("ix_cohorts_state"), table_name="cohorts")
    op.drop_table("cohorts")
    op.drop_table("tasks")
    op.drop_table("partners")
    op.drop_table("ledger_leaves")
    op.drop_table("ledger_head")
