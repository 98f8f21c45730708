"""The LoRA adapter's forms: what is stored, what is trained, and what is sent, as flat vectors.

Three lengths differ by form. The *global vector* is what versions store: the change of the adapter
from its public initialisation. A device *trains* some of its tensors, and *sends* one segment.

=========  =======================  ========================  =================================
form       global vector            trained                   sent
=========  =======================  ========================  =================================
lora       A and B                  A and B                   both changes
ffa-lora   B                        B                         change of B
rolora     A and B                  B in even versions, A in  change of the one factor, padded
                                    odd ones                  with zeros to the longer one
fedsvd     B, then A                B                         change of B
product    A and B                  A and B                   sketches of the change of B A
=========  =======================  ========================  =================================

Device, server and auditor share this file, so it is numpy alone and draws nothing of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.errors import LocalProtocolError
from secagg.hashing import encode_parts
from secagg.manifest import Adapter, TensorShape

Float32 = NDArray[np.float32]
_A, _B = ".lora_A.", ".lora_B."
_UNIFORM_BITS = 24  # odd integers below 2^24 are exact in float32
START_LENGTH = 3**-0.5  # of a row of A before training: entries of variance 1/(3 columns)


@dataclass(frozen=True)
class Pair:
    """The two factors of one linear layer: its change is alpha / rank * B A."""

    a: TensorShape
    b: TensorShape

    @property
    def rows(self) -> int:
        return self.b.rows

    @property
    def columns(self) -> int:
        return self.a.columns


def size(shapes: tuple[TensorShape, ...]) -> int:
    """Numbers in the tensors."""
    return sum(shape.rows * shape.columns for shape in shapes)


def initial_tensor(adapter: Adapter, name: str, rows: int, columns: int) -> Float32:
    """The tensor ``name`` before any training; float32[rows, columns].

    B is zero. A is uniform within ±1/sqrt(columns), the bound of peft's initialisation (Kaiming
    uniform with a = sqrt 5). SHAKE-256 over (seed, name) gives one little-endian uint32 per entry;
    its upper 24 bits u become the odd integer 2u + 1 - 2^24, exact in float32, and one IEEE
    multiplication by the rounded step scales it: the same bits on every platform.
    """
    if _B in name:
        return np.zeros((rows, columns), dtype=np.float32)
    stream = hashlib.shake_256(encode_parts("lora-init", adapter.seed, name.encode()))
    words = np.frombuffer(stream.digest(4 * rows * columns), dtype="<u4")
    upper = (words >> np.uint32(32 - _UNIFORM_BITS)).astype(np.int64)
    odd = (2 * upper + 1 - (1 << _UNIFORM_BITS)).astype(np.float32)
    step = np.float32(1.0 / math.sqrt(columns) / (1 << _UNIFORM_BITS))
    return (odd * step).reshape(rows, columns)


def stored(adapter: Adapter) -> tuple[TensorShape, ...]:
    """The tensors whose change the global vector holds, in its order."""
    if adapter.kind == "fedsvd":
        return (*adapter.trainable, *adapter.frozen)
    return adapter.trainable


def vector_length(adapter: Adapter) -> int:
    """Numbers in the global vector."""
    return size(stored(adapter))


def trained(adapter: Adapter, version: int) -> tuple[TensorShape, ...]:
    """The tensors that devices train on top of model ``version``.

    RoLoRA (Chen et al., arXiv 2502.01755) alternates: the phase is the version's parity, which all
    devices of a cohort share. B comes first, for at B = 0 the gradient of A vanishes.
    """
    if adapter.kind != "rolora":
        return adapter.trainable
    factor = _A if version % 2 else _B
    return tuple(shape for shape in adapter.trainable if factor in shape.name)


def sent_length(adapter: Adapter) -> int:
    """Numbers in the segment that a device sends."""
    if adapter.kind == "rolora":
        return max(size(trained(adapter, 0)), size(trained(adapter, 1)))
    if adapter.kind == "product":
        return sum(sketch_length(adapter, pair) for pair in pairs(adapter))
    return size(adapter.trainable)


def pairs(adapter: Adapter) -> tuple[Pair, ...]:
    """The layers in the order of their B.

    Raises:
        LocalProtocolError: ``adapter-tensor`` if a factor has no partner, or shapes do not fit.
    """
    shapes = {shape.name: shape for shape in (*adapter.trainable, *adapter.frozen)}
    found = []
    for name, b in shapes.items():
        if _B not in name:
            continue
        a = shapes.get(name.replace(_B, _A))
        if a is None or a.rows != b.columns:
            raise LocalProtocolError(
                "adapter-tensor",
                f"{name} has no factor A that fits.",
                expected=f"{b.columns} rows",
                found=None if a is None else a.rows,
            )
        found.append(Pair(a, b))
    if 2 * len(found) != len(shapes):
        raise LocalProtocolError(
            "adapter-tensor",
            "An adapter's tensors come in pairs.",
            expected=2 * len(found),
            found=len(shapes),
        )
    return tuple(found)


def sketch_length(adapter: Adapter, pair: Pair) -> int:
    """Numbers sent for one layer: rows * k + 2 k * columns, or rows * columns if that is less."""
    k = adapter.sketch
    return min(pair.rows * k + 2 * k * pair.columns, pair.rows * pair.columns)


def place(adapter: Adapter, version: int, sent: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a sent change (or a mean of them) is in the global vector; float64[vector_length].

    Not for ``product``, whose segment is not a change of factors.
    """
    result = np.zeros(vector_length(adapter))
    moved = {shape.name for shape in trained(adapter, version)}
    at = taken = 0
    for shape in stored(adapter):
        count = shape.rows * shape.columns
        if shape.name in moved:
            result[at : at + count] = sent[taken : taken + count]
            taken += count
        at += count
    return result


