"""Lanes, check coordinates and packing keep their promises at the edges."""

from __future__ import annotations

import time

import numpy as np
import pytest

from secagg import ring
from secagg.errors import LocalProtocolError, RemoteProtocolError
from tests.kits.said import Case, refused

WIDTHS = range(8, 63)


def bit_by_bit(values: list[int], bits: int) -> bytes:
    """The wire format as one big integer: coordinate i at bit i * bits."""
    stream = sum(value << (place * bits) for place, value in enumerate(values))
    return stream.to_bytes((len(values) * bits + 7) // 8, "little")


def lanes(values: list[int], bits: int) -> ring.Lanes:
    return np.array(values, ring.lane_dtype(bits))


@pytest.mark.parametrize(
    ("bits", "lane"),
    [(8, "<u2"), (16, "<u2"), (17, "<u4"), (32, "<u4"), (33, "<u8"), (62, "<u8")],
)
def test_a_lane_is_the_smallest_that_holds_the_ring(bits: int, lane: str) -> None:
    assert ring.lane_dtype(bits) == np.dtype(lane)


@pytest.mark.parametrize("bits", [-1, 0, 7, 63, 64])
def test_rings_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        ring.lane_dtype(bits)
    assert caught.value.reason == "ring-bits"


def test_each_slice_opens_with_a_check_coordinate() -> None:
    payload = ring.with_checks(np.array([5, -1, 7, 8, -300], np.int64), 8, 2)
    assert payload.tolist() == [1, 5, 255, 1, 7, 8, 1, 212]
    checks, data = ring.split_checks(payload, 2)
    assert checks.tolist() == [1, 1, 1]
    assert data.tolist() == [5, 255, 7, 8, 212]


def test_the_int64_extremes_reduce_like_python_integers() -> None:
    data = np.array([-(2**63), 2**63 - 1, -1, 0], np.int64)
    for bits in WIDTHS:
        _, reduced = ring.split_checks(ring.with_checks(data, bits, 3), 3)
        assert reduced.tolist() == [int(value) % 2**bits for value in data]


@pytest.mark.parametrize("bits", WIDTHS)
def test_centring_returns_twos_complement(bits: int) -> None:
    half = 1 << (bits - 1)
    found = ring.centred(lanes([0, 1, half - 1, half, 2 * half - 1], bits), bits)
    assert found.dtype == np.int64
    assert found.tolist() == [0, 1, half - 1, -half, -1]


@pytest.mark.parametrize("bits", WIDTHS)
def test_adding_wraps_in_the_ring_and_in_place(bits: int) -> None:
    top = (1 << bits) - 1
    total = lanes([top, 1, top], bits)
    ring.add_into(total, lanes([1, 1, top], bits), bits)
    assert total.tolist() == [0, 2, top - 1]


def test_vectors_of_other_shape_or_type_do_not_add() -> None:
    for other in (np.zeros(3, "<u4"), np.zeros(4, "<u2"), np.zeros((2, 2), "<u4")):
        with pytest.raises(LocalProtocolError):
            ring.add_into(np.zeros(4, "<u4"), other, 24)


@pytest.mark.parametrize(
    "data",
    [np.zeros(3), np.zeros(3, np.int32), np.zeros((3, 1), np.int64)],
    ids=["float", "int32", "column"],
)
def test_only_a_flat_int64_vector_becomes_a_payload(data: np.ndarray) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        ring.with_checks(data, 24, 2)
    assert caught.value.reason == "vector-type"


@pytest.mark.parametrize(("length", "slice_length"), [(0, 4), (-1, 4), (4, 0), ((1 << 28) + 1, 4)])
def test_payload_lengths_out_of_range_are_refused(length: int, slice_length: int) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        ring.payload_length(length, slice_length)
    assert caught.value.reason == "vector-length"


def test_the_wire_format_is_what_it_always_was() -> None:
    assert ring.pack(lanes([0x123456, 0xABCDEF], 24), 24).hex() == "563412efcdab"
    assert ring.pack(lanes([0x1FF, 0x001, 0x100], 9), 9).hex() == "ff030004"
    assert ring.pack(lanes([1 << 61, 1], 62), 62).hex() == "00000000000000600000000000000000"


@pytest.mark.parametrize("bits", WIDTHS)
def test_packing_is_one_little_endian_bit_stream(bits: int) -> None:
    for length in (1, 2, 7, 8, 9, 65):
        values = [(0x9E3779B97F4A7C15 * (place + 1)) % 2**bits for place in range(length)]
        packed = ring.pack(lanes(values, bits), bits)
        assert packed == bit_by_bit(values, bits)
        assert len(packed) == ring.packed_size(length, bits)
        assert ring.unpack(packed, length, bits).tolist() == values


@pytest.mark.parametrize("bits", [8, 13, 16, 21, 24, 32, 33, 61, 62])
def test_chunk_borders_do_not_show(bits: int) -> None:
    length = 2 * (1 << 15) + 5
    values = np.arange(length, dtype="<u8") * np.uint64(0x9E3779B97F4A7C15)
    vector = (values & np.uint64((1 << bits) - 1)).astype(ring.lane_dtype(bits))
    packed = ring.pack(vector, bits)
    lane_bits = np.unpackbits(vector.view(np.uint8), bitorder="little").reshape(length, -1)
    assert packed == np.packbits(lane_bits[:, :bits], bitorder="little").tobytes()
    assert (ring.unpack(packed, length, bits) == vector).all()


def test_an_empty_vector_packs_to_nothing() -> None:
    assert ring.pack(np.zeros(0, "<u4"), 21) == b""
    assert len(ring.unpack(b"", 0, 21)) == 0


@pytest.mark.parametrize("bits", [8, 21, 24, 62])
@pytest.mark.parametrize("change", [-1, 1, 8])
def test_a_vector_of_another_size_is_refused(bits: int, change: int) -> None:
    size = ring.packed_size(11, bits)
    with pytest.raises(RemoteProtocolError) as caught:
        ring.unpack(bytes(size + change), 11, bits)
    assert caught.value.reason == "vector-size"
    assert (caught.value.expected, caught.value.found) == (size, size + change)


@pytest.mark.parametrize("bits", [bits for bits in WIDTHS if 3 * bits % 8])
def test_every_padding_bit_must_be_zero(bits: int) -> None:
    packed = ring.pack(lanes([1, 2, 3], bits), bits)
    for bit in range(3 * bits % 8, 8):
        changed = packed[:-1] + bytes([packed[-1] | 1 << bit])
        with pytest.raises(RemoteProtocolError) as caught:
            ring.unpack(changed, 3, bits)
        assert caught.value.reason == "vector-padding"


def test_lanes_of_another_ring_are_not_packed() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        ring.pack(np.zeros(4, "<u8"), 24)
    assert caught.value.reason == "vector-type"


def test_unpacking_takes_any_bytes_and_leaves_them_alone() -> None:
    packed = ring.pack(lanes([1, 2, 3], 21), 21)
    mutable = bytearray(packed)
    for buffer in (packed, memoryview(packed), memoryview(mutable)):
        found = ring.unpack(buffer, 3, 21)
        found += np.uint32(1)
    assert bytes(mutable) == packed


def test_packing_walks_in_chunks_and_stays_fast() -> None:
    """A bit-by-bit loop takes seconds for this; chunks of numpy take about 10 ms."""
    vector = np.ones(1_000_000, "<u4")
    started = time.process_time()
    assert len(ring.pack(vector, 21)) == 2_625_000
    assert time.process_time() - started < 1.0


REFUSED = {
    "a ring too small": Case(
        lambda: ring.lane_dtype(7), "ring-bits", "8..62", 7, error=LocalProtocolError
    ),
    "no data": Case(
        lambda: ring.payload_length(0, 4),
        "vector-length",
        f"1..{1 << 28}",
        (0, 4),
        error=LocalProtocolError,
    ),
    "data of another type": Case(
        lambda: ring.with_checks(np.zeros(3, "<i4"), 24, 2),
        "vector-type",
        "int64[d]",
        "<i4",
        error=LocalProtocolError,
    ),
    "vectors of other shape": Case(
        lambda: ring.add_into(np.zeros(4, "<u4"), np.zeros(3, "<u2"), 24),
        "vector-shape",
        ((4,), "<u4"),
        ((3,), "<u2"),
        error=LocalProtocolError,
    ),
    "lanes of another ring": Case(
        lambda: ring.pack(np.zeros(4, "<u8"), 24),
        "vector-type",
        "<u4",
        "<u8",
        error=LocalProtocolError,
    ),
    "a packed vector too short": Case(lambda: ring.unpack(bytes(5), 2, 24), "vector-size", 6, 5),
    "padding": Case(lambda: ring.unpack(b"\xff\xff", 1, 9), "vector-padding"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_is_wrong(name: str) -> None:
    refused(REFUSED[name])


def test_the_longest_vector_is_allowed() -> None:
    assert ring.payload_length(1 << 28, 1 << 16) == (1 << 28) + (1 << 12)
