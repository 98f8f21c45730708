"""Per-example gradients: right, bounded per example, and refused where they would be wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from client_sdk.errors import ContributionError
from client_sdk.training.adapted import AdaptedModel, fingerprint_of
from client_sdk.training.examples import Row, encode_example, encode_prompt
from client_sdk.training.gradients import ExampleGradients, sequence_losses
from client_sdk.training.lora import vector_length
from client_sdk.training.self_test import check_rows_apart
from secagg_cli.models.corpus import load_clients
from tests.kits.tiny_training import job, tiny, tiny_fingerprint, tiny_task, trainer

PAIRS = load_clients(6)[1].train[:6]


@pytest.fixture(params=["lora", "ffa-lora"])
def adapted(request):
    manifest = tiny_task("none", kind=request.param)
    model = AdaptedModel(tiny()[0], manifest, tiny_fingerprint())
    length = vector_length(manifest.adapter)
    model.load(np.random.default_rng(0).normal(0, 0.05, length).astype(np.float32))
    return model


@pytest.fixture
def rows():
    _, tokenizer = tiny()
    return [encode_example(tokenizer, pair, 64) for pair in PAIRS]


def _gradients(adapted, rows, method):
    with ExampleGradients(
        adapted.model, adapted.parameters, pad_token=0, method=method
    ) as gradients:
        losses = gradients.run(rows)
        return losses.double(), gradients.flat().double()


def test_hooks_equal_the_loop_on_rows_of_different_lengths(adapted, rows):
    assert len({len(row.tokens) for row in rows}) > 2
    losses, hooks = _gradients(adapted, rows, "hooks")
    loop_losses, loop = _gradients(adapted, rows, "loop")
    assert (hooks - loop).norm() < 1e-5 * loop.norm()
    assert torch.allclose(losses, loop_losses, atol=1e-5)


def test_one_examples_gradient_does_not_depend_on_its_batch(adapted, rows):
    _, together = _gradients(adapted, rows, "hooks")
    _, alone = _gradients(adapted, rows[2:3], "hooks")
    assert (together[2] - alone[0]).norm() < 1e-5 * alone.norm()


def test_token_mean_loss_breaks_the_clip_and_ours_does_not(adapted):
    """transformers' ``labels=``: the batch's token count scales every example's gradient."""
    short = Row((2, 40, 3, 50, 1), (False, False, False, True, True))
    long = Row(tuple(range(2, 62)), (False,) * 3 + (True,) * 57)

    def token_mean(rows):
        """Gradient of the mean over all tokens, scaled per example as Opacus would (times n)."""
        gradients = []
        counted = sum(sum(row.counts[1:]) for row in rows)
        for row in rows:
            own = sequence_losses(adapted.model, [row], 0).sum() * sum(row.counts[1:])
            gradient = torch.autograd.grad(own * len(rows) / counted, adapted.parameters)
            gradients.append(torch.cat([g.flatten() for g in gradient]).double())
        return torch.stack(gradients)

    def influence(per_example):
        """How far adding ``long`` moves the sum of clipped gradients, over the clip."""
        alone, both = per_example([short]), per_example([short, long])
        clip = 0.3 * float(alone[0].norm())  # so that both are clipped, unless wrongly scaled

        def clipped(gradients):
            return sum(g * min(1.0, clip / float(g.norm())) for g in gradients)

        return float((clipped(both) - clipped(alone)).norm()) / clip

    assert influence(lambda rows: _gradients(adapted, rows, "hooks")[1]) <= 1.0 + 1e-6
    assert influence(token_mean) > 1.05  # the violation


def test_a_bad_example_counts_as_zero_and_spoils_nothing(adapted, rows, monkeypatch):
    _, good = _gradients(adapted, rows, "hooks")
    real = sequence_losses

    def one_overflows(model, batch, pad_token):
        factors = torch.ones(len(batch))
        factors[1] = torch.inf
        return real(model, batch, pad_token) * factors

    monkeypatch.setattr("client_sdk.training.gradients.sequence_losses", one_overflows)
    _, found = _gradients(adapted, rows, "hooks")
    assert not found[1].any()
    others = [0, *range(2, len(rows))]
    assert torch.allclose(found[others], good[others])


