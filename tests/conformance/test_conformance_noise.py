"""Noise of known variance in the ring: what the sums carry, and what the server makes of it.

Every test statistic is a chi-square of fixed coins (``tests.kits.chi_square``). Noise that
devices add to their own steps is in ``test_conformance_local_noise.py``.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from dp.contracts import warnings
from dp.contracts.algorithms.fednova import public_steps
from dp.contracts.known_noise import mean_deviation, mean_variance
from dp.contracts.optimisers import NAMED_AFTER
from dp.noise.removable import kept_share
from secagg.simulation import Drop
from tests.kits.chi_square import within
from tests.kits.conformance_noise import DEVICE, FEDSGD, SHORT, TASKS
from tests.kits.federations import Federation
from tests.kits.problems import Problem, problem
from tests.kits.stateful import Buffered

LENGTH = 600
EXAMPLES = (4, 9, 2, 6, 3, 7)
MEANS = [terms for terms in TASKS if terms[0] != "fedbuff"]  # divided by a public constant


def federation(algorithm: str, training: dict[str, Any], changes: dict[str, Any]) -> Federation:
    task = problem(EXAMPLES, length=LENGTH, same=True)
    if algorithm == "fedbuff":
        return Buffered(task, training, survivors_min=4, **changes)
    return Federation(task, algorithm, training, survivors_min=4, **changes)


def integral(it: Federation, values: list[Any]) -> dict[str, np.ndarray]:
    """The exact sum in real units; with distributed noise integers are sent."""
    (segment,) = it.manifest.segments
    total = it.exact(values)[segment.name]
    return {segment.name: total / segment.scale if segment.name == "gradient" else total}


@pytest.mark.parametrize(("algorithm", "training", "changes"), TASKS, ids=[t[0] for t in TASKS])
def test_a_masked_sum_is_the_exact_one_plus_noise_of_the_known_variance(
    algorithm: str, training: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Six shares, then five when one device is lost: more or less noise would both be seen."""
    it = federation(algorithm, training, changes)
    (segment,) = it.manifest.segments
    for drops, count in (({}, 6), ({2: Drop.UPLOAD}, 5)):
        statistic, freedom = 0.0, 0
        for _ in range(5):
            values = it.contributions()
            sums, survivors = it.masked(values, drops)
            assert len(survivors) == count
            exact = integral(it, [values[k] for k in survivors])
            error = (sums[segment.name] - exact[segment.name]) * segment.scale
            statistic += float(error @ error) / (it.manifest.noise.share_variance * count)
            freedom += LENGTH
            it.version += 1  # other coins; the model stays where it is
        assert within(statistic, freedom)
        assert not within(statistic * count / 4, freedom)  # as if the noise were of four


