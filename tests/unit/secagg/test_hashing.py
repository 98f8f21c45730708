"""Hashes cannot be confused, and key derivation is the published HKDF."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from secagg.hashing import derive, digest, encode_parts


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 by the book."""
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    output, block, number = b"", b"", 1
    while len(output) < length:
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        output, number = output + block, number + 1
    return output[:length]


@pytest.mark.parametrize(
    ("secret", "salt", "info", "okm"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            "0b" * 22,
            "",
            "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
    ids=["A.1", "A.3"],
)
def test_the_reference_below_is_rfc_5869(secret: str, salt: str, info: str, okm: str) -> None:
    found = hkdf(bytes.fromhex(secret), bytes.fromhex(salt), bytes.fromhex(info), 42)
    assert found.hex() == okm


@pytest.mark.parametrize("salt", [b"", b"salt", bytes(range(32)), bytes(80)])
@pytest.mark.parametrize("length", [16, 32, 33, 96])
def test_derive_is_hkdf_with_labelled_info(salt: bytes, length: int) -> None:
    secret, parts = bytes(range(32)), (b"one", b"", b"three")
    expected = hkdf(secret, salt, encode_parts("label", *parts), length)
    assert derive(secret, "label", *parts, salt=salt, length=length) == expected


def test_parts_stand_behind_their_lengths() -> None:
    assert encode_parts("x", b"ab", b"").hex() == (
        "0a00000000000000" + b"secagg/1 x".hex() + "0200000000000000" + "6162" + "0000000000000000"
    )


def test_digest_is_sha_256_of_the_parts() -> None:
    assert digest("x", b"ab") == hashlib.sha256(encode_parts("x", b"ab")).digest()


def test_no_two_lists_of_parts_encode_alike() -> None:
    lists = [
        ("x",),
        ("x", b""),
        ("x", b"", b""),
        ("x", b"ab"),
        ("x", b"a", b"b"),
        ("x", b"", b"ab"),
        ("x", b"ab", b""),
        ("xa", b"b"),
        ("xab",),
        ("y", b"ab"),
        ("x", (2).to_bytes(8, "little") + b"ab"),
    ]
    assert len({encode_parts(label, *parts) for label, *parts in lists}) == len(lists)


def test_labels_and_salts_separate_keys() -> None:
    secret = bytes(32)
    keys = {
        derive(secret, "mask"),
        derive(secret, "pair seed"),
        derive(secret, "mask", salt=b"1"),
        derive(secret, "mask", b"1"),
        derive(b"1" * 32, "mask"),
    }
    assert len(keys) == 5


def test_labels_are_ascii() -> None:
    with pytest.raises(UnicodeEncodeError):
        digest("schlüssel")
