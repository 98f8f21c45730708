"""One example never makes others fail: it keeps its place, counts as zero, and its user is told."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel

from client_sdk.contribution import check_values
from client_sdk.errors import ContributionError, TaskRefusal
from client_sdk.training.dataset import Input, encode_rows, told
from client_sdk.training.examples import encode_example
from client_sdk.training.gradients import ExampleGradients
from client_sdk.training.row_forms import CHARACTERS_MAX
from client_sdk.training.trainer import LoraTrainer
from secagg.manifest import Manifest
from secagg_cli.models.corpus import load_clients
from tests.kits.model_families import examples_for, manifest_of, model_of
from tests.kits.tasks import seeded
from tests.kits.tiny_training import job, tiny, tiny_task, trainer

PAIRS = load_clients(6)[4].train[:6]
MARK = "zyzzyva"  # in rows at which a model or a tokenizer of these tests fails
TOKENIZER = tiny()[1]
TAKES = Input(vocabulary=1024, context_tokens=None, classes=None)
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)


class Panic(BaseException):
    """As panics of compiled tokenizers are: no ``Exception``."""


class Raises(Mapping[str, Any]):
    """A lazy record whose text cannot be read."""

    def __getitem__(self, _: str) -> Any:
        raise Panic("a worker of the decoder is gone")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "Good day"} for role in roles]}


NASTY: dict[str, Any] = {
    "nothing": None,
    "a number": 7,
    "bytes": b"What is AI?",
    "just text": "What is AI?",
    "a list of pairs": [("a", "b"), ("c", "d")],
    "a pair without its answer": ("What is AI?",),
    "a null answer": ("What is AI?", None),
    "a number as answer": ("What is AI?", 42),
    "an empty mapping": {},
    "no messages": {"messages": None},
    "no message": {"messages": []},
    "messages that are not a list": {"messages": 5},
    "a message that is not a mapping": {"messages": ["assistant"]},
    "null content": {"messages": [{"role": "assistant", "content": None}]},
    "content in parts": {"messages": [{"role": "assistant", "content": [{"text": "a"}]}]},
    "no role": {"messages": [{"content": "a"}]},
    "no answer": turns("user"),
    "roles that do not alternate": turns("user", "user", "assistant"),
    "a packed row": {"input_ids": [1, 2, 3], "labels": [1, 2, 3]},
    "a label": {"text": "fine", "label": 0},
    "a surrogate": ("\ud800", "\udfff"),
    "an endless text": ("a " * CHARACTERS_MAX, "b"),
    "an answer that is cut off": ("What is AI? " * 200, "A field of science."),
    "what cannot be read": Raises(),
}
LABELLED: dict[str, Any] = {
    "a class that the model has not": {"text": "fine", "label": 7},
    "an enormous class": {"text": "fine", "label": 10**40},
    "a negative class": {"text": "fine", "label": -1},
    "a boolean class": {"text": "fine", "label": True},
    "a fractional class": {"text": "fine", "label": 1.0},
    "a class by name": {"text": "fine", "label": "good"},
    "no class": {"text": "fine", "label": None},
    "an empty text": {"text": "", "label": 0},
    "a null text": {"text": None, "label": 0},
    "an endless labelled text": {"text": "a " * CHARACTERS_MAX, "label": 0},
    "a conversation": ("What is AI?", "A field of science."),
}


def alternating(it: LoraTrainer) -> LoraTrainer:
    """With a template that refuses roles out of turn, as Gemma's and Llama 2's do."""
    it._tokenizer.chat_template = ALTERNATING + it._tokenizer.chat_template
    return it


def with_row(row: Any) -> list[Any]:
    """The good pairs and, between them, one more."""
    return [*PAIRS[:2], row, *PAIRS[2:]]


def moved(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Distance of two contributions' first segments."""
    one, other = (np.asarray(next(iter(v.values())), np.float64) for v in (first, second))
    return float(np.linalg.norm(one - other))


