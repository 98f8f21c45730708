"""Every charge lists its whole masking set: nobody is left out, listed twice, or listed again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rfc8785

from dp.contracts import BudgetSpec, CohortSpec
from dp.errors import LedgerError
from dp.ledger.builder import LedgerBuilder
from dp.ledger.contributors import (
    contributors_path,
    inline_members,
    listed,
    members_file,
    members_of,
    parse_members,
)
from dp.ledger.findings import AuditResult
from dp.ledger.parsing import parse_record, parse_release
from dp.ledger.records import list_file, release_record
from dp.ledger.verification import verify_ledger
from dp.report import report_data
from secagg.manifest import encode_manifest, manifest_digest
from tests.kits import tasks
from tests.kits.tasks import (
    ORIGIN,
    VERIFIER,
    built,
    entry,
    listing,
    pseudonyms,
    served,
    signed_task,
)

STORED = Path(__file__).parents[3] / "vectors" / "stored-0453a63"
MANIFEST = built()
ITEMS = [
    tasks.listed(MANIFEST, entry(1, 4)),
    tasks.listed(MANIFEST, entry(2, charged=True)),
    tasks.listed(  # the charged cohort made no model
        MANIFEST, entry(3, 6), 1, model_digests=(entry(1).new_model_digest,)
    ),
]
MANY = pseudonyms(300)


def reasons(files: dict[str, bytes]) -> set[str]:
    result: AuditResult = verify_ledger(files.get, VERIFIER)
    report_data(result)
    return {problem.reason for problem in result.problems}


def edited(leaf: int, change: Callable[[dict[str, Any]], object]) -> set[str]:
    entries = list(listing(MANIFEST, ITEMS)._entries)
    record = json.loads(entries[leaf])
    change(record)
    entries[leaf] = rfc8785.dumps(record)
    return reasons(served(LedgerBuilder(ORIGIN, entries)))


def test_what_the_first_version_stored_stays_verified_and_readable() -> None:
    folder = STORED / "ledger"

    def read(path: str) -> bytes | None:
        file = folder / path
        return file.read_bytes() if file.is_file() else None

    result = verify_ledger(read, (STORED / "verifier.key").read_text().strip())
    assert result.problems == ()
    assert (result.tree_size, result.releases, result.charged) == (4, 2, 3)
    first, second, charged = (release.entry for release in result.tasks[0].releases)
    assert len(first.contributors) == 4
    assert first.contributors == second.contributors  # by identity: linkable
    assert (charged.contributors, charged.not_in_sum, charged.attempt) == ((), (), None)
    report_data(result)


def test_a_record_lists_the_whole_masking_set_and_marks_who_is_in_the_sum() -> None:
    builder = listing(MANIFEST, ITEMS)
    assert reasons(served(builder)) == set()
    released, charged, _ = (parse_record(record) for record in builder._entries[1:])
    assert (released["version"], len(released["contributors"]), len(released["not_in_sum"])) == (
        (2, 4, 2)
    )
    assert (charged["contributors"], len(charged["not_in_sum"])) == ([], 6)
    assert charged["masking_set_size"] == 6
    for record, item in ((released, ITEMS[0]), (charged, ITEMS[1])):
        parsed = parse_release(record)
        assert parsed == msgspec.structs.replace(
            item,
            contributors=tuple(sorted(item.contributors)),
            not_in_sum=tuple(sorted(item.not_in_sum)),
        )


def passed_off_as_version_1(record: dict[str, Any]) -> None:
    record.update(version=1)
    for name in ("attempt", "not_in_sum"):
        del record[name]


@pytest.mark.parametrize(
    ("leaf", "change", "reason"),
    [
        (1, lambda r: r["not_in_sum"].pop(), "masking-set"),
        (1, lambda r: r.update(not_in_sum=[]), "masking-set"),
        (1, lambda r: r.update(not_in_sum=r["contributors"][:2]), "masking-set"),
        (1, lambda r: r.update(not_in_sum=[r["not_in_sum"][0]] * 2), "masking-set"),
        (1, lambda r: r["not_in_sum"].reverse(), "masking-set"),
        (1, lambda r: r["contributors"].reverse(), "masking-set"),
        (1, lambda r: r["contributors"].pop(), "contributors"),
        (1, lambda r: r.update(contributors=["00", "01", "02", "03"]), "record-malformed"),
        (1, lambda r: r.update(contributors=["", "01", "02", "03"]), "record-malformed"),
        (1, lambda r: r.update(not_in_sum=["00", "01"]), "record-malformed"),
        (
            1,
            lambda r: r.update(not_in_sum=[n.upper() for n in r["not_in_sum"]]),
            "record-malformed",
        ),
        (1, lambda r: r.update(not_in_sum="ab"), "record-malformed"),
        (1, lambda r: r.update(not_in_sum=[7, 8]), "record-malformed"),
        (1, lambda r: r.update(not_in_sum=None), "record-malformed"),
        (1, lambda r: r.update(masking_set_file="ab" * 32), "record-malformed"),
        (1, lambda r: r.update(attempt=1), "context-mismatch"),
        (1, lambda r: r.pop("attempt"), "record-malformed"),
        (1, lambda r: r.update(attempt=-1), "record-malformed"),
        (1, lambda r: r.update(ctx="ab" * 32), "context-mismatch"),
        (1, lambda r: r.update(roster_digest="ab" * 32), "context-mismatch"),
        (1, lambda r: r.update(cohort="ab" * 32), "context-mismatch"),
        (1, lambda r: r.pop("model_versions"), "model-versions"),
        (1, lambda r: r.update(ctx="00"), "record-malformed"),
        (1, lambda r: r.update(roster_digest=""), "record-malformed"),
        (1, lambda r: r.update(cohort=""), "record-malformed"),
        (1, lambda r: r.update(sum_digest="00"), "record-malformed"),
        (1, lambda r: r.update(sum_digest=""), "sum-missing"),
        (3, lambda r: r.update(new_model_digest=""), "sum-missing"),
        (2, lambda r: r.update(contributors=r["not_in_sum"], not_in_sum=[]), "charged-with-sum"),
        (2, lambda r: r.update(not_in_sum=[]), "masking-set"),
        (2, lambda r: r.update(not_in_sum=[], masking_set_size=0), "masking-set"),
        (2, lambda r: r.update(ctx=ITEMS[0].ctx.hex()), "context-repeated"),
        (2, lambda r: r.update(roster_digest=ITEMS[0].roster_digest.hex()), "roster-repeated"),
        (
            3,
            lambda r: r.update(contributors=_with(r, ITEMS[0].contributors[0])),
            "pseudonym-repeated",
        ),
        (
            3,
            lambda r: r.update(contributors=_with(r, ITEMS[1].not_in_sum[0])),
            "pseudonym-repeated",
        ),
        (3, lambda r: r.update(version=1), "record-malformed"),
        (3, passed_off_as_version_1, "record-version"),
    ],
)
def test_a_list_that_lies_is_found_even_if_it_is_signed(
    leaf: int, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    assert reason in edited(leaf, change)


def _with(record: dict[str, Any], name: bytes) -> list[str]:
    return sorted([name.hex(), *record["contributors"][1:]])


def test_a_task_of_the_first_version_may_go_on_in_the_second() -> None:
    digest = manifest_digest(encode_manifest(MANIFEST))
    old, new = entry(1, 4), tasks.listed(MANIFEST, entry(2, 5))
    facts = [old.facts(MANIFEST)]
    records = [
        signed_task(MANIFEST),
        release_record(MANIFEST, digest, [], old),
        release_record(MANIFEST, digest, facts, new),
    ]
    assert reasons(served(LedgerBuilder(ORIGIN, records))) == set()


# ---- lists beside the ledger

LARGE = built(
    privacy="none",
    algorithm="fedavg",
    budget=BudgetSpec(max_epsilon=None),
    cohort=CohortSpec(size_min=300, size_max=300, survivors_min=200),
)
LARGE_ITEM = tasks.listed(LARGE, entry(1, 250, size=300))
DATA = members_file(LARGE_ITEM.contributors, LARGE_ITEM.not_in_sum)
PATH = contributors_path(hashlib.sha256(DATA).digest())
RECORD = parse_record(listing(LARGE, [LARGE_ITEM])._entries[1])


def large(data: bytes = DATA) -> dict[str, bytes]:
    """The ledger with this file, named by the record."""
    digest = hashlib.sha256(data).digest()
    task = listing(LARGE, [])._entries
    record = rfc8785.dumps({**RECORD, "masking_set_file": digest.hex()})
    return {**served(LedgerBuilder(ORIGIN, [*task, record])), contributors_path(digest): data}


def test_a_large_masking_set_stands_in_a_file_with_its_marks() -> None:
    assert (RECORD["contributors"], RECORD["not_in_sum"]) == ([], [])
    assert listed(RECORD) == hashlib.sha256(DATA).digest()
    assert list_file(LARGE_ITEM) == DATA
    assert len(DATA) == 300 * 33
    assert reasons(large()) == set()
    members = members_of(RECORD, {PATH: DATA}.get)
    assert members.contributors == tuple(sorted(LARGE_ITEM.contributors))
    assert members.not_in_sum == tuple(sorted(LARGE_ITEM.not_in_sum))


def test_256_devices_stand_in_the_record_and_257_do_not() -> None:
    def record(count: int) -> dict[str, Any]:
        item = tasks.listed(LARGE, entry(1, 200, size=count))
        digest = manifest_digest(encode_manifest(LARGE))
        return parse_record(release_record(LARGE, digest, [], item))

    assert len(inline_members(record(256)).all) == 256
    assert "masking_set_file" not in record(256)
    assert inline_members(record(257)).all == ()
    assert "masking_set_file" in record(257)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (DATA[:-1], "contributors-malformed"),
        (DATA[:-33], "masking-set"),
        (DATA[:-33] + DATA[:33], "contributors-malformed"),
        (DATA[33:66] + DATA[:33] + DATA[66:], "contributors-malformed"),
        (DATA[:32] + b"\x02" + DATA[33:], "contributors-malformed"),
        (DATA[:32] + b"\x00" + DATA[:32] + b"\x01" + DATA[66:], "contributors-malformed"),
        (DATA.replace(DATA[:33], DATA[:32] + bytes([1 - DATA[32]]), 1), "contributors"),
        (b"", "contributors-malformed"),
    ],
)
def test_a_file_that_lies_is_found(data: bytes, reason: str) -> None:
    assert reason in reasons(large(data))


def test_a_file_that_is_gone_or_another_is_found() -> None:
    found = large()
    assert "contributors-digest" in reasons({**found, PATH: DATA[:-1] + b"\x03"})
    del found[PATH]
    assert "contributors-missing" in reasons(found)


def test_a_file_of_the_first_version_has_no_marks() -> None:
    """The record's version says how its file is read."""
    with pytest.raises(LedgerError, match="contributors-malformed"):
        parse_members(b"".join(sorted(MANY)), hashlib.sha256(b"".join(sorted(MANY))).digest())


def test_a_record_is_not_passed_off_as_one_of_version_1() -> None:
    with pytest.raises(LedgerError, match="record-malformed"):
        listed({"version": 1, "contributors": [], "not_in_sum": []})
    assert listed({"version": 1, "contributors": []}) is None
