"""``secagg plan memory``: what a device needs, beforehand."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.ranges import number


class Precision(enum.StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


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
