"""What tasks cost together is never below the exact divergence, for every unit and pair of tasks.

The exact side is this file's own: Gaussian noise of the same variance, which Skellam and discrete
Gaussian noise of this size (clips of 1,024 units and more) agree with to 1e-4, by the analytic
formula of Balle and Wang (ICML 2018, Theorem 8). Releases of Gaussian noise compose exactly: the
squares of their shifts over the noise add up.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from dp.accounting.budget import UNITS, Account, Unit
from dp.accounting.statements import ReleaseFacts
from dp.contracts import BudgetSpec, TrainingSpec
from dp.ledger.builder import LedgerBuilder
from dp.ledger.records import release_record
from dp.ledger.verification import verify_ledger
from dp.report import report_data
from secagg.manifest import Manifest, encode_manifest, manifest_digest
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, listed, served, signed_task, statistics

Survivors = tuple[int, ...]
_MASKING_SET = 6


def gaussian_epsilon(shift: float, delta: float) -> float:
    """Exact epsilon of one Gaussian release whose neighbours lie ``shift`` deviations apart."""
    if shift == 0:
        return 0.0

    def excess(epsilon: float) -> float:
        upper = stats.norm.cdf(shift / 2 - epsilon / shift)
        lower = math.exp(epsilon + stats.norm.logcdf(-shift / 2 - epsilon / shift))
        return float(upper - lower - delta)

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(optimize.brentq(excess, 0.0, high, xtol=1e-12))


def ring_variance(manifest: Manifest, survivors: int) -> float:
    """Noise that counts in a sum of so many survivors of six devices that owed a vector."""
    noise, rules = manifest.noise, manifest.cohort
    assert noise is not None
    share, silent = noise.share_variance, rules.silent_max
    if noise.removable_drops:
        dropped = _MASKING_SET - survivors
        level = min(t for t in (0, *noise.removable_drops) if t >= dropped)
        needed = share * (rules.survivors_min - silent)
        share = -(-needed // (_MASKING_SET - silent - level))
    return share * (survivors - silent)


def squared_shift(manifest: Manifest, unit: Unit, survivors: int) -> float:
    """How far one release lies from its neighbour's, in deviations of its noise, squared."""
    example, device = manifest.example_privacy, manifest.device_privacy
    if unit == "example" and example is not None and example.mode == "local":
        steps = manifest.training.local_steps if manifest.training is not None else 1
        return steps / example.noise_multiplier**2
    if manifest.noise is None:
        return math.inf
    clipped = sum(segment.clip_units**2 for segment in manifest.segments)
    of_examples = example is not None and example.mode == "distributed"
    if unit == "example":
        vectors = 1 if of_examples else 2  # from one end of the clip to the other
    else:
        assert device is not None or of_examples
        vectors = example.examples_max if example is not None and of_examples else 1
    return vectors**2 * clipped / ring_variance(manifest, survivors)


def exact(pair: list[tuple[Manifest, Survivors]], unit: Unit, delta: float) -> float:
    total = sum(
        squared_shift(manifest, unit, count) for manifest, counts in pair for count in counts
    )
    return math.inf if math.isinf(total) else gaussian_epsilon(math.sqrt(total), delta)


multipliers = st.floats(0.7, 12.0)
KINDS: dict[str, dict[str, Any]] = {
    "local": {"algorithm": "fedavg"},
    "device-level": {"algorithm": "fedavg", "privacy": "none"},
    "distributed": {},
    "local and device-level": {"algorithm": "fedavg"},
    "device-level and distributed": {},
    "evaluation": {"algorithm": "evaluation", "privacy": "none"},
    "none": {"algorithm": "fedavg", "privacy": "none"},
    "evaluation without noise": {"algorithm": "evaluation", "privacy": "none"},
}


@st.composite
def tasks(draw: st.DrawFn, name: str) -> Manifest:
    kind = draw(st.sampled_from((*KINDS, "statistics")))
    terms: dict[str, Any] = {
        "task": name,
        "budget": BudgetSpec(
            max_epsilon=None, delta=draw(st.sampled_from((1e-5, 1e-6))), releases_max=3
        ),
    }
    if kind in (
        "device-level",
        "local and device-level",
        "device-level and distributed",
        "evaluation",
        "statistics",
    ):
        terms["device_noise_multiplier"] = draw(multipliers)
        terms["mechanism"] = draw(st.sampled_from(("skellam", "discrete-gaussian")))
    if kind == "statistics":
        segments = (("x", 4, draw(st.floats(0.1, 9.0))), ("y", 70, draw(st.floats(0.1, 9.0))))
        return built(statistics(*segments, **terms))
    if kind in ("local", "local and device-level", "distributed", "device-level and distributed"):
        terms["noise_multiplier"] = draw(multipliers)
        terms["examples_max"] = draw(st.integers(1, 6))
    if kind in ("local", "local and device-level"):
        terms["training"] = TrainingSpec(local_steps=draw(st.integers(1, 3)))
    if kind.startswith("evaluation"):
        terms["training"] = TrainingSpec(weight_unit=100)
    if (
        kind in ("device-level", "distributed", "device-level and distributed")
        and terms.get("mechanism") != "discrete-gaussian"
    ):
        terms["removable_noise"] = draw(st.booleans())
    return built(**KINDS[kind], **terms)


