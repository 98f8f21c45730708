"""The primitives of the suite against published vectors, through this project's own functions.

The vectors come from the ``cryptography-vectors`` package (RFC 5869, RFC 7748, RFC 9180, the HPKE
working group's post-quantum vectors, NIST's ML-KEM-768, SP 800-38A through RFC 3686, Ed25519's own
1,024 lines) or stand here (FIPS 197, RFC 8032, RFC 8785).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

import cryptography_vectors
import numpy as np
import pytest
import rfc8785
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secagg import hashing, keys, messages, sealing
from secagg.hashing import derive
from secagg.limits import KEM_PUBLIC_KEY_BYTES
from secagg.masks import MaskTerm, apply_masks
from secagg.secret import Secret


def text_of(name: str) -> str:
    with cryptography_vectors.open_vector_file(name, "r") as file:
        return str(file.read())


def records(name: str, first: str) -> Iterator[dict[str, str]]:
    """``KEY = value`` records, each of which begins with the key ``first``."""
    found: dict[str, str] = {}
    for line in text_of(name).splitlines():
        if match := re.fullmatch(r"(\w+)\s*=\s*(.*?)\s*", line):
            if match[1] == first and found:
                yield found
                found = {}
            found[match[1]] = match[2]
    yield found


def json_records(name: str, kem: int) -> list[dict[str, object]]:
    """Base-mode records of one KEM with HKDF-SHA256."""
    return [
        record
        for record in json.loads(text_of(name))
        if (record["mode"], record["kem_id"], record["kdf_id"]) == (0, kem, 1)
    ]


# -- HKDF ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["KDF/rfc-5869-HKDF-SHA256.txt", "KDF/hkdf-generated.txt"], ids=["RFC 5869", "long"]
)
def test_key_derivation_is_hkdf_sha256(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``derive`` frames its ``info``; with that framing off it is the published function."""
    monkeypatch.setattr(hashing, "encode_parts", lambda label, *parts: parts[0])
    checked = 0
    for record in records(name, "COUNT"):
        assert record["Hash"] == "SHA-256"
        found = derive(
            bytes.fromhex(record["IKM"]),
            "",
            bytes.fromhex(record["info"]),
            salt=bytes.fromhex(record["salt"]),
            length=int(record["L"]),
        )
        assert found.hex() == record["OKM"]
        checked += 1
    assert checked >= (3 if "rfc" in name else 1)


# -- AES-256-CTR ---------------------------------------------------------------------------------


