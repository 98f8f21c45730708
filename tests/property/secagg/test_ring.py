"""Packing and masking as laws over all rings, lengths and cuts."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from secagg import ring
from secagg.errors import RemoteProtocolError
from secagg.masks import MaskTerm, apply_masks
from secagg.secret import Secret

BITS = st.integers(8, 62)
LENGTHS = st.one_of(st.integers(1, 300), st.sampled_from([(1 << 15) - 1, 1 << 15, (1 << 15) + 1]))
TERMS = st.lists(
    st.builds(MaskTerm, st.binary(min_size=32, max_size=32).map(Secret), st.sampled_from((1, -1))),
    min_size=1,
    max_size=4,
)


def uniform(seed: int, length: int, bits: int) -> ring.Lanes:
    """A vector of the ring that hypothesis can shrink by its length and seed."""
    vector = np.zeros(length, ring.lane_dtype(bits))
    apply_masks(vector, [MaskTerm(Secret(seed.to_bytes(32, "little")), 1)], bits)
    return vector


def unpacked(buffer: bytes, length: int, bits: int) -> tuple[ring.Lanes | None, str | None]:
    """(vector, None) or (None, reason of the refusal)."""
    try:
        return ring.unpack(buffer, length, bits), None
    except RemoteProtocolError as error:
        return None, error.reason


@given(BITS, LENGTHS, st.integers(0, 1000))
def test_unpack_undoes_pack(bits: int, length: int, seed: int) -> None:
    vector = uniform(seed, length, bits)
    packed = ring.pack(vector, bits)
    assert len(packed) == ring.packed_size(length, bits) == (length * bits + 7) // 8
    found = ring.unpack(packed, length, bits)
    assert found.dtype == vector.dtype
    assert (found == vector).all()


@given(BITS, st.integers(1, 40), st.data())
def test_pack_undoes_unpack(bits: int, length: int, data: st.DataObject) -> None:
    """Each buffer is refused or is the only one of its vector: no vector has two digests."""
    size = ring.packed_size(length, bits)
    buffer = data.draw(st.binary(min_size=size, max_size=size))
    padding = int.from_bytes(buffer, "little") >> (length * bits)
    vector, reason = unpacked(buffer, length, bits)
    assert reason == ("vector-padding" if padding else None)
    if vector is not None:
        assert ring.pack(vector, bits) == buffer


@given(BITS, st.integers(0, 50), st.binary(max_size=400))
def test_any_bytes_unpack_or_are_refused(bits: int, length: int, buffer: bytes) -> None:
    vector, reason = unpacked(buffer, length, bits)
    assert reason in (None, "vector-size", "vector-padding")
    if vector is not None:
        assert (vector <= ring.ring_mask(bits)).all()


@given(
    BITS,
    st.integers(1, 20),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=60),
)
def test_payloads_keep_their_data_and_their_checks(
    bits: int, slice_length: int, values: list[int]
) -> None:
    payload = ring.with_checks(np.array(values, np.int64), bits, slice_length)
    assert len(payload) == ring.payload_length(len(values), slice_length)
    checks, data = ring.split_checks(payload, slice_length)
    assert (checks == 1).all()
    assert data.tolist() == [value % 2**bits for value in values]


@given(BITS, st.integers(1, 10), st.data())
def test_sums_in_the_ring_are_sums_of_integers(bits: int, length: int, data: st.DataObject) -> None:
    """Exact as long as the true sum lies in [-2^(b-1), 2^(b-1))."""
    count = data.draw(st.integers(1, 5))
    bound = (2 ** (bits - 1) - 1) // count
    numbers = st.lists(st.integers(-bound, bound), min_size=length, max_size=length)
    vectors = data.draw(st.lists(numbers, min_size=count, max_size=count))
    total = np.zeros(ring.payload_length(length, 3), ring.lane_dtype(bits))
    for vector in vectors:
        ring.add_into(total, ring.with_checks(np.array(vector, np.int64), bits, 3), bits)
    checks, found = ring.split_checks(ring.centred(total, bits), 3)
    assert (checks == count % 2**bits).all() or count >= 2 ** (bits - 1)
    assert found.tolist() == [sum(column) for column in zip(*vectors, strict=True)]


@given(BITS, st.integers(1, 200), TERMS, st.lists(st.integers(0, 200), max_size=6))
def test_masks_do_not_depend_on_the_cuts(
    bits: int, length: int, terms: list[MaskTerm], cuts: list[int]
) -> None:
    whole = uniform(1, length, bits)
    pieces = whole.copy()
    apply_masks(whole, terms, bits)
    borders = sorted({0, length, *(cut for cut in cuts if cut < length)})
    for lo, hi in itertools.pairwise(borders):
        apply_masks(pieces[lo:hi], terms, bits, lo)
    assert (pieces == whole).all()


@given(BITS, st.integers(1, 100), TERMS, st.randoms(use_true_random=False))
def test_masks_do_not_depend_on_the_order(bits: int, length: int, terms: list, order) -> None:  # type: ignore[no-untyped-def, type-arg]
    first, second = np.zeros((2, length), ring.lane_dtype(bits))
    apply_masks(first, terms, bits)
    order.shuffle(terms)
    for term in terms:
        apply_masks(second, [term], bits)
    assert (first == second).all()


@given(BITS, st.integers(1, 100), TERMS, st.integers(0, 1000), st.integers(0, 1000))
def test_masks_are_linear_and_come_off(
    bits: int, length: int, terms: list[MaskTerm], one: int, two: int
) -> None:
    """(x + mask) + y = (x + y) + mask, and taking the mask off gives x + y back."""
    x, y = uniform(one, length, bits), uniform(two, length, bits)
    masked = x.copy()
    apply_masks(masked, terms, bits)
    ring.add_into(masked, y, bits)
    total = x.copy()
    ring.add_into(total, y, bits)
    bare = total.copy()
    apply_masks(total, terms, bits)
    assert (masked == total).all()
    apply_masks(masked, [term.negated() for term in terms], bits)
    assert (masked == bare).all()
