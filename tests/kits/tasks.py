"""Tasks, manifests and ledgers that the tests of the privacy floor share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import nacl.signing

from dp.accounting.statements import ReleaseFacts
from dp.contracts import CohortSpec, SegmentSpec, TaskSpec, build_manifest
from dp.ledger.builder import LedgerBuilder
from dp.ledger.records import ReleaseEntry, identity_digest, release_record, task_record
from dp.tlog.notes import sign_checkpoint, verifier_key
from secagg.context import context
from secagg.hashing import encode_parts
from secagg.manifest import Adapter, Manifest, TensorShape, encode_manifest, manifest_digest
from secagg.messages import AdmittedModel
from secagg.secret import Secret

TASK_SEED = bytes(range(32))
LEDGER_SEED = bytes(range(32, 64))
ORIGIN = "ledger.example/log"
VERIFIER = verifier_key(ORIGIN, bytes(nacl.signing.SigningKey(LEDGER_SEED).verify_key))


def seeded(seed: int = 0) -> Callable[[int], bytes]:
    """A ``random_bytes`` that repeats: SHAKE-256 of a counter."""
    counter = 0

    def random_bytes(count: int) -> bytes:
        nonlocal counter
        counter += 1
        return hashlib.shake_256(b"%d %d" % (seed, counter)).digest(count)

    return random_bytes


def adapter(rows: tuple[int, ...] = (12, 4), columns: int = 4) -> Adapter:
    return Adapter(
        kind="ffa-lora",
        rank=columns,
        alpha=8,
        target_modules=("q_proj", "v_proj"),
        seed=bytes(32),
        trainable=tuple(
            TensorShape(name=f"layer.{i}.lora_B.weight", rows=r, columns=columns)
            for i, r in enumerate(rows)
        ),
        frozen=(),
    )


DEMO_ADAPTER = adapter((576, 192) * 30)  # SmolLM2-135M, rank 4: 92,160 numbers


def six(**changes: Any) -> CohortSpec:
    """Six devices of which two may vanish, nobody corrupt."""
    terms = {"size_min": 6, "size_max": 6, "survivors_min": 4, "corrupt_max": 0}
    return CohortSpec(**terms | changes)


def spec(**changes: Any) -> TaskSpec:
    """Of a task whose devices need no seeds of an exchange: no part of its noise is removable."""
    terms = {"task": "demo", "adapter": adapter(), "removable_noise": False, "cohort": six()}
    return TaskSpec(**terms | changes)


def statistics(*segments: tuple[str, int, float], **changes: Any) -> TaskSpec:
    return TaskSpec(
        **{
            "task": "statistics",
            "algorithm": "sum",
            "removable_noise": False,
            "cohort": six(),
            "segments": tuple(SegmentSpec(name=n, length=d, clip=c) for n, d, c in segments),
            **changes,
        }
    )


def built(task: TaskSpec | None = None, /, **changes: Any) -> Manifest:
    return build_manifest(
        task or spec(**changes),
        created_at=1_700_000_000,
        task_key=bytes(nacl.signing.SigningKey(TASK_SEED).verify_key),
        ledger_verifier=VERIFIER,
        partner_keys=[b"p" * 32],
    )


def signed_task(manifest: Manifest) -> bytes:
    encoded = encode_manifest(manifest)
    signature = nacl.signing.SigningKey(TASK_SEED).sign(encode_parts("manifest", encoded)).signature
    return task_record(encoded, signature)


def entry(number: int, survivors: int = 4, *, charged: bool = False, size: int = 6) -> ReleaseEntry:
    def named(label: str, at: int = number) -> bytes:
        return hashlib.sha256(f"{label} {at}".encode()).digest()

    return ReleaseEntry(
        release=number,
        cohort=named("cohort"),
        ctx=named("ctx"),
        roster_digest=named("roster"),
        cohort_size=size,
        masking_set_size=size,
        survivors=0 if charged else survivors,
        contributors=()
        if charged
        else tuple(identity_digest(bytes([i]) * 32) for i in range(survivors)),
        model_digests=(named("model", number - 1),),
        sum_digest=b"" if charged else named("sum"),
        new_model_digest=b"" if charged else named("model"),
        released_at=1_700_000_000 + number,
        outcome="charged" if charged else "released",
    )


def pseudonyms(count: int, salt: object = "") -> tuple[bytes, ...]:
    """As devices make them, as far as an auditor can tell: each another one."""
    return tuple(hashlib.sha256(f"{salt} {n}".encode()).digest() for n in range(count))


def listed(
    manifest: Manifest, item: ReleaseEntry, version: int | None = None, /, **changes: Any
) -> ReleaseEntry:
    """An entry as records have it since version 2: the whole masking set, and its context.

    ``version``: of the model before it; by default every charge before made one.
    """
    item = msgspec.structs.replace(item, **changes)
    names = pseudonyms(item.masking_set_size, f"{manifest.task} {item.release}")
    versions = (item.release - 1 if version is None else version,)
    return msgspec.structs.replace(
        item,
        attempt=0,
        contributors=names[: item.survivors],
        not_in_sum=names[item.survivors :],
        model_versions=versions,
        ctx=context(
            task=manifest.task,
            cohort=item.cohort,
            attempt=0,
            manifest_digest=manifest_digest(encode_manifest(manifest)),
            models=tuple(map(AdmittedModel, versions, item.model_digests)),
            roster=item.roster_digest,
        ),
    )


def listing(manifest: Manifest, items: Iterable[ReleaseEntry]) -> LedgerBuilder:
    """A task record and a release of version 2 for each entry."""
    builder = LedgerBuilder(ORIGIN, [signed_task(manifest)])
    facts: list[ReleaseFacts] = []
    digest = manifest_digest(encode_manifest(manifest))
    for item in items:
        builder.append(release_record(manifest, digest, facts, item))
        facts.append(item.facts(manifest))
    return builder


def ledger(manifest: Manifest, survivors: tuple[int, ...]) -> LedgerBuilder:
    """A task record and one release, of version 1, for each survivor count."""
    builder = LedgerBuilder(ORIGIN, [signed_task(manifest)])
    facts: list[ReleaseFacts] = []
    digest = manifest_digest(encode_manifest(manifest))
    for number, count in enumerate(survivors, 1):
        builder.append(release_record(manifest, digest, facts, entry(number, count)))
        facts.append(entry(number, count).facts(manifest))
    return builder


def served(builder: LedgerBuilder, seed: bytes = LEDGER_SEED) -> dict[str, bytes]:
    """The ledger's files by path, checkpoint included."""
    files = dict(builder.files())
    files["checkpoint"] = sign_checkpoint(builder.checkpoint(), Secret(seed))
    return files


def put(builder: LedgerBuilder, folder: Path) -> Path:
    """The ledger's files, as a folder has them."""
    for path, data in served(builder).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder
