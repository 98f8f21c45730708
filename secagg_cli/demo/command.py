"""``secagg demo``: the whole system at its real job, on this machine.

A service process, N device processes that speak HTTP, real text, real drop-outs by SIGKILL, a
trained adapter, a ledger that is verified as an auditor would, and a report.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.processes import die_with_parent, interruptible
from secagg_cli.ranges import number


class Privacy(enum.StrEnum):
    distributed = "distributed"
    local = "local"
    none = "none"


class DemoCommand(TyperCommand):
    """Its help lists the names of ``--algorithm``, which are known only when they are looked up."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from secagg_cli.demo.choice import algorithm_names, form_names

        for parameter in self.params:
            if isinstance(parameter, TyperOption) and parameter.name == "algorithm":
                parameter.help = (
                    f"An algorithm ({', '.join(algorithm_names())}), or a form of LoRA for fedsgd "
                    f"or fedavg ({', '.join(form_names())}). Default: fedsgd, and fedavg with "
                    "--privacy local or none; always ffa-lora."
                )
        super().format_help(ctx, formatter)


def demo(
    model: Annotated[
        str,
        typer.Option(
            help="smollm2 (fetched once), tiny (made on the spot), a model folder, or a hub id."
        ),
    ] = "smollm2",
    clients: Annotated[int, number("Devices.", low=2, high=32)] = 6,
    rounds: Annotated[int, number("Releases.", low=1, high=100)] = 4,
    drop: Annotated[
        float, number("Fraction of devices killed in every round.", low=0, high=0.9)
    ] = 0.3,
    privacy: Annotated[
        Privacy | None,
        typer.Option(
            help="distributed: noise shares in the masked sum; local: DP-SGD on the device; none. "
            "Default: the algorithm's own."
        ),
    ] = None,
    device_noise: Annotated[
        float,
        number("Noise over a device's bound, for device-level privacy; 0: none.", low=0, high=1e6),
    ] = 0.0,
    algorithm: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="An algorithm, or a form of LoRA."),
    ] = None,
    adaptive_clip: Annotated[
        bool,
        typer.Option(
            "--adaptive-clip",
            help="The clip follows the median norm, by a private estimate in the same sum.",
        ),
    ] = False,
    period: Annotated[
        int | None,
        number(
            "Parts of a device's examples, one a round in turn; 1: all in every round. Default: "
            "half the rounds with --privacy distributed (all of fewer than four), else 1.",
            low=1,
            high=100,
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="New or empty folder for results; default: secagg-demo[-N]."),
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Train one adapter over several killed and revived devices, under differential privacy."""
    with Output(format) as out, interruptible():
        die_with_parent()
        from secagg_cli.demo.choice import resolve
        from secagg_cli.demo.folder import check_folder
        from secagg_cli.demo.run import run_demo
        from secagg_cli.demo.spec import DemoOptions

        check_folder(out_dir)
        options = DemoOptions(
            model=model,
            clients=clients,
            rounds=rounds,
            drop=drop,
            device_noise=device_noise,
            folder=out_dir,
            adaptive_clip=adaptive_clip,
            period=period,
        )
        chosen = resolve(algorithm, None if privacy is None else privacy.value, options)
        out.result(run_demo(chosen, out))
