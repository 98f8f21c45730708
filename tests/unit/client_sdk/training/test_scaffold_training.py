"""SCAFFOLD's device half with the real trainer: where the control variates enter."""

from __future__ import annotations

import numpy as np
import pytest

from client_sdk.errors import ContributionError
from dp.contracts import BudgetSpec
from secagg_cli.models.corpus import load_clients
from secagg_cli.models.presets import Privacy
from tests.kits.tiny_training import job, tiny_task, trainer

PAIRS = load_clients(1)[0].train[:12]
RATE = 0.5


def task(privacy: Privacy, steps: int = 1):
    terms = {
        "local_steps": steps,
        "local_learning_rate": RATE,
        "population": 6,
        "denominator": 0.0,
    }
    budget = BudgetSpec(max_epsilon=None, releases_max=1)
    return tiny_task(privacy, "scaffold", training=terms, budget=budget)


@pytest.mark.parametrize("privacy", ["none", "local"])
def test_the_correction_is_added_after_clip_and_noise(privacy: Privacy) -> None:
    """One step with the same coins: its change is -eta times the correction, unclipped."""
    manifest = task(privacy)
    length = manifest.segments[0].length
    correction = 10.0 * np.sin(np.arange(length))  # far beyond the example's clip
    zero = np.zeros(length)
    plain, moved = (
        trainer(PAIRS, seed=3).contribute(job(manifest, correction=value))
        for value in (zero, correction)
    )
    assert np.abs(plain["delta"]).max() > 0
    np.testing.assert_allclose(moved["delta"] - plain["delta"], -RATE * correction, atol=1e-5)
    assert set(plain) == {segment.name for segment in manifest.segments}


def test_the_gradient_that_is_learned_is_the_mean_over_the_steps() -> None:
    """Option II: c_k+ = c_k - c - delta / (K eta); with c = c_k = 0 the mean of the gradients."""
    manifest = task("none", steps=3)
    zero = np.zeros(manifest.segments[0].length)
    first = trainer(PAIRS, seed=3).contribute(job(manifest, correction=zero))["delta"]
    learned = -first / (3 * RATE)
    second = trainer(PAIRS, seed=3).contribute(job(manifest, correction=-learned))["delta"]
    assert np.linalg.norm(second) < 0.5 * np.linalg.norm(first)  # c - c_k takes the drift out


def test_without_control_variates_it_is_refused_not_fedavg() -> None:
    with pytest.raises(ContributionError) as refused:
        trainer(PAIRS).contribute(job(task("none")))
    assert refused.value.reason == "control-missing"
