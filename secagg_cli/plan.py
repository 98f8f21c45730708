"""``secagg plan``: what a task will cost, before it exists."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from secagg.limits import CORRECTNESS_BITS, SECURITY_BITS
from secagg_cli.output import CommandError, Format, FormatOption, Output, power
from secagg_cli.plan_sizes import memory, task

app = typer.Typer(no_args_is_help=True, help="Account and size a task before it exists.")
app.command("task")(task)
app.command("memory")(memory)


class Mechanism(enum.StrEnum):
    gaussian = "gaussian"
    discrete_gaussian = "discrete-gaussian"
    skellam = "skellam"
    correlated = "correlated"


class Adjacency(enum.StrEnum):
    add_or_remove = "add-or-remove"
    replace_one = "replace-one"


@app.command("privacy")
def privacy(
    noise_multiplier: Annotated[float, typer.Option(help="Noise over clip, of the whole sum.")],
    rounds: Annotated[int, typer.Option(help="Releases.", min=1)],
    delta: Annotated[float, typer.Option(help="Delta of (epsilon, delta).")],
    sampling_rate: Annotated[
        float, typer.Option(help="Poisson rate; 1: no amplification is claimed.")
    ] = 1.0,
    slot_overrun: Annotated[
        float,
        typer.Option(
            help="Chance per release that a batch makes its device miss its slot, or fail; "
            "delta pays for it. 0: claimed never."
        ),
    ] = 0.0,
    mechanism: Annotated[Mechanism, typer.Option(help="The noise.")] = Mechanism.gaussian,
    length: Annotated[
        int, typer.Option(help="Coordinates of the sum; only Skellam's bound needs it.", min=1)
    ] = 92_160,
    adjacency: Annotated[
        Adjacency,
        typer.Option(help="A record more or less, or exchanged: that moves the sum by two clips."),
    ] = Adjacency.add_or_remove,
    band: Annotated[
        int, typer.Option(help="correlated: rounds over which noise partly cancels.", min=1, max=16)
    ] = 4,
    participations: Annotated[
        int | None, typer.Option(help="correlated: most rounds of one unit; default: all.", min=1)
    ] = None,
    separation: Annotated[
        int, typer.Option(help="correlated: least distance of two rounds of one unit.", min=1)
    ] = 1,
    format: FormatOption = Format.text,
) -> None:
    """Epsilon of so many releases, composed, between neighbours of the given kind.

    The mechanism "correlated" is for comparison: no device of ours adds such noise.
    """
    with Output(format) as out:
        _check_open_interval("noise-multiplier", noise_multiplier, 0, float("inf"))
        _check_open_interval("delta", delta, 0, 1)
        if not 0 < sampling_rate <= 1:
            raise CommandError(
                "sampling-rate",
                "The rate is a probability.",
                expected="(0, 1]",
                found=sampling_rate,
            )
        from dp.figures import delta_shown, limit_shown, shown_up
        from dp.plans import plan_correlated, plan_epsilon

        more: dict[str, float] = {}
        if mechanism is Mechanism.correlated:
            if sampling_rate < 1:
                raise CommandError(
                    "sampling-rate",
                    "Nobody accounts for sampling under correlated noise.",
                    expected=1,
                    found=sampling_rate,
                )
            if slot_overrun:
                raise CommandError(
                    "overrun-without-sampling",
                    "Only sampled batches have a time to hide.",
                    expected=0,
                    found=slot_overrun,
                )
            plan = plan_correlated(
                noise_multiplier=noise_multiplier,
                rounds=rounds,
                delta=delta,
                band=band,
                participations=participations or rounds,
                separation=separation,
                length=length,
                adjacency=adjacency.value,
            )
            epsilon, accountant = plan.epsilon, plan.accountant
            more = {"sensitivity": plan.sensitivity, "noise_ratio": plan.noise_ratio}
            out.say(
                f"a unit moves all rounds together by {shown_up(plan.sensitivity)} clips; sums "
                f"over rounds carry {plan.noise_ratio:.3g} times the noise of independent rounds"
            )
        else:
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
                **more,
            }
        )


class Adversary(enum.StrEnum):
    active = "active"
    semi_honest = "semi-honest"


@app.command("cohort")
def cohort(
    clients: Annotated[int, typer.Option(help="Devices in the cohort.", min=2)],
    corrupt: Annotated[
        float, typer.Option(help="Fraction that may collude with the aggregator.", min=0, max=0.5)
    ] = 0.0,
    dropout: Annotated[
        float, typer.Option(help="Fraction that may drop at random.", min=0, max=0.9)
    ] = 0.1,
    security_bits: Annotated[
        int, typer.Option(help="A cohort's protection fails with probability 2^-this at most.")
    ] = SECURITY_BITS,
    correctness_bits: Annotated[
        int, typer.Option(help="Random drop-outs end a cohort with probability 2^-this at most.")
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
        from secagg.degrees import ThreatModel, plan_cohort

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
                f"fails with probability at most: one device is opened twice "
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
                "opened_twice_log2": round(plan.opened_twice_log2, 3),
                "cut_log2": round(plan.cut_log2, 3),
                "security_log2": round(plan.security_log2, 3),
                "failure_log2": round(plan.failure_log2, 3),
            }
        )


def _check_open_interval(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise CommandError(
            name, f"--{name} is out of range.", expected=f"({low}, {high})", found=value
        )