counts = st.lists(st.integers(4, 6), min_size=1, max_size=3).map(tuple)
pairs = st.tuples(tasks("one"), counts, tasks("two"), counts).map(
    lambda drawn: [(drawn[0], drawn[1]), (drawn[2], drawn[3])]
)


def facts(manifest: Manifest, survivors: int) -> ReleaseFacts:
    known = manifest.noise is not None and bool(manifest.noise.removable_drops)
    return ReleaseFacts(survivors=survivors, masking_set_size=_MASKING_SET if known else 0)


def spent(pair: list[tuple[Manifest, Survivors]], delta: float) -> Account:
    account = Account(delta=delta)
    for manifest, counts in pair:
        for number, count in enumerate(counts):
            name = f"{manifest.task} {number}".encode().hex()
            account = account.spend(name, manifest, facts(manifest, count))
    return account


def ledger_of(pair: list[tuple[Manifest, Survivors]]) -> LedgerBuilder:
    builder = LedgerBuilder(ORIGIN, [signed_task(manifest) for manifest, _ in pair])
    for manifest, counts in pair:
        before: list[ReleaseFacts] = []
        digest = manifest_digest(encode_manifest(manifest))
        for number, count in enumerate(counts, 1):
            cohort = hashlib.sha256(f"{manifest.task} {number}".encode()).digest()
            item = listed(manifest, entry(number, count), cohort=cohort)
            builder.append(release_record(manifest, digest, before, item))
            before.append(item.facts(manifest))
    return builder


@given(pairs)
@settings(max_examples=150, deadline=None)
def test_an_account_is_never_below_the_exact_divergence(
    pair: list[tuple[Manifest, Survivors]],
) -> None:
    delta = 1e-5
    account = spent(pair, delta)
    for unit in UNITS:
        truth, total = exact(pair, unit, delta), account.total(unit)
        assert total.epsilon == account.epsilon(unit) >= truth
        unbounded = [m.task for m, _ in pair if math.isinf(squared_shift(m, unit, 4))]
        assert list(total.unbounded) == unbounded
        others = [(m, counts) for m, counts in pair if m.task not in unbounded]
        rest = exact(others, unit, delta)
        assert total.bounded >= rest
        if rest < 20:  # far below where the sampler's slack takes all of delta
            assert total.bounded <= 1.25 * rest + 0.5
        if not unbounded:
            assert total.epsilon == total.bounded


@given(pairs)
@settings(max_examples=40, deadline=None)
def test_the_ledger_and_its_report_are_never_below_it(
    pair: list[tuple[Manifest, Survivors]],
) -> None:
    result = verify_ledger(served(ledger_of(pair)).get, VERIFIER)
    assert result.problems == ()
    stating = [m for m, _ in pair if m.example_privacy or m.device_privacy]
    delta = min(manifest.budget.delta for manifest in stating or [m for m, _ in pair])
    every = {unit: exact(pair, unit, delta) for unit in UNITS}
    assert [total.unit for total in result.totals] == list(UNITS)
    for total, row in zip(result.totals, report_data(result).combined, strict=True):
        assert total.delta == row.delta == delta
        assert total.epsilon == row.epsilon >= every[total.unit]
    stated = {line.unit for task in result.tasks for line in task.lines}
    if stated:
        assert result.epsilon is not None
        assert result.epsilon >= max(every[unit] for unit in stated)
    else:
        assert result.epsilon is None


@given(pairs)
@settings(max_examples=40, deadline=None)
def test_an_account_of_an_earlier_version_is_never_below_it_either(
    pair: list[tuple[Manifest, Survivors]],
) -> None:
    """Earlier versions stored only the charges of units that a task protects."""
    delta = 1e-5
    stored = json.loads(spent(pair, delta).to_json())
    for row in stored["entries"]:
        row["charges"] = [
            {key: value for key, value in charge.items() if key != "stated"}
            for charge in row["charges"]
            if charge["stated"]
        ]
    account = Account.from_json(json.dumps(stored).encode())
    for unit in UNITS:
        assert account.epsilon(unit) >= exact(pair, unit, delta)
