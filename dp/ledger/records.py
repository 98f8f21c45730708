"""The ledger's records: canonical JSON (RFC 8785), integers, strings and booleans, no floats.

A record says what an auditor needs to compute its privacy cost again. Integers beyond 2^53 are
decimal strings, digests and keys lower-case hex, probabilities the shortest decimal that reads
back as the same float.
"""

from __future__ import annotations

import base64
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import rfc8785

from dp.accounting.statements import (
    ACCOUNTANT_SKELLAM_RENYI,
    PrivacyStatement,
    ReleaseFacts,
    adversaries,
    fewest,
    guaranteed_variance,
    headline,
    lines,
)
from dp.errors import LedgerError
from dp.ledger.contributors import (
    INLINE_MAX,
    contributors_file,
    members_file,
)
from dp.ledger.forms import check_moment, check_text
from dp.tlog.tiles import ENTRY_BYTES_MAX
from secagg.context import context
from secagg.hashing import digest
from secagg.limits import DIGEST_BYTES
from secagg.manifest import Manifest, decode_manifest, manifest_digest
from secagg.messages import AdmittedModel

RECORD_VERSION = 1
RELEASE_VERSION = 2  # of release records; 1 named devices by their identity
Outcome = Literal["released", "charged"]
Fault = Literal["service", "devices", "unknown"]
Record = Mapping[str, Any]


class ClipMove(msgspec.Struct, frozen=True, kw_only=True):
    """Of a release where the clip adapts: ``clip`` of the model that it made, and the unmasked sum
    that it follows from, in integer units (:func:`dp.noise.adaptive_clip.next_clip`). Both are
    post-processing of the release."""

    clip: float
    below_units: int


class ReleaseEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one cohort whose members reached step 3.

    ``release``: number of this charge within its task, from 1. ``survivors``, ``contributors``,
    ``sum_digest`` and ``new_model_digest`` are empty (0) for a cohort that was ``charged`` without
    a release. ``contributors`` and ``not_in_sum``: pseudonyms of the masking set, 32 bytes each, in
    any order (:mod:`dp.ledger.contributors`). ``attempt``: of the roster; with the other fields it
    gives ``ctx``. None: an entry of version 1, whose ``contributors`` are :func:`identity_digest`
    of the devices in the sum and whose other devices are not listed.
    ``model_digests``: of the models that its members trained on, by version; ``model_versions``:
    those versions. ``released_at``: Unix seconds. ``measured_variance``: ends of the noise meter's
    interval (:mod:`dp.noise_meter`), where there is one. ``clip``: how an adaptive clip moved.
    ``fault``, ``cause``: of a charged cohort, whose fault it was as far as the aggregator can tell,
    and its stable reason; None and empty in records of before.
    """

    release: int
    cohort: bytes
    ctx: bytes
    roster_digest: bytes
    cohort_size: int
    masking_set_size: int
    survivors: int
    contributors: tuple[bytes, ...]
    model_digests: tuple[bytes, ...]
    sum_digest: bytes
    new_model_digest: bytes
    released_at: int
    outcome: Outcome
    measured_variance: tuple[int, int] | None = None
    model_versions: tuple[int, ...] = ()
    clip: ClipMove | None = None
    attempt: int | None = None
    not_in_sum: tuple[bytes, ...] = ()
    fault: Fault | None = None
    cause: str = ""

    def facts(self, manifest: Manifest) -> ReleaseFacts:
        """What accounting sees; a charged cohort costs what its fewest survivors would."""
        if self.outcome == "charged":
            return fewest(manifest)
        return ReleaseFacts(survivors=self.survivors, masking_set_size=self.masking_set_size)


def recomputed_context(entry: ReleaseEntry, task: str, digest_of_manifest: bytes) -> bytes:
    """The context that follows from a record of version 2 or later, 32 bytes.

    Raises:
        LedgerError: ``model-versions``: it does not name a version for each model.
    """
    if len(entry.model_versions) != len(entry.model_digests):
        raise LedgerError("model-versions", "The models are not those of the versions.")
    return context(
        task=task,
        cohort=entry.cohort,
        attempt=entry.attempt or 0,
        manifest_digest=digest_of_manifest,
        models=tuple(map(AdmittedModel, entry.model_versions, entry.model_digests)),
        roster=entry.roster_digest,
    )


def identity_digest(identity_key: bytes) -> bytes:
    """How records of version 1 name a device: digest of its Ed25519 key, 32 bytes.

    Whoever knows the key can look for it, and one device's releases can be linked.
    """
    return digest("identity", identity_key)


def epsilon_micro(epsilon: float | None) -> int | None:
    """Millionths, rounded up; None without privacy.

    Raises:
        LedgerError: ``epsilon-infinite``.
    """
    if epsilon is None:
        return None
    if not math.isfinite(epsilon):
        raise LedgerError("epsilon-infinite", "A release without a finite cost is not recorded.")
    return math.ceil(epsilon * 1_000_000)


def _canonical(record: Record) -> bytes:
    try:
        encoded = rfc8785.dumps(dict(record))
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise LedgerError("record-malformed", f"The record has no canonical form: {error}.") from (
            error
        )
    if len(encoded) > ENTRY_BYTES_MAX:
        raise LedgerError(
            "record-too-large",
            "The record does not fit into the ledger.",
            expected=f"<= {ENTRY_BYTES_MAX} bytes",
            found=len(encoded),
            remedy="Adapt fewer modules, or form smaller cohorts.",
        )
    return encoded


def task_record(
    manifest_bytes: bytes, manifest_signature: bytes, model_digest: bytes = b""
) -> bytes:
    """A task was created. The manifest is stored whole (zlib, base64): it is what auditors trust.

    Args:
        manifest_bytes: as signed and sent to devices.
        manifest_signature: Ed25519 by the task key over ``encode_parts("manifest", bytes)``.
        model_digest: of version 0; empty where it is not told.

    Raises:
        LedgerError: ``record-too-large``.
    """
    manifest = decode_manifest(manifest_bytes)
    return _canonical(
        {
            "type": "task",
            "version": RECORD_VERSION,
            "task": manifest.task,
            "created_at": manifest.created_at,
            "manifest_digest": manifest_digest(manifest_bytes).hex(),
            "manifest": base64.b64encode(zlib.compress(manifest_bytes, 9)).decode(),
            "manifest_signature": manifest_signature.hex(),
        }
        | ({"model_digest": model_digest.hex()} if model_digest else {})
    )


def statement_record(statement: PrivacyStatement) -> dict[str, Any]:
    return {
        "mode": statement.mode.value,
        "unit": statement.unit,
        "adversary": statement.adversary,
        "adjacency": statement.adjacency,
        "amplified": statement.amplified,
        "accountant": statement.accountant,
        "epsilon_micro": epsilon_micro(statement.epsilon),
        "delta": repr(statement.delta),
    }


def same_terms(record: Mapping[str, Any], manifest: Manifest, statement: PrivacyStatement) -> bool:
    """Whether a record's statement is this one, epsilon aside (which may be infinite here).

    As bytes: in Python True equals 1, in JSON it does not.
    """
    terms = statement_record(msgspec.structs.replace(statement, epsilon=0.0))
    found = rfc8785.dumps({**record, "epsilon_micro": terms["epsilon_micro"]})
    return any(
        found == rfc8785.dumps({**terms, "adversary": words})
        for words in adversaries(manifest, statement)
    )


def by_renyi(record: Mapping[str, Any]) -> bool:
    """Whether the statements of a release's record are those of earlier versions, which accounted
    for Skellam noise by Renyi divergences alone: so they are recomputed."""
    found = record.get("lines")
    return isinstance(found, list) and any(
        isinstance(told, dict) and told.get("accountant") == ACCOUNTANT_SKELLAM_RENYI
        for told in found
    )


def release_record(
    manifest: Manifest,
    digest_of_manifest: bytes,
    previous: Sequence[ReleaseFacts],
    entry: ReleaseEntry,
    *,
    statements: Sequence[PrivacyStatement] | None = None,
) -> bytes:
    """A cohort reached step 3: what was released, by how many, and what the task cost so far.

    Of more than ``INLINE_MAX`` devices the record holds the digest of their list, which the log
    serves beside its tiles (:func:`list_file`).

    Args:
        previous: facts of the task's earlier charges, in order.
        statements: the :func:`~dp.accounting.statements.lines` of ``previous`` and this entry,
            where they are known; else they are computed.

    Raises:
        LedgerError: ``release-number`` unless ``entry.release`` is the next one.
        AccountingError: the release breaks the manifest.
    """
    if entry.release != len(previous) + 1:
        raise LedgerError(
            "release-number",
            "Releases are numbered one after the other.",
            expected=len(previous) + 1,
            found=entry.release,
        )
    facts = entry.facts(manifest)
    if statements is None:
        statements = lines(manifest, [*previous, facts])
    variance = 0 if manifest.noise is None else guaranteed_variance(manifest, facts)
    apart = is_apart(entry)
    inline = () if apart else sorted(entry.contributors)
    return _canonical(
        {
            "type": "release",
            "version": 1 if entry.attempt is None else RELEASE_VERSION,
            "task": manifest.task,
            "release": entry.release,
            "outcome": entry.outcome,
            "cohort": entry.cohort.hex(),
            "ctx": entry.ctx.hex(),
            "manifest_digest": digest_of_manifest.hex(),
            "roster_digest": entry.roster_digest.hex(),
            "cohort_size": entry.cohort_size,
            "masking_set_size": entry.masking_set_size,
            "survivors": entry.survivors,
            "contributors": [contributor.hex() for contributor in inline],
            "model_digests": [model.hex() for model in entry.model_digests],
            "sum_digest": entry.sum_digest.hex(),
            "new_model_digest": entry.new_model_digest.hex(),
            "noise_variance": str(variance),
            "measured_variance": [str(end) for end in entry.measured_variance or ()],
            "epsilon_micro": epsilon_micro(headline(statements)),
            "lines": [statement_record(statement) for statement in statements],
            "released_at": entry.released_at,
        }
        | _list_record(entry)
        | ({"model_versions": list(entry.model_versions)} if entry.model_versions else {})
        | _clip_record(entry.clip)
        | ({"fault": entry.fault, "cause": entry.cause} if entry.fault else {})
    )


def is_apart(entry: ReleaseEntry) -> bool:
    """Whether an entry's devices are too many to stand in its record."""
    return len(entry.contributors) + len(entry.not_in_sum) > INLINE_MAX