@pytest.fixture
def head_inputs(adapted):
    """The shape of what the head got in each pass so far."""
    seen = []
    head = adapted.model.get_base_model().get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape)))
    yield seen
    handle.remove()


def plain_losses(model, rows):
    """By definition, one row at a time, from the logits of all positions."""
    losses = []
    for row in rows:
        tokens = torch.tensor([row.tokens])
        surprise = -model(input_ids=tokens).logits[0].log_softmax(-1)
        counted = [
            surprise[t - 1, row.tokens[t]] for t in range(1, len(row.tokens)) if row.counts[t]
        ]
        losses.append(torch.stack(counted).mean() if counted else torch.zeros(()))
    return torch.stack(losses)


@pytest.mark.parametrize("trained_head", [False, True])
def test_the_head_works_for_counted_tokens_alone_unless_it_is_trained(
    adapted, rows, head_inputs, trained_head
):
    adapted.model.get_base_model().lm_head.weight.requires_grad_(trained_head)
    unanswered = Row((3, 5, 7), (False,) * 3)
    first_counts = Row((3, 5, 7), (True, False, True))  # its first token has no prediction
    batch = [*rows, unanswered, first_counts]
    with torch.no_grad():
        found = sequence_losses(adapted.model, batch, 0)
        (shape,) = head_inputs
        assert torch.allclose(found, plain_losses(adapted.model, batch), atol=1e-5)
    counted = sum(sum(row.counts[1:]) for row in batch)
    assert shape[:2] == (
        (len(batch), max(len(row.tokens) for row in batch)) if trained_head else (1, counted)
    )


def test_losses_of_a_large_vocabulary_are_as_exact_as_float32_allows():
    torch.manual_seed(3)  # weights, not noise
    config = LlamaConfig(
        vocab_size=50_000,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        initializer_range=1.0,
    )
    model = LlamaForCausalLM(config).eval()
    row = Row(tuple(range(7, 50_000, 1000)), (True,) * 50)
    with torch.no_grad():
        found = sequence_losses(model, [row], 0)
        expected = plain_losses(model.double(), [row])
    assert float((found - expected).abs() / expected) < 1e-6


def test_rows_without_an_answer_alone_have_no_loss_and_no_gradient(adapted):
    losses, gradients = _gradients(adapted, [Row((3, 5, 7), (False,) * 3)] * 2, "hooks")
    assert losses.tolist() == [0, 0]
    assert not gradients.any()


def test_self_test_refuses_a_model_that_mixes_its_batch(adapted):
    """Anything like batch normalisation couples examples; hooks then give wrong gradients."""
    way = {"method": "hooks", "rows_per_pass": 4, "pad_token": 0, "max_tokens": 64}
    assert check_rows_apart(adapted, "gradients", **way) < 1e-5
    layer = adapted.model.base_model.model.model.layers[0]
    handle = layer.register_forward_pre_hook(
        lambda _module, inputs: (inputs[0] - inputs[0].mean(0, keepdim=True) / 2, *inputs[1:])
    )
    with pytest.raises(ContributionError, match="gradient-self-test"):
        check_rows_apart(adapted, "gradients", **way)
    handle.remove()


def test_the_trainer_runs_the_self_test_before_any_data_is_used():
    it = trainer(PAIRS)
    it._base.model.layers[0].register_forward_pre_hook(
        lambda _module, inputs: (inputs[0] - inputs[0].mean(0, keepdim=True) / 2, *inputs[1:])
    )
    with pytest.raises(ContributionError, match="gradient-self-test"):
        it.contribute(job(tiny_task()))
    assert it._rows is None


