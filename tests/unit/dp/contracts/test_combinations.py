"""What each algorithm cannot be combined with, and the reason, in one table.

A row is one task that differs from an admissible one in the point named. The lists of admissible
tasks beside it keep the table honest: a refusal that refuses everything would fail there.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dp.contracts import BudgetSpec, TrainingSpec, check, check_manifest, local_noise_norm, warnings
from dp.contracts.algorithms.fednova import public_steps
from dp.contracts.algorithms.local_steps import normaliser, step_weights, steps_of
from dp.contracts.known_noise import mean_deviation, mean_variance
from dp.errors import AccountingError
from secagg.errors import ConfigurationError
from secagg.manifest import BaseModel, Manifest
from tests.kits.lora_forms import adapter as lora
from tests.kits.tasks import built, spec, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)
FEDOPT = ("fedavgm", "fedadagrad", "fedadam", "fedyogi")


def create(algorithm: str, privacy: str | None, training: dict[str, Any], **changes: Any) -> Any:
    terms = TrainingSpec(**training)
    return built(
        spec(
            **{
                "algorithm": algorithm,
                "privacy": privacy,
                "budget": NO_LIMIT,
                "training": terms,
                **changes,
            }
        )
    )


ADAM = {"local_optimiser": "adam"}
MOMENTUM = {"local_momentum": 0.9}
EPOCHS = {"local_epochs": 1}

REFUSED: list[tuple[str, str | None, dict[str, Any], dict[str, Any], str]] = [
    # privacy mode
    *[(name, "distributed", {}, {}, "privacy-mode") for name in ("fedavg", *FEDOPT)],
    ("fedprox", "distributed", {"proximal_mu": 0.1}, {}, "privacy-mode"),
    ("scaffold", "distributed", {"population": 6}, {}, "privacy-mode"),
    ("fedsgd", "local", {}, {}, "privacy-mode"),
    ("fedsgd", "none", {}, {}, "privacy-mode"),
    ("zeroth-order", "local", {}, {}, "privacy-mode"),
    ("evaluation", "local", {"weight_unit": 9}, {}, "privacy-mode"),
    (
        "scaffold",
        "none",
        {"population": 6},
        {"device_noise_multiplier": 1.0},
        "control-with-device-noise",
    ),
    # weights
    ("fedavg", "local", {"weight_unit": 9}, {}, "weights-with-noise"),
    ("fedprox", "local", {"weight_unit": 9, "proximal_mu": 0.1}, {}, "weights-with-noise"),
    ("fedsgd", "distributed", {"weight_unit": 9}, {}, "weights-with-noise"),
    ("zeroth-order", "distributed", {"weight_unit": 9}, {}, "weights-with-noise"),
    ("scaffold", "none", {"population": 6, "weight_unit": 9}, {}, "weights-with-control"),
    ("scaffold", "none", {"population": 6, "denominator": 9.0}, {}, "weights-with-control"),
    ("evaluation", "none", {"weight_unit": 0}, {}, "parameter-out-of-range"),
    *[(name, "local", {"weight_unit": 9}, {}, "weights-with-noise") for name in FEDOPT],
    (
        "fedadam",
        "none",
        {"weight_unit": 9},
        {"device_noise_multiplier": 1.0},
        "weights-with-noise",
    ),
    ("fednova", "distributed", {}, {}, "privacy-mode"),
    ("fednova", "local", {"weight_unit": 9}, {}, "weights-with-noise"),
    # local terms
    ("fednova", "none", ADAM, {}, "normaliser-undefined"),
    ("fednova", "none", {"proximal_mu": 2.0, "local_learning_rate": 0.5}, {}, "pull-overshoots"),
    ("fednova", "local", {"proximal_mu": 2.0, "local_learning_rate": 0.5}, {}, "pull-overshoots"),
    ("fednova", "none", {"local_steps": 0}, {}, "parameter-out-of-range"),
    ("fednova", "none", {"local_momentum": 1.0}, {}, "parameter-out-of-range"),
    ("fednova", "none", {}, {"adapter": lora("product")}, "adapter-algorithm"),
    ("fedprox", "none", {"proximal_mu": 0.1, **ADAM}, {}, "proximal-term-lost"),
    ("fedprox", "local", {"proximal_mu": 0.1, **ADAM}, {}, "proximal-term-lost"),
    ("fedavg", "none", {**ADAM, **MOMENTUM}, {}, "momentum-with-adam"),
    *[
        (name, "local", {**EPOCHS, **mu}, {}, "epochs-reveal-examples")
        for name, mu in (("fedavg", {}), ("fednova", {}), ("fedprox", {"proximal_mu": 0.1}))
    ],
    *[(name, "local", EPOCHS, {}, "epochs-reveal-examples") for name in FEDOPT],
    *[
        (name, privacy, terms, {}, "local-terms-unused")
        for name, privacy, unit in (
            ("fedsgd", "distributed", 0),
            ("zeroth-order", "none", 0),
            ("evaluation", "none", 9),
        )
        for terms in (
            {**ADAM, "weight_unit": unit},
            {**MOMENTUM, "weight_unit": unit},
            {**EPOCHS, "weight_unit": unit},
        )
    ],
    *[(name, "none", {"proximal_mu": 0.1}, {}, "proximal-without-fedprox") for name in FEDOPT],
    ("fedavg", "none", {"proximal_mu": 0.1}, {}, "proximal-without-fedprox"),
    ("fedsgd", "distributed", {"proximal_mu": 0.1}, {}, "proximal-without-fedprox"),
    ("fedprox", "none", {"proximal_mu": 0.0}, {}, "parameter-out-of-range"),
    ("zeroth-order", "none", {"proximal_mu": 0.1}, {}, "local-steps"),
    *[
        ("scaffold", privacy, {"population": 6, **terms}, {}, reason)
        for privacy in ("local", "none")
        for terms, reason in (
            (ADAM, "local-optimiser-with-control"),
            (MOMENTUM, "local-optimiser-with-control"),
            (EPOCHS, "epochs-with-control"),
            ({"proximal_mu": 0.1}, "proximal-with-control"),
        )
    ],
    ("fedavg", "none", {"population": 6}, {}, "population-without-control"),
    ("fedavg", "none", {}, {"adapter": None}, "adapter-missing"),
    # server optimiser
    *[
        ("scaffold", "none", {"population": 6, "server_optimiser": name}, {}, reason)
        for name, reason in (
            ("momentum", "optimiser-with-control"),
            ("adam", "optimiser-with-control"),
        )
    ],
    ("evaluation", "none", {"weight_unit": 9, "server_optimiser": "adam"}, {}, "step-unused"),
    ("evaluation", "none", {"weight_unit": 9, "server_optimiser": "momentum"}, {}, "step-unused"),
    ("fedavg", "none", {"server_momentum": 0.9}, {}, "momentum-without-optimiser"),
    ("fedavg", "none", {"server_beta2": 0.9}, {}, "beta2-without-optimiser"),
    ("fedavg", "none", {"server_tau": 0.1}, {}, "tau-without-optimiser"),
    ("fedavgm", "none", {"server_beta2": 0.9}, {}, "beta2-without-optimiser"),
    ("fedavgm", "none", {"server_tau": 0.1}, {}, "tau-without-optimiser"),
    ("fedavgm", "none", {"server_momentum": 0.0}, {}, "parameter-out-of-range"),
    ("fedavgm", "none", {"server_momentum": 1.0}, {}, "parameter-out-of-range"),
    ("fedadagrad", "none", {"server_beta2": 0.9}, {}, "beta2-without-optimiser"),
    ("fedadam", "none", {"server_beta2": 1.0}, {}, "parameter-out-of-range"),
    ("fedadam", "none", {"server_beta2": 0.0}, {}, "parameter-out-of-range"),
    ("fedadam", "none", {"server_tau": 0.0}, {}, "parameter-out-of-range"),
    ("fedyogi", "none", {"server_tau": float("nan")}, {}, "parameter-out-of-range"),
    ("fedyogi", "none", {"server_momentum": -0.1}, {}, "parameter-out-of-range"),
    ("fedadam", "none", {"server_optimiser": "yogi"}, {}, "server-optimiser"),
    ("zeroth-order", "none", {"server_optimiser": "adam"}, {}, "moments-of-directions"),
    # adapter form
    *[
        ("scaffold", "none", {"population": 6}, {"adapter": lora(kind)}, "adapter-algorithm")
        for kind in ("rolora", "fedsvd", "product")
    ],
    *[
        ("zeroth-order", "none", {}, {"adapter": lora(kind)}, "adapter-algorithm")
        for kind in ("rolora", "fedsvd", "product")
    ],
    ("fedsgd", "distributed", {}, {"adapter": lora("product")}, "adapter-algorithm"),
    *[
        (name, "local", mu, {"adapter": lora("product")}, "product-example-privacy")
        for name, mu in (("fedavg", {}), ("fedprox", {"proximal_mu": 0.1}))
    ],
    *[
        (name, "none", {}, {"adapter": lora(kind)}, "moments-across-factors")
        for name in FEDOPT
        for kind in ("rolora", "fedsvd", "product")
    ],
    (
        "fedsgd",
        "distributed",
        {"server_optimiser": "adam"},
        {"adapter": lora("fedsvd")},
        "moments-across-factors",
    ),
]


@pytest.mark.parametrize(("algorithm", "privacy", "training", "changes", "reason"), REFUSED)
def test_a_wrong_combination_is_refused_with_its_reason(
    algorithm: str, privacy: str | None, training: dict, changes: dict, reason: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        create(algorithm, privacy, training, **changes)
    assert refused.value.reason == reason


ADMITTED: list[tuple[str, str | None, dict[str, Any], dict[str, Any]]] = [
    *[("fednova", privacy, MOMENTUM, {}) for privacy in (None, "local", "none")],
    ("fednova", "none", {**EPOCHS, "weight_unit": 9, "local_steps": 50}, {}),
    ("fednova", "none", EPOCHS, {"device_noise_multiplier": 1.0}),
    ("fednova", "none", {"proximal_mu": 0.5, **MOMENTUM}, {}),
    ("fednova", "none", {"server_optimiser": "adam"}, {}),
    *[("fednova", "none", {}, {"adapter": lora(kind)}) for kind in ("lora", "rolora", "fedsvd")],
    *[("fedavg", privacy, ADAM, {}) for privacy in ("local", "none")],
    ("fedavg", "local", MOMENTUM, {}),
    ("fedavg", "none", EPOCHS, {}),
    ("evaluation", "none", {"weight_unit": 9}, {}),
    *[(name, privacy, {}, {}) for name in FEDOPT for privacy in (None, "local", "none")],
    *[(name, "none", {}, {"device_noise_multiplier": 1.0}) for name in FEDOPT],
    *[(name, "none", {"weight_unit": 9}, {}) for name in FEDOPT],
    *[(name, "none", {}, {"adapter": lora(kind)}) for name in FEDOPT for kind in ("lora",)],
    ("fedadam", "none", {"server_optimiser": "adam", "server_momentum": 0.0}, {}),
    ("fedsgd", "distributed", {"server_optimiser": "adam"}, {}),
    ("fedprox", "none", {"server_optimiser": "yogi", "proximal_mu": 0.1}, {}),
]


@pytest.mark.parametrize(("algorithm", "privacy", "training", "changes"), ADMITTED)
def test_the_admissible_neighbours_are_admitted(
    algorithm: str, privacy: str | None, training: dict, changes: dict
) -> None:
    assert create(algorithm, privacy, training, **changes).algorithm == algorithm


@pytest.mark.parametrize(
    ("name", "optimiser", "momentum", "beta2", "tau"),
    [
        ("fedavg", "sgd", 0.0, 0.0, 0.0),
        ("fedavgm", "momentum", 0.9, 0.0, 0.0),
        ("fedadagrad", "adagrad", 0.0, 0.0, 0.001),
        ("fedadam", "adam", 0.9, 0.99, 0.001),
        ("fedyogi", "yogi", 0.9, 0.99, 0.001),
    ],
)
def test_an_algorithms_name_is_enough(
    name: str, optimiser: str, momentum: float, beta2: float, tau: float
) -> None:
    terms = create(name, "none", {}).training
    assert terms.server_optimiser == optimiser
    assert (terms.server_momentum, terms.server_beta2, terms.server_tau) == (momentum, beta2, tau)


def test_segments_of_fednova_follow_from_noise() -> None:
    plain = create("fednova", "none", {"local_steps": 7, **MOMENTUM})
    assert [s.name for s in plain.segments] == ["delta", "weight", "loss", "normaliser"]
    assert plain.segments[3].clip == public_steps(plain.training)
    assert [s.name for s in create("fednova", "local", {}).segments] == ["delta"]
    wider = msgspec.structs.replace(
        plain, training=msgspec.structs.replace(plain.training, local_steps=8)
    )
    with pytest.raises(ConfigurationError) as refused:
        check_manifest(wider)
    assert refused.value.reason == "clip-mismatch"


def test_the_normaliser_is_the_papers_for_sgd_momentum_and_a_proximal_term() -> None:
    """Wang et al. 2020, section 4: each closed form, and the first steps by hand."""
    for steps in (1, 2, 5, 40):
        plain = create("fednova", "none", {}).training
        assert normaliser(plain, steps) == steps
        heavy = create("fednova", "none", {"local_momentum": 0.8}).training
        expected = (steps - 0.8 * (1 - 0.8**steps) / (1 - 0.8)) / (1 - 0.8)
        assert normaliser(heavy, steps) == pytest.approx(expected)
        pulled = create(
            "fednova", "none", {"proximal_mu": 0.5, "local_learning_rate": 0.2}
        ).training
        assert normaliser(pulled, steps) == pytest.approx((1 - 0.9**steps) / 0.1)
    assert step_weights(3, momentum=0.5).tolist() == [1.75, 1.5, 1.0]
    assert step_weights(3, pull=0.5).tolist() == [0.25, 0.5, 1.0]


def test_steps_follow_from_the_devices_examples_only_with_epochs() -> None:
    equal = create("fedavg", "none", {"local_steps": 5}).training
    assert [steps_of(equal, n) for n in (1, 1000)] == [5, 5]
    terms = {"local_steps": 10, "local_epochs": 2, "batch_size": 24}
    epochs = create("fednova", "none", terms).training
    assert [steps_of(epochs, n) for n in (1, 24, 25, 60, 1000)] == [1, 2, 3, 5, 10]


def test_unequal_steps_without_fednova_are_said_plainly() -> None:
    def said(algorithm: str, training: dict) -> bool:
        return any("unequal numbers" in w for w in warnings(create(algorithm, "none", training)))

    assert said("fedavg", EPOCHS)
    assert said("fedadam", EPOCHS)
    assert not said("fednova", EPOCHS)
    assert not said("fedavg", {})


def test_a_noisy_evaluation_takes_no_mean_and_is_warned_of_nothing_here() -> None:
    manifest = create("evaluation", "none", {"weight_unit": 9}, device_noise_multiplier=1.0)
    assert mean_deviation(manifest) == mean_variance(manifest, 6) == 0.0
    assert not any("server_tau" in text for text in warnings(manifest))


def test_the_norm_of_local_noise_counts_momentum_and_the_normaliser() -> None:
    def norm(algorithm: str, **training: Any) -> float | None:
        return local_noise_norm(create(algorithm, "local", {"local_steps": 2, **training}))

    plain = norm("fedavg")
    assert norm("fedavg", **MOMENTUM) == pytest.approx(plain * ((1.9**2 + 1) / 2) ** 0.5)
    assert norm("fednova") == pytest.approx(plain / 2)
    assert norm("fedavg", **ADAM) is None


def tampered(manifest: Manifest, part: str, **changes: Any) -> Manifest:
    inner = msgspec.structs.replace(getattr(manifest, part), **changes)
    return msgspec.structs.replace(manifest, **{part: inner})


def vetoed(manifest: Manifest) -> str:
    with pytest.raises(ConfigurationError) as refused:
        check_manifest(manifest)
    return refused.value.reason


TRAINED = [
    (name, {"population": 6} if name == "scaffold" else {"weight_unit": 9})
    for name in ("fedavg", "fedprox", "fednova", "fedadam", "scaffold", "evaluation")
]


@pytest.mark.parametrize(("algorithm", "training"), TRAINED)
def test_a_manifest_without_training_terms_is_vetoed(algorithm: str, training: dict) -> None:
    if algorithm == "fedprox":
        training = {**training, "proximal_mu": 0.1}
    manifest = create(algorithm, "none", training)
    assert vetoed(msgspec.structs.replace(manifest, training=None)) == "training-missing"


def test_what_no_spec_can_say_is_vetoed_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    private, plain = create("fedavg", "local", {}), create("fedavg", "none", {})
    assert vetoed(tampered(private, "training", denominator=0.0)) == "denominator-missing"
    found = vetoed(tampered(plain, "training", directions=3))
    assert found == "directions-without-zeroth-order"
    assert vetoed(tampered(plain, "encoding", ring_bits=63)) == "ring-too-large"
    for name in ("fedsgd", "zeroth-order"):
        manifest = create(name, "distributed", {})
        assert vetoed(msgspec.structs.replace(manifest, training=None)) == "training-missing"

    def unable(*_: object) -> None:
        raise AccountingError("event-unknown", "No accountant vouches for this.")

    monkeypatch.setattr(check, "lines", unable)
    assert vetoed(private) == "cost-unknown"


def test_a_payload_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ConfigurationError) as refused:
        built(statistics(("a", 1 << 28, 1.0), ("b", 1, 1.0), budget=NO_LIMIT))
    assert refused.value.reason == "vector-too-long"


@pytest.mark.parametrize("name", ["", "owner/model\n", "x" * 257, "\x1b[2J", "o\u202ewner/m"])
def test_a_base_model_s_name_is_plain_text(name: str) -> None:
    base_model = BaseModel(name=name, fingerprint=bytes(32))
    with pytest.raises(ConfigurationError) as refused:
        built(base_model=base_model)
    assert refused.value.reason == "base-model-name"


def test_every_reason_of_a_declaration_has_its_test() -> None:
    """A refusal that nobody has seen may never come, or say something else."""
    root = Path(__file__).resolve().parents[4]
    word = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")
    reasons = set()
    for file in (root / "dp" / "contracts").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", "")
            first = node.args[0]
            if name in ("refuse", "ConfigurationError") and isinstance(first, ast.Constant):
                reasons.add(first.value)
    assert len(reasons) > 50
    assert all(word.fullmatch(reason) for reason in reasons)
    tests = "".join(file.read_text() for file in (root / "tests").rglob("*.py"))
    assert {reason for reason in reasons if f'"{reason}"' not in tests} == set()
