"""A model file told by its difference from another one, bit for bit.

A file of safetensors is a header and tensors. A delta holds the header as it is and each tensor in
the shorter of two codings:

``grid``   x' = x + 2^e q with integers q, float32 from float64. Where a release's step lies on a
           grid (``aggregator.algorithms.rounding``) q has five to six bits, whatever the noise.
``bits``   the difference of the bit patterns as unsigned integers, modulo 2^32 or 2^64. It serves
           any two vectors, NaN and minus zero too. Noise changes all lower bits: it saves little.

Integers are cut into planes, each a stream of raw deflate (RFC 1951) that knows no repetition but
runs: the entropy of noise is in its frequencies. A pattern is cut into bytes; an integer of a grid
into its highest eight bits and single bits below, which noise fills evenly. A missing base counts
as zeros, so that a whole model is a delta as well. What was rebuilt is a model only if it has the
digest that was offered; until then it is the word of whoever sent it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from secagg.errors import RemoteProtocolError

Tensors = Mapping[str, NDArray[Any]]
FORMAT = 1
_EXPONENT_MAX = 256
_GRID_BITS = 30
_GRID_PLANES_MAX = _GRID_BITS - 6  # eight bits with the sign, and the others
_TENSORS_MAX = 16
_SAMPLE = 256
_RAW = -15  # deflate without a frame of its own
_PATTERNS: dict[str, Any] = {"float32": np.uint32, "float64": np.uint64}


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """``exponent``: of the grid; ``planes``: as the coding cuts them."""

    name: str
    coding: Literal["grid", "bits"]
    exponent: int
    planes: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=_GRID_PLANES_MAX)]


class _Delta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """``base``: digest of the model that it is told from; empty: zeros."""

    format: int
    base: bytes
    header: bytes
    tensors: Annotated[tuple[_Tensor, ...], msgspec.Meta(max_length=_TENSORS_MAX)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Delta, strict=True)


@dataclass(frozen=True)
class Base:
    """A model that deltas are told from: digest of its file, and tensors by name.

    Without a digest it is nothing. A tensor that is missing, or of another type or length, counts
    as zeros.
    """

    digest: bytes = b""
    tensors: Tensors = field(default_factory=dict)


def encode(header: bytes, tensors: Tensors, base: Base) -> bytes:
    """The delta from ``base`` to the file of ``header`` and ``tensors``.

    Args:
        header: what stands before the tensors in the file.
        tensors: float32 or float64, one-dimensional, in the order of the file.
    """
    coded = tuple(
        _shorter(name, _before(base, name, new.dtype, new.shape), new)
        for name, new in tensors.items()
    )
    return _encoder.encode(_Delta(FORMAT, base.digest, header, coded))


def decode(
    delta: bytes, held: Base, expected: Mapping[str, tuple[str, tuple[int, ...]]], header_max: int
) -> bytes:
    """The file that ``delta`` makes of what is held; its digest is the caller's to compare.

    Takes no more memory than the expected tensors do, whatever ``delta`` says.

    Args:
        expected: type (float32 or float64) and shape, one dimension, of each tensor by name.
        header_max: most bytes of the file's header.

    Raises:
        RemoteProtocolError: ``delta-malformed``.
    """
    try:
        found = _decoder.decode(delta)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _malformed(f"It does not parse: {error}.") from error
    if found.format != FORMAT:
        raise _malformed("Its format is another one.", FORMAT, found.format)
    if len(found.header) > header_max:
        raise _malformed("Its header is too long.", header_max, len(found.header))
    if found.base not in (b"", held.digest):
        raise _malformed("It is told from another model.", held.digest.hex(), found.base.hex()[:64])
    base = held if found.base else Base()
    names = [tensor.name for tensor in found.tensors]
    if sorted(names) != sorted(expected):
        raise _malformed("Its tensors are other ones.", sorted(expected), names[:8])
    parts = [found.header]
    for tensor in found.tensors:
        dtype, shape = expected[tensor.name]
        old = _before(base, tensor.name, np.dtype(dtype), shape)
        parts.append(_decoded(tensor, old).tobytes())
    return b"".join(parts)


def _before(base: Base, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    old = base.tensors.get(name)
    if old is None or old.dtype != dtype or old.shape != shape:
        return np.zeros(shape, dtype)
    return old


# ---- one tensor


def _shorter(name: str, old: NDArray[Any], new: NDArray[Any]) -> _Tensor:
    bits = _Tensor(name, "bits", 0, _bytes_of(_pattern(new) - _pattern(old)))
    exponent = _grid_of(old, new) if new.dtype == np.float32 else None
    if exponent is None:
        return bits
    grid = _Tensor(name, "grid", exponent, _cut(_units(old, new, exponent).astype(np.int32)))
    return min(grid, bits, key=lambda coded: sum(len(plane) for plane in coded.planes))


def _decoded(tensor: _Tensor, old: NDArray[Any]) -> NDArray[Any]:
    """
    Raises:
        RemoteProtocolError: ``delta-malformed``.
    """
    count, most = len(tensor.planes), _GRID_PLANES_MAX
    if tensor.coding == "bits":
        if count != old.dtype.itemsize:
            raise _malformed("It has another number of planes.", old.dtype.itemsize, count)
        moved: NDArray[Any] = _pattern(old) + _of_bytes(tensor.planes, old)
        return moved.view(old.dtype)
    if old.dtype != np.float32 or not 1 <= count <= most or abs(tensor.exponent) > _EXPONENT_MAX:
        raise _malformed(
            "Its grid is none.",
            f"1 to {most} planes of float32, |exponent| <= {_EXPONENT_MAX}",
            (count, old.dtype.name, tensor.exponent),
        )
    return _moved(old, _joined(tensor.planes, len(old)), tensor.exponent)


def _pattern(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).view(_PATTERNS[values.dtype.name])


def _moved(old: NDArray[np.float32], units: NDArray[Any], exponent: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        moved = (old.astype(np.float64) + units * 2.0**exponent).astype(np.float32)
    return np.where(units == 0, old, moved)  # minus zero stays


def _units(old: NDArray[np.float32], new: NDArray[np.float32], exponent: int) -> NDArray[Any]:
    return np.rint((new.astype(np.float64) - old) / 2.0**exponent)


def _grid_of(old: NDArray[np.float32], new: NDArray[np.float32]) -> int | None:
    """e of the coarsest grid on which the step lies, seen from ``old``; None: there is none."""
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        return None
    steps = np.abs(new.astype(np.float64) - old)
    most = float(steps.max(initial=0.0))
    moving = np.flatnonzero(steps)[:_SAMPLE]
    highest = math.frexp(most)[1] - 1 if most else 0
    for exponent in range(highest, highest - _GRID_BITS, -1):
        if _lies_on(old[moving], new[moving], exponent) and _lies_on(old, new, exponent):
            return exponent
    return None


def _lies_on(old: NDArray[np.float32], new: NDArray[np.float32], exponent: int) -> bool:
    moved = _moved(old, _units(old, new, exponent), exponent)
    return bool(np.array_equal(_pattern(moved), _pattern(new)))


# ---- planes


def _bytes_of(patterns: NDArray[Any]) -> tuple[bytes, ...]:
    """Each byte's plane, lowest first."""
    planes = patterns.astype(patterns.dtype.newbyteorder("<")).view(np.uint8)
    planes = planes.reshape(-1, patterns.dtype.itemsize)
    return tuple(_deflated(planes[:, number]) for number in range(patterns.dtype.itemsize))


