"""Global vectors and optimiser states as safetensors files named by their digest.

A model file has a tensor ``vector`` (float32) and, in its metadata, task and version, so that two
versions with equal numbers still have different digests. SCAFFOLD's has a second tensor of the same
length, ``control``: the server's control variate, bound to the version by the file's digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from aggregator.blobs import BlobStore
from dp.contracts.scaffold import has_control
from secagg import adapter
from secagg.manifest import Manifest

MODELS, OPTIMISERS = "models", "optimisers"
CONTROL = "control"


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


def initial(
    blobs: BlobStore, manifest: Manifest, vector: NDArray[np.float32] | None = None
) -> Stored:
    """Store version 0: ``vector``, or zeros; a control variate begins at zero."""
    zeros = np.zeros(vector_length(manifest), np.float32)
    state = {CONTROL: zeros} if has_control(manifest) else {}
    return store(blobs, manifest.task, 0, zeros if vector is None else vector, state)


def store(
    blobs: BlobStore,
    task: str,
    version: int,
    vector: NDArray[np.float32],
    state: Mapping[str, NDArray[Any]] | None = None,
) -> Stored:
    """``state``: of the algorithm; what devices need of it goes into the file."""
    tensors = {"vector": vector}
    if state and CONTROL in state:
        tensors[CONTROL] = state[CONTROL]
    data = safetensors.numpy.save(
        {name: np.ascontiguousarray(tensor, dtype="<f4") for name, tensor in tensors.items()},
        metadata={"task": task, "version": str(version)},
    )
    return Stored(blobs.put_digest(MODELS, data), len(data))


def load(blobs: BlobStore, digest: bytes) -> NDArray[np.float32]:
    return safetensors.numpy.load(blobs.get(f"{MODELS}/{digest.hex()}"))["vector"]


def store_optimiser(blobs: BlobStore, state: dict[str, NDArray[np.float64]]) -> bytes | None:
    """Digest of the stored state without what the model file holds; None if that is all."""
    own = {name: values for name, values in state.items() if name != CONTROL}
    return blobs.put_digest(OPTIMISERS, safetensors.numpy.save(own)) if own else None


def load_optimiser(blobs: BlobStore, digest: bytes | None) -> dict[str, NDArray[np.float64]]:
    if digest is None:
        return {}
    return safetensors.numpy.load(blobs.get(f"{OPTIMISERS}/{digest.hex()}"))


def load_state(
    blobs: BlobStore, model: bytes, optimiser: bytes | None
) -> dict[str, NDArray[np.float64]]:
    """The algorithm's state that belongs to a version, from its two files."""
    state = load_optimiser(blobs, optimiser)
    tensors = safetensors.numpy.load(blobs.get(f"{MODELS}/{model.hex()}"))
    if CONTROL in tensors:
        state[CONTROL] = tensors[CONTROL].astype(np.float64)
    return state
