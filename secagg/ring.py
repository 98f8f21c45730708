"""Vectors over Z_{2^b}: lanes in memory, b bits a coordinate on the wire.

A lane is the smallest of uint16, uint32 and uint64 that holds b bits, little-endian; its unused
high bits are always zero here. The payload of a cohort is cut into slices; each slice begins with a
check coordinate that is 1 for every device, so that the unmasked sum must show the number of
survivors there (design: masks that did not cancel are seen).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.limits import RING_BITS_MAX, RING_BITS_MIN, VECTOR_LENGTH_MAX

Lanes = NDArray[np.unsignedinteger[Any]]

_PACK_CHUNK = 1 << 15  # coordinates; a multiple of 8, so that every chunk ends on a byte


def lane_dtype(ring_bits: int) -> np.dtype[Any]:
    """The little-endian unsigned dtype of a lane.

    Raises:
        LocalProtocolError: ``ring-bits`` outside 8..62.
    """
    if not RING_BITS_MIN <= ring_bits <= RING_BITS_MAX:
        raise LocalProtocolError(
            "ring-bits",
            "No ring of that size.",
            expected=f"{RING_BITS_MIN}..{RING_BITS_MAX}",
            found=ring_bits,
        )
    return np.dtype("<u2" if ring_bits <= 16 else "<u4" if ring_bits <= 32 else "<u8")


def ring_mask(ring_bits: int) -> np.unsignedinteger[Any]:
    """2^b - 1 as a lane."""
    mask: np.unsignedinteger[Any] = lane_dtype(ring_bits).type((1 << ring_bits) - 1)
    return mask


def payload_length(data_length: int, slice_length: int) -> int:
    """Coordinates of a payload: the data and one check coordinate for each slice begun."""
    if not 0 < data_length <= VECTOR_LENGTH_MAX or slice_length <= 0:
        raise LocalProtocolError(
            "vector-length",
            "A payload needs data and slices of positive length.",
            expected=f"1..{VECTOR_LENGTH_MAX}",
            found=(data_length, slice_length),
        )
    return data_length + -(-data_length // slice_length)


def with_checks(data: NDArray[np.int64], ring_bits: int, slice_length: int) -> Lanes:
    """Reduce signed data mod 2^b (two's complement) and put the check coordinates in.

    Args:
        data: int64[d].

    Returns:
        lanes[payload_length(d, slice_length)].
    """
    if data.dtype != np.int64 or data.ndim != 1:
        raise LocalProtocolError(
            "vector-type", "Data is a flat int64 vector.", expected="int64[d]", found=data.dtype.str
        )
    dtype = lane_dtype(ring_bits)
    payload = np.empty(payload_length(len(data), slice_length), dtype)
    for start in range(0, len(data), slice_length):
        piece = data[start : start + slice_length]
        at = start + start // slice_length
        payload[at] = 1
        payload[at + 1 : at + 1 + len(piece)] = piece.astype(dtype)
    payload &= ring_mask(ring_bits)
    return payload


def split_checks(payload: Lanes, slice_length: int) -> tuple[Lanes, Lanes]:
    """(check coordinates, data) of a payload; the inverse of :func:`with_checks`."""
    stride = slice_length + 1
    checks = payload[::stride].copy()
    data = np.empty(len(payload) - len(checks), payload.dtype)
    for at in range(0, len(payload), stride):
        piece = payload[at + 1 : at + stride]
        start = at // stride * slice_length
        data[start : start + len(piece)] = piece
    return checks, data


def add_into(accumulator: Lanes, vector: Lanes, ring_bits: int) -> None:
    """accumulator += vector in Z_{2^b}, in place."""
    if accumulator.shape != vector.shape or accumulator.dtype != vector.dtype:
        raise LocalProtocolError(
            "vector-shape",
            "Vectors of different shape do not add up.",
            expected=(accumulator.shape, accumulator.dtype.str),
            found=(vector.shape, vector.dtype.str),
        )
    np.add(accumulator, vector, out=accumulator)
    np.bitwise_and(accumulator, ring_mask(ring_bits), out=accumulator)


def centred(lanes: Lanes, ring_bits: int) -> NDArray[np.int64]:
    """Two's complement: the representative in [-2^(b-1), 2^(b-1)) of each coordinate, int64."""
    signed: NDArray[np.int64] = lanes.astype(np.int64)
    wrapped = signed >> (ring_bits - 1)
    wrapped <<= ring_bits
    signed -= wrapped
    return signed


def packed_size(length: int, ring_bits: int) -> int:
    """Bytes of ``length`` packed coordinates."""
    return -(-length * ring_bits // 8)


def pack(lanes: Lanes, ring_bits: int) -> bytes:
    """b bits a coordinate, least significant bit first, padding bits zero."""
    if lanes.dtype != lane_dtype(ring_bits):
        raise LocalProtocolError(
            "vector-type",
            "The lanes do not belong to this ring.",
            expected=lane_dtype(ring_bits).str,
            found=lanes.dtype.str,
        )
    packed = np.empty(packed_size(len(lanes), ring_bits), np.uint8)
    for start in range(0, len(lanes), _PACK_CHUNK):
        chunk = np.ascontiguousarray(lanes[start : start + _PACK_CHUNK])
        at = start // 8 * ring_bits
        packed[at : at + packed_size(len(chunk), ring_bits)] = _pack_chunk(chunk, ring_bits)
    return packed.tobytes()


def _pack_chunk(chunk: Lanes, ring_bits: int) -> NDArray[np.uint8]:
    lane_bytes = chunk.view(np.uint8).reshape(len(chunk), -1)
    if ring_bits % 8 == 0:
        return lane_bytes[:, : ring_bits // 8].reshape(-1)
    # Eight coordinates fill ring_bits whole bytes: each lands in the bytes it overlaps.
    padded = np.zeros((-(-len(chunk) // 8), 8), np.uint64)
    padded.reshape(-1)[: len(chunk)] = chunk
    groups = np.zeros((len(padded), ring_bits + 8), np.uint8)
    for lane in range(8):
        first, shift = divmod(lane * ring_bits, 8)
        width = -(-(shift + ring_bits) // 8)
        low = padded[:, lane] << np.uint64(shift)
        piece = low.view(np.uint8).reshape(-1, 8)
        groups[:, first : first + min(width, 8)] |= piece[:, : min(width, 8)]
        if width > 8:
            groups[:, first + 8] |= (padded[:, lane] >> np.uint64(64 - shift)).astype(np.uint8)
    flat: NDArray[np.uint8] = groups[:, :ring_bits].reshape(-1)
    return flat[: packed_size(len(chunk), ring_bits)]


def unpack(buffer: bytes | memoryview, length: int, ring_bits: int) -> Lanes:
    """The inverse of :func:`pack`, strict about size and padding.

    Raises:
        RemoteProtocolError: ``vector-size`` or ``vector-padding``.
    """
    lanes = np.empty(length, lane_dtype(ring_bits))
    for start, chunk in _unpacked(buffer, length, ring_bits):
        lanes[start : start + len(chunk)] = chunk
    return lanes


def add_packed(accumulator: Lanes, buffer: bytes | memoryview, ring_bits: int) -> None:
    """accumulator += the packed vector in Z_{2^b}, in place; beside it one chunk is in memory.

    Raises:
        RemoteProtocolError: as :func:`unpack`; nothing was added.
    """
    for start, chunk in _unpacked(buffer, len(accumulator), ring_bits):
        add_into(accumulator[start : start + len(chunk)], chunk, ring_bits)


def _unpacked(
    buffer: bytes | memoryview, length: int, ring_bits: int
) -> Iterator[tuple[int, Lanes]]:
    """(first coordinate, lanes) of the chunks; raises before the first one."""
    size = packed_size(length, ring_bits)
    if len(buffer) != size:
        raise RemoteProtocolError(
            "vector-size",
            "The packed vector has the wrong size.",
            expected=size,
            found=len(buffer),
        )
    packed = np.frombuffer(buffer, np.uint8)
    spare_bits = size * 8 - length * ring_bits
    if spare_bits and int(packed[-1]) >> (8 - spare_bits):
        raise RemoteProtocolError("vector-padding", "The padding bits of the vector are not zero.")
    for start in range(0, length, _PACK_CHUNK):
        count = min(_PACK_CHUNK, length - start)
        at = start // 8 * ring_bits
        piece = packed[at : at + packed_size(count, ring_bits)]
        yield start, _unpack_chunk(piece, count, ring_bits)


def _unpack_chunk(piece: NDArray[np.uint8], count: int, ring_bits: int) -> Lanes:
    dtype = lane_dtype(ring_bits)
    if ring_bits % 8 == 0:
        width = ring_bits // 8
        lane_bytes = np.zeros((count, dtype.itemsize), np.uint8)
        lane_bytes[:, :width] = piece.reshape(count, width)
        return lane_bytes.reshape(-1).view(dtype)
    rows = -(-count // 8)
    groups = np.zeros((rows, ring_bits + 16), np.uint8)
    flat = np.zeros(rows * ring_bits, np.uint8)
    flat[: len(piece)] = piece
    groups[:, :ring_bits] = flat.reshape(rows, ring_bits)
    mask = np.uint64((1 << ring_bits) - 1)
    lanes = np.empty((rows, 8), dtype)
    for lane in range(8):
        first, shift = divmod(lane * ring_bits, 8)
        low = np.ascontiguousarray(groups[:, first : first + 8]).view("<u8").reshape(-1)
        value = low >> np.uint64(shift)
        if shift + ring_bits > 64:
            value |= groups[:, first + 8].astype(np.uint64) << np.uint64(64 - shift)
        lanes[:, lane] = (value & mask).astype(dtype)
    return lanes.reshape(-1)[:count]
