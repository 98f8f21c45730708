"""How long per-example gradients are, and what of them points one way: what a clip is planned by.

Nothing here is private. It is for rows that are public, and like those that devices hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client_sdk.errors import ContributionError
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.dataset import Input, encode_rows, reasons_of
from client_sdk.training.gradients import ExampleGradients
from secagg.manifest import TrainingManifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from client_sdk.training.examples import Example

EXAMPLES_MAX = 256
SHARES = (1.0, 0.5, 0.25)  # of the median norm: clips that are tried


@dataclass(frozen=True)
class ClipSurvey:
    """Gradients of ``examples`` examples at the start of a training.

    ``signals``: for each clip that was tried the length of the mean of clipped gradients over it.
    """

    examples: int
    left_out: int
    median: float
    signals: tuple[tuple[float, float], ...]


def survey_clip(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Sequence[Example],
    manifest: TrainingManifest,
) -> ClipSurvey:
    """Two passes over the first ``EXAMPLES_MAX`` examples, one at a time.

    Args:
        model: the task's base model; the adapter is injected in place.
        dataset: as of :class:`client_sdk.training.trainer.LoraTrainer`.

    Raises:
        TaskRefusal: as :class:`AdaptedModel`.
        ContributionError: ``examples-too-few``: fewer than two of them have a gradient.
    """
    if manifest.base_model is None:
        raise ContributionError("base-model", "The task names no base model.")
    takes = Input.of(model)
    adapted = AdaptedModel(model, manifest, manifest.base_model.fingerprint)
    adapted.load(np.zeros(adapted.vector_length, np.float32))
    examples = [dataset[place] for place in range(min(len(dataset), EXAMPLES_MAX))]
    rows, left_out = encode_rows(tokenizer, examples, manifest.training.max_tokens, takes)

    def gradients() -> Iterator[NDArray[np.float64]]:
        alone = ExampleGradients(adapted.model, adapted.parameters, pad_token=0, method="loop")
        with alone as passes:
            for row in rows:
                if row.tokens:
                    passes.run([row])
                    yield passes.flat()[0].double().numpy()

    norms = np.array([float(np.linalg.norm(gradient)) for gradient in gradients()])
    moved = norms[norms > 0]
    if len(moved) < 2:
        raise ContributionError(
            "examples-too-few",
            "A median needs at least two examples that have a gradient.",
            expected="at least 2",
            found=f"{len(moved)} of {len(rows)}; left out: {reasons_of(left_out) or 'none'}",
        )
    median = float(np.median(moved))
    clips = [share * median for share in SHARES]
    sums = np.zeros((len(clips), adapted.length))
    for norm, gradient in zip(norms, gradients(), strict=True):
        for total, clip in zip(sums, clips, strict=True):
            if norm > 0:
                total += gradient * min(1.0, clip / norm)
    signals = [
        (clip, mean_length(total, np.minimum(moved, clip)) / clip)
        for clip, total in zip(clips, sums, strict=True)
    ]
    return ClipSurvey(len(moved), len(rows) - len(moved), median, tuple(signals))


def mean_length(total: NDArray[np.float64], norms: NDArray[np.float64]) -> float:
    """Length of the mean of the distribution from which n vectors of these norms were drawn.

    From pairs of different vectors, ``(|sum|^2 - sum of |v|^2) / (n (n - 1))``, whose expectation
    is the squared length: the mean of few vectors is longer than that by chance.

    Args:
        total: float64[d], their sum.
    """
    count = len(norms)
    pairs = float(total @ total) - float(norms @ norms)
    return math.sqrt(max(0.0, pairs) / (count * (count - 1)))