def test_aes_256_is_that_of_fips_197() -> None:
    """FIPS 197, appendix C.3: one block, reached as the mask at that counter."""
    key = Secret(bytes(range(32)))
    block = int.from_bytes(bytes.fromhex("00112233445566778899aabbccddeeff"), "big")
    lanes = np.zeros(16 // 4, "<u4")
    apply_masks(lanes, [MaskTerm(key, 1)], 32, lo=block * 4)
    assert lanes.tobytes().hex() == "8ea2b7ca516745bfeafc49904b496089"


@pytest.mark.parametrize("bits", [16, 32, 62])
def test_masks_are_aes_256_ctr_of_rfc_3686(bits: int) -> None:
    """Every published counter block, reached through the payload offset, read in three lanes."""
    checked = 0
    for record in records("ciphers/AES/CTR/aes-256-ctr.txt", "COUNT"):
        key, counter = bytes.fromhex(record["KEY"]), int(record["IV"], 16)
        plain, sealed = (bytes.fromhex(record[name]) for name in ("PLAINTEXT", "CIPHERTEXT"))
        stream = bytes(a ^ b for a, b in zip(plain, sealed, strict=True))
        width = 2 if bits == 16 else 4 if bits == 32 else 8
        stream = stream[: len(stream) // width * width]
        lanes = np.zeros(len(stream) // width, f"<u{width}")
        apply_masks(lanes, [MaskTerm(Secret(key), 1)], bits, lo=counter * (16 // width))
        expected = np.frombuffer(stream, f"<u{width}") & ((1 << bits) - 1)
        assert lanes.tolist() == expected.tolist()
        checked += len(expected)
    assert checked >= 10


def test_a_counter_carries_over_all_its_bytes() -> None:
    """CTR counts modulo 2^128: the block after 2^64 - 1 is 2^64, not 0."""
    key = Secret(b"k" * 32)
    lanes = np.zeros(8, "<u4")
    apply_masks(lanes, [MaskTerm(key, 1)], 32, lo=((1 << 64) - 1) * 4)
    ecb = Cipher(algorithms.AES256(key.reveal()), modes.ECB()).encryptor()  # noqa: S305
    blocks = [((1 << 64) - 1).to_bytes(16, "big"), (1 << 64).to_bytes(16, "big")]
    assert lanes.tobytes() == b"".join(ecb.update(block) for block in blocks)


# -- Ed25519 -------------------------------------------------------------------------------------


def test_identities_sign_like_the_published_1024_lines() -> None:
    lines = text_of("asymmetric/Ed25519/sign.input").splitlines()
    assert len(lines) == 1024
    for line in lines[::4]:
        secret, public, message, signed = (bytes.fromhex(field) for field in line.split(":")[:4])
        seed, signature = Secret(secret[:32]), signed[:64]
        assert keys.identity_public_key(seed) == public
        assert keys.signing_key(seed).sign(message).signature == signature
        assert keys.verify_signature(public, message, signature)
        assert not keys.verify_signature(public, message + b"x", signature)


def test_a_signature_over_a_digest_is_that_of_rfc_8032() -> None:
    """RFC 8032, section 7.1, test SHA(abc): the message is a digest."""
    seed = Secret(bytes.fromhex("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42"))
    message = hashlib.sha512(b"abc").digest()
    assert keys.identity_public_key(seed).hex() == (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf"
    )
    assert keys.signing_key(seed).sign(message).signature.hex() == (
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704"
    )


# -- X25519, ML-KEM-768 and their hybrid -----------------------------------------------------------


def test_x25519_is_that_of_rfc_7748() -> None:
    checked = 0
    for record in records("asymmetric/X25519/rfc7748.txt", "COUNT"):
        private = X25519PrivateKey.from_private_bytes(bytes.fromhex(record["INPUT_SCALAR"]))
        point = X25519PublicKey.from_public_bytes(bytes.fromhex(record["INPUT_U"]))
        assert private.exchange(point).hex() == record["OUTPUT_U"]
        checked += 1
    assert checked >= 3


def kem_secret_whose_keys_are(
    monkeypatch: pytest.MonkeyPatch, mlkem_seed: bytes, x25519_scalar: bytes
) -> Secret:
    """Makes the key derivation return a published key pair, whatever the secret."""
    monkeypatch.setattr(sealing, "derive", lambda *_, **__: mlkem_seed + x25519_scalar)
    return Secret(bytes(32))


def test_the_post_quantum_half_is_ml_kem_768_of_fips_203(monkeypatch: pytest.MonkeyPatch) -> None:
    """Public keys and decapsulation of every eighth NIST vector."""
    vectors = list(records("asymmetric/MLKEM/kat_MLKEM_768.rsp", "count"))
    assert len(vectors) >= 100
    for record in vectors[::8]:
        seed = bytes.fromhex(record["d"] + record["z"])
        public = bytes.fromhex(record["pk"])
        secret = kem_secret_whose_keys_are(monkeypatch, seed, b"x" * 32)
        assert sealing.kem_public_key(secret, "any")[:1184] == public
        private = MLKEM768PrivateKey.from_seed_bytes(seed)
        assert private.decapsulate(bytes.fromhex(record["ct"])).hex() == record["ss"].lower()


def hybrid_seed(seed: bytes) -> bytes:
    """The private key expansion of draft-connolly-cfrg-xwing-kem, section 5.2."""
    return hashlib.shake_256(seed).digest(96)


def opened_with_aad(seal: bytes, private: object, info: bytes, aad: bytes, aead: int) -> bytes:
    """The library's private function: its public one has no associated data, all vectors do."""
    algorithm = {1: hpke.AEAD.AES_128_GCM, 2: hpke.AEAD.AES_256_GCM, 3: hpke.AEAD.CHACHA20_POLY1305}
    kem = hpke.KEM.X25519 if isinstance(private, X25519PrivateKey) else hpke.KEM.MLKEM768_X25519
    suite = hpke.Suite(kem, hpke.KDF.HKDF_SHA256, algorithm[aead])
    return bytes(hpke.rust_openssl.hpke._decrypt_with_aad(suite, seal, private, info, aad))


def test_the_hybrid_key_and_hpke_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLKEM768_X25519 with HKDF-SHA256, base mode, from the HPKE working group.

    It is published with ChaCha20-Poly1305 only; AES-256-GCM is the next test's.
    """
    (record,) = json_records("HPKE/hpke-pq-test-vectors.json", 0x647A)
    seed = hybrid_seed(bytes.fromhex(str(record["skRm"])))
    secret = kem_secret_whose_keys_are(monkeypatch, seed[:64], seed[64:])
    assert sealing.kem_public_key(secret, "any").hex() == record["pkRm"]
    first = record["encryptions"][0]  # type: ignore[index]
    opened = opened_with_aad(
        bytes.fromhex(str(record["enc"]) + first["ct"]),
        sealing.kem_private_key(secret, "any"),
        bytes.fromhex(str(record["info"])),
        bytes.fromhex(first["aad"]),
        int(str(record["aead_id"])),
    )
    assert opened.hex() == first["pt"]


def test_hpke_with_aes_256_gcm_is_that_of_rfc_9180() -> None:
    """RFC 9180, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256: AES-128-GCM, AES-256-GCM, ChaCha20."""
    found = set()
    for record in json_records("HPKE/test-vectors.json", 0x20):
        if record["aead_id"] not in (1, 2, 3):
            continue
        first = record["encryptions"][0]  # type: ignore[index]
        opened = opened_with_aad(
            bytes.fromhex(str(record["enc"]) + first["ct"]),
            X25519PrivateKey.from_private_bytes(bytes.fromhex(str(record["skRm"]))),
            bytes.fromhex(str(record["info"])),
            bytes.fromhex(first["aad"]),
            int(str(record["aead_id"])),
        )
        assert opened.hex() == first["pt"]
        found.add(record["aead_id"])
    assert found == {1, 2, 3}


def test_the_suites_seal_is_hpke_base_mode_without_associated_data() -> None:
    """Opens under the suite that the vectors above check, with empty associated data."""
    secret = Secret(b"s" * 32)
    private = sealing.kem_private_key(secret, "any")
    seal = sealing.hpke_seal(sealing.kem_public_key(secret, "any"), b"info", b"text")
    assert opened_with_aad(seal, private, b"info", b"", 2) == b"text"
    assert len(sealing.kem_public_key(secret, "any")) == KEM_PUBLIC_KEY_BYTES


# -- canonical JSON --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        (  # RFC 8785, section 3.2.2 to 3.2.4, without the floats that no record may hold
            {
                "string": '\u20ac$\u000f\nA\'B"\\\\"/',
                "literals": [None, True, False],
                "numbers": [4, 2, 0, -1],
            },
            '{"literals":[null,true,false],"numbers":[4,2,0,-1],'
            '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
        ),
        (  # section 3.2.3: keys are sorted as UTF-16 code units
            {
                "\u20ac": "Euro Sign",
                "\r": "Carriage Return",
                "\ufb33": "Hebrew Letter Dalet With Dagesh",
                "1": "One",
                "\U0001f600": "Emoji: Grinning Face",
                "\u0080": "Control",
                "\u00f6": "Latin Small Letter O With Diaeresis",
            },
            '{"\\r":"Carriage Return","1":"One","\u0080":"Control",'
            '"ö":"Latin Small Letter O With Diaeresis","€":"Euro Sign",'
            '"\U0001f600":"Emoji: Grinning Face","\ufb33":"Hebrew Letter Dalet With Dagesh"}',
        ),
    ],
    ids=["3.2.4", "3.2.3"],
)
def test_ledger_json_is_that_of_rfc_8785(value: object, canonical: str) -> None:
    assert rfc8785.dumps(value).decode() == canonical  # type: ignore[arg-type]


def test_signed_labels_do_not_collide_with_published_contexts() -> None:
    """Every signature starts with a length and this protocol's domain."""
    for kind in messages.KINDS:
        signed = messages.signature_input(kind, b"", b"")
        label = f"secagg/1 sign {kind.__name__}".encode()
        assert signed.startswith(len(label).to_bytes(8, "little") + label)
