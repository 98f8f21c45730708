"""No algorithm without its cases: each one, under each privacy mode that its declaration admits."""

from __future__ import annotations

from typing import Any

import pytest

from dp.contracts import ALGORITHMS, SegmentSpec
from secagg.errors import ConfigurationError
from tests.kits import (
    conformance_averaging,
    conformance_buffer,
    conformance_local_noise,
    conformance_noise,
    conformance_scaffold,
    conformance_sums,
)
from tests.kits.federations import Federation
from tests.kits.problems import problem

MODES: dict[str, dict[str, Any]] = {
    "none": {},
    "local": conformance_local_noise.LOCAL,
    "distributed": conformance_noise.FEDSGD,
    "device": conformance_noise.DEVICE,
}
TERMS: dict[str, dict[str, Any]] = {  # without which a declaration refuses for another reason
    "evaluation": {"local_steps": 1, "weight_unit": 6},
    "fedprox": {"proximal_mu": 0.5},
    "fedsgd": {"local_steps": 1},
    "scaffold": {"population": 6},
    "zeroth-order": {"local_steps": 1, "directions": 8},
}
REASONS = {"privacy-mode", "control-with-device-noise"}


def noisy(mode: str) -> set[str]:
    tasks = [*conformance_noise.TASKS, *conformance_noise.SHORT]
    example = "distributed" if mode == "distributed" else None
    return {name for name, _, changes in tasks if changes.get("privacy") == example}


def covered(mode: str) -> set[str]:
    """Algorithms with cases: references, masks and optimum without noise, else known noise."""
    if mode == "none":
        plain = [*conformance_averaging.CASES, *conformance_sums.CASES]
        found = {case.algorithm for case in plain if "privacy" not in getattr(case, "changes", {})}
        return found | {conformance_buffer.ALGORITHM, conformance_scaffold.ALGORITHM}
    if mode == "local":
        return {case.algorithm for case in conformance_local_noise.CASES}
    return noisy(mode)


def admits(algorithm: str, mode: str) -> bool:
    changes = dict(MODES[mode])
    if algorithm == "sum":
        changes["segments"] = (SegmentSpec("counts", 5, 9.0),)
    try:
        Federation(problem((3,) * 6), algorithm, TERMS.get(algorithm, {}), **changes)
    except ConfigurationError as error:
        if error.reason not in REASONS:
            raise
        return False
    return True


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_the_suite_covers_every_algorithm_in_every_mode_that_it_admits(
    algorithm: str, mode: str
) -> None:
    assert (algorithm in covered(mode)) == admits(algorithm, mode)


def test_the_suite_compares_every_algorithm_with_a_reference() -> None:
    """Also those that admit no task without noise: there, the exact sum is what is compared."""
    sums = {case.algorithm for case in conformance_sums.CASES}
    assert covered("none") | sums == set(ALGORITHMS)
