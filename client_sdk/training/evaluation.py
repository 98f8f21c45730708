"""What a model with or without an adapter does on held-out pairs, and one answer to look at."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from client_sdk.errors import ContributionError
from client_sdk.training.coins import without_coins
from client_sdk.training.dataset import NOTHING_COUNTS, Input, encode_rows, open_dataset
from client_sdk.training.examples import Example, encode_prompt
from client_sdk.training.gradients import sequence_losses

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def evaluate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example] | str | os.PathLike[str],
    *,
    max_tokens: int = 64,
    micro_batch: int = 8,
) -> float:
    """Mean over the examples of each one's mean loss per answer token, in nats.

    Examples of which nothing is to be learnt, such as an answer that is cut off whole by
    ``max_tokens``, are left out, with a warning of how many.

    Args:
        examples: as :class:`client_sdk.LoraTrainer` takes them.

    Raises:
        ContributionError: ``evaluation-empty`` if nothing remains; else why an example cannot be
            used, with its place; or as :func:`client_sdk.training.dataset.open_dataset`.
    """
    rows, left_out = encode_rows(
        tokenizer, open_dataset(examples), max_tokens, Input.of(cast("PreTrainedModel", model))
    )
    for one in left_out:
        if one.reason not in NOTHING_COUNTS:
            raise ContributionError(one.reason, str(one))
    rows = tuple(sorted((row for row in rows if row.tokens), key=lambda row: len(row.tokens)))
    if not rows:
        raise ContributionError("evaluation-empty", "No example has an answer to evaluate.")
    if left_out:
        warnings.warn(
            f"{len(left_out)} of {len(left_out) + len(rows)} examples are left out. {left_out[0]}",
            stacklevel=2,
        )
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    total = 0.0
    with without_coins(model), torch.inference_mode():
        for start in range(0, len(rows), micro_batch):
            losses = sequence_losses(model, rows[start : start + micro_batch], pad)
            total += float(losses.double().sum())
    return total / len(rows)


def generate_answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 48,
) -> str:
    """The model's most likely answer to one question (greedy: no coins)."""
    tokens = torch.tensor([encode_prompt(tokenizer, prompt)], device=model.device)
    with without_coins(model), torch.inference_mode():
        generate: Any = model.generate
        output = generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
    return str(tokenizer.decode(output[0, tokens.shape[1] :], skip_special_tokens=True)).strip()
