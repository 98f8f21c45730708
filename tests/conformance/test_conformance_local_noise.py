"""Local noise, which devices add to their own steps: what it makes of the update that they send.

Gradients of a quadratic are linear, so the noise of step t reaches the end of local training
through one number per curvature, and the update's covariance is known in closed form. The test
statistic is a chi-square of fixed coins, as in ``test_conformance_noise.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secagg.simulation import Drop
from tests.kits.chi_square import within
from tests.kits.conformance_local_noise import (
    CASES,
    CLIP,
    DEVICES,
    EXAMPLES,
    LOCAL,
    MULTIPLIER,
    Case,
)
from tests.kits.federations import Federation
from tests.kits.problems import Problem, problem
from tests.kits.stateful import Buffered, Controlled

LENGTH, RELEASES = 200, 6
RATE, STEPS, BATCH = 0.1, 3, 20
DEVIATION = MULTIPLIER * CLIP / BATCH  # Abadi et al. 2016, algorithm 1


def short() -> Problem:
    """Gradients that no clip reaches, with the noise of three steps in them."""
    task = problem(EXAMPLES, length=LENGTH, same=True)
    return Problem(task.hessians, tuple(0.1 * centres for centres in task.centres))


def federation(case: Case, folder: Path) -> Federation:
    task = short()
    terms = {
        "local_steps": STEPS,
        "local_learning_rate": RATE,
        "batch_size": BATCH,
        **case.training,
    }
    if case.algorithm == "scaffold":
        return Controlled(task, folder, terms, survivors_min=4, **LOCAL)
    if case.algorithm == "fedbuff":
        return Buffered(task, terms, survivors_min=4, **LOCAL)
    return Federation(task, case.algorithm, terms, survivors_min=4, **LOCAL)


def trained(case: Case, curvature: np.ndarray, pulled: np.ndarray) -> np.ndarray:
    """y - x after the local steps, by curvature; ``pulled[t]`` is what step t's gradient holds
    besides curvature * (y - x)."""
    moved, velocity = np.zeros_like(curvature), np.zeros_like(curvature)
    for pull in pulled:
        velocity = case.momentum * velocity + curvature * moved + pull
        moved = moved - RATE * (velocity + case.mu * moved)
    return moved


def expected(case: Case, task: Problem, device: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of what the device sends from x = 0."""
    share = EXAMPLES[device] / BATCH  # the divisor is public, not the number of examples
    values, vectors = np.linalg.eigh(task.hessians[device])
    still = share * values * (vectors.T @ -task.centres[device].mean(0))
    divisor = 1.0
    if case.algorithm == "fednova":
        ones = np.ones((STEPS, 1))
        divisor = -float(trained(case, np.zeros(1), ones)[0]) / RATE
    mean = trained(case, share * values, np.repeat(still[None], STEPS, 0)) / divisor
    variance = np.zeros(LENGTH)
    for step in range(STEPS):
        impulse = np.zeros((STEPS, LENGTH))
        impulse[step] = DEVIATION
        variance += (trained(case, share * values, impulse) / divisor) ** 2
    return vectors @ mean, (vectors * variance) @ vectors.T


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_masked_sum_of_noisy_updates_has_the_known_mean_and_covariance(
    case: Case, tmp_path: Path
) -> None:
    """Six devices, then four; half as much noise more, or a third less, would be seen."""
    it = federation(case, tmp_path)
    known = [expected(case, it.problem, k) for k in range(DEVICES)]
    scale = it.manifest.segments[0].scale
    assert [segment.name for segment in it.manifest.segments] == ["delta"]
    for drops in ({}, {0: Drop.SHARE, 3: Drop.UPLOAD}):
        statistic, freedom = 0.0, RELEASES * LENGTH
        for _ in range(RELEASES):
            values = it.contributions()
            sums, survivors = it.masked(values, drops)
            assert len(survivors) == DEVICES - len(drops)
            exact = it.exact([values[k] for k in survivors])["delta"]
            assert np.abs(sums["delta"] - exact).max() * scale < len(survivors)
            error = sums["delta"] - np.sum([known[k][0] for k in survivors], axis=0)
            covariance = np.sum([known[k][1] for k in survivors], axis=0)
            statistic += error @ np.linalg.solve(covariance, error)
            it.version += 1  # other coins; the model stays where it is
        assert within(statistic, freedom)
        assert not within(statistic * 3 / 2, freedom)
        assert not within(statistic * 2 / 3, freedom)
