"""Records of earlier versions, which accounted for Skellam noise by Renyi divergences alone."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from dp.accounting.statements import (
    ACCOUNTANT_SKELLAM,
    ACCOUNTANT_SKELLAM_RENYI,
    PrivacyStatement,
    ReleaseFacts,
    headline,
    lines,
)
from dp.contracts import BudgetSpec
from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.records import release_record
from dp.ledger.verification import verify_ledger
from secagg.manifest import encode_manifest, manifest_digest
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, served, signed_task

MANIFEST = built(report_slot_s=60.0, budget=BudgetSpec(max_epsilon=None, releases_max=8))
FACTS = [ReleaseFacts(survivors=6), ReleaseFacts(survivors=5)]
NOW, BEFORE = ([lines(MANIFEST, FACTS[:n], renyi=renyi) for n in (1, 2)] for renyi in (False, True))


def audited(statements: Sequence[Sequence[PrivacyStatement]]) -> AuditResult:
    """A ledger of two releases whose records make these statements."""
    builder = LedgerBuilder(ORIGIN, [signed_task(MANIFEST)])
    digest = manifest_digest(encode_manifest(MANIFEST))
    for number, made in enumerate(statements, 1):
        happened = entry(number, FACTS[number - 1].survivors)
        builder.append(
            release_record(MANIFEST, digest, FACTS[: number - 1], happened, statements=made)
        )
    return verify_ledger(served(builder).get, VERIFIER)


def renamed(statements: Sequence[PrivacyStatement], name: str) -> list[PrivacyStatement]:
    first, *others = statements
    return [msgspec.structs.replace(first, accountant=name), *others]


def test_the_two_accounts_differ() -> None:
    for now, before in zip(NOW, BEFORE, strict=True):
        assert [s.accountant for s in now][:1] == [ACCOUNTANT_SKELLAM]
        assert [s.accountant for s in before][:1] == [ACCOUNTANT_SKELLAM_RENYI]
        assert headline(now) < headline(before) / 1.02
        assert now[1] == before[1]  # a sampled batch


@pytest.mark.parametrize("made", [NOW, BEFORE, [BEFORE[0], NOW[1]]], ids=["now", "before", "both"])
def test_records_are_recomputed_by_the_accountant_that_they_name(
    made: Sequence[Sequence[PrivacyStatement]],
) -> None:
    result = audited(made)
    assert result.verified, result.problems
    # What the auditor says itself is the lesser bound, whatever the record named.
    assert [release.lines for release in result.tasks[0].releases] == [tuple(s) for s in NOW]
    assert result.epsilon == headline(NOW[1])


@pytest.mark.parametrize(
    "made",
    [
        renamed(NOW[1], ACCOUNTANT_SKELLAM_RENYI),
        renamed(BEFORE[1], ACCOUNTANT_SKELLAM),
        renamed(NOW[1], "skellam"),
    ],
    ids=["less-than-named", "more-than-named", "nobody"],
)
def test_no_record_takes_its_figure_from_another_accountant(
    made: Sequence[PrivacyStatement],
) -> None:
    result = audited([NOW[0], made])
    assert [(p.reason, p.leaf) for p in result.problems] == [("epsilon-mismatch", 2)]
