"""``secagg task``: an operator's work with tasks."""

from __future__ import annotations

import enum
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from secagg.files.text import TextFile
from secagg_cli.network import networked
from secagg_cli.operator.client import (
    DEFAULT_SERVER,
    Operator,
    ServerOption,
    TokenFileOption,
)
from secagg_cli.output import CommandError, Format, FormatOption, Output
from secagg_cli.ranges import number

if TYPE_CHECKING:
    from dp.planning.task import UnitCost

app = typer.Typer(no_args_is_help=True, help="Create and steer tasks.")
_SPEC = TextFile("task's specification", CommandError, "spec-missing", "spec-malformed")
NameArgument = Annotated[str, typer.Argument(help="The task's name.")]


class AdapterKind(enum.StrEnum):
    ffa_lora = "ffa-lora"
    lora = "lora"
    rolora = "rolora"
    fedsvd = "fedsvd"
    product = "product"


def _describe(
    model: str, kind: AdapterKind, rank: int, alpha: int, targets: str, sketch: int
) -> dict[str, Any]:
    from client_sdk.training.adapted import check_adapter, check_kind
    from secagg_cli.models.cache import ensure_model, load_model
    from secagg_cli.models.describe import describe
    from secagg_cli.models.presets import AdapterPreset

    loaded, _ = load_model(ensure_model(model))
    check_kind(loaded)
    preset = AdapterPreset(kind.value, rank, alpha, tuple(targets.split(",")), sketch)
    base_model, adapter = describe(loaded, model, preset)
    check_adapter(loaded, adapter)
    return {"base_model": base_model, "adapter": adapter}


def read_spec(path: Path) -> dict[str, Any]:
    """A task's specification from a TOML or JSON file (by its suffix).

    Raises:
        CommandError: ``spec-missing`` or ``spec-malformed``.
    """
    text = _SPEC.read(path)
    language = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        spec = json.loads(text) if language == "JSON" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(
            "spec-malformed",
            f"{path} does not parse as {language}: {error}.",
            remedy="A file whose name ends in .json is JSON; any other is TOML.",
        ) from error
    if not isinstance(spec, dict):
        raise CommandError("spec-malformed", f"{path} does not hold a table.")
    return spec


def _of_file(error: CommandError, file: Path, spec: Mapping[str, Any]) -> CommandError:
    """The refusal of a body that does not parse, with the file and the first key that is wrong."""
    from secagg_cli.operator.spec_keys import unknown_keys

    if error.reason != "body-malformed":
        return error
    unknown = next(unknown_keys(spec), None)
    if unknown is None:
        return CommandError(
            "spec-malformed",
            f"{file} is not a task's specification: {error.message}",
            remedy="Correct what is named; the aggregator's /v1/openapi.json has the types.",
        )
    table = f" of [{unknown.where}]" if unknown.where else ""
    return CommandError(
        "spec-malformed",
        f"There is no key {unknown.key!r}{table} in a task's specification, which {file} gives.",
        remedy=f"Is {unknown.meant} meant?"
        if unknown.meant
        else f"The keys there are {', '.join(unknown.known)}.",
    )


