"""``secagg plan``: what a task will cost, before it exists."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from secagg_cli.output import CommandError, Format, FormatOption, Output
from secagg_cli.plan_sizes import memory, task

app = typer.Typer(no_args_is_help=True, help="Account and size a task before it exists.")
app.command("task")(task)
app.command("memory")(memory)


class Mechanism(enum.StrEnum):
    gaussian = "gaussian"
    discrete_gaussian = "discrete-gaussian"
    skellam = "skellam"


@app.command("privacy")
def privacy(
    noise_multiplier: Annotated[float, typer.Option(help="Noise over clip, of the whole sum.")],
    rounds: Annotated[int, typer.Option(help="Releases.", min=1)],
    delta: Annotated[float, typer.Option(help="Delta of (epsilon, delta).")],
    sampling_rate: Annotated[
        float, typer.Option(help="Poisson rate; 1: no amplification is claimed.")
    ] = 1.0,
    mechanism: Annotated[Mechanism, typer.Option(help="The noise.")] = Mechanism.gaussian,
    length: Annotated[
        int, typer.Option(help="Coordinates of the sum; only Skellam's bound needs it.", min=1)
    ] = 92_160,
    format: FormatOption = Format.text,
) -> None:
    """Epsilon of so many releases (add/remove adjacency, composed)."""
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
        from dp.accounting import plan_epsilon

        epsilon, accountant = plan_epsilon(
            noise_multiplier=noise_multiplier,
            rounds=rounds,
            delta=delta,
            sampling_rate=sampling_rate,
            mechanism=mechanism.value,
            length=length,
        )
        amplified = "" if sampling_rate == 1 else f", amplified by sampling at {sampling_rate}"
        out.say(
            f"epsilon {epsilon:.4f} at delta {delta:g} after {rounds} releases, "
            f"{mechanism.value} noise at multiplier {noise_multiplier:g}{amplified} ({accountant})"
        )
        out.result(
            {
                "epsilon": epsilon,
                "delta": delta,
                "rounds": rounds,
                "noise_multiplier": noise_multiplier,
                "sampling_rate": sampling_rate,
                "mechanism": mechanism.value,
                "accountant": accountant,
            }
        )


@app.command("cohort")
def cohort(
    clients: Annotated[int, typer.Option(help="Devices in the cohort.", min=2)],
    corrupt: Annotated[
        float, typer.Option(help="Fraction that may collude with the aggregator.", min=0, max=0.5)
    ] = 0.0,
    dropout: Annotated[float, typer.Option(help="Fraction that may drop.", min=0, max=0.9)] = 0.1,
    format: FormatOption = Format.text,
) -> None:
    """Degree and threshold of the complete graph, and how many devices may drop."""
    with Output(format) as out:
        from secagg.limits import COMPLETE_GRAPH_MAX
        from secagg.parameters import dropouts_tolerated, threshold

        if clients > COMPLETE_GRAPH_MAX:
            raise CommandError(
                "cohort-too-large",
                "The complete graph is meant for small cohorts.",
                expected=f"at most {COMPLETE_GRAPH_MAX}",
                found=clients,
            )
        corrupt_max = int(corrupt * clients + 0.5)
        wanted = int(dropout * clients + 0.5)
        tolerated = dropouts_tolerated(clients, corrupt_max)
        needed = threshold(clients - 1, corrupt_max)
        out.say(
            f"complete graph: degree {clients - 1}, threshold {needed}; with {corrupt_max} corrupt "
            f"device(s), {tolerated} of {clients} may drop (asked: {wanted})"
        )
        if tolerated < wanted:
            raise CommandError(
                "dropouts-not-tolerated",
                "So many drop-outs would leave a device without enough neighbours.",
                expected=f"at most {tolerated}",
                found=wanted,
                remedy="Form larger cohorts, or declare fewer corrupt devices.",
            )
        out.result(
            {
                "clients": clients,
                "degree": clients - 1,
                "threshold": needed,
                "corrupt": corrupt_max,
                "dropouts_tolerated": tolerated,
            }
        )


def _check_open_interval(name: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise CommandError(
            name, f"--{name} is out of range.", expected=f"({low}, {high})", found=value
        )