def vector_to_tensors(adapter: Adapter, vector: NDArray[Any]) -> dict[str, Float32]:
    """All tensors of the adapter by name: initialisation plus ``vector``, and the frozen ones.

    Args:
        vector: float32[vector_length], the change from the initialisation.

    Raises:
        LocalProtocolError: ``adapter-length``.
    """
    expected = (vector_length(adapter),)
    if vector.shape != expected:
        raise LocalProtocolError(
            "adapter-length",
            "The vector does not fit the adapter.",
            expected=expected,
            found=vector.shape,
        )
    vector = np.asarray(vector, dtype=np.float32)
    tensors = {
        shape.name: initial_tensor(adapter, shape.name, shape.rows, shape.columns)
        for shape in (*adapter.trainable, *adapter.frozen)
    }
    start = 0
    for shape in stored(adapter):
        end = start + shape.rows * shape.columns
        tensors[shape.name] = tensors[shape.name] + vector[start:end].reshape(
            shape.rows, shape.columns
        )
        start = end
    return tensors


def tensors_to_vector(adapter: Adapter, tensors: Mapping[str, NDArray[Any]]) -> Float32:
    """The inverse of :func:`vector_to_tensors`; float32[d]. Tensors not stored are ignored.

    Raises:
        LocalProtocolError: ``adapter-tensor`` if one is missing or has another shape.
    """
    parts = []
    for shape in stored(adapter):
        tensor = tensors.get(shape.name)
        if tensor is None or tensor.shape != (shape.rows, shape.columns):
            raise LocalProtocolError(
                "adapter-tensor",
                f"Tensor {shape.name} is missing or has another shape.",
                expected=(shape.rows, shape.columns),
                found=None if tensor is None else tensor.shape,
            )
        initial = initial_tensor(adapter, shape.name, shape.rows, shape.columns)
        parts.append((np.asarray(tensor, dtype=np.float32) - initial).ravel())
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
