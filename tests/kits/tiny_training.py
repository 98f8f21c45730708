"""The tiny model, tasks that train it, and a server's step without a network."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client_sdk.contribution import TrainingJob
from client_sdk.training.lora import adapter_spec, base_fingerprint, vector_length
from client_sdk.training.trainer import LoraTrainer
from dp.contracts import BudgetSpec, TaskSpec
from dp.encoding import decode, encode
from secagg.manifest import Adapter, AdapterKind, BaseModel, Manifest
from secagg.ring import add_into
from secagg_cli.models.cache import ensure_model, load_model
from secagg_cli.models.presets import Privacy, preset_for, task_terms
from tests.kits.tasks import built, seeded, six

torch.set_num_threads(1)  # threads cost more than such small layers take
_scratch = tempfile.TemporaryDirectory(prefix="secagg-tiny-")
ROTATION_SEED = bytes(32)
TINY_SKETCH = 16


@cache
def tiny_folder() -> Path:
    return ensure_model("tiny", _scratch.name)


def tiny() -> tuple[Any, Any]:
    """A fresh model and its tokenizer."""
    return load_model(tiny_folder())


@cache
def tiny_fingerprint() -> bytes:
    return base_fingerprint(tiny()[0])


@cache
def tiny_adapter(kind: AdapterKind = "ffa-lora") -> Adapter:
    preset = preset_for("tiny").adapter
    return adapter_spec(
        tiny()[0],
        kind,
        preset.rank,
        preset.alpha,
        preset.target_modules,
        bytes(range(32)),
        sketch=TINY_SKETCH if kind == "product" else 0,
    )


QUARTERS = 4
NOISE = 1.4  # for four releases that an example may be in; the demo's is for one
NEVER = 2.0**-30  # a rate at which no example is drawn; delta is then for as many as it may be from


def tiny_task(
    privacy: Privacy = "distributed",
    algorithm: str | None = None,
    *,
    kind: AdapterKind = "ffa-lora",
    training: dict[str, Any] | None = None,
    **changes: Any,
) -> Manifest:
    """A manifest for the tiny model with the demo's terms but for its schedule, and changes.

    A batch of all devices together is a quarter of their data, drawn at random.
    """
    import msgspec

    algorithm = algorithm or ("fedsgd" if privacy == "distributed" else "fedavg")
    period = QUARTERS if privacy == "distributed" else 1
    terms = task_terms("tiny", privacy, algorithm, period=period)
    if privacy == "distributed":
        terms["noise_multiplier"] = NOISE
        drawn = terms["training"].denominator * min(period, 2) / QUARTERS
        terms["training"] = msgspec.structs.replace(terms["training"], denominator=drawn)
    terms |= {"period": 1, "sampling_rate": 1 / QUARTERS, "examples_max": 128} | changes
    if terms.get("sampling_rate", 1.0) <= NEVER:
        budget = terms.get("budget", BudgetSpec())
        terms["budget"] = msgspec.structs.replace(budget, delta=1e-13, max_epsilon=None)
    if training:
        terms["training"] = msgspec.structs.replace(terms["training"], **training)
    return built(
        TaskSpec(
            task="demo",
            base_model=BaseModel(name="tiny", fingerprint=tiny_fingerprint()),
            adapter=tiny_adapter(kind),
            **{"removable_noise": False, "cohort": six(), **terms},
        )
    )


def job(manifest: Manifest, vector: np.ndarray | None = None, **changes: Any) -> TrainingJob:
    if vector is None:
        assert manifest.adapter is not None
        vector = np.zeros(vector_length(manifest.adapter), dtype=np.float32)
    fields = {"version": 0, "releases": 0} | changes
    return TrainingJob(manifest=manifest, vector=vector, **fields)


def summed(
    manifest: Manifest, contributions: Sequence[dict[str, np.ndarray]], seed: int = 0
) -> dict[str, np.ndarray]:
    """What the server opens: encoded with every device's noise share, added in the ring."""
    total = None
    for number, values in enumerate(contributions):
        lanes = encode(
            manifest,
            values,
            rotation_seed=ROTATION_SEED,
            random_bytes=seeded(1_000 * seed + number),
        )
        if total is None:
            total = lanes
        else:
            add_into(total, lanes, manifest.encoding.ring_bits)
    assert total is not None
    return decode(manifest, total, survivors=len(contributions), rotation_seed=ROTATION_SEED)


def server_step(manifest: Manifest, vector: np.ndarray, sums: dict[str, np.ndarray]) -> np.ndarray:
    """The server's halves in one line each: FedSGD subtracts, FedAvg adds the mean."""
    training = manifest.training
    assert training is not None
    rate = training.server_learning_rate
    if manifest.algorithm == "fedsgd":
        return (vector - rate * sums["gradient"] / training.denominator).astype(np.float32)
    divisor = training.denominator or float(sums["weight"][0])
    return (vector + rate * sums["delta"] / divisor).astype(np.float32)


def trainer(dataset: Sequence[Any], seed: int = 0, **options: Any) -> LoraTrainer:
    model, tokenizer = tiny()
    options = {"threads": 1, "random_bytes": seeded(seed), **options}
    return LoraTrainer(model, tokenizer, dataset, **options)
