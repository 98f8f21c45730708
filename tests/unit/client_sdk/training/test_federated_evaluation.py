"""Federated evaluation: three bounded sums, no step."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from aggregator.algorithms import StepInput, server_step
from client_sdk.training.evaluation import evaluate
from dp.accounting.statements import headline, lines
from dp.contracts import TrainingSpec, check_manifest
from secagg.errors import ConfigurationError
from secagg_cli.models.corpus import load_clients
from tests.kits.tasks import built, spec
from tests.kits.tiny_training import job, summed, tiny, tiny_task, trainer

E = 32


def task(**changes):
    return tiny_task(
        "none", "evaluation", training={"weight_unit": E, "denominator": 0.0}, **changes
    )


def noisy():
    budget = msgspec.convert({"max_epsilon": 50.0, "releases_max": 1}, type=type(spec().budget))
    return task(device_noise_multiplier=0.8, budget=budget)


def test_the_sums_give_the_mean_over_all_devices_examples_and_the_model_stays():
    manifest = task()
    data = [client.train[:n] for client, n in zip(load_clients(3), (20, 7, 12), strict=True)]
    vector = np.linspace(-0.02, 0.02, len(job(manifest).vector)).astype(np.float32)
    devices = [trainer(rows, seed=i) for i, rows in enumerate(data)]
    values = [d.contribute(job(manifest, vector)) for d in devices]
    step = server_step(StepInput(manifest, vector, {}, summed(manifest, values), 0))
    assert np.array_equal(step.vector, vector)
    assert step.metrics["examples"] == pytest.approx(39, abs=1e-3)
    _, tokenizer = tiny()
    pooled = evaluate(devices[0].model, tokenizer, [row for rows in data for row in rows])
    assert step.metrics["loss"] == pytest.approx(pooled, rel=1e-4)
    assert 0 <= step.metrics["accuracy"] < 1


def test_a_device_with_more_examples_than_the_bound_says_no_more_than_the_bound():
    manifest = task()
    rows = load_clients(1)[0].train
    assert len(rows) > E
    values = trainer(rows).contribute(job(manifest))
    assert values["count"] == 1.0
    assert 0 < values["loss"][0] <= manifest.segments[0].clip


def test_accuracy_counts_answer_tokens_that_are_predicted_right():
    from client_sdk.training.examples import encode_example
    from client_sdk.training.gradients import scores, sequence_losses

    model, tokenizer = tiny()
    row = encode_example(tokenizer, ("hello", "good day to you"), 64)
    losses, shares = scores(model, [row], 0)
    logits = model(input_ids=np_tokens(row.tokens), use_cache=False).logits[0]
    counted = [t for t in range(1, len(row.tokens)) if row.counts[t]]
    right = [int(logits[t - 1].argmax()) == row.tokens[t] for t in counted]
    assert float(shares[0]) == pytest.approx(np.mean(right))
    assert float(losses[0]) == pytest.approx(float(sequence_losses(model, [row], 0)[0]))


def np_tokens(tokens):
    import torch

    return torch.tensor([tokens])


def test_with_device_privacy_every_segment_is_clipped_noised_and_accounted():
    manifest = noisy()
    assert manifest.noise.share_variance > 0
    assert headline(lines(manifest, 1)) > 0
    clips = [segment.clip for segment in manifest.segments]
    assert manifest.device_privacy.clip == pytest.approx(np.sqrt(np.sum(np.square(clips))))
    values = {name: np.array([v]) for name, v in (("loss", 3.0), ("accuracy", 0.5), ("count", 1.0))}
    sums = [summed(manifest, [values] * 6, seed=s)["count"][0] for s in range(40)]
    assert np.std(sums) > 0.1


def test_a_noised_count_that_is_not_positive_gives_no_ratio():
    manifest = task()
    sums = {"loss": np.array([3.0]), "accuracy": np.array([0.1]), "count": np.array([-0.2])}
    step = server_step(StepInput(manifest, job(manifest).vector, {}, sums, 0))
    assert set(step.metrics) == {"examples"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"privacy": "local"}, "privacy-mode"),
        ({"privacy": "distributed"}, "privacy-mode"),
        ({"training": TrainingSpec(weight_unit=0)}, "parameter-out-of-range"),
    ],
)
def test_wrong_combinations_are_refused(changes, reason):
    with pytest.raises(ConfigurationError) as refused:
        built(spec(algorithm="evaluation", **{"training": TrainingSpec(weight_unit=5), **changes}))
    assert refused.value.reason == reason


def test_the_devices_veto_knows_the_bounds():
    manifest = noisy()
    wide = msgspec.structs.replace(
        manifest.segments[2], clip=2.0, clip_units=manifest.segments[2].clip_units * 2
    )
    with pytest.raises(ConfigurationError) as refused:
        check_manifest(msgspec.structs.replace(manifest, segments=(*manifest.segments[:2], wide)))
    assert refused.value.reason in ("clip-mismatch", "clip-units-wrong")
