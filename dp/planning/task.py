"""A whole task from its target: the noise that meets an epsilon, and what it does to the signal."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from dp.accounting.budget import Unit, charges_of, cost_of, units_of
from dp.accounting.charges import GROUP_UNITS
from dp.accounting.events import Composed, GaussianRelease
from dp.accounting.figures import delta_shown, limit_shown
from dp.accounting.statements import draws_per_release, epsilon_of, headline, lines, slack_log2
from dp.contracts.adaptive import noise_growth
from dp.contracts.advice import USELESS_RATIO, quantile_deviation
from dp.contracts.build import build_manifest
from dp.contracts.rules import refuse
from dp.contracts.spec import UNIT_ROWS, TaskSpec
from dp.errors import AccountingError
from dp.noise.adaptive_clip import main_length
from dp.noise.grid import l2_squared_units
from dp.noise.quantisation import clip_bias
from dp.noise.removable import kept_share
from dp.noise.stream import RandomBytes
from dp.planning.signal import HARDLY, SIGNAL, Signal, needed, ratios
from dp.schedule import participations, period_of
from dp.tlog.notes import verifier_key
from secagg.errors import ConfigurationError
from secagg.lora.forms import sent_length
from secagg.manifest import Adapter, Manifest, Noise, TensorShape
from secagg.ring import packed_size, payload_length

NOISE_MAX = 1e4  # as the contracts
_STEPS = 40  # halvings of the interval: far below the last digit that is kept


class TaskPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a task with this target looks like.

    ``epsilon``: of all rounds, unamplified, at the fewest survivors, never above the target.
    ``noise_norm_over_clip``: expected L2 norm of the noise in the mean of a full cohort, over the
    bound of one contribution to it: z sqrt(d) / n, and for examples n times the expected batch.
    ``useless``: whether that exceeds what a model can learn under; with ``signal``, whether it
    leaves less than a model learns from (:data:`dp.planning.signal.HARDLY`).
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
    ``expected_epsilon``: of a unit in as many rounds as are expected of a device, which nobody
    promises; None: infinite.
    ``signal``, ``task``: where the examples are known: what is left of the signal, and the task's
    file but for base model and adapter.
    """

    unit: Unit
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
    period: int = 1
    length: int = 0
    expected_epsilon: float | None = None
    signal: Signal | None = None
    task: dict[str, Any] | None = None


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
    charges = charges_of(manifest)
    protected = {charge.unit for charge in charges if charge.stated}
    return tuple(
        UnitCost(
            unit=unit,
            protected=unit in protected,
            delta=manifest.budget.delta,
            first=_finite(cost_of(unit, manifest, 1)),
            last=_finite(cost_of(unit, manifest, manifest.budget.releases_max)),
            sums=participations(
                manifest.budget.releases_max, 1 if unit == "device" else period_of(manifest)
            ),
        )
        for unit in units_of(charges)
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
    unit: Unit = "device",
    mechanism: Literal["skellam", "discrete-gaussian"] = "skellam",
    adaptive_clip: bool = False,
    period: int = 1,
    examples: int | None = None,
    passes: int | None = None,
    signal: float = SIGNAL,
    adapter: Adapter | None = None,
    name: str = "plan",
) -> TaskPlan:
    """The least noise, in steps of 0.1 %, that keeps all rounds within ``epsilon``.

    Everything else is derived by the code that makes real manifests.

    Args:
        population: enrolled devices.
        cohort: devices in one round.
        length: coordinates of the vector.
        dropout: fraction of a cohort that may vanish, rounded up to devices.
        batch: expected examples per device and round; with ``examples`` it follows from them.
        clip: L2 bound of one unit's contribution.
        unit: what the noise protects; of a person or document, examples and batch are such units.
        adaptive_clip: it follows the median norm (:mod:`dp.noise.adaptive_clip`); ``clip`` is the
            first.
        period: parts of a device's examples, one of them in each round (:mod:`dp.schedule`).
        examples: of the whole population; the plan then has a task's file, and says what is left of
            the signal.
        passes: most sums that an example may be in; the period follows.
        signal: length of the mean of clipped gradients over the clip.
        adapter: of the task, instead of ``length``; None: a form without rules of its own.
        name: of the task.

    Raises:
        AccountingError: ``parameter-out-of-range``.
        ConfigurationError: ``epsilon-unreachable``, ``schedule-without-examples``,
            ``passes-and-period``, ``examples-too-few``, or as :func:`build_manifest`.
    """
    length = length if adapter is None else sent_length(adapter)
    _check(population, cohort, rounds, epsilon, delta, length, dropout, batch, clip)
    if passes is not None:
        _in_range("passes", passes, 1, rounds)
        if period > 1:
            refuse(
                "passes-and-period",
                "The period follows from the passes.",
                expected="one of both",
                found=f"passes {passes}, period {period}",
            )
        period = -(-rounds // passes)
    if unit == "device" and (period > 1 or passes is not None or examples is not None):
        refuse(
            "schedule-without-examples",
            "A schedule counts what an example costs; a device takes part in every round.",
            expected="no examples, passes or period, or unit example",
            found=period,
            remedy="Plan for one example, or leave them out.",
        )
    share: float = batch  # of a device, in one sum
    if examples is not None:
        _in_range("examples", examples, 1, 1 << 40)
        _in_range("signal", signal, 1e-6, 1)
        share = examples / (population * period)
        if share < 1:
            refuse(
                "examples-too-few",
                "A device's part would hold less than one example on average.",
                expected=f"examples >= {population * period}",
                found=examples,
                remedy="Use more passes or fewer rounds, so that the period is shorter.",
            )
    terms = _terms(
        name=name,
        cohort=cohort,
        dropout=dropout,
        rounds=rounds,
        delta=delta,
        mechanism=mechanism,
        adaptive_clip=adaptive_clip,
    )
    if unit == "device" and adaptive_clip:
        terms |= {"algorithm": "fedavg", "privacy": "none", "update_clip": clip}
    elif unit == "device":
        segment = {"name": "vector", "length": length, "clip": clip}
        terms |= {"algorithm": "sum", "privacy": "none", "segments": [segment]}
    elif examples is None:
        terms |= {"clip": clip, "period": period, "training": {"batch_size": batch}}
    else:
        terms |= {"clip": clip, **_of_examples(share, cohort, period)}
    if unit in GROUP_UNITS:
        terms["unit"] = unit
        if examples is not None:  # the places of a schedule are rows
            terms["examples_max"] *= UNIT_ROWS
    trained = None if "segments" in terms else adapter or _adapter(length)
    multiplier_of = "device_noise_multiplier" if unit == "device" else "noise_multiplier"

    def manifest_of(terms: dict[str, Any]) -> Manifest:
        return build_manifest(
            msgspec.structs.replace(msgspec.convert(terms, TaskSpec), adapter=trained),
            created_at=0,
            task_key=bytes(32),
            ledger_verifier=verifier_key("plan", bytes(32)),
            partner_keys=[bytes(32)],
        )

    def cost(multiplier: float) -> float:
        try:
            value = headline(lines(manifest_of(terms | {multiplier_of: multiplier}), rounds))
        except ConfigurationError as error:
            if error.reason == "cost-infinite":
                return math.inf
            raise
        return math.inf if value is None else value

    multiplier = _least(cost, epsilon, rounds)
    budget = terms["budget"] | {"max_epsilon": epsilon}
    task = terms | {multiplier_of: multiplier, "budget": budget}
    manifest = manifest_of(task)
    plan = _plan(manifest, unit, mechanism, multiplier, cost(multiplier), population, share)
    if examples is None:
        return plan
    left = _signal(plan, terms, examples, signal, cost)
    return msgspec.structs.replace(
        plan, useless=left.signal_over_noise < HARDLY, signal=left, task=task
    )


def _least(cost: Callable[[float], float], epsilon: float, rounds: int) -> float:
    """The multiplier, rounded up to five digits."""
    low, high = 0.01, 0.02
    try:
        while cost(high) > epsilon:
            low, high = high, 2 * high
            if high > NOISE_MAX:
                raise _unreachable(epsilon, rounds)
    except ConfigurationError as error:
        if error.reason != "noise-too-large":
            raise
        raise _unreachable(epsilon, rounds) from error
    for _ in range(_STEPS):
        if high / low < 1.001:
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if cost(middle) <= epsilon else (middle, high)
    return float(delta_shown(high, 5))


def _unreachable(epsilon: float, rounds: int) -> ConfigurationError:
    return ConfigurationError(
        "epsilon-unreachable",
        "No admissible noise keeps so many rounds within the target.",
        expected=f"epsilon <= {limit_shown(epsilon)}",
        found=rounds,
        remedy="Use fewer rounds, or a larger epsilon or delta.",
    )


def _terms(
    *,
    name: str,
    cohort: int,
    dropout: float,
    rounds: int,
    delta: float,
    mechanism: str,
    adaptive_clip: bool,
) -> dict[str, Any]:
    """What the file of every planned task says (:class:`dp.contracts.spec.TaskSpec`)."""
    survivors = cohort - math.ceil(dropout * cohort)
    terms: dict[str, Any] = {
        "task": name,
        "cohort": {"size_min": cohort, "size_max": cohort, "survivors_min": survivors},
        "budget": {"max_epsilon": None, "delta": delta, "releases_max": rounds},
    }
    if mechanism != "skellam":
        terms["mechanism"] = mechanism
    if adaptive_clip:
        terms["adaptive_clip"] = {}
    return terms


def _of_examples(share: float, cohort: int, period: int) -> dict[str, Any]:
    """Whole parts, the public divisor, and room for devices with four times the average."""
    return {
        **({"period": period} if period > 1 else {"sampling_rate": 1.0}),
        "examples_max": 1 << math.ceil(math.log2(4 * share)),
        "training": {"batch_size": round(share), "denominator": cohort * share},
    }


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
    unit: Unit,
    mechanism: Literal["skellam", "discrete-gaussian"],
    multiplier: float,
    cost: float,
    population: int,
    share: float,
) -> TaskPlan:
    segment, encoding, rules = manifest.segments[0], manifest.encoding, manifest.cohort
    noise = manifest.noise
    if noise is None:
        raise AccountingError("noise-missing", "A plan is for a task with noise in the ring.")
    rounds = manifest.budget.releases_max
    contributions = rules.size_max * (1 if unit == "device" else share)
    # The noise of a full cohort: what is really in the sum when nobody drops.
    left = kept_share(noise, rules, rules.size_max, rules.size_max) * rules.size_max
    spread = math.sqrt(left / l2_squared_units(manifest.segments))
    ratio = spread * noise_growth(manifest) * math.sqrt(main_length(manifest)) / contributions
    lanes = payload_length(manifest.data_length, encoding.slice_length)
    took_part = rounds * rules.size_max / population
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
        participations=took_part,
        clip_bias=clip_bias(segment.length, segment.clip_units, _coins()),
        grid_epsilon=max(0.0, cost - _continuous_epsilon(manifest, noise, rounds)),
        noise_growth=noise_growth(manifest),
        quantile_noise=quantile_deviation(manifest),
        costs={cost.unit: cost.last for cost in planned_costs(manifest)},
        sums=participations(rounds, period_of(manifest)),
        period=period_of(manifest),
        length=main_length(manifest),
        expected_epsilon=_finite(cost_of(unit, manifest, math.ceil(took_part))),
    )


