"""``secagg simulate``: the real protocol machines without a network, from one seed."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from secagg_cli.output import CommandError, Format, FormatOption, Output, power, power_log2
from secagg_cli.ranges import number

PHASES = ("sharing", "checking", "masking", "confirming", "unmasking")  # with a deadline each


def simulate(
    clients: Annotated[int, number("Devices in each cohort.", low=2, high=10_000)],
    length: Annotated[int, number("Coordinates of each device's vector.", low=1, high=1 << 28)],
    dropout: Annotated[
        float, number("Fraction of devices that vanish, at random steps.", low=0, below=1)
    ] = 0.1,
    rounds: Annotated[int, number("Cohorts to run.", low=1)] = 1,
    seed: Annotated[int, typer.Option(help="The same seed replays the same run.")] = 0,
    bits: Annotated[int, number("Bits per coordinate of the ring.", low=8, high=62)] = 32,
    processes: Annotated[
        int,
        number("Worker processes; 0: one per core for more than 128 clients, else none.", low=0),
    ] = 0,
    corrupt: Annotated[
        float,
        number("Fraction that the threshold assumes to be corrupt.", low=0, high=0.5),
    ] = 0.1,
    degree: Annotated[
        int,
        number(
            "Neighbours of each device where the graph is sparse (more than 128 devices); "
            "0: what plan cohort derives.",
            low=0,
        ),
    ] = 0,
    threshold: Annotated[
        int,
        number(
            "Shares that open a secret there; 0: derived, or with a degree the largest that "
            "random drop-outs leave 2^-20.",
            low=0,
        ),
    ] = 0,
    format: FormatOption = Format.text,
) -> None:
    """Run the protocol without a network; every released sum is compared with the true one, and
    the cohorts that random drop-outs ended with what was predicted.

    Exit code 1 if any released sum was wrong or no cohort could be released at all.
    """
    with Output(format) as out:
        from secagg.graph.tails import either_log2
        from secagg.limits import COMPLETE_GRAPH_MAX
        from secagg.simulation import simulate as run

        out.say(f"Simulating {rounds} round(s) of {clients} devices with {length} coordinates ...")
        if processes == 0:
            processes = len(os.sched_getaffinity(0)) if clients > COMPLETE_GRAPH_MAX else 1
        start = time.monotonic()
        with out.progress() as progress:
            bar = progress.add_task("enrolling", total=rounds * len(PHASES))

            def show(round_number: int, phase: str) -> None:
                done = round_number * len(PHASES) + PHASES.index(phase)
                progress.update(bar, completed=done, description=f"{phase} ({round_number + 1})")

            result = run(
                clients=clients,
                length=length,
                dropout=dropout,
                rounds=rounds,
                seed=seed,
                bits=bits,
                processes=processes,
                corrupt=corrupt,
                degree=degree,
                threshold=threshold,
                on_phase=show,
            )
        seconds = time.monotonic() - start
        if not result.exact:
            raise CommandError("sum-wrong", "A released sum differs from the contributors' sum.")
        plan = result.predicted
        out.say(
            f"{'complete' if plan.degree == clients - 1 else 'sparse'} graph: degree "
            f"{plan.degree}, threshold {plan.threshold}; an active aggregator unmasks more than "
            f"the sum with probability {power(either_log2(plan.opened_twice_log2, plan.cut_log2))} "
            f"on one roster, {power(plan.security_log2)} on the best of 2^64, at most"
        )
        out.say(
            f"failed cohorts: {result.aborted} of {rounds}; predicted for random drop-outs: "
            f"{power(plan.failure_log2)} of all at most"
        )
        out.say(
            f"released {result.released}, aborted {result.aborted}, every sum exact, "
            f"{seconds:.1f} s, digest {result.digest}"
        )
        out.result(
            {
                "exact": result.exact,
                "rounds": result.rounds,
                "released": result.released,
                "aborted": result.aborted,
                "failed": result.aborted,
                "failure_rate": result.aborted / rounds,
                "predicted_failure_rate": 2.0**plan.failure_log2,
                "degree": plan.degree,
                "threshold": plan.threshold,
                "security_log2": power_log2(plan.security_log2),
                "seconds": round(seconds, 3),
                "digest": result.digest,
            }
        )
