"""A delta gives back the very file it was made of, whatever the numbers; and nothing but that."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from aggregator.algorithms.rounding import on_grid
from secagg.errors import RemoteProtocolError
from secagg.model_delta import Base, Tensors, decode, encode

HEADER = b"a header of 20 bytes"
HELD = b"\7" * 32
LENGTH = 40
EXPECTED = {"clip": ("float64", (1,)), "vector": ("float32", (LENGTH,))}

patterns = npst.arrays(np.uint32, LENGTH, elements=st.integers(0, 2**32 - 1))
clips = st.integers(0, 2**64 - 1).map(lambda bits: np.array([bits], np.uint64).view(np.float64))
steps = npst.arrays(np.int32, LENGTH, elements=st.integers(-(2**20), 2**20))


def file_of(tensors: Tensors) -> bytes:
    return HEADER + b"".join(tensor.tobytes() for tensor in tensors.values())


def rebuilt(tensors: Tensors, base: Base) -> bytes:
    return decode(encode(HEADER, tensors, base), base, EXPECTED, len(HEADER))


@given(old=patterns, new=patterns, clip=clips)
def test_any_two_vectors(
    old: NDArray[np.uint32], new: NDArray[np.uint32], clip: NDArray[np.float64]
) -> None:
    """NaN of any payload, infinities, denormals and minus zero among them."""
    tensors = {"clip": clip, "vector": new.view(np.float32)}
    base = Base(HELD, {"vector": old.view(np.float32)})
    assert rebuilt(tensors, base) == file_of(tensors)
    assert rebuilt(tensors, Base()) == file_of(tensors)


@given(old=steps, step=steps, exponent=st.integers(-40, 10))
def test_steps_on_a_grid(old: NDArray[np.int32], step: NDArray[np.int32], exponent: int) -> None:
    before = (old * 2.0**exponent).astype(np.float32)
    after = (before + step * 2.0**exponent).astype(np.float32)
    tensors = {"clip": np.zeros(1), "vector": after}
    assert rebuilt(tensors, Base(HELD, {"vector": before})) == file_of(tensors)


@pytest.mark.parametrize("start", [0.0, 1.0], ids=["zeros", "a model on no grid"])
def test_a_noisy_step_takes_six_bits(start: float) -> None:
    versions = walk(start, 1)
    assert 4.5 < bits(versions[0], versions[1]) < 6.2


def test_versions_that_were_missed_take_half_a_bit_for_each_doubling() -> None:
    versions = walk(0.0, 17)
    assert bits(versions[1], versions[17]) < bits(versions[16], versions[17]) + 2.5
    assert bits(np.zeros_like(versions[0]), versions[17]) < 9


def test_minus_zero_that_does_not_move_stays() -> None:
    old, new = (np.full(LENGTH, -0.0, np.float32) for _ in range(2))
    new[0] = 1.0
    delta = encode(HEADER, {"clip": np.zeros(1), "vector": new}, Base(HELD, {"vector": old}))
    assert b"grid" in delta
    content = decode(delta, Base(HELD, {"vector": old}), EXPECTED, len(HEADER))
    assert content.endswith(new.tobytes())


def walk(start: float, count: int) -> list[NDArray[np.float32]]:
    coins, length = np.random.default_rng(7), 20_000
    versions = [(start * coins.normal(0, 1, length) + 0.0).astype(np.float32)]
    for _ in range(count):
        step = coins.normal(0, 0.01, length)
        versions.append(on_grid(versions[-1], (versions[-1] + step).astype(np.float32), 8))
    return versions


def bits(old: NDArray[np.float32], new: NDArray[np.float32]) -> float:
    """Of a delta, for each coordinate."""
    return 8 * len(encode(b"", {"vector": new}, Base(HELD, {"vector": old}))) / len(new)


def test_a_delta_is_of_what_it_was_told_from_alone() -> None:
    tensors = {"clip": np.ones(1), "vector": np.ones(LENGTH, np.float32)}
    delta = encode(HEADER, tensors, Base(HELD, tensors))
    with pytest.raises(RemoteProtocolError, match="another model"):
        decode(delta, Base(b"\1" * 32, tensors), EXPECTED, len(HEADER))


def test_a_bomb_is_refused_before_it_opens() -> None:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = squeeze.compress(bytes(1 << 25)) + squeeze.flush()
    delta = [1, b"", HEADER, [["clip", "bits", 0, [b""] * 8], ["vector", "grid", 0, [bomb]]]]
    delta[3][0][3] = [squeeze_of(bytes(1))] * 8
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError, match="another length"):
        decode(msgspec.msgpack.encode(delta), Base(), EXPECTED, len(HEADER))
    assert tracemalloc.get_traced_memory()[1] < 1 << 21
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("tensors", "piece"),
    [(("clip", "vector"), b"\xc4\x00"), ((), msgspec.msgpack.encode(["", "grid", 0, []]))],
    ids=["planes", "tensors"],
)
def test_many_small_pieces_take_no_memory(tensors: tuple[str, ...], piece: bytes) -> None:
    """Each would be an object of many times its bytes."""
    many = b"\xdd" + (100_000).to_bytes(4, "big") + piece * 100_000
    delta = b"\x94" + b"".join(map(msgspec.msgpack.encode, (1, b"", HEADER)))
    if tensors:
        delta += b"\x92" + b"".join(
            b"\x94" + msgspec.msgpack.encode(name) + b"\xa4grid\x00" + many for name in tensors
        )
    else:
        delta += many
    tracemalloc.start()
    with pytest.raises(RemoteProtocolError, match="does not parse"):
        decode(delta, Base(), EXPECTED, len(HEADER))
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()


def squeeze_of(plane: bytes) -> bytes:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeeze.compress(plane) + squeeze.flush()


def good() -> bytes:
    tensors = {"clip": np.ones(1), "vector": np.arange(LENGTH, dtype=np.float32)}
    return encode(HEADER, tensors, Base())


@given(place=st.integers(0, len(good()) - 1), value=st.integers(0, 255), cut=st.booleans())
@settings(max_examples=150)
def test_damage_is_refused_or_told_by_the_digest(place: int, value: int, cut: bool) -> None:
    whole = good()
    damaged = whole[:place] if cut else whole[:place] + bytes([value]) + whole[place + 1 :]
    with contextlib.suppress(RemoteProtocolError):
        content = decode(damaged, Base(), EXPECTED, len(HEADER))
        assert len(content) <= len(HEADER) + 8 + 4 * LENGTH


@pytest.mark.parametrize(
    "changed",
    [
        {0: 2},
        {2: HEADER + b"!"},
        {3: []},
        {3: [["vector", "grid", 0, []]] * 2},
        {3: [["clip", "grid", 0, [b""] * 8], ["vector", "grid", 0, [b""]]]},
        {3: [["clip", "bits", 0, [b""] * 4], ["vector", "grid", 0, [b""]]]},
    ],
    ids=["format", "header", "none", "twice", "grid of float64", "planes"],
)
def test_what_no_encoder_writes_is_refused(changed: dict[int, object]) -> None:
    parts = msgspec.msgpack.decode(good())
    for place, value in changed.items():
        parts[place] = value
    with pytest.raises(RemoteProtocolError, match="malformed"):
        decode(msgspec.msgpack.encode(parts), Base(), EXPECTED, len(HEADER))


def test_a_grid_beyond_all_floats_is_refused() -> None:
    parts = msgspec.msgpack.decode(good())
    parts[3][1][1:3] = ["grid", 2_000]
    with pytest.raises(RemoteProtocolError, match="grid"):
        decode(msgspec.msgpack.encode(parts), Base(), EXPECTED, len(HEADER))
