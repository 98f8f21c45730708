"""What training was good for: held-out loss and one generated answer, before and after.

The model is loaded once; the adapter is loaded with plain peft onto the same weights.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from secagg_cli.models.libraries import collector_paused
from secagg_cli.output import CommandError

if TYPE_CHECKING:
    from secagg_cli.models.corpus import Pair

_NEW_TOKENS = 32


class Measured(NamedTuple):
    """``loss``: mean over the held-out pairs of each answer's mean loss per token, in nats."""

    loss: float
    answer: str


class Evaluator:
    """The conductor's own copy of the base model."""

    def __init__(self, folder: Path, heldout: Sequence[Pair]) -> None:
        """Raises: CommandError ``demo-model`` for a model that writes no text."""
        from secagg_cli.models.cache import load_model

        self.model, self.tokenizer = load_model(folder)
        if not self.model.can_generate():
            raise CommandError(
                "demo-model",
                f"{folder} is not a language model, and the demo's data are conversations.",
                remedy="Train a classifier with secagg serve, task create and join.",
            )
        self._heldout = list(heldout)

    def measure(self, prompt: str) -> Measured:
        """The base model alone, on one thread: the devices are at work beside it."""
        with collector_paused():
            import peft  # noqa: F401  takes seconds, and is needed in the end
            import torch

        torch.set_num_threads(1)
        return self._measure(self.model, prompt)

    def measure_adapter(self, adapter: Path, prompt: str) -> Measured:
        """With the adapter that plain ``PeftModel.from_pretrained`` loads, on all cores."""
        import torch
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's use of transformers' old names
            model = PeftModel.from_pretrained(self.model, str(adapter))
        torch.set_num_threads(os.cpu_count() or 1)
        return self._measure(model, prompt)

    def _measure(self, model: Any, prompt: str) -> Measured:
        from client_sdk.training.evaluation import evaluate, generate_answer
        from secagg_cli.models.presets import MAX_TOKENS

        loss = evaluate(model, self.tokenizer, self._heldout, max_tokens=MAX_TOKENS)
        answer = generate_answer(model, self.tokenizer, prompt, max_new_tokens=_NEW_TOKENS)
        return Measured(loss, answer)
