"""The algorithms that take one sum of gradients, slopes, scores or numbers, against references.

Quadratic problems, unequal data and drop-outs as for those that average local steps. None of these
takes several local steps (refused: ``local-steps``, ``local-terms-unused``), so none takes unequal
ones. FedSGD and zeroth order with distributed noise never send a sum without it: here the exact
sum of what devices would send is taken, and the masked one is compared with the same shares of
noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from secagg.lora.directions import direction
from secagg.simulation import Drop
from tests.kits.conformance_sums import CASES, CLIP, DIRECTIONS, PERTURBATION, UNIT, Case
from tests.kits.federations import Federation, Values
from tests.kits.problems import Problem, problem
from tests.kits.references import clipped, descended, slopes

EXAMPLES = (4, 9, 2, 6, 3, 7)
DEVICES = len(EXAMPLES)
RELEASES = 4
LOST = {1: {0: Drop.ANNOUNCE}, 2: {3: Drop.UPLOAD, 4: Drop.SHARE}}  # by release


class Counting(Federation):
    """Statistics: what an app would count of its examples."""

    def contributions(self) -> list[Values]:
        return [{"counts": counts(self.problem, k)} for k in range(self.problem.devices)]


def counts(task: Problem, device: int) -> np.ndarray:
    """How many examples lie above each of five levels of their first coordinate."""
    levels = np.linspace(-2, 2, 5)
    return (task.centres[device][:, :1] > levels).sum(0).astype(np.float64)


def federation(case: Case, task: Problem | None = None, **changes: Any) -> Federation:
    kind = Counting if case.algorithm == "sum" else Federation
    terms = {"local_learning_rate": 1.0, **case.training}
    if case.algorithm in ("evaluation", "fedsgd", "zeroth-order", "sum"):
        del terms["local_learning_rate"]
    return kind(
        task or problem(EXAMPLES),
        case.algorithm,
        terms,
        survivors_min=4,
        **{**case.changes, **changes},
    )


def directions(it: Federation) -> np.ndarray:
    """z_s of the present version: public coins, of which only that they are signs matters."""
    assert it.manifest.adapter is not None
    seed, length = it.manifest.adapter.seed, it.problem.length
    found = np.array([direction(seed, it.version, s, length) for s in range(DIRECTIONS)])
    assert set(np.unique(found)) == {-1.0, 1.0}
    return found.astype(np.float64)


def weights(case: Case) -> np.ndarray:
    unit = case.training.get("weight_unit", 0)
    return np.minimum(np.array(EXAMPLES) / unit, 1.0) if unit else np.ones(DEVICES)


def after(
    case: Case, it: Federation, task: Problem, x: np.ndarray, present: list[int]
) -> tuple[np.ndarray, dict[str, float]]:
    """What a release makes of x, and what it tells, in plain float64."""
    if case.algorithm == "sum":
        return np.sum([counts(task, k) for k in present], axis=0), {}
    if case.algorithm == "evaluation":
        losses = np.concatenate([task.losses(k, x)[:UNIT] for k in present])
        right = float(np.mean(losses < np.log(2)))  # the model's answer is the likelier of two
        return x, {"loss": float(losses.mean()), "accuracy": right, "examples": float(len(losses))}
    rate, public = case.training["server_learning_rate"], 5.0 * DEVICES
    if case.algorithm == "fedsgd":
        return descended(task, x, present, rate, CLIP, public), {}
    z = directions(it)
    found = [slopes(task, k, x, z, PERTURBATION) for k in present]
    if case.is_distributed:
        mean = sum(clipped(each, CLIP).sum(0) for each in found) / public
        return x - rate * mean @ z / DIRECTIONS, {}
    w = weights(case)[present]
    mean = np.average([each.mean(0) for each in found], axis=0, weights=w)
    loss = np.average([task.losses(k, x).mean() for k in present], weights=w)
    return x - rate * mean @ z / DIRECTIONS, {"weight": float(w.sum()), "loss": float(loss)}


def exact(it: Federation, case: Case, values: list[Values]) -> dict[str, np.ndarray]:
    """The sum in real units; with distributed noise integers are sent."""
    scale = it.manifest.segments[0].scale if case.is_distributed else 1
    return {name: total / scale for name, total in it.exact(values).items()}


def tolerance(it: Federation, case: Case) -> float:
    """Of x after one release: distributed, rounding of every example, else float32 of logits.

    A slope differs from its float64 value by two roundings of a loss over twice the perturbation.
    """
    if case.is_distributed:
        return case.training["server_learning_rate"] * 4 / it.manifest.segments[0].scale
    return {"zeroth-order": 2e-4}.get(case.algorithm, 1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_algorithm_is_its_reference(case: Case) -> None:
    it, task = federation(case), problem(EXAMPLES)
    start = np.linspace(-0.5, 0.5, task.length)
    if case.algorithm != "sum":
        it.vector = start.astype(np.float32)
    x = it.vector.astype(np.float64)
    for version in range(RELEASES):
        present = [k for k in range(DEVICES) if k not in LOST.get(version, {})]
        x, told = after(case, it, task, x, present)
        values = it.contributions()
        step = it.release(exact(it, case, [values[k] for k in present]), len(present))
        assert step.vector == pytest.approx(x, abs=(version + 1) * tolerance(it, case))
        assert step.metrics == pytest.approx(told, rel=2e-5, abs=1e-6)
    assert case.algorithm in ("sum", "evaluation") or np.linalg.norm(x - start) > 0.1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_masked_equals_unmasked_up_to_rounding(case: Case) -> None:
    """Both machines, drop-outs at three steps. With the same shares of noise: bit for bit."""
    it = federation(case)
    for version in range(RELEASES):
        values = it.contributions()
        sums, survivors = it.masked(values, LOST.get(version))
        assert set(survivors) == set(range(DEVICES)) - set(LOST.get(version, {}))
        present = [values[k] for k in survivors]
        plain, clear = it.unmasked(present, survivors), exact(it, case, present)
        for segment in it.manifest.segments:
            np.testing.assert_array_equal(sums[segment.name], plain[segment.name])
            if it.manifest.noise is None:
                error = np.abs(sums[segment.name] - clear[segment.name]) * segment.scale
                assert error.max() < len(survivors), segment.name
        it.release(sums, len(survivors))


LEARNING = [case for case in CASES if case.algorithm not in ("evaluation", "sum")]


@pytest.mark.parametrize("case", LEARNING, ids=str)
def test_learning_goes_on_to_the_optimum_of_equal_devices(case: Case) -> None:
    """Exact sums; with distributed noise see ``test_conformance_noise.py``."""
    centre = problem(EXAMPLES).centres[0][0]
    same = Problem(problem(EXAMPLES).hessians, tuple(np.tile(centre, (n, 1)) for n in EXAMPLES))
    it = federation(case, same)
    for _ in range(25):
        it.release(exact(it, case, it.contributions()), DEVICES)
    assert np.linalg.norm(it.vector - centre) < 0.05 * np.linalg.norm(centre)


def test_a_secret_batch_is_a_coin_per_example() -> None:
    """Equal examples, so that the sum tells how many were drawn: binomial, of fixed coins."""
    centre = np.linspace(0.1, 0.2, 6)
    hessians = np.repeat(np.eye(6)[None], DEVICES, axis=0)
    same = Problem(hessians, tuple(np.tile(centre, (n, 1)) for n in EXAMPLES))
    it = federation(CASES[0], same, sampling_rate=0.3)
    drawn, releases = 0.0, 40
    for version in range(releases):
        it.version = version
        total = exact(it, CASES[0], it.contributions())["gradient"]
        found = -total @ centre / (centre @ centre)
        assert found == pytest.approx(round(found), abs=0.05)
        drawn += round(found)
    whole = releases * sum(EXAMPLES)
    low, high = binom.ppf([5e-7, 1 - 5e-7], whole, 0.3)
    assert low <= drawn <= high
    assert 1.5 * drawn > high
    assert drawn / 1.5 < low


def test_an_evaluation_hears_no_more_than_its_bound_of_a_device() -> None:
    """The devices of 9 and 7 examples count as one of 6; a loss counts up to 32 nats."""
    case = CASES[4]
    it = federation(case)
    it.vector = np.full(it.problem.length, 9.0, np.float32)  # where every loss is far above 32
    step = it.release(it.exact(it.contributions()), DEVICES)
    assert step.metrics["examples"] == pytest.approx(sum(min(n, UNIT) for n in EXAMPLES))
    assert step.metrics["loss"] == pytest.approx(32.0)
    assert step.metrics["accuracy"] == 0.0