def list_file(entry: ReleaseEntry) -> bytes:
    """The file of an entry's devices, to be served as ``contributors/<SHA-256>``."""
    if entry.attempt is None:
        return contributors_file(entry.contributors)
    return members_file(entry.contributors, entry.not_in_sum)


def _list_record(entry: ReleaseEntry) -> dict[str, Any]:
    apart = is_apart(entry)
    named = hashlib.sha256(list_file(entry)).hexdigest() if apart else ""
    if entry.attempt is None:
        return {"contributors_digest": named} if apart else {}
    rest = [] if apart else [name.hex() for name in sorted(entry.not_in_sum)]
    fields: dict[str, Any] = {"attempt": entry.attempt, "not_in_sum": rest}
    return fields | ({"masking_set_file": named} if apart else {})


def _clip_record(move: ClipMove | None) -> dict[str, str]:
    if move is None:
        return {}
    return {"clip": repr(move.clip), "below_units": str(move.below_units)}


def policy_record(task: str, action: str, at: int, detail: str = "") -> bytes:
    """An operator's decision about a task: ``paused``, ``resumed``, ``finished``; Unix seconds."""
    return _canonical(
        {
            "type": "policy",
            "version": RECORD_VERSION,
            "task": task,
            "action": action,
            "detail": detail,
            "at": at,
        }
    )


def membership_record(
    action: str,
    at: int,
    *,
    cause: str = "",
    task: str = "",
    cohort: bytes = b"",
    device: bytes = b"",
    partner: bytes = b"",
    number: int = 0,
    digest: bytes = b"",
) -> bytes:
    """Who may take part changed; Unix seconds.

    ``action``: ``banned``, ``unbanned``, ``partner-removed``, ``partner-added`` (a removed one is
    back) or ``revoked``. ``device``: its pseudonym in ``cohort``, or a random handle; never its
    lasting name. ``number`` and ``digest``: of the partner's revocation list.

    Raises:
        LedgerError: ``record-malformed``.
    """
    record: dict[str, Any] = {
        "type": "membership",
        "version": RECORD_VERSION,
        "action": action,
        "cause": cause,
        "at": at,
        "task": task,
        "cohort": cohort.hex(),
        "device": device.hex(),
        "partner": partner.hex(),
        "number": number,
        "digest": digest.hex(),
    }
    parse_membership(record)
    return _canonical(record)


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """As :func:`membership_record` was told."""

    action: Literal["banned", "unbanned", "partner-removed", "partner-added", "revoked"]
    cause: str
    at: int
    task: str
    cohort: str
    device: str
    partner: str
    number: int
    digest: str


def parse_membership(record: Record) -> Membership:
    """
    Raises:
        LedgerError: ``record-malformed``.
    """
    try:
        found = msgspec.convert(dict(record), Membership, strict=True)
        for value in (found.cohort, found.device, found.partner, found.digest):
            if value and (len(value) != 2 * DIGEST_BYTES or bytes.fromhex(value).hex() != value):
                raise ValueError("names and digests are 32 bytes, lower-case hex")
        check_text(found.cause)
        check_text(found.task)
        check_moment(found.at)
        of_device = found.action in ("banned", "unbanned")
        if bool(found.device) != of_device or bool(found.partner) == of_device:
            raise ValueError("a ban is of a device, the rest of a partner")
        if (found.number > 0) != (found.action == "revoked") or not 0 <= found.number < 1 << 53:
            raise ValueError("a revocation list has a number, from 1")
    except (msgspec.MsgspecError, ValueError) as error:
        raise LedgerError(
            "record-malformed", f"A membership record does not parse: {error}."
        ) from error
    return found
