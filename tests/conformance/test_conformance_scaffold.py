"""SCAFFOLD against the paper's algorithm, through the real masks and the devices' real journals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secagg.simulation import Drop
from tests.kits import quadratics
from tests.kits.conformance_scaffold import CASES, DEVICES, EXAMPLES, Case
from tests.kits.federations import Federation
from tests.kits.problems import Problem, problem
from tests.kits.references import scaffold
from tests.kits.stateful import Controlled

RATE, STEPS, RELEASES = 0.1, 3, 5
LOST = {1: {0: Drop.ANNOUNCE}, 2: {3: Drop.UPLOAD, 4: Drop.SHARE}}  # by release


def federation(case: Case, folder: Path, **changes: Any) -> Controlled:
    terms = {
        "local_learning_rate": RATE,
        "local_steps": STEPS,
        "population": case.population,
        **case.training,
    }
    return Controlled(problem(EXAMPLES, same=True), folder, terms, survivors_min=4, **changes)


def reference(case: Case) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """x, c and all c_k after each release."""
    task, found = problem(EXAMPLES, same=True), []
    x, c, own = np.zeros(task.length), np.zeros(task.length), np.zeros((DEVICES, task.length))
    for version in range(RELEASES):
        present = [k for k in range(DEVICES) if k not in LOST.get(version, {})]
        x, c, own = scaffold(task, x, c, own, present, RATE, STEPS, case.population, **case.server)
        found.append((x, c, own))
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_through_the_masks_it_is_the_papers_algorithm(case: Case, tmp_path: Path) -> None:
    """Unequal data, which count alike; drop-outs at three steps. Each sum is off by less than a
    unit per device, so x by a unit or two, and c and the c_k by that over K eta."""
    it = federation(case, tmp_path)
    unit = 1 / it.manifest.segments[0].scale
    assert unit < 1e-4
    for version, (x, c, own) in enumerate(reference(case)):
        before, values = it.all_own(), it.contributions()
        sums, survivors = it.masked(values, LOST.get(version))
        lost = sorted(LOST.get(version, {}))
        assert set(survivors) == set(range(DEVICES)) - set(lost)
        exact = it.exact([values[k] for k in survivors])
        for segment in it.manifest.segments:
            error = np.abs(sums[segment.name] - exact[segment.name]) * segment.scale
            assert error.max() < len(survivors), segment.name
        it.release(sums, len(survivors))
        np.testing.assert_array_equal(it.all_own(), before)  # nothing moves before the receipt
        it.receipts(survivors)
        np.testing.assert_array_equal(it.all_own()[lost], before[lost])
        steps = version + 1
        assert it.vector == pytest.approx(x, abs=2 * steps * unit)
        assert it.control == pytest.approx(c, abs=3 * steps * unit / (STEPS * RATE))
        assert it.all_own() == pytest.approx(own, abs=3 * steps * unit / (STEPS * RATE))


@pytest.mark.parametrize("changes", [{}, {"update_clip": 0.2}, {"privacy": "local"}], ids=str)
def test_the_servers_control_is_the_mean_of_what_the_devices_keep(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Even where the clip cuts what is sent, or devices add noise: both go by the sent vector."""
    it = federation(Case({"batch_size": 5}, population=9), tmp_path, **changes)
    for present in [range(6), (0, 1, 3, 5), (1, 2, 3, 4), range(5)]:
        it.advance(tuple(present))
        mean = it.all_own().sum(0) / 9  # the others have zero
        np.testing.assert_allclose(it.control, mean, atol=1e-6)
    assert np.abs(it.control).max() > 0.01


# -- client drift, and its cure ---------------------------------------------------------------


def drifting() -> Problem:
    """Four devices with other curvatures and minima, so that eight local steps drift far."""
    hessians = np.array([np.diag(row) for row in quadratics.CURVATURES])
    return Problem(hessians, tuple(np.tile(row, (3, 1)) for row in quadratics.MINIMA))


DRIFT = {"local_steps": quadratics.STEPS, "local_learning_rate": quadratics.RATE}


def test_fedavg_drifts_and_scaffold_does_not(tmp_path: Path) -> None:
    fedavg = Federation(drifting(), "fedavg", DRIFT)
    it = Controlled(drifting(), tmp_path, {**DRIFT, "population": 4})
    optimum = drifting().optimum(np.ones(4))
    assert optimum == pytest.approx(quadratics.OPTIMUM)
    found, ends = fedavg.run(40), quadratics.fixed_point_of_fedavg()
    assert found == pytest.approx(ends, abs=1e-4)  # in closed form
    assert np.abs(ends - optimum).max() == pytest.approx(0.667, abs=5e-4)
    away = []
    for _ in range(16):
        it.advance(range(4))
        away.append(np.abs(it.vector - optimum).max())
    assert away[6] < 0.015
    assert away[15] < 2e-4


def test_devices_that_come_and_go_reach_the_same_optimum(tmp_path: Path) -> None:
    """With another three of four in each release; the absent one's old c_k stays in c."""
    it = Controlled(drifting(), tmp_path, {**DRIFT, "population": 4}, survivors_min=3)
    for version in range(48):
        it.advance([k for k in range(4) if k != version % 4])
    assert it.vector == pytest.approx(quadratics.OPTIMUM, abs=5e-3)


def test_equal_devices_reach_their_optimum(tmp_path: Path) -> None:
    centre = np.linspace(-1, 1, 6)
    same = Problem(problem(EXAMPLES).hessians, tuple(np.tile(centre, (n, 1)) for n in EXAMPLES))
    it = Controlled(same, tmp_path, {"local_learning_rate": RATE, "population": DEVICES})
    for _ in range(30):
        it.advance(range(DEVICES))
    assert np.linalg.norm(it.vector - centre) < 0.05 * np.linalg.norm(centre)


def test_noise_in_the_ring_would_stay_in_the_control_for_good() -> None:
    """Why device-level noise is refused: c - mean(c_k) is a random walk, and x follows it."""
    task, noise = drifting(), np.random.default_rng(1).normal(size=(400, 6)) * 0.05
    x, c, own = np.zeros(6), np.zeros(6), np.zeros((4, 6))
    walked = np.zeros(6)
    for drawn in noise:
        moved, c, own = scaffold(
            task, x, c, own, range(4), quadratics.RATE, quadratics.STEPS, population=4
        )
        # The server derives the sum of changes from the sum of vectors, and that is off.
        shift = -drawn / (quadratics.STEPS * quadratics.RATE * 4)
        x, c = moved + drawn / 4, c + shift
        walked += shift
        np.testing.assert_allclose(c - own.mean(0), walked, atol=1e-9)
    assert np.abs(walked).max() > 0.1
