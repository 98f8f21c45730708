"""Masks are AES-256-CTR key streams read as lanes, one counter through the payload."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg import masks, ring
from secagg.context import pair_sign
from secagg.errors import LocalProtocolError
from secagg.hashing import derive
from secagg.masks import MaskTerm, apply_masks, mask_key
from secagg.secret import Secret
from tests.kits.said import Case, refused

SALT = bytes(range(32))
FROZEN = [16597549, 62787, 4047261, 2025610]  # zero seed, zero salt, 24 bits


def key(number: int) -> Secret:
    return mask_key(Secret(number.to_bytes(32, "little")), SALT)


def reference(secret: Secret, length: int, bits: int) -> list[int]:
    """The mask by the book: the whole key stream from counter zero, cut into integers."""
    width = ring.lane_dtype(bits).itemsize
    encryptor = Cipher(algorithms.AES256(secret.reveal()), modes.CTR(bytes(16))).encryptor()
    stream = encryptor.update(bytes(length * width))
    return [
        int.from_bytes(stream[at : at + width], "little") % 2**bits
        for at in range(0, len(stream), width)
    ]


def test_the_key_stream_is_that_of_sp_800_38a() -> None:
    """NIST SP 800-38A, F.5.5 (CTR-AES256.Encrypt), reached through the payload offset.

    Its counter starts at f0f1...ff, so its first block masks the four 32-bit coordinates from
    4 * 0xf0f1...ff on.
    """
    secret = Secret(
        bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    )
    plaintext = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    ciphertext = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    first = int.from_bytes(bytes(range(0xF0, 0x100)), "big") * 4
    vector = np.zeros(16, "<u4")
    apply_masks(vector, [MaskTerm(secret, 1)], 32, lo=first)
    expected = bytes(a ^ b for a, b in zip(plaintext, ciphertext, strict=True))
    assert vector.tobytes() == expected


@pytest.mark.parametrize("bits", range(8, 63))
def test_a_mask_is_the_stream_read_as_lanes(bits: int) -> None:
    vector = np.zeros(37, ring.lane_dtype(bits))
    apply_masks(vector, [MaskTerm(key(1), 1)], bits)
    assert vector.tolist() == reference(key(1), 37, bits)


def test_masks_are_frozen() -> None:
    """Both sides of a cohort may run different releases: this must never change."""
    vector = np.zeros(4, "<u4")
    apply_masks(vector, [MaskTerm(mask_key(Secret(bytes(32)), bytes(32)), 1)], 24)
    assert vector.tolist() == FROZEN


@pytest.mark.parametrize("bits", [8, 16, 21, 32, 47, 62])
def test_plus_and_minus_cancel(bits: int) -> None:
    start = np.arange(1000).astype(ring.lane_dtype(bits)) & ring.ring_mask(bits)
    vector = start.copy()
    terms = [MaskTerm(key(number), 1) for number in range(5)]
    apply_masks(vector, terms, bits)
    assert (vector != start).mean() > 0.9
    assert (vector <= ring.ring_mask(bits)).all()
    apply_masks(vector, [term.negated() for term in terms], bits)
    assert (vector == start).all()


def test_many_terms_add_up_as_integers_do() -> None:
    bits, length = 21, 50
    terms = [MaskTerm(key(number), 1 if number % 3 else -1) for number in range(40)]
    vector = np.full(length, 7, "<u4")
    apply_masks(vector, terms, bits)
    expected = [7] * length
    for term in terms:
        mask = reference(term.key, length, bits)
        expected = [(e + term.sign * m) % 2**bits for e, m in zip(expected, mask, strict=True)]
    assert vector.tolist() == expected


@pytest.mark.parametrize("bits", [16, 24, 40])
def test_long_vectors_have_no_seams(bits: int) -> None:
    """A counter that started anew anywhere (per chunk or per segment) would repeat the mask."""
    length = 3 * (1 << 17) // ring.lane_dtype(bits).itemsize + 3
    vector = np.zeros(length, ring.lane_dtype(bits))
    apply_masks(vector, [MaskTerm(key(2), 1)], bits)
    assert vector.tolist() == reference(key(2), length, bits)


@pytest.mark.parametrize("bits", [16, 24, 40])
def test_any_stretch_is_masked_on_its_own(bits: int) -> None:
    whole = np.zeros(200, ring.lane_dtype(bits))
    terms = [MaskTerm(key(3), 1), MaskTerm(key(4), -1)]
    apply_masks(whole, terms, bits)
    for lo, hi in itertools.combinations(range(0, 40), 2):
        piece = np.zeros(hi - lo, whole.dtype)
        apply_masks(piece, terms, bits, lo)
        assert (piece == whole[lo:hi]).all()


def test_no_terms_reduce_only() -> None:
    vector = np.array([1 << 24, (1 << 24) + 5], "<u4")
    apply_masks(vector, [], 24)
    assert vector.tolist() == [0, 5]


def test_another_salt_is_another_key() -> None:
    """Devices that were shown another masking set get masks that do not cancel."""
    seed = Secret(bytes(range(32)))
    keys = {mask_key(seed, salt).reveal() for salt in (SALT, bytes(32), SALT[::-1])}
    assert len(keys) == 3
    assert mask_key(seed, SALT).reveal() == derive(seed.reveal(), "mask", salt=SALT)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_seed_has_256_bits(size: int) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        mask_key(Secret(bytes(size)), SALT)
    assert caught.value.reason == "seed-size"


@pytest.mark.parametrize(
    "vector",
    [np.zeros(4, "<u2"), np.zeros(4, "<i4"), np.zeros(8, "<u4")[::2], np.zeros(4, ">u4")],
    ids=["narrow", "signed", "strided", "big-endian"],
)
def test_other_lanes_are_refused(vector: np.ndarray) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        apply_masks(vector, [], 24)
    assert caught.value.reason == "vector-type"


def test_a_payload_starts_at_coordinate_zero() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        apply_masks(np.zeros(4, "<u4"), [MaskTerm(key(1), 1)], 24, lo=-1)
    assert caught.value.reason == "mask-offset"


def test_keys_do_not_show() -> None:
    term = MaskTerm(key(5), 1)
    assert key(5).reveal().hex() not in repr(term)
    assert repr(key(5).reveal()) not in repr(term)


def test_masking_takes_chunks_not_vectors_of_memory() -> None:
    vector = np.zeros(1_000_000, "<u4")
    terms = [MaskTerm(key(number), 1) for number in range(4)]
    tracemalloc.start()
    apply_masks(vector, terms, 24)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_more_masks_than_are_under_way_at_once_all_go_in(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = [MaskTerm(key(number), 1 if number % 3 else -1) for number in range(11)]
    whole = np.zeros(50, "<u4")
    apply_masks(whole, terms, 24)
    monkeypatch.setattr("secagg.masks._TERMS_AT_ONCE", 4)
    grouped = np.zeros(50, "<u4")
    apply_masks(grouped, terms, 24)
    assert np.array_equal(whole, grouped)


SHORT, SEED = Secret(b"short"), Secret(bytes(32))
REFUSED = {
    "a mask's seed": Case(
        lambda: masks.mask_key(SHORT, b""), "seed-size", 32, 5, error=LocalProtocolError
    ),
    "a mask's offset": Case(
        lambda: masks.apply_masks(np.zeros(4, "<u4"), (), 24, -1),
        "mask-offset",
        None,
        -1,
        error=LocalProtocolError,
    ),
    "lanes for masks": Case(
        lambda: masks.apply_masks(np.zeros(4, "<u8"), (), 24),
        "vector-type",
        "<u4",
        "<u8",
        error=LocalProtocolError,
    ),
    "lanes with gaps for masks": Case(
        lambda: masks.apply_masks(np.zeros(4, "<u4")[::2], (), 24),
        "vector-type",
        "<u4",
        "<u4",
        error=LocalProtocolError,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_is_wrong(name: str) -> None:
    refused(REFUSED[name])


def test_signs_are_one_or_minus_one() -> None:
    assert (pair_sign(0, 1), pair_sign(1, 0)) == (1, -1)
    term = masks.MaskTerm(SEED, 1)
    assert (term.negated().sign, term.negated().negated().sign) == (-1, 1)
