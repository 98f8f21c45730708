"""``secagg simulate``: the real protocol machines without a network, from one seed."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from secagg_cli.output import CommandError, Format, FormatOption, Output


def simulate(
    clients: Annotated[int, typer.Option(help="Devices in each cohort.", min=2)],
    length: Annotated[int, typer.Option(help="Coordinates of each device's vector.", min=1)],
    dropout: Annotated[
        float, typer.Option(help="Fraction of devices that vanish, at random steps.", min=0, max=1)
    ] = 0.1,
    rounds: Annotated[int, typer.Option(help="Cohorts to run.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="The same seed replays the same run.")] = 0,
    bits: Annotated[int, typer.Option(help="Bits per coordinate of the ring.")] = 32,
    processes: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 1,
    format: FormatOption = Format.text,
) -> None:
    """Run the protocol in this process; every released sum is compared with the true one.

    Exit code 1 if any released sum was wrong or no cohort could be released at all.
    """
    with Output(format) as out:
        from secagg.simulation import simulate as run

        out.say(f"Simulating {rounds} round(s) of {clients} devices with {length} coordinates ...")
        start = time.monotonic()
        result = run(
            clients=clients,
            length=length,
            dropout=dropout,
            rounds=rounds,
            seed=seed,
            bits=bits,
            processes=processes,
        )
        seconds = time.monotonic() - start
        if not result.exact:
            raise CommandError("sum-wrong", "A released sum differs from the contributors' sum.")
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
                "seconds": round(seconds, 3),
                "digest": result.digest,
            }
        )
