"""Models as deltas (:mod:`secagg.model_delta`): files of the folder ``deltas``, made on demand.

A file's name has the digests of the model and of what it is told from, zeros for nothing. Replicas
that share the folder share the files; each is written whole, once. Only a version that is some
task's present one has any, from nothing and from at most ``VERSIONS_BACK`` versions before it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec
import numpy as np
import safetensors.numpy

from aggregator.store.blobs import Blobs
from aggregator.store.models import MODELS
from secagg.limits import DIGEST_BYTES
from secagg.model_delta import Base, Tensors, decode, encode

DELTAS = "deltas"
VERSIONS_BACK = 32
NOTHING = "0" * (2 * DIGEST_BYTES)
_LENGTH_BYTES = 8  # of a header's length, before it
_NAME = re.compile(r"([0-9a-f]{64})-[0-9a-f]{64}")


def name_of(model: str, base: str) -> str:
    """Of the blob; both are digests, hex."""
    return f"{DELTAS}/{model}-{base}"


def make(blobs: Blobs, model: str, base: str) -> bool:
    """Write the delta, unless it is there; False if it is no shorter than the model.

    Raises:
        BlobMissing, BlobDamaged: of one of the two.
    """
    name = name_of(model, base)
    if blobs.exists(name):
        return True
    file = blobs.get_verified(f"{MODELS}/{model}", bytes.fromhex(model))
    header, tensors = _parts(file)
    old = Base()
    if base != NOTHING:
        digest = bytes.fromhex(base)
        held = safetensors.numpy.load(blobs.get_verified(f"{MODELS}/{base}", digest))
        old = Base(digest, held)
    delta = encode(header, tensors, old)
    shapes = {name: (str(t.dtype), t.shape) for name, t in tensors.items()}
    if len(delta) >= len(file) or decode(delta, old, shapes, len(header)) != file:
        return False
    blobs.put(name, delta)
    return True


def prune(blobs: Blobs, present: Collection[str]) -> None:
    """Remove the deltas of all models but these, hex."""
    for name in blobs.sizes(DELTAS):
        named = _NAME.fullmatch(name)
        if named is not None and named[1] not in present:
            blobs.delete(f"{DELTAS}/{name}")


def _parts(file: bytes) -> tuple[bytes, Tensors]:
    """Header and tensors of a model file of our own, in its order."""
    length = int.from_bytes(file[:_LENGTH_BYTES], "little")
    header = file[: _LENGTH_BYTES + length]
    tensors = safetensors.numpy.load(file)
    told = msgspec.json.decode(header[_LENGTH_BYTES:])
    names = sorted(tensors, key=lambda name: told[name]["data_offsets"])
    return header, {name: np.ascontiguousarray(tensors[name]) for name in names}
