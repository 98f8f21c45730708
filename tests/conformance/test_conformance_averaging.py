"""FedAvg, FedProx, FedNova and FedOpt against plain references, and through the real masks.

Quadratic problems with unequal data, unequal steps and drop-outs; see ``tests/kits``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from secagg.simulation import Drop
from tests.kits.conformance_averaging import CASES, Case
from tests.kits.federations import Federation
from tests.kits.problems import problem
from tests.kits.references import Server, averaged, local, nova

EXAMPLES = (4, 9, 2, 6, 3, 7)
RELEASES = 4
RATE = 0.1


VARIANTS = {
    "equal": {},
    "unequal data": {"weight_unit": 6},
    "unequal steps": {"weight_unit": 9, "local_epochs": 2, "batch_size": 3, "local_steps": 5},
}


def norm_of(case: Case, steps: int) -> float:
    """||a||_1 by running the paper's update on a gradient that is always 1."""
    y, velocity = 0.0, 0.0
    for _ in range(steps):
        velocity = case.local.get("momentum", 0.0) * velocity + 1.0
        y -= RATE * (velocity + case.local.get("mu", 0.0) * y)
    return -y / RATE


def steps_of(variant: str, examples: int) -> int:
    return min(5, -(-2 * examples // 3)) if variant == "unequal steps" else 3


def weights_of(variant: str) -> np.ndarray:
    unit = VARIANTS[variant].get("weight_unit", 0)
    return np.minimum(np.array(EXAMPLES) / unit, 1.0) if unit else np.ones(len(EXAMPLES))


def reference(case: Case, variant: str, lost: dict[int, set[int]]) -> np.ndarray:
    task = problem(EXAMPLES, same=True)
    steps = [steps_of(variant, n) for n in EXAMPLES]
    norms = [norm_of(case, tau) for tau in steps]
    server, x = Server(**case.server), np.zeros(task.length)
    for version in range(RELEASES):
        present = [k for k in range(len(EXAMPLES)) if k not in lost.get(version, set())]

        def update(k: int, x: np.ndarray = x) -> np.ndarray:
            return local(task, k, x, RATE, steps[k], **case.local)

        if case.algorithm == "fednova":
            x = nova(task, x, present, weights_of(variant), server, update, norms)
        else:
            x = averaged(task, x, present, weights_of(variant), server, update)
    return x


def federation(case: Case, variant: str, **changes: Any) -> Federation:
    terms = {"local_learning_rate": RATE, **VARIANTS[variant], **case.training}
    return Federation(
        problem(EXAMPLES, same=True), case.algorithm, terms, survivors_min=4, **changes
    )


LOST = {1: {0}, 2: {3, 4}}  # devices by release


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_algorithm_is_its_reference(case: Case, variant: str) -> None:
    """Exact sums, so what is left is float32 of the stored model."""
    it = federation(case, variant)
    for version in range(RELEASES):
        present = [
            value for k, value in enumerate(it.contributions()) if k not in LOST.get(version, set())
        ]
        it.release(it.exact(present), len(present))
    assert it.vector == pytest.approx(reference(case, variant, LOST), abs=3e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_masked_equals_unmasked_up_to_rounding(case: Case) -> None:
    """Both machines, two drop-outs; each sum is off by less than a unit per device."""
    it = federation(case, "unequal steps")
    drops = {1: {0: Drop.ANNOUNCE}, 2: {3: Drop.UPLOAD, 4: Drop.SHARE}}
    for version in range(RELEASES):
        values = it.contributions()
        sums, survivors = it.masked(values, drops.get(version))
        assert set(survivors) == set(range(len(EXAMPLES))) - LOST.get(version, set())
        exact = it.exact([values[k] for k in survivors])
        for segment in it.manifest.segments:
            error = np.abs(sums[segment.name] - exact[segment.name]) * segment.scale
            assert error.max() < len(survivors), segment.name
        it.release(sums, len(survivors))
    assert it.vector == pytest.approx(reference(case, "unequal steps", LOST), abs=2e-3)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_learning_goes_on_to_the_optimum_of_equal_devices(case: Case) -> None:
    """One optimum for all devices, so that nobody drifts and every algorithm must reach it."""
    task = problem(EXAMPLES, same=True)
    centre = task.centres[0][:1]
    same = type(task)(task.hessians, tuple(np.repeat(centre, n, axis=0) for n in EXAMPLES))
    terms = {"local_learning_rate": RATE, **case.training}
    it = Federation(same, case.algorithm, terms)
    before = np.linalg.norm(centre[0])
    assert np.linalg.norm(it.run(80) - centre[0]) < 0.05 * before
