"""Small models of each family, with examples and a task for each."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from client_sdk.training.examples import Example
from client_sdk.training.lora import adapter_spec, base_fingerprint
from dp.contracts import BudgetSpec, TaskSpec, TrainingSpec
from secagg.manifest import AdapterKind, BaseModel, Manifest
from tests.kits.tasks import built, six

VOCABULARY = 1024  # that of the tiny tokenizer
DROPOUT = 0.1  # as both libraries' defaults; off while gradients are computed
TARGETS = {"llama": ("q_proj", "v_proj"), "gpt2": ("c_attn",), "bert": ("query", "value")}


def model_of(family: str) -> Any:
    torch.manual_seed(7)  # weights, not noise
    if family == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                pad_token_id=0,
            )
        )
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=80,
                bos_token_id=1,
                eos_token_id=1,
                attn_pdrop=DROPOUT,
                resid_pdrop=DROPOUT,
                embd_pdrop=DROPOUT,
            )
        )
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            num_labels=2,
            initializer_range=0.3,  # so that a random, frozen head tells something
            hidden_dropout_prob=DROPOUT,
            attention_probs_dropout_prob=DROPOUT,
        )
    )


def examples_for(family: str) -> list[Example]:
    if family != "bert":
        return [
            ("What is AI?", "A field of science."),
            ("Who are you?", "A small model."),
            ("Hi", "Hello there, how are you today?"),
            ("Do you like music?", "Yes."),
        ]
    good, bad = ("good fine nice great", "bad poor worse awful")
    return [
        {"text": f"{good if i % 2 else bad} {'day ' * (1 + i % 3)}", "label": i % 2}
        for i in range(8)
    ]


def manifest_of(family: str, kind: AdapterKind, model: Any, **changes: Any) -> Manifest:
    adapter = adapter_spec(model, kind, 4, 8, TARGETS[family], bytes(range(32)))
    return built(
        TaskSpec(
            **{
                "task": family,
                "removable_noise": False,
                "algorithm": "fedsgd",
                "privacy": "distributed",
                "sampling_rate": 1.0,
                "base_model": BaseModel(name=family, fingerprint=base_fingerprint(model)),
                "adapter": adapter,
                "cohort": six(),
                "budget": BudgetSpec(max_epsilon=None),
                "training": TrainingSpec(max_tokens=64, micro_batch=4),
                **changes,
            }
        )
    )
