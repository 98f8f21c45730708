"""What the server does with a mean change in the forms of LoRA that are not plain vectors.

RoLoRA (Chen et al., arXiv 2502.01755) moves one factor per release. FedSVD (Lee et al., arXiv
2505.12805) averages B under a fixed A, then splits the product anew: A becomes the right singular
vectors, B the rest, and devices get both. The product form recovers the mean of the devices'
products from its sketches and keeps the best approximation of the task's rank (as FlexLoRA does;
Bai et al., 2024); how much that cuts off is reported. All of it is post-processing of the sum. No
moments are kept: their coordinates would mean something else after each release.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from secagg.lora.forms import (
    START_LENGTH,
    pairs,
    place,
    size,
    sketch_length,
    tensors_to_vector,
    trained,
    vector_to_tensors,
)
from secagg.lora.sketches import recover, truncated
from secagg.manifest import TrainingManifest

Float64 = NDArray[np.float64]
Moved = tuple[Float64, dict[str, float]]


def alternating(
    manifest: TrainingManifest, vector: Float64, direction: Float64, version: int
) -> Moved:
    """x + eta * direction on the factor of this version's phase."""
    adapter, rate = manifest.adapter, manifest.training.server_learning_rate
    length = size(trained(adapter, version))
    return vector + rate * place(adapter, version, direction[:length]), {}


def resplit(manifest: TrainingManifest, vector: Float64, direction: Float64, version: int) -> Moved:
    """B + eta * direction, then the same product with orthonormal A, if B is not zero."""
    adapter, rate = manifest.adapter, manifest.training.server_learning_rate
    moved = vector + rate * place(adapter, version, direction)
    tensors = vector_to_tensors(adapter, moved.astype(np.float32))
    for pair in pairs(adapter):
        b, a = tensors[pair.b.name].astype(np.float64), tensors[pair.a.name].astype(np.float64)
        if np.any(b):
            b, a, _ = truncated(b, a, adapter.rank)
            tensors[pair.b.name], tensors[pair.a.name] = b.astype(np.float32), a.astype(np.float32)
    return tensors_to_vector(adapter, tensors).astype(np.float64), {}


def multiplied(
    manifest: TrainingManifest, vector: Float64, direction: Float64, version: int
) -> Moved:
    """B A + eta * (mean change of B A), cut to the task's rank; metric ``truncated_share``.

    Of the many factors of the product these are the ones that training itself would have led to.
    Gradient flow on B and A (dB = -G A^T, dA = -B^T G) conserves A A^T - B^T B, which starts near
    L^2 I, so for a singular value s the lengths a and s / a of row and column satisfy
    a^2 - (s / a)^2 = L^2. With orthonormal rows of A (a = 1) every step of B after the first
    release would move the product three times as far as before; measured in docs/algorithms.md.
    """
    adapter, rate = manifest.adapter, manifest.training.server_learning_rate
    tensors = vector_to_tensors(adapter, vector.astype(np.float32))
    at, worst = 0, 0.0
    for pair in pairs(adapter):
        length = sketch_length(adapter, pair)
        left, right = recover(adapter, pair, version, direction[at : at + length])
        at += length
        if not np.any(right):
            continue
        b, a = tensors[pair.b.name].astype(np.float64), tensors[pair.a.name].astype(np.float64)
        b, a, lost = truncated(np.hstack([b, rate * left]), np.vstack([a, right]), adapter.rank)
        worst = max(worst, lost)
        values = np.linalg.norm(b, axis=0)
        lengths = np.sqrt((START_LENGTH**2 + np.sqrt(START_LENGTH**4 + 4 * values**2)) / 2)
        tensors[pair.b.name] = (b / lengths).astype(np.float32)
        tensors[pair.a.name] = (a * lengths[:, None]).astype(np.float32)
    moved = tensors_to_vector(adapter, tensors).astype(np.float64)
    return moved, {"truncated_share": worst}


FORMS: dict[str, Callable[[TrainingManifest, Float64, Float64, int], Moved]] = {
    "rolora": alternating,
    "fedsvd": resplit,
    "product": multiplied,
}
