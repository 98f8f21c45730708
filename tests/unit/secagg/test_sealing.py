"""Seals: whatever a peer sends, it opens or it is refused."""

from __future__ import annotations

import os
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secagg import sealing
from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.hashing import derive
from secagg.limits import KEM_PUBLIC_KEY_BYTES, SEAL_OVERHEAD_BYTES
from secagg.secret import Secret
from secagg.tools import system_tools
from tests.kits.said import Case, refused

KEM_SECRET = Secret(bytes(range(32)))
KEM_PUBLIC = sealing.kem_public_key(KEM_SECRET, "mask-key")
KEM_PRIVATE = sealing.kem_private_key(KEM_SECRET, "mask-key")

# X25519 points of low order, canonical and not (RFC 7748, section 6.1; curve25519, 8 * P = 0).
_P = 2**255 - 19
LOW_ORDER = [
    point.to_bytes(32, "little")
    for point in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _P - 1,
        _P,
        _P + 1,
        _P + 2**255,  # the top bit is ignored
    )
]


def test_a_seal_opens_with_its_key_and_info_only() -> None:
    sealed = sealing.hpke_seal(KEM_PUBLIC, b"info", b"text")
    assert sealing.hpke_open(KEM_PRIVATE, b"info", sealed) == b"text"
    other = sealing.kem_private_key(Secret(bytes(32)), "mask-key")
    other_use = sealing.kem_private_key(KEM_SECRET, "channel-key")
    for private, info in ((KEM_PRIVATE, b"other"), (other, b"info"), (other_use, b"info")):
        with pytest.raises(RemoteProtocolError) as caught:
            sealing.hpke_open(private, info, sealed)
        assert caught.value.reason == "seal-invalid"


@pytest.mark.parametrize("size", [0, 1, 32, 66, 1000])
def test_a_seal_has_a_known_size(size: int) -> None:
    sealed = sealing.hpke_seal(KEM_PUBLIC, b"", bytes(size))
    assert len(sealed) == size + SEAL_OVERHEAD_BYTES
    assert sealing.hpke_open(KEM_PRIVATE, b"", sealed) == bytes(size)


def test_two_seals_of_the_same_text_differ() -> None:
    assert sealing.hpke_seal(KEM_PUBLIC, b"", b"x") != sealing.hpke_seal(KEM_PUBLIC, b"", b"x")


def test_the_key_pair_comes_from_the_secret_alone() -> None:
    seeds = derive(KEM_SECRET.reveal(), "mask-key", length=96)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(seeds[:64]).public_key().public_bytes_raw()
    x25519 = X25519PrivateKey.from_private_bytes(seeds[64:]).public_key().public_bytes_raw()
    assert mlkem + x25519 == KEM_PUBLIC
    assert len(KEM_PUBLIC) == KEM_PUBLIC_KEY_BYTES
    assert sealing.kem_public_key(KEM_SECRET, "channel-key") != KEM_PUBLIC


def test_sound_keys_pass_the_check() -> None:
    for _ in range(20):
        sealing.check_kem_public_key(sealing.kem_public_key(Secret(os.urandom(32)), "mask-key"))


MALFORMED_KEYS = {
    "empty": b"",
    "truncated": KEM_PUBLIC[:-1],
    "ml-kem alone": KEM_PUBLIC[:1184],
    "x25519 alone": KEM_PUBLIC[1184:],
    "too long": KEM_PUBLIC + b"\0",
    "all zero": bytes(1216),
    "ml-kem coefficients above q": b"\xff" * 1184 + KEM_PUBLIC[1184:],
    **{f"low order {place}": KEM_PUBLIC[:1184] + point for place, point in enumerate(LOW_ORDER)},
}


@pytest.mark.parametrize("public", MALFORMED_KEYS.values(), ids=MALFORMED_KEYS)
def test_malformed_public_keys_are_refused_by_name(public: bytes) -> None:
    for use in (
        lambda: sealing.check_kem_public_key(public),
        lambda: sealing.hpke_seal(public, b"info", b"text"),
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            use()
        assert caught.value.reason == "kem-key-malformed"


def seal_refusal(sealed: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        sealing.hpke_open(KEM_PRIVATE, b"info", sealed)
    return caught.value.reason


def test_truncated_seals_are_refused() -> None:
    sealed = sealing.hpke_seal(KEM_PUBLIC, b"info", b"0123456789abcdef")
    sizes = {*range(0, 70), *range(1080, len(sealed))}
    assert {seal_refusal(sealed[:size]) for size in sizes} == {"seal-invalid"}
    assert seal_refusal(sealed + b"\0") == "seal-invalid"


def test_changed_seals_are_refused() -> None:
    sealed = sealing.hpke_seal(KEM_PUBLIC, b"info", b"0123456789abcdef")
    places = random.Random(1)  # where to break it; nothing secret
    for _ in range(300):
        changed = bytearray(sealed)
        changed[places.randrange(len(sealed))] ^= 1 << places.randrange(8)
        if changed[1088 + 31] ^ sealed[1088 + 31] == 0x80:
            continue  # X25519 ignores this bit; the KEM's hash does not, see below
        assert seal_refusal(bytes(changed)) == "seal-invalid"


def test_the_ignored_bit_of_x25519_is_bound_as_well() -> None:
    sealed = bytearray(sealing.hpke_seal(KEM_PUBLIC, b"info", b"text"))
    sealed[1088 + 31] ^= 0x80
    assert seal_refusal(bytes(sealed)) == "seal-invalid"


@pytest.mark.parametrize("point", LOW_ORDER, ids=range(len(LOW_ORDER)))
def test_a_low_order_ephemeral_key_is_refused(point: bytes) -> None:
    sealed = sealing.hpke_seal(KEM_PUBLIC, b"info", b"text")
    assert seal_refusal(sealed[:1088] + point + sealed[1120:]) == "seal-invalid"


@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_constant_bytes_are_no_seal(fill: bytes) -> None:
    assert seal_refusal(fill * (SEAL_OVERHEAD_BYTES + 66)) == "seal-invalid"


def test_the_real_tools_draw_from_the_system_and_seal_for_good() -> None:
    tools = system_tools()
    assert len({tools.random_bytes(32) for _ in range(8)}) == 8
    assert [len(tools.random_bytes(size)) for size in (0, 1, 48)] == [0, 1, 48]
    sealed = tools.seal(KEM_PUBLIC, b"info", b"text")
    assert sealing.hpke_open(KEM_PRIVATE, b"info", sealed) == b"text"


SHORT, SEED = Secret(b"short"), Secret(bytes(32))
REFUSED = {
    "a hybrid seed": Case(
        lambda: sealing.kem_public_key(SHORT, "x"), "seed-size", 32, 5, error=LocalProtocolError
    ),
    "a short hybrid key": Case(
        lambda: sealing.hpke_seal(b"short", b"", b""), "kem-key-malformed", 1_216, 5
    ),
    "a malformed hybrid key": Case(
        lambda: sealing.hpke_seal(b"\xff" * 1_216, b"", b""), "kem-key-malformed"
    ),
    "a seal for another": Case(
        lambda: sealing.hpke_open(
            sealing.kem_private_key(SEED, "x"),
            b"",
            sealing.hpke_seal(sealing.kem_public_key(KEM_SECRET, "x"), b"", b""),
        ),
        "seal-invalid",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_is_wrong(name: str) -> None:
    refused(REFUSED[name])