def test_a_subset_of_the_trainable_tensors_is_refused(adapted):
    """An optimiser over a part of them would leave the rest without clip and noise."""
    with pytest.raises(ContributionError, match="trainable-set"):
        ExampleGradients(adapted.model, adapted.parameters[:-1], pad_token=0)
    adapted.model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ContributionError, match="trainable-set"):
        ExampleGradients(adapted.model, adapted.parameters, pad_token=0)


def test_hooks_are_gone_afterwards_and_can_be_set_again(adapted, rows):
    was_training = adapted.model.training
    for _ in range(2):  # twice without clean-up would raise
        _gradients(adapted, rows, "hooks")
    assert adapted.model.training is was_training
    for module in adapted.model.modules():
        assert not module._backward_hooks
    assert not any(hasattr(p, "grad_sample") for p in adapted.parameters)
    assert all(p.grad is None for p in adapted.parameters)


def test_loss_counts_answer_tokens_only_and_equals_transformers_on_one_row(adapted):
    _, tokenizer = tiny()
    row = encode_example(tokenizer, ("What is AI?", "A field of science."), 64)
    prompt = encode_prompt(tokenizer, "What is AI?")
    assert not any(row.counts[: len(prompt)])
    assert all(row.counts[len(prompt) :])
    tokens = torch.tensor([row.tokens])
    labels = torch.where(torch.tensor([row.counts]), tokens, -100)
    with torch.no_grad():
        expected = adapted.model(input_ids=tokens, labels=labels).loss
        found = sequence_losses(adapted.model, [row], 0)[0]
        whole = sequence_losses(_WithoutCut(adapted.model), [row], 0)[0]
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(whole) == pytest.approx(float(expected), rel=1e-5)


class _WithoutCut(torch.nn.Module):
    """A model that always computes all logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, attention_mask, use_cache):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


def test_rows_without_an_answer_have_zero_gradient(adapted, rows):
    cut = Row(rows[0].tokens[:4], (False,) * 4)
    losses, gradients = _gradients(adapted, [cut, rows[1]], "hooks")
    assert float(losses[0]) == 0.0
    assert not gradients[0].any()
    assert gradients[1].any()


def test_packed_or_tokenised_rows_are_refused():
    """In a packed row the pack would be the unit that the noise protects."""
    _, tokenizer = tiny()
    for example, reason in (
        ({"input_ids": [1, 2, 3], "labels": [1, 2, 3]}, "example-packed"),
        ({"text": "one<|end|>two"}, "example-form"),
        ([("a", "b"), ("c", "d")], "example-form"),
        ({"messages": [{"role": "user", "content": "no answer"}]}, "example-form"),
        ({"messages": [{"role": "assistant", "content": None}]}, "example-form"),
        ("just text", "example-form"),
    ):
        with pytest.raises(ContributionError, match=reason):
            encode_example(tokenizer, example, 64)


def test_every_turn_of_the_assistant_counts():
    _, tokenizer = tiny()
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you"},
    ]
    row = encode_example(tokenizer, {"messages": messages}, 64)
    counted = [t for t, counts in zip(row.tokens, row.counts, strict=True) if counts]
    assert tokenizer.decode(counted) == "Hello<|end|>See you<|end|>"


def test_tokenizers_without_a_chat_template_serve_too():
    _, tokenizer = tiny()
    tokenizer.chat_template = None
    row = encode_example(tokenizer, ("Question", "Answer"), 64)
    counted = [t for t, counts in zip(row.tokens, row.counts, strict=True) if counts]
    assert tokenizer.decode(counted) == "Answer<|end|>"
    assert list(row.tokens[: -len(counted)]) == encode_prompt(tokenizer, "Question")


def test_a_model_with_an_adapter_already_is_refused():
    manifest = tiny_task("none")
    adapted = AdaptedModel(tiny()[0], manifest, tiny_fingerprint())
    with pytest.raises(ContributionError, match="model-adapted"):
        fingerprint_of(adapted.model)
    with pytest.raises(ContributionError, match="model-adapted"):
        fingerprint_of(adapted.model.get_base_model())
