"""``secagg plan task``: the noise that meets a target, what it leaves, and the task's file."""

from __future__ import annotations

import enum
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from secagg_cli.operator.task import AdapterKind
from secagg_cli.output import CommandError, Format, FormatOption, Output
from secagg_cli.ranges import number

if TYPE_CHECKING:
    from dp.planning.signal import Needed, Signal
    from dp.planning.task import TaskPlan
    from secagg.manifest import Adapter

CLIP = 1.0  # where nobody measured one


class Unit(enum.StrEnum):
    device = "device"
    example = "example"
    person = "person"
    document = "document"


class RingNoise(enum.StrEnum):
    skellam = "skellam"
    discrete_gaussian = "discrete-gaussian"


def task(
    cohort: Annotated[int, number("Devices in one round.", low=2, high=10_000)],
    rounds: Annotated[
        int, number("Sums that the task releases: as many as traffic allows.", low=1, high=10**6)
    ],
    epsilon: Annotated[float, number("Target over all rounds, unamplified.", low=1e-6, high=1e6)],
    delta: Annotated[float, number("Delta of (epsilon, delta).", low=1e-30, high=0.1)] = 1e-5,
    population: Annotated[
        int | None, number("Enrolled devices; default: the cohort.", low=2, high=1 << 40)
    ] = None,
    examples: Annotated[
        int | None,
        number(
            "Examples of all enrolled devices: plans a whole task that protects one of them. With "
            "--unit person or document the number of those.",
            low=1,
            high=1 << 40,
        ),
    ] = None,
    passes: Annotated[
        int | None,
        number(
            "Sums that one example may be in, as devices can afford the work; the period "
            "follows. Default: all.",
            low=1,
            high=10**6,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="smollm2, tiny, a folder or a hub id: its adapter gives --length."),
    ] = None,
    adapter: Annotated[
        AdapterKind, typer.Option(help="With --model: what is trained.")
    ] = AdapterKind.ffa_lora,
    rank: Annotated[int, number("With --model: rank of the adapter.", low=1, high=1_024)] = 4,
    targets: Annotated[
        str,
        typer.Option(help="With --model: linear layers to adapt, by the last part of their names."),
    ] = "q_proj,v_proj",
    length: Annotated[int, number("Numbers in the vector.", low=1, high=1 << 28)] = 92_160,
    dropout: Annotated[
        float, number("Fraction of a cohort that may vanish.", low=0, high=0.9)
    ] = 0.1,
    batch: Annotated[
        int,
        number("Expected examples per device and round; --examples gives it.", low=1, high=1 << 20),
    ] = 24,
    clip: Annotated[
        float | None,
        number(
            "L2 bound of one unit's contribution: of gradients at or below the median norm "
            "(secagg plan clip). Default: 1.",
            low=1e-6,
            high=1e6,
        ),
    ] = None,
    signal: Annotated[
        float,
        number(
            "With --examples: length of the mean of clipped gradients, in clips (secagg plan "
            "clip has it at the start).",
            low=1e-6,
            high=1,
        ),
    ] = 0.1,
    unit: Annotated[
        Unit | None,
        typer.Option(help="Whom the noise protects. Default: device, and example with --examples."),
    ] = None,
    mechanism: Annotated[RingNoise, typer.Option(help="The noise.")] = RingNoise.skellam,
    adaptive_clip: Annotated[
        bool, typer.Option("--adaptive-clip", help="The clip follows the median norm.")
    ] = False,
    period: Annotated[
        int,
        number("Parts of a device's examples, one in each round; 1: all.", low=1, high=10_000),
    ] = 1,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="With --examples: write the task's file, for task create. It ends in .json, and "
            "its name is the task's.",
        ),
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """The noise that meets a target, and whether anything can be learned under it.

    With --examples the whole task is planned: period, noise, clip, divisor, and what is left of the
    signal.
    """
    with Output(format) as out:
        from dp.planning.task import plan_task

        if out_file is not None:
            _check_out(out_file, examples)
        described = None if model is None else _adapter(model, adapter, rank, targets, cohort)
        default = Unit.device if examples is None else Unit.example
        plan = plan_task(
            population=cohort if population is None else population,
            cohort=cohort,
            rounds=rounds,
            epsilon=epsilon,
            delta=delta,
            length=length,
            dropout=dropout,
            batch=batch,
            clip=CLIP if clip is None else clip,
            unit=(default if unit is None else unit).value,
            mechanism=mechanism.value,
            adaptive_clip=adaptive_clip,
            period=period,
            examples=examples,
            passes=passes,
            signal=signal,
            adapter=described,
            name="plan" if out_file is None else out_file.stem,
        )
        _say(out, plan, cohort, rounds)
        if plan.signal is not None:
            _say_signal(out, plan, plan.signal)
            if clip is None and not adaptive_clip:
                out.warn(
                    "The clip of 1 is a guess. One at or below the median norm of gradients may "
                    "be worth more than the period: secagg plan clip measures it on public rows, "
                    "and --adaptive-clip follows it."
                )
        elif plan.useless:
            out.warn(
                "Useless for learning: the noise drowns what the cohort can send. Use many more "
                "devices, a shorter vector, fewer rounds, a larger epsilon, or example-level "
                "privacy."
            )
        if out_file is not None:
            _write(out, out_file, plan)
        out.result(msgspec.to_builtins(plan))


