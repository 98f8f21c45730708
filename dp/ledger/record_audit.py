"""Each record of a ledger as an auditor reads it: what can be computed is computed again.

Steps 7 to 21 of :mod:`dp.ledger.verification`. Whatever is wrong is a finding, and the steps after
it are done all the same, but where there is nothing to compare with.

7. The record has one reading, a known type and version, and its fields have their form.

A task:

8. The record, and the manifest that it holds, agree; no other task has the name.
9. The task's key has signed the manifest, which names this ledger.
10. The manifest passes the rules of :mod:`dp.contracts` that hold for recorded ones.

A cohort, whether released or charged without a release:

11. Its list of devices, where it stands in a file, is the one that the record names.
12. Its task was created before and has this manifest; it is the next release and a new cohort.
13. Context and roster are of this cohort alone; the context follows from the record.
14. Its sizes are within the manifest's rules.
15. The listed devices are the masking set, each once, by a name that no other cohort has; those in
    the sum are the survivors.
16. A release names its sum and starts from models that the task had; a charge names neither.
17. Times, sums and models are new (:mod:`dp.ledger.conduct`).
18. An adaptive clip is in its range and follows from the one before.
19. Noise and cost, with every epsilon, are what follows from the manifest and the survivors; the
    measured variance does not rule the noise out.
20. The task is within its budget.

What else:

21. A decision is about a task of this ledger; a ban or a partner's act has its form; a second key
    is named by a key of this ledger and signs the checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import nacl.exceptions
import nacl.signing

from dp.accounting.figures import limit_shown, shown_up
from dp.accounting.statements import (
    PrivacyStatement,
    ReleaseFacts,
    guaranteed_variance,
    headline,
    lines,
)
from dp.contracts import check_recorded
from dp.errors import LedgerError, ReadError
from dp.ledger.conduct import Conduct
from dp.ledger.contributors import members_of
from dp.ledger.findings import AuditedRelease, Finding
from dp.ledger.forms import Rotation, check_fields, parse_policy, parse_rotation
from dp.ledger.parsing import parse_first_model, parse_record, parse_release, parse_task
from dp.ledger.records import (
    Membership,
    ReleaseEntry,
    by_renyi,
    epsilon_micro,
    parse_membership,
    recomputed_context,
    same_terms,
)
from dp.noise.adaptive_clip import first_clip, next_clip
from dp.tlog import tiles
from dp.tlog.notes import Verifier, parse_verifier, verify_note
from secagg.errors import SecaggError
from secagg.hashing import encode_parts
from secagg.manifest import Manifest

_MICRO_TOLERANCE = 1  # libm differs between platforms in the last bit


@dataclass
class TaskAudit:
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


class RecordAudit:
    """The records of one ledger so far, and what is wrong with them.

    ``keys``: that sign the checkpoint. ``pseudonyms``: each is of one cohort, so it occurs once.
    """

    def __init__(self, read: tiles.Read, key: Verifier, note: bytes) -> None:
        self._read = read
        self._key = key
        self._note = note
        self.keys = {key}
        self.problems: list[Finding] = []
        self.tasks: dict[str, TaskAudit] = {}
        self.cohorts: set[bytes] = set()
        self.pseudonyms: set[bytes] = set()
        self.memberships: list[tuple[int, Membership]] = []
        self.rotations: list[tuple[int, Rotation]] = []

    def take(self, entry: bytes, leaf: int) -> None:
        """Steps 7 to 21 for the next record.

        Raises:
            ReadError: a list of devices cannot be had.
        """
        try:
            record = parse_record(entry)  # 7
            try:
                check_fields(record)
            except LedgerError as error:  # what it says beside them counts all the same
                self.caught(error, leaf)
            match record["type"]:
                case "task":
                    self.task(record, leaf)
                case "release":
                    self.release(record, leaf)
                case "policy":
                    self.policy(record, leaf)
                case "membership":
                    self.memberships.append((leaf, parse_membership(record)))
                case "key-rotation":
                    self.rotation(record, leaf)
        except ReadError:
            raise
        except SecaggError as error:
            self.caught(error, leaf)

    def problem(self, reason: str, message: str, leaf: int | None = None) -> None:
        self.problems.append(Finding(reason=reason, message=message, leaf=leaf))

    def wrong(self, found: Iterable[tuple[str, str]], leaf: int) -> None:
        for reason, message in found:
            self.problem(reason, message, leaf)

    def caught(self, error: SecaggError, leaf: int | None = None) -> None:
        self.problem(error.reason, str(error), leaf)

    def task(self, record: dict[str, Any], leaf: int) -> None:
        encoded, manifest, signature = parse_task(record)
        digest_of_manifest = bytes.fromhex(record["manifest_digest"])
        # 8
        if record.get("task") != manifest.task or record.get("created_at") != manifest.created_at:
            self.problem("task-mismatch", "The record and its manifest differ.", leaf)
        if manifest.task in self.tasks:
            self.problem("task-repeated", f"Task {manifest.task} was created twice.", leaf)
            return
        self.tasks[manifest.task] = TaskAudit(
            leaf, manifest, digest_of_manifest, models=[parse_first_model(record)]
        )
        # 9
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
                f"The manifest names another ledger than {self._key.name}.",
                leaf,
            )
        check_recorded(manifest)  # 10
        self.tasks[manifest.task].admissible = True
        if manifest.clip_adaptation is not None:
            self.tasks[manifest.task].clip = first_clip(manifest)

    def release(self, record: dict[str, Any], leaf: int) -> None:
        entry = self._with_members(record, parse_release(record), leaf)  # 11
        # 12
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
        self._context(entry, task, leaf)  # 13
        # 14
        if not rules.size_min <= entry.cohort_size <= rules.size_max:
            self.problem("cohort-size", "The cohort's size breaks the manifest.", leaf)
        if not entry.survivors <= entry.masking_set_size <= entry.cohort_size:
            self.problem("cohort-size", "More survivors than members.", leaf)
        self._listed(entry, task, leaf)  # 15
        self._released(entry, task, leaf)  # 16
        self.wrong(task.conduct.release(entry, leaf), leaf)  # 17
        if not task.admissible:
            task.unaccounted = True
            self.problem("task-inadmissible", "The task's own manifest was refused.", leaf)
            return
        in_force = task.clip
        self._clipped(entry, task, leaf)  # 18
        # 19
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
        told = lines(manifest, task.counts, renyi=True) if by_renyi(record) else statements
        self._compare(record, task.manifest, told, leaf)
        task.releases.append(
            AuditedRelease(
                leaf=leaf,
                entry=entry,
                guaranteed_variance=variance,
                lines=statements,
                clip=in_force,
            )
        )
        self._within_budget(task, statements, leaf)  # 20

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

    def _context(self, entry: ReleaseEntry, task: TaskAudit, leaf: int) -> None:
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
        try:
            expected = recomputed_context(entry, task.manifest.task, task.manifest_digest)
        except LedgerError as error:
            self.problem(error.reason, error.message, leaf)
            return
        if entry.ctx != expected:
            self.problem(
                "context-mismatch",
                f"The context is not the recomputed one, {expected.hex()}.",
                leaf,
            )

    def _listed(self, entry: ReleaseEntry, task: TaskAudit, leaf: int) -> None:
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

    def _released(self, entry: ReleaseEntry, task: TaskAudit, leaf: int) -> None:
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

    def _clipped(self, entry: ReleaseEntry, task: TaskAudit, leaf: int) -> None:
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

    def _chained(self, entry: ReleaseEntry, task: TaskAudit, leaf: int) -> None:
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
        statements: Sequence[PrivacyStatement],
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

    def _within_budget(
        self, task: TaskAudit, statements: Sequence[PrivacyStatement], leaf: int
    ) -> None:
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
        """21: a decision is about a task of this ledger, and fits what went before."""
        policy = parse_policy(record)
        task = self.tasks.get(policy.task)
        if task is None:
            self.problem("task-unknown", "A decision about a task that was never created.", leaf)
            return
        self.wrong(task.conduct.policy(policy), leaf)
        task.policies.append({**record, "leaf": leaf})

    def rotation(self, record: dict[str, Any], leaf: int) -> None:
        """21: a second key is named by one that this ledger has, and signs its checkpoint."""
        rotation = parse_rotation(record)
        old, new = parse_verifier(rotation.old_verifier), parse_verifier(rotation.new_verifier)
        if old not in self.keys:
            self.problem(
                "key-rotation-foreign", "The record replaces a key that is not this ledger's.", leaf
            )
            return
        verify_note(self._note, new)
        self.keys.add(new)
        self.rotations.append((leaf, rotation))


def _close(found: object, expected: int | None) -> bool:
    if expected is None or found is None:
        return found is expected
    return type(found) is int and abs(found - expected) <= _MICRO_TOLERANCE
