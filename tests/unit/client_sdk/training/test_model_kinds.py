"""Kinds of models that a trainer of one text cannot teach."""

from __future__ import annotations

import pytest
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForConditionalGeneration,
    BartForSequenceClassification,
)

import client_sdk
from client_sdk.training.adapted import fingerprint_of
from tests.kits.tiny_training import job, tiny, tiny_task


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
