"""SCAFFOLD: no drift on heterogeneous devices, and c is the mean of the c_k."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quadratics import CURVATURES, LENGTH, MINIMA, OPTIMUM, RATE, STEPS, Quadratic, quadratic_spec
from quadratics import fixed_point_of_fedavg as fedavg_ends_at
from sdk_support import digest_of, journal_in

from aggregator.algorithms import server_step
from client_sdk.contribution import TrainingJob
from client_sdk.control import DeviceControl
from client_sdk.errors import StateError
from client_sdk.journal import Contribution
from dp.contracts import BudgetSpec
from dp.mechanisms import decode, encode
from secagg.errors import ConfigurationError, SecaggError
from secagg.manifest import Adapter, AdapterKind, Manifest, TensorShape
from secagg.ring import add_into
from tests.dp_tasks import built, seeded


class Federation:
    """Devices and a server without masks and network: encode, add in the ring, decode, step."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.vector = np.zeros(LENGTH, np.float32)
        self.state: dict[str, Any] = {}
        self.devices = [Quadratic(k) for k in range(len(CURVATURES))]
        self.folders = [folder / f"d{k}" for k in range(len(CURVATURES))]
        self.version = 0

    @property
    def control(self) -> np.ndarray:
        return self.state.get("control", np.zeros(LENGTH)).astype(np.float32)

    def own(self, k: int) -> DeviceControl:
        """As another process finds it."""
        return DeviceControl(journal_in(self.folders[k]), self.manifest, digest_of(self.manifest))

    def round(self, *present: int) -> None:
        manifest, controlled = self.manifest, self.manifest.algorithm == "scaffold"
        ctx = self.version.to_bytes(32, "little")
        total = None
        for k in present or range(len(self.devices)):
            correction = self.own(k).correction(self.control) if controlled else None
            job = TrainingJob(manifest, self.version, self.vector, 0, correction=correction)
            values = self.devices[k].contribute(job)
            coins = seeded(97 * self.version + k)
            lanes = encode(manifest, values, rotation_seed=ctx, random_bytes=coins)
            if controlled:
                kept = Contribution.of(bytes(32), bytes(32), values, None, self.control)
                self.own(k).expect(ctx, kept, lanes)
            if total is None:
                total = lanes.copy()
            else:
                add_into(total, lanes, manifest.encoding.ring_bits)
        count = len(present or self.devices)
        sums = decode(manifest, total, survivors=count, rotation_seed=ctx)
        step = server_step(manifest, self.vector, self.state, sums, self.version, count)
        self.vector, self.state, self.version = step.vector, step.optimiser, self.version + 1
        if controlled:
            for k in present or range(len(self.devices)):
                self.own(k).add(ctx)

    def error(self) -> float:
        return float(np.abs(self.vector - OPTIMUM).max())


def reference(rounds: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Algorithm 1 with option II in float64, as the paper writes it: x, c, and all c_k."""
    x, c, own = np.zeros(LENGTH), np.zeros(LENGTH), np.zeros_like(MINIMA)
    for present in rounds:
        dy, dc = [], []
        for k in present:
            y = x
            for _ in range(STEPS):
                y = y - RATE * (CURVATURES[k] * (y - MINIMA[k]) - own[k] + c)
            after = own[k] - c + (x - y) / (STEPS * RATE)
            dy.append(y - x)
            dc.append(after - own[k])
            own[k] = after
        x = x + np.mean(dy, 0)
        c = c + len(present) / len(MINIMA) * np.mean(dc, 0)
    return x, c, own


def test_fedavg_drifts_and_scaffold_does_not(tmp_path: Path) -> None:
    drifting = Federation(tmp_path / "a", built(quadratic_spec("fedavg")))
    cured = Federation(tmp_path / "b", built(quadratic_spec("scaffold")))
    for _ in range(40):
        drifting.round()
        cured.round()
    assert np.abs(fedavg_ends_at() - OPTIMUM).max() > 0.3  # what the theory says of FedAvg
    np.testing.assert_allclose(drifting.vector, fedavg_ends_at(), atol=1e-4)
    assert cured.error() < 1e-3


def test_with_dropouts_it_is_the_papers_algorithm_up_to_the_rounding(tmp_path: Path) -> None:
    rounds = [(0, 1, 2, 3), (0, 1, 2), (1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2, 3)] * 4
    ours = Federation(tmp_path, built(quadratic_spec("scaffold")))
    for present in rounds:
        ours.round(*present)
    x, c, own = reference(rounds)
    unit = 1 / ours.manifest.segments[0].scale
    assert unit < 1e-4
    np.testing.assert_allclose(ours.vector, x, atol=100 * unit)
    np.testing.assert_allclose(ours.control, c, atol=100 * unit / (STEPS * RATE))
    found = np.stack([ours.own(k).own for k in range(4)])
    np.testing.assert_allclose(found, own, atol=100 * unit / (STEPS * RATE))


def test_the_servers_control_is_the_mean_of_what_the_devices_keep(tmp_path: Path) -> None:
    """Even where the clip cuts what is sent: both sides go by the sent vector."""
    federation = Federation(tmp_path, built(quadratic_spec("scaffold", update_clip=0.5)))
    for present in [(0, 1, 2, 3), (0, 1, 3), (1, 2, 3), (0, 1, 2)]:
        federation.round(*present)
        mean = np.mean([federation.own(k).own for k in range(4)], 0)
        np.testing.assert_allclose(federation.control, mean, atol=1e-6)
    assert np.abs(federation.control).max() > 0.01


def test_noise_in_the_ring_would_stay_in_the_control_for_good() -> None:
    """Why device-level noise is refused: c - mean(c_k) is a random walk, and x follows it."""
    noise = np.random.default_rng(1).normal(size=(400, LENGTH)) * 0.05
    x, c, own = np.zeros(LENGTH), np.zeros(LENGTH), np.zeros_like(MINIMA)
    gaps = []
    for drawn in noise:
        y = np.repeat(x[None], len(MINIMA), 0)
        for _ in range(STEPS):
            y = y - RATE * (CURVATURES * (y - MINIMA) - own + c)
        total = (y - x).sum(0) + drawn
        own = own - c + (x - y) / (STEPS * RATE)
        c = c + (-len(MINIMA) * c - total / (STEPS * RATE)) / len(MINIMA)
        x = x + total / len(MINIMA)
        gaps.append(c - own.mean(0))
    walked = -noise.cumsum(0) / (STEPS * RATE * len(MINIMA))
    np.testing.assert_allclose(gaps, walked, atol=1e-9)


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
    from dp.accounting import headline, lines

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
        server_step(manifest, np.zeros(LENGTH, np.float32), {}, sums)
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
