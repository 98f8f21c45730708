"""``secagg demo``: the whole system at its real job, on this machine.

A service process, N device processes that speak HTTP, real text, real drop-outs by SIGKILL, a
trained adapter, a ledger that is verified as an auditor would, and a report.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from secagg_cli.output import CommandError, Format, FormatOption, Output
from secagg_cli.processes import die_with_parent, interruptible


class Privacy(enum.StrEnum):
    distributed = "distributed"
    local = "local"
    none = "none"


def demo(
    model: Annotated[
        str,
        typer.Option(
            help="smollm2 (fetched once), tiny (made on the spot), a model folder, or a hub id."
        ),
    ] = "smollm2",
    clients: Annotated[int, typer.Option(help="Devices.", min=2, max=64)] = 6,
    rounds: Annotated[int, typer.Option(help="Releases.", min=1, max=100)] = 4,
    drop: Annotated[
        float, typer.Option(help="Fraction of devices killed in every round.", min=0, max=0.9)
    ] = 0.3,
    privacy: Annotated[
        Privacy,
        typer.Option(
            help="distributed: noise shares in the masked sum; local: DP-SGD on the device; none."
        ),
    ] = Privacy.distributed,
    device_noise: Annotated[
        float,
        typer.Option(help="Noise over a device's bound, for device-level privacy; 0: none.", min=0),
    ] = 0.0,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help="fedsgd for distributed (its default), or zeroth-order; fedavg (default), "
            "fedprox, fednova, scaffold, fedavgm, fedadagrad, fedadam or fedyogi else, and "
            "zeroth-order without privacy."
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
        from secagg_cli.demo.folder import check_folder
        from secagg_cli.demo.run import run_demo
        from secagg_cli.demo.spec import DemoOptions

        check_folder(out_dir)

        options = DemoOptions(
            model=model,
            clients=clients,
            rounds=rounds,
            drop=drop,
            privacy=privacy.value,
            device_noise=device_noise,
            algorithm=_algorithm(algorithm, privacy),
            folder=out_dir,
        )
        out.result(run_demo(options, out))


def _algorithm(name: str | None, privacy: Privacy) -> str:
    from dp.contracts.optimisers import NAMED_AFTER

    fitting: tuple[str, ...] = ("fedavg", "fedprox", "fednova", "scaffold", *NAMED_AFTER)
    if privacy is Privacy.distributed:
        fitting = ("fedsgd", "zeroth-order")
    elif privacy is Privacy.none:
        fitting = (*fitting, "zeroth-order")
    if name is None:
        return fitting[0]
    if name not in fitting:
        raise CommandError(
            "algorithm-privacy",
            f"--algorithm {name} does not go with --privacy {privacy.value}.",
            expected=" or ".join(fitting),
            found=name,
        )
    return name
