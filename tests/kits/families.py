"""Small random models of the families that docs/quickstart-sdk.md lists, by transformers' class."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from client_sdk import LoraTrainer
from client_sdk.training.lora import adapter_spec, base_fingerprint
from dp.contracts import BudgetSpec, TaskSpec, TrainingSpec
from secagg.manifest import BaseModel, Manifest
from tests.kits.model_families import examples_for
from tests.kits.tasks import built, six
from tests.kits.tiny_training import job, tiny

_VOCABULARY = 1024  # of the tiny tokenizer
_PLAIN = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 80,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_HEADS = _GROUPED | {"head_dim": 8}
_MARKS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80, "vocab_size": _VOCABULARY}
_BLOCKS = {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": _VOCABULARY}
_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32}
_QV = ("q_proj", "v_proj")


class Family(NamedTuple):
    """``config``: of a model of two small layers. ``targets``: linear layers to adapt."""

    config: dict[str, Any]
    targets: tuple[str, ...] = _QV


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(_GROUPED | _MARKS),
    "MistralForCausalLM": Family(_GROUPED | _MARKS),
    "MixtralForCausalLM": Family(_GROUPED | _MARKS | {"num_local_experts": 4}),
    "Qwen2ForCausalLM": Family(_GROUPED | _MARKS),
    "Qwen3ForCausalLM": Family(_HEADS | _MARKS),
    "Qwen2MoeForCausalLM": Family(
        _GROUPED | _MARKS | _EXPERTS | {"shared_expert_intermediate_size": 32}
    ),
    "Qwen3MoeForCausalLM": Family(_HEADS | _MARKS | _EXPERTS | {"num_experts_per_tok": 2}),
    "GemmaForCausalLM": Family(_HEADS | _MARKS),
    "Gemma2ForCausalLM": Family(_HEADS | _MARKS),
    "Gemma3ForCausalLM": Family(_HEADS | _MARKS),
    "PhiForCausalLM": Family(_PLAIN | _MARKS),
    "Phi3ForCausalLM": Family(_GROUPED | _MARKS, ("qkv_proj", "o_proj")),
    "OPTForCausalLM": Family(
        {
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": _VOCABULARY,
            "max_position_embeddings": 80,
            "word_embed_proj_dim": 32,
        }
        | _MARKS
    ),
    "GPT2LMHeadModel": Family(_GPT | _MARKS, ("c_attn",)),
    "GPTNeoForCausalLM": Family(
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": _VOCABULARY,
            "max_position_embeddings": 80,
            "attention_types": [[["global", "local"], 1]],
        }
        | _MARKS
    ),
    "GPTNeoXForCausalLM": Family(_PLAIN | _MARKS, ("query_key_value",)),
    "GPTJForCausalLM": Family(_GPT | _MARKS | {"rotary_dim": 4}),
    "FalconForCausalLM": Family(
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": _VOCABULARY,
        }
        | _MARKS,
        ("query_key_value",),
    ),
    "BloomForCausalLM": Family(
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": _VOCABULARY} | _MARKS,
        ("query_key_value",),
    ),
    "MptForCausalLM": Family(_BLOCKS | {"max_seq_len": 80}, ("Wqkv",)),
    "LlavaForConditionalGeneration": Family(
        {
            "text_config": _GROUPED | _MARKS | {"model_type": "llama"},
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 16,  # five places: fewer than a text's
                "projection_dim": 32,
            },
        }
    ),
    "BertForSequenceClassification": Family(
        _PLAIN | {"num_labels": 2, "pad_token_id": 0}, ("query", "value")
    ),
    "DistilBertForSequenceClassification": Family(
        {
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": 2,
            "n_heads": 4,
            "vocab_size": _VOCABULARY,
            "max_position_embeddings": 80,
            "num_labels": 2,
            "pad_token_id": 0,
        },
        ("q_lin", "v_lin"),
    ),
    "ModernBertForSequenceClassification": Family(
        _PLAIN | _MARKS | {"num_labels": 2, "cls_token_id": 1, "sep_token_id": 1}, ("Wqkv",)
    ),
    "LlamaForSequenceClassification": Family(_GROUPED | _MARKS | {"num_labels": 2}),
    "GPT2ForSequenceClassification": Family(_GPT | _MARKS | {"num_labels": 2}, ("c_attn",)),
}

_SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "vocab_size": _VOCABULARY,
}
# With the stable reason of the refusal.
REFUSED: dict[str, tuple[Family, str]] = {
    "MambaForCausalLM": (
        Family(
            {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": _VOCABULARY} | _MARKS,
            ("in_proj", "out_proj"),
        ),
        "adapter-targets",
    ),
    "T5ForConditionalGeneration": (
        Family(
            {
                "d_model": 32,
                "d_ff": 48,
                "num_layers": 2,
                "num_heads": 4,
                "d_kv": 8,
                "vocab_size": _VOCABULARY,
                "decoder_start_token_id": 3,
            },
            ("q", "v"),
        ),
        "model-kind",
    ),
    "BartForConditionalGeneration": (
        Family(_SEQ2SEQ | {"max_position_embeddings": 80}),
        "model-kind",
    ),
    "WhisperForConditionalGeneration": (
        Family(
            _SEQ2SEQ
            | _MARKS
            | {"num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 80}
            | {"decoder_start_token_id": 1}
        ),
        "model-kind",
    ),
    "ViTForImageClassification": (
        Family(
            {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 16,
            }
        ),
        "model-kind",
    ),
}


def family_of(name: str) -> Family:
    return FAMILIES[name] if name in FAMILIES else REFUSED[name][0]


def model_of(name: str) -> PreTrainedModel:
    torch.manual_seed(7)  # weights, not noise
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**family_of(name).config))
    assert isinstance(model, PreTrainedModel)
    return model


def manifest_of(name: str, model: PreTrainedModel) -> Manifest:
    targets = family_of(name).targets
    return built(
        TaskSpec(
            task="families",
            removable_noise=False,
            sampling_rate=1.0,
            base_model=BaseModel(name=name, fingerprint=base_fingerprint(model)),
            adapter=adapter_spec(model, "ffa-lora", 2, 4, targets, bytes(range(32))),
            cohort=six(),
            budget=BudgetSpec(max_epsilon=None),
            training=TrainingSpec(max_tokens=32, micro_batch=4),
        )
    )


def contribution_of(
    name: str, model: PreTrainedModel | None = None, **options: Any
) -> tuple[LoraTrainer, dict[str, Any]]:
    """One contribution of a device with a model of this family, with options of the trainer."""
    model = model_of(name) if model is None else model
    manifest = manifest_of(name, model)
    kind = "bert" if name.endswith("SequenceClassification") else "llama"
    trainer = LoraTrainer(model, tiny()[1], examples_for(kind), threads=1, **options)
    return trainer, dict(trainer.contribute(job(manifest)))
