"""A classifier small enough to make on the spot. An app loads its own with transformers."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

_WORDS = ("[PAD]", "[UNK]", "a", "the", "film", "plot", "good", "great", "dull", "bad", "was")


def small_model() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same weights each time: all devices of a task have the same base model."""
    torch.manual_seed(1)
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(_WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(_WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        num_labels=2,
    )
    return BertForSequenceClassification(config).eval(), tokenizer
