"""The stated chance of missing a slot: what delta pays, what is refused, what it leaves alone."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
import rfc8785
from typer.testing import CliRunner

from dp.accounting.slot_overrun import overrun_log2, taken
from dp.accounting.statements import OVERRUN_DRAWS, NoiseKind, PrivacyStatement, lines
from dp.contracts import BudgetSpec, TrainingSpec, check_manifest, parse_spec
from dp.errors import AccountingError
from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.verification import verify_ledger
from dp.planning.epsilon import plan_epsilon
from dp.report import report_data
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest, decode_manifest, encode_manifest, manifest_digest
from secagg_cli.audit.report import render
from secagg_cli.main import app
from tests.kits.tasks import ORIGIN, VERIFIER, built, ledger, served, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)
SLOTTED: dict[str, Any] = {"report_slot_s": 60.0, "budget": NO_LIMIT}
LOCAL: dict[str, Any] = SLOTTED | {
    "algorithm": "fedavg",
    "noise_multiplier": 3.0,
    "training": TrainingSpec(local_steps=2),
}
STATED = 1e-8


def pair(manifest: Manifest, releases: int) -> tuple[PrivacyStatement, PrivacyStatement]:
    plain, amplified = lines(manifest, releases)
    assert (plain.amplified, amplified.amplified) == (False, True)
    return plain, amplified


def by_hand(
    l2: int, l1: int, variance: int, rate: float, count: int, delta: float, distance: float
) -> float:
    """Epsilon of ``count`` sampled Skellam releases by the formulas of docs/privacy.md, without
    any accounting code, at orders 2 to 256 and what (1 + e^first) * distance leaves of delta."""

    def divergence(a: int) -> float:
        first = ((2 * a - 1) * l2 + 6 * l1) / (4 * variance**2)
        return a * l2 / (2 * variance) + min(first, 3 * l1 / (2 * variance))

    def sampled(a: int) -> float:
        terms = [(a - 1) * math.log1p(-rate) + math.log(a * rate - rate + 1)]
        terms += [
            math.log(math.comb(a, k))
            + (a - k) * math.log1p(-rate)
            + k * math.log(rate)
            + (k - 1) * divergence(k)
            for k in range(2, a + 1)
        ]
        top = max(terms)
        whole = top + math.log(sum(math.exp(term - top) for term in terms))
        return min(whole / (a - 1), divergence(a))

    curve = {a: count * sampled(a) for a in range(2, 257)}

    def at(budget: float) -> float:
        return min(
            cost + math.log1p(-1 / a) - (math.log(budget) + math.log(a)) / (a - 1)
            for a, cost in curve.items()
        )

    return at(delta - (1 + math.exp(at(delta / 2))) * distance)


@pytest.mark.parametrize("releases", [1, 6])
def test_the_amplified_line_of_distributed_noise_is_that_of_a_smaller_delta(releases: int) -> None:
    manifest = built(slot_overrun=STATED, **SLOTTED)
    share, delta = manifest.noise.share_variance, manifest.budget.delta
    _, line = pair(manifest, releases)
    sampler = releases * (64 * 6 + OVERRUN_DRAWS) * 2.0**-90
    terms = (1024**2, 8192, 3 * share, 0.25, releases, delta)
    assert line.epsilon == pytest.approx(by_hand(*terms, sampler + releases * STATED), rel=1e-6)
    assert line.epsilon > 1.0005 * by_hand(*terms, sampler)
    assert line.delta == delta
    assert "1e-08 in each release" in line.adversary


def test_the_amplified_line_of_local_noise_pays_once_for_each_release_not_for_each_step() -> None:
    manifest = built(slot_overrun=STATED, **LOCAL)
    _, line = pair(manifest, 3)
    units, steps = 1024, 6
    distance = steps * 64 * 2.0**-90 + 3 * STATED
    terms = (units**2, 8 * units, math.ceil(9 * units**2), 0.25, steps, manifest.budget.delta)
    assert line.epsilon == pytest.approx(by_hand(*terms, distance), rel=1e-6)
    assert "1e-08 in each release" in line.adversary


@pytest.mark.parametrize("terms", [SLOTTED, LOCAL], ids=["distributed", "local"])
def test_the_cost_rises_with_the_chance_and_only_in_the_amplified_line(
    terms: dict[str, Any],
) -> None:
    pairs = [pair(built(slot_overrun=p, **terms), 4) for p in (0.0, 1e-12, 1e-9, 1e-8, 3e-8)]
    assert len({plain for plain, _ in pairs}) == 1
    costs = [amplified.epsilon for _, amplified in pairs]
    assert costs == sorted(set(costs))
    assert costs[-1] < pairs[0][0].epsilon
    exchanged = lines(built(slot_overrun=1e-8, **terms), 4, replaced=True)
    assert exchanged == lines(built(**terms), 4, replaced=True)


def test_devices_that_abstain_in_secret_do_not_rest_on_the_slot() -> None:
    both = {
        "device_noise_multiplier": 4.0,
        "examples_max": 2,
        "participation_rate": 0.5,
        **SLOTTED,
    }
    stated = lines(built(slot_overrun=STATED, **both), 4)
    silent = lines(built(**both), 4)
    assert [line.mode for line in stated] == [
        NoiseKind.DISTRIBUTED,
        NoiseKind.DISTRIBUTED,
        NoiseKind.DEVICE_LEVEL,
        NoiseKind.DEVICE_LEVEL,
    ]
    assert [a == b for a, b in zip(stated, silent, strict=True)] == [True, False, True, True]


def test_a_distance_is_at_most_one_and_nothing_is_taken_for_nothing() -> None:
    assert overrun_log2(-90.0, 5, 0.0) == overrun_log2(-90.0, 0, 0.5) == -90.0
    assert overrun_log2(-90.0, 4, 2.0**-20) == -18.0
    assert overrun_log2(-90.0, 10, 0.5) == 0.0
    assert taken(1.0, 0, 0.5) == taken(math.inf, 3, 0.0) == 0.0
    assert taken(1.0, 3, 1e-3) == pytest.approx((1 + math.e) * 3e-3)
    assert taken(601.0, 1, 1e-300) == math.inf


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"report_slot_s": 0.0}, "overrun-without-slot"),
        ({"sampling_rate": 1.0}, "overrun-without-sampling"),
        ({"algorithm": "fedavg", "privacy": "none"}, "overrun-without-sampling"),
        ({"slot_overrun": -1e-9}, "parameter-out-of-range"),
        ({"slot_overrun": 1.0}, "parameter-out-of-range"),
        ({"slot_overrun": math.nan}, "parameter-out-of-range"),
        ({"slot_overrun": math.inf}, "parameter-out-of-range"),
        ({"slot_overrun": 1e-6}, "overrun-takes-delta"),
        (LOCAL | {"slot_overrun": 1e-6}, "overrun-takes-delta"),
    ],
)
def test_creation_and_veto_refuse_what_cannot_be_charged(
    terms: dict[str, Any], reason: str
) -> None:
    asked = SLOTTED | {"slot_overrun": STATED} | terms
    with pytest.raises(ConfigurationError) as caught:
        built(**asked)
    assert caught.value.reason == reason
    harmless = built(**{key: value for key, value in asked.items() if key != "slot_overrun"})
    sent = msgspec.structs.replace(harmless, slot_overrun=asked["slot_overrun"])
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(decode_manifest(encode_manifest(sent)))
    assert caught.value.reason == reason


def test_a_task_of_devices_alone_has_no_use_for_it() -> None:
    task = statistics(
        ("x", 4, 1.0), device_noise_multiplier=4.0, slot_overrun=1e-9, report_slot_s=60.0
    )
    with pytest.raises(ConfigurationError, match="overrun-without-sampling"):
        built(task)


def test_the_refusal_names_what_is_taken_what_there_is_and_the_way_out() -> None:
    manifest = built(slot_overrun=STATED, **SLOTTED)
    releases, half = manifest.budget.releases_max, manifest.budget.delta / 2
    alone = msgspec.structs.replace(manifest.budget, delta=half)
    free = msgspec.structs.replace(manifest, slot_overrun=msgspec.UNSET, budget=alone)
    most = half / (1 + math.exp(pair(free, releases)[1].epsilon)) / releases
    assert math.isfinite(pair(built(slot_overrun=most * 0.999999, **SLOTTED), releases)[1].epsilon)
    with pytest.raises(ConfigurationError) as caught:
        built(slot_overrun=(over := most * 1.000001), **SLOTTED)
    refusal = caught.value
    assert refusal.expected == f"at most {half:g}, half of delta"
    assert f"* {releases} * {over!r} = " in str(refusal.found)
    assert "leave slot_overrun out" in str(refusal.remedy)


def test_manifests_without_it_keep_their_bytes_and_their_lines() -> None:
    digests = {
        "4ec650894542290291d1fe8ca8254b85ff250c8b756f992e02ed9bb65bfba3f8": built(),
        "40c374739ebb118ed2ef6b010347fb237fcc93048ff8e3897e2cf3f26cd28df3": built(
            report_slot_s=60.0, slot_overrun=0.0
        ),
    }
    for digest, manifest in digests.items():
        assert manifest_digest(encode_manifest(manifest)).hex() == digest
        assert manifest.overrun == 0.0
    _, line = pair(built(**SLOTTED), 2)
    assert line.adversary.endswith("if report-in slots and failures do not show the batch")
    explicit = msgspec.structs.replace(built(**SLOTTED), slot_overrun=0.0)
    check_manifest(explicit)
    assert lines(explicit, 2) == lines(built(**SLOTTED), 2)


def test_an_operator_writes_it_beside_the_slot() -> None:
    task = parse_spec('task = "demo"\nreport_slot_s = 60.0\nslot_overrun = 1e-9\n')
    assert (task.report_slot_s, task.slot_overrun) == (60.0, 1e-9)
    assert built(slot_overrun=1e-9, **SLOTTED).overrun == 1e-9


def audited(builder: LedgerBuilder) -> AuditResult:
    return verify_ledger(served(builder).get, VERIFIER)


def test_a_ledger_is_recomputed_with_the_chance_that_its_manifest_states() -> None:
    manifest = built(slot_overrun=STATED, **SLOTTED)
    builder = ledger(manifest, (4, 5))
    result = audited(builder)
    assert result.verified
    assert result.tasks[0].lines == lines(manifest, result.tasks[0].facts)
    unpaid = lines(built(**SLOTTED), result.tasks[0].facts)[1]
    assert result.tasks[0].lines[1].epsilon > unpaid.epsilon

    record = json.loads(builder._entries[2])
    assert "1e-08 in each release" in record["lines"][1]["adversary"]
    for change in (
        {"epsilon_micro": math.ceil(unpaid.epsilon * 1e6)},
        {"adversary": unpaid.adversary},
    ):
        forged = json.loads(builder._entries[2])
        forged["lines"][1].update(change)
        leaves = [*builder._entries[:2], rfc8785.dumps(forged)]
        reasons = {problem.reason for problem in audited(LedgerBuilder(ORIGIN, leaves)).problems}
        assert reasons == {"epsilon-mismatch"}


@pytest.mark.parametrize("terms", [SLOTTED, LOCAL], ids=["distributed", "local"])
def test_a_report_says_which_chance_was_charged(terms: dict[str, Any]) -> None:
    stated = report_data(audited(ledger(built(slot_overrun=STATED, **terms), (4,))))
    silent = report_data(audited(ledger(built(**terms), (4,))))
    for data, charged in ((stated, True), (silent, False)):
        (task,) = data.tasks
        rows = {row.name: row.value for row in task.parameters}
        assert rows["slot_overrun"] == ("1e-08" if charged else "none")
        for text in (task.amplified, " ".join(task.assumptions), render(data)):
            assert ("at most 1e-08 in each release (slot_overrun" in text) is charged
            assert ("not part of delta" in text) is not charged
            assert ("claims that this never fails" in text) is not charged


def planned(*options: str, code: int = 0) -> dict[str, Any]:
    command = ["plan", "privacy", "--noise-multiplier", "2", "--rounds", "20", "--delta", "1e-6"]
    result = CliRunner().invoke(app, [*command, *options, "--format", "json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_a_plan_charges_it_and_says_so() -> None:
    for mechanism in ("gaussian", "skellam"):
        options = ("--sampling-rate", "0.1", "--mechanism", mechanism)
        free, paid = planned(*options), planned(*options, "--slot-overrun", "2e-9")
        assert (free["slot_overrun"], paid["slot_overrun"]) == (0.0, 2e-9)
        assert free["epsilon"] < paid["epsilon"] < 1.2 * free["epsilon"]
    first, _ = plan_epsilon(2.0, 20, 5e-7, 0.1)
    left = 1e-6 - (1 + math.exp(first)) * 20 * 2e-9
    paid, _ = plan_epsilon(2.0, 20, 1e-6, 0.1, slot_overrun=2e-9)
    assert paid == plan_epsilon(2.0, 20, left, 0.1)[0]
    command = ["plan", "privacy", "--noise-multiplier", "2", "--rounds", "20", "--delta", "1e-6"]
    said = CliRunner().invoke(app, [*command, "--sampling-rate", "0.1", "--slot-overrun", "2e-9"])
    assert "2e-09 per release that a slot is missed" in " ".join(said.stdout.split())
    said = CliRunner().invoke(app, [*command, "--sampling-rate", "0.1"])
    assert "if no batch makes its device miss a slot" in " ".join(said.stdout.split())


@pytest.mark.parametrize(
    ("rate", "overrun", "reason"),
    [
        (0.1, 1.0, "parameter-out-of-range"),
        (0.1, -1e-9, "parameter-out-of-range"),
        (0.1, math.nan, "parameter-out-of-range"),
        (1.0, 1e-9, "overrun-without-sampling"),
        (0.1, 1e-7, "overrun-takes-delta"),
    ],
)
def test_a_plan_refuses_what_cannot_be_charged(rate: float, overrun: float, reason: str) -> None:
    with pytest.raises(AccountingError) as caught:
        plan_epsilon(2.0, 20, 1e-6, rate, slot_overrun=overrun)
    assert caught.value.reason == reason
