"""The norms that a clip is planned by, on the tiny model."""

from __future__ import annotations

import numpy as np
import pytest

from client_sdk.errors import ContributionError
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.dataset import Input, encode_rows
from client_sdk.training.gradients import ExampleGradients
from client_sdk.training.norms import EXAMPLES_MAX, mean_length, survey_clip
from secagg.manifest import training_manifest
from tests.kits.tiny_training import tiny, tiny_task

PAIRS = [
    {"prompt": f"What is {thing}?", "answer": f"It is {place}."}
    for thing, place in (("a fox", "in the wood"), ("a tea", "on a table"), ("rain", "over here"))
]
UNUSABLE = {"prompt": "What is snow?", "answer": ""}


def test_clips_are_tried_on_the_gradients_of_examples() -> None:
    manifest = training_manifest(tiny_task("distributed"))
    model, tokenizer = tiny()
    takes = Input.of(model)
    adapted = AdaptedModel(model, manifest, manifest.base_model.fingerprint)
    adapted.load(np.zeros(adapted.vector_length, np.float32))
    rows, _ = encode_rows(tokenizer, PAIRS, manifest.training.max_tokens, takes)
    with ExampleGradients(adapted.model, adapted.parameters, pad_token=0) as together:
        together.run(rows)
        gradients = together.flat().double().numpy()
    norms = np.linalg.norm(gradients, axis=1)

    told = []
    rows = [PAIRS[0], UNUSABLE, *PAIRS[1:]]
    found = survey_clip(*tiny(), rows, manifest, lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (found.units, found.examples, found.left_out) == (3, 3, 1)
    assert found.median == pytest.approx(np.median(norms), rel=1e-4)
    assert [clip / found.median for clip, _ in found.signals] == [1.0, 0.5, 0.25]
    for clip, signal in found.signals:
        units = gradients * np.minimum(1, clip / norms)[:, None] / clip
        products = units @ units.T
        pairs = (products.sum() - np.trace(products)) / 6
        assert signal == pytest.approx(np.sqrt(max(0.0, pairs)), rel=1e-3)


def test_rows_of_a_person_are_summed_before_the_norm() -> None:
    """Two of Ann's three rows are taken; the one that names nobody is in no gradient."""
    manifest = training_manifest(tiny_task("distributed", unit="person", unit_rows_max=2))
    named = [
        {**pair, "unit": name} for pair, name in zip(PAIRS, ("ann", "bob", "ann"), strict=True)
    ]
    third = {"prompt": "What is ice?", "answer": "Cold.", "unit": "ann"}
    found = survey_clip(*tiny(), [*named, third, {"prompt": "Who?", "answer": "I."}], manifest)
    assert (found.units, found.examples, found.left_out) == (2, 3, 2)

    model, tokenizer = tiny()
    adapted = AdaptedModel(model, manifest, manifest.base_model.fingerprint)
    adapted.load(np.zeros(adapted.vector_length, np.float32))
    rows, _ = encode_rows(tokenizer, PAIRS, manifest.training.max_tokens, Input.of(model))
    with ExampleGradients(adapted.model, adapted.parameters, pad_token=0) as together:
        together.run(rows)
        ann, bob, ann_too = together.flat().double().numpy()
    norms = [np.linalg.norm(ann + ann_too), np.linalg.norm(bob)]
    assert found.median == pytest.approx(np.median(norms), rel=1e-4)


def test_a_median_needs_two_examples() -> None:
    manifest = training_manifest(tiny_task("distributed"))
    with pytest.raises(ContributionError) as caught:
        survey_clip(*tiny(), [PAIRS[0], UNUSABLE], manifest)
    assert caught.value.reason == "examples-too-few"
    assert "example-answer-empty" in caught.value.found


def test_few_vectors_do_not_look_like_a_mean() -> None:
    """Without a common part 64 unit vectors have a mean of an eighth; of pairs, next to none."""
    chance = np.random.default_rng(0)
    alone = chance.standard_normal((64, 4096))
    alone /= np.linalg.norm(alone, axis=1, keepdims=True)
    assert np.linalg.norm(alone.mean(0)) == pytest.approx(1 / 8, rel=0.05)
    assert mean_length(alone, np.ones(64)) < 0.04
    common = 0.3 * np.eye(4096)[0] + np.sqrt(1 - 0.3**2) * alone
    assert mean_length(2 * common, np.full(64, 0.5)) == pytest.approx(0.3, rel=0.05)


def test_no_more_examples_are_read_than_a_median_needs() -> None:
    class Rows(list):
        def __getitem__(self, place):
            assert place < EXAMPLES_MAX
            return UNUSABLE

    with pytest.raises(ContributionError, match=f"of {EXAMPLES_MAX};"):
        survey_clip(*tiny(), Rows([UNUSABLE] * 1000), training_manifest(tiny_task("distributed")))