def _check_out(out_file: Path, examples: int | None) -> None:
    from client_sdk.outputs import check_file

    if examples is None:
        raise CommandError(
            "plan-without-examples",
            "A task's file needs the number of examples.",
            remedy="Give --examples, or leave --out out.",
        )
    if out_file.suffix != ".json":
        raise CommandError(
            "out-not-json",
            "The task's file is JSON.",
            expected="a name that ends in .json",
            found=out_file.name,
        )
    check_file(out_file)


def _adapter(model: str, kind: AdapterKind, rank: int, targets: str, cohort: int) -> Adapter:
    """As ``task create`` would describe it, from the model's config alone."""
    from client_sdk.training.lora import adapter_spec
    from secagg_cli.models.cache import ensure_model, load_config

    sketch = rank * (cohort + 1) if kind is AdapterKind.product else 0
    config = load_config(ensure_model(model))
    return adapter_spec(config, kind.value, rank, 8, targets.split(","), bytes(32), sketch)


def _say(out: Output, plan: TaskPlan, cohort: int, rounds: int) -> None:
    from dp.accounting.figures import delta_shown, shown_up

    out.say(
        f"noise multiplier {shown_up(plan.noise_multiplier)} ({plan.mechanism}): epsilon "
        f"{shown_up(plan.epsilon)} per {plan.unit} at delta {delta_shown(plan.delta)} after "
        f"{rounds} rounds, with as few as {plan.survivors_min} of {cohort} surviving; no "
        "amplification is claimed, and time must not show "
        f"{'the data' if plan.unit == 'device' else f'one {plan.unit} more'} (report_slot_s)"
    )
    if plan.period > 1:
        out.say(
            f"one {plan.unit} is in at most {plan.sums} of {rounds} sums; a device may be in all"
        )
    if rounds % plan.period:
        whole = plan.sums * plan.period
        out.say(f"the last pass is not whole: {whole} rounds cost the same epsilon")
    if plan.participations < rounds:
        out.say(
            "this epsilon is promised to a device that is in every cohort, and the aggregator "
            f"chooses cohorts. One is expected in {plan.participations:.3g} of {rounds}; after "
            f"{math.ceil(plan.participations)} its own account shows epsilon "
            f"{shown_up(_number(plan.expected_epsilon))}, which nobody promises"
        )
    out.say(
        f"scale {plan.scale}, {plan.ring_bits} bits per number, {plan.upload_bytes} bytes per "
        f"upload of {plan.length} numbers; a sum wraps around with probability at most "
        f"2^{math.ceil(plan.wrap_log2)}"
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
            out.say(
                f"one {other}, which this task does not protect, costs epsilon "
                f"{shown_up(_number(cost))} at delta {delta_shown(plan.delta)}"
            )


def _number(epsilon: float | None) -> float:
    return math.inf if epsilon is None else epsilon


def _say_signal(out: Output, plan: TaskPlan, left: Signal) -> None:
    from dp.planning.signal import ENOUGH

    out.say(
        f"period {plan.period}: a sum has {left.divisor:.5g} {plan.unit}s, the public divisor; a "
        f"device computes {left.gradients_per_device:.3g} gradients and sends "
        f"{left.bytes_per_device} bytes in all, on average"
    )
    out.say(
        f"noise over signal of a step {left.step_noise_over_signal:.3g}, signal over noise of the "
        f"whole training {left.signal_over_noise:.3g} (full batches {left.full_batches:.3g}, "
        f"Poisson {left.poisson_batches:.3g}), if clipped gradients have a mean of "
        f"{left.signal:g} clips; {ENOUGH:g} is enough"
    )
    out.say(
        "server_learning_rate is not planned: a step is at most rate times clip long, so half the "
        "clip wants twice the rate"
    )
    if left.needed is not None:
        verdict = (
            "It will hardly learn: the noise drowns what examples have in common."
            if plan.useless
            else "The noise takes part of what it could learn."
        )
        out.warn(f"{verdict} Each of these alone would be enough: {_ways(left.needed)}.")


def _ways(needed: Needed) -> str:
    from dp.accounting.figures import shown_up

    ways = [f"{needed.examples} examples (more devices)"]
    if needed.passes is not None:
        ways.insert(0, f"{needed.passes} passes (more work, no more privacy lost)")
    if needed.epsilon is not None:
        ways.append(f"epsilon {shown_up(needed.epsilon, 2)}")
    if needed.length is not None:
        ways.append(f"{needed.length} numbers (fewer layers, a smaller rank)")
    return "; ".join(ways)


def _write(out: Output, out_file: Path, plan: TaskPlan) -> None:
    from client_sdk.outputs import write_file

    write_file(out_file, json.dumps(plan.task, indent=2).encode() + b"\n")
    out.say(f"{out_file}: for secagg task create, with --model and the adapter's options")
