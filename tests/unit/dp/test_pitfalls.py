"""Sensitivity, segments and coins as they are accounted (docs/privacy.md, "Twelve pitfalls")."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from dp.accounting.statements import fewest, ring_release
from dp.contracts import AdaptiveClipSpec, BudgetSpec, TrainingSpec
from dp.encoding import encode
from dp.example_sum import ExampleSum
from dp.noise.sampling import poisson_batch
from secagg.manifest import Manifest
from tests.kits.tasks import adapter, built

NO_LIMIT = BudgetSpec(max_epsilon=None)

DISTRIBUTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "a small clip": {"clip": 1e-3},
    "a large clip": {"clip": 250.0},
    "many numbers": {"adapter": adapter((300, 200))},
    "with devices": {"device_noise_multiplier": 2.0, "examples_max": 4},
    "adaptive": {"adaptive_clip": AdaptiveClipSpec(quantile=0.5)},
    "discrete Gaussian": {"mechanism": "discrete-gaussian"},
}


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_what_one_example_moves_is_what_the_accountant_counts_and_no_less(name: str) -> None:
    """Sensitivity: the bound that is executed and the one in the event are one number."""
    manifest = built(budget=NO_LIMIT, **DISTRIBUTED[name])
    event = ring_release(manifest, fewest(manifest), 1)
    rng, largest = np.random.default_rng(3), 0
    for size in (0.5, 1.0, 3.0, 1e6):
        total = ExampleSum(manifest, os.urandom, 1.0 if manifest.clip_adaptation else None)
        gradient = rng.normal(size=manifest.data_length - (manifest.clip_adaptation is not None))
        total.add(gradient / np.linalg.norm(gradient) * size * manifest.example_privacy.clip)
        moved = sum(int((value.astype(object) ** 2).sum()) for value in total.values().values())
        assert moved <= event.l2_squared
        largest = max(largest, moved)
    assert largest > 0.9 * event.l2_squared


DEVICES = {"device_noise_multiplier": 2.0}
NOISY: dict[tuple[str, str], dict[str, Any]] = {
    ("fedsgd", "distributed"): {},
    ("zeroth-order", "distributed"): {},
    ("fedavg", "local"): {},
    ("fedprox", "local"): {"training": TrainingSpec(local_steps=2, proximal_mu=0.1)},
    ("fednova", "local"): {"training": TrainingSpec(local_steps=2)},
    ("fedadam", "local"): {},
    ("scaffold", "local"): {"training": TrainingSpec(local_steps=2, population=6)},
    ("fedavg", "none"): DEVICES,
    ("fednova", "none"): DEVICES,
    ("evaluation", "none"): DEVICES | {"training": TrainingSpec(weight_unit=8)},
}
FORM = {
    "fedsgd": {"gradient"},
    "zeroth-order": {"gradient"},
    "fedavg": {"delta"},
    "fednova": {"delta"},
    "evaluation": {"loss", "accuracy", "count"},
}


@pytest.mark.parametrize(("algorithm", "privacy"), NOISY)
def test_nothing_leaves_beside_what_the_noise_covers(algorithm: str, privacy: str) -> None:
    """Auxiliary figures: no loss, weight or count that the sensitivity does not hold."""
    terms = NOISY[algorithm, privacy]
    manifest = built(algorithm=algorithm, privacy=privacy, budget=NO_LIMIT, **terms)
    if manifest.noise is None:  # local: what leaves is made of noised steps alone
        assert {segment.name for segment in manifest.segments} <= {"delta", "control"}
        return
    event = ring_release(manifest, fewest(manifest), 1)
    assert event.l2_squared == sum(segment.clip_units**2 for segment in manifest.segments)
    assert all(segment.clip_units > 0 for segment in manifest.segments)
    assert {segment.name for segment in manifest.segments} == FORM[algorithm]


def encoded(manifest: Manifest) -> np.ndarray:
    (segment,) = manifest.segments
    values = {segment.name: np.full(segment.length, 0.01)}
    return encode(manifest, values, rotation_seed=b"", random_bytes=os.urandom)


def test_seeded_generators_change_neither_noise_nor_rounding_nor_batches() -> None:
    """A training script that calls ``set_seed`` repeats its own coins, and none of ours."""
    import random

    import torch

    noisy = built(algorithm="fedavg", privacy="none", device_noise_multiplier=2.0, budget=NO_LIMIT)
    total = built(budget=NO_LIMIT)
    found: list[tuple[Any, ...]] = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        examples = ExampleSum(total, os.urandom)
        examples.add(np.full(total.data_length, 0.01))
        found.append(
            (
                encoded(noisy).tobytes(),
                examples.total.tobytes(),
                poisson_batch(2_000, 0.5, os.urandom).tobytes(),
                np.random.random(),  # theirs repeat
            )
        )
    assert [a != b for a, b in zip(*found, strict=True)] == [True, True, True, False]