@app.command("create")
@networked
def create(
    file: Annotated[Path, typer.Argument(help="The task's specification, TOML or JSON.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Base model: smollm2, tiny, a folder or a hub id. Fills in the specification's "
            "base_model and adapter."
        ),
    ] = None,
    adapter: Annotated[
        AdapterKind,
        typer.Option(
            help="What is trained and sent: ffa-lora B alone; lora A and B; rolora one of them by "
            "turns; fedsvd B, with a new A after each release; product sketches of B A."
        ),
    ] = AdapterKind.ffa_lora,
    rank: Annotated[int, number("Rank of the adapter.", low=1, high=1_024)] = 4,
    alpha: Annotated[int, number("Scale of the adapter: alpha / rank.", low=1, high=1 << 20)] = 8,
    targets: Annotated[
        str, typer.Option(help="Linear layers to adapt, by the last part of their names.")
    ] = "q_proj,v_proj",
    sketch: Annotated[
        int,
        number(
            "For product: columns of a layer's sketch; exact from the sum of the devices' "
            "ranks plus the task's.",
            low=0,
            high=1 << 14,
        ),
    ] = 0,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Create a task. A combination that cannot work, or protects nobody, is refused."""
    with Output(format) as out:
        spec = read_spec(file)
        if model is not None:
            spec |= _describe(model, adapter, rank, alpha, targets, sketch)
        try:
            answer = Operator.at(server, token_file).create_task(spec)
        except CommandError as error:
            raise _of_file(error, file, spec) from error
        for warning in answer.warnings:
            out.warn(warning)
        out.say(f"Task {answer.task} is open.")
        for cost in answer.planned:
            out.say(_planned(cost, answer.releases_max))
        out.say(
            f"Of a full cohort {answer.drop_outs_max} devices may vanish, and {answer.corrupt_max} "
            "may work with the aggregator."
        )
        out.result(msgspec.to_builtins(answer))


def _planned(cost: UnitCost, releases_max: int) -> str:
    from dp.accounting.figures import delta_shown, shown_up

    called = f"One {cost.unit}" + ("" if cost.protected else ", which the task does not protect,")
    if cost.first is None or cost.last is None:
        return f"{called} has no finite epsilon: too little noise hides it, or none."
    after = f"all {releases_max}"
    if 0 < cost.sums < releases_max:
        after += f", of which it is in at most {cost.sums}"
    return (
        f"{called} will have spent epsilon {shown_up(cost.first)} after the first release and "
        f"{shown_up(cost.last)} after {after}, at delta {delta_shown(cost.delta)}, "
        "unamplified."
    )


@app.command("list")
@networked
def list_(
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """All tasks, their state and releases."""
    with Output(format) as out:
        tasks = Operator.at(server, token_file).tasks()
        out.table(
            None,
            ["task", "state", "version"],
            [[row.task, row.state, row.version] for row in tasks],
        )
        out.result({"tasks": msgspec.to_builtins(tasks)})


@app.command("show")
@networked
def show(
    name: NameArgument,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """One task: its releases and what they cost."""
    with Output(format) as out:
        task = Operator.at(server, token_file).task(name)
        shown = msgspec.to_builtins(task)
        out.say(json.dumps(shown, indent=2))
        out.result(shown)


@app.command("pause")
@networked
def pause(
    name: NameArgument,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Form no further cohorts until the task is resumed."""
    with Output(format) as out:
        Operator.at(server, token_file).pause(name)
        out.say(f"Task {name} is paused.")
        out.result({"task": name, "state": "paused"})


@app.command("resume")
@networked
def resume(
    name: NameArgument,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Form cohorts again."""
    with Output(format) as out:
        Operator.at(server, token_file).resume(name)
        out.say(f"Task {name} is open.")
        out.result({"task": name, "state": "open"})


@app.command("export")
@networked
def export(
    name: NameArgument,
    out_file: Annotated[
        Path, typer.Option("--out", help="Safetensors file to write; with --peft a folder.")
    ],
    peft: Annotated[
        bool,
        typer.Option("--peft", help="Write an adapter that plain PeftModel.from_pretrained loads."),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="With --peft: folder of the base model; default: the task's by name."),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Write the task's current global vector to a file, or its adapter to a folder."""
    with Output(format) as out:
        from client_sdk.outputs import check_file, write_file
        from client_sdk.training.lora import check_peft_folder
        from secagg_cli.models.cache import hub_id
        from secagg_cli.operator.export import is_model_file, write_adapter

        if peft:
            check_peft_folder(out_file)
        else:
            check_file(out_file, is_model_file)
        content = Operator.at(server, token_file).model(name)
        if peft:
            config = write_adapter(out_file, server, name, content, model)
            kind, base = config["task_type"], config["base_model_name_or_path"]
            out.say(f"{out_file}: a peft adapter of type {kind}, for the base model {base}")
            if hub_id(base) is None:
                out.warn(
                    "The base model is named by its folder on this machine. Before you pass the "
                    "adapter on, set base_model_name_or_path in its adapter_config.json to the "
                    "base model's hub id."
                )
            out.result(
                {"task": name, "adapter": str(out_file), "task_type": kind, "base_model": base}
            )
            return
        write_file(out_file, content, is_model_file)
        out.say(f"{out_file}: {len(content):,} bytes")
        out.result({"task": name, "file": str(out_file), "size_bytes": len(content)})
