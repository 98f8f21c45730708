"""A signed manifest has one reading: bytes that can be taken for two tasks are refused."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import nacl.signing
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from client_sdk.rounds.checkin import verify_offer
from dp.ledger.builder import LedgerBuilder
from dp.ledger.parsing import parse_record, parse_task
from dp.ledger.records import task_record
from dp.ledger.verification import verify_ledger
from dp.tlog.tiles import parse_bundle
from secagg.errors import RemoteProtocolError
from secagg.hashing import encode_parts
from secagg.http_api import ModelVersion, Offer
from secagg.manifest import decode_manifest, encode_manifest, manifest_digest
from tests.kits.tasks import ORIGIN, TASK_SEED, VERIFIER, built, served

MANIFEST = built()
ENCODED = encode_manifest(MANIFEST)
PAIRS = list(msgspec.msgpack.decode(ENCODED).items())
STORED = Path(__file__).parents[2] / "vectors" / "stored-0453a63"


def packed(pairs: list[tuple[str, object]], header: bytes | None = None) -> bytes:
    """A map of these pairs, repeated keys and all."""
    head = header if header is not None else b"\xde" + len(pairs).to_bytes(2, "big")
    encode = msgspec.msgpack.encode
    return head + b"".join(encode(key) + encode(value) for key, value in pairs)


def inner(part: str, spell: Callable[[bytes], bytes]) -> bytes:
    """The manifest with one part's bytes spelled anew."""
    whole = b"\xde" + len(PAIRS).to_bytes(2, "big")
    for key, value in PAIRS:
        data = msgspec.msgpack.encode(value)
        whole += msgspec.msgpack.encode(key) + (spell(data) if key == part else data)
    return whole


def twice(data: bytes) -> bytes:
    """A small map whose last pair stands there twice, the first time with another value."""
    key, value = list(msgspec.msgpack.decode(data).items())[-1]
    other = msgspec.msgpack.encode(key) + msgspec.msgpack.encode(7)
    return bytes([data[0] + 1]) + other + data[1:] if value != 7 else data


SPELLINGS: dict[str, bytes] = {
    "a key twice, the other value first": packed([("task", "other"), *PAIRS]),
    "a key twice, the other value last": packed([*PAIRS, ("task", "other")]),
    "a key twice, the same value": packed([*PAIRS, PAIRS[2]]),
    "a key twice inside": inner("budget", twice),
    "keys in another order": packed(PAIRS[::-1]),
    "keys in another order inside": inner(
        "budget",
        lambda data: msgspec.msgpack.encode(dict(reversed(msgspec.msgpack.decode(data).items()))),
    ),
    "a wider map": packed(PAIRS, b"\xdf" + len(PAIRS).to_bytes(4, "big")),
    "a wider map inside": inner(
        "budget", lambda data: b"\xde\x00" + bytes([data[0] & 15]) + data[1:]
    ),
    "a wider integer": inner("protocol", lambda data: b"\xcc" + data),
    "an integer of eight bytes": inner("protocol", lambda data: b"\xcf" + bytes(7) + data),
    "a signed integer": inner("protocol", lambda data: b"\xd0" + data),
    "a wider text": inner("task", lambda data: b"\xd9" + bytes([len(data) - 1]) + data[1:]),
    "wider bytes": inner("task_key", lambda data: b"\xc5\x00" + data[1:]),
    "a wider list": inner("partner_keys", lambda data: b"\xdc\x00\x01" + data[1:]),
    "a float of four bytes": inner("report_slot_s", lambda _: b"\xca" + struct.pack(">f", 0.0)),
    "an integer for a float": inner("report_slot_s", lambda _: b"\x00"),
}


def signed(encoded: bytes) -> bytes:
    return nacl.signing.SigningKey(TASK_SEED).sign(encode_parts("manifest", encoded)).signature


def offer(encoded: bytes) -> Offer:
    return Offer(
        manifest=encoded,
        manifest_signature=signed(encoded),
        state="open",
        releases=0,
        model=ModelVersion(version=0, digest=bytes(32), size_bytes=1, opened_at=0.0),
        now=0.0,
    )


def hand_made(encoded: bytes) -> bytes:
    """A task record as an operator may write it without our builder."""
    honest = json.loads(task_record(ENCODED, signed(ENCODED)))
    return rfc8785.dumps(
        honest
        | {
            "manifest": base64.b64encode(zlib.compress(encoded)).decode(),
            "manifest_digest": manifest_digest(encoded).hex(),
            "manifest_signature": signed(encoded).hex(),
        }
    )


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_second_spelling_is_refused_wherever_a_manifest_is_read(name: str) -> None:
    encoded = SPELLINGS[name]
    assert msgspec.msgpack.decode(encoded, type=type(MANIFEST), strict=True)  # it does parse
    with pytest.raises(RemoteProtocolError, match="manifest-not-canonical"):
        decode_manifest(encoded)
    with pytest.raises(RemoteProtocolError, match="manifest-not-canonical"):
        task_record(encoded, signed(encoded))
    with pytest.raises(RemoteProtocolError, match="manifest-not-canonical"):
        verify_offer(offer(encoded), "demo", MANIFEST.task_key)
    result = verify_ledger(served(LedgerBuilder(ORIGIN, [hand_made(encoded)])).get, VERIFIER)
    assert [(p.reason, p.leaf) for p in result.problems] == [("manifest-not-canonical", 0)]


def test_the_one_spelling_is_read() -> None:
    assert packed(PAIRS) == ENCODED
    assert decode_manifest(ENCODED) == MANIFEST
    assert verify_ledger(served(LedgerBuilder(ORIGIN, [hand_made(ENCODED)])).get, VERIFIER).verified


def test_a_manifest_of_before_lacks_fields_that_came_later_and_stays_readable() -> None:
    bundle = STORED / "ledger" / "tile" / "entries" / "000.p" / "4"
    _, manifest, _ = parse_task(parse_record(parse_bundle(bundle.read_bytes(), 4)[0]))
    assert manifest.task == "stats"
    old = dict(PAIRS)
    old["cohort"] = {key: value for key, value in old["cohort"].items() if key != "model_min"}
    assert decode_manifest(packed(list(old.items()))) == MANIFEST


def test_whole_numbers_are_written_as_the_floats_that_they_are() -> None:
    whole = msgspec.structs.replace(MANIFEST, report_slot_s=5)
    assert encode_manifest(whole) == encode_manifest(
        msgspec.structs.replace(MANIFEST, report_slot_s=5.0)
    )
    assert decode_manifest(encode_manifest(whole)).report_slot_s == 5.0


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_read_encodes_to_the_same_bytes(data: st.DataObject) -> None:
    """Changed bytes are refused, or are the encoding of what they say."""
    at = data.draw(st.integers(0, len(ENCODED)))
    cut = data.draw(st.integers(0, 3))
    put = data.draw(st.binary(max_size=4))
    changed = ENCODED[:at] + put + ENCODED[at + cut :]
    try:
        manifest = decode_manifest(changed)
    except RemoteProtocolError:
        return
    assert encode_manifest(manifest) == changed
