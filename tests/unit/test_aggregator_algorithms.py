"""Server halves against the papers' equations, by hand."""

import msgspec
import numpy as np
import pytest

from aggregator.algorithms import _DIRECTIONS, server_step
from dp.contracts import ALGORITHMS, build_manifest
from dp.notes import verifier_key
from secagg.errors import ConfigurationError, SecaggError
from secagg.manifest import Manifest, Segment, Training
from tests.service_kit import spec


def manifest(algorithm: str, segments: dict[str, int], **training) -> Manifest:
    base = build_manifest(
        spec(),
        created_at=0,
        task_key=bytes(32),
        ledger_verifier=verifier_key("test", bytes(32)),
        partner_keys=[bytes(32)],
    )
    terms = {
        "local_steps": 1,
        "local_learning_rate": 1.0,
        "batch_size": 8,
        "proximal_mu": 0.0,
        "server_optimiser": "sgd",
        "server_learning_rate": 1.0,
        "server_momentum": 0.0,
        "weight_unit": 0,
        "denominator": 0.0,
        "max_tokens": 8,
        "micro_batch": 1,
    }
    return msgspec.structs.replace(
        base,
        algorithm=algorithm,
        segments=tuple(Segment(n, d, 1.0, 1, 1) for n, d in segments.items()),
        training=None if algorithm == "sum" else Training(**{**terms, **training}),
    )


def step(task, vector, sums, optimiser=None):
    arrays = {name: np.asarray(value, float) for name, value in sums.items()}
    return server_step(task, np.asarray(vector, np.float32), optimiser or {}, arrays)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox"])
def test_fedavg_moves_by_the_weighted_mean_of_the_deltas(algorithm):
    """x + eta * sum(w delta) / sum(w)."""
    task = manifest(algorithm, {"delta": 3, "weight": 1, "loss": 1}, server_learning_rate=0.5)
    result = step(task, [1, 1, 1], {"delta": [2, 4, -6], "weight": [2], "loss": [5]})
    assert result.vector.tolist() == [1.5, 2, -0.5]
    assert result.vector.dtype == np.float32
    assert result.metrics == {"weight": 2.0, "loss": 2.5}
    assert result.optimiser == {}


def test_fedavg_divides_by_the_public_constant_when_there_is_one():
    task = manifest("fedavg", {"delta": 3}, denominator=4.0)
    assert step(task, [0, 0, 0], {"delta": [4, 8, 0]}).vector.tolist() == [1, 2, 0]


def test_fedavg_without_any_weight_is_refused_not_divided_by_zero():
    task = manifest("fedavg", {"delta": 3, "weight": 1, "loss": 1})
    with pytest.raises(SecaggError) as refused:
        step(task, [0, 0, 0], {"delta": [1, 1, 1], "weight": [0], "loss": [0]})
    assert refused.value.reason == "weights-empty"


def test_fedsgd_descends_along_the_sum_over_the_public_number_of_examples():
    task = manifest("fedsgd", {"gradient": 3}, denominator=8.0, server_learning_rate=2.0)
    assert step(task, [1, 1, 1], {"gradient": [4, -8, 0]}).vector.tolist() == [0, 3, 1]


def test_momentum_is_carried_from_release_to_release():
    """v = beta v + g; x += eta v: two equal steps move by eta * (1 + (1 + beta)) * g."""
    task = manifest(
        "fedsgd",
        {"gradient": 3},
        denominator=1.0,
        server_optimiser="momentum",
        server_momentum=0.5,
        server_learning_rate=0.1,
    )
    first = step(task, [0, 0, 0], {"gradient": [-10, 0, 10]})
    assert first.optimiser["momentum"].tolist() == [10, 0, -10]
    second = step(task, first.vector, {"gradient": [-10, 0, 10]}, first.optimiser)
    assert second.vector == pytest.approx([2.5, 0, -2.5])


def test_a_statistic_is_its_sums_in_the_manifests_order():
    task = manifest("sum", {"b": 1, "a": 2})
    assert step(task, [9, 9, 9], {"a": [1, 2], "b": [7]}).vector.tolist() == [7, 1, 2]


def test_a_step_that_would_destroy_the_model_is_refused():
    task = manifest("fedsgd", {"gradient": 3}, denominator=1e-30, server_learning_rate=1e9)
    with pytest.raises(SecaggError) as refused:
        step(task, [0, 0, 0], {"gradient": [1e9, 0, 0]})
    assert refused.value.reason == "update-not-finite"


def test_an_algorithm_without_a_server_half_is_refused_by_name():
    with pytest.raises(ConfigurationError) as refused:
        step(manifest("scaffold", {"delta": 3}), [0, 0, 0], {"delta": [0, 0, 0]})
    assert refused.value.reason == "algorithm-unknown"
    assert "fedsgd" in refused.value.expected


def test_every_algorithm_that_a_task_may_name_has_a_server_half():
    assert set(ALGORITHMS) == {"sum", "evaluation", "zeroth-order", *_DIRECTIONS}
