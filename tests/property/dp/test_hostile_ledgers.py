"""Whatever a ledger holds, an audit ends with a verdict; no change goes unseen."""

from __future__ import annotations

import json
from typing import Any

import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.verification import verify_ledger
from dp.report import report_data
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, ledger, listed, listing, served

BUILDER = ledger(built(report_slot_s=5.0), (4, 5, 6))
FILES = served(BUILDER)
_MANIFEST = built()
LISTING = listing(_MANIFEST, [listed(_MANIFEST, entry(n, u)) for n, u in ((1, 4), (2, 5), (3, 6))])

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 1 << 53),
        st.text(max_size=8),
        st.sampled_from(["released", "charged", "task", "release", "00" * 32, "9" * 5000]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.sampled_from(sorted(FILES)), st.data())
@settings(max_examples=150, deadline=None)
def test_any_changed_byte_is_a_problem(path: str, data: st.DataObject) -> None:
    content = FILES[path]
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = content[place] ^ data.draw(st.integers(1, 255))
    files = {**FILES, path: content[:place] + bytes([flipped]) + content[place + 1 :]}
    result = verify_ledger(files.get, VERIFIER)
    assert not result.verified
    report_data(result)


def audited(entries: list[bytes], leaf: int, record: dict[str, Any]) -> AuditResult | None:
    """Of the entries with ``record`` at ``leaf``; None where it has no canonical form."""
    try:
        changed = rfc8785.dumps(record)
    except rfc8785.CanonicalizationError:
        return None
    log = LedgerBuilder(ORIGIN, [*entries[:leaf], changed, *entries[leaf + 1 :]])
    result = verify_ledger(served(log).get, VERIFIER)
    report_data(result)
    return result


@given(st.integers(0, 3), st.data())
@settings(max_examples=300, deadline=None)
def test_any_changed_record_is_a_problem_even_if_it_is_signed(
    leaf: int, data: st.DataObject
) -> None:
    entries = list(BUILDER._entries)
    record: dict[str, Any] = json.loads(entries[leaf])
    key = data.draw(st.sampled_from(sorted(record)))
    new = data.draw(values)
    # What only the operator can know, no auditor can check: names of cohorts, digests, time.
    free = {"ctx", "roster_digest", "sum_digest", "new_model_digest", "released_at", "cohort"}
    changed = new != record[key] or type(new) is not type(record[key])
    result = audited(entries, leaf, {**record, key: new})
    if result is None:
        return
    if changed and key not in free | {
        "contributors",
        "masking_set_size",
        "model_digests",
        "measured_variance",
    }:
        assert not result.verified


@given(st.integers(1, 3), st.data())
@settings(max_examples=300, deadline=None)
def test_a_record_that_lists_its_masking_set_leaves_less_to_the_operator(
    leaf: int, data: st.DataObject
) -> None:
    """Cohort, roster and context hang together, and every list is counted."""
    entries = list(LISTING._entries)
    record: dict[str, Any] = json.loads(entries[leaf])
    free = {"sum_digest", "new_model_digest", "released_at", "measured_variance"}
    key = data.draw(st.sampled_from(sorted(record.keys() - free)))
    new = data.draw(values)
    changed = new != record[key] or type(new) is not type(record[key])
    result = audited(entries, leaf, {**record, key: new})
    if result is None:
        return
    assert result.verified != changed


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(BUILDER._entries)), max_size=6))
@settings(max_examples=150, deadline=None)
def test_any_entries_end_with_a_verdict(entries: list[bytes]) -> None:
    result = verify_ledger(served(LedgerBuilder(ORIGIN, entries)).get, VERIFIER)
    assert result.tree_size == len(entries)
    report_data(result)


@given(st.dictionaries(st.sampled_from(sorted(FILES)), st.binary(max_size=300)))
@settings(max_examples=100, deadline=None)
def test_any_files_end_with_a_verdict(files: dict[str, bytes]) -> None:
    assert not verify_ledger(files.get, VERIFIER).verified
