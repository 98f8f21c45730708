"""An auditor recomputes k from period, charges and noise, and believes no record that says less."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from dp.accounting.statements import ReleaseFacts, headline, lines
from dp.contracts import BudgetSpec
from dp.ledger.builder import LedgerBuilder
from dp.ledger.records import policy_record, release_record
from dp.ledger.verification import verify_ledger
from secagg.manifest import Manifest, encode_manifest, manifest_digest
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, ledger, served, signed_task

NO_LIMIT = BudgetSpec(max_epsilon=None, releases_max=8)


def task(period: int = 4, **changes: Any) -> Manifest:
    terms = {"period": period, "sampling_rate": 1.0, "budget": NO_LIMIT}
    return built(**terms | changes)


def with_period(manifest: Manifest, period: int | msgspec.UnsetType) -> Manifest:
    privacy = msgspec.structs.replace(manifest.example_privacy, period=period)
    return msgspec.structs.replace(manifest, example_privacy=privacy)


def told(manifest: Manifest, claimed: Manifest, survivors: Sequence[int]) -> LedgerBuilder:
    """A ledger of ``manifest`` whose records compute their cost by ``claimed``."""
    builder = LedgerBuilder(ORIGIN, [signed_task(manifest)])
    digest = manifest_digest(encode_manifest(manifest))
    facts: list[ReleaseFacts] = []
    for number, count in enumerate(survivors, 1):
        builder.append(release_record(claimed, digest, facts, entry(number, count)))
        facts.append(entry(number, count).facts(manifest))
    return builder


def problems(builder: LedgerBuilder) -> list[tuple[str, int | None]]:
    found = verify_ledger(served(builder).get, VERIFIER).problems
    return [(problem.reason, problem.leaf) for problem in found]


def test_a_ledger_of_a_scheduled_task_is_verified_and_counts_participations() -> None:
    manifest, survivors = task(), (6, 6, 4, 6, 5)
    result = verify_ledger(served(ledger(manifest, survivors)).get, VERIFIER)
    assert result.verified, result.problems
    facts = [ReleaseFacts(survivors=count) for count in survivors]
    (audited,) = result.tasks
    for number, release in enumerate(audited.releases, 1):
        assert release.lines == lines(manifest, facts[:number])
    dearest = [ReleaseFacts(survivors=4), ReleaseFacts(survivors=5)]
    assert headline(audited.lines) == pytest.approx(headline(lines(task(1), dearest)), rel=1e-6)
    assert result.epsilon == pytest.approx(headline(audited.lines), rel=1e-9)


@pytest.mark.parametrize("claimed", [2, 8, msgspec.UNSET])
def test_a_record_that_counts_by_another_period_is_refused(claimed: Any) -> None:
    manifest = task()
    found = problems(told(manifest, with_period(manifest, claimed), (4, 4, 4, 4, 4)))
    unlike = {2: (3, 4, 5), 8: (5,), msgspec.UNSET: (2, 3, 4, 5)}  # ceil(n / 4), ceil(n / claimed)
    assert found == [("epsilon-mismatch", leaf) for leaf in unlike[claimed]]


def test_a_record_that_picks_the_releases_of_most_noise_is_refused() -> None:
    """ceil(2 / 4) = 1 of two releases: the one of least noise, not the one after it."""
    manifest = task()
    builder = ledger(manifest, (4,))
    second = json.loads(release_record(manifest, _digest(manifest), [_facts(4)], entry(2, 6)))
    last = json.loads(release_record(manifest, _digest(manifest), [_facts(6)], entry(2, 6)))
    assert second["epsilon_micro"] > last["epsilon_micro"]
    forged = {**second, "epsilon_micro": last["epsilon_micro"], "lines": last["lines"]}
    builder.append(json.dumps(forged, sort_keys=True, separators=(",", ":")).encode())
    assert problems(builder) == [("epsilon-mismatch", 2)]


def test_cohorts_that_ended_without_a_sum_count() -> None:
    manifest = task(2)
    builder = LedgerBuilder(ORIGIN, [signed_task(manifest)])
    facts: list[ReleaseFacts] = []
    model = 0
    for number, charged in enumerate((False, True, True), 1):
        item = entry(number, charged=charged)
        item = msgspec.structs.replace(item, model_digests=(_model(model),))
        if not charged:
            model = number
        builder.append(release_record(manifest, _digest(manifest), facts, item))
        facts.append(item.facts(manifest))
    result = verify_ledger(served(builder).get, VERIFIER)
    assert result.verified, result.problems
    assert (result.releases, result.charged) == (1, 3)
    assert result.epsilon == pytest.approx(headline(lines(task(1), 2)), rel=1e-6)


def test_a_charge_that_was_given_back_is_a_problem_under_a_schedule() -> None:
    """Its devices have counted it, so their parts come round sooner than the releases show."""
    for period, found in ((2, [("schedule-given-back", 2)]), (1, [])):
        builder = ledger(task(period), (4,))
        builder.append(policy_record("demo", "charge-given-back", 1_700_000_100, "nobody had sent"))
        assert problems(builder) == found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sampling_rate": 0.25}, "schedule-with-sampling"),
        ({"period": 9}, "schedule-too-long"),
        ({"period": 1}, "parameter-out-of-range"),
    ],
)
def test_a_task_whose_period_does_not_fit_is_inadmissible(
    changes: dict[str, Any], reason: str
) -> None:
    manifest = task()
    privacy = msgspec.structs.replace(manifest.example_privacy, **changes)
    manifest = msgspec.structs.replace(manifest, example_privacy=privacy)
    found = problems(told(manifest, manifest, (4,)))
    assert found == [(reason, 0), ("task-inadmissible", 1)]


def test_a_promise_is_kept_by_participations() -> None:
    """At most 2.98 in four releases of one pass; the fifth begins another."""
    budget = BudgetSpec(max_epsilon=2.98, releases_max=4)
    manifest = task(budget=budget)
    assert problems(ledger(manifest, (4, 4, 4, 4))) == []
    found = problems(ledger(manifest, (4, 4, 4, 4, 4)))
    assert found == [("releases-exhausted", 5), ("budget-exhausted", 5)]


def _digest(manifest: Manifest) -> bytes:
    return manifest_digest(encode_manifest(manifest))


def _facts(survivors: int) -> ReleaseFacts:
    return ReleaseFacts(survivors=survivors)


def _model(number: int) -> bytes:
    return entry(number + 1).model_digests[0] if number == 0 else entry(number).new_model_digest
