"""Pitfalls of DP training that no other file tests (docs/privacy.md, "Twelve pitfalls")."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk.contribution import check_values
from client_sdk.errors import ContributionError
from client_sdk.training.algorithms import steps
from dp.accounting.statements import ADJACENCY, fewest, lines, local_step, ring_release
from dp.contracts import AdaptiveClipSpec, BudgetSpec, TrainingSpec
from dp.encoding import encode
from dp.example_sum import ExampleSum
from dp.noise.sampling import poisson_batch
from secagg.manifest import Manifest
from secagg_cli.models.corpus import load_clients
from tests.kits.tasks import adapter, built
from tests.kits.tiny_training import NEVER, job, tiny_task, trainer

ROOT = Path(__file__).resolve().parents[3]
NO_LIMIT = BudgetSpec(max_epsilon=None)
PAIRS = load_clients(6)[4].train[:10]

MODE_C: dict[str, dict[str, Any]] = {
    "plain": {},
    "a small clip": {"clip": 1e-3},
    "a large clip": {"clip": 250.0},
    "many numbers": {"adapter": adapter((300, 200))},
    "with devices": {"device_noise_multiplier": 2.0, "examples_max": 4},
    "adaptive": {"adaptive_clip": AdaptiveClipSpec(quantile=0.5)},
    "discrete Gaussian": {"mechanism": "discrete-gaussian"},
}


@pytest.mark.parametrize("name", MODE_C)
def test_what_one_example_moves_is_what_the_accountant_counts_and_no_less(name: str) -> None:
    """Sensitivity: the bound that is executed and the one in the event are one number."""
    manifest = built(budget=NO_LIMIT, **MODE_C[name])
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


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 32])
def test_the_sum_of_a_batch_does_not_depend_on_how_it_is_taken_apart(micro_batch: int) -> None:
    """Accumulation: sums of micro-batches, each example clipped alone; no mean of any."""
    manifest = tiny_task(sampling_rate=1.0, training={"micro_batch": 32})
    whole = trainer(PAIRS, micro_batch=len(PAIRS)).contribute(job(manifest))["gradient"]
    parts = trainer(PAIRS, micro_batch=micro_batch).contribute(job(manifest))["gradient"]
    assert np.abs(whole).max() > 100
    assert np.abs(whole - parts).max() <= 3  # a float's last bit may turn a coin of the rounding


@pytest.mark.parametrize("rate", [NEVER, 0.4, 1.0])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_noise_is_added_once_a_step_and_steps_are_those_that_are_accounted(
    monkeypatch: pytest.MonkeyPatch, rate: float, micro_batch: int
) -> None:
    """However a batch is taken apart, and if it is empty."""
    manifest = tiny_task(
        "local",
        sampling_rate=rate,
        budget=NO_LIMIT,
        training={"local_steps": 3, "micro_batch": micro_batch},
    )
    drawn = []
    noisy_total = steps.noisy_total
    monkeypatch.setattr(
        steps, "noisy_total", lambda *given: drawn.append(given) or noisy_total(*given)
    )
    trainer(PAIRS[:5], micro_batch=micro_batch).contribute(job(manifest))
    assert len(drawn) == 3
    accounted = lines(manifest, 1)[0].epsilon
    one_step = tiny_task("local", sampling_rate=rate, budget=NO_LIMIT, training={"local_steps": 1})
    assert accounted == lines(one_step, 3)[0].epsilon
    assert local_step(manifest).adjacency == ADJACENCY["example"]


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
    if manifest.noise is None:  # mode A: what leaves is made of noised steps alone
        assert {segment.name for segment in manifest.segments} <= {"delta", "control"}
        return
    event = ring_release(manifest, fewest(manifest), 1)
    assert event.l2_squared == sum(segment.clip_units**2 for segment in manifest.segments)
    assert all(segment.clip_units > 0 for segment in manifest.segments)
    assert {segment.name for segment in manifest.segments} == FORM[algorithm]


@pytest.mark.parametrize("extra", ["loss", "examples", "weight"])
@pytest.mark.parametrize("privacy", ["distributed", "local"])
def test_a_contributor_that_adds_a_figure_sends_none(privacy: str, extra: str) -> None:
    manifest = built(
        algorithm="fedsgd" if privacy == "distributed" else "fedavg",
        privacy=privacy,
        budget=NO_LIMIT,
    )
    (segment,) = manifest.segments
    values = {segment.name: np.zeros(segment.length, np.int64)}
    assert set(check_values(manifest, values)) == {segment.name}
    with pytest.raises(ContributionError) as caught:
        check_values(manifest, {**values, extra: np.array([7])})
    assert caught.value.reason == "contribution-segments"


GENERATORS = {"random", "numpy.random", "np.random", "torch"}
STATES = {"getstate", "get_state"}  # looking is not drawing
DRAWS = {"manual_seed", "rand", "randn", "randint", "randperm", "normal", "bernoulli"}  # of torch


def draws_in(path: Path) -> list[str]:
    """Uses of a generator that somebody may have seeded, or that is not made for secrets."""
    tree = ast.parse(path.read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (
            node.module in ("random", "numpy.random")
            or (node.module == "numpy" and any(alias.name == "random" for alias in node.names))
        ):
            found.append(str(node.module))
        elif isinstance(node, ast.Attribute):
            module, _, name = ast.unparse(node).rpartition(".")
            if module in GENERATORS and module.partition(".")[0] in imported:
                drawn = name in DRAWS if module == "torch" else name not in STATES
                found += [f"{module}.{name}"] if drawn else []
    return found


def test_no_file_of_the_core_or_the_sdk_draws_from_a_generator_that_can_be_seeded() -> None:
    floors = ("secagg", "dp", "client_sdk")
    files = [path for floor in floors for path in (ROOT / floor).rglob("*.py")]
    assert len(files) > 90
    assert {path.name: draws_in(path) for path in files if draws_in(path)} == {}
    assert draws_in(Path(__file__))  # it finds those of this file


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
