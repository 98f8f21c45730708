"""``secagg join``: one device from the command line.

What was under way when the process last ended is finished first, from the journal; torch and the
model are loaded only when there is something to train. No model is fetched because a manifest names
it: the command line names a folder (``--model``) or the names that may be used (``--allow-model``).
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape

from secagg_cli.exit_codes import EXIT_INCOMPLETE
from secagg_cli.join.policy import PolicyOptions, in_options, with_policy
from secagg_cli.join.sentences import sentence
from secagg_cli.join.stopping import stop_on_signals
from secagg_cli.join.trainer import LazyTrainer
from secagg_cli.join.training_data import left_out, listed, read_rows, some, used_of
from secagg_cli.network import transport_settings
from secagg_cli.output import CommandError, Format, FormatOption, Output
from secagg_cli.processes import die_with_parent
from secagg_cli.ranges import number
from secagg_cli.state.account import (
    BundleArgument,
    DataIdOption,
    StateOption,
    say_totals,
    totals_json,
)

if TYPE_CHECKING:
    from client_sdk import Event

_PROGRESS_S = 10.0  # between two lines about it


@with_policy
def join(
    *,
    bundle: BundleArgument,
    data: Annotated[
        Path,
        typer.Option(
            help="JSON lines or a JSON array, in UTF-8; stays here. Each example has prompt and "
            "answer or completion, messages (OpenAI), conversations (ShareGPT), instruction and "
            "output (Alpaca), or for a classifier text and label, a whole number from 0 on; "
            "beside it, under unit, the person or document that it is of."
        ),
    ],
    task: Annotated[str, typer.Option(help="The task to take part in.")],
    options: PolicyOptions,
    state: StateOption = None,
    data_id: DataIdOption = None,
    keyring: Annotated[
        bool,
        typer.Option(
            "--keyring", help="Keep the key of a new state folder in the system's keyring."
        ),
    ] = False,
    rounds: Annotated[int | None, number("Be in so many releases; default: all.", low=1)] = None,
    preload: Annotated[
        bool,
        typer.Option("--preload", help="Load --model at once, before it is known to be needed."),
    ] = False,
    events: Annotated[
        bool, typer.Option("--events", help="Print every event as a JSON line.")
    ] = False,
    hold: Annotated[
        str | None,
        typer.Option(
            metavar="EVENT[,EVENT]",
            help="For demonstrations: after printing such an event, wait for a line on standard "
            "input. Implies --events.",
        ),
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Take part in a task with the data in a file; the data never leaves this machine.

    Exit code 4: it took part, but examples counted as zero, none could be used, or training failed
    and noise was given.
    """
    with Output(format) as out:
        die_with_parent()
        held = frozenset(hold.split(",")) if hold else frozenset()
        if (events or held) and format is Format.json:
            raise CommandError(
                "events-format",
                "--events prints many JSON objects, --format json exactly one.",
                remedy="Use one of the two.",
            )

        def progress(what: str, share: float | None) -> None:
            if share is None or share == 0:
                out.errors.print(escape(what), soft_wrap=True)

        rows = read_rows(data)
        if told := left_out(rows):
            out.warn(told)
        allowed = frozenset(options.allow_model or ())
        trainer = LazyTrainer(rows, options.model, allowed, progress)
        if preload:
            trainer.preload()
        from client_sdk import Client
        from client_sdk.training.dataset import in_file, reasons_of

        progress_s = -math.inf

        def on_event(event: Event) -> None:
            nonlocal progress_s
            if events or held:
                sys.stdout.write(event.to_json() + "\n")
                sys.stdout.flush()
            elif event.kind != "progress" or time.monotonic() - progress_s >= _PROGRESS_S:
                if event.kind == "progress":
                    progress_s = time.monotonic()
                out.say(sentence(event, client.state_dir))
            if event.kind in held and not sys.stdin.readline():
                os._exit(1)  # end of file: whoever conducted this device is gone

        client = Client.from_bundle(
            bundle,
            policy=options.policy(bundle),
            state_dir=state,
            keyring=keyring,
            data_id=data_id,
            on_event=on_event,
            transport=transport_settings(),
        )
        # A held device waits for a line in the thread that would look at the stop.
        stopping = contextlib.nullcontext() if held else stop_on_signals()
        with stopping as stop:
            result = client.run(trainer, task=task, rounds=rounds, stop=stop)
        if not events and not held:
            say_totals(out, result.totals)
        if failed := len(result.failures) or len(result.failed):
            last = result.failures[-1] if result.failures else result.failed[-1]
            out.warn(
                f"{failed} times this device gave nothing of its examples, since training failed: "
                f"{last}"
            )
        dropped = tuple(in_file(rows, one) for one in result.left_out)
        cut = tuple(in_file(rows, one) for one in result.cut)
        if dropped:
            out.warn(f"{len(dropped)} of {len(rows)} examples counted as zero. {some(dropped)}")
        if cut:
            out.warn(f"{len(cut)} of {len(rows)} examples counted, but not whole. {some(cut)}")
        if result.owned:
            out.warn(
                f"{result.owned} examples name whose they are, and the task protects each example "
                "by itself: whoever has several is protected less. --unit person refuses such "
                "tasks."
            )
        used = used_of(rows, result)
        done = {
            "task": task,
            "releases": [release.release for release in result.releases],
            "aborted": result.aborted,
            "epsilon": result.epsilon,
            "finished": result.finished,
            "totals": totals_json(result.totals),
            "examples": len(rows),
            "used": used,
            "left_out": len(dropped),
            "left_out_reasons": reasons_of(dropped),
            "left_out_examples": listed(rows, dropped),
            "cut": len(cut),
            "cut_examples": listed(rows, cut),
            "owned": result.owned,
            "failed": list(result.failed),
            "failures": [msgspec.to_builtins(failure) for failure in result.failures],
        }
        if result.stopped:
            out.refuse(_stopped(pending=result.pending), done)
        if result.refusals:
            out.refuse(in_options(result.refusals[-1]), done)
        out.result(done)
        if result.left_out or result.failed or result.failures or used == 0:
            raise typer.Exit(EXIT_INCOMPLETE)


def _stopped(*, pending: bool) -> CommandError:
    again = "A cohort counts on this device: run again soon, and its part is finished first."
    return CommandError("interrupted", "Stopped.", remedy=again if pending else None)