def _of_bytes(planes: tuple[bytes, ...], like: NDArray[Any]) -> NDArray[Any]:
    pattern = _PATTERNS[like.dtype.name]
    values = np.zeros(len(like), pattern)
    for number, plane in enumerate(planes):
        values |= _inflated(plane, len(like)).astype(pattern) << pattern(8 * number)
    return values


def _cut(units: NDArray[np.int32]) -> tuple[bytes, ...]:
    """The highest eight bits that any unit needs, then each bit below, highest first."""
    most = int(max(units.max(initial=0), -1 - units.min(initial=0)))
    below = max(0, most.bit_length() - 7)
    planes = [_deflated((units >> below).astype(np.int8).view(np.uint8))]
    for number in reversed(range(below)):
        planes.append(_deflated(np.packbits((units >> number).astype(np.uint8) & 1)))
    return tuple(planes)


def _joined(planes: tuple[bytes, ...], length: int) -> NDArray[np.int32]:
    units = _inflated(planes[0], length).view(np.int8).astype(np.int32)
    for plane in planes[1:]:
        bits = np.unpackbits(_inflated(plane, -(-length // 8)), count=length)
        units = (units << 1) | bits
    return units


def _deflated(plane: NDArray[np.uint8]) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, _RAW, 9, zlib.Z_RLE)
    return squeeze.compress(plane.tobytes()) + squeeze.flush()


def _inflated(plane: bytes, length: int) -> NDArray[np.uint8]:
    """
    Raises:
        RemoteProtocolError: ``delta-malformed``: it is damaged, or not of ``length`` bytes.
    """
    stream = zlib.decompressobj(_RAW)
    try:
        expanded = stream.decompress(plane, length + 1)
    except zlib.error as error:
        raise _malformed(f"A plane is damaged: {error}.") from error
    if len(expanded) != length or not stream.eof or stream.unused_data:
        raise _malformed("A plane has another length.", length)
    return np.frombuffer(expanded, np.uint8)


def _malformed(message: str, expected: object = None, found: object = None) -> RemoteProtocolError:
    return RemoteProtocolError(
        "delta-malformed",
        f"The delta of a model is malformed. {message}",
        expected=expected,
        found=found,
        remedy="The whole model is asked for instead; if that persists, the aggregator's store is "
        "damaged.",
    )
