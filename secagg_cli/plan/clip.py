"""``secagg plan clip``: the norms of gradients on public rows, which a clip is planned by."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from dp.contracts.spec import UNIT_ROWS
from dp.contracts.units import ROWS_MAX
from secagg_cli.operator.task import AdapterKind
from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.ranges import number


class DataUnit(enum.StrEnum):
    example = "example"
    person = "person"
    document = "document"


def clip(
    data: Annotated[
        Path,
        typer.Option(help="Public rows, like those of devices: JSON lines or one JSON array."),
    ],
    model: Annotated[str, typer.Option(help="smollm2, tiny, a folder or a hub id.")] = "smollm2",
    adapter: Annotated[AdapterKind, typer.Option(help="What is trained.")] = AdapterKind.ffa_lora,
    rank: Annotated[int, number("Rank of the adapter.", low=1, high=1_024)] = 4,
    alpha: Annotated[int, number("Scale of the adapter: alpha / rank.", low=1, high=1 << 20)] = 8,
    targets: Annotated[
        str, typer.Option(help="Linear layers to adapt, by the last part of their names.")
    ] = "q_proj,v_proj",
    unit: Annotated[
        DataUnit,
        typer.Option(help="Whom the task protects: the rows of one are summed before the clip."),
    ] = DataUnit.example,
    unit_rows_max: Annotated[
        int, number("Rows that are used of a person or document.", low=1, high=ROWS_MAX)
    ] = UNIT_ROWS,
    format: FormatOption = Format.text,
) -> None:
    """The median norm of gradients, on rows that are public: nothing here is private."""
    with Output(format) as out:
        from client_sdk.training.norms import survey_clip
        from dp.contracts import TaskSpec, build_manifest
        from dp.tlog.notes import verifier_key
        from secagg.manifest import training_manifest
        from secagg_cli.join.training_data import read_rows
        from secagg_cli.models.cache import ensure_model, load_model
        from secagg_cli.models.describe import describe
        from secagg_cli.models.presets import AdapterPreset

        rows = read_rows(data)
        loaded, tokenizer = load_model(ensure_model(model))
        form = AdapterPreset(adapter.value, rank, alpha, tuple(targets.split(",")))
        base_model, described = describe(loaded, model, form)
        manifest = build_manifest(
            TaskSpec(
                task="clip",
                base_model=base_model,
                adapter=described,
                unit=unit.value,
                unit_rows_max=unit_rows_max,
            ),
            created_at=0,
            task_key=bytes(32),
            ledger_verifier=verifier_key("plan", bytes(32)),
            partner_keys=[bytes(32)],
        )
        with out.progress() as progress:
            shown = progress.add_task("gradients")
            found = survey_clip(
                loaded,
                tokenizer,
                rows,
                training_manifest(manifest),
                lambda done, all_: progress.update(shown, completed=done, total=all_),
            )
        out.say(
            f"median norm {found.median:.4g} of the gradients of {found.units} {unit.value}s at "
            f"the start of a training; {found.left_out} rows are in none"
        )
        for clip, signal in found.signals:
            out.say(f"clip {clip:.4g}: the mean of clipped gradients is {signal:.3g} clips long")
        out.say("the mean shrinks as a model learns: plan with a third of it (plan task --signal)")
        out.result(
            {
                "model": model,
                "unit": unit.value,
                "units": found.units,
                "examples": found.examples,
                "left_out": found.left_out,
                "median": found.median,
                "signals": [{"clip": clip, "signal": signal} for clip, signal in found.signals],
            }
        )
