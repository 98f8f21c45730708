"""Global vectors and optimiser states as safetensors files named by their digest.

A model file has one tensor ``vector`` (float32) and, in its metadata, task and version, so that
two versions with equal numbers still have different digests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from aggregator.blobs import BlobStore
from secagg import adapter
from secagg.manifest import Manifest

MODELS, OPTIMISERS = "models", "optimisers"


@dataclass(frozen=True)
class Stored:
    digest: bytes
    size_bytes: int


def vector_length(manifest: Manifest) -> int:
    """Length of the global vector: the adapter's, or for statistics all segments."""
    if manifest.algorithm == "sum":
        return manifest.data_length
    if manifest.adapter is not None:
        return adapter.vector_length(manifest.adapter)
    return manifest.segments[0].length


def initial(blobs: BlobStore, manifest: Manifest) -> Stored:
    """Store version 0, zeros."""
    return store(blobs, manifest.task, 0, np.zeros(vector_length(manifest), np.float32))


def store(blobs: BlobStore, task: str, version: int, vector: NDArray[np.float32]) -> Stored:
    data = safetensors.numpy.save(
        {"vector": np.ascontiguousarray(vector, dtype="<f4")},
        metadata={"task": task, "version": str(version)},
    )
    return Stored(blobs.put_digest(MODELS, data), len(data))


def load(blobs: BlobStore, digest: bytes) -> NDArray[np.float32]:
    return safetensors.numpy.load(blobs.get(f"{MODELS}/{digest.hex()}"))["vector"]


def store_optimiser(blobs: BlobStore, state: dict[str, NDArray[np.float64]]) -> bytes | None:
    """Digest of the stored state; None for a state without numbers."""
    return blobs.put_digest(OPTIMISERS, safetensors.numpy.save(state)) if state else None


def load_optimiser(blobs: BlobStore, digest: bytes | None) -> dict[str, NDArray[np.float64]]:
    if digest is None:
        return {}
    return safetensors.numpy.load(blobs.get(f"{OPTIMISERS}/{digest.hex()}"))
