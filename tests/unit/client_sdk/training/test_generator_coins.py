"""Coins that are not ours: nothing that a generator draws, and no other row, reaches a gradient.

Dropout that is not ``nn.Dropout``, layer drop, router jitter and noisy embeddings are off in every
way of computing; what draws all the same, or mixes rows, is refused before any data is used.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from client_sdk.errors import TaskRefusal
from client_sdk.training import self_test
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.algorithms import work as work_module
from client_sdk.training.algorithms import zeroth_order
from client_sdk.training.algorithms.work import Work
from client_sdk.training.coins import generator_states, torch_states_kept, without_coins
from client_sdk.training.examples import Row
from client_sdk.training.gradients import ExampleGradients, Method
from client_sdk.training.lora import adapter_spec, base_fingerprint, vector_length
from client_sdk.training.trainer import LoraTrainer
from dp.contracts import BudgetSpec, TaskSpec, TrainingSpec
from secagg.manifest import BaseModel, Manifest
from tests.kits.tasks import built, seeded, six
from tests.kits.tiny_training import job, tiny, tiny_task

VOCABULARY = 1024  # that of the tiny tokenizer
TEXTS = ("What is AI?", "Who are you?", "Hi", "Do you like music?", "And the weather, how is it?")
PAIRS = [(text, f"{text} {text[: 5 * i]} I see.") for i, text in enumerate(TEXTS)]
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LLAMA: dict[str, Any] = {**SIZES, "intermediate_size": 24, "pad_token_id": 0}
OPT: dict[str, Any] = {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16, "pad_token_id": 0}
BART: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
}
GPT2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "llama attention_dropout": lambda: LlamaForCausalLM(
        LlamaConfig(**LLAMA, attention_dropout=0.5)
    ),
    "llama eager": lambda: LlamaForCausalLM(
        LlamaConfig(**LLAMA, attention_dropout=0.5, attn_implementation="eager")
    ),
    "opt as published": lambda: OPTForCausalLM(OPTConfig(**OPT)),
    "opt layerdrop": lambda: OPTForCausalLM(OPTConfig(**OPT, layerdrop=0.5, attention_dropout=0.5)),
    "bart layerdrop": lambda: BartForCausalLM(
        BartConfig(**BART, decoder_layerdrop=0.5, activation_dropout=0.5)
    ),
    "gpt2 as published": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "mixtral jitter": lambda: MixtralForCausalLM(
        MixtralConfig(**LLAMA, num_key_value_heads=2, num_local_experts=4, router_jitter_noise=0.5)
    ),
}
TARGETS = {"gpt2 as published": ("c_attn",)}
METHODS: tuple[Method, ...] = ("hooks", "loop")
WAYS = [
    ("hooks", "fedsgd"),
    ("loop", "fedsgd"),
    ("hooks", "zeroth-order"),
    ("hooks", "evaluation"),
]


@cache
def tokenizer() -> Any:
    return tiny()[1]


def model_of(name: str = "llama") -> Any:
    torch.manual_seed(7)  # weights, not noise
    return MODELS[name]()


def task_for(
    model: Any, name: str = "llama", algorithm: str = "fedsgd", **changes: Any
) -> Manifest:
    terms: dict[str, Any] = {"privacy": "distributed", "sampling_rate": 1.0}
    training = {"max_tokens": 48, "micro_batch": 4}
    if algorithm == "zeroth-order":
        training |= {"directions": 3, "perturbation": 0.01}
    if algorithm == "evaluation":
        terms = {"privacy": "none"}
        training |= {"local_steps": 1, "weight_unit": len(PAIRS)}
    if changes.get("privacy") == "none":
        terms = {}
    return built(
        TaskSpec(
            **{
                "task": "coins",
                "removable_noise": False,
                "algorithm": algorithm,
                "base_model": BaseModel(name=name, fingerprint=base_fingerprint(model)),
                "adapter": adapter_spec(
                    model, "ffa-lora", 2, 4, TARGETS.get(name, ("q_proj", "v_proj")), bytes(32)
                ),
                "cohort": six(),
                "budget": BudgetSpec(max_epsilon=None),
                "training": TrainingSpec(**training),
                **terms,
                **changes,
            }
        )
    )


def contribution(model: Any, manifest: Manifest, method: Method = "hooks", **options: Any) -> Any:
    it = LoraTrainer(
        model, tokenizer(), PAIRS, threads=1, method=method, random_bytes=seeded(3), **options
    )
    assert manifest.adapter is not None
    vector = np.random.default_rng(0).normal(0, 0.1, vector_length(manifest.adapter))
    return it.contribute(job(manifest, vector.astype(np.float32)))


def refusal(model: Any, method: Method = "hooks", algorithm: str = "fedsgd", **changes: Any) -> Any:
    with pytest.raises(TaskRefusal) as caught:
        contribution(model, task_for(model, algorithm=algorithm, **changes), method)
    return caught.value


def first_layer(model: Any) -> nn.Module:
    layer = model.model.layers[0]
    assert isinstance(layer, nn.Module)
    return layer


def hidden_changed(change: Callable[[Tensor], Tensor], model: Any | None = None) -> Any:
    """A model whose first layer sees ``change`` of its input, [rows, positions, width]."""
    model = model_of() if model is None else model
    first_layer(model).register_forward_pre_hook(
        lambda _module, inputs: (change(inputs[0]), *inputs[1:])
    )
    return model


# What the libraries call dropout, jitter and noise


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(MODELS))
def test_the_sum_is_the_same_whatever_torch_was_seeded_with(name: str, method: Method) -> None:
    manifest = task_for(model_of(name), name)
    tokenizer()  # with it comes a model, whose weights are drawn
    sums = []
    for seed in (1, 2):
        model = model_of(name)
        torch.manual_seed(seed)
        before = generator_states(model)
        sums.append(contribution(model, manifest, method)["gradient"])
        assert generator_states(model) == before
    assert sums[0].any()
    assert np.array_equal(*sums)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "llama"])
def test_in_training_mode_the_same_gradients_are_coins(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the context manager is for: without it the seed decides."""
    adapted = AdaptedModel(
        model := model_of(name), manifest := task_for(model, name), base_fingerprint(model)
    )
    assert manifest.adapter is not None
    adapted.load(np.full(vector_length(manifest.adapter), 0.1, np.float32))

    def gradients(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with ExampleGradients(
            adapted.model, adapted.parameters, pad_token=0, method="loop"
        ) as found:
            found.run([Row(tuple(range(3, 40)), (True,) * 37)])
            return found.flat()

    assert torch.equal(gradients(1), gradients(2))
    monkeypatch.setattr("client_sdk.training.gradients.without_coins", training_mode)
    assert not torch.equal(gradients(1), gradients(2))


class training_mode:
    def __init__(self, model: nn.Module, *, training: bool) -> None:
        model.train()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_layers_under_checkpointing_stay_in_training_mode_without_their_dropout() -> None:
    model = model_of("opt layerdrop")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    decoder = model.model.decoder
    with without_coins(model, training=True):
        assert not decoder.training
        assert all(layer.training and layer.dropout == 0 for layer in decoder.layers)
        assert not any(layer.self_attn.training for layer in decoder.layers)
    manifest = task_for(model, "opt layerdrop")
    found = contribution(model, manifest)["gradient"]
    plain = contribution(model_of("opt layerdrop"), manifest)["gradient"]
    assert plain.any()
    assert np.abs(found - plain).max() <= 2 * len(PAIRS)


def noisy_embeddings(respects_the_mode: bool) -> Any:
    """NEFTune (Jain et al. 2023) as transformers' Trainer hooks it in, or without asking."""
    model = model_of()
    model.get_input_embeddings().register_forward_hook(
        lambda module, _inputs, output: (
            output + torch.empty_like(output).uniform_(-0.1, 0.1)
            if module.training or not respects_the_mode
            else None
        )
    )
    return model


@pytest.mark.parametrize(("method", "algorithm"), WAYS)
def test_noisy_embeddings_are_off_or_refused(method: Method, algorithm: str) -> None:
    manifest = task_for(model_of(), algorithm=algorithm)
    plain, quiet = (
        contribution(model, manifest, method) for model in (model_of(), noisy_embeddings(True))
    )
    for name, values in plain.items():
        assert np.array_equal(values, quiet[name])
    refused = refusal(noisy_embeddings(False), method, algorithm)
    assert (refused.reason, refused.found) == ("model-coins", ["torch"])


# The guard that goes by no name


def from_numpy(hidden: Tensor) -> Tensor:
    return hidden * (1 + 1e-9 * np.random.random())


def from_python(hidden: Tensor) -> Tensor:
    return hidden * (1 + 1e-9 * random.random())


def functional(hidden: Tensor) -> Tensor:
    return nn.functional.dropout(hidden, 0.1)  # training=True is its default


@pytest.mark.parametrize(("method", "algorithm"), WAYS)
@pytest.mark.parametrize(
    ("change", "name"),
    [(functional, "torch"), (from_numpy, "numpy.random"), (from_python, "random")],
)
def test_a_pass_that_draws_is_refused_however_little_it_changes(
    change: Callable[[Tensor], Tensor], name: str, method: Method, algorithm: str
) -> None:
    refused = refusal(hidden_changed(change), method, algorithm)
    assert (refused.reason, refused.found) == ("model-coins", [name])
    assert "method=" not in str(refused)


def own_generator() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda hidden: hidden * (1 + 0.1 * torch.rand(1, generator=generator))


def hidden_draw() -> Callable[[Tensor], Tensor]:
    """torch's own generator, put back before anyone looks."""

    def change(hidden: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            return hidden * (1 + 0.1 * torch.rand(1))

    return change


def counting() -> Callable[[Tensor], Tensor]:
    """No coin, but what came before decides."""
    passes = []

    def change(hidden: Tensor) -> Tensor:
        passes.append(1)
        return hidden * (1 + 0.01 * len(passes))

    return change


@pytest.mark.parametrize(("method", "algorithm"), WAYS)
@pytest.mark.parametrize("coins", [own_generator, hidden_draw, counting])
def test_two_runs_that_differ_are_refused_where_no_generator_moves(
    coins: Callable[[], Callable[[Tensor], Tensor]], method: Method, algorithm: str
) -> None:
    refused = refusal(hidden_changed(coins()), method, algorithm)
    assert refused.reason == "model-coins"
    assert "method=" not in str(refused)


def test_a_draw_of_another_thread_meanwhile_refuses_nothing() -> None:
    draws = [None]

    def once(hidden: Tensor) -> Tensor:
        if draws:
            draws.pop()
            random.random()
        return hidden

    model = hidden_changed(once)
    assert contribution(model, task_for(model))["gradient"].any()
    assert not draws


# Rows that depend on each other


def batch_mean(hidden: Tensor) -> Tensor:
    return hidden - hidden.mean(0, keepdim=True) / 2


def batch_norm() -> Callable[[Tensor], Tensor]:
    """Without running statistics it norms by the batch in evaluation mode too."""
    norm = nn.BatchNorm1d(SIZES["hidden_size"], track_running_stats=False)
    return lambda hidden: norm(hidden.transpose(1, 2)).transpose(1, 2)


def nearest_row(hidden: Tensor) -> Tensor:
    """Rows in the order of their norms, and each sees a little of the one before it."""
    order = hidden.flatten(1).norm(dim=1).argsort()
    before = torch.empty_like(hidden)
    before[order] = hidden[order.roll(1)]
    return hidden + before / 2


def with_capacity(hidden: Tensor) -> Tensor:
    """A router as Switch's, over all tokens of the batch: an expert has room for 1.25 times its
    part, whoever comes later passes by."""
    tokens = hidden.reshape(-1, hidden.shape[-1])
    expert = tokens.detach()[:, :4].argmax(1)
    chosen = nn.functional.one_hot(expert, 4)
    place = (chosen.cumsum(0) * chosen).sum(1)
    room = (place <= 1.25 * len(tokens) / 4)[:, None]
    return torch.where(room, tokens * (2 + expert[:, None]), tokens).view_as(hidden)


MIXING = [lambda: batch_mean, batch_norm, lambda: nearest_row, lambda: with_capacity]


@pytest.mark.parametrize("mixing", MIXING, ids=["mean", "norm", "order", "capacity"])
@pytest.mark.parametrize("algorithm", ["fedsgd", "zeroth-order", "evaluation"])
def test_a_model_that_mixes_the_rows_of_a_pass_is_refused_and_one_by_one_it_is_right(
    mixing: Callable[[], Callable[[Tensor], Tensor]], algorithm: str
) -> None:
    changes = {"privacy": "none"} if algorithm == "zeroth-order" else {}
    refused = refusal(hidden_changed(mixing()), algorithm=algorithm, **changes)
    assert refused.reason == "gradient-self-test"
    assert "method='loop'" in str(refused)
    model, sizes = hidden_changed(mixing()), []
    first_layer(model).register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    contribution(model, task_for(model, algorithm=algorithm, **changes), "loop")
    assert set(sizes) == {1}


def test_batch_norm_with_running_statistics_neither_mixes_rows_nor_learns_from_them() -> None:
    norm = nn.BatchNorm1d(SIZES["hidden_size"])
    model = model_of()
    first_layer(model).norm = norm
    norm.requires_grad_(False)
    hidden_changed(lambda hidden: norm(hidden.transpose(1, 2)).transpose(1, 2), model)
    assert contribution(model, task_for(model))["gradient"].any()
    assert not norm.running_mean.any()
    assert norm.training


def test_the_remedy_names_no_method_that_fails_too() -> None:
    """Rows mix and coins fall: the loop would be refused as well."""
    model = hidden_changed(own_generator(), hidden_changed(batch_mean))
    refused = refusal(model)
    assert refused.reason == "model-coins"
    assert "no method trains it" in str(refused)


# Mixtures of experts


def stretched() -> Any:
    """Rotary positions that stretch where the longest row of a pass has more than 32 tokens."""
    torch.manual_seed(7)
    stretch = {
        "rope_type": "longrope",
        "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    }
    sizes = LLAMA | {"max_position_embeddings": 128, "initializer_range": 0.5}
    return LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=stretch))


@pytest.mark.parametrize("algorithm", ["fedsgd", "evaluation"])
def test_positions_that_stretch_with_a_pass_s_longest_row_are_refused(algorithm: str) -> None:
    refused = refusal(stretched(), algorithm=algorithm)
    assert refused.reason == "gradient-self-test"
    model = stretched()
    contribution(model, task_for(model, algorithm=algorithm), "loop")


def test_positions_that_stretch_where_no_row_is_that_long_are_right() -> None:
    model = stretched()
    contribution(model, task_for(model, training=TrainingSpec(max_tokens=32, micro_batch=4)))


@pytest.mark.parametrize("method", METHODS)
def test_what_draws_for_long_rows_alone_is_refused(method: Method) -> None:
    def draws(hidden: Tensor) -> Tensor:
        return hidden + torch.rand(()) if hidden.shape[1] > 32 else hidden

    assert refusal(hidden_changed(draws), method).reason == "model-coins"


@pytest.mark.parametrize("method", METHODS)
def test_what_remembers_the_longest_row_so_far_is_refused(method: Method) -> None:
    longest = [32]

    def stretches(hidden: Tensor) -> Tensor:
        length = hidden.shape[1]
        longest[0] = max(longest[0], length) if length > 32 else 32
        return hidden * longest[0]

    model = hidden_changed(lambda hidden: hidden + stretches(torch.ones_like(hidden)))
    assert refusal(model, method).reason in ("model-coins", "gradient-self-test")


def test_rows_longer_than_the_self_test_s_never_share_a_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, passes = model_of(), []
    first_layer(model).register_forward_hook(lambda _m, inputs, _o: passes.append(len(inputs[0])))
    it = LoraTrainer(model, tokenizer(), PAIRS, threads=1, random_bytes=seeded(3))
    manifest = task_for(model)
    it.contribute(job(manifest))
    assert it._rows is not None
    lengths = sorted(len(row.tokens) for row in it._rows[1])
    monkeypatch.setattr(work_module, "TESTED_TOKENS_MAX", lengths[1])
    tested = sum(length <= lengths[1] for length in lengths)
    passes.clear()
    it.contribute(job(manifest))
    assert 2 <= tested <= 3
    assert passes == [tested] + [1] * (len(PAIRS) - tested)


def test_a_padding_token_that_the_model_has_not_is_not_used() -> None:
    """A careless ``add_special_tokens`` without ``resize_token_embeddings``."""
    own = tiny()[1]
    own.add_special_tokens({"pad_token": "[NEW]"})
    model = model_of()
    assert own.pad_token_id >= model.get_input_embeddings().weight.shape[0]
    it = LoraTrainer(model, own, PAIRS, threads=1, random_bytes=seeded(3))
    assert it.contribute(job(task_for(model)))["gradient"].any()
    assert not it.left_out


@pytest.mark.parametrize("method", METHODS)
def test_a_mixture_of_experts_is_passed_row_by_row(method: Method) -> None:
    model, sizes = model_of("mixtral jitter"), []
    first_layer(model).register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    contribution(model, task_for(model, "mixtral jitter"), method)
    assert set(sizes) == {1}


def test_a_routers_auxiliary_loss_is_no_part_of_an_example() -> None:
    found = []
    for logits in (False, True):
        model = model_of("mixtral jitter")
        model.config.output_router_logits = logits
        found.append(contribution(model, task_for(model, "mixtral jitter"))["gradient"])
    assert found[0].any()
    assert np.array_equal(*found)


# Floats of one pass


def slopes(model: Any, manifest: Manifest, places: list[int], method: Method) -> dict[int, Any]:
    adapted = AdaptedModel(model, manifest, base_fingerprint(model))
    assert manifest.adapter is not None
    adapted.load(np.zeros(vector_length(manifest.adapter), np.float32))
    rows = [Row(tuple(range(3 + i, 9 + 3 * i)), (True,) * (6 + 2 * i)) for i in range(5)]
    work = Work(
        adapted=adapted,
        rows=rows,
        pad_token=0,
        micro_batch=4,
        method=method,
        random_bytes=seeded(0),
        clock=lambda: 0.0,
        deadline_s=None,
        stopped=lambda: False,
    )
    found, _ = zeroth_order._slopes(manifest, work, np.array(places))
    return dict(zip(places, found.tolist(), strict=True))  # rows are ordered by length


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_example_moves_another_s_slopes_by_a_single_bit(dtype: torch.dtype) -> None:
    manifest = task_for(model_of().to(dtype), algorithm="zeroth-order")
    model, sizes = model_of().to(dtype), []
    first_layer(model).register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    full = slopes(model, manifest, [0, 1, 2, 3, 4], "hooks")
    assert set(sizes) == {1}
    for gone in range(5):
        others = [i for i in range(5) if i != gone]
        less = slopes(model_of().to(dtype), manifest, others, "hooks")
        assert all(less[i] == full[i] for i in others)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("algorithm", ["fedsgd", "evaluation"])
def test_half_precision_is_refused_in_batches_and_right_by_the_loop(
    dtype: torch.dtype, algorithm: str
) -> None:
    refused = refusal(model_of().to(dtype), algorithm=algorithm)
    assert refused.reason == "gradient-self-test"
    assert "method='loop'" in str(refused)
    assert "float32" in str(refused)
    model, sizes = model_of().to(dtype), []
    first_layer(model).register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    found = contribution(model, task_for(model, algorithm=algorithm), "loop")
    assert all(np.any(values) for name, values in found.items() if name != "accuracy")
    assert set(sizes) == {1}


# The app's model afterwards


def state_of(model: Any) -> dict[str, Any]:
    base = getattr(model, "get_base_model", lambda: model)()
    plain = {n.replace(".base_layer", ""): m for n, m in base.named_modules() if "lora" not in n}
    return {
        "modes": {name: module.training for name, module in plain.items()},
        "rates": {
            (name, key): value
            for name, module in plain.items()
            for key, value in vars(module).items()
            if isinstance(value, float)
        },
        "config": base.config.to_dict(),
    }


@pytest.mark.parametrize("name", ["opt layerdrop", "gpt2 as published", "mixtral jitter"])
@pytest.mark.parametrize("algorithm", ["fedsgd", "zeroth-order", "evaluation"])
@pytest.mark.parametrize("given", ["train", "eval", "mixed"])
def test_modes_rates_and_configuration_are_as_they_were(
    name: str, algorithm: str, given: str
) -> None:
    model = model_of(name)
    model.train(given != "eval")
    if given == "mixed":
        next(module for module in model.modules() if isinstance(module, nn.Linear)).eval()
    before = state_of(model)
    manifest = task_for(model, name, algorithm)
    contribution(model, manifest)
    assert state_of(model) == before


@pytest.mark.parametrize("method", METHODS)
def test_after_a_refusal_the_model_is_the_app_s_again(method: Method) -> None:
    fail = [False]

    def sometimes(hidden: Tensor) -> Tensor:
        return functional(hidden) if fail else hidden

    model = hidden_changed(sometimes).eval()
    fail.clear()
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        answer = model(tokens).logits
    before = state_of(model)
    fail.append(True)
    assert refusal(model, method).reason == "model-coins"
    fail.clear()
    assert state_of(model) == before
    assert not any("lora" in parameter for parameter, _ in model.named_parameters())
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, answer)


