"""Offline verification of a whole ledger: nothing in it is believed that can be computed.

The log, by the steps of :mod:`dp.ledger.trusted_log` that stand in brackets:

1. The checkpoint is signed by a key that the auditor brings (1).
2. The witnesses that the auditor names have cosigned it (2).
3. All entries are there, and no more than an audit holds.
4. The entries give the root that the checkpoint signs (8).
5. Every tile says what the entries give.
6. Older checkpoints that the auditor kept have the same signer (1), and are prefixes (3, 5).

Each record in order, by the steps of :mod:`dp.ledger.record_audit`:

7. It has one reading, a known type and version, and its fields have their form.
8-10. A task is signed, of this ledger, and within the rules of :mod:`dp.contracts`.
11-20. A cohort is new, of its task, and lists its masking set; its models, clip, noise and cost are
    what follows, with every epsilon; its task is within its budget.
21. Decisions, bans and further keys fit this ledger.

Only 1 and 3 end the audit. Every other step is done whatever was found before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dp.accounting.totals import Spent, ledger_totals
from dp.errors import LedgerError, LogForked, LogShrank, RootMismatch
from dp.ledger.findings import AuditedTask, AuditResult, Finding
from dp.ledger.record_audit import RecordAudit
from dp.ledger.trusted_log import WholeLog, verify_growth
from dp.tlog import merkle, tiles
from dp.tlog.notes import Checkpoint, Verifier, open_checkpoint, parse_verifier
from dp.tlog.witness import WitnessPolicy, cosigned_at

_ENTRIES_BYTES_MAX = 1 << 31  # of all entries; a record of the demo has 1.4 kB
_ENTRIES_MAX = 1 << 22  # an audit holds all entries in memory, a signed size is not a reason to


@dataclass
class _Log:
    """What was seen of the log. ``grew``: an older checkpoint was given."""

    checkpoint: Checkpoint
    witnessed: bool
    grew: bool
    cosigned: dict[str, int] = field(default_factory=dict)
    records_read: int = 0


def verify_ledger(
    read: tiles.Read,
    verifier: str,
    *,
    older: Sequence[bytes] = (),
    witnesses: WitnessPolicy | None = None,
) -> AuditResult:
    """Verify a ledger from end to end. Whatever is wrong becomes a problem, never an exception.

    Args:
        read: resources of the log by path: ``checkpoint``, ``tile/...``. Its :class:`ReadError`
            is passed on: what cannot be read is neither right nor wrong.
        verifier: the log's verifier key, from outside the ledger.
        older: signed checkpoints of this log that were seen before, to show rewriting and forks.
        witnesses: whose cosignatures the checkpoint must carry.
    """
    try:
        key = parse_verifier(verifier)
        note = read("checkpoint")
        if note is None:
            raise LedgerError("checkpoint-missing", "The ledger has no checkpoint.")
        checkpoint = open_checkpoint(note, key)  # 1
    except LedgerError as error:
        return _unopened(error)
    audit = RecordAudit(read, key, note)
    log = _Log(checkpoint, witnesses is not None, bool(older))
    if witnesses is not None:
        _check_witnesses(audit, log, note, witnesses)  # 2
    whole = WholeLog()
    try:
        entries = _entries(read, whole, checkpoint.size)  # 3
    except LedgerError as error:
        audit.caught(error)
        return _result(audit, log)
    log.records_read = len(entries)
    try:
        whole.finish(checkpoint)  # 4
    except RootMismatch as error:
        audit.problem(error.reason, error.message)
    _check_tiles(audit, read, whole.tree)  # 5
    _check_older(audit, whole, key, older)  # 6
    for leaf, entry in enumerate(entries):
        audit.take(entry, leaf)  # 7 to 21
    return _result(audit, log)


def _check_witnesses(audit: RecordAudit, log: _Log, note: bytes, policy: WitnessPolicy) -> None:
    log.cosigned = {key.name: at for key, at in cosigned_at(note, policy.keys).items()}
    try:
        policy.check(note)
    except LedgerError as error:
        audit.caught(error)


def _entries(read: tiles.Read, whole: WholeLog, size: int) -> list[bytes]:
    if size > _ENTRIES_MAX:
        raise LedgerError(
            "ledger-too-large",
            "The ledger has more records than one audit reads.",
            expected=f"<= {_ENTRIES_MAX}",
            found=size,
            remedy="Ask the operator: its key signed this size.",
        )
    entries: list[bytes] = []
    size_bytes = 0
    for bundle in tiles.bundles_of(size):
        taken = whole.take(read, bundle)
        entries += taken
        size_bytes += sum(2 + len(entry) for entry in taken)
        if size_bytes > _ENTRIES_BYTES_MAX:
            raise LedgerError(
                "ledger-too-large",
                "The ledger's records are more than one audit holds.",
                expected=f"<= {_ENTRIES_BYTES_MAX} bytes",
            )
    return entries


def _check_tiles(audit: RecordAudit, read: tiles.Read, tree: merkle.Tree) -> None:
    for tile in tiles.tiles_of(tree.size):
        try:
            if tiles.fetch(read, tile) != tiles.tile_bytes(tree.subtree, tile):
                audit.problem("tile-mismatch", f"{tile.path} does not match the entries.")
        except LedgerError as error:
            audit.caught(error)


def _check_older(
    audit: RecordAudit, whole: WholeLog, key: Verifier, older: Sequence[bytes]
) -> None:
    now = Checkpoint(key.name, whole.frontier.size, whole.frontier.root())
    for note in older:
        try:
            before = open_checkpoint(note, key)
        except LedgerError as error:
            audit.problem(error.reason, f"An older checkpoint: {error}")
            continue
        try:
            verify_growth(whole.tree.subtree, before, now)
        except LogShrank:
            audit.problem(
                "truncated",
                f"An older checkpoint signs {before.size} entries, this one {now.size}.",
            )
        except LogForked:
            audit.problem(
                "forked",
                f"The log of {before.size} entries that was signed before is not a prefix of it.",
            )


def _unchecked(audit: RecordAudit, log: _Log) -> Iterator[Finding]:
    """What the audit had no means to check."""
    if not log.witnessed:
        kept = "an" if log.grew else "no"
        yield Finding(
            reason="others-view",
            message="That others see this ledger: no witness was demanded, and "
            f"{kept} older checkpoint was given.",
        )
    for task in audit.tasks.values():
        name = task.manifest.task
        if task.of_version_1:
            yield Finding(
                reason="record-version-1",
                message=f"{task.of_version_1} records of task {name} are of version 1, which names "
                "neither the attempt nor the devices outside of the sum: their contexts were not "
                "computed again, and their masking sets not counted.",
            )
        if task.manifest.training is not None and task.conduct.first_model is None:
            yield Finding(
                reason="first-model-unnamed",
                message=f"The record of task {name} does not name its first model.",
                leaf=task.leaf,
            )
        for reason, message, leaf in task.conduct.unchecked:
            yield Finding(reason=reason, message=message, leaf=leaf)


def _unopened(error: LedgerError) -> AuditResult:
    """Of a ledger without a checkpoint that verifies nothing can be said."""
    return AuditResult(
        verified=False,
        tree_size=0,
        root="",
        origin="",
        releases=0,
        charged=0,
        epsilon=None,
        problems=(Finding(reason=error.reason, message=str(error)),),
        tasks=(),
    )


def _result(audit: RecordAudit, log: _Log) -> AuditResult:
    tasks = tuple(
        AuditedTask(
            leaf=task.leaf,
            manifest=task.manifest,
            manifest_digest=task.manifest_digest,
            admissible=task.admissible,
            releases=tuple(task.releases),
            policies=tuple(task.policies),
        )
        for task in audit.tasks.values()
    )
    every = [release for task in tasks for release in task.releases]
    totals = ledger_totals(
        Spent(task.manifest, task.counts, task.unaccounted) for task in audit.tasks.values()
    )
    stated = {statement.unit for task in tasks for statement in task.lines}
    costs = [0.0, *(found.epsilon for found in totals if found.unit in stated)]
    return AuditResult(
        verified=not audit.problems,
        tree_size=log.checkpoint.size,
        root=log.checkpoint.root.hex(),
        origin=log.checkpoint.origin,
        releases=sum(1 for release in every if release.entry.outcome == "released"),
        charged=len(every),
        epsilon=max(costs) if stated else None,
        problems=tuple(audit.problems),
        tasks=tasks,
        witnesses=log.cosigned,
        memberships=tuple(audit.memberships),
        rotations=tuple(audit.rotations),
        unchecked=tuple(_unchecked(audit, log)),
        totals=totals,
        records_read=log.records_read,
    )
