"""Every refusal of the ledger's parts speaks: a stable reason, a sentence, both values."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from dp.errors import LedgerError
from dp.ledger import contributors, parsing, records
from dp.ledger.trusted_log import verify_growth
from dp.tlog import merkle, notes, tiles, witness
from dp.tlog.notes import Checkpoint, parse_verifier, sign_checkpoint, sign_note
from dp.tlog.tiles import Tile, TileTree
from dp.tlog.witness import AddCheckpoint, WitnessPolicy, WitnessRefusal
from secagg.keys import identity_public_key
from secagg.manifest import encode_manifest, manifest_digest
from secagg.secret import Secret
from tests.kits import tasks
from tests.kits.receipts import check_receipt
from tests.kits.said import said
from tests.kits.tasks import LEDGER_SEED, ORIGIN, VERIFIER, built, entry, served

LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(9)]
TREE = merkle.Tree(LEAVES)
ROOT, BEFORE = merkle.root(TREE.subtree, 9), merkle.root(TREE.subtree, 5)
LOG = parse_verifier(VERIFIER)
HEAD = Checkpoint(ORIGIN, 9, ROOT)
SIGNED = sign_checkpoint(HEAD, Secret(LEDGER_SEED))
WITNESS = witness.witness_key("w.example", identity_public_key(Secret(bytes(32))))
FILES = served(tasks.ledger(built(), (4, 5)))
RECORD = json.loads(records.policy_record("t", "paused", 5))
LISTED = {"contributors": [], "contributors_digest": "ab" * 32}
DIGEST = bytes.fromhex("ab" * 32)


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


class Case(NamedTuple):
    call: Callable[[], Any]
    reason: str
    expected: object = None
    found: object = None


def consistency(
    old: int, size: int, proof: list[bytes], before: bytes = BEFORE
) -> Callable[[], None]:
    return lambda: merkle.verify_consistency(old, size, before, ROOT, proof)


def record_of(**changes: Any) -> Callable[[], object]:
    return lambda: parsing.parse_record(records._canonical(RECORD | changes))


def receipt(ctx: bytes, contributor: bytes = b"c" * 32) -> Callable[[], object]:
    return lambda: check_receipt(
        FILES.get,
        FILES["checkpoint"],
        VERIFIER,
        leaf_index=1,
        remembered=None,
        ctx=ctx,
        contributor=contributor,
    )


PROOF = merkle.consistency_proof(TREE.subtree, 5, 9)
PATH = merkle.inclusion_proof(TREE.subtree, 3, 9)
OLD = (5, BEFORE.hex())
CASES = {
    "a leaf that is not there": Case(
        lambda: merkle.inclusion_proof(TREE.subtree, 9, 9), "proof-range", 9, 9
    ),
    "a longer prefix": Case(
        lambda: merkle.consistency_proof(TREE.subtree, 10, 9), "proof-range", "<= 9", 10
    ),
    "a leaf outside": Case(
        lambda: merkle.verify_inclusion(LEAVES[0], 9, 9, PATH, ROOT),
        "inclusion-proof",
        None,
        (9, 9),
    ),
    "a path too long": Case(
        lambda: merkle.verify_inclusion(LEAVES[3], 3, 9, [*PATH, ROOT], ROOT), "inclusion-proof"
    ),
    "another root": Case(
        lambda: merkle.verify_inclusion(LEAVES[3], 3, 9, PATH, BEFORE),
        "inclusion-proof",
        BEFORE.hex(),
        ROOT.hex(),
    ),
    "a path too short": Case(
        lambda: merkle.verify_inclusion(LEAVES[0], 0, 9, [], LEAVES[0]),
        "inclusion-proof",
        LEAVES[0].hex(),
        LEAVES[0].hex(),
    ),
    "a shorter log": Case(consistency(10, 9, PROOF), "consistency-proof", (10, BEFORE.hex())),
    "an empty log of another root": Case(
        consistency(0, 9, []), "consistency-proof", (0, BEFORE.hex())
    ),
    "a proof of nothing": Case(
        consistency(0, 9, PROOF, merkle.EMPTY_ROOT),
        "consistency-proof",
        (0, merkle.EMPTY_ROOT.hex()),
    ),
    "a log of the same size": Case(consistency(9, 9, []), "consistency-proof", (9, BEFORE.hex())),
    "no proof": Case(consistency(5, 9, []), "consistency-proof", OLD),
    "a proof too long": Case(consistency(5, 9, [*PROOF, ROOT]), "consistency-proof", OLD),
    "a proof too short": Case(consistency(5, 9, PROOF[:-1]), "consistency-proof", OLD),
    "a key's name": Case(lambda: notes.verifier_key("a+b", bytes(32)), "key-name", None, "a+b"),
    "a key too short": Case(lambda: notes.verifier_key("a", bytes(31)), "verifier-key", 32, 31),
    "a key in two parts": Case(lambda: parse_verifier("a+b"), "verifier-key"),
    "a key of no base64": Case(lambda: parse_verifier("a+00000000+%"), "verifier-key"),
    "a witness's key for a log": Case(lambda: parse_verifier(WITNESS), "verifier-key"),
    "a key's hash": Case(lambda: parse_verifier(VERIFIER.replace("+", "+0", 1)), "verifier-key"),
    "a note without a newline": Case(
        lambda: sign_note("text", "a", Secret(bytes(32))), "note-malformed"
    ),
    "65 signatures": Case(
        lambda: notes.parse_signatures("\u2014 a AAAAAAA=\n" * 65), "note-malformed"
    ),
    "a signature of no base64": Case(
        lambda: notes.parse_signatures("\u2014 a %\n"), "note-malformed"
    ),
    "a signature without a dash": Case(
        lambda: notes.parse_signatures("- a AAAAAAA=\n"), "note-malformed"
    ),
    "a note too large": Case(lambda: notes.split_note(b"x" * ((1 << 20) + 1)), "note-malformed"),
    "a note of no text": Case(lambda: notes.split_note(b"\xff"), "note-malformed"),
    "a note without signatures": Case(lambda: notes.split_note(b"text\n"), "note-malformed"),
    "a forged note": Case(
        lambda: notes.verify_note(SIGNED.replace(b"\n9\n", b"\n8\n"), LOG),
        "note-signature",
        None,
        ORIGIN,
    ),
    "a note by another key": Case(
        lambda: notes.verify_note(sign_checkpoint(HEAD, Secret(bytes(32))), LOG),
        "note-unsigned",
        f"{ORIGIN}+{LOG.key_id.hex()}",
        f"{ORIGIN}+{notes.key_id(ORIGIN, identity_public_key(Secret(bytes(32)))).hex()}",
    ),
    "no checkpoint": Case(lambda: notes.parse_checkpoint("a\n"), "checkpoint-malformed"),
    "another log's checkpoint": Case(
        lambda: notes.open_checkpoint(
            sign_note(
                notes.checkpoint_body(HEAD._replace(origin="b")), ORIGIN, Secret(LEDGER_SEED)
            ),
            LOG,
        ),
        "checkpoint-origin",
        ORIGIN,
        "b",
    ),
    "an entry too large": Case(
        lambda: tiles.bundle_bytes([bytes(65_536)]), "record-too-large", "<= 65535 bytes", 65_536
    ),
    "a bundle cut inside an entry": Case(
        lambda: tiles.parse_bundle(b"\x00\x02a", 1), "bundle-malformed"
    ),
    "a bundle with an entry less": Case(
        lambda: tiles.parse_bundle(b"\x00\x01a", 2), "bundle-malformed", 2, 1
    ),
    "a tile that is gone": Case(
        lambda: tiles.fetch({}.get, Tile(0, 0, 3)), "tile-missing", None, "tile/0/000.p/3"
    ),
    "a subtree that is not there": Case(
        lambda: TileTree({}.get, 3).subtree(1, 1), "proof-range", None, (1, 1, 3)
    ),
    "an entry that is not there": Case(lambda: tiles.read_entry({}.get, 3, 3), "proof-range", 3, 3),
    "a log that became shorter": Case(
        lambda: verify_growth(TileTree({}.get, 4).subtree, HEAD, HEAD._replace(size=4)),
        "consistency-proof",
        ">= 9",
        4,
    ),
    "another cohort's receipt": Case(
        receipt(bytes(32)), "release-mismatch", {"ctx": "00" * 32}, {"ctx": entry(1).ctx.hex()}
    ),
    "a receipt without this device": Case(receipt(entry(1).ctx), "contributor-missing", "63" * 32),
    "a witness listed twice": Case(
        lambda: WitnessPolicy.of([WITNESS, WITNESS], 1), "witness-policy"
    ),
    "more witnesses than there are": Case(
        lambda: WitnessPolicy.of([WITNESS], 2), "witness-policy", "1 to 1", 2
    ),
    "no cosignature": Case(
        lambda: WitnessPolicy.of([WITNESS]).check(SIGNED),
        "witnesses-missing",
        "1 of ['w.example']",
        [],
    ),
    "a request of no form": Case(lambda: witness.parse_request(b""), "request-malformed"),
    "a cost without bound": Case(lambda: records.epsilon_micro(float("inf")), "epsilon-infinite"),
    "a cost that is not a number": Case(
        lambda: records.epsilon_micro(float("nan")), "epsilon-infinite"
    ),
    "a record with a set": Case(lambda: records._canonical({"type": {1}}), "record-malformed"),
    "a record too large": Case(
        lambda: records._canonical({"a": "x" * 65_530}),
        "record-too-large",
        "<= 65535 bytes",
        65_538,
    ),
    "the release after the next": Case(
        lambda: records.release_record(built(), bytes(32), [], entry(2)), "release-number", 1, 2
    ),
    "a record of no JSON": Case(lambda: parsing.parse_record(b"{"), "record-malformed"),
    "a record that is a list": Case(lambda: parsing.parse_record(b"[]"), "record-malformed"),
    "a record with a float": Case(
        lambda: parsing.parse_record(b'{"a":[{"b":0.5}]}'), "record-malformed"
    ),
    "a record of another type": Case(record_of(type="rumour"), "record-type", None, "rumour"),
    "a record of another version": Case(record_of(version=2), "record-version", 1, 2),
    "a record of version true": Case(record_of(version=True), "record-version", 1, True),
    "a task without a manifest": Case(lambda: parsing.parse_task({}), "record-malformed"),
    "a manifest of another digest": Case(
        lambda: parsing.parse_task(
            json.loads(tasks.signed_task(built())) | {"manifest_digest": "00" * 32}
        ),
        "manifest-digest",
        "00" * 32,
        manifest_digest(encode_manifest(built())).hex(),
    ),
    "a model of no digest": Case(
        lambda: parsing.parse_first_model({"model_digest": "xy"}), "record-malformed"
    ),
    "a release without facts": Case(lambda: parsing.parse_release({}), "record-malformed"),
    "a list's digest that is a number": Case(
        lambda: contributors.listed(LISTED | {"contributors_digest": 5}), "record-malformed"
    ),
    "a list's digest too short": Case(
        lambda: contributors.listed(LISTED | {"contributors_digest": "ab" * 31}),
        "record-malformed",
    ),
    "a list's digest in capitals": Case(
        lambda: contributors.listed(LISTED | {"contributors_digest": "AB" * 32}),
        "record-malformed",
    ),
    "contributors named twice": Case(
        lambda: contributors.listed(LISTED | {"contributors": ["00" * 32]}), "record-malformed"
    ),
    "contributors that are gone": Case(
        lambda: contributors.parse_contributors(None, DIGEST), "contributors-missing", "ab" * 32
    ),
    "contributors of another digest": Case(
        lambda: contributors.parse_contributors(b"", DIGEST),
        "contributors-digest",
        "ab" * 32,
        digest_of(b"").hex(),
    ),
    "no contributors": Case(
        lambda: contributors.parse_contributors(b"", digest_of(b"")), "contributors-malformed"
    ),
    "contributors of no hex": Case(
        lambda: contributors.contributors_of({"contributors": ["xy"]}, {}.get), "record-malformed"
    ),
    "a record without contributors": Case(
        lambda: contributors.contributors_of({}, {}.get), "record-malformed"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_refusal_says_what_was_expected_and_what_was_found(case: Case) -> None:
    with pytest.raises(LedgerError) as caught:
        case.call()
    assert said(caught.value) == (case.reason, case.expected, case.found)


def test_a_tile_of_another_size_is_named() -> None:
    with pytest.raises(LedgerError) as caught:
        tiles.fetch({"tile/0/000.p/3": bytes(95)}.get, Tile(0, 0, 3))
    error = caught.value
    assert (error.reason, error.expected, error.found) == ("tile-malformed", 96, 95)
    assert error.message == "tile/0/000.p/3 has the wrong size."


def request(old: int, note: bytes, proof: list[bytes] | None = None) -> AddCheckpoint:
    return AddCheckpoint(old, tuple(PROOF if proof is None else proof), note)


def head(size: int, root: bytes = ROOT, origin: str = ORIGIN, seed: bytes = LEDGER_SEED) -> bytes:
    return sign_checkpoint(Checkpoint(origin, size, root), Secret(seed))


LAST = Checkpoint(ORIGIN, 5, BEFORE)


@pytest.mark.parametrize(
    ("asked", "status", "reason", "expected", "found"),
    [
        (request(5, b"x"), 400, "note-malformed", None, None),
        (request(5, head(9, origin="o")), 404, "log-unknown", None, "o"),
        (request(5, head(9, seed=bytes(32))), 403, "log-signature", None, None),
        (request(5, head(4)), 400, "log-rolled-back", 5, 4),
        (request(4, head(9)), 409, "old-size", 5, 4),
        (request(5, head(5)), 409, "log-forked", BEFORE.hex(), ROOT.hex()),
        (request(5, head(9), []), 422, "log-forked", None, None),
    ],
)
def test_a_witness_says_why_it_does_not_sign(
    asked: AddCheckpoint, status: int, reason: str, expected: object, found: object
) -> None:
    with pytest.raises(WitnessRefusal) as caught:
        witness.consider(asked, {ORIGIN: (LOG,)}, LAST)
    assert said(caught.value) == (reason, expected, found)
    assert caught.value.status == status
    assert WitnessRefusal("a-reason", "A sentence.").status == 400


def test_signature_lines_are_read_strictly() -> None:
    data = base64.b64encode(b"keyid" + bytes(3)).decode()
    (line,) = notes.parse_signatures(f"\u2014 a {data}\n")
    assert line == ("a", b"keyi", b"d" + bytes(3))
    assert len(notes.parse_signatures("\u2014 a AAAAAAA=\n" * 64)) == 64
    for broken in (
        f"\u2014 a {data}",
        f"\u2014  {data}\n",
        "\u2014 a AAAAAA==\n",  # a key ID without a signature
        "\u2014 a AAAAAAB=\n",  # a second spelling of five zero bytes
        "\u2014 a AAAA AAA=\n",
        "\n",
    ):
        with pytest.raises(LedgerError, match="note-malformed"):
            notes.parse_signatures(broken)
