"""The documented example of a new algorithm, executed from the page and held to a reference."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.algorithms import DIRECTIONS
from client_sdk.training.algorithms import ALGORITHMS as DEVICE_HALVES
from dp.contracts import ALGORITHMS
from secagg.errors import ConfigurationError
from tests.kits.federations import Federation
from tests.kits.problems import problem
from tests.kits.references import local

PAGE = Path(__file__).resolve().parents[2] / "docs" / "algorithms.md"
EXAMPLES = (3, 3, 3, 3)


@pytest.fixture
def fedexp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three blocks of the page, each as a module, and the three lines that it speaks of."""
    section = PAGE.read_text().split("## A new algorithm")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        module: dict[str, Any] = {"__name__": "example"}
        exec(compile(block, str(PAGE), "exec"), module)  # noqa: S102  our own documentation
        names |= module
    monkeypatch.setitem(ALGORITHMS, "fedexp", names["FedExP"]())
    monkeypatch.setitem(DEVICE_HALVES, "fedexp", names["contribute"])
    monkeypatch.setitem(DIRECTIONS, "fedexp", names["extrapolated"])


def reference(releases: int) -> np.ndarray:
    task = problem(EXAMPLES, same=True, seed=3)
    x = np.zeros(task.length)
    for _ in range(releases):
        moved = [local(task, k, x, 0.1, 3) for k in range(4)]
        mean = np.mean(moved, axis=0)
        squares = sum(float(d @ d) for d in moved)
        x = x + max(1.0, squares / (2 * 4 * (float(mean @ mean) + 1e-3))) * mean
    return x


@pytest.mark.usefixtures("fedexp")
def test_the_documented_algorithm_runs_through_the_masks_and_is_its_reference() -> None:
    it = Federation(problem(EXAMPLES, same=True, seed=3), "fedexp")
    longest = 0.0
    for _ in range(4):
        sums, survivors = it.masked(it.contributions())
        it.release(sums, len(survivors))
        longest = max(longest, it.metrics["extrapolation"])
    assert it.vector == pytest.approx(reference(4), abs=3e-3)
    assert longest > 1.2  # it is not FedAvg


@pytest.mark.usefixtures("fedexp")
@pytest.mark.parametrize(
    ("training", "changes", "reason"),
    [
        ({}, {"device_noise_multiplier": 3.0}, "privacy-mode"),
        ({}, {"privacy": "local"}, "privacy-mode"),
        ({}, {"privacy": "distributed"}, "privacy-mode"),
        ({"weight_unit": 2}, {}, "weights-with-squares"),
        ({"proximal_mu": 0.1, "local_optimiser": "adam"}, {}, "proximal-term-lost"),
    ],
)
def test_its_declaration_refuses_what_the_page_says(
    training: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Federation(problem(EXAMPLES, same=True), "fedexp", training, **changes)
    assert refused.value.reason == reason


def test_without_its_three_lines_there_is_no_such_algorithm() -> None:
    with pytest.raises(ConfigurationError) as refused:
        Federation(problem(EXAMPLES), "fedexp")
    assert refused.value.reason == "algorithm-unknown"