def _signal(
    plan: TaskPlan,
    terms: dict[str, Any],
    examples: int,
    signal: float,
    cost: Callable[[float], float],
) -> Signal:
    divisor, rounds = terms["training"]["denominator"], terms["budget"]["releases_max"]
    step, whole, full, poisson = ratios(
        examples=divisor * plan.period,
        releases=rounds,
        period=plan.period,
        noise=plan.noise_norm_over_clip * divisor / math.sqrt(plan.length),
        length=plan.length,
        signal=signal,
    )
    return Signal(
        divisor=divisor,
        gradients_per_device=plan.participations * divisor / terms["cohort"]["size_max"],
        bytes_per_device=math.ceil(plan.participations * plan.upload_bytes),
        signal=signal,
        step_noise_over_signal=step,
        signal_over_noise=whole,
        full_batches=full,
        poisson_batches=poisson,
        needed=needed(
            whole,
            examples=examples,
            length=plan.length,
            releases=rounds,
            period=plan.period,
            epsilon_at=lambda fraction: cost(fraction * plan.noise_multiplier),
        ),
    )


def _continuous_epsilon(manifest: Manifest, noise: Noise, rounds: int) -> float:
    """Epsilon of Gaussian releases with the noise that is guaranteed, sampler's slack included."""
    guaranteed = noise.share_variance * noise.honest_min
    release = GaussianRelease(math.sqrt(guaranteed / l2_squared_units(manifest.segments)))
    slack = slack_log2(rounds * draws_per_release(manifest))
    sums = participations(rounds, period_of(manifest))
    renyi = noise.mechanism == "discrete-gaussian"
    return epsilon_of(Composed(((release, sums),)), manifest.budget.delta, slack, renyi=renyi)


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
        _in_range(name, value, low, high)


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise AccountingError(
            "parameter-out-of-range",
            f"The plan's {name} is out of range.",
            expected=f"{low:g} to {high:g}",
            found=value,
        )