@pytest.mark.parametrize(("algorithm", "training", "changes"), SHORT, ids=[t[0] for t in SHORT])
def test_the_noise_of_short_sums_is_known_too(
    algorithm: str, training: dict[str, Any], changes: dict[str, Any]
) -> None:
    """The same contributions under fresh shares; the first sum is a masked one."""
    it = Federation(problem(EXAMPLES), algorithm, training, survivors_min=4, **changes)
    one = {"counts": np.arange(40) / 40}
    values = [one] * 6 if algorithm == "sum" else it.contributions()
    total = it.exact(values)
    if it.manifest.example_privacy is not None:
        total = {name: units / it.manifest.segments[0].scale for name, units in total.items()}
    statistic, freedom = 0.0, 0
    for version in range(2_000 // it.manifest.data_length + 1):
        it.version = version
        sums = it.masked(values)[0] if version == 0 else it.unmasked(values)
        for segment in it.manifest.segments:
            error = (sums[segment.name] - total[segment.name]) * segment.scale
            statistic += float(error @ error) / (it.manifest.noise.share_variance * 6)
            freedom += segment.length
    assert within(statistic, freedom)
    assert not within(statistic * 6 / 4, freedom)


@pytest.mark.parametrize(("algorithm", "training", "changes"), MEANS, ids=[t[0] for t in MEANS])
def test_the_known_variance_is_that_of_the_mean_which_the_server_moves_by(
    algorithm: str, training: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Two steps from the same place, plain optimiser: with the noise and without it."""
    if algorithm in NAMED_AFTER:
        algorithm = "fedavg"
    it = federation(algorithm, training, changes)
    statistic = 0.0
    for version in range(12):
        it.version, it.vector = version, np.zeros(LENGTH, np.float32)
        values = it.contributions()
        noisy = it.release(it.unmasked(values), 6).vector.astype(np.float64)
        it.version, it.vector = version, np.zeros(LENGTH, np.float32)
        error = noisy - it.release(integral(it, values), 6).vector
        statistic += float(error @ error) / mean_variance(it.manifest, 6)
    assert within(statistic, 12 * LENGTH)


ENDS = [
    ("fedsgd", {"local_steps": 1, "server_learning_rate": 0.3, "batch_size": 5}, FEDSGD),
    ("fedavg", {}, {**DEVICE, "device_noise_multiplier": 0.5}),
]


@pytest.mark.parametrize(("algorithm", "training", "changes"), ENDS, ids=[t[0] for t in ENDS])
def test_learning_ends_around_the_optimum_as_far_as_the_noise_says(
    algorithm: str, training: dict[str, Any], changes: dict[str, Any]
) -> None:
    """Equal devices and linear steps: x - optimum shrinks by one matrix and gains known noise."""
    task, length, statistic = problem(EXAMPLES, length=20), 20, 0.0
    centre = np.linspace(-0.5, 0.5, length)
    same = Problem(task.hessians, tuple(np.tile(centre, (n, 1)) for n in EXAMPLES))
    if algorithm == "fedsgd":  # the public denominator is 6 devices times 5 examples
        moves = 0.3 * sum(n * h for n, h in zip(EXAMPLES, same.hessians, strict=True)) / 30
        rate = 0.3
    else:  # three local steps at rate 0.1
        kept = [np.linalg.matrix_power(np.eye(length) - 0.1 * h, 3) for h in same.hessians]
        moves, rate = np.eye(length) - np.mean(kept, axis=0), 1.0
    for seed in range(12):
        it = Federation(same, algorithm, training, seed=seed, survivors_min=4, **changes)
        it.run(20)
        variance, stays = mean_variance(it.manifest, 6) * rate**2, np.eye(length) - moves
        left, covariance = -centre, np.zeros((length, length))
        for _ in range(20):
            left = stays @ left
            covariance = stays @ covariance @ stays.T + variance * np.eye(length)
        error = it.vector - centre - left
        statistic += float(error @ np.linalg.solve(covariance, error))
    assert within(statistic, 12 * length)
    assert not within(2 * statistic, 12 * length)
    assert not within(statistic / 2, 12 * length)


def test_fednova_under_noise_multiplies_by_the_public_steps() -> None:
    it = federation(*next(terms for terms in TASKS if terms[0] == "fednova"))
    values = it.contributions()
    step = it.release(integral(it, values), 6)
    mean = integral(it, values)["delta"] / 6
    assert step.vector == pytest.approx(public_steps(it.manifest.training) * mean, rel=1e-5)
    assert step.metrics == {"effective_steps": 4.0}


def still() -> Problem:
    """All devices have one centre, far away in two coordinates of 600 and here in the others."""
    centre = np.where(np.arange(LENGTH) < 2, 100.0, 0.0)
    hessians = np.repeat(np.eye(LENGTH)[None], 6, axis=0)
    return Problem(hessians, tuple(np.tile(centre, (n, 1)) for n in EXAMPLES))


ONE = {"device_noise_multiplier": 1.0, "update_clip": 8.0}


def test_where_there_is_only_noise_adams_second_moment_is_the_noise_share() -> None:
    it = Federation(still(), "fedadam", {"server_learning_rate": 0.05}, survivors_min=4, **ONE)
    it.run(20)
    second, noise = it.optimiser["second"], float(it.optimiser["noise"][0])
    weights = (1 - 0.99) * 0.99 ** np.arange(20)
    variance = mean_variance(it.manifest, 6)
    assert noise == pytest.approx(variance * weights.sum())
    start = it.manifest.training.server_tau**2 * 0.99**20
    spread = variance * np.sqrt(2 * (weights**2).sum() / (LENGTH - 2))
    assert abs(second[2:].mean() - start - noise) < 5 * spread
    assert (second[:2] - start).min() > 4 * noise


def test_a_tau_far_below_the_noise_lets_noise_run_away_so_it_is_not_the_default() -> None:
    """Noise over tau: the quiet coordinates leave their place a hundred times as far."""
    far = {}
    for name, terms in (("default", {}), ("paper", {"server_tau": 1e-3})):
        training = {"server_learning_rate": 0.05, **terms}
        it = Federation(still(), "fedadam", training, survivors_min=4, **ONE)
        far[name] = float(np.abs(it.run(10)[2:]).mean())
        assert any("server_tau" in text for text in warnings(it.manifest)) == (name == "paper")
        if name == "default":
            assert it.manifest.training.server_tau == mean_deviation(it.manifest)
    assert far["paper"] > 100 * far["default"]


def test_removable_noise_is_counted_as_far_as_it_stayed() -> None:
    it = federation("fedavg", {}, DEVICE)
    noise = msgspec.structs.replace(it.manifest.noise, removable_drops=(1, 2))
    manifest = msgspec.structs.replace(it.manifest, noise=noise)
    target = noise.share_variance * noise.honest_min
    units = (manifest.segments[0].scale * 6) ** 2
    for survivors in (4, 5, 6):
        stayed = kept_share(noise, manifest.cohort, 6, survivors) * survivors
        assert target <= stayed <= noise.share_variance * survivors
        assert mean_variance(manifest, survivors, 6) == pytest.approx(stayed / units)
    assert mean_variance(manifest, 6) == pytest.approx(target / units)
