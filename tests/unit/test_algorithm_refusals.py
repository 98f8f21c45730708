"""What each algorithm cannot be combined with, and the reason, in one table.

A row is one task that differs from an admissible one in the point named. The lists of admissible
tasks beside it keep the table honest: a refusal that refuses everything would fail there.
"""

from __future__ import annotations

from typing import Any

import pytest

from dp.contracts import BudgetSpec, TrainingSpec
from secagg.errors import ConfigurationError
from tests.dp_tasks import built, spec
from tests.unit.test_lora_forms import adapter as lora

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


REFUSED: list[tuple[str, str | None, dict[str, Any], dict[str, Any], str]] = [
    # privacy mode
    *[(name, "distributed", {}, {}, "privacy-mode") for name in ("fedavg", *FEDOPT)],
    # weights
    *[(name, "local", {"weight_unit": 9}, {}, "weights-with-noise") for name in FEDOPT],
    (
        "fedadam",
        "none",
        {"weight_unit": 9},
        {"device_noise_multiplier": 1.0},
        "weights-with-noise",
    ),
    # local terms
    *[(name, "none", {"proximal_mu": 0.1}, {}, "proximal-without-fedprox") for name in FEDOPT],
    # server optimiser
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
