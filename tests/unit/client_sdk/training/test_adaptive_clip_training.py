"""An adaptive clip with real parts: the tiny model's gradients, and cohorts through the masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client_sdk.training.algorithms import ALGORITHMS
from dp.contracts import AdaptiveClipSpec, BudgetSpec
from dp.example_sum import ExampleSum
from dp.noise.adaptive_clip import BELOW, below_units, first_clip, with_below
from secagg.simulation import Drop
from secagg_cli.models.corpus import load_clients
from tests.kits.federations import Federation, Values
from tests.kits.problems import problem
from tests.kits.tiny_training import job, tiny_task, trainer

PAIRS = load_clients(6)[4].train[:12]
WIDE = AdaptiveClipSpec(learning_rate=0.2, clip_min=1e-3, clip_max=1e3)


def test_the_tiny_model_s_gradients_are_counted_and_clipped_at_the_version_s_clip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = tiny_task(
        sampling_rate=1.0, adaptive_clip=WIDE, budget=BudgetSpec(max_epsilon=None, releases_max=2)
    )
    seen: list[np.ndarray] = []
    add = ExampleSum.add

    def listening(self: ExampleSum, gradient: np.ndarray) -> None:
        seen.append(gradient.astype(np.float64))
        add(self, gradient)

    monkeypatch.setattr(ExampleSum, "add", listening)
    it = trainer(PAIRS)
    it.contribute(job(manifest, clip=1.0))
    gradients, norms = np.array(seen), np.linalg.norm(seen, axis=1)
    assert len(gradients) == len(PAIRS)
    for clip in (1.0, float(np.median(norms)), float(norms.max())):
        values = it.contribute(job(manifest, clip=clip))
        bits = [below_units(manifest, bool(norm <= clip)) for norm in norms]
        assert values[BELOW].tolist() == [sum(bits)]
        clipped = gradients * np.minimum(1.0, clip / norms)[:, None]
        found = values["gradient"] / manifest.segments[0].scale * clip / first_clip(manifest)
        expected = clipped.sum(0)
        assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)


EXAMPLES = (9, 14, 6, 12, 8, 11)
STILL = {"server_learning_rate": 1e-12}  # the model stands, so its norms have one true quantile


def example_level() -> Federation:
    return Federation(
        problem(EXAMPLES),
        "fedsgd",
        {**STILL, "denominator": float(sum(EXAMPLES))},
        privacy="distributed",
        clip=0.1,
        sampling_rate=1.0,
        noise_multiplier=1.0,
        examples_max=16,
        adaptive_clip=WIDE,
        survivors_min=4,
    )


def device_level() -> Federation:
    return Federation(
        problem((4,) * 16),
        "fedavg",
        STILL,
        device_noise_multiplier=1.5,
        update_clip=9.0,
        adaptive_clip=WIDE,
        survivors_min=12,
    )


def clip_of(it: Federation) -> float:
    return float(it.optimiser["clip"][0]) if it.optimiser else first_clip(it.manifest)


def contributions(it: Federation) -> list[Values]:
    """As the SDK makes them: examples count in the algorithm, a device where it is the unit."""
    clip, contribute = clip_of(it), ALGORITHMS[it.manifest.algorithm]
    values = [
        contribute(it.manifest, replace(it.work(device), clip=clip))
        for device in range(it.problem.devices)
    ]
    if it.manifest.algorithm == "fedsgd":
        return values
    return [with_below(it.manifest, {"delta": v["delta"]}, clip) for v in values]


def true_norms(it: Federation) -> np.ndarray:
    zero = np.zeros(it.problem.length)
    if it.manifest.algorithm == "fedsgd":
        return np.concatenate(
            [
                np.linalg.norm((zero - it.problem.centres[k]) @ it.problem.hessians[k], axis=1)
                for k in range(it.problem.devices)
            ]
        )
    contribute = ALGORITHMS["fedavg"]
    works = [it.work(device) for device in range(it.problem.devices)]
    return np.array([np.linalg.norm(contribute(it.manifest, work)["delta"]) for work in works])


@pytest.mark.parametrize(
    "make", [example_level, device_level], ids=["examples, from below", "devices, from above"]
)
def test_cohorts_find_the_median_of_their_norms_under_their_noise(make: Any) -> None:
    """Through clip, rotation, noise and ring; the mean over releases after the way there."""
    it = make()
    it.optimiser = {"clip": np.array([first_clip(it.manifest)])}
    norms, trail = true_norms(it), []
    for _ in range(220):
        values = contributions(it)
        it.release(it.unmasked(values), len(values))
        trail.append(clip_of(it))
    typical = float(np.exp(np.mean(np.log(trail[60:]))))
    assert 0.3 < float((norms <= typical).mean()) < 0.7
    assert 0.7 < typical / float(np.median(norms)) < 1.4
    assert not 0.5 < first_clip(it.manifest) / float(np.median(norms)) < 2


def test_a_cohort_that_loses_devices_moves_the_clip_by_those_who_are_left() -> None:
    """Through both protocol machines: bits of who is in the sum, and of nobody else."""
    it = example_level()
    it.optimiser = {"clip": np.array([0.9])}
    values = contributions(it)
    sums, survivors = it.masked(values, {4: Drop.UPLOAD})
    assert len(survivors) == 5
    alive = [value for number, value in enumerate(values) if number != 4]
    expected = sum(int(value[BELOW][0]) for value in alive)
    step = it.release(sums, len(survivors))
    assert step.clip is not None
    noise = (it.manifest.noise.share_variance * 5) ** 0.5
    assert abs(step.clip.below_units - expected) < 6 * noise