def test_an_error_within_the_passes_leaves_everything_as_it_was() -> None:
    model = model_of("opt layerdrop")
    before = state_of(model)

    def stopped() -> None:
        with without_coins(model, training=True):
            assert state_of(model) != before
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert state_of(model) == before


def test_each_way_is_tested_once_and_for_what_a_later_task_does() -> None:
    model = model_of()
    it = LoraTrainer(model, tokenizer(), PAIRS, threads=1, random_bytes=seeded(3))
    manifest = task_for(model)
    passes: list[int] = []
    first_layer(model).register_forward_hook(lambda _m, inputs, _o: passes.append(len(inputs[0])))
    it.contribute(job(manifest))
    first = len(passes)
    it.contribute(job(manifest))
    assert len(passes) - first < first  # no second test
    # Three rows alone and all three in one pass; the same for four as long as the task admits.
    assert first - (len(passes) - first) == 4 + 5
    assert manifest.training is not None
    smaller = msgspec.structs.replace(
        manifest, training=msgspec.structs.replace(manifest.training, micro_batch=2)
    )
    passes.clear()
    it.contribute(job(smaller))
    assert passes[:5] == [1, 1, 1, 2, 1]


def test_a_model_that_does_not_run_on_tokens_alone_is_refused_by_name() -> None:
    def breaks(_hidden: Tensor) -> Tensor:
        raise ValueError("You have to specify decoder_input_ids")

    refused = refusal(hidden_changed(breaks))
    assert refused.reason == "model-self-test"
    assert "decoder_input_ids" in str(refused)


def test_trainers_of_one_process_move_the_generators_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else what one seeds and puts back looks to another like a model that draws."""
    model, tokenizer = tiny()
    threads, moved = [], []

    def states(of: Any) -> dict[str, bytes]:
        entered = threading.Event()

        def another() -> None:
            with torch_states_kept(model, other=True):
                entered.set()

        threads.append(threading.Thread(target=another))
        threads[-1].start()
        moved.append(entered.wait(0.02))
        return generator_states(of)

    monkeypatch.setattr(self_test, "generator_states", states)
    LoraTrainer(model, tokenizer, [("a b", "c d")]).contribute(job(tiny_task()))
    for thread in threads:
        thread.join()
    assert moved
    assert not any(moved)
