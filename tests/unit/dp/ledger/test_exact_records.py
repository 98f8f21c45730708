"""Records, receipts and requests of the ledger, key by key and at their limits."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import rfc8785

from dp.accounting.statements import ReleaseFacts, fewest, guaranteed_variance, lines
from dp.errors import LedgerError
from dp.ledger import contributors, parsing, records
from dp.ledger.builder import LedgerBuilder
from dp.ledger.parsing import parse_first_model, parse_record, parse_release, parse_task
from dp.ledger.records import (
    ReleaseEntry,
    epsilon_micro,
    identity_digest,
    policy_record,
    release_record,
    statement_record,
    task_record,
)
from dp.ledger.trusted_log import TrustedLog, verify_growth
from dp.tlog import tiles
from dp.tlog.notes import Checkpoint, parse_verifier
from dp.tlog.tiles import Tile, TileTree, fetch, parse_bundle, proof_paths
from secagg.hashing import digest
from secagg.manifest import encode_manifest, manifest_digest
from tests.kits.receipts import log_of
from tests.kits.rotations import key_rotation_record
from tests.kits.said import Case, refused
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, ledger, served

MANIFEST = built()
ENCODED = encode_manifest(MANIFEST)
DIGEST = manifest_digest(ENCODED)


def release(number: int = 1, **changes: Any) -> ReleaseEntry:
    return msgspec.structs.replace(entry(number, 5), **changes)


def record_of(item: ReleaseEntry, previous: tuple[ReleaseFacts, ...] = ()) -> dict[str, Any]:
    return parse_record(release_record(MANIFEST, DIGEST, previous, item))


def test_a_record_takes_the_privacy_statements_that_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    previous, item = (fewest(MANIFEST),), release(2)
    statements = lines(MANIFEST, [*previous, item.facts(MANIFEST)])
    computed = release_record(MANIFEST, DIGEST, previous, item)
    monkeypatch.delattr("dp.ledger.records.lines")
    given = release_record(MANIFEST, DIGEST, previous, item, statements=statements)
    assert given == computed


def test_a_task_s_record_key_by_key() -> None:
    record = parse_record(task_record(ENCODED, b"s" * 64, b"m" * 32))
    packed = record.pop("manifest")
    assert zlib.decompress(base64.b64decode(packed)) == ENCODED
    assert record == {
        "type": "task",
        "version": 1,
        "task": "demo",
        "created_at": 1_700_000_000,
        "manifest_digest": DIGEST.hex(),
        "manifest_signature": "73" * 64,
        "model_digest": "6d" * 32,
    }
    silent = parse_record(task_record(ENCODED, b"s" * 64))
    assert "model_digest" not in silent
    assert parse_task(silent) == (ENCODED, MANIFEST, b"s" * 64)
    assert parse_first_model(silent) is None
    assert parse_first_model({"model_digest": "6d" * 32}) == b"m" * 32


def test_a_release_s_record_key_by_key() -> None:
    previous = (ReleaseFacts(survivors=4),)
    item = release(2, measured_variance=(7, 9), model_versions=(1,))
    facts = ReleaseFacts(survivors=5, masking_set_size=6)
    statements = lines(MANIFEST, [*previous, facts])
    assert item.facts(MANIFEST) == facts
    assert record_of(item, previous) == {
        "type": "release",
        "version": 1,
        "task": "demo",
        "release": 2,
        "outcome": "released",
        "cohort": item.cohort.hex(),
        "ctx": item.ctx.hex(),
        "manifest_digest": DIGEST.hex(),
        "roster_digest": item.roster_digest.hex(),
        "cohort_size": 6,
        "masking_set_size": 6,
        "survivors": 5,
        "contributors": sorted(c.hex() for c in item.contributors),
        "model_digests": [item.model_digests[0].hex()],
        "model_versions": [1],
        "sum_digest": item.sum_digest.hex(),
        "new_model_digest": item.new_model_digest.hex(),
        "noise_variance": str(guaranteed_variance(MANIFEST, facts)),
        "measured_variance": ["7", "9"],
        "epsilon_micro": epsilon_micro(statements[0].epsilon),
        "lines": [statement_record(statements[0])],
        "released_at": 1_700_000_002,
    }
    parsed = parse_release(record_of(item, previous))
    assert parsed == msgspec.structs.replace(item, contributors=tuple(sorted(item.contributors)))
    plain = record_of(release())
    assert plain["measured_variance"] == []
    assert "model_versions" not in plain
    assert parse_release(plain).measured_variance is None
    charged = entry(1, charged=True)
    assert charged.facts(MANIFEST) == fewest(MANIFEST)
    none = built(algorithm="fedavg", privacy="none")
    free = parse_record(release_record(none, DIGEST, [], release()))
    assert (free["noise_variance"], free["epsilon_micro"], free["lines"]) == ("0", None, [])


def test_a_line_s_record_key_by_key() -> None:
    (line,) = lines(MANIFEST, 1)
    assert statement_record(line) == {
        "mode": "C",
        "unit": "example",
        "adversary": "the aggregator, knowing the noise of 1 device, "
        "and everyone who sees the model, if time does not show one example more",
        "adjacency": "add-or-remove",
        "amplified": False,
        "accountant": "skellam/least-of-gaussian-and-rdp",
        "epsilon_micro": epsilon_micro(line.epsilon),
        "delta": repr(MANIFEST.budget.delta),
    }
    assert epsilon_micro(1.0000001) == 1_000_001  # rounded up
    assert epsilon_micro(0.0) == 0
    assert epsilon_micro(None) is None


def test_decisions_and_rotations_key_by_key() -> None:
    assert parse_record(policy_record("t", "paused", 5)) == {
        "type": "policy",
        "version": 1,
        "task": "t",
        "action": "paused",
        "detail": "",
        "at": 5,
    }
    assert parse_record(policy_record("t", "resumed", 6, "why"))["detail"] == "why"
    assert parse_record(key_rotation_record("old", "new", 7)) == {
        "type": "key-rotation",
        "version": 1,
        "old_verifier": "old",
        "new_verifier": "new",
        "at": 7,
    }
    assert identity_digest(b"k" * 32) == digest("identity", b"k" * 32)


def test_a_record_may_fill_an_entry_and_no_more() -> None:
    room = 65_535 - len(policy_record("t", "paused", 5))
    assert len(policy_record("t", "paused", 5, "x" * room)) == 65_535
    with pytest.raises(LedgerError, match="record-too-large"):
        policy_record("t", "paused", 5, "x" * (room + 1))


def test_contributors_stand_in_the_record_up_to_256() -> None:
    many = tuple(hashlib.sha256(bytes([n // 256, n % 256])).digest() for n in range(257))
    inline = record_of(release(contributors=many[:256]))
    assert inline["contributors"] == sorted(c.hex() for c in many[:256])
    assert "contributors_digest" not in inline
    apart = record_of(release(contributors=many))
    packed = b"".join(sorted(many))
    assert apart["contributors"] == []
    assert apart["contributors_digest"] == hashlib.sha256(packed).hexdigest()
    path = "contributors/" + apart["contributors_digest"]
    assert contributors.members_of(apart, {path: packed}.get).contributors == tuple(sorted(many))
    assert contributors.members_of(inline, {}.get).contributors == tuple(sorted(many[:256]))
    assert parse_release(apart).contributors == ()


@pytest.mark.parametrize(
    "data",
    [
        bytes(31),
        bytes(33),
        b"\x02" * 32 + b"\x01" * 32,  # not sorted
        b"\x01" * 64,  # twice
    ],
)
def test_a_list_of_contributors_is_a_sorted_set(data: bytes) -> None:
    with pytest.raises(LedgerError, match="contributors-malformed"):
        contributors.parse_contributors(data, hashlib.sha256(data).digest())


def test_a_list_holds_one_contributor_to_as_many_as_there_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def parsed(count: int) -> tuple[bytes, ...]:
        data = b"".join(bytes([n]) * 32 for n in range(count))
        return contributors.parse_contributors(data, hashlib.sha256(data).digest())

    assert parsed(1) == (bytes(32),)
    monkeypatch.setattr(contributors, "_COUNT_MAX", 3)
    assert len(parsed(3)) == 3
    with pytest.raises(LedgerError, match="contributors-malformed"):
        parsed(4)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(measured_variance=None),
        lambda r: r.update(measured_variance=["1", "2", "3"]),
        lambda r: r.update(measured_variance=["-1", "2"]),
        lambda r: r.update(measured_variance=["1", "+2"]),
        lambda r: r.update(measured_variance=[1, 2]),
        lambda r: r.update(model_versions=[]),
        lambda r: r.update(model_versions=[-1]),
        lambda r: r.update(model_versions=[True]),
        lambda r: r.update(model_versions="1"),
        lambda r: r.update(contributors=["AB"]),
        lambda r: r.update(contributors=5),
        lambda r: r.update(model_digests=["xy"]),
        lambda r: r.update(release=-1),
        lambda r: r.update(released_at="1"),
        lambda r: r.update(outcome="Released"),
        lambda r: r.pop("survivors"),
        lambda r: r.update(contributors_digest="ab" * 32),
    ],
)
def test_a_release_is_parsed_strictly(change: Callable[[dict[str, Any]], object]) -> None:
    record = record_of(release())
    change(record)
    with pytest.raises(LedgerError, match="record-malformed"):
        parse_release(record)


def test_zero_is_a_count_and_a_version() -> None:
    record = record_of(release()) | {"survivors": 0, "model_versions": [0]}
    record["measured_variance"] = ["0", "0"]
    parsed = parse_release(record)
    assert (parsed.survivors, parsed.model_versions, parsed.measured_variance) == (0, (0,), (0, 0))


def test_only_canonical_records_without_floats_parse() -> None:
    whole = policy_record("t", "paused", 5)
    for broken in (
        whole + b" ",
        b" " + whole,
        whole.replace(b'"at":5,', b""),
        whole.replace(b'"at":5', b'"at":5.0'),
        rfc8785.dumps({**json.loads(whole), "x": [{"y": 0.5}]}),
        b"5",
        b"\xff",
        b"[" * 100_000,
    ):
        if broken == whole.replace(b'"at":5,', b""):
            assert "at" not in parse_record(broken)  # keys are the reader's to demand
            continue
        with pytest.raises(LedgerError, match="record-malformed"):
            parse_record(broken)
    assert not parsing._has_float({"a": [1, {"b": "x"}, True, None]})
    assert parsing._has_float([[0.0]])
    assert parsing._has_float({"a": {"b": 1.5}})


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(manifest=base64.b64encode(zlib.compress(ENCODED) + b"x").decode()),
        lambda r: r.update(manifest=base64.b64encode(zlib.compress(ENCODED)[:-1]).decode()),
        lambda r: r.update(manifest=base64.b64encode(zlib.compress(b"{}")).decode()),
        lambda r: r.update(manifest=r["manifest"] + "\n"),
        lambda r: r.update(manifest_digest="0"),
        lambda r: r.pop("manifest_signature"),
    ],
)
def test_a_task_is_parsed_strictly(change: Callable[[dict[str, Any]], object]) -> None:
    record = parse_record(task_record(ENCODED, b"s" * 64))
    change(record)
    with pytest.raises(LedgerError, match="record-malformed"):
        parse_task(record)


def test_bundles_and_tiles_at_their_limits() -> None:
    two = tiles.bundle_bytes([b"a" * 300, b""])
    assert two == b"\x01\x2c" + b"a" * 300 + b"\x00\x00"
    assert parse_bundle(two, 1) == [b"a" * 300]
    assert parse_bundle(two, 2) == [b"a" * 300, b""]
    assert parse_bundle(b"", 0) == []
    full = bytes(range(256)) * 32
    assert fetch({"tile/0/000": full}.get, Tile(0, 0, 3)) == full[:96]
    assert fetch({"tile/entries/000": b"xyz"}.get, Tile(-1, 0, 3)) == b"xyz"
    with pytest.raises(LedgerError, match="tile-missing"):
        fetch({"tile/0/000.p/3": full[:96]}.get, Tile(0, 0, 256))
    with pytest.raises(LedgerError, match="tile-malformed"):
        fetch({"tile/0/000": full[:95]}.get, Tile(0, 0, 3))


def test_subtrees_are_read_once_from_the_tile_that_holds_them() -> None:
    log = LedgerBuilder(ORIGIN, [bytes([n % 256, n // 256]) for n in range(700)])
    files, asked = dict(log.files()), []

    def read(path: str) -> bytes | None:
        asked.append(path)
        return files.get(path)

    tree = TileTree(read, 700)
    whole = log._tree
    for level, index in ((0, 0), (0, 699), (3, 86), (7, 4), (8, 1), (9, 0), (0, 255), (0, 256)):
        assert tree.subtree(level, index) == whole.subtree(level, index)
    assert sorted(asked) == ["tile/0/000", "tile/0/001", "tile/0/002.p/188", "tile/1/000.p/2"]
    for level, index in ((0, 700), (3, 87), (8, 2), (9, 1), (10, 0)):
        with pytest.raises(LedgerError, match="proof-range"):
            tree.subtree(level, index)


def test_what_a_device_reads_beforehand_is_named() -> None:
    paths = proof_paths(700, index=300, old_size=512)
    assert paths[0] == "tile/entries/001"
    assert set(paths[1:]) == {"tile/0/001", "tile/0/002.p/188", "tile/1/000.p/2"}
    assert proof_paths(700, index=699)[0] == "tile/entries/002.p/188"
    assert proof_paths(700) == []
    files = served(ledger(MANIFEST, (4, 5)))
    newest = files["checkpoint"]
    log = log_of(VERIFIER, newest)
    assert log.leaf_paths(2) == ["tile/entries/000.p/3", "tile/0/000.p/3"]
    assert log.leaf_paths(0) == ["tile/entries/000.p/3", "tile/0/000.p/3"]
    for index in (3, -1):
        with pytest.raises(LedgerError, match="proof-range"):
            log.leaf_paths(index)
    longer = log_of(VERIFIER, served(ledger(MANIFEST, (4, 5, 6)))["checkpoint"])
    with pytest.raises(LedgerError, match="consistency-proof"):
        longer.open(newest)
    assert log.growth_paths(log.open(newest)) == []
    assert log_of(VERIFIER).growth_paths(log.open(newest)) == []


def test_growth_from_nothing_and_to_the_same() -> None:
    log = ledger(MANIFEST, (4, 5))
    files, head = dict(log.files()), log.checkpoint()
    empty = LedgerBuilder(ORIGIN).checkpoint()
    assert empty == Checkpoint(ORIGIN, 0, hashlib.sha256(b"").digest())
    subtree = TileTree(files.get, head.size).subtree
    verify_growth(subtree, empty, head)
    verify_growth(subtree, head, head)
    trusted = TrustedLog(parse_verifier(VERIFIER), last=head)
    assert trusted.leaf(files.get, 1).entry == log._entries[1]
    assert log.size == len(log._entries) == head.size == 3


REFUSED = {
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
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], LedgerError)
