"""A batch is taken apart into passes; steps and noise are those that are accounted."""

from __future__ import annotations

import numpy as np
import pytest

from client_sdk.training.algorithms import steps
from dp.accounting.statements import ADJACENCY, lines, local_step
from dp.contracts import BudgetSpec
from secagg_cli.models.corpus import load_clients
from tests.kits.tiny_training import NEVER, job, tiny_task, trainer

NO_LIMIT = BudgetSpec(max_epsilon=None)
PAIRS = load_clients(6)[4].train[:10]


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 32])
def test_the_sum_of_a_batch_does_not_depend_on_how_it_is_taken_apart(micro_batch: int) -> None:
    """Accumulation: sums of micro-batches, each example clipped alone; no mean of any."""
    manifest = tiny_task(sampling_rate=1.0, training={"micro_batch": 32})
    whole = trainer(PAIRS, micro_batch=len(PAIRS)).contribute(job(manifest))["gradient"]
    parts = trainer(PAIRS, micro_batch=micro_batch).contribute(job(manifest))["gradient"]
    assert np.abs(whole).max() > 100
    assert np.abs(whole - parts).max() <= 3  # a float's last bit may turn a coin of the rounding


@pytest.mark.parametrize("rate", [NEVER, 0.4, 1.0])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_noise_is_added_once_a_step_and_steps_are_those_that_are_accounted(
    monkeypatch: pytest.MonkeyPatch, rate: float, micro_batch: int
) -> None:
    """However a batch is taken apart, and if it is empty."""
    manifest = tiny_task(
        "local",
        sampling_rate=rate,
        budget=NO_LIMIT,
        training={"local_steps": 3, "micro_batch": micro_batch},
    )
    drawn = []
    noisy_total = steps.noisy_total
    monkeypatch.setattr(
        steps, "noisy_total", lambda *given: drawn.append(given) or noisy_total(*given)
    )
    trainer(PAIRS[:5], micro_batch=micro_batch).contribute(job(manifest))
    assert len(drawn) == 3
    accounted = lines(manifest, 1)[0].epsilon
    one_step = tiny_task("local", sampling_rate=rate, budget=NO_LIMIT, training={"local_steps": 1})
    assert accounted == lines(one_step, 3)[0].epsilon
    assert local_step(manifest).adjacency == ADJACENCY["example"]
