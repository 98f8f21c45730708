"""Tables. Identifiers and digests are hex, times are Unix seconds, sizes are bytes.

What is sealed, and how names of devices are hashed: :mod:`aggregator.store.sealing`.

``cohort_events`` is the truth about a cohort: its log replays through ``secagg.server`` to the
same state on any replica, and its primary key is the optimistic lock. What stands beside it in
``cohorts`` and ``sessions`` is a summary, written in the same transactions.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
_Hex = sa.String(64)

service_facts = sa.Table(
    "service_facts",  # of the one service whose database this is; see aggregator.store.identity
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

replicas = sa.Table(
    "replicas",  # when each was started last
    metadata,
    sa.Column("replica", _Hex, primary_key=True),
    sa.Column("started_at", sa.Float(53), nullable=False),
)

partners = sa.Table(
    "partners",
    metadata,
    sa.Column("partner_key", _Hex, primary_key=True),  # Ed25519
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("added_at", sa.Float(53), nullable=False),
)

removed_partners = sa.Table(  # what their devices are told, and that an add brings one back
    "removed_partners",
    metadata,
    sa.Column("partner_key", _Hex, primary_key=True),
    sa.Column("removed_at", sa.Float(53), nullable=False),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("task", sa.String(200), primary_key=True),
    sa.Column("spec", sa.Text, nullable=False),  # JSON as the operator sent it
    sa.Column("manifest", sa.LargeBinary, nullable=False),
    sa.Column("manifest_signature", sa.LargeBinary, nullable=False),
    sa.Column("manifest_digest", _Hex, nullable=False, unique=True),
    sa.Column("state", sa.String(16), nullable=False),  # open | paused | finished
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("charges", sa.Integer, nullable=False),  # releases and charged aborts
    sa.Column("account", sa.Text, nullable=False),  # dp.accounting.budget.Account as JSON
    sa.Column("cohort", _Hex),  # the one open cohort: null when there is none
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("closed_at", sa.Float(53)),  # by its operator, for good; null: it was not
    sa.Column("deleted_at", sa.Float(53)),  # hidden since; its name stays taken, as in the ledger
)

operator_tokens = sa.Table(
    "operator_tokens",  # those that were rotated in or out
    metadata,
    sa.Column("digest", _Hex, primary_key=True),  # SHA-256 of the token
    sa.Column("made_at", sa.Float(53), nullable=False),
    sa.Column("until", sa.Float(53)),  # null: until it is rotated out
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("task", sa.String(200), sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("digest", _Hex, nullable=False, index=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("optimiser_digest", _Hex),  # state of the server optimiser after this version
    sa.Column("opened_at", sa.Float(53), nullable=False),
    sa.Column("leaf_index", sa.BigInteger, nullable=False, server_default="-1"),  # -1: not known
)

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session", _Hex, primary_key=True),  # digest of the signed advert
    sa.Column("task", sa.String(200), sa.ForeignKey("tasks.task"), nullable=False),
    sa.Column("identity", _Hex, nullable=False),  # hashed
    sa.Column("device", sa.LargeBinary, nullable=False),  # the identity key, sealed
    sa.Column("advert", sa.LargeBinary, nullable=False),  # sealed
    sa.Column("model_version", sa.Integer, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.Float(53), nullable=False),
    sa.Column("cohort", _Hex, index=True),  # null while waiting
    sa.Column("roster_index", sa.Integer),
    sa.Column("partner", _Hex, nullable=False, server_default=""),  # empty: not known
    # Partners whose devices it accepts, hex between spaces; empty: its own partner's alone.
    sa.Column("trusted", sa.Text, nullable=False, server_default=""),
    # Of the first of the adverts that replaced each other before a cohort took one.
    sa.Column("waiting_since", sa.Float(53), nullable=False, server_default="0"),
    sa.Index("sessions_waiting", "task", "cohort", "identity"),
)

cohorts = sa.Table(
    "cohorts",
    metadata,
    sa.Column("cohort", _Hex, primary_key=True),
    sa.Column("task", sa.String(200), sa.ForeignKey("tasks.task"), nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("model_version", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),  # open | released | aborted
    sa.Column("phase", sa.String(32), nullable=False),
    sa.Column("reason", sa.String(64)),
    sa.Column("charge", sa.Integer),  # number of the debit, once any device may have sent
    sa.Column("seq", sa.Integer, nullable=False),  # last event
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("opened_at", sa.Float(53), nullable=False),
    sa.Column("ended_at", sa.Float(53)),
    sa.Column("opener", sa.String(64)),  # replica that unmasks the sum
    sa.Column("opener_until", sa.Float(53)),
    sa.UniqueConstraint("task", "model_version", "attempt"),
)

refusals = sa.Table(
    "refusals",  # devices that refused a roster, because of whom, and until when that counts
    metadata,
    sa.Column("task", sa.String(200), sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("identity", _Hex, primary_key=True),  # hashed
    sa.Column("target", _Hex, primary_key=True),  # hashed identity; empty: the roster as such
    sa.Column("device", sa.LargeBinary, nullable=False),  # the identity keys, sealed
    sa.Column("target_device", sa.LargeBinary, nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("times", sa.Integer, nullable=False),
    sa.Column("refused_at", sa.Float(53), nullable=False),
    sa.Column("expires_at", sa.Float(53), nullable=False),
)

drop_outs = sa.Table(
    "drop_outs",  # how many devices did not come through which step of the ended cohorts
    metadata,
    sa.Column("task", sa.String(200), sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("step", sa.String(16), primary_key=True),
    sa.Column("devices", sa.Integer, nullable=False),
)

not_dealing = sa.Table(
    "not_dealing",  # devices that have dealt in none of the last cohorts which took them
    metadata,
    sa.Column("task", sa.String(200), sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("identity", _Hex, primary_key=True),  # hashed
    sa.Column("device", sa.LargeBinary, nullable=False),  # the identity key, sealed
    sa.Column("cohorts", sa.Integer, nullable=False),  # in a row
    sa.Column("first_at", sa.Float(53), nullable=False),
    sa.Column("last_at", sa.Float(53), nullable=False),
)

cohort_events = sa.Table(
    "cohort_events",  # removed when the cohort has ended
    metadata,
    sa.Column("cohort", _Hex, sa.ForeignKey("cohorts.cohort"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),  # sealed
)

mail = sa.Table(
    "mail",
    metadata,
    sa.Column("session", _Hex, sa.ForeignKey("sessions.session"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),  # from 1
    # Sealed; empty: the cohort's log gives it.
    sa.Column("message", sa.LargeBinary, nullable=False),
)

contributions = sa.Table(
    "contributions",  # the unique claim of a device on its one place in the sum
    metadata,
    sa.Column("cohort", _Hex, sa.ForeignKey("cohorts.cohort"), primary_key=True),
    sa.Column("identity", _Hex, primary_key=True),  # hashed
    sa.Column("shard", _Hex, nullable=False),
    sa.Column("generation", sa.Integer, nullable=False),
)

partial_sums = sa.Table(
    "partial_sums",
    metadata,
    sa.Column("cohort", _Hex, sa.ForeignKey("cohorts.cohort"), primary_key=True),
    sa.Column("shard", _Hex, primary_key=True),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("digest", _Hex),  # SHA-256 of the blob; null before schema 0013
)

releases = sa.Table(
    "releases",
    metadata,
    sa.Column("task", sa.String(200), sa.ForeignKey("tasks.task"), primary_key=True),
    sa.Column("release", sa.Integer, primary_key=True),  # = charge
    sa.Column("cohort", _Hex, nullable=False, unique=True),
    sa.Column("outcome", sa.String(16), nullable=False),  # released | charged
    sa.Column("survivors", sa.Integer, nullable=False),  # that accounting counts
    sa.Column(  # 0: not known
        "masking_set", sa.Integer, key="masking_set_size", nullable=False, server_default="0"
    ),
    sa.Column("leaf_index", sa.BigInteger, nullable=False),
    sa.Column("view", sa.Text, nullable=False),  # JSON for the operator
)

ledger_leaves = sa.Table(
    "ledger_leaves",
    metadata,
    sa.Column("leaf_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
)

ledger_head = sa.Table(
    "ledger_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),  # always 1
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("checkpoint", sa.Text, nullable=False),
)

bans = sa.Table(
    "bans",  # devices that are refused, whatever they send
    metadata,
    sa.Column("identity", _Hex, primary_key=True),  # hashed
    sa.Column("device", sa.LargeBinary, nullable=False),  # the identity key, sealed
    sa.Column("partner", _Hex, nullable=False),  # empty: not known
    sa.Column("kind", sa.String(64), nullable=False),  # of secagg.evidence, or "operator"
    sa.Column("task", sa.String(200), nullable=False),  # empty: none
    sa.Column("cohort", _Hex, nullable=False),  # empty: none
    sa.Column("handle", _Hex, nullable=False),  # how the ledger names the device in this ban
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("evidence", sa.LargeBinary, nullable=False),  # sealed; empty: none
    sa.Column("transferable", sa.Boolean, nullable=False),  # whether others can check it
    sa.Column("banned_at", sa.Float(53), nullable=False),
)

strikes = sa.Table(
    "strikes",  # devices in question in a cohort that failed without a name
    metadata,
    sa.Column("identity", _Hex, primary_key=True),  # hashed
    sa.Column("cohort", _Hex, primary_key=True),
    sa.Column("device", sa.LargeBinary, nullable=False),  # the identity key, sealed
    sa.Column("partner", _Hex, nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("weight", sa.Float(53), nullable=False),
    sa.Column("struck_at", sa.Float(53), nullable=False),
)

revocation_lists = sa.Table(
    "revocation_lists",  # the newest of each partner
    metadata,
    sa.Column("partner", _Hex, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("digest", _Hex, nullable=False),
    sa.Column("signed", sa.LargeBinary, nullable=False),  # sealed
    sa.Column("received_at", sa.Float(53), nullable=False),
)

revoked = sa.Table(
    "revoked",  # the devices in those lists
    metadata,
    sa.Column("partner", _Hex, primary_key=True),
    sa.Column("identity", _Hex, primary_key=True, index=True),  # hashed
    sa.Column("device", sa.LargeBinary, nullable=False),  # the identity key, sealed
)
