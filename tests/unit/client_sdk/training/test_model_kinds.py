"""Kinds of models that a trainer of one text cannot teach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import client_sdk
import secagg_cli.models.cache
from client_sdk.training.adapted import check_adapter, check_kind, fingerprint_of
from client_sdk.training.lora import adapter_spec, base_fingerprint
from dp.contracts import BudgetSpec, TaskSpec, TrainingSpec
from secagg.errors import ConfigurationError
from secagg.manifest import BaseModel, Manifest
from secagg_cli.operator.task import AdapterKind, _describe
from tests.kits.tasks import built, seeded, six
from tests.kits.tiny_training import job, tiny, tiny_task

BERT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
UNFIT: dict[str, Callable[[], Any]] = {
    "masked": lambda: BertForMaskedLM(BertConfig(**BERT)),
    "tokens": lambda: BertForTokenClassification(BertConfig(**BERT, num_labels=2)),
    "regression": lambda: BertForSequenceClassification(BertConfig(**BERT, num_labels=1)),
    "images": lambda: ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
        )
    ),
}


def llama(vocabulary: int = 1024, *, tied: bool = False, width: int = 16) -> Any:
    config = LlamaConfig(**BERT | {"vocab_size": vocabulary, "hidden_size": width})
    config.tie_word_embeddings = tied
    torch.manual_seed(7)  # weights
    return LlamaForCausalLM(config)


def task_of(model: Any, *targets: str) -> Manifest:
    return built(
        TaskSpec(
            task="kinds",
            algorithm="fedsgd",
            removable_noise=False,
            sampling_rate=1.0,
            base_model=BaseModel(name="kind", fingerprint=base_fingerprint(model)),
            adapter=adapter_spec(model, "ffa-lora", 2, 4, targets, bytes(32)),
            cohort=six(),
            budget=BudgetSpec(max_epsilon=None),
            training=TrainingSpec(max_tokens=16, micro_batch=2),
        )
    )


def trained(model: Any, manifest: Manifest) -> Any:
    trainer = client_sdk.LoraTrainer(
        model, tiny()[1], [("Who are you?", "A model.")], random_bytes=seeded(1)
    )
    return trainer.contribute(job(manifest))["gradient"]


def refused(model: Any, manifest: Manifest) -> client_sdk.TaskRefusal:
    with pytest.raises(client_sdk.TaskRefusal) as caught:
        trained(model, manifest)
    return caught.value


def test_a_linear_layer_of_the_model_s_own_is_trained() -> None:
    """Falcon's is a subclass of torch's."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(7)  # weights
    model = FalconForCausalLM(FalconConfig(vocab_size=1024, **sizes, bos_token_id=1))
    assert trained(model, task_of(model, "query_key_value", "dense")).any()


def test_another_library_s_linear_layer_is_no_target() -> None:
    """Its weights may be quantised, or used past the layer."""

    class Quantised(nn.Linear):
        pass

    model = llama()
    manifest = task_of(model, "q_proj")
    for layer in model.model.layers:
        layer.self_attn.q_proj.__class__ = Quantised
    refusal = refused(model, manifest)
    assert (refusal.reason, refusal.tensor) == ("adapter-targets", "q_proj")
    assert "k_proj" in str(refusal.remedy)
    assert "quantisation" in str(refusal.remedy)
    with pytest.raises(ConfigurationError, match="adapter-targets"):
        adapter_spec(model, "lora", 2, 4, ["q_proj"], bytes(32))


@pytest.mark.parametrize("tied", [False, True])
def test_targets_that_are_not_there_are_answered_with_those_that_are(tied: bool) -> None:
    with pytest.raises(ConfigurationError) as caught:
        adapter_spec(llama(tied=tied), "lora", 2, 4, ["query"], bytes(32))
    listed = str(caught.value.remedy).partition("this model has ")[2].rstrip(".").split(", ")
    own = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert listed == sorted([*own, *([] if tied else ["lm_head"])])


@pytest.mark.parametrize("kind", UNFIT)
def test_models_that_read_or_answer_otherwise_are_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the device, before any data, and by the operator's command."""
    model = UNFIT[kind]()
    assert refused(model, tiny_task()).reason == "model-kind"
    monkeypatch.setattr(secagg_cli.models.cache, "ensure_model", lambda _: Path("x"))
    monkeypatch.setattr(secagg_cli.models.cache, "load_model", lambda _: (model, None))
    with pytest.raises(client_sdk.TaskRefusal, match="model-kind"):
        _describe("x", AdapterKind.lora, 2, 4, "query", 0)


def test_targets_that_take_no_adapter_are_refused_before_a_task_is_created() -> None:
    model = MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=64))
    check_kind(model)
    adapter = adapter_spec(model, "lora", 2, 4, ["out_proj"], bytes(32))
    with pytest.raises(client_sdk.TaskRefusal) as caught:
        check_adapter(model, adapter)
    assert caught.value.reason == "adapter-targets"
    assert "Mamba" in str(caught.value.found)


def test_another_base_model_is_told_with_a_tensor_that_does_not_fit() -> None:
    manifest = task_of(llama(), "q_proj")
    same = llama()
    nn.init.ones_(same.lm_head.weight)
    assert refused(same, manifest).tensor is None  # of the same shapes
    refusal = refused(llama(width=32), manifest)
    assert refusal.reason == "base-model"
    assert str(refusal.tensor).endswith("layers.0.self_attn.q_proj.lora_B.weight")


def test_a_tokenizer_of_another_model_is_refused_whatever_the_data() -> None:
    """Not one to which tokens were added that no example has."""
    model = llama(32)
    refusal = refused(model, task_of(model, "q_proj"))
    assert (refusal.reason, refusal.tensor) == ("model-tokenizer", "model.embed_tokens.weight")
    own = tiny()[1]
    own.add_special_tokens({"pad_token": "[NEW]"})
    whole = llama()
    trainer = client_sdk.LoraTrainer(whole, own, [("Hi", "Hello")], random_bytes=seeded(1))
    trainer.contribute(job(task_of(whole, "q_proj")))
    assert not trainer.left_out
    assert trainer.failure is None


def test_an_encoder_decoder_is_refused_before_it_is_trained() -> None:
    """Its decoder would see the answer in its encoder: losses fall, and nothing is learnt."""
    sizes = {"vocab_size": 64, "d_model": 16, "decoder_layers": 1, "encoder_layers": 1}
    heads = {"decoder_attention_heads": 2, "encoder_attention_heads": 2, "decoder_ffn_dim": 16}
    config = BartConfig(**sizes, **heads, encoder_ffn_dim=16, max_position_embeddings=64)
    _, tokenizer = tiny()
    trainer = client_sdk.LoraTrainer(BartForConditionalGeneration(config), tokenizer, [("a", "b")])
    with pytest.raises(client_sdk.TaskRefusal) as caught:
        trainer.contribute(job(tiny_task()))
    assert caught.value.reason == "model-kind"
    assert "BartForConditionalGeneration" in str(caught.value)
    fingerprint_of(BartForCausalLM(config))  # a decoder alone
    fingerprint_of(BartForSequenceClassification(config))
