"""Classic failures of federated learning, each shown first and then cured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from opacus.grad_sample import GradSampleHooks

from aggregator.algorithms import StepInput, server_step
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.examples import encode_example
from client_sdk.training.gradients import sequence_losses
from secagg.lora.forms import pairs, tensors_to_vector, vector_to_tensors
from secagg.lora.sketches import sketch
from secagg_cli.models.corpus import load_clients
from tests.kits.federations import Federation
from tests.kits.lora_forms import adapter as lora
from tests.kits.lora_forms import product, random_vector, task
from tests.kits.problems import balance, problem
from tests.kits.tiny_training import job, tiny, tiny_fingerprint, tiny_task, trainer

PAIRS = load_clients(6)[4].train[:20]


# -- objective inconsistency ------------------------------------------------------------------

UNEQUAL = {"local_epochs": 1, "batch_size": 2, "local_steps": 40, "local_learning_rate": 0.01}
EXAMPLES = (80, 4, 4)  # 40 steps, 2 and 2


def places(rate: float) -> dict[str, np.ndarray]:
    """Where x stays put, in closed form: sum of A_k (x - c_k) = 0 with A_k = I - (I - eta H_k)^tau.

    FedNova divides A_k by tau_k; both weights are those of uniform devices.
    """
    it = problem(EXAMPLES, same=True)
    eye = np.eye(it.length)
    steps = [min(40, n // 2) for n in EXAMPLES]
    drift = np.array(
        [
            eye - np.linalg.matrix_power(eye - rate * h, tau)
            for h, tau in zip(it.hessians, steps, strict=True)
        ]
    )
    per_step = drift / np.array(steps)[:, None, None]
    return {
        "fedavg": balance(drift, it.centres),
        "fednova": balance(per_step, it.centres),
        "optimum": it.optimum(np.ones(3)),
    }


def test_fedavg_with_unequal_steps_ends_at_the_optimum_of_another_objective() -> None:
    """Wang et al. 2020, theorem 1: it ends nearer the device that takes 40 of the 44 steps."""
    known = places(0.01)
    found = Federation(problem(EXAMPLES, same=True), "fedavg", UNEQUAL).run(120)
    assert found == pytest.approx(known["fedavg"], abs=1e-3)
    busy = problem(EXAMPLES, same=True).centres[0][0]
    away = np.linalg.norm(known["optimum"] - busy)
    assert np.linalg.norm(found - busy) < 0.35 * away
    assert np.linalg.norm(found - known["optimum"]) > 0.6 * away


def test_fednova_ends_at_the_optimum_up_to_its_local_drift() -> None:
    known = places(0.01)
    it = problem(EXAMPLES, same=True)
    found = Federation(it, "fednova", UNEQUAL).run(400)
    assert found == pytest.approx(known["fednova"], abs=2e-3)
    bent, cured = (np.linalg.norm(known[n] - known["optimum"]) for n in ("fedavg", "fednova"))
    assert cured < 0.15 * bent
    uniform = np.ones(3)
    least = it.loss(known["optimum"], uniform)
    assert it.loss(found, uniform) - least < 0.03 * (it.loss(known["fedavg"], uniform) - least)


def test_what_is_left_of_the_bend_vanishes_with_the_local_rate() -> None:
    """FedAvg's does not: it is of the steps' numbers, not of their size."""
    bent = {
        name: [
            np.linalg.norm(places(rate)[name] - places(rate)["optimum"]) for rate in (0.01, 0.001)
        ]
        for name in ("fedavg", "fednova")
    }
    assert bent["fednova"][1] < 0.15 * bent["fednova"][0]
    assert bent["fedavg"][1] > 0.9 * bent["fedavg"][0]


def test_normalising_after_the_clip_would_cut_the_busy_device_more() -> None:
    """Sensitivity is the clip either way, so the order is free; only one keeps the direction."""
    clip = 0.05
    it = Federation(
        problem(EXAMPLES, same=True),
        "fednova",
        UNEQUAL,
        device_noise_multiplier=3.0,
        update_clip=clip,
    )
    values = [v["delta"] for v in it.contributions()]
    steps = np.array([40, 2, 2])
    assert (np.linalg.norm(values, axis=1) < clip).all()  # per step: none is cut
    whole = np.array(values) * steps[:, None]
    norms = np.linalg.norm(whole, axis=1)
    assert norms[0] > 5 * clip
    after = whole * np.minimum(1, clip / norms)[:, None] / steps[:, None]
    assert np.linalg.norm(after[0]) < 0.2 * np.linalg.norm(values[0])


# -- a proximal term inside the loss ----------------------------------------------------------


def example_gradients(mu: float) -> tuple[np.ndarray, np.ndarray]:
    """(sum of Opacus' per-example gradients, torch's own gradient) of loss + mu/2 |y - x|^2."""
    manifest = tiny_task("none", "fedavg")
    model, tokenizer = tiny()
    adapted = AdaptedModel(model, manifest, tiny_fingerprint())
    adapted.load(np.full(adapted.vector_length, 0.02, np.float32))
    rows = [encode_example(tokenizer, example, 24) for example in PAIRS[:3]]
    adapted.model.train()
    hooks = GradSampleHooks(adapted.model, loss_reduction="sum", strict=True)
    try:
        loss = sequence_losses(adapted.model, rows, tokenizer.pad_token_id or 0).sum()
        away = sum((p**2).sum() for p in adapted.parameters)
        (loss + mu / 2 * away).backward()
        samples = [p.grad_sample.sum(0).flatten() for p in adapted.parameters]
        whole = [p.grad.flatten() for p in adapted.parameters]
    finally:
        hooks.cleanup()
    return torch.cat(samples).detach().numpy(), torch.cat(whole).detach().numpy()


def test_opacus_drops_a_proximal_term_inside_the_loss_without_a_word() -> None:
    free, pulled = example_gradients(0.0), example_gradients(10.0)
    assert np.abs(pulled[1] - free[1]).max() > 0.1  # torch sees it
    np.testing.assert_array_equal(pulled[0], free[0])  # what DP-SGD would clip does not


@pytest.mark.parametrize("privacy", ["none", "local"])
@pytest.mark.parametrize("algorithm", ["fedprox", "fednova"])
def test_our_proximal_term_survives_per_example_gradients(privacy: Any, algorithm: str) -> None:
    """Two steps with the same coins: y1 is the same, and y2 differs by -eta mu y1 exactly."""
    rate, mu = 0.5, 0.8

    def moved(steps: int, pull: float) -> np.ndarray:
        terms = {"local_steps": steps, "local_learning_rate": rate, "local_epochs": 0}
        manifest = tiny_task(
            privacy,
            algorithm if pull else "fedavg",
            training={**terms, "batch_size": 20, "proximal_mu": pull},
            sampling_rate=0.5,
        )
        values = trainer(PAIRS, seed=9).contribute(job(manifest))
        delta = values["delta"] / values.get("weight", 1.0)
        if pull and algorithm == "fednova":
            delta = delta * sum((1 - rate * pull) ** k for k in range(steps))
        return delta

    first, free, pulled = moved(1, 0.0), moved(2, 0.0), moved(2, mu)
    np.testing.assert_allclose(free - pulled, rate * mu * first, atol=2e-6)
    assert np.abs(first).max() > 1e-3


# -- the mean of two factors ------------------------------------------------------------------


def device(kind: str, seed: int, rank: int) -> np.ndarray:
    """A device's vector after training: random factors, of which only ``rank`` columns count."""
    shape = lora(kind)
    tensors = vector_to_tensors(shape, random_vector(shape, seed))
    for pair in pairs(shape):
        tensors[pair.b.name][:, rank:] = 0.0
    return tensors_to_vector(shape, tensors)


