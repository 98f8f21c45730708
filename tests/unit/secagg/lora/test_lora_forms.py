"""Forms of LoRA under a sum: what is exact, what is not, and what is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from aggregator.algorithms import StepInput, server_step
from dp.contracts import TrainingSpec, check_manifest
from dp.encoding import decode, encode
from secagg.errors import ConfigurationError, LocalProtocolError
from secagg.lora.forms import (
    initial_tensor,
    pairs,
    place,
    sent_length,
    tensors_to_vector,
    trained,
    vector_length,
    vector_to_tensors,
)
from secagg.lora.sketches import recover, sketch, truncated
from secagg.ring import add_into
from tests.kits.lora_forms import RANK, SKETCH, adapter, product, random_vector, task
from tests.kits.tasks import seeded


def weighted_sums(manifest, deltas, weights):
    """Each device's values through the real encoding, added in the ring, decoded."""
    total = None
    for number, (delta, weight) in enumerate(zip(deltas, weights, strict=True)):
        values = {
            "delta": weight * delta,
            "weight": np.array([weight]),
            "loss": np.array([0.0]),
        }
        lanes = encode(manifest, values, rotation_seed=bytes(32), random_bytes=seeded(number))
        total = lanes if total is None else total
        if total is not lanes:
            add_into(total, lanes, manifest.encoding.ring_bits)
    return decode(manifest, total, survivors=len(deltas), rotation_seed=bytes(32))


@pytest.mark.parametrize("kind", ["lora", "ffa-lora", "rolora", "fedsvd", "product"])
def test_vector_and_tensors_are_inverse_in_every_form(kind):
    shape = adapter(kind)
    vector = random_vector(shape, 1)
    back = tensors_to_vector(shape, vector_to_tensors(shape, vector))
    np.testing.assert_allclose(back, vector, atol=1e-6)


def test_the_sum_of_products_is_recovered_from_sketches_of_devices_of_different_ranks():
    shape = adapter("product")
    generator = np.random.default_rng(5)
    ranks, weights = (1, 2, 3, 3), (0.2, 1.0, 0.5, 0.9)  # ranks sum to the sketch's 9 columns
    for pair in pairs(shape):
        summed, expected = 0.0, 0.0
        for rank, weight in zip(ranks, weights, strict=True):
            b = generator.normal(size=(pair.rows, rank))
            a = generator.normal(size=(rank, pair.columns))
            summed = summed + weight * sketch(shape, pair, 4, b, a)
            expected = expected + weight * b @ a
        left, right = recover(shape, pair, 4, summed)
        error = np.linalg.norm(left @ right - expected) / np.linalg.norm(expected)
        assert error < 1e-10


def test_one_rank_more_than_the_sketch_has_columns_is_not_exact():
    shape = adapter("product")
    generator = np.random.default_rng(6)
    pair = pairs(shape)[0]
    b, a = generator.normal(size=(pair.rows, 10)), generator.normal(size=(10, pair.columns))
    left, right = recover(shape, pair, 0, sketch(shape, pair, 0, b, a))
    assert np.linalg.norm(left @ right - b @ a) / np.linalg.norm(b @ a) > 1e-2


def test_a_layer_smaller_than_its_sketch_is_summed_whole_at_any_rank():
    shape = adapter("product", layers=((12, 10),))
    (pair,) = pairs(shape)
    generator = np.random.default_rng(8)
    b, a = generator.normal(size=(pair.rows, 10)), generator.normal(size=(10, pair.columns))
    summed = sketch(shape, pair, 0, b, a)
    assert summed.size == pair.rows * pair.columns == sent_length(shape)
    left, right = recover(shape, pair, 0, summed)
    np.testing.assert_allclose(left @ right, b @ a)


def test_a_factor_without_its_partner_is_refused():
    whole = adapter("lora")
    for lone in (whole.trainable[:1], whole.trainable[1:2], whole.trainable[:3]):
        with pytest.raises(LocalProtocolError, match="adapter-tensor"):
            pairs(msgspec.structs.replace(whole, trainable=lone))


def test_sketches_have_the_norm_of_the_product_on_average():
    shape = adapter("product")
    generator = np.random.default_rng(7)
    pair = pairs(shape)[0]
    b, a = generator.normal(size=(pair.rows, 3)), generator.normal(size=(3, pair.columns))
    squares = [np.sum(sketch(shape, pair, v, b, a) ** 2) for v in range(200)]
    assert np.mean(squares) == pytest.approx(np.sum((b @ a) ** 2), rel=0.05)