class TestEncoding:
    @pytest.mark.parametrize("row", NASTY.values(), ids=NASTY.keys())
    def test_a_row_that_cannot_be_encoded_moves_the_sum_by_nothing(self, row: Any) -> None:
        """Distributed, rate 1. The rows beside it keep their coins, so the totals are equal."""
        manifest = tiny_task(sampling_rate=1.0, clip=1e-3)
        it = alternating(trainer(with_row(row)))
        found = it.contribute(job(manifest))
        assert moved(found, reference(manifest)) == 0
        (left_out,) = it.left_out
        assert left_out.index == 2

    @pytest.mark.parametrize("kind", [np.int64, np.uint8, int])
    def test_numbers_of_classes_are_integers_of_any_library(self, kind: Any) -> None:
        row = encode_example(tiny()[1], {"text": "fine", "label": kind(1)}, 64)
        assert type(row.label) is int
        assert row.label == 1

    @pytest.mark.parametrize("row", LABELLED.values(), ids=LABELLED.keys())
    def test_a_labelled_row_that_does_not_fit_moves_the_sum_by_nothing(self, row: Any) -> None:
        examples = examples_for("bert")
        manifest = of_classifier()
        totals = []
        for rows in (examples, [*examples[:2], row, *examples[2:]]):
            it = LoraTrainer(model_of("bert"), tiny()[1], rows, threads=1, random_bytes=seeded(1))
            totals.append(it.contribute(job(manifest)))
        assert moved(*totals) == 0
        assert [one.index for one in it.left_out] == [2]

    def test_local_noise_hides_a_row_too(self) -> None:
        """Local noise. It stayed away before, for all to see."""
        manifest = tiny_task("local", sampling_rate=0.75)
        without = trainer(with_row(("", None)), seed=3).contribute(job(manifest))
        # The place counts: another row there is drawn by the same coin.
        with_empty = trainer(with_row(turns("user")), seed=3).contribute(job(manifest))
        assert moved(without, with_empty) == 0

    @pytest.mark.parametrize("seed", range(4))
    def test_emptying_a_place_moves_the_sum_by_one_clip_at_most(self, seed: int) -> None:
        """The rows behind it are drawn by the coins by which they were drawn beside a good row."""
        manifest = tiny_task(sampling_rate=0.5, clip=1e-3)
        totals = [
            trainer(with_row(row), seed=seed).contribute(job(manifest))
            for row in (load_clients(6)[1].train[0], None)
        ]
        assert moved(*totals) <= 1.1 * manifest.segments[0].clip_units

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.tuples(inner, inner)
                | st.dictionaries(
                    st.sampled_from(
                        ["messages", "role", "content", "text", "label", "input_ids", "prompt"]
                    ),
                    inner,
                    max_size=3,
                )
            ),
            max_leaves=8,
        ),
        st.sampled_from([None, 2]),
    )
    def test_whatever_a_row_is_it_is_a_row_or_is_told(self, value: Any, classes: Any) -> None:
        takes = Input(vocabulary=1024, context_tokens=16, classes=classes)
        rows, left_out = encode_rows(TOKENIZER, [value, PAIRS[0], value], 64, takes)
        assert len(rows) == 3
        assert [row.index for row in rows] == [0, 1, 2]
        for row in rows:
            assert bool(row.tokens) is (row.index not in {one.index for one in left_out})
            assert len(row.tokens) <= 16
            if row.tokens:
                takes.check(row)

    def test_rows_are_cut_where_the_models_places_end(self) -> None:
        """A later place is out of the table's range: an error on a CPU, the end on a GPU."""
        takes = Input.of(model_of("gpt2"))
        assert takes.context_tokens == 80
        long = ("What is AI?", "science " * 200)
        rows, left_out = encode_rows(tiny()[1], [long], 4096, takes)
        assert len(rows[0].tokens) == 80
        assert left_out == ()

    def test_places_behind_a_padding_place_are_counted(self) -> None:
        from transformers import RobertaConfig, RobertaForSequenceClassification

        config = RobertaConfig(
            vocab_size=64,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            max_position_embeddings=34,
            num_labels=3,
        )
        model = RobertaForSequenceClassification(config)
        assert Input.of(model) == Input(vocabulary=64, context_tokens=32, classes=3)
        model(torch.ones((1, 32), dtype=torch.long) * 5)
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.ones((1, 33), dtype=torch.long) * 5)

    def test_a_token_that_the_model_has_not_is_told(self) -> None:
        """On a GPU such an index ends every later computation of the process."""
        rows, left_out = encode_rows(
            tiny()[1], [PAIRS[0]], 64, Input(vocabulary=8, context_tokens=None, classes=None)
        )
        assert rows[0].tokens == ()
        assert left_out[0].reason == "example-tokens"

    def test_thousands_of_turns_are_not_encoded_thousands_of_times(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, tokenizer = tiny()
        calls = []
        apply = type(tokenizer).apply_chat_template
        monkeypatch.setattr(
            type(tokenizer),
            "apply_chat_template",
            lambda *args, **named: calls.append(1) or apply(*args, **named),
        )
        row = encode_example(tokenizer, turns(*["user", "assistant"] * 2_000), 64)
        assert len(row.tokens) == 64
        assert len(calls) < 80

    def test_what_is_told_quotes_nothing_of_the_row(self) -> None:
        secret = "my secret"
        _, tokenizer = tiny()
        quoting = "{{ raise_exception(messages[0]['content']) }}"
        tokenizer.chat_template = quoting
        rows: list[Any] = [
            (secret, "b"),
            {secret: secret},
            {"text": secret, "label": secret},
            {"messages": [{"role": "assistant", "content": [secret]}]},
            (secret, None),
        ]
        _, left_out = encode_rows(tokenizer, rows, 64, TAKES)
        assert len(left_out) == len(rows)
        assert secret not in str(left_out)
        assert secret not in str(told(0, ValueError(secret)))
        tokenizer.chat_template = ALTERNATING
        _, (refused,) = encode_rows(tokenizer, [turns("assistant")], 64, TAKES)
        assert refused.sentence.endswith("roles must alternate.")


class Leaves(Mapping[str, Any]):
    """A lazy record whose decoder ends the process."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def __getitem__(self, _: str) -> Any:
        raise self._error

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_a_row_that_ends_the_process_counts_as_zero_in_the_client_s_thread(
    error: type[BaseException],
) -> None:
    manifest = tiny_task(sampling_rate=1.0, clip=1e-3)
    it = trainer(with_row(Leaves(error)))
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(it.contribute, job(manifest)).result()
    assert moved(found, reference(manifest)) == 0
    assert [one.index for one in it.left_out] == [2]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_signal_ends_the_main_thread_s_training(error: type[BaseException]) -> None:
    it = trainer(with_row(Leaves(error)))
    with pytest.raises(error):
        it.contribute(job(tiny_task(sampling_rate=1.0)))


def test_messages_are_read_once() -> None:
    pair = encode_example(TOKENIZER, PAIRS[0], 64)
    messages = [{"role": "user", "content": PAIRS[0][0]}]
    messages.append({"role": "assistant", "content": PAIRS[0][1]})
    assert encode_example(TOKENIZER, {"messages": iter(messages)}, 64) == pair


def test_messages_without_an_end_hold_up_nothing() -> None:
    endless = itertools.repeat({"role": "user", "content": ""})
    with pytest.raises(ContributionError, match="example-long"):
        encode_example(TOKENIZER, {"messages": endless}, 64)


class TestDifferentiation:
    """Rows that encode, and at which the model fails: in a pass of several, then alone."""

    @pytest.mark.parametrize("method", ["hooks", "loop"])
    @pytest.mark.parametrize("error", [RuntimeError, IndexError, MemoryError, Panic])
    @pytest.mark.parametrize("backward", [False, True])
    def test_the_rows_beside_a_failing_one_count_as_they_did(
        self, method: Any, error: type[BaseException], backward: bool
    ) -> None:
        manifest = tiny_task(sampling_rate=1.0, clip=1e-3)
        it = trainer(with_row((MARK, "b")), method=method)
        with failing_at_mark(it, error, backward):
            found = it.contribute(job(manifest))
        # Float rounding of other matrix products alone: at most a unit here and there.
        assert moved(found, reference(manifest)) < 1e-3 * manifest.segments[0].clip_units
        (left_out,) = it.left_out
        assert (left_out.index, left_out.reason) == (2, "example-failed")
        assert left_out.sentence == f"The example raised {error.__name__}."

    @pytest.mark.parametrize("method", ["hooks", "loop"])
    def test_a_row_whose_loss_is_not_finite_counts_as_zero(self, method: Any) -> None:
        manifest = tiny_task(sampling_rate=1.0, clip=1e-3)
        it = trainer(with_row((MARK, "b")), method=method)
        with not_finite_at_mark(it):
            found = it.contribute(job(manifest))
        assert moved(found, reference(manifest)) < 1e-3 * manifest.segments[0].clip_units
        assert [(one.index, one.reason) for one in it.left_out] == [(2, "example-not-finite")]

    @pytest.mark.parametrize("backward", [False, True])
    def test_a_pass_that_raised_leaves_nothing_to_the_next(self, backward: bool) -> None:
        """Activations and counters that Opacus kept of it would be taken for the next pass's."""
        it = trainer(with_row((MARK, "b")))
        it.contribute(job(tiny_task()))
        adapted = it._adapted
        assert adapted is not None
        rows, _ = it._encode(64)
        failed: list[int] = []

        def gradients(method: Any) -> ExampleGradients:
            return ExampleGradients(
                adapted.model,
                adapted.parameters,
                pad_token=0,
                method=method,
                failed=lambda row, _: failed.append(row.index),
            )

        with gradients("loop") as loop:
            loop.run(rows[3:])
            expected = loop.flat()
        with failing_at_mark(it, RuntimeError, backward), gradients("hooks") as hooks:
            losses = hooks.run(rows[:4])
            assert failed == [2]
            assert losses.isfinite().tolist() == [True, True, False, True]
            assert not hooks.flat()[2].any()
            for _ in range(2):
                assert hooks.run(rows[3:]).isfinite().all()
                assert float((hooks.flat() - expected).norm()) < 1e-5 * float(expected.norm())
        for module in adapted.model.modules():
            assert not {"activations", "max_batch_len"} & set(vars(module))
        for parameter in adapted.parameters:
            assert not hasattr(parameter, "_current_grad_sample")
            assert not hasattr(parameter, "_forward_counter")

    def test_alone_and_beside_others_gradients_differ_by_rounding_of_floats(self) -> None:
        """What a failing neighbour does to a row: 1e-6 of a unit of the clip's grid."""
        manifest = tiny_task(clip=1e-3)
        it = trainer(PAIRS)
        it.contribute(job(manifest))
        adapted = it._adapted
        assert adapted is not None
        rows, _ = it._encode(64)
        with ExampleGradients(adapted.model, adapted.parameters, pad_token=0) as gradients:
            gradients.run(rows)
            together = gradients.flat().double()
            alone = []
            for row in rows:
                gradients.run([row])
                alone.append(gradients.flat().double())
        norms = together.norm(dim=1, keepdim=True)
        apart = (together - torch.cat(alone)) / norms * manifest.segments[0].clip_units
        assert float(apart.abs().max()) < 1e-4  # units

    def test_the_time_is_looked_at_between_rows_that_run_alone(self) -> None:
        now = [0.0]
        it = trainer(with_row((MARK, "b")), micro_batch=7, clock=lambda: now[0])
        manifest = tiny_task(sampling_rate=1.0, training={"micro_batch": 7})
        it.contribute(job(manifest))  # with the self-test, which takes no time from the next

        def late(*_: Any) -> None:
            now[0] += 1.0

        handle = passed(it).model.layers[0].register_forward_pre_hook(late)
        failing = failing_at_mark(it, RuntimeError, backward=False)
        with failing, pytest.raises(ContributionError, match="training-deadline"):
            it.contribute(job(manifest, deadline_s=3.0))
        handle.remove()
        assert 3.0 <= now[0] <= 4.0  # the whole pass and three rows


WEIGHTED = {"training": {"weight_unit": 100}}
ALGORITHMS: dict[str, tuple[Any, str | None, dict[str, Any]]] = {
    "fedavg A": ("local", "fedavg", {"sampling_rate": 0.75}),
    "fedavg": ("none", "fedavg", WEIGHTED),
    "fedavg B": ("none", "fedavg", {"device_noise_multiplier": 3.0}),
    "fedprox A": ("local", "fedprox", {"sampling_rate": 0.75}),
    "fedadam": ("none", "fedadam", WEIGHTED),
    "fednova": ("none", "fednova", {"training": {"weight_unit": 100, "local_epochs": 2}}),
    "scaffold": ("none", "scaffold", {}),
    "fedbuff": ("none", "fedbuff", {}),
    "zeroth order C": ("distributed", "zeroth-order", {"sampling_rate": 1.0}),
    "zeroth order": ("none", "zeroth-order", WEIGHTED),
    "evaluation": (
        "none",
        "evaluation",
        {"training": {"weight_unit": 100, "denominator": 0.0}},
    ),
    "product": ("none", "fedavg", {"kind": "product", **WEIGHTED}),
    "fedsvd C": ("distributed", None, {"kind": "fedsvd", "sampling_rate": 1.0}),
    "rolora C": ("distributed", None, {"kind": "rolora", "sampling_rate": 1.0}),
}


@pytest.mark.parametrize("task", ALGORITHMS.values(), ids=ALGORITHMS.keys())
def test_rows_that_fail_change_nothing_of_what_the_others_give(
    task: tuple[Any, str | None, dict[str, Any]],
) -> None:
    """Nor do they claim weight, or a place in a mean."""
    privacy, algorithm, changes = task
    manifest = tiny_task(privacy, algorithm, **changes)
    terms: dict[str, Any] = {}
    if algorithm == "scaffold":
        terms["correction"] = np.zeros(len(job(manifest).vector))
    found = []
    for rows in (PAIRS, [*PAIRS, (MARK, "b"), ("What is AI?", None)]):
        it = trainer(rows)
        with failing_at_mark(it, RuntimeError, backward=False):
            found.append(check_values(manifest, it.contribute(job(manifest, **terms))))
    assert {6, 7} >= {one.index for one in it.left_out} >= {7}
    for name, values in found[0].items():
        scale = max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(found[1][name], values, rtol=1e-5, atol=2e-6 * scale)


class TestWithoutExamples:
    """No example, or none that can be used: noise alone where there is noise."""

    @pytest.mark.parametrize(
        ("privacy", "changes"),
        [
            ("distributed", {"sampling_rate": 1.0}),
            ("distributed", {"algorithm": "zeroth-order", "sampling_rate": 1.0}),
            ("local", {"sampling_rate": 0.75}),
            ("none", {"device_noise_multiplier": 3.0}),
            ("none", {"algorithm": "zeroth-order", "device_noise_multiplier": 3.0}),
        ],
    )
    def test_no_example_and_one_that_fails_give_the_same(
        self, privacy: Any, changes: dict[str, Any]
    ) -> None:
        manifest = tiny_task(privacy, **changes)
        found = []
        for rows in ([], [("What is AI?", None)]):
            it = trainer(rows)
            with pytest.warns(UserWarning, match="noise alone"):
                found.append(check_values(manifest, it.contribute(job(manifest))))
        assert moved(*found) == 0
        assert np.any(next(iter(found[0].values()))) == (privacy == "local")

    def test_where_warnings_are_errors_the_device_does_not_stay_away(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.filterwarnings("ignore", message="Full backward hook")
            trainer([]).contribute(job(tiny_task("local", sampling_rate=0.75)))

    @pytest.mark.parametrize(
        "algorithm", ["fedavg", "fednova", "fedbuff", "zeroth-order", "evaluation"]
    )
    @pytest.mark.parametrize("rows", [[], [("What is AI?", None), ("a", 1)]])
    def test_without_noise_it_is_refused_and_said_why(
        self, algorithm: str, rows: list[Any]
    ) -> None:
        training = {"weight_unit": 100.0 if algorithm != "fedbuff" else 0.0, "denominator": 0.0}
        manifest = tiny_task("none", algorithm, training=training)
        with pytest.raises(TaskRefusal) as refused:
            trainer(rows).contribute(job(manifest))
        assert refused.value.reason == "dataset-empty"
        assert refused.value.found == ({"example-form": 2} if rows else "no example")

    def test_where_every_example_fails_in_training_nothing_is_sent_without_noise(self) -> None:
        it = trainer([(MARK, "a"), (MARK, "b")])
        failing = failing_at_mark(it, RuntimeError, backward=False)
        with failing, pytest.raises(ContributionError, match="examples-failed") as failed:
            it.contribute(job(tiny_task("none")))
        assert not isinstance(failed.value, TaskRefusal)  # the next model may do


def of_classifier() -> Manifest:
    return manifest_of("bert", "ffa-lora", model_of("bert"), clip=1e-3)


def passed(it: LoraTrainer) -> Any:
    """The model that passes are made of: the app's before the first job, then its twin."""
    model: Any = it.model
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def failing_at_mark(it: LoraTrainer, error: type[BaseException], backward: bool) -> Iterator[None]:
    """The model raises in its second layer for every batch with the mark, forward or backward."""

    def fail(*_: Any) -> None:
        raise error(MARK)

    def look(_module: Any, inputs: Any, output: Any) -> None:
        if not marked[-1]:
            return
        if not backward:
            fail()
        hidden = output[0] if isinstance(output, tuple) else output
        hidden.register_hook(fail)

    with _marked(it) as marked:
        handle = passed(it).model.layers[-1].register_forward_hook(look)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def not_finite_at_mark(it: LoraTrainer) -> Iterator[None]:
    """The embeddings of the mark's tokens are infinite for rows that begin with it."""

    def spoil(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        has = torch.tensor([_has_mark(row) for row in inputs[0].tolist()])
        return torch.where(has[:, None, None], torch.inf, output)

    handle = passed(it).get_input_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _marked(it: LoraTrainer) -> Iterator[list[bool]]:
    """Whether the pass under way has a row with the mark."""
    marked = [False]

    def look(_module: Any, inputs: Any) -> None:
        marked.append(any(_has_mark(row) for row in inputs[0].tolist()))

    handle = passed(it).get_input_embeddings().register_forward_pre_hook(look)
    try:
        yield marked
    finally:
        handle.remove()


def _has_mark(tokens: list[int]) -> bool:
    mark = TOKENIZER(MARK)["input_ids"]
    return any(tokens[i : i + len(mark)] == mark for i in range(len(tokens)))


_references: dict[str, Mapping[str, Any]] = {}


def reference(manifest: Manifest) -> Mapping[str, Any]:
    """What the good pairs alone give."""
    name = f"{manifest.algorithm} {manifest.example_privacy}"
    if name not in _references:
        _references[name] = alternating(trainer(PAIRS)).contribute(job(manifest))
    return _references[name]
