"""Receipts: what a device checks before it believes that it was counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dp.errors import LedgerError, LogShrank, NotListed, RecordMismatch
from dp.ledger.builder import LedgerBuilder
from dp.ledger.records import identity_digest, policy_record
from dp.ledger.trusted_log import verify_growth
from dp.tlog.notes import Checkpoint, open_checkpoint, parse_verifier
from dp.tlog.tiles import TileTree
from tests.kits import tasks
from tests.kits.nine_leaves import HEAD
from tests.kits.receipts import check_receipt, log_of
from tests.kits.said import Case, refused
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, ledger, served

ME = identity_digest(b"\x02" * 32)


def reason(call, *arguments, **named) -> str:
    with pytest.raises(LedgerError) as caught:
        call(*arguments, **named)
    return caught.value.reason


def receipt(files: dict[str, bytes], **changes) -> dict:
    arguments = {
        "leaf_index": 2,
        "remembered": None,
        "ctx": entry(2).ctx,
        "contributor": ME,
        **changes,
    }
    return check_receipt(files.get, files["checkpoint"], VERIFIER, **arguments)


def test_a_device_sees_itself_in_the_release() -> None:
    files = served(ledger(built(), (4, 5, 6)))
    record = receipt(files)
    assert record["release"] == 2
    assert record["survivors"] == 5


def test_only_the_named_paths_are_fetched() -> None:
    before, after = served(ledger(built(), (4,))), served(ledger(built(), (4, 5, 6)))
    log = log_of(VERIFIER, before["checkpoint"])
    newest = log.open(after["checkpoint"])
    fetched = {path: after[path] for path in log.growth_paths(newest)}
    log = log.extend(fetched.get, newest)
    fetched |= {path: after[path] for path in log.leaf_paths(2)}
    fetched["checkpoint"] = after["checkpoint"]
    assert receipt(fetched, remembered=before["checkpoint"])["release"] == 2
    assert reason(log.leaf_paths, 99) == "proof-range"


def test_a_log_that_grew_is_accepted_and_one_that_did_not_is_refused() -> None:
    manifest = built()
    first, grown = served(ledger(manifest, (4,))), served(ledger(manifest, (4, 5, 6)))
    forked = served(ledger(manifest, (6, 5, 6)))
    receipt(grown, remembered=first["checkpoint"])
    receipt(grown, remembered=grown["checkpoint"])
    assert reason(receipt, forked, remembered=first["checkpoint"]) == "consistency-proof"
    longer = served(ledger(manifest, (4, 5, 6, 4)))
    assert reason(receipt, grown, remembered=longer["checkpoint"]) == "consistency-proof"
    same_size = served(ledger(manifest, (4, 5, 5)))
    assert reason(receipt, grown, remembered=same_size["checkpoint"]) == "consistency-proof"


def test_a_receipt_for_another_cohort_device_or_leaf_is_refused() -> None:
    files = served(ledger(built(), (4, 5, 6)))
    assert reason(receipt, files, ctx=entry(1).ctx) == "release-mismatch"
    assert reason(receipt, files, contributor=identity_digest(b"x" * 32)) == "contributor-missing"
    assert reason(receipt, files, leaf_index=0) == "release-mismatch"
    assert reason(receipt, files, leaf_index=9) == "proof-range"
    assert reason(receipt, files, leaf_index=-1) == "proof-range"


def test_an_entry_that_is_not_in_the_tree_is_refused() -> None:
    files = served(ledger(built(), (4, 5, 6)))
    bundle = next(path for path in files if "entries" in path)
    files[bundle] = files[bundle].replace(b'"survivors":5', b'"survivors":6')
    assert reason(receipt, files) == "inclusion-proof"


def test_growth_over_tile_borders() -> None:
    log = LedgerBuilder(ORIGIN)
    checkpoints: dict[int, Checkpoint] = {}
    for number in range(520):
        index, body = log.append(policy_record("t", "paused", number))
        assert index == number
        assert body.startswith(f"{ORIGIN}\n{number + 1}\n")
        checkpoints[log.size] = log.checkpoint()
    files = served(log)
    newest = open_checkpoint(files["checkpoint"], parse_verifier(VERIFIER))
    assert newest == checkpoints[520]
    subtree = TileTree(files.get, newest.size).subtree
    for size in (1, 255, 256, 257, 511, 512, 513, 519, 520):
        verify_growth(subtree, checkpoints[size], newest)
        wrong = checkpoints[size]._replace(root=bytes(32))
        assert reason(verify_growth, subtree, wrong, newest) == "consistency-proof"


def test_files_are_written_once_and_increments_give_the_same_folder() -> None:
    log, folder, written = LedgerBuilder(ORIGIN), {}, 0
    for number in range(300):
        log.append(policy_record("t", "paused", number))
        if number % 7 == 0:
            folder.update(log.files(written))
            written = log.size
    folder.update(log.files(written))
    whole = dict(log.files())
    assert {path: folder[path] for path in whole} == whole
    again = LedgerBuilder(ORIGIN, [policy_record("t", "paused", n) for n in range(300)])
    assert again.checkpoint() == log.checkpoint()


def test_an_entry_too_large_is_refused_before_it_is_in() -> None:
    log = LedgerBuilder(ORIGIN)
    assert reason(log.append, bytes(65_536)) == "record-too-large"
    assert log.size == 0


FILES = served(tasks.ledger(built(), (4, 5)))


def receipt_for(ctx: bytes, contributor: bytes = b"c" * 32) -> Callable[[], object]:
    return lambda: check_receipt(
        FILES.get,
        FILES["checkpoint"],
        VERIFIER,
        leaf_index=1,
        remembered=None,
        ctx=ctx,
        contributor=contributor,
    )


REFUSED = {
    "a log that became shorter": Case(
        lambda: verify_growth(TileTree({}.get, 4).subtree, HEAD, HEAD._replace(size=4)),
        "consistency-proof",
        ">= 9",
        4,
        error=LogShrank,
    ),
    "another cohort's receipt": Case(
        receipt_for(bytes(32)),
        "release-mismatch",
        {"ctx": "00" * 32},
        {"ctx": entry(1).ctx.hex()},
        error=RecordMismatch,
    ),
    "a receipt without this device": Case(
        receipt_for(entry(1).ctx), "contributor-missing", "63" * 32, error=NotListed
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], LedgerError)