def test_sketch_signs_are_the_same_bits_everywhere():
    shape = adapter("product")
    pair = pairs(shape)[0]
    eye = sketch(shape, pair, 2, np.eye(pair.rows), np.eye(pair.rows, pair.columns))
    bits = np.packbits(eye[: pair.rows * SKETCH].reshape(pair.rows, SKETCH)[:8] > 0)
    assert bits.tobytes().hex() == SIGNS


SIGNS = "6c3cea0cdb262e6888"


def test_masked_product_step_equals_the_float_reference_where_plain_averaging_is_far_off():
    """Two devices whose product has rank 2 together, so that rank 3 loses nothing."""
    manifest = task("product", update_clip=256.0)
    shape = manifest.adapter
    generator = np.random.default_rng(8)
    factors = [
        [
            (generator.normal(size=(p.rows, 1)), generator.normal(size=(1, p.columns)))
            for p in pairs(shape)
        ]
        for _ in range(2)
    ]
    weights = (0.4, 0.8)
    deltas = [
        np.concatenate(
            [sketch(shape, p, 0, b, a) for p, (b, a) in zip(pairs(shape), device, strict=True)]
        )
        for device in factors
    ]
    sums = weighted_sums(manifest, deltas, weights)
    zero = np.zeros(vector_length(shape), np.float32)
    after = server_step(StepInput(manifest, zero, {}, sums, 0))
    for number, found in enumerate(product(shape, after.vector)):
        expected = sum(
            w * d[number][0] @ d[number][1] for w, d in zip(weights, factors, strict=True)
        )
        expected = expected / sum(weights)
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 2e-4
        mean = [
            sum(w * d[number][f] for w, d in zip(weights, factors, strict=True)) for f in (0, 1)
        ]
        averaged = mean[0] @ mean[1] / sum(weights) ** 2
        assert np.linalg.norm(averaged - expected) / np.linalg.norm(expected) > 0.3
    assert after.metrics["truncated_share"] < 1e-3


def test_product_cuts_to_the_tasks_rank_and_says_how_much():
    manifest = task("product", update_clip=256.0)
    shape = manifest.adapter
    generator = np.random.default_rng(9)
    parts, references = [], []
    for p in pairs(shape):
        b, a = generator.normal(size=(p.rows, 6)), generator.normal(size=(6, p.columns))
        parts.append(sketch(shape, p, 3, b, a))
        references.append(np.linalg.svd(b @ a, compute_uv=False))
    zero = np.zeros(vector_length(shape), np.float32)
    sums = {"delta": np.concatenate(parts), "weight": np.ones(1), "loss": np.zeros(1)}
    after = server_step(StepInput(manifest, zero, {}, sums, 3))
    lost = max(np.sqrt((s[RANK:] ** 2).sum() / (s**2).sum()) for s in references)
    assert after.metrics["truncated_share"] == pytest.approx(lost, rel=1e-6)
    for found, s in zip(product(shape, after.vector), references, strict=True):
        np.testing.assert_allclose(
            np.linalg.svd(found, compute_uv=False)[:RANK], s[:RANK], rtol=1e-4
        )


@pytest.mark.parametrize("size", [1e-3, 30.0])
def test_factors_of_a_product_are_as_long_as_training_would_have_made_them(size):
    """A A^T - B^T B is what it is at the start: rows of A of sqrt(1/3) beside a small B."""
    manifest = task("product", update_clip=256.0)
    shape = manifest.adapter
    generator = np.random.default_rng(12)
    parts = []
    for p in pairs(shape):
        b, a = generator.normal(size=(p.rows, RANK)), generator.normal(size=(RANK, p.columns))
        parts.append(sketch(shape, p, 0, b * size / np.linalg.norm(b), a / np.linalg.norm(a)))
    zero = np.zeros(vector_length(shape), np.float32)
    sums = {"delta": np.concatenate(parts), "weight": np.ones(1), "loss": np.zeros(1)}
    after = vector_to_tensors(shape, server_step(StepInput(manifest, zero, {}, sums, 0)).vector)
    for pair in pairs(shape):
        a, b = after[pair.a.name].astype(float), after[pair.b.name].astype(float)
        np.testing.assert_allclose(a @ a.T - b.T @ b, np.eye(RANK) / 3, atol=1e-5 * max(1, size))
        start = initial_tensor(shape, pair.a.name, 100, 4000).astype(float)
        assert np.mean(np.sum(start**2, 1)) == pytest.approx(1 / 3, rel=0.01)


