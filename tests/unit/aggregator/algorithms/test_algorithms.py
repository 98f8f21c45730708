"""Server halves against the papers' equations, by hand."""

import msgspec
import numpy as np
import pytest

from aggregator.algorithms import DIRECTIONS, StepInput, server_step
from dp.contracts import ALGORITHMS, build_manifest
from dp.tlog.notes import verifier_key
from secagg.errors import ConfigurationError, LocalProtocolError, SecaggError
from secagg.manifest import Manifest, Noise, Segment, Training
from tests.kits.service import spec
from tests.kits.tasks import adapter


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
        segments=tuple(
            Segment(name=n, length=d, clip=1.0, scale=1, clip_units=1) for n, d in segments.items()
        ),
        adapter=None if algorithm == "sum" else adapter(),
        training=None if algorithm == "sum" else Training(**{**terms, **training}),
    )


def step(task, vector, sums, optimiser=None):
    arrays = {name: np.asarray(value, float) for name, value in sums.items()}
    return server_step(StepInput(task, np.asarray(vector, np.float32), optimiser or {}, arrays))


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
        step(manifest("of-tomorrow", {"delta": 3}), [0, 0, 0], {"delta": [0, 0, 0]})
    assert refused.value.reason == "algorithm-unknown"
    assert "fedsgd" in refused.value.expected


def test_every_algorithm_that_a_task_may_name_has_a_server_half():
    others = {"sum", "evaluation", "fedbuff", "scaffold", "zeroth-order"}
    assert set(ALGORITHMS) == {*others, *DIRECTIONS}


D = np.array([3.0, -0.5, 0.0])


def adaptive(optimiser, **changes):
    terms = {"server_momentum": 0.9, "server_beta2": 0.99, "server_tau": 0.1}
    if optimiser == "adagrad":
        terms["server_beta2"] = 0.0
    return manifest(
        f"fed{optimiser}",
        {"delta": 3},
        **{"denominator": 1.0, "server_optimiser": optimiser, **terms, **changes},
    )


@pytest.mark.parametrize(
    ("optimiser", "second"),
    [
        ("adagrad", 0.01 + D**2),
        ("adam", 0.99 * 0.01 + 0.01 * D**2),
        ("yogi", 0.01 - 0.01 * D**2 * np.sign(0.01 - D**2)),
    ],
)
def test_the_first_adaptive_step_is_algorithm_2_by_hand(optimiser, second):
    """v starts at tau^2 and there is no bias correction (Reddi et al. 2021)."""
    result = step(adaptive(optimiser, server_learning_rate=0.5), [1, 1, 1], {"delta": D})
    assert result.optimiser["second"] == pytest.approx(second)
    expected = 1 + 0.5 * 0.1 * D / (np.sqrt(second) + 0.1)
    assert result.vector == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("optimiser", ["adagrad", "adam", "yogi"])
def test_moments_are_of_the_mean_and_are_carried(optimiser):
    """A second moment of m, or moments that start anew, have both been shipped elsewhere."""
    first = step(adaptive(optimiser), [0, 0, 0], {"delta": D})
    second = step(adaptive(optimiser), first.vector, {"delta": -D}, first.optimiser)
    before, after = first.optimiser, second.optimiser
    assert after["momentum"] == pytest.approx(0.9 * before["momentum"] - 0.1 * D)
    square, v = D**2, before["second"]
    expected = {
        "adagrad": v + square,
        "adam": 0.99 * v + 0.01 * square,
        "yogi": v - 0.01 * square * np.sign(v - square),
    }[optimiser]
    assert after["second"] == pytest.approx(expected)
    assert not after["noise"].any()


def test_an_unknown_server_optimiser_is_refused_by_name():
    with pytest.raises(ConfigurationError) as refused:
        step(adaptive("adamw"), [0, 0, 0], {"delta": D})
    assert refused.value.reason == "algorithm-unknown"
    odd = adaptive("adam", server_optimiser="adamw")
    with pytest.raises(ConfigurationError) as refused:
        step(odd, [0, 0, 0], {"delta": D})
    assert refused.value.reason == "optimiser-unknown"


def noisy(optimiser):
    """FedSGD with shares in the ring: 4 devices, denominator 8, scale 16, variance 512 each."""
    task = msgspec.structs.replace(
        adaptive(optimiser, denominator=8.0),
        algorithm="fedsgd",
        segments=(Segment(name="gradient", length=20_000, clip=1.0, scale=16, clip_units=16),),
    )
    return msgspec.structs.replace(
        task, noise=Noise(mechanism="skellam", share_variance=512, honest_min=3)
    )


@pytest.mark.parametrize("optimiser", ["adagrad", "adam"])
def test_the_known_noise_is_taken_out_of_the_second_moment(optimiser):
    """20,000 coordinates of noise alone: v - n is 0 on average, to 5 standard errors."""
    task, generator = noisy(optimiser), np.random.default_rng(3)
    variance = 512 * 4 / (16 * 8) ** 2
    vector, state = np.zeros(20_000, np.float32), {}
    for _ in range(50):
        noise = generator.normal(0, np.sqrt(512 * 4) / 16, 20_000)
        result = server_step(StepInput(task, vector, state, {"gradient": noise}, survivors=4))
        vector, state = result.vector, result.optimiser
    weights = np.ones(50) if optimiser == "adagrad" else 0.01 * 0.99 ** np.arange(50)
    assert state["noise"] == pytest.approx(variance * weights.sum())
    start = 0.01 * (1 if optimiser == "adagrad" else 0.99**50)
    error = variance * np.sqrt(2 * (weights**2).sum() / 20_000)
    assert abs(np.mean(state["second"] - state["noise"]) - start) < 5 * error


def test_yogis_noise_share_tends_to_the_variance_and_never_beyond_its_step():
    task, state = noisy("yogi"), {}
    variance = 512 * 4 / (16 * 8) ** 2
    for _ in range(300):
        sums = {"gradient": np.zeros(20_000)}
        state = server_step(StepInput(task, np.zeros(20_000), state, sums, survivors=4)).optimiser
    assert state["noise"] == pytest.approx(variance, rel=0.011)


def test_where_noise_has_a_floor_the_step_keeps_it():
    """max(v - n, tau^2): a coordinate in which the noise was small takes no huge step."""
    task = noisy("adam")
    result = server_step(
        StepInput(task, np.zeros(20_000), {}, {"gradient": np.zeros(20_000)}, survivors=4)
    )
    assert (result.optimiser["second"] - result.optimiser["noise"] < 0.1**2).all()
    sums = {"gradient": np.full(20_000, -8.0)}
    state = {"second": np.full(20_000, 0.0), "noise": np.array([0.05])}
    moved = server_step(StepInput(task, np.zeros(20_000), state, sums, survivors=4)).vector
    kept = max(0.01 - 0.99 * 0.05 - 0.01 * 0.125, 0.01)
    assert moved == pytest.approx(0.1 / (np.sqrt(kept) + 0.1), rel=1e-6)


def test_under_noise_the_number_of_contributors_is_needed():
    with pytest.raises(LocalProtocolError, match="survivors-missing"):
        server_step(StepInput(noisy("adam"), np.zeros(20_000), {}, {"gradient": np.zeros(20_000)}))
