"""SCAFFOLD: what it refuses, and when a device's control variate moves.

The algorithm itself is held to the paper in ``tests/conformance/test_conformance_scaffold.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.algorithms import StepInput, server_step
from client_sdk.errors import StateError
from client_sdk.rounds.scaffold_control import DeviceControl
from client_sdk.state.journal import Contribution
from dp.contracts import BudgetSpec
from dp.encoding import encode
from secagg.errors import ConfigurationError, SecaggError
from secagg.manifest import Adapter, AdapterKind, TensorShape
from tests.kits.device import digest_of, journal_in
from tests.kits.quadratics import LENGTH, RATE, STEPS, quadratic_spec
from tests.kits.tasks import built, seeded


@pytest.mark.parametrize(
    ("changes", "training", "reason"),
    [
        ({"device_noise_multiplier": 4.0}, {}, "control-with-device-noise"),
        ({"privacy": "distributed"}, {}, "privacy-mode"),
        ({}, {"weight_unit": 10}, "weights-with-control"),
        ({}, {"denominator": 4.0}, "weights-with-control"),
        ({}, {"proximal_mu": 0.1}, "proximal-with-control"),
        (
            {},
            {"server_optimiser": "momentum", "server_momentum": 0.9},
            "optimiser-with-control",
        ),
        ({}, {"local_optimiser": "adam"}, "local-optimiser-with-control"),
        ({}, {"local_momentum": 0.9}, "local-optimiser-with-control"),
        ({}, {"local_epochs": 2}, "epochs-with-control"),
        (
            {},
            {"server_optimiser": "adam", "server_learning_rate": 0.1},
            "optimiser-with-control",
        ),
        ({}, {"population": 0}, "population"),
        ({}, {"population": 3}, "population"),
        ({}, {"local_learning_rate": 0.0}, "parameter-out-of-range"),
        ({"algorithm": "fedavg"}, {"population": 4}, "population-without-control"),
    ],
)
def test_what_it_cannot_be_combined_with(
    changes: dict[str, Any], training: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        built(quadratic_spec(**{"algorithm": "scaffold", "training": training, **changes}))
    assert refused.value.reason == reason


@pytest.mark.parametrize("kind", ["rolora", "fedsvd", "product"])
def test_forms_that_change_their_factors_are_refused(kind: AdapterKind) -> None:
    b, a = (
        TensorShape(name=f"q.lora_{factor}.weight", rows=rows, columns=columns)
        for factor, rows, columns in (("B", 6, 2), ("A", 2, 6))
    )
    form = Adapter(
        kind=kind,
        rank=2,
        alpha=4,
        target_modules=("q_proj",),
        seed=bytes(32),
        trainable=(b,) if kind == "fedsvd" else (b, a),
        frozen=(a,) if kind == "fedsvd" else (),
        sketch=4 if kind == "product" else 0,
    )
    built(quadratic_spec("fedavg", adapter=form))
    with pytest.raises(ConfigurationError) as refused:
        built(quadratic_spec("scaffold", adapter=form))
    assert refused.value.reason == "adapter-algorithm"


def test_privacy_on_the_device_is_admitted_and_costs_what_fedavg_costs() -> None:
    from dp.accounting.statements import headline, lines

    limit = BudgetSpec(max_epsilon=None, releases_max=3)
    terms = {"privacy": "local", "noise_multiplier": 4.0, "budget": limit}
    costs = [
        headline(lines(built(quadratic_spec(name, **terms)), 3)) for name in ("scaffold", "fedavg")
    ]
    assert costs[0] == costs[1]
    assert costs[0] is not None


def test_the_server_needs_to_know_how_many_contributed() -> None:
    manifest = built(quadratic_spec("scaffold"))
    sums = {"delta": np.zeros(LENGTH), "loss": np.zeros(1)}
    with pytest.raises(SecaggError) as refused:
        server_step(StepInput(manifest, np.zeros(LENGTH, np.float32), {}, sums))
    assert refused.value.reason == "survivors-missing"


class TestDeviceControl:
    manifest = built(quadratic_spec("scaffold"))

    def control(self, folder: Path) -> DeviceControl:
        return DeviceControl(journal_in(folder), self.manifest, digest_of(self.manifest))

    def expect(self, folder: Path, ctx: bytes, value: float) -> None:
        values = {"delta": np.full(LENGTH, value), "loss": np.zeros(1)}
        lanes = encode(self.manifest, values, rotation_seed=ctx, random_bytes=seeded(1))
        kept = Contribution.of(bytes(32), bytes(32), values, None, np.ones(LENGTH, np.float32))
        self.control(folder).expect(ctx, kept, lanes)

    def test_nothing_moves_before_the_receipt(self, tmp_path: Path) -> None:
        self.expect(tmp_path, b"a" * 32, -0.8)
        assert not self.control(tmp_path).own.any()
        self.control(tmp_path).add(b"a" * 32)
        expected = -1 + 0.8 / (STEPS * RATE)
        np.testing.assert_allclose(self.control(tmp_path).own, expected, atol=1e-4)

    def test_a_receipt_counts_once_however_often_it_is_processed(self, tmp_path: Path) -> None:
        self.expect(tmp_path, b"a" * 32, -2.0)
        self.control(tmp_path).add(b"a" * 32)
        once = self.control(tmp_path).own
        self.control(tmp_path).add(b"a" * 32)
        np.testing.assert_array_equal(self.control(tmp_path).own, once)
        assert once.any()

    def test_a_receipt_of_another_cohort_adds_only_its_own_change(self, tmp_path: Path) -> None:
        self.expect(tmp_path, b"a" * 32, -2.0)
        self.expect(tmp_path, b"b" * 32, -0.8)
        self.control(tmp_path).add(b"b" * 32)
        np.testing.assert_allclose(self.control(tmp_path).own, 0.0, atol=1e-4)
        with pytest.raises(StateError) as refused:
            self.control(tmp_path).add(b"c" * 32)
        assert refused.value.reason == "state-damaged"

    def test_the_last_vector_of_a_cohort_is_the_one_that_counts(self, tmp_path: Path) -> None:
        """A kill before the masked vector was written down makes a second one."""
        self.expect(tmp_path, b"a" * 32, -2.0)
        self.expect(tmp_path, b"a" * 32, -0.8)
        assert len(self.control(tmp_path).waiting) == 1
        self.control(tmp_path).add(b"a" * 32)
        np.testing.assert_allclose(self.control(tmp_path).own, 0.0, atol=1e-4)

    def test_it_lies_sealed(self, tmp_path: Path) -> None:
        self.expect(tmp_path, b"a" * 32, -2.0)
        self.control(tmp_path).add(b"a" * 32)
        own = self.control(tmp_path).own.tobytes()
        for path in tmp_path.rglob("*"):
            assert path.is_dir() or own not in path.read_bytes()

    def test_each_task_has_its_own(self, tmp_path: Path) -> None:
        self.expect(tmp_path, b"a" * 32, -2.0)
        self.control(tmp_path).add(b"a" * 32)
        other = built(quadratic_spec("scaffold", task="other"))
        assert not DeviceControl(journal_in(tmp_path), other, digest_of(other)).own.any()
