"""Offline verification of a whole ledger: nothing in it is believed that can be computed.

1. The checkpoint's signature, by a key that the auditor brings.
2. The entries: their hashes give the signed root; every tile says the same.
3. Growth: older checkpoints that the auditor kept are prefixes; the witnesses that the auditor
   names have cosigned.
4. Tasks: the manifest's digest and signature, and the rules of ``dp.contracts``.
5. Releases: numbers, cohorts and their contexts, sizes, the masking set that is listed, the chain
   of models, an adaptive clip and what it follows from, and against the budget.
6. Every epsilon, recomputed from the manifest and the survivors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import nacl.exceptions
import nacl.signing

from dp.accounting.figures import limit_shown, shown_up
from dp.accounting.statements import PrivacyLine, ReleaseFacts, guaranteed_variance, headline, lines
from dp.accounting.totals import Spent, ledger_totals
from dp.contracts import check_recorded
from dp.errors import LedgerError, ReadError
from dp.ledger.conduct import Conduct
from dp.ledger.contributors import members_of
from dp.ledger.findings import AuditedRelease, AuditedTask, AuditResult, Finding
from dp.ledger.forms import Rotation, check_fields, parse_policy, parse_rotation
from dp.ledger.parsing import parse_first_model, parse_record, parse_release, parse_task
from dp.ledger.records import Membership, ReleaseEntry, epsilon_micro, parse_membership, same_terms
from dp.noise.adaptive_clip import first_clip, next_clip
from dp.tlog import merkle, tiles
from dp.tlog.notes import Checkpoint, Verifier, open_checkpoint, parse_verifier, verify_note
from dp.tlog.witness import WitnessPolicy, cosigned_at
from secagg.context import context
from secagg.errors import SecaggError
from secagg.hashing import encode_parts
from secagg.manifest import Manifest
from secagg.messages import AdmittedModel

_MICRO_TOLERANCE = 1  # libm differs between platforms in the last bit
_ENTRIES_BYTES_MAX = 1 << 31  # of all entries; a record of the demo has 1.4 kB
_ENTRIES_MAX = 1 << 22  # an audit holds all entries in memory, a signed size is not a reason to


@dataclass
class _Task:
    leaf: int
    manifest: Manifest
    manifest_digest: bytes
    releases: list[AuditedRelease] = field(default_factory=list)
    counts: Counter[ReleaseFacts] = field(default_factory=Counter)  # charges
    policies: list[dict[str, Any]] = field(default_factory=list)
    models: list[bytes | None] = field(default_factory=lambda: [None])  # by version; None: untold
    admissible: bool = False  # passed the rules of dp.contracts
    clip: float | None = None  # of the newest version, where the clip adapts; None: not known
    contexts: set[bytes] = field(default_factory=set)
    rosters: set[bytes] = field(default_factory=set)
    unaccounted: bool = False  # releases under a manifest that the rules refuse
    lists_all: bool = False  # a release lists its masking set: version 1 is over
    of_version_1: int = 0  # releases that do not
    conduct: Conduct = field(init=False)

    def __post_init__(self) -> None:
        self.conduct = Conduct(self.manifest, self.models[0])


class _Audit:
    def __init__(self, read: tiles.Read) -> None:
        self._read = read
        self.problems: list[Finding] = []
        self.tasks: dict[str, _Task] = {}
        self.cohorts: set[bytes] = set()
        self.memberships: list[tuple[int, Membership]] = []
        self.pseudonyms: set[bytes] = set()  # each is of one cohort, so it occurs once
        self.keys: set[Verifier] = set()  # that sign the checkpoint
        self.witnessed = False  # cosignatures were demanded
        self.grew = False  # an older checkpoint was given
        self.records_read = 0
        self.rotations: list[tuple[int, Rotation]] = []

    def problem(self, reason: str, message: str, leaf: int | None = None) -> None:
        self.problems.append(Finding(reason=reason, message=message, leaf=leaf))

    def wrong(self, found: Iterable[tuple[str, str]], leaf: int) -> None:
        for reason, message in found:
            self.problem(reason, message, leaf)

    def caught(self, error: SecaggError, leaf: int | None = None) -> None:
        self.problem(error.reason, str(error), leaf)

    def task(self, record: dict[str, Any], leaf: int, verifier: Verifier) -> None:
        encoded, manifest, signature = parse_task(record)
        digest_of_manifest = bytes.fromhex(record["manifest_digest"])
        if record.get("task") != manifest.task or record.get("created_at") != manifest.created_at:
            self.problem("task-mismatch", "The record and its manifest differ.", leaf)
        if manifest.task in self.tasks:
            self.problem("task-repeated", f"Task {manifest.task} was created twice.", leaf)
            return
        self.tasks[manifest.task] = _Task(
            leaf, manifest, digest_of_manifest, models=[parse_first_model(record)]
        )
        try:
            nacl.signing.VerifyKey(manifest.task_key).verify(
                encode_parts("manifest", encoded), signature
            )
        except (nacl.exceptions.CryptoError, ValueError, TypeError):
            self.problem("manifest-signature", "The manifest's signature does not verify.", leaf)
        try:
            named = parse_verifier(manifest.ledger_verifier)
        except LedgerError:
            named = None
        if named not in self.keys:
            self.problem(
                "ledger-mismatch",
                f"The manifest names another ledger than {verifier.name}.",
                leaf,
            )
        check_recorded(manifest)
        self.tasks[manifest.task].admissible = True
        if manifest.clip_adaptation is not None:
            self.tasks[manifest.task].clip = first_clip(manifest)

    def release(self, record: dict[str, Any], leaf: int) -> None:
        entry = self._with_members(record, parse_release(record), leaf)
        task = self.tasks.get(str(record.get("task")))
        if task is None:
            self.problem("task-unknown", "A release of a task that was never created.", leaf)
            return
        manifest, rules = task.manifest, task.manifest.cohort
        if record.get("manifest_digest") != task.manifest_digest.hex():
            self.problem("manifest-digest", "The release names another manifest.", leaf)
        if entry.release != len(task.releases) + 1:
            self.problem(
                "release-number",
                f"Expected release {len(task.releases) + 1}, found {entry.release}.",
                leaf,
            )
        if entry.cohort in self.cohorts:
            self.problem("cohort-repeated", "A cohort was released twice.", leaf)
        self.cohorts.add(entry.cohort)
        self._context(entry, task, leaf)
        if not rules.size_min <= entry.cohort_size <= rules.size_max:
            self.problem("cohort-size", "The cohort's size breaks the manifest.", leaf)
        if not entry.survivors <= entry.masking_set_size <= entry.cohort_size:
            self.problem("cohort-size", "More survivors than members.", leaf)
        self._listed(entry, task, leaf)
        self._released(entry, task, leaf)
        self.wrong(task.conduct.release(entry, leaf), leaf)
        if not task.admissible:
            task.unaccounted = True
            self.problem("task-inadmissible", "The task's own manifest was refused.", leaf)
            return
        in_force = task.clip
        self._clipped(entry, task, leaf)
        facts = entry.facts(manifest)
        statements = lines(manifest, task.counts + Counter([facts]))
        task.counts[facts] += 1
        variance = 0 if manifest.noise is None else guaranteed_variance(manifest, facts)
        if record.get("noise_variance") != str(variance):
            self.problem("noise-variance", "The guaranteed noise is not what follows.", leaf)
        if (
            entry.outcome == "released"
            and entry.measured_variance is not None
            and entry.measured_variance[1] < variance
        ):
            self.problem(
                "noise-measured-missing", "The released sum itself shows too little noise.", leaf
            )
        self._compare(record, task.manifest, statements, leaf)
        task.releases.append(
            AuditedRelease(
                leaf=leaf,
                entry=entry,
                guaranteed_variance=variance,
                lines=statements,
                clip=in_force,
            )
        )
        self._within_budget(task, statements, leaf)

    def _with_members(self, record: dict[str, Any], entry: ReleaseEntry, leaf: int) -> ReleaseEntry:
        """The entry with its devices, wherever they are listed."""
        try:
            members = members_of(record, self._read)
        except LedgerError as error:
            self.caught(error, leaf)
            return entry
        return msgspec.structs.replace(
            entry, contributors=members.contributors, not_in_sum=members.not_in_sum
        )

    def _context(self, entry: ReleaseEntry, task: _Task, leaf: int) -> None:
        """The context is of this cohort alone, and follows from the record."""
        if entry.ctx in task.contexts:
            self.problem("context-repeated", "Two cohorts of a task have one context.", leaf)
        task.contexts.add(entry.ctx)
        if entry.roster_digest in task.rosters:  # adverts are of one use, so rosters are too
            self.problem("roster-repeated", "Two cohorts of a task have one roster.", leaf)
        task.rosters.add(entry.roster_digest)
        if entry.attempt is None:
            task.of_version_1 += 1
            if task.lists_all:
                self.problem(
                    "record-version", "The task has listed whole masking sets before.", leaf
                )
            return
        task.lists_all = True
        if len(entry.model_versions) != len(entry.model_digests):
            self.problem("model-versions", "The models are not those of the versions.", leaf)
            return
        expected = context(
            task=task.manifest.task,
            cohort=entry.cohort,
            attempt=entry.attempt,
            manifest_digest=task.manifest_digest,
            models=tuple(map(AdmittedModel, entry.model_versions, entry.model_digests)),
            roster=entry.roster_digest,
        )
        if entry.ctx != expected:
            self.problem(
                "context-mismatch",
                f"The context is not the recomputed one, {expected.hex()}.",
                leaf,
            )

    def _listed(self, entry: ReleaseEntry, task: _Task, leaf: int) -> None:
        """Each device of the masking set once, by a name that no other cohort has."""
        members = (*entry.contributors, *entry.not_in_sum)
        if entry.outcome == "released" and (
            len(set(entry.contributors)) != len(entry.contributors)
            or len(entry.contributors) != entry.survivors
        ):
            self.problem("contributors", "The contributors are not the survivors.", leaf)
        if entry.attempt is None:
            return
        if len(members) != entry.masking_set_size or len(set(members)) != len(members):
            self.problem("masking-set", "The listed devices are not the masking set.", leaf)
        if entry.masking_set_size < task.manifest.cohort.survivors_min:
            self.problem("masking-set", "A cohort this small does not reach masking.", leaf)
        if any(list(names) != sorted(names) for names in (entry.contributors, entry.not_in_sum)):
            self.problem("masking-set", "The listed devices are not sorted by pseudonym.", leaf)
        if not self.pseudonyms.isdisjoint(members):
            self.problem("pseudonym-repeated", "A device is named as in another cohort.", leaf)
        self.pseudonyms.update(members)

    def _released(self, entry: ReleaseEntry, task: _Task, leaf: int) -> None:
        if entry.outcome == "charged":
            if entry.survivors or entry.contributors or entry.sum_digest or entry.new_model_digest:
                self.problem("charged-with-sum", "A cohort without release shows a sum.", leaf)
            return
        if entry.fault is not None:
            self.problem("fault-unexpected", "A release is somebody's fault.", leaf)
        if not (entry.sum_digest and entry.new_model_digest):
            self.problem("sum-missing", "A release names no sum, or no model.", leaf)
        if entry.survivors < task.manifest.cohort.survivors_min:
            self.problem("survivors-min", "Fewer survivors than the manifest allows.", leaf)
        if task.manifest.training is not None:
            self._chained(entry, task, leaf)
            task.models.append(entry.new_model_digest)

    def _clipped(self, entry: ReleaseEntry, task: _Task, leaf: int) -> None:
        """An adaptive clip is named by every release, in range, and follows from the one before."""
        terms, move = task.manifest.clip_adaptation, entry.clip
        if move is None:
            if terms is not None and entry.outcome == "released":
                self.problem("clip-missing", "The release names no clip.", leaf)
                task.clip = None
            return
        if terms is None or entry.outcome != "released":
            self.problem("clip-unexpected", "A clip is named where none can have moved.", leaf)
            return
        if not terms.clip_min <= move.clip <= terms.clip_max:
            self.problem("clip-out-of-range", f"The manifest rules out a clip {move.clip!r}.", leaf)
            task.clip = None
            return
        if task.clip is not None:
            expected = next_clip(task.manifest, task.clip, move.below_units)
            if expected != move.clip:
                self.problem(
                    "clip-mismatch",
                    f"The clip {move.clip!r} is not the recomputed one, {expected!r}.",
                    leaf,
                )
        task.clip = move.clip

    def _chained(self, entry: ReleaseEntry, task: _Task, leaf: int) -> None:
        """The devices trained on versions that the task had, none too old for its manifest."""
        back = task.manifest.cohort.versions_back
        first = max(0, len(task.models) - 1 - back)
        admitted = task.models[first:]
        unknown = set(entry.model_digests) - set(admitted)
        if None in admitted and len(unknown) == 1:  # version 0, which the ledger did not name
            task.models[0] = unknown.pop()
        if unknown or not entry.model_digests:
            self.problem(
                "model-chain", "The release does not start from a model that it may.", leaf
            )
        elif entry.model_versions and entry.model_digests != tuple(
            task.models[version] if version < len(task.models) else None
            for version in entry.model_versions
        ):
            self.problem("model-versions", "The models are not those of the versions.", leaf)

    def _compare(
        self,
        record: dict[str, Any],
        manifest: Manifest,
        statements: Sequence[PrivacyLine],
        leaf: int,
    ) -> None:
        recorded = record.get("lines")
        same = isinstance(recorded, list) and len(recorded) == len(statements)
        if same:
            for mine, theirs in zip(statements, recorded or [], strict=True):
                same = (
                    same
                    and isinstance(theirs, dict)
                    and _close(theirs.get("epsilon_micro"), epsilon_micro(mine.epsilon))
                    and same_terms(theirs, manifest, mine)
                )
        head = headline(statements)
        micro = None if head is None else epsilon_micro(head)
        if not same or not _close(record.get("epsilon_micro"), micro):
            self.problem(
                "epsilon-mismatch",
                "The recorded cost, or what it is said to hold against, is not the recomputed one "
                f"(epsilon {'none' if head is None else limit_shown(head)}).",
                leaf,
            )

    def _within_budget(self, task: _Task, statements: Sequence[PrivacyLine], leaf: int) -> None:
        budget, head = task.manifest.budget, headline(statements)
        if len(task.releases) > budget.releases_max:
            self.problem("releases-exhausted", "More releases than the budget allows.", leaf)
        if budget.max_epsilon is not None and head is not None and head > budget.max_epsilon:
            self.problem(
                "budget-exhausted",
                f"Epsilon {shown_up(head)} exceeds the budget of "
                f"{limit_shown(budget.max_epsilon)}.",
                leaf,
            )

    def policy(self, record: dict[str, Any], leaf: int) -> None:
        policy = parse_policy(record)
        task = self.tasks.get(policy.task)
        if task is None:
            self.problem("task-unknown", "A decision about a task that was never created.", leaf)
            return
        self.wrong(task.conduct.policy(policy), leaf)
        task.policies.append({**record, "leaf": leaf})

    def rotation(self, record: dict[str, Any], leaf: int, note: bytes) -> None:
        """A second key: named by one that this ledger has, and signing its checkpoint by now."""
        rotation = parse_rotation(record)
        old, new = parse_verifier(rotation.old_verifier), parse_verifier(rotation.new_verifier)
        if old not in self.keys:
            self.problem(
                "key-rotation-foreign", "The record replaces a key that is not this ledger's.", leaf
            )
            return
        verify_note(note, new)
        self.keys.add(new)
        self.rotations.append((leaf, rotation))


def _close(found: object, expected: int | None) -> bool:
    if expected is None or found is None:
        return found is expected
    return type(found) is int and abs(found - expected) <= _MICRO_TOLERANCE


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
    audit = _Audit(read)
    audit.witnessed, audit.grew = witnesses is not None, bool(older)
    try:
        key = parse_verifier(verifier)
        note = read("checkpoint")
        if note is None:
            raise LedgerError("checkpoint-missing", "The ledger has no checkpoint.")
        checkpoint = open_checkpoint(note, key)
        audit.keys.add(key)
    except LedgerError as error:
        audit.caught(error)
        return _result(audit, None)
    cosigned: dict[str, int] = {}
    if witnesses is not None:
        cosigned = {key.name: at for key, at in cosigned_at(note, witnesses.keys).items()}
        try:
            witnesses.check(note)
        except LedgerError as error:
            audit.caught(error)
    try:
        entries = _entries(read, checkpoint)
    except LedgerError as error:
        audit.caught(error)
        return _result(audit, checkpoint, cosigned)
    audit.records_read = len(entries)
    tree = merkle.Tree([merkle.leaf_hash(entry) for entry in entries])
    computed = merkle.root(tree.subtree, tree.size)
    if computed != checkpoint.root:
        audit.problem(
            "root-mismatch",
            "The entries do not give the signed root: something was edited, removed or reordered.",
        )
    _check_tiles(audit, read, tree)
    _check_older(audit, tree, key, older)
    for leaf, entry in enumerate(entries):
        try:
            record = parse_record(entry)
            try:
                check_fields(record)
            except LedgerError as error:  # what it says beside them counts all the same
                audit.caught(error, leaf)
            match record["type"]:
                case "task":
                    audit.task(record, leaf, key)
                case "release":
                    audit.release(record, leaf)
                case "policy":
                    audit.policy(record, leaf)
                case "membership":
                    audit.memberships.append((leaf, parse_membership(record)))
                case "key-rotation":
                    audit.rotation(record, leaf, note)
        except ReadError:
            raise
        except SecaggError as error:
            audit.caught(error, leaf)
    return _result(audit, checkpoint, cosigned)


def _entries(read: tiles.Read, checkpoint: Checkpoint) -> list[bytes]:
    if checkpoint.size > _ENTRIES_MAX:
        raise LedgerError(
            "ledger-too-large",
            "The ledger has more records than one audit reads.",
            expected=f"<= {_ENTRIES_MAX}",
            found=checkpoint.size,
            remedy="Ask the operator: its key signed this size.",
        )
    entries: list[bytes] = []
    size_bytes = 0
    for bundle in tiles.bundles_of(checkpoint.size):
        data = tiles.fetch(read, bundle)
        entries += tiles.parse_bundle(data, bundle.width)
        size_bytes += len(data)
        if size_bytes > _ENTRIES_BYTES_MAX:
            raise LedgerError(
                "ledger-too-large",
                "The ledger's records are more than one audit holds.",
                expected=f"<= {_ENTRIES_BYTES_MAX} bytes",
            )
    return entries


def _check_tiles(audit: _Audit, read: tiles.Read, tree: merkle.Tree) -> None:
    for tile in tiles.tiles_of(tree.size):
        try:
            if tiles.fetch(read, tile) != tiles.tile_bytes(tree.subtree, tile):
                audit.problem("tile-mismatch", f"{tile.path} does not match the entries.")
        except LedgerError as error:
            audit.caught(error)


def _check_older(audit: _Audit, tree: merkle.Tree, key: Verifier, older: Sequence[bytes]) -> None:
    for note in older:
        try:
            before = open_checkpoint(note, key)
        except LedgerError as error:
            audit.problem(error.reason, f"An older checkpoint: {error}")
            continue
        if before.size > tree.size:
            audit.problem(
                "truncated",
                f"An older checkpoint signs {before.size} entries, this one {tree.size}.",
            )
        elif merkle.root(tree.subtree, before.size) != before.root:
            audit.problem(
                "forked",
                f"The log of {before.size} entries that was signed before is not a prefix of it.",
            )


def _unchecked(audit: _Audit) -> Iterator[Finding]:
    """What the audit had no means to check."""
    if audit.keys and not audit.witnessed:
        kept = "an" if audit.grew else "no"
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


def _result(
    audit: _Audit, checkpoint: Checkpoint | None, cosigned: dict[str, int] | None = None
) -> AuditResult:
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
    stated = {line.unit for task in tasks for line in task.lines}
    costs = [0.0, *(found.epsilon for found in totals if found.unit in stated)]
    return AuditResult(
        verified=not audit.problems,
        tree_size=checkpoint.size if checkpoint else 0,
        root=checkpoint.root.hex() if checkpoint else "",
        origin=checkpoint.origin if checkpoint else "",
        releases=sum(1 for release in every if release.entry.outcome == "released"),
        charged=len(every),
        epsilon=max(costs) if stated else None,
        problems=tuple(audit.problems),
        tasks=tasks,
        witnesses=cosigned or {},
        memberships=tuple(audit.memberships),
        rotations=tuple(audit.rotations),
        unchecked=tuple(_unchecked(audit)),
        totals=totals,
        records_read=audit.records_read,
    )
