"""What times show, and what each line's words about time are worth (docs/privacy.md, "Time")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_sdk.contribution import TrainingJob, zero_contribution
from client_sdk.errors import ContributionError
from client_sdk.rounds.contributing import Training
from dp.accounting.statements import lines
from dp.contracts import BudgetSpec
from secagg.manifest import Manifest
from tests.kits.contributing import OPENED, Runs, Setting, checkin_of
from tests.kits.tasks import built

NO_LIMIT = BudgetSpec(max_epsilon=None)
EACH_S = 2.5  # work of one example
SLOT_S = 60.0


def hockey_stick(p: list[float], q: list[float], epsilon: float) -> float:
    return math.fsum(max(a - math.exp(epsilon) * b, 0.0) for a, b in zip(p, q, strict=True))


def epsilon_of_a_seen_size(examples: int, rate: float, delta: float) -> float:
    """Exact, for one batch of ``examples`` or one more, by bisection."""

    def law(n: int) -> list[float]:
        most = range(examples + 2)
        return [math.comb(n, k) * rate**k * (1 - rate) ** (n - k) if k <= n else 0 for k in most]

    with_it, without = law(examples + 1), law(examples)
    low, high = 0.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        worst = max(hockey_stick(a, b, middle) for a, b in ((with_it, without), (without, with_it)))
        low, high = (low, middle) if worst <= delta else (middle, high)
    return math.inf if high > 59 else high


@pytest.mark.parametrize(("examples", "epsilon"), [(6, math.inf), (24, 0.61), (96, 0.23)])
def test_the_size_of_a_batch_costs_what_the_page_says(examples: int, epsilon: float) -> None:
    assert epsilon_of_a_seen_size(examples, 0.25, 1e-5) == pytest.approx(epsilon, abs=0.01)


def task(kind: str, slot_s: float) -> Manifest:
    terms: dict[str, Any] = {
        "local": {"algorithm": "fedavg"},
        "device-level": {"algorithm": "fedavg", "privacy": "none", "device_noise_multiplier": 2.0},
        "distributed": {},
    }[kind]
    return built(report_slot_s=slot_s, budget=NO_LIMIT, **terms)


async def report(folder: Path, manifest: Manifest, examples: int) -> tuple[float, float] | None:
    """When a device that knows its batch reports in, and the norm of what it sends.

    None: it does not report, which is seen.
    """
    setting = Setting(folder)

    def work(job: TrainingJob) -> Mapping[str, np.ndarray]:
        setting.clock.now += EACH_S * examples
        if job.deadline_s is not None and setting.clock.now - OPENED > job.deadline_s:
            raise TimeoutError("late")
        values = zero_contribution(job.manifest)
        next(iter(values.values()))[:examples] = 1
        return values

    runs = Runs(work)
    runs.adds_local_noise = True  # type: ignore[attr-defined]
    try:
        contribution = await Training(setting.device, runs).contribution(checkin_of(manifest))
    except ContributionError:
        return None
    vector = np.concatenate([value.astype(float) for value in contribution.values().values()])
    return setting.clock.now, float(np.abs(vector).sum())


def headline_of(manifest: Manifest) -> str:
    return lines(manifest, 1)[0].adversary


@pytest.mark.parametrize("kind", ["local", "device-level", "distributed"])
async def test_without_slots_the_time_tells_neighbours_apart_and_the_line_says_so(
    tmp_path: Path, kind: str
) -> None:
    """All coins known, one example more: no noise in the sum would hide it."""
    manifest = task(kind, 0.0)
    without, with_it = [await report(tmp_path / str(n), manifest, n) for n in (8, 9)]
    assert without is not None
    assert with_it is not None
    assert with_it[0] - without[0] == EACH_S
    assert "if time does not show" in headline_of(manifest)


@pytest.mark.parametrize("kind", ["local", "device-level", "distributed"])
async def test_with_slots_it_does_not_as_far_as_both_fit(tmp_path: Path, kind: str) -> None:
    manifest = task(kind, SLOT_S)
    found = [await report(tmp_path / str(n), manifest, n) for n in (0, 8, 9, 23)]
    assert {None if seen is None else seen[0] for seen in found} == {OPENED + SLOT_S}
    assert "if time does not show" not in headline_of(manifest)


async def test_one_example_more_that_does_not_fit_takes_the_whole_batch_out(
    tmp_path: Path,
) -> None:
    """Why a distributed line with slots assumes that it fits; the time shows nothing of it."""
    manifest = task("distributed", SLOT_S)
    without, with_it = [await report(tmp_path / str(n), manifest, n) for n in (23, 24)]
    assert without == (OPENED + SLOT_S, 23.0)
    assert with_it == (OPENED + SLOT_S, 0.0)
    assert headline_of(manifest).endswith("if one example more fits the slot")


async def test_with_local_noise_it_makes_the_device_stay_away(tmp_path: Path) -> None:
    manifest = task("local", SLOT_S)
    assert await report(tmp_path / "23", manifest, 23) is not None
    assert await report(tmp_path / "24", manifest, 24) is None
    assert headline_of(manifest).endswith("if one example more fits the slot")


async def test_a_device_that_does_not_fit_becomes_its_own_neighbour(tmp_path: Path) -> None:
    """Zero-out: zeros and noise, at the same time. So a device-level line rests on no fit."""
    manifest = task("device-level", SLOT_S)
    late = await report(tmp_path / "late", manifest, 24)
    none = await report(tmp_path / "none", manifest, 0)
    assert late == none == (OPENED + SLOT_S, 0.0)
    assert "fits" not in headline_of(manifest)
