"""``secagg plan task`` and ``secagg plan memory``: what a task and a device need, beforehand."""

from __future__ import annotations

import enum
import math
from typing import Annotated

import msgspec
import typer

from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.ranges import number


class Unit(enum.StrEnum):
    device = "device"
    example = "example"


class RingNoise(enum.StrEnum):
    skellam = "skellam"
    discrete_gaussian = "discrete-gaussian"


class Precision(enum.StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


def task(
    cohort: Annotated[int, number("Devices in one round.", low=2, high=10_000)],
    rounds: Annotated[int, number("Sums that the task releases.", low=1, high=10**6)],
    epsilon: Annotated[float, number("Target over all rounds, unamplified.", low=1e-6, high=1e6)],
    delta: Annotated[float, number("Delta of (epsilon, delta).", low=1e-30, high=0.1)] = 1e-5,
    population: Annotated[
        int | None, number("Enrolled devices; default: the cohort.", low=2, high=1 << 40)
    ] = None,
    length: Annotated[int, number("Numbers in the vector.", low=1, high=1 << 28)] = 92_160,
    dropout: Annotated[
        float, number("Fraction of a cohort that may vanish.", low=0, high=0.9)
    ] = 0.1,
    batch: Annotated[
        int, number("Expected examples per device and round.", low=1, high=1 << 20)
    ] = 24,
    clip: Annotated[
        float, number("L2 bound of one unit's contribution.", low=1e-6, high=1e6)
    ] = 1.0,
    unit: Annotated[Unit, typer.Option(help="Whom the noise protects.")] = Unit.device,
    mechanism: Annotated[RingNoise, typer.Option(help="The noise.")] = RingNoise.skellam,
    adaptive_clip: Annotated[
        bool, typer.Option("--adaptive-clip", help="The clip follows the median norm.")
    ] = False,
    period: Annotated[
        int,
        number("Parts of a device's examples, one in each round; 1: all.", low=1, high=10_000),
    ] = 1,
    format: FormatOption = Format.text,
) -> None:
    """The noise that meets a target, and whether anything can be learned under it."""
    with Output(format) as out:
        from dp.accounting.figures import delta_shown, shown_up
        from dp.planning.task import plan_task

        plan = plan_task(
            population=cohort if population is None else population,
            cohort=cohort,
            rounds=rounds,
            epsilon=epsilon,
            delta=delta,
            length=length,
            dropout=dropout,
            batch=batch,
            clip=clip,
            unit=unit.value,
            mechanism=mechanism.value,
            adaptive_clip=adaptive_clip,
            period=period,
        )
        out.say(
            f"noise multiplier {shown_up(plan.noise_multiplier)} ({plan.mechanism}): epsilon "
            f"{shown_up(plan.epsilon)} per {plan.unit} at delta {delta_shown(delta)} after "
            f"{rounds} rounds, with as few as {plan.survivors_min} of {cohort} surviving; no "
            "amplification is claimed, and time must not show "
            f"{'one example more' if plan.unit == 'example' else 'the data'} (report_slot_s)"
        )
        if period > 1:
            out.say(f"an example is in at most {plan.sums} of {rounds} sums; a device is in all")
        out.say(
            f"scale {plan.scale}, {plan.ring_bits} bits per number, {plan.upload_bytes} bytes per "
            f"upload; a sum wraps around with probability at most 2^{math.ceil(plan.wrap_log2)}"
        )
        out.say(
            f"expected noise norm in the mean of a full cohort: {plan.noise_norm_over_clip:.3g} "
            f"times the clip; {plan.overshoot:.3g} times the variance needed if nobody drops; a "
            f"device takes part in {plan.participations:.3g} rounds on average"
        )
        out.say(
            f"the integer grid adds at most {delta_shown(plan.grid_epsilon, 1)} to the epsilon of "
            f"continuous noise; a contribution at the clip arrives {-100 * plan.clip_bias:.2g} % "
            "shorter on average, a shorter one as it is"
        )
        if plan.quantile_noise is not None:
            out.say(
                f"the clip's estimate in the same sum costs {100 * (plan.noise_growth - 1):.2g} % "
                f"more noise, and is itself off by {100 * plan.quantile_noise:.2g} % of the "
                f"{plan.unit}s of a full cohort in a round (one standard deviation)"
            )
        for other, cost in plan.costs.items():
            if other != plan.unit:
                shown = shown_up(math.inf if cost is None else cost)
                out.say(
                    f"one {other}, which this task does not protect, costs epsilon {shown} at "
                    f"delta {delta_shown(delta)}"
                )
        if plan.useless:
            out.warn(
                "Useless for learning: the noise drowns what the cohort can send. Use many more "
                "devices, a shorter vector, fewer rounds, a larger epsilon, or example-level "
                "privacy."
            )
        out.result(msgspec.to_builtins(plan))


def memory(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a folder or a hub id.")] = "smollm2",
    rank: Annotated[int, number("Rank of the adapter.", low=1, high=1_024)] = 4,
    batch: Annotated[int, number("Examples at once, at most.", low=1)] = 4,
    length: Annotated[int, number("Tokens per example, at most.", low=1)] = 64,
    precision: Annotated[Precision, typer.Option(help="Of weights.")] = Precision.float32,
    targets: Annotated[
        str, typer.Option(help="Linear layers to adapt, by the last part of their names.")
    ] = "q_proj,v_proj",
    available: Annotated[
        int | None, number("Bytes that training may take; default: no limit.", low=1)
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Peak memory of training on a device, and the way of training that fits."""
    with Output(format) as out:
        from client_sdk.training.memory import plan_memory
        from secagg_cli.models.cache import ensure_model, load_config

        config = load_config(ensure_model(model))
        plan = plan_memory(
            config,
            rank=rank,
            targets=tuple(targets.split(",")),
            batch=batch,
            length=length,
            precision=precision.value,
            available_bytes=available,
        )
        way = (
            f"{plan.micro_batch} examples at once (hooks)"
            if plan.mode == "hooks"
            else "one example after the other (loop)"
        )
        out.say(f"{plan.peak_bytes / 2**20:.0f} MiB at the peak, {way}")
        out.result(
            {
                "model": model,
                "peak_bytes": plan.peak_bytes,
                "mode": plan.mode,
                "micro_batch": plan.micro_batch,
            }
        )