def sent(kind: str, vector: np.ndarray) -> np.ndarray:
    """What a device that started from zero sends: its factors, or sketches of their product."""
    shape = lora(kind)
    if kind == "lora":
        return vector.astype(np.float64)
    tensors = {k: v.astype(np.float64) for k, v in vector_to_tensors(shape, vector).items()}
    return np.concatenate(
        [sketch(shape, p, 0, tensors[p.b.name], tensors[p.a.name]) for p in pairs(shape)]
    )


def relative_error(kind: str) -> float:
    """Of the released product against the mean of the devices' products, worst layer."""
    vectors = [device(kind, 1, 1), device(kind, 2, 2)]
    sums = {
        "delta": sent(kind, vectors[0]) + sent(kind, vectors[1]),
        "weight": np.array([2.0]),
        "loss": np.zeros(1),
    }
    released = server_step(StepInput(task(kind), np.zeros_like(vectors[0]), {}, sums)).vector
    means = [
        np.mean(each, axis=0)
        for each in zip(*[product(lora(kind), v) for v in vectors], strict=True)
    ]
    return max(
        float(np.linalg.norm(found - mean) / np.linalg.norm(mean))
        for found, mean in zip(product(lora(kind), released), means, strict=True)
    )


def test_averaging_both_factors_is_not_averaging_their_product() -> None:
    """The mean of B times the mean of A misses most of it; the sketches give it exactly."""
    assert relative_error("lora") > 0.5
    assert relative_error("product") < 1e-5
