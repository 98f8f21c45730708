"""How much signal a clip leaves: gradients of the devices' examples at the start of a task.

    python -m benchmarks.quality_clip --model smollm2

Noise is in proportion to the clip, so what counts is the length of the mean clipped gradient in
clips. It grows as the clip falls to where nearly all are clipped, and stays there: the best clip is
at or below the median norm. Data are those of the tuning seed of ``benchmarks.quality``.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import data_of
from benchmarks.quality_plan import BATCH_PLANS
from benchmarks.quality_rows import MAX_TOKENS, model_of, row_named, task_of
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.examples import encode_example
from client_sdk.training.gradients import ExampleGradients
from secagg.lora.forms import vector_length

_CLIPS = (4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
_ROWS_PER_PASS = 8


def signal(gradients: NDArray[np.floating], clip: float) -> tuple[float, float]:
    """Of float[examples, d]: the mean's length in clips after the clip, and the share clipped."""
    norms = np.linalg.norm(gradients, axis=1)
    factors = clip / np.maximum(norms, clip)
    mean = np.mean(gradients * factors[:, None], axis=0)
    return float(np.linalg.norm(mean)) / clip, float(np.mean(norms > clip))


def gradients_of(model: str, clients: int = 6) -> NDArray[np.float32]:
    """float32[examples, d]: of all devices' examples, with FFA-LoRA, before the first step."""
    seed = BATCH_PLANS[model].tuning_seeds[0]
    base, tokenizer, fingerprint = model_of(model)
    manifest = task_of(row_named("FFA-LoRA b=1"), model, clients, 4, seed, 1.0, 8.0)
    adapted = AdaptedModel(copy.deepcopy(base), manifest, fingerprint)
    assert manifest.adapter is not None
    adapted.choose(0)
    adapted.load(np.zeros(vector_length(manifest.adapter), np.float32))
    found = []
    for pairs in data_of(clients, seed, "tune")[0]:
        rows = [encode_example(tokenizer, pair, MAX_TOKENS) for pair in pairs]
        rows.sort(key=lambda row: len(row.tokens))
        with ExampleGradients(
            adapted.model, adapted.parameters, pad_token=tokenizer.pad_token_id or 0
        ) as gradients:
            for start in range(0, len(rows), _ROWS_PER_PASS):
                gradients.run(rows[start : start + _ROWS_PER_PASS])
                found.append(gradients.flat().numpy())
    return np.concatenate(found)


def lines_of(gradients: NDArray[np.floating]) -> Iterator[str]:
    norms = np.percentile(np.linalg.norm(gradients, axis=1), (25, 50, 75))
    low, median, high = (f"{norm:.2f}" for norm in norms)
    yield f"{len(gradients)} examples, norms {median} (quartiles {low} and {high})"
    for clip in _CLIPS:
        length, clipped = signal(gradients, clip)
        yield f"clip {clip:g}: signal {length:.2f}, {100 * clipped:.0f} % clipped"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny", choices=sorted(BATCH_PLANS))
    for line in lines_of(gradients_of(parser.parse_args().model)):
        print(line)


if __name__ == "__main__":
    main()
