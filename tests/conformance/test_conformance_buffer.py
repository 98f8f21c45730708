"""FedBuff against the paper's algorithm: buffers of several versions, through the real masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dp.contracts import CohortSpec
from secagg.simulation import Drop
from tests.kits.conformance_buffer import CASES, Case
from tests.kits.problems import Problem, problem
from tests.kits.references import Server, buffer, local
from tests.kits.stateful import Buffered

EXAMPLES = (4, 9, 2, 6, 3, 7)
DEVICES = len(EXAMPLES)
RATE = 0.1
# Versions that the devices began with, by release: each has two behind it, at most four back.
BEGUN = [(0,) * 6, (0, 0, 1, 1, 1, 1), (2, 0, 1, 0, 1, 2), (3, 3, 3, 3, 0, 0), (4, 1, 1, 4, 3, 3)]
# Never so many of a version that fewer than two are left behind it: such a sum is not opened.
LOST = {1: {2: Drop.ANNOUNCE}, 3: {0: Drop.UPLOAD, 1: Drop.SHARE}, 4: {5: Drop.UNMASK}}
GONE = {1: {2}, 3: {0, 1}}  # who confirmed and then fell silent is in the sum


VARIANTS: dict[str, dict[str, Any]] = {
    "equal steps": {"local_steps": 3},
    "unequal steps": {"local_epochs": 2, "batch_size": 3, "local_steps": 5},
}


def steps_of(variant: str, examples: int) -> int:
    return min(5, -(-2 * examples // 3)) if variant == "unequal steps" else 3


def reference(case: Case, variant: str) -> list[np.ndarray]:
    """All versions of the model."""
    task, server = problem(EXAMPLES, same=True), Server(**case.server)
    models = [np.zeros(task.length)]

    def update(k: int, x: np.ndarray) -> np.ndarray:
        return local(task, k, x, RATE, steps_of(variant, EXAMPLES[k]), **case.local)

    for version, begun in enumerate(BEGUN):
        present = [k for k in range(DEVICES) if k not in GONE.get(version, set())]
        models.append(buffer(models, begun, present, server, update))
    return models


def federation(case: Case, variant: str, task: Problem | None = None) -> Buffered:
    terms = {"local_learning_rate": RATE, **VARIANTS[variant], **case.training}
    cohort = CohortSpec(size_min=DEVICES, size_max=DEVICES, survivors_min=4, versions_back=4)
    return Buffered(task or problem(EXAMPLES, same=True), terms, survivors_min=4, cohort=cohort)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_buffer_is_the_papers(case: Case, variant: str) -> None:
    """Exact sums, so what is left is float32 of the stored models. All devices count alike."""
    it = federation(case, variant)
    models = reference(case, variant)
    for version, begun in enumerate(BEGUN):
        it.begin(*begun)
        values = it.weighed(it.contributions())
        present = [value for k, value in enumerate(values) if k not in GONE.get(version, set())]
        it.release(it.exact(present), len(present))
        assert it.vector == pytest.approx(models[version + 1], abs=3e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_masked_equals_unmasked_up_to_rounding(case: Case) -> None:
    """Devices weigh by what their own machines say of their models; drop-outs at four steps."""
    it = federation(case, "unequal steps")
    for version, begun in enumerate(BEGUN):
        it.begin(*begun)
        values = it.contributions()
        sums, survivors = it.masked(values, LOST.get(version))
        assert set(survivors) == set(range(DEVICES)) - GONE.get(version, set())
        weighed = it.weighed(values)
        exact = it.exact([weighed[k] for k in survivors])
        for segment in it.manifest.segments:
            error = np.abs(sums[segment.name] - exact[segment.name]) * segment.scale
            assert error.max() < len(survivors), segment.name
        it.release(sums, len(survivors))
    assert it.vector == pytest.approx(reference(case, "unequal steps")[-1], abs=2e-3)


def lagging(*begun: int) -> tuple[np.ndarray, np.ndarray]:
    """The step of a buffer on version 3, and the paper's."""
    it = federation(Case(), "equal steps")
    models = reference(Case(), "equal steps")[:4]
    for version in range(3):
        it.begin(*BEGUN[version])
        values = it.weighed(it.contributions())
        present = [value for k, value in enumerate(values) if k not in GONE.get(version, set())]
        it.release(it.exact(present), len(present))
    it.begin(*begun)
    before = it.vector.astype(np.float64)
    after = it.release(it.exact(it.weighed(it.contributions())), DEVICES).vector
    task = problem(EXAMPLES, same=True)
    paper = buffer(models, begun, range(DEVICES), Server(), lambda k, x: local(task, k, x, RATE, 3))
    return after - before, paper - models[-1]


@pytest.mark.parametrize("begun", [0, 1, 2, 3])
def test_a_buffer_of_one_old_version_is_the_papers_too(begun: int) -> None:
    """tau is 0 for every device, and the server weighs the mean by s(lag)."""
    found, paper = lagging(*(begun,) * DEVICES)
    assert found == pytest.approx(paper, abs=1e-6)


def test_an_old_buffer_of_several_versions_counts_each_update_a_little_less() -> None:
    """s(tau) s(lag) <= s(tau + lag): with versions 0 and 1 on top of 3, sqrt(1/6) for sqrt(1/4)."""
    found, paper = lagging(0, 0, 0, 1, 1, 1)
    younger, _ = lagging(1, 1, 1, 1, 1, 1)
    assert 0.8 < np.linalg.norm(found) / np.linalg.norm(paper) < 1.0
    assert np.linalg.norm(younger) > 0


def distance_left(case: Case) -> float:
    """After 80 releases, over that before: equal devices, half of them three versions behind."""
    centre = problem(EXAMPLES).centres[0][0]
    same = Problem(problem(EXAMPLES).hessians, tuple(np.tile(centre, (n, 1)) for n in EXAMPLES))
    it = federation(case, "equal steps", same)
    for version in range(80):
        old = max(0, version - 3)
        it.begin(version, version, version, old, old, old)
        it.release(it.unmasked(it.weighed(it.contributions())), DEVICES)
    return float(np.linalg.norm(it.vector - centre) / np.linalg.norm(centre))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_learning_goes_on_to_the_optimum_of_equal_devices(case: Case) -> None:
    assert distance_left(case) < 0.05


def test_momentum_at_the_full_rate_does_not_stand_the_delay() -> None:
    """The paper's update, not a fault of ours: so CASES have a tenth of the rate."""
    assert distance_left(Case({"server_optimiser": "momentum"})) > 1
