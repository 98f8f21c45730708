"""A whole task from its target: the noise that meets an epsilon, and what it does to the signal."""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Literal

import msgspec

from dp.accounting.budget import UNITS, Unit, cost_of
from dp.accounting.events import Composed, GaussianRelease
from dp.accounting.figures import limit_shown
from dp.accounting.statements import draws_per_release, epsilon_of, headline, lines, slack_log2
from dp.contracts.adaptive import noise_growth
from dp.contracts.advice import USELESS_RATIO, quantile_deviation
from dp.contracts.build import build_manifest
from dp.contracts.rules import refuse
from dp.contracts.spec import (
    AdaptiveClipSpec,
    BudgetSpec,
    CohortSpec,
    SegmentSpec,
    TaskSpec,
    TrainingSpec,
)
from dp.errors import AccountingError
from dp.noise.adaptive_clip import main_length
from dp.noise.grid import l2_squared_units
from dp.noise.quantisation import clip_bias
from dp.noise.removable import kept_share
from dp.noise.stream import RandomBytes
from dp.schedule import participations, period_of
from dp.tlog.notes import verifier_key
from secagg.errors import ConfigurationError
from secagg.manifest import Adapter, Manifest, Noise, TensorShape
from secagg.ring import packed_size, payload_length

NOISE_MAX = 1e4  # as the contracts
_STEPS = 40  # halvings of the interval: far below the last digit that is kept


class TaskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a task with this target looks like.

    ``epsilon``: of all rounds, unamplified, at the fewest survivors, never above the target.
    ``noise_norm_over_clip``: expected L2 norm of the noise in the mean of a full cohort, over the
    bound of one contribution to it: z sqrt(d) / n, and for examples n times the expected batch.
    ``useless``: whether that exceeds what a model can learn under.
    ``wrap_log2``: log2 of the bound on the chance that a sum wraps around.
    ``clip_bias``: mean relative error of the length of a contribution at the clip, from rounding
    and the exact integer clip (measured; shorter contributions have none).
    ``grid_epsilon``: how much larger epsilon is than with continuous Gaussian noise of the same
    variance and no rounding, by the same accountant.
    ``noise_growth``: noise on the vector over that with a fixed clip; 1 without ``adaptive_clip``.
    ``quantile_noise``: standard deviation of the noise in the quantile's estimate, as a share of
    the units of a full cohort; None without ``adaptive_clip``.
    ``participations``: rounds in which a device of the population is expected; it earns nothing.
    ``sums``: of all rounds, those that one unit can be in (fewer than ``rounds`` with a period).
    ``costs``: epsilon of all rounds for each unit, protected or not; None: infinite.
    """

    unit: Literal["device", "example"]
    mechanism: Literal["skellam", "discrete-gaussian"]
    epsilon: float
    delta: float
    noise_multiplier: float
    survivors_min: int
    scale: int
    clip_units: int
    share_variance: int
    ring_bits: int
    wrap_log2: float
    upload_bytes: int
    overshoot: float
    noise_norm_over_clip: float
    useless: bool
    participations: float
    clip_bias: float
    grid_epsilon: float
    noise_growth: float
    quantile_noise: float | None
    costs: dict[str, float | None] = {}
    sums: int = 0


class UnitCost(msgspec.Struct, frozen=True, kw_only=True):
    """What a task costs one unit, unamplified, at the fewest survivors.

    ``protected``: whether the task makes a statement about the unit; its charges count either way.
    ``first``, ``last``: epsilon at ``delta`` after the first release, and after all of them; None:
    infinite. ``sums``: of all of them, those that the unit can be in.
    """

    unit: Unit
    protected: bool
    delta: float
    first: float | None
    last: float | None
    sums: int = 0


def planned_costs(manifest: Manifest) -> tuple[UnitCost, ...]:
    """What a task's releases will cost each unit.

    Raises:
        AccountingError: an impossible parameter.
    """
    protected = {
        "example": manifest.example_privacy is not None,
        "device": manifest.device_privacy is not None,
    }
    return tuple(
        UnitCost(
            unit=unit,
            protected=protected[unit],
            delta=manifest.budget.delta,
            first=_finite(cost_of(unit, manifest, 1)),
            last=_finite(cost_of(unit, manifest, manifest.budget.releases_max)),
            sums=participations(
                manifest.budget.releases_max, period_of(manifest) if unit == "example" else 1
            ),
        )
        for unit in UNITS
    )


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def plan_task(
    *,
    population: int,
    cohort: int,
    rounds: int,
    epsilon: float,
    delta: float,
    length: int,
    dropout: float = 0.1,
    batch: int = 24,
    clip: float = 1.0,
    unit: Literal["device", "example"] = "device",
    mechanism: Literal["skellam", "discrete-gaussian"] = "skellam",
    adaptive_clip: bool = False,
    period: int = 1,
) -> TaskPlan:
    """The least noise, in steps of 0.1 %, that keeps all rounds within ``epsilon``.

    Everything else is derived by the code that makes real manifests.

    Args:
        population: enrolled devices.
        cohort: devices in one round.
        length: coordinates of the vector.
        dropout: fraction of a cohort that may vanish, rounded up to devices.
        batch: expected examples per device and round (unit ``example``).
        clip: L2 bound of one unit's contribution.
        adaptive_clip: it follows the median norm (:mod:`dp.noise.adaptive_clip`); ``clip`` is the
        first.
        period: parts of a device's examples, one of them in each round (:mod:`dp.schedule`).

    Raises:
        AccountingError: ``parameter-out-of-range``.
        ConfigurationError: ``epsilon-unreachable``, or as :func:`build_manifest`.
    """
    _check(population, cohort, rounds, epsilon, delta, length, dropout, batch, clip)
    if period > 1 and unit == "device":
        refuse(
            "schedule-without-examples",
            "A schedule counts what an example costs; a device takes part in every round.",
            expected="period 1, or unit example",
            found=period,
            remedy="Plan for one example, or leave the period out.",
        )
    survivors = cohort - math.ceil(dropout * cohort)

    def manifest_at(multiplier: float) -> Manifest:
        terms = CohortSpec(size_min=cohort, size_max=cohort, survivors_min=survivors)
        budget = BudgetSpec(max_epsilon=None, delta=delta, releases_max=rounds)
        adaptive = AdaptiveClipSpec() if adaptive_clip else None
        if unit == "device" and adaptive is not None:
            spec = TaskSpec(
                task="plan",
                algorithm="fedavg",
                privacy="none",
                update_clip=clip,
                device_noise_multiplier=multiplier,
                mechanism=mechanism,
                adaptive_clip=adaptive,
                cohort=terms,
                budget=budget,
                adapter=_adapter(length),
            )
        elif unit == "device":
            spec = TaskSpec(
                task="plan",
                algorithm="sum",
                privacy="none",
                segments=(SegmentSpec(name="vector", length=length, clip=clip),),
                device_noise_multiplier=multiplier,
                mechanism=mechanism,
                cohort=terms,
                budget=budget,
            )
        else:
            spec = TaskSpec(
                task="plan",
                clip=clip,
                noise_multiplier=multiplier,
                mechanism=mechanism,
                adaptive_clip=adaptive,
                cohort=terms,
                budget=budget,
                period=period,
                training=TrainingSpec(batch_size=batch),
                adapter=_adapter(length),
            )
        return build_manifest(
            spec,
            created_at=0,
            task_key=bytes(32),
            ledger_verifier=verifier_key("plan", bytes(32)),
            partner_keys=[bytes(32)],
        )

    def cost(multiplier: float) -> float:
        try:
            value = headline(lines(manifest_at(multiplier), rounds))
        except ConfigurationError as error:
            if error.reason == "cost-infinite":
                return math.inf
            raise
        return math.inf if value is None else value

    low, high = 0.01, 0.02
    while cost(high) > epsilon:
        low, high = high, 2 * high
        if high > NOISE_MAX:
            raise ConfigurationError(
                "epsilon-unreachable",
                "No admissible noise keeps so many rounds within the target.",
                expected=f"epsilon <= {limit_shown(epsilon)}",
                found=rounds,
                remedy="Use fewer rounds, or a larger epsilon or delta.",
            )
    for _ in range(_STEPS):
        if high / low < 1.001:
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost(middle) <= epsilon else (middle, high)
    manifest = manifest_at(high)
    return _plan(manifest, unit, mechanism, high, cost(high), population, rounds, batch)


def _adapter(length: int) -> Adapter:
    return Adapter(
        kind="ffa-lora",
        rank=1,
        alpha=1,
        target_modules=("plan",),
        seed=bytes(32),
        trainable=(TensorShape(name="plan.lora_B.weight", rows=length, columns=1),),
        frozen=(),
    )


def _plan(
    manifest: Manifest,
    unit: Literal["device", "example"],
    mechanism: Literal["skellam", "discrete-gaussian"],
    multiplier: float,
    cost: float,
    population: int,
    rounds: int,
    batch: int,
) -> TaskPlan:
    segment, encoding, rules = manifest.segments[0], manifest.encoding, manifest.cohort
    noise = manifest.noise
    if noise is None:
        raise AccountingError("noise-missing", "A plan is for a task with noise in the ring.")
    contributions = rules.size_max * (batch if unit == "example" else 1)
    # The noise of a full cohort: what is really in the sum when nobody drops.
    left = kept_share(noise, rules, rules.size_max, rules.size_max) * rules.size_max
    spread = math.sqrt(left / l2_squared_units(manifest.segments))
    ratio = spread * noise_growth(manifest) * math.sqrt(main_length(manifest)) / contributions
    lanes = payload_length(manifest.data_length, encoding.slice_length)
    return TaskPlan(
        unit=unit,
        mechanism=mechanism,
        epsilon=cost,
        delta=manifest.budget.delta,
        noise_multiplier=multiplier,
        survivors_min=rules.survivors_min,
        scale=segment.scale,
        clip_units=segment.clip_units,
        share_variance=noise.share_variance,
        ring_bits=encoding.ring_bits,
        wrap_log2=encoding.wrap_log2,
        upload_bytes=packed_size(lanes, encoding.ring_bits),
        overshoot=left / (noise.share_variance * noise.honest_min),
        noise_norm_over_clip=ratio,
        useless=ratio > USELESS_RATIO,
        participations=rounds * rules.size_max / population,
        clip_bias=clip_bias(segment.length, segment.clip_units, _coins()),
        grid_epsilon=max(0.0, cost - _continuous_epsilon(manifest, noise, rounds)),
        noise_growth=noise_growth(manifest),
        quantile_noise=quantile_deviation(manifest),
        costs={cost.unit: cost.last for cost in planned_costs(manifest)},
        sums=participations(rounds, period_of(manifest)),
    )


def _continuous_epsilon(manifest: Manifest, noise: Noise, rounds: int) -> float:
    """Epsilon of Gaussian releases with the noise that is guaranteed, sampler's slack included."""
    guaranteed = noise.share_variance * noise.honest_min
    release = GaussianRelease(math.sqrt(guaranteed / l2_squared_units(manifest.segments)))
    slack = slack_log2(rounds * draws_per_release(manifest))
    sums = participations(rounds, period_of(manifest))
    return epsilon_of(Composed(((release, sums),)), manifest.budget.delta, slack)


def _coins() -> RandomBytes:
    """Coins of a measurement, the same each time; nothing secret is drawn with them."""
    counter = itertools.count()
    return lambda count: hashlib.shake_256(b"plan %d" % next(counter)).digest(count)


def _check(
    population: int,
    cohort: int,
    rounds: int,
    epsilon: float,
    delta: float,
    length: int,
    dropout: float,
    batch: int,
    clip: float,
) -> None:
    """NaN fails every comparison, so it is refused with the rest."""
    for name, value, low, high in (
        ("population", population, 2, 1 << 40),
        ("cohort", cohort, 2, population),
        ("rounds", rounds, 1, 10**6),
        ("epsilon", epsilon, 1e-6, 1e6),
        ("delta", delta, 1e-30, 0.1),
        ("length", length, 1, 1 << 28),
        ("dropout", dropout, 0, 0.9),
        ("batch", batch, 1, 1 << 20),
        ("clip", clip, 1e-6, 1e6),
    ):
        if not low <= value <= high:
            raise AccountingError(
                "parameter-out-of-range",
                f"{name} is out of range.",
                expected=f"{low:g} to {high:g}",
                found=value,
            )
