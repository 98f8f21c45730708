"""``secagg task``: an operator's work with tasks."""

from __future__ import annotations

import enum
import json
import tomllib
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
from secagg_cli.operator.config import written
from secagg_cli.operator.figures import say_figures
from secagg_cli.output import CommandError, Format, FormatOption, Output
from secagg_cli.ranges import number

if TYPE_CHECKING:
    from aggregator.views import TaskCreated, TaskPlanned

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


def _of_file(error: CommandError, file: Path) -> CommandError:
    """The refusal of a body that does not parse, with the file that has it."""
    if error.reason != "body-malformed":
        return error
    return CommandError(
        "spec-malformed",
        f"{file} is not a task's specification. {error.message}",
        remedy=error.remedy
        or "Correct what is named; `secagg task template` writes a file with every field.",
    )


@app.command("template")
def template(
    algorithm: Annotated[
        str, typer.Option(help="Whose fields it has; an unknown one lists them.")
    ] = "fedsgd",
    out_file: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: standard output.")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """A TOML file with every field of a task, its unit, range, default and meaning."""
    with Output(format) as out:
        from dp.contracts.fields import template as task_template

        text = task_template(algorithm)
        written(out, text, out_file, "fill in what is Required, and secagg task create {file}")


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
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what the task would be, and create nothing."),
    ] = False,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Create a task. A combination that cannot work, or protects nobody, is refused."""
    with Output(format) as out:
        spec = read_spec(file)
        if model is not None:
            spec |= _describe(model, adapter, rank, alpha, targets, sketch)
        operator = Operator.at(server, token_file)
        answer: TaskCreated | TaskPlanned
        try:
            answer = operator.plan_task(spec) if dry_run else operator.create_task(spec)
        except CommandError as error:
            raise _of_file(error, file) from error
        out.say(
            f"Task {answer.task} would be as follows; nothing was created."
            if dry_run
            else f"Task {answer.task} is open."
        )
        say_figures(out, answer)
        out.result({**msgspec.to_builtins(answer), "created": not dry_run})


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
            [
                [row.task, row.state + (", closed" if row.closed_at else ""), row.version]
                for row in tasks
            ],
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


@app.command("close")
@networked
def close(
    name: NameArgument,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """End a task for good: no further cohort forms. A cohort that is open goes on to its end."""
    with Output(format) as out:
        task = Operator.at(server, token_file).close(name)
        if task.state == "finished":
            out.say(f"Task {name} is closed; its devices hear that it is over.")
        else:
            out.say(
                f"Task {name} forms no further cohort. Its open one goes on to its end, and then "
                f"the task is over; secagg cohort abort {name} ends it now."
            )
        out.result({"task": name, "state": task.state, "closed_at": task.closed_at})


@app.command("delete")
@networked
def delete(
    name: NameArgument,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Close a task that was never charged, and hide it. The ledger keeps its record, so its name
    is not free again."""
    with Output(format) as out:
        Operator.at(server, token_file).delete(name)
        out.say(
            f"Task {name} is deleted. The ledger has its record: choose another name next time."
        )
        out.result({"task": name, "deleted": True})


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
