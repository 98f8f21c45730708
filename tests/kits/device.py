"""Manifests, keys and a device's parts for tests of the SDK; everything real but the network."""

from __future__ import annotations

from pathlib import Path

import nacl.signing

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.enrolment import PartnerKey, new_partner_key
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import StorageKey
from dp.contracts import BudgetSpec, CohortSpec, SegmentSpec, TaskSpec, TrainingSpec, build_manifest
from secagg.manifest import (
    Adapter,
    BaseModel,
    Manifest,
    TensorShape,
    encode_manifest,
    manifest_digest,
)
from secagg.secret import Secret

TASK_SIGNING = nacl.signing.SigningKey(bytes(range(32)))
TASK_KEY = bytes(TASK_SIGNING.verify_key)
PARTNER: PartnerKey = new_partner_key()


def sum_spec(**changes: object) -> TaskSpec:
    """Statistics of four numbers under device-level noise; five to eight devices."""
    fields: dict[str, object] = {
        "task": "stats",
        "algorithm": "sum",
        "privacy": "none",
        "device_noise_multiplier": 4.0,
        "segments": (SegmentSpec(name="counts", length=4, clip=2.0),),
        "cohort": CohortSpec(size_min=5, size_max=8, survivors_min=4),
        "budget": BudgetSpec(max_epsilon=8.0, delta=1e-5, releases_max=4),
    }
    return TaskSpec(**{**fields, **changes})  # type: ignore[arg-type]


def make_manifest(spec: TaskSpec, verifier: str, partner: bytes = PARTNER.key) -> Manifest:
    return build_manifest(
        spec,
        created_at=1_700_000_000,
        task_key=TASK_KEY,
        ledger_verifier=verifier,
        partner_keys=(partner,),
    )


def digest_of(manifest: Manifest) -> bytes:
    return manifest_digest(encode_manifest(manifest))


def journal_in(folder: Path) -> Journal:
    return Journal(folder, StorageKey(Secret(bytes(32))))


def account_in(folder: Path) -> DeviceAccount:
    return DeviceAccount(journal_in(folder), 1e-5)


def fedsgd_spec(**changes: object) -> TaskSpec:
    """Distributed noise over an adapter of twelve numbers."""
    adapter = Adapter(
        kind="ffa-lora",
        rank=2,
        alpha=4,
        target_modules=("q_proj",),
        seed=bytes(32),
        trainable=(TensorShape(name="q.lora_B", rows=6, columns=2),),
        frozen=(TensorShape(name="q.lora_A", rows=2, columns=6),),
    )
    fields: dict[str, object] = {
        "task": "steps",
        "algorithm": "fedsgd",
        "noise_multiplier": 3.0,
        "examples_max": 64,
        "cohort": CohortSpec(size_min=5, size_max=8, survivors_min=4),
        "base_model": BaseModel(name="tiny", fingerprint=bytes(32)),
        "adapter": adapter,
    }
    return TaskSpec(**{**fields, **changes})  # type: ignore[arg-type]


def evaluation_spec(**changes: object) -> TaskSpec:
    """The loss and accuracy of an adapter of twelve numbers; no noise."""
    return fedsgd_spec(
        **{
            "task": "eval",
            "algorithm": "evaluation",
            "privacy": "none",
            "noise_multiplier": 0.0,
            "examples_max": 0,
            "training": TrainingSpec(weight_unit=32),
            "budget": BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=4),
            **changes,
        }
    )
