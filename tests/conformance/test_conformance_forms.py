"""Every form of LoRA against a plain reference, through the real masks, and where it must end."""

from __future__ import annotations

import numpy as np
import pytest

from secagg.lora.forms import initial_tensor
from secagg.manifest import AdapterKind
from secagg.simulation import Drop
from tests.kits.factors import RANK, A, B, LayerFederation, layer_adapter, layers

COUNTS = (4, 9, 2, 6, 3, 7)
UNIT, STEPS, RATE = 6, 3, 0.05
WEIGHTS = np.minimum(np.array(COUNTS) / UNIT, 1.0)
LOST = {1: {0: Drop.ANNOUNCE}, 2: {3: Drop.UPLOAD, 4: Drop.SHARE}}
KINDS: tuple[AdapterKind, ...] = ("lora", "ffa-lora", "rolora", "fedsvd", "product")


def cut(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best factors of the task's rank: (U S, V^T)."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :RANK] * s[:RANK], vt[:RANK]


def as_trained(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those whose lengths b and a have b a = s and a^2 - b^2 = 1/3, as at the start of training."""
    b, a = cut(matrix)
    for i, s in enumerate(np.linalg.norm(b, axis=0)):
        squared = np.roots([1, -1 / 3, -(s**2)]).max()  # a^4 - a^2 / 3 - s^2 = 0
        b[:, i] /= squared**0.5
        a[i] *= squared**0.5
    return b, a


def reference(kind: str, releases: int) -> np.ndarray:
    """The product after so many releases, written from each paper's update."""
    targets = layers(COUNTS).targets
    shape = {s.name: s for s in (*layer_adapter(kind).trainable, *layer_adapter(kind).frozen)}
    b, a = np.zeros((shape[B].rows, RANK)), None
    a = initial_tensor(layer_adapter(kind), A, RANK, shape[A].columns).astype(np.float64)
    for version in range(releases):
        moves_b = kind != "rolora" or version % 2 == 0
        moves_a = kind in ("lora", "product") or (kind == "rolora" and version % 2 == 1)
        present = [k for k in range(len(COUNTS)) if k not in LOST.get(version, {})]
        p = WEIGHTS[present] / WEIGHTS[present].sum()
        ends = []
        for k in present:
            own_b, own_a = b.copy(), a.copy()
            for _ in range(STEPS):
                residue = own_b @ own_a - targets[k]
                to_b, to_a = residue @ own_a.T, own_b.T @ residue
                own_b = own_b - RATE * to_b if moves_b else own_b
                own_a = own_a - RATE * to_a if moves_a else own_a
            ends.append((own_b, own_a))
        if kind == "product":
            b, a = as_trained(sum(w * eb @ ea for w, (eb, ea) in zip(p, ends, strict=True)))
            continue
        b = sum(w * eb for w, (eb, _) in zip(p, ends, strict=True))
        a = sum(w * ea for w, (_, ea) in zip(p, ends, strict=True))
        if kind == "fedsvd":
            b, a = cut(b @ a)
    return b @ a


def federation(kind: AdapterKind) -> LayerFederation:
    terms = {"weight_unit": UNIT, "local_steps": STEPS, "local_learning_rate": RATE}
    return LayerFederation(layers(COUNTS), "fedavg", kind, terms, survivors_min=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_through_the_masks_is_its_reference(kind: AdapterKind) -> None:
    """Unequal data, two drop-outs, four releases: both phases of RoLoRA twice."""
    it = federation(kind)
    for version in range(4):
        sums, survivors = it.masked(it.contributions(), LOST.get(version))
        assert set(survivors) == set(range(len(COUNTS))) - set(LOST.get(version, {}))
        it.release(sums, len(survivors))
    assert it.product() == pytest.approx(reference(kind, 4), abs=2e-3)


@pytest.mark.parametrize("kind", ["ffa-lora", "fedsvd"])
def test_a_form_that_trains_b_alone_ends_at_the_best_product_in_the_rows_of_its_a(
    kind: AdapterKind,
) -> None:
    """Convex in B with one curvature for all: the mean target, projected on the rows of A.

    FedSVD's new A spans the rows of B A, which are rows of the old A: it is better conditioned,
    but what lies outside the first A's rows stays out of reach.
    """
    it = federation(kind)
    _, a = it.factors()
    projection = a.T @ np.linalg.inv(a @ a.T) @ a
    it.run(300 if kind == "ffa-lora" else 150)
    mean = np.average(layers(COUNTS).targets, axis=0, weights=WEIGHTS)
    assert it.product() == pytest.approx(mean @ projection, abs=2e-2)
    assert np.linalg.norm(it.product() - mean) > 0.2 * np.linalg.norm(mean)


@pytest.mark.parametrize("kind", ["lora", "rolora", "product"])
def test_forms_that_train_both_factors_reach_a_target_that_all_devices_share(
    kind: AdapterKind,
) -> None:
    shared = layers((5,) * 4)
    target = shared.targets[0]
    same = type(shared)((target,) * 4, shared.counts)
    terms = {"local_steps": STEPS, "local_learning_rate": RATE}
    it = LayerFederation(same, "fedavg", kind, terms)
    it.run(150)
    assert np.linalg.norm(it.product() - target) < 0.05 * np.linalg.norm(target)


@pytest.mark.parametrize("kind", ["lora", "ffa-lora", "rolora", "fedsvd"])
def test_fednova_goes_with_the_forms_that_it_admits(kind: AdapterKind) -> None:
    """Equal steps: FedNova is FedAvg, whatever the form."""
    terms = {"weight_unit": UNIT, "local_steps": STEPS, "local_learning_rate": RATE}
    it = LayerFederation(layers(COUNTS), "fednova", kind, terms)
    other = LayerFederation(layers(COUNTS), "fedavg", kind, terms)
    for _ in range(3):
        for each in (it, other):
            each.release(each.exact(each.contributions()), len(COUNTS))
    assert it.product() == pytest.approx(other.product(), abs=1e-5)
