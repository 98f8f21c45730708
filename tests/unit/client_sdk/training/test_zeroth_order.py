"""Zeroth order in the adapter's space: K slopes, no gradient."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from aggregator.algorithms import StepInput, server_step
from client_sdk.training.evaluation import evaluate
from dp.accounting.statements import headline, lines
from dp.contracts import TrainingSpec
from dp.example_sum import ExampleSum
from secagg.errors import ConfigurationError
from secagg.lora.directions import direction
from secagg_cli.models.corpus import load_clients
from tests.kits.tasks import built, seeded, spec
from tests.kits.tiny_training import job, summed, tiny, tiny_task, trainer

K = 16


def task(privacy="none", **changes):
    terms = {"local_steps": 1, "server_learning_rate": 0.25, "denominator": 0.0, "batch_size": 24}
    return tiny_task(
        privacy,
        "zeroth-order",
        training={**terms, "directions": K, **changes.pop("training", {})},
        **changes,
    )


def test_directions_are_the_same_bits_everywhere():
    found = direction(bytes(range(32)), 3, 7, 64)
    assert found.dtype == np.float32
    assert set(found.tolist()) == {-1.0, 1.0}
    assert np.packbits(found > 0, bitorder="little").tobytes().hex() == "8c69412254305807"


def test_directions_of_other_numbers_and_versions_are_other_ones():
    made = [direction(bytes(32), v, n, 4096) for v in (0, 1) for n in (0, 1)]
    gram = np.array([[a @ b / 4096 for b in made] for a in made])
    assert np.abs(gram - np.eye(4)).max() < 0.08  # five standard deviations


def test_the_servers_direction_is_the_projected_gradient_of_a_quadratic():
    """L = |x - t|^2 / 2 has slopes (x - t) z exactly; their mean over many z is the gradient."""
    manifest = task(training={"directions": 1500})
    length = len(job(manifest).vector)
    target = np.zeros(length)
    target[:5] = (3, -2, 1, 4, -5)
    seed = manifest.adapter.seed
    slopes = np.array([-target @ direction(seed, 0, n, length) for n in range(1500)])
    sums = {"gradient": slopes, "weight": np.ones(1), "loss": np.zeros(1)}
    after = server_step(StepInput(manifest, np.zeros(length, np.float32), {}, sums, 0))
    np.testing.assert_allclose(after.vector[:5], 0.25 * target[:5], atol=0.25)
    exact = sum(-s * direction(seed, 0, n, length) for n, s in enumerate(slopes)) / 1500
    np.testing.assert_allclose(after.vector, 0.25 * exact, atol=1e-5)


def test_slopes_are_those_of_the_gradient():
    """Central differences against the directional derivative of the same batch."""
    manifest = task(training={"perturbation": 0.002, "batch_size": 64})
    rows = load_clients(1)[0].train[:12]
    device = trainer(rows)
    vector = np.full_like(job(manifest).vector, 0.02)
    values = device.contribute(job(manifest, vector, version=5))
    reference = tiny_task(
        "none", "fedavg", training={"local_steps": 1, "local_learning_rate": 1.0, "batch_size": 64}
    )
    delta = trainer(rows).contribute(job(reference, vector))["delta"]
    seed, length = manifest.adapter.seed, len(vector)
    expected = [-delta @ direction(seed, 5, n, length) for n in range(K)]
    np.testing.assert_allclose(values["gradient"], expected, rtol=0.05, atol=0.02)


def test_it_trains_without_a_backward_pass(monkeypatch):
    def backward(*args, **kwargs):
        raise AssertionError("a gradient was asked for")

    data = load_clients(2)
    manifest = task(training={"directions": 32, "server_learning_rate": 0.1})
    devices = [trainer(c.train[:24], seed=i) for i, c in enumerate(data)]
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch.autograd, "grad", backward)
    vector = job(manifest).vector
    for version in range(6):
        values = [d.contribute(job(manifest, vector, version=version)) for d in devices]
        vector = server_step(
            StepInput(manifest, vector, {}, summed(manifest, values, version), version)
        ).vector
    base, tokenizer = tiny()
    examples = [pair for client in data for pair in client.train[:24]]
    before = evaluate(base, tokenizer, examples)
    devices[0].contribute(job(manifest, vector))  # loads it
    assert evaluate(devices[0].model, tokenizer, examples) < before - 0.05


def test_noise_and_account_are_of_k_dimensions_and_examples_are_clipped():
    manifest = task("distributed")
    assert manifest.data_length == K
    assert manifest.example_privacy.clip == manifest.segments[0].clip
    assert headline(lines(manifest, 1)) > 0
    total = trainer(load_clients(1)[0].train[:16]).contribute(job(manifest))["gradient"]
    assert total.dtype == np.int64
    assert total.shape == (K,)
    one = ExampleSum(manifest, seeded(1))
    one.add(np.full(K, 1e6))
    assert np.sum(one.total.astype(float) ** 2) <= manifest.segments[0].clip_units ** 2


def test_device_privacy_clips_the_mean():
    manifest = task(
        "none",
        device_noise_multiplier=1.0,
        update_clip=2.0,
        budget=msgspec.convert({"max_epsilon": 50.0, "releases_max": 1}, type=type(spec().budget)),
    )
    assert [s.name for s in manifest.segments] == ["gradient"]
    assert manifest.device_privacy.clip == manifest.segments[0].clip == 2.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"privacy": "local"}, "privacy-mode"),
        ({"training": TrainingSpec(directions=0)}, "parameter-out-of-range"),
        ({"training": TrainingSpec(perturbation=0.0)}, "parameter-out-of-range"),
        ({"training": TrainingSpec(proximal_mu=0.1)}, "local-steps"),
        (
            {"training": TrainingSpec(server_optimiser="momentum", server_momentum=0.9)},
            "moments-of-directions",
        ),
        ({"training": TrainingSpec(weight_unit=5)}, "weights-with-noise"),
    ],
)
def test_wrong_combinations_are_refused(changes, reason):
    with pytest.raises(ConfigurationError) as refused:
        built(spec(algorithm="zeroth-order", **changes))
    assert refused.value.reason == reason
