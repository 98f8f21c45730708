"""``secagg plan``: what a task will cost, before it exists."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from secagg.limits import CORRECTNESS_BITS, SECURITY_BITS
from secagg_cli.output import Format, FormatOption, Output, power, power_log2
from secagg_cli.plan.clip import clip
from secagg_cli.plan.sizes import memory
from secagg_cli.plan.task import task
from secagg_cli.ranges import number

app = typer.Typer(no_args_is_help=True, help="Account and size a task before it exists.")
app.command("task")(task)
app.command("clip")(clip)
app.command("memory")(memory)


class Mechanism(enum.StrEnum):
    gaussian = "gaussian"
    discrete_gaussian = "discrete-gaussian"
    skellam = "skellam"


class Adjacency(enum.StrEnum):
    add_or_remove = "add-or-remove"
    replace_one = "replace-one"


@app.command("privacy")
def privacy(
    noise_multiplier: Annotated[
        float, number("Noise over clip, of the whole sum.", above=0, high=1e6)
    ],
    rounds: Annotated[
        int,
        number(
            "Releases that one unit is in: of a task with a period, its releases over the period, "
            "rounded up.",
            low=1,
            high=10**7,
        ),
    ],
    delta: Annotated[float, number("Delta of (epsilon, delta).", above=0, below=1)],
    sampling_rate: Annotated[
        float, number("Poisson rate; 1: no amplification is claimed.", above=0, high=1)
    ] = 1.0,
    slot_overrun: Annotated[
        float,
        number(
            "Chance per release that a batch makes its device miss its slot, or fail; "
            "delta pays for it. 0: the task claims that it never happens.",
            low=0,
            below=1,
        ),
    ] = 0.0,
    mechanism: Annotated[Mechanism, typer.Option(help="The noise.")] = Mechanism.gaussian,
    length: Annotated[
        int, number("Coordinates of the sum; only Skellam's bound needs it.", low=1, high=1 << 40)
    ] = 92_160,
    adjacency: Annotated[
        Adjacency,
        typer.Option(help="A record more or less, or exchanged: that moves the sum by two clips."),
    ] = Adjacency.add_or_remove,
    format: FormatOption = Format.text,
) -> None:
    """Epsilon of so many releases, composed, between neighbours of the given kind."""
    with Output(format) as out:
        from dp.accounting.figures import delta_shown, limit_shown, shown_up
        from dp.planning.epsilon import plan_epsilon

        epsilon, accountant = plan_epsilon(
            noise_multiplier=noise_multiplier,
            rounds=rounds,
            delta=delta,
            sampling_rate=sampling_rate,
            mechanism=mechanism.value,
            length=length,
            adjacency=adjacency.value,
            slot_overrun=slot_overrun,
        )
        amplified = "" if sampling_rate == 1 else f", amplified by sampling at {sampling_rate}"
        if slot_overrun:
            amplified += (
                f", with a chance of at most {delta_shown(slot_overrun)} per release that a slot "
                "is missed"
            )
        elif sampling_rate < 1:
            amplified += ", if no batch makes its device miss a slot"
        out.say(
            f"epsilon {shown_up(epsilon)} at delta {delta_shown(delta)} after {rounds} releases, "
            f"{mechanism.value} noise at multiplier {limit_shown(noise_multiplier)}{amplified}, "
            f"{adjacency.value} ({accountant})"
        )
        out.result(
            {
                "epsilon": epsilon,
                "delta": delta,
                "rounds": rounds,
                "noise_multiplier": noise_multiplier,
                "sampling_rate": sampling_rate,
                "slot_overrun": slot_overrun,
                "mechanism": mechanism.value,
                "adjacency": adjacency.value,
                "accountant": accountant,
            }
        )


class Adversary(enum.StrEnum):
    active = "active"
    semi_honest = "semi-honest"


@app.command("cohort")
def cohort(
    clients: Annotated[int, number("Devices in the cohort.", low=2, high=10_000)],
    corrupt: Annotated[
        float, number("Fraction that may collude with the aggregator.", low=0, high=0.5)
    ] = 0.0,
    dropout: Annotated[float, number("Fraction that may drop at random.", low=0, high=0.9)] = 0.1,
    security_bits: Annotated[
        int,
        number("Protection fails with probability 2^-this at most.", low=1, high=256),
    ] = SECURITY_BITS,
    correctness_bits: Annotated[
        int,
        number("Drop-outs end a cohort with probability 2^-this at most.", low=1, high=64),
    ] = CORRECTNESS_BITS,
    adversary: Annotated[
        Adversary,
        typer.Option(
            help="active: chooses roster and drop-outs, and tries 2^64 rosters (as tasks assume); "
            "semi-honest: follows the protocol, for comparison."
        ),
    ] = Adversary.active,
    format: FormatOption = Format.text,
) -> None:
    """Degree and threshold of a cohort's graph, and how likely each promise is to fail."""
    with Output(format) as out:
        from secagg.graph.degrees import ThreatModel, plan_cohort

        corrupt_max = int(corrupt * clients + 0.5)
        lost = int(dropout * clients + 0.5)
        plan = plan_cohort(
            ThreatModel(
                clients, corrupt_max, lost, security_bits, correctness_bits, adversary.value
            )
        )
        complete = plan.degree == clients - 1
        out.say(
            f"{'complete' if complete else 'sparse'} graph: degree {plan.degree}, threshold "
            f"{plan.threshold}; {clients} devices, {corrupt_max} corrupt, {lost} may drop "
            f"({plan.degree - plan.threshold} of any device's neighbours)"
        )
        if complete:
            out.say("security and liveness are certain within these numbers")
        else:
            rosters = "the best of 2^64 rosters" if adversary == Adversary.active else "the roster"
            out.say(
                f"fails with probability at most: both secrets of one device are revealed "
                f"{power(plan.opened_twice_log2)}, the sum falls apart {power(plan.cut_log2)}; "
                f"either, for {rosters}, {power(plan.security_log2)}; random drop-outs end the "
                f"cohort {power(plan.failure_log2)}"
            )
        out.result(
            {
                "clients": clients,
                "degree": plan.degree,
                "threshold": plan.threshold,
                "complete": complete,
                "adversary": adversary.value,
                "corrupt": corrupt_max,
                "dropouts": lost,
                "dropouts_tolerated": plan.degree - plan.threshold,
                "opened_twice_log2": power_log2(plan.opened_twice_log2),
                "cut_log2": power_log2(plan.cut_log2),
                "security_log2": power_log2(plan.security_log2),
                "failure_log2": power_log2(plan.failure_log2),
            }
        )
