"""How long per-example gradients are, and what of them points one way: what a clip is planned by.

Nothing here is private. It is for rows that are public, and like those that devices hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from client_sdk.errors import ContributionError
from client_sdk.training.adapted import AdaptedModel, without_adapter
from client_sdk.training.dataset import Input, encode_rows, reasons_of
from client_sdk.training.examples import Row
from client_sdk.training.gradients import ExampleGradients
from client_sdk.training.units import units_of
from secagg.manifest import TrainingManifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from client_sdk.training.examples import Example

EXAMPLES_MAX = 256
NUMBERS_MAX = 1 << 28  # of all gradients together, in memory: a gigabyte
SHARES = (1.0, 0.5, 0.25)  # of the median norm: clips that are tried


@dataclass(frozen=True)
class ClipSurvey:
    """Gradients of ``units`` units of protection at the start of a training: of examples, or of
    persons or documents, each the sum over its rows.

    ``examples``: rows in them; ``left_out``: rows that were looked at and are in none.
    ``signals``: for each clip that was tried the length of the mean of clipped gradients over it.
    """

    units: int
    examples: int
    left_out: int
    median: float
    signals: tuple[tuple[float, float], ...]


def survey_clip(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Sequence[Example],
    manifest: TrainingManifest,
    tell: Callable[[int, int], None] = lambda _done, _all: None,
) -> ClipSurvey:
    """One pass over the first ``EXAMPLES_MAX`` examples, or fewer where the adapter is large.

    Args:
        model: the task's base model, which stays as it is.
        dataset: as of :class:`client_sdk.training.trainer.LoraTrainer`.
        tell: called with the examples that are done, and all.

    Raises:
        TaskRefusal: as :class:`AdaptedModel`.
        ContributionError: ``examples-too-few``: fewer than two units have a gradient.
    """
    if manifest.base_model is None:
        raise without_adapter()
    takes = Input.of(model)
    adapted = AdaptedModel(model, manifest, manifest.base_model.fingerprint)
    adapted.load(np.zeros(adapted.vector_length, np.float32))
    most = min(len(dataset), EXAMPLES_MAX, max(2, NUMBERS_MAX // adapted.length))
    examples = [dataset[place] for place in range(most)]
    rows, left_out = encode_rows(tokenizer, examples, manifest.training.max_tokens, takes)
    found = {}
    # One at a time: the reference of per-example gradients, for any model.
    one = ExampleGradients(adapted.model, adapted.parameters, pad_token=0, method="loop")
    with one as passes:
        for done, row in enumerate(rows, 1):
            if row.tokens:
                passes.run([row])
                if (gradient := passes.flat()[0].numpy()).any():
                    found[row.index] = gradient
            tell(done, most)
    members = [
        own for group in _groups(rows, manifest) if (own := [r for r in group if r in found])
    ]
    gradients = np.array([sum(found[row] for row in own) for own in members])
    if len(gradients) < 2:
        raise ContributionError(
            "examples-too-few",
            "A median needs at least two gradients of units.",
            expected="at least 2",
            found=f"{len(gradients)} of {most}; left out: {reasons_of(left_out) or 'none'}",
        )
    norms = np.linalg.norm(gradients, axis=1)
    median = float(np.median(norms))
    signals = tuple(
        (share * median, mean_length(gradients, np.minimum(1 / norms, 1 / (share * median))))
        for share in SHARES
    )
    used = sum(map(len, members))
    return ClipSurvey(len(gradients), used, most - used, median, signals)


def _groups(rows: Sequence[Row], manifest: TrainingManifest) -> list[list[int]]:
    """The rows of each unit that the task protects, as many as it takes of one."""
    privacy = manifest.example_privacy
    if privacy is None or privacy.unit_rows_max is msgspec.UNSET:
        return [[row.index] for row in rows]
    names, _ = units_of(rows, privacy.protects)
    groups: dict[str, list[int]] = {}
    for row, name in zip(rows, names, strict=True):
        if name is not None:
            groups.setdefault(name, []).append(row.index)
    return [own[: privacy.unit_rows_max] for own in groups.values()]


def mean_length(vectors: NDArray[np.float32], weights: NDArray[np.float32]) -> float:
    """Length of the mean of the distribution from which the weighted vectors were drawn.

    From pairs of different vectors, ``(|sum|^2 - sum of |v|^2) / (n (n - 1))``, whose expectation
    is the squared length: the mean of few vectors is longer than that by chance.

    Args:
        vectors: float32[n, d].
        weights: float32[n].
    """
    count = len(vectors)
    total = (weights @ vectors).astype(np.float64)
    own = (weights * np.linalg.norm(vectors, axis=1)).astype(np.float64)
    pairs = float(total @ total) - float(own @ own)
    return math.sqrt(max(0.0, pairs) / (count * (count - 1)))