def test_fedsvd_keeps_the_mean_product_and_gives_devices_an_orthonormal_a():
    manifest = task("fedsvd", update_clip=64.0)
    shape = manifest.adapter
    before = random_vector(shape, 10)
    direction = np.random.default_rng(11).normal(size=sent_length(shape))
    sums = {"delta": direction, "weight": np.ones(1), "loss": np.zeros(1)}
    after = server_step(StepInput(manifest, before, {}, sums, 1))
    plain = before + place(shape, 1, direction)
    for found, expected in zip(product(shape, after.vector), product(shape, plain), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    tensors = vector_to_tensors(shape, after.vector)
    for pair in pairs(shape):
        a = tensors[pair.a.name]
        np.testing.assert_allclose(a @ a.T, np.eye(RANK), atol=1e-5)


def test_fedsvd_with_nothing_learnt_leaves_a_as_it_was():
    manifest = task("fedsvd")
    zero = np.zeros(vector_length(manifest.adapter), np.float32)
    sums = {
        "delta": np.zeros(sent_length(manifest.adapter)),
        "weight": np.ones(1),
        "loss": np.zeros(1),
    }
    assert not server_step(StepInput(manifest, zero, {}, sums, 0)).vector.any()


def test_rolora_moves_one_factor_by_the_versions_parity_and_ignores_the_padding():
    manifest = task("rolora")
    shape = manifest.adapter
    length = sent_length(shape)
    assert length == max(sum(s.rows * s.columns for s in trained(shape, v)) for v in (0, 1))
    sums = {"delta": np.ones(length), "weight": np.ones(1), "loss": np.zeros(1)}
    zero = np.zeros(vector_length(shape), np.float32)
    for version, factor in ((0, "lora_B"), (1, "lora_A"), (2, "lora_B")):
        after = server_step(StepInput(manifest, zero, {}, sums, version)).vector
        before, moved = vector_to_tensors(shape, zero), vector_to_tensors(shape, after)
        for name in moved:
            change = moved[name] - before[name]
            expected = 1.0 if factor in name else 0.0
            np.testing.assert_allclose(change, expected, atol=1e-6)


def test_mean_of_b_under_one_a_is_the_mean_of_the_products():
    shape = adapter("ffa-lora")
    vectors = [random_vector(shape, s) for s in (20, 21, 22)]
    mean = product(shape, np.mean(vectors, axis=0))
    for number, found in enumerate(mean):
        expected = np.mean([product(shape, v)[number] for v in vectors], axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_truncation_is_the_best_approximation():
    generator = np.random.default_rng(12)
    left, right = generator.normal(size=(30, 8)), generator.normal(size=(8, 20))
    b, a, lost = truncated(left, right, 5)
    u, s, vt = np.linalg.svd(left @ right, full_matrices=False)
    np.testing.assert_allclose(b @ a, (u[:, :5] * s[:5]) @ vt[:5], atol=1e-10)
    assert lost == pytest.approx(np.sqrt((s[5:] ** 2).sum() / (s**2).sum()))


def _momentum():
    return TrainingSpec(server_optimiser="momentum", server_momentum=0.9)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("fedsvd", {"training": _momentum()}, "moments-across-factors"),
        ("rolora", {"training": _momentum()}, "moments-across-factors"),
        ("product", {"training": _momentum()}, "moments-across-factors"),
        ("product", {"algorithm": "fedsgd", "privacy": "distributed"}, "adapter-algorithm"),
        ("product", {"privacy": "local"}, "product-example-privacy"),
    ],
)
def test_wrong_combinations_are_refused(kind, changes, reason):
    with pytest.raises(ConfigurationError) as refused:
        task(kind, **changes)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("product", {"sketch": 0}, "sketch-size"),
        ("lora", {"sketch": 4}, "sketch-size"),
        ("fedsvd", {"frozen": ()}, "adapter-pairs"),
    ],
)
def test_wrong_adapters_are_refused_by_the_devices_veto(kind, changes, reason):
    manifest = task(kind)
    weaker = msgspec.structs.replace(
        manifest, adapter=msgspec.structs.replace(manifest.adapter, **changes)
    )
    with pytest.raises(ConfigurationError) as refused:
        check_manifest(weaker)
    assert refused.value.reason == reason


def test_a_form_whose_trained_tensors_are_anothers_is_refused():
    manifest = task("rolora")
    swapped = msgspec.structs.replace(adapter("fedsvd"), kind="rolora")
    with pytest.raises(ConfigurationError) as refused:
        check_manifest(msgspec.structs.replace(manifest, adapter=swapped))
    assert refused.value.reason == "adapter-form"
