"""Tasks, manifests and ledgers that the tests of the privacy floor share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import nacl.signing

from dp.accounting import ReleaseFacts
from dp.contracts import SegmentSpec, TaskSpec, build_manifest
from dp.ledger import LedgerBuilder
from dp.notes import sign_checkpoint, verifier_key
from dp.records import ReleaseEntry, identity_digest, release_record, task_record
from secagg.hashing import encode_parts
from secagg.manifest import Adapter, Manifest, TensorShape, encode_manifest, manifest_digest
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


def spec(**changes: Any) -> TaskSpec:
    """Of a task whose devices need no seeds of an exchange: no part of its noise is removable."""
    terms = {"task": "demo", "adapter": adapter(), "removable_noise": False}
    return TaskSpec(**terms | changes)


def statistics(*segments: tuple[str, int, float], **changes: Any) -> TaskSpec:
    return TaskSpec(
        **{
            "task": "statistics",
            "algorithm": "sum",
            "removable_noise": False,
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


def ledger(manifest: Manifest, survivors: tuple[int, ...]) -> LedgerBuilder:
    """A task record and one release for each survivor count."""
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
