"""The device half of the form ``product``: what is sent is the change of B A, sketched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.training.algorithms.work import Work
from secagg.lora.forms import pairs
from secagg.lora.sketches import sketch
from secagg.manifest import Manifest


def sketched(
    manifest: Manifest,
    work: Work,
    start: Mapping[str, NDArray[np.float32]],
    values: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """``values`` with ``delta`` replaced by w * sketches of B A - B0 A0; float64[segment].

    The change of all layers together is clipped to the segment's bound in Frobenius norm before
    it is sketched; a sketch that is longer (twice, at half the variance: as long on average) is
    cut by the encoding's exact clip, so the sensitivity is the bound whatever the signs are.
    """
    end = work.adapted.tensors()
    weight = float(values["weight"][0]) if "weight" in values else 1.0
    factors = []
    squared = 0.0
    for pair in pairs(work.adapted.adapter):
        b, a = (np.asarray(end[s.name], np.float64) for s in (pair.b, pair.a))
        b0, a0 = (np.asarray(start[s.name], np.float64) for s in (pair.b, pair.a))
        left, right = np.hstack([b, -b0]), np.vstack([a, a0])
        squared += float(np.sum((left.T @ left) * (right @ right.T)))
        factors.append((pair, left, right))
    bound = manifest.segments[0].clip
    scale = weight * min(1.0, bound / max(np.sqrt(max(squared, 0.0)), 1e-300))
    parts = [
        sketch(work.adapted.adapter, pair, work.version, scale * left, right)
        for pair, left, right in factors
    ]
    return {**values, "delta": np.concatenate(parts)}
