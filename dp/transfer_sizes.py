"""What a task has a device send and fetch: bytes of a masked vector and of messages, tensors of a
model file."""

from __future__ import annotations

import msgspec

from dp.contracts.algorithms.registry import algorithm_of, has_control
from secagg.http_api import Mail
from secagg.lora.forms import vector_length
from secagg.manifest import Manifest
from secagg.message_sizes import DOWN, UP, message_sizes
from secagg.ring import packed_size, payload_length

MODEL_HEADER_BYTES = 65_536  # most that names and shapes take in a model file


def upload_size(manifest: Manifest) -> int:
    """Bytes of one masked vector on the wire."""
    encoding = manifest.encoding
    length = payload_length(manifest.data_length, encoding.slice_length)
    return packed_size(length, encoding.ring_bits)


def messages_size(manifest: Manifest) -> tuple[int, int]:
    """Most bytes (up, down) of the protocol's messages in one round, as bodies of HTTP.

    As :func:`secagg.message_sizes.message_sizes`; each message down comes in an answer of its own,
    in base64. Heads are not in it, and neither is what is sent again.
    """
    sizes = message_sizes(manifest)
    mail = [len(msgspec.json.encode(Mail(messages=(bytes(sizes[kind]),)))) for kind in DOWN]
    return sum(sizes[kind] for kind in UP), sum(mail)


def needs_model(manifest: Manifest) -> bool:
    """Whether a contribution is made from the global model; a statistic has none, but its sum."""
    return algorithm_of(manifest).has_adapter


def model_length(manifest: Manifest) -> int:
    """Numbers in the global vector: the adapter's, or all segments' without one."""
    if manifest.adapter is None:
        return manifest.data_length
    return vector_length(manifest.adapter)


def model_tensors(manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor in a model file of this task, by name."""
    length = model_length(manifest)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"vector": ("float32", (length,))}
    if has_control(manifest):
        tensors["control"] = ("float32", (length,))
    if manifest.clip_adaptation is not None:
        tensors["clip"] = ("float64", (1,))
    return tensors


def download_size(manifest: Manifest) -> int:
    """Most bytes of one model file of this task."""
    numbers = sum(shape[0] for _, shape in model_tensors(manifest).values())
    return 4 * numbers + MODEL_HEADER_BYTES
