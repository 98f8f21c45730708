"""The frozen first layers of a causal model, evaluated once per conversation.

Where only the last layers are adapted, what the first ones make of a conversation never changes.
On a device the same is done by keeping activations (FedAdapter, Cai et al., arXiv 2205.10162);
here it is what makes the runs of ``benchmarks.quality`` with SmolLM2 short enough.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Tokens = tuple[int, ...]


def freeze_below(model: Any, adapted: int, pad_token: int) -> None:
    """Replace all but the last ``adapted`` layers of a Llama-like model by one that remembers.

    The modules of the replaced layers are hidden, so that no adapter's target is found in them.
    """
    layers = model.model.layers
    part = FrozenPart(layers[: len(layers) - adapted], pad_token)
    model.model.layers = nn.ModuleList([part, *layers[len(layers) - adapted :]])
    model.model.embed_tokens.register_forward_pre_hook(part.see)


class FrozenPart(nn.Module):
    """Layers without gradients, whose outputs are kept by the tokens of a row.

    Rows are padded on the right and attention is causal, so a position's output depends on no later
    token, whatever the batch. Positions after the last token that is not padding are zero: nothing
    attends to them, and no loss counts there. Copies share layers and memory.
    """

    def __init__(self, layers: nn.ModuleList, pad_token: int) -> None:
        super().__init__()
        self._layers = (layers.requires_grad_(False).eval(),)  # in a tuple: no submodule
        self._pad_token = pad_token
        self._kept: dict[Tokens, Tensor] = {}
        self._rows: list[Tokens] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenPart:
        return self

    def see(self, _module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Remember the tokens that are embedded: int64[rows, positions]."""
        self._rows = [self._stripped(row) for row in arguments[0].tolist()]

    def forward(self, hidden: Tensor, **options: Any) -> Tensor:
        """float32[rows, positions, width], as the layers would give it."""
        if any(row not in self._kept for row in self._rows):
            found = hidden
            with torch.no_grad():
                for layer in self._layers[0]:
                    found = layer(found, **options)
            for row, values in zip(self._rows, found, strict=True):
                self._kept.setdefault(row, values[: len(row)].clone())
        made = torch.zeros_like(hidden)
        for target, row in zip(made, self._rows, strict=True):
            target[: len(row)] = self._kept[row]
        return made

    def _stripped(self, row: list[int]) -> Tokens:
        end = len(row)
        while end and row[end - 1] == self._pad_token:
            end -= 1
        return tuple(row[:end])
