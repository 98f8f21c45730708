"""Each step of the verification of a log refuses what it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dp.errors import (
    LeafUnproven,
    LedgerError,
    LogForked,
    LogShrank,
    LogTooLarge,
    NotListed,
    RecordMismatch,
    RootMismatch,
)
from dp.ledger.builder import LedgerBuilder
from dp.ledger.contributors import Members
from dp.ledger.receipts import demand_fields, in_sum
from dp.ledger.records import policy_record
from dp.ledger.trusted_log import GROWTH_MAX, LEAVES_MAX, LogEntries, TrustedLog, WholeLog
from dp.tlog import tiles
from dp.tlog.merkle import EMPTY_ROOT, Frontier
from dp.tlog.notes import Checkpoint, parse_verifier, sign_checkpoint
from dp.tlog.witness import WitnessPolicy, add_cosignatures, cosign, witness_key
from secagg.keys import identity_public_key
from secagg.secret import Secret
from tests.kits.tasks import LEDGER_SEED, ORIGIN, VERIFIER, served

KEY = parse_verifier(VERIFIER)
SEED = Secret(LEDGER_SEED)
STRANGER = Secret(bytes(32))
WITNESS = Secret(b"w" * 32)
POLICY = WitnessPolicy.of([witness_key("w.example", identity_public_key(WITNESS))])
ENTRIES = [policy_record("t", "paused", number) for number in range(300)]
OTHERS = [policy_record("t", "paused", number + 1) for number in range(300)]


def head(size: int, entries: list[bytes] = ENTRIES) -> Checkpoint:
    return LedgerBuilder(ORIGIN, entries[:size]).checkpoint()


def files(size: int, entries: list[bytes] = ENTRIES) -> Callable[[str], bytes | None]:
    return served(LedgerBuilder(ORIGIN, entries[:size])).get


def signed(checkpoint: Checkpoint, seed: Secret = SEED) -> bytes:
    return sign_checkpoint(checkpoint, seed)


def cosigned(checkpoint: Checkpoint) -> bytes:
    note = signed(checkpoint)
    text = note.decode().rpartition("\n\n")[0] + "\n"
    return add_cosignatures(note, cosign(text, "w.example", WITNESS, 5), POLICY.keys)


def refused(kind: type[LedgerError], call: Callable[..., Any], *arguments: object) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments)
    return caught.value.reason


def test_a_log_is_followed_step_by_step() -> None:
    log = TrustedLog(KEY, POLICY)
    for size in (0, 1, 255, 256, 257, 300):
        newer = log.open(cosigned(head(size)))
        read = files(size)
        wanted = {path: read(path) for path in log.growth_paths(newer)}
        log = log.extend(wanted.get, newer)
        assert log.last == log.checkpoint == newer
    for index in (0, 255, 256, 299):
        wanted = {path: read(path) for path in log.leaf_paths(index)}
        leaf = log.leaf(wanted.get, index)
        assert (leaf.index, leaf.entry, leaf.record()["at"]) == (index, ENTRIES[index], index)


def test_step_1_a_checkpoint_of_another_key_or_log() -> None:
    log = TrustedLog(KEY)
    assert refused(LedgerError, log.open, signed(head(3), STRANGER)) == "note-unsigned"
    forged = signed(head(3)).replace(b"\n3\n", b"\n4\n")
    assert refused(LedgerError, log.open, forged) == "note-signature"


def test_step_2_a_checkpoint_that_no_witness_signed() -> None:
    log = TrustedLog(KEY, POLICY)
    assert log.open(cosigned(head(3))) == head(3)
    assert refused(LedgerError, log.open, signed(head(3))) == "witnesses-missing"


def test_step_3_a_log_that_became_shorter() -> None:
    log = TrustedLog(KEY, last=head(5))
    assert refused(LogShrank, log.open, signed(head(4))) == "consistency-proof"
    assert log.open(signed(head(5))) == head(5)


@pytest.mark.parametrize(
    ("before", "most"), [(None, LEAVES_MAX), (7, 7 + GROWTH_MAX), (LEAVES_MAX - 1, LEAVES_MAX)]
)
def test_step_4_a_size_that_no_log_has(before: int | None, most: int) -> None:
    last = None if before is None else Checkpoint(ORIGIN, before, b"r" * 32)
    log = TrustedLog(KEY, last=last)
    assert log.open(signed(Checkpoint(ORIGIN, most, b"r" * 32))).size == most
    beyond = signed(Checkpoint(ORIGIN, most + 1, b"r" * 32))
    assert refused(LogTooLarge, log.open, beyond) == "ledger-too-large"


@pytest.mark.parametrize("size", [5, 8, 300])
def test_step_5_a_log_that_forked(size: int) -> None:
    log = TrustedLog(KEY, last=head(5))
    forked = head(size, OTHERS)
    assert refused(LogForked, log.extend, files(size, OTHERS), forked) == "consistency-proof"
    with pytest.raises(LogForked) as caught:  # honest tiles do not hide it
        log.extend(files(size), forked)
    assert list(caught.value.proof) == tiles.consistency_proof(files(size), 5, size)


@pytest.mark.parametrize("last", [None, Checkpoint(ORIGIN, 0, EMPTY_ROOT)])
def test_step_5_an_empty_log_has_the_root_of_nothing(last: Checkpoint | None) -> None:
    """Else a log that never grew has two histories, and the false one would be remembered."""
    log = TrustedLog(KEY, last=last)
    assert log.extend({}.get, Checkpoint(ORIGIN, 0, EMPTY_ROOT)).checkpoint.size == 0
    other = Checkpoint(ORIGIN, 0, b"r" * 32)
    assert refused(LogForked, log.extend, {}.get, other) == "consistency-proof"


def test_step_6_an_entry_that_is_not_the_leaf() -> None:
    log = TrustedLog(KEY, last=head(300))
    assert refused(LeafUnproven, log.leaf, files(300, OTHERS), 7) == "inclusion-proof"
    (_, second) = tiles.bundles_of(300)
    swapped = {**served(LedgerBuilder(ORIGIN, ENTRIES))}
    swapped[second.path] = tiles.bundle_bytes([ENTRIES[257], ENTRIES[256], *ENTRIES[258:]])
    assert refused(LeafUnproven, log.leaf, swapped.get, 256) == "inclusion-proof"
    assert refused(LedgerError, log.leaf, files(300), 300) == "proof-range"
    assert refused(LedgerError, log.leaf, {}.get, 3) == "tile-missing"


def test_step_7_a_record_of_two_readings() -> None:
    twice = b'{"at":9,' + ENTRIES[0][1:]
    log = TrustedLog(KEY, last=head(1, [twice]))
    leaf = log.leaf(files(1, [twice]), 0)
    assert refused(LedgerError, leaf.record) == "record-malformed"


@pytest.mark.parametrize("bend", ["cut", "edited", "reordered"])
def test_step_8_entries_that_are_not_the_log(bend: str) -> None:
    entries = {
        "cut": ENTRIES[:256],
        "edited": [*ENTRIES[:-1], OTHERS[-1]],
        "reordered": [*ENTRIES[:-2], *ENTRIES[:-3:-1]],
    }[bend]
    for taken, good in ((ENTRIES, True), (entries, False)):
        whole = WholeLog()
        read = files(300, taken)
        found = [
            entry for bundle in tiles.bundles_of(len(taken)) for entry in whole.take(read, bundle)
        ]
        assert found == taken
        if good:
            whole.finish(head(300))
        else:
            assert refused(RootMismatch, whole.finish, head(300)) == "root-mismatch"


@pytest.mark.parametrize("known", [0, 1, 255, 256, 299, 300])
def test_step_8_entries_after_those_that_were_proven_before(known: int) -> None:
    for before, good in ((ENTRIES, True), (OTHERS, known == 0)):
        first = LogEntries()
        for bundle in first.bundles(known):
            first.take(files(known, before), bundle)
        log = LogEntries(Frontier(known, first.frontier.hashes))
        read = files(300)
        found = [entry for bundle in log.bundles(300) for entry in log.take(read, bundle)]
        assert found == ENTRIES[known:]
        if good:
            log.finish(head(300))
        else:
            assert refused(RootMismatch, log.finish, head(300)) == "root-mismatch"


def test_step_9_a_record_of_a_later_version() -> None:
    """It is not read, and is no lie: a later software may find that it says what is known."""
    record = {"type": "release", "task": "t", "version": 3}
    for known in ({"task": "t"}, {"task": "u"}):
        assert refused(RecordMismatch, demand_fields, record, known) == "record-version"


@pytest.mark.parametrize("version", [0, -1, True, 2.0, 3.0, "2", "3", None])
def test_step_9_a_record_of_a_version_that_nobody_reads(version: object) -> None:
    record = {"type": "release", "task": "t"}
    for known in ({}, {"version": 1}, {"version": 2}):
        demand_fields({**record, **known}, {"task": "t"})
    unknown = {**record, "version": version}
    assert refused(RecordMismatch, demand_fields, unknown, {"task": "t"}) == "release-mismatch"


def test_step_9_a_field_that_says_otherwise() -> None:
    record = {"type": "release", "release": True, "task": "t"}
    for known in ({"release": 1}, {"task": "u"}, {"task": "t", "outcome": "released"}):
        assert refused(RecordMismatch, demand_fields, record, known) == "release-mismatch"


def test_step_11_a_device_that_is_not_listed_once() -> None:
    own, other = b"o" * 32, b"p" * 32
    record = {"type": "release", "version": 2, "outcome": "released"}
    assert in_sum(record, Members((own,), (other,)), own, demanded=True)
    assert not in_sum(record, Members((other,), (own,)), own, demanded=False)
    for members in (Members((other,), ()), Members((own, own), ()), Members((own,), (own,))):
        with pytest.raises(NotListed):
            in_sum(record, members, own, demanded=False)
    with pytest.raises(NotListed):
        in_sum(record, Members((other,), (own,)), own, demanded=True)
