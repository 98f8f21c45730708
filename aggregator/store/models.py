"""Global vectors and optimiser states as safetensors files named by their digest.

A model file has a tensor ``vector`` (float32) and, in its metadata, task and version, so that two
versions with equal numbers still have different digests. SCAFFOLD's has a second tensor of the same
length, ``control``: the server's control variate; where the clip adapts there is ``clip``, one
float64. Both are bound to the version by the file's digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from aggregator.store.blobs import Blobs
from dp.contracts.algorithms.registry import algorithm_of, has_control
from dp.noise.adaptive_clip import first_clip
from secagg.lora import forms
from secagg.manifest import Manifest

MODELS, OPTIMISERS = "models", "optimisers"
CONTROL, CLIP = "control", "clip"
_FOR_DEVICES = {CONTROL: "<f4", CLIP: "<f8"}  # parts of an algorithm's state in the model file


@dataclass(frozen=True)
class Stored:
    digest: bytes
    size_bytes: int


def vector_length(manifest: Manifest) -> int:
    """Length of the global vector: the adapter's, or for statistics all segments."""
    if not algorithm_of(manifest).has_adapter:
        return manifest.data_length
    if manifest.adapter is not None:
        return forms.vector_length(manifest.adapter)
    return manifest.segments[0].length


def initial(blobs: Blobs, manifest: Manifest, vector: NDArray[np.float32] | None = None) -> Stored:
    """Store version 0: ``vector``, or zeros; a control variate begins at zero, a clip at C_0."""
    zeros = np.zeros(vector_length(manifest), np.float32)
    state: dict[str, NDArray[Any]] = {CONTROL: zeros} if has_control(manifest) else {}
    if manifest.clip_adaptation is not None:
        state[CLIP] = np.array([first_clip(manifest)])
    return store(blobs, manifest.task, 0, zeros if vector is None else vector, state)


def store(
    blobs: Blobs,
    task: str,
    version: int,
    vector: NDArray[np.float32],
    state: Mapping[str, NDArray[Any]] | None = None,
) -> Stored:
    """``state``: of the algorithm; what devices need of it goes into the file."""
    tensors = {"vector": np.ascontiguousarray(vector, dtype="<f4")}
    for name, dtype in _FOR_DEVICES.items():
        if state and name in state:
            tensors[name] = np.ascontiguousarray(state[name], dtype=dtype)
    data = _in_order(
        safetensors.numpy.save(tensors, metadata={"task": task, "version": str(version)})
    )
    return Stored(blobs.put_digest(MODELS, data), len(data))


def _in_order(file: bytes) -> bytes:
    """The same file with its metadata in order: the library's is a table of random order, and an
    equal model must have an equal digest, on every replica and after each try."""
    begin = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:begin])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as the format aligns the tensors
    return len(text).to_bytes(8, "little") + text + file[begin:]


def load(blobs: Blobs, digest: bytes) -> NDArray[np.float32]:
    """
    Raises:
        BlobMissing, BlobDamaged: as for all that is loaded here.
    """
    return _tensors(blobs, MODELS, digest)["vector"]


def forget(blobs: Blobs, digests: Iterable[str], optimisers: Iterable[str]) -> None:
    """Remove files by their digests, hex; what is gone already does not matter."""
    for folder, found in ((MODELS, digests), (OPTIMISERS, optimisers)):
        for digest in found:
            blobs.delete(f"{folder}/{digest}")


def store_optimiser(
    blobs: Blobs, task: str, version: int, state: Mapping[str, NDArray[np.float64]]
) -> bytes | None:
    """Digest of the stored state without what the model file holds; None if that is all. No two
    versions share a file, so that one is forgotten without a look at the others."""
    own = {name: values for name, values in state.items() if name not in _FOR_DEVICES}
    if not own:
        return None
    data = _in_order(safetensors.numpy.save(own, metadata={"version": f"{task} {version}"}))
    return blobs.put_digest(OPTIMISERS, data)


def load_optimiser(blobs: Blobs, digest: bytes | None) -> dict[str, NDArray[np.float64]]:
    if digest is None:
        return {}
    return _tensors(blobs, OPTIMISERS, digest)


def load_state(
    blobs: Blobs, model: bytes, optimiser: bytes | None
) -> dict[str, NDArray[np.float64]]:
    """The algorithm's state that belongs to a version, from its two files."""
    state = load_optimiser(blobs, optimiser)
    tensors = _tensors(blobs, MODELS, model)
    for name in _FOR_DEVICES.keys() & tensors.keys():
        state[name] = tensors[name].astype(np.float64)
    return state


def _tensors(blobs: Blobs, folder: str, digest: bytes) -> dict[str, NDArray[Any]]:
    return safetensors.numpy.load(blobs.get_verified(f"{folder}/{digest.hex()}", digest))
