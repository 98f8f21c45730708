"""``secagg join``: one device from the command line.

What was under way when the process last ended is finished first, from the journal; torch and the
model are loaded only when there is something to train. No model is fetched because a manifest names
it: the command line names a folder (``--model``) or the names that may be used (``--allow-model``).
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape

from secagg_cli.audit.ledger_files import witness_keys
from secagg_cli.exit_codes import EXIT_INCOMPLETE
from secagg_cli.join.sentences import sentence
from secagg_cli.join.stopping import stop_on_signals
from secagg_cli.join.trainer import LazyTrainer
from secagg_cli.join.training_data import left_out, listed, read_rows, some, used_of
from secagg_cli.network import transport_settings
from secagg_cli.operator.enroll import parse_partner_key
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
    from client_sdk import Event, PeriodLimits, PolicyRefusal

_PROGRESS_S = 10.0  # between two lines about it
_PERIOD_OPTIONS = {  # by reason
    "bytes-of-period": "--period-mb",
    "training-of-period": "--period-minutes",
    "epsilon-of-period": "--period-epsilon",
}
_OPTIONS = {  # of what a remedy names, where the command line has one
    "min_cohort": "--min-cohort",
    "min_corrupt": "--min-corrupt",
    "max_epsilon": "--max-epsilon",
    "max_total_epsilon": "--max-total-epsilon",
    "units": "--unit",
    "require": "--without-noise",
    "repeat_without_noise": "--repeat-without-noise",
    "partner_keys": "--trust-partner",
    "data_id": "--data-id",
    "max_download_bytes": "--max-download-mb",
    "max_memory_bytes": "--max-memory-mb",
}


class ProtectedUnit(enum.StrEnum):
    example = "example"
    device = "device"
    person = "person"
    document = "document"


def join(
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
    model: Annotated[
        str | None,
        typer.Option(
            help="The base model to train, whatever the task calls it: a folder, smollm2, tiny or "
            "a hub id. Its weights must be the task's."
        ),
    ] = None,
    allow_model: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that a task may give its base model; it is fetched by that name. "
            "Repeatable. Without this and --model, tasks that train a model are refused."
        ),
    ] = None,
    state: StateOption = None,
    data_id: DataIdOption = None,
    keyring: Annotated[
        bool,
        typer.Option(
            "--keyring", help="Keep the key of a new state folder in the system's keyring."
        ),
    ] = False,
    rounds: Annotated[int | None, number("Be in so many releases; default: all.", low=1)] = None,
    min_cohort: Annotated[int, number("Refuse sums of fewer devices.", low=2, high=10_000)] = 10,
    min_corrupt: Annotated[
        int | None,
        number(
            "Refuse tasks that assume fewer devices that work with the aggregator; default: a "
            "tenth of the cohort, at least 1. 0: admit all.",
            low=0,
        ),
    ] = None,
    max_epsilon: Annotated[
        float, number("Refuse tasks that may cost more, unamplified.", low=0)
    ] = 8.0,
    max_total_epsilon: Annotated[
        float, number("Refuse to spend more over all tasks.", low=0)
    ] = 16.0,
    unit: Annotated[
        list[ProtectedUnit] | None,
        typer.Option(
            help="Whose cost the limits are for in every task with noise; repeatable. person or "
            "document: all examples of this device that name one under unit; tasks that do not "
            "protect it as one cost it too much. Default: example."
        ),
    ] = None,
    without_noise: Annotated[
        bool, typer.Option("--without-noise", help="Also join tasks that add no noise at all.")
    ] = False,
    repeat_without_noise: Annotated[
        bool,
        typer.Option(
            "--repeat-without-noise",
            help="Where a task adds no noise to the sum: give a second vector from one model too. "
            "Two sums over cohorts that overlap may then show what this device sent.",
        ),
    ] = False,
    trust_partner: Annotated[
        list[str] | None,
        typer.Option(
            help="Key of another partner, hex, whose devices may be in a cohort with this one; "
            "repeatable. Without it only devices of the bundle's own partner may.",
        ),
    ] = None,
    max_download_mb: Annotated[
        int, number("Refuse tasks whose model file may be larger.", low=1)
    ] = 512,
    max_memory_mb: Annotated[
        int | None, number("Refuse tasks whose training may take more memory.", low=1)
    ] = None,
    period_days: Annotated[
        int, number("What the limits per period count: so many days back.", low=1, high=366)
    ] = 30,
    period_mb: Annotated[
        int | None, number("Send and receive at most so much in a period.", low=1)
    ] = None,
    period_minutes: Annotated[
        float | None, number("Train for at most so long in a period.", above=0)
    ] = None,
    period_epsilon: Annotated[
        float | None, number("Spend at most so much in a period, over all tasks.", above=0)
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option(
            help="Verifier key of a witness of the ledger, or a file with it; repeatable."
        ),
    ] = None,
    min_witnesses: Annotated[
        int | None,
        number("Witnesses that must have cosigned every checkpoint; default: all.", low=1),
    ] = None,
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
        allowed = frozenset(allow_model or ())

        def progress(what: str, share: float | None) -> None:
            if share is None or share == 0:
                out.errors.print(escape(what), soft_wrap=True)

        rows = read_rows(data)
        if told := left_out(rows):
            out.warn(told)
        trainer = LazyTrainer(rows, model, allowed, progress)
        if preload:
            trainer.preload()
        from client_sdk import Client, PrivacyPolicy
        from client_sdk.enrolment import load_bundle
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

        others = frozenset(map(parse_partner_key, trust_partner or ()))
        own = {load_bundle(bundle).certificate.partner_key} if others else set[bytes]()
        policy = PrivacyPolicy(
            min_cohort=min_cohort,
            min_corrupt=min_corrupt,
            max_epsilon=max_epsilon,
            max_total_epsilon=max_total_epsilon,
            units=frozenset(each.value for each in unit) if unit else PrivacyPolicy().units,
            require=None if without_noise else PrivacyPolicy().require,
            repeat_without_noise=repeat_without_noise,
            partner_keys=(others | own) or None,
            allowed_models=allowed if allowed or model is None else None,
            max_download_bytes=max_download_mb << 20,
            max_memory_bytes=None if max_memory_mb is None else max_memory_mb << 20,
            per_period=_per_period(period_days, period_mb, period_minutes, period_epsilon),
            witnesses=frozenset(witness_keys(witness or ())),
            min_witnesses=min_witnesses,
        )
        client = Client.from_bundle(
            bundle,
            policy=policy,
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
            out.refuse(_in_options(result.refusals[-1]), done)
        out.result(done)
        if result.left_out or result.failed or result.failures or used == 0:
            raise typer.Exit(EXIT_INCOMPLETE)


def _stopped(*, pending: bool) -> CommandError:
    again = "A cohort counts on this device: run again soon, and its part is finished first."
    return CommandError("interrupted", "Stopped.", remedy=again if pending else None)


def _per_period(
    days: int, mb: int | None, minutes: float | None, epsilon: float | None
) -> PeriodLimits | None:
    """None where nothing is limited."""
    from client_sdk import PeriodLimits

    if mb is None and minutes is None and epsilon is None:
        return None
    return PeriodLimits(
        period_s=days * 86_400.0,
        max_bytes=None if mb is None else mb << 20,
        max_training_s=None if minutes is None else minutes * 60.0,
        max_epsilon=epsilon,
    )


def _in_options(refusal: PolicyRefusal) -> PolicyRefusal | CommandError:
    """A refusal whose way out is an option of this command."""
    if refusal.reason != "model-not-allowed":
        named = re.findall(r"\w+", refusal.remedy or "")
        options = [option for field, option in _OPTIONS.items() if field in named]
        if refusal.reason in _PERIOD_OPTIONS:
            options = [_PERIOD_OPTIONS[refusal.reason]]
        if options:
            refusal.remedy = f"{refusal.remedy} Here that is {', '.join(options)}."
        return refusal
    return CommandError(
        refusal.reason,
        "The task names a base model that this command line does not allow.",
        expected=refusal.expected,
        found=refusal.found,
        remedy="Give your own copy with --model, or allow this name with --allow-model.",
    )
