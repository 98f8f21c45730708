"""``secagg audit``: verify a ledger offline or over HTTP, and render it for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from secagg_cli.audit.attack import attack
from secagg_cli.audit.ledger_files import (
    FolderReader,
    has_form_of_key,
    key_refused,
    ledger_reader,
    read_checkpoint,
    read_key,
    witness_keys,
)
from secagg_cli.exit_codes import EXIT_REFUSED
from secagg_cli.network import networked
from secagg_cli.output import Format, FormatOption, Output, UnusableArgument, visible
from secagg_cli.ranges import number
from secagg_cli.state.account import totals_json

if TYPE_CHECKING:
    from dp.ledger.findings import AuditedTask, AuditResult

app = typer.Typer(no_args_is_help=True, help="Verify what an aggregator released.")
app.command("attack")(attack)
LedgerArgument = Annotated[str, typer.Argument(help="Ledger folder, or the URL of one.")]
KeyOption = Annotated[
    str,
    typer.Option(
        help="The ledger's verifier key, or a file with it. Get it from someone you trust: a key "
        "found beside a ledger proves only that the two fit together."
    ),
]

WitnessOption = Annotated[
    list[str] | None,
    typer.Option(
        "--witness", help="A witness's verifier key, or a file with it; give one for each witness."
    ),
]
WitnessesMinOption = Annotated[
    int | None, number("How many of them must have cosigned.", "--witnesses-min", low=1)
]
OlderOption = Annotated[
    list[Path] | None,
    typer.Option("--older", help="A checkpoint of this ledger that you kept: it must be a prefix."),
]


@app.command("verify")
@networked
def verify(
    ledger: LedgerArgument,
    key: KeyOption,
    witness: WitnessOption = None,
    witnesses_min: WitnessesMinOption = None,
    older: OlderOption = None,
    require_dp: Annotated[
        bool,
        typer.Option(
            "--require-dp", help="Refuse a ledger with a task that makes no statement of privacy."
        ),
    ] = False,
    max_epsilon: Annotated[
        float | None,
        number(
            "Refuse a ledger whose tasks together may cost more, unamplified, to a unit that "
            "one of them protects.",
            low=0,
        ),
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Check every signature, hash, form and epsilon of a ledger.

    Exit code 0: verified. 1: something in the ledger is wrong, or not as demanded. 2: an argument
    cannot be used (no such folder or key). 3: the ledger cannot be read, so nothing is known of it.
    """
    with Output(format) as out:
        result = audit_ledger(
            ledger, key, witnesses=witness or (), witnesses_min=witnesses_min, older=older or ()
        )
        _say_verdict(out, result)
        broken = _broken(result, require_dp=require_dp, max_epsilon=max_epsilon)
        for demand in broken:
            out.say(f"refused: {demand['message']} [{demand['reason']}]", style="red")
        out.result({**verdict(result), "broken": broken})
        if broken or not result.verified:
            raise typer.Exit(EXIT_REFUSED)


@app.command("report")
@networked
def report(
    ledger: LedgerArgument,
    key: KeyOption,
    out_file: Annotated[Path, typer.Option("--out", help="File to write, .html or .json.")],
    witness: WitnessOption = None,
    witnesses_min: WitnessesMinOption = None,
    older: OlderOption = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluation",
            help="What `secagg task show NAME --format json` prints of a task that evaluated: its "
            "losses are drawn, as the operator's word. Give one for each task; for a page.",
        ),
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Verify a ledger and write its report: what was released and what it cost."""
    with Output(format) as out:
        from client_sdk.outputs import check_file
        from dp.report import report_data
        from secagg_cli.audit.evaluations import read_evaluations
        from secagg_cli.audit.report import demand_form, is_report, write_report
        from secagg_cli.audit.software import software

        demand_form(out_file)
        check_file(out_file, is_report)
        result = audit_ledger(
            ledger, key, witnesses=witness or (), witnesses_min=witnesses_min, older=older or ()
        )
        data = report_data(result, software())
        write_report(out_file, data, evaluations=read_evaluations(evaluation or (), data))
        _say_verdict(out, result)
        out.say(f"{out_file} written")
        out.result({**verdict(result), "report": str(out_file), "data": msgspec.to_builtins(data)})
        if not result.verified:
            raise typer.Exit(EXIT_REFUSED)


def _say_verdict(out: Output, result: AuditResult) -> None:
    from dp.report.totals import together

    for problem in result.problems:
        where = "" if problem.leaf is None else f" (record {problem.leaf})"
        name = "" if f"[{problem.reason}]" in problem.message else f" [{problem.reason}]"
        out.say(f"problem{where}: {problem.message}{name}", style="red")
    for leaf, rotation in result.rotations:
        out.say(f"another key signs this ledger since record {leaf}: {rotation.new_verifier}")
    for finding in result.unchecked:
        where = "" if finding.leaf is None else f" (record {finding.leaf})"
        out.say(f"not checked{where}: {finding.message} [{finding.reason}]", style="yellow")
    out.say(f"{'Verified' if result.verified else 'NOT verified'}: {_counted(result)}")
    for task in result.tasks:
        for line in _statements(task):
            out.say(line)
    for total in result.totals:
        out.say(together(total))
    for name, text in _warnings(result):
        out.warn(f"task {name!r}: {text}")


def _warnings(result: AuditResult) -> list[tuple[str, str]]:
    """Of each task, what no rule of its time refused and a reader should know."""
    from dp.contracts.units import delta_warnings

    return [
        (task.manifest.task, text)
        for task in result.tasks
        if task.admissible
        for text in delta_warnings(task.manifest)
    ]


def _broken(
    result: AuditResult, *, require_dp: bool, max_epsilon: float | None
) -> list[dict[str, str]]:
    """Demands of the auditor that the ledger does not meet, each with its reason."""
    from dp.accounting.figures import delta_shown, limit_shown, shown_up

    found = []
    bare = [task.manifest.task for task in result.tasks if not task.lines]
    if require_dp and (bare or not result.tasks):
        what = f"no differential privacy in {', '.join(map(repr, bare))}"
        found.append(
            {
                "reason": "no-differential-privacy",
                "message": f"--require-dp: {what if bare else 'the ledger has no task'}.",
            }
        )
    if max_epsilon is not None:
        stated = {statement.unit for task in result.tasks for statement in task.lines}
        of = [total for total in result.totals if total.unit in stated] or list(result.totals)
        found += [
            {
                "reason": "epsilon-too-large",
                "message": f"--max-epsilon: at most {limit_shown(max_epsilon)}; all tasks together "
                f"cost one {total.unit} {shown_up(total.epsilon)} at delta "
                f"{delta_shown(total.delta)}.",
            }
            for total in of
            if not total.epsilon <= max_epsilon
        ]
    return found


def _counted(result: AuditResult) -> str:
    """What the records hold, or that none was read."""
    if not result.root:
        return "nothing of the ledger was read"
    if result.records_read < result.tree_size:
        return f"none of the {result.tree_size} records was read"
    return (
        f"{result.tree_size} records, {result.releases} released, "
        f"{result.charged - result.releases} charged; {_cost(result)}"
    )


def _cost(result: AuditResult) -> str:
    """All tasks together: the largest total of a unit about which a task makes a statement."""
    from dp.accounting.figures import delta_shown, shown_up

    if not result.tasks:
        return "no task"
    if not any(task.admissible for task in result.tasks):
        return "every task is refused"
    if result.epsilon is None:
        return "no differential privacy"
    stated = {statement.unit for task in result.tasks for statement in task.lines}
    of = [
        total for total in result.totals if total.unit in stated and total.epsilon == result.epsilon
    ]
    if not of:
        return "nothing spent"
    return (
        f"all tasks together: epsilon {shown_up(result.epsilon)} at delta "
        f"{delta_shown(of[0].delta)} for one {of[0].unit}"
    )


def _statements(task: AuditedTask) -> Iterator[str]:
    """What a task says of each unit, or that it says nothing."""
    from dp.accounting.figures import delta_shown, shown_up
    from dp.report.words import a, protected
    from dp.schedule import participations, period_of

    name = f"task {task.manifest.task!r}"
    if not task.admissible:
        yield f"{name}: refused, and not accounted"
    elif not task.lines:
        yield f"{name}: no differential privacy"
    period, charged = period_of(task.manifest), len(task.releases)
    if task.lines and period > 1:
        yield (
            f"{name}: {a(protected(task.manifest))} is in at most "
            f"{participations(charged, period)} of {charged} sums (period {period})"
        )
    for statement in task.lines:
        yield (
            f"{name}, one {statement.unit}: epsilon {shown_up(statement.epsilon)} at delta "
            f"{delta_shown(statement.delta)}, "
            f"{'amplified' if statement.amplified else 'not amplified'}, "
            f"{statement.adjacency}, against {statement.adversary}"
        )


def audit_ledger(
    ledger: str,
    key: str,
    *,
    witnesses: Sequence[str] = (),
    witnesses_min: int | None = None,
    older: Sequence[Path] = (),
) -> AuditResult:
    """The whole verdict, with every task and release.

    Args:
        witnesses: verifier keys of witnesses, or files with them.
        witnesses_min: how many of them must have cosigned; None: all.
        older: files with checkpoints of this ledger that were kept.

    Raises:
        UnusableArgument: ``ledger-missing``, ``ledger-url``, ``checkpoint-unreadable``,
            ``key-missing``, ``verifier-key`` or ``witness-policy``.
        ReadError: a file cannot be had. What is wrong *in* the ledger is in the result.
    """
    from dp.errors import LedgerError
    from dp.ledger.findings import Finding
    from dp.ledger.verification import verify_ledger
    from dp.tlog.notes import parse_verifier
    from dp.tlog.witness import WitnessPolicy

    policy, read, verifier = None, ledger_reader(ledger), read_key(key)
    keys = witness_keys(witnesses)
    try:
        if not has_form_of_key(verifier):
            parse_verifier(verifier)
    except LedgerError as error:
        raise key_refused("--key", key, error) from error
    try:
        if keys or witnesses_min is not None:
            policy = WitnessPolicy.of(keys, witnesses_min)
    except LedgerError as error:
        raise UnusableArgument(error.reason, error.message, remedy=error.remedy) from error
    kept = [read_checkpoint(file) for file in older]
    result = verify_ledger(read, verifier, older=kept, witnesses=policy)
    unread = read.unread() if isinstance(read, FolderReader) and result.root else []
    if not unread:
        return result
    finding = Finding(
        reason="files-unread",
        message=f"{len(unread)} files of the folder, such as {visible(unread[0])[:100]}: "
        + (
            "they are not part of what the checkpoint signs."
            if result.verified
            else "the checkpoint does not sign them, or a problem ended the check before them."
        ),
    )
    return msgspec.structs.replace(result, unchecked=(*result.unchecked, finding))


def verdict(result: AuditResult) -> dict[str, Any]:
    """The keys of ``secagg audit verify --format json``; what is infinite is null there.

    So is ``epsilon`` where no task makes a statement: then ``statements`` is empty.
    """
    return {
        "verified": result.verified,
        "tree_size": result.tree_size,
        "records_read": result.records_read,
        "releases": result.releases,
        "charged": result.charged,
        "epsilon": result.epsilon,
        "statements": [
            {"task": task.manifest.task, **msgspec.to_builtins(statement)}
            for task in result.tasks
            for statement in task.lines
        ],
        "without_privacy": [task.manifest.task for task in result.tasks if not task.lines],
        "totals": totals_json(result.totals),
        "warnings": [{"task": name, "text": text} for name, text in _warnings(result)],
        "problems": [msgspec.to_builtins(problem) for problem in result.problems],
        "unchecked": [msgspec.to_builtins(finding) for finding in result.unchecked],
        "root": result.root,
        "origin": result.origin,
        "witnesses": result.witnesses,
        "rotations": [
            {"leaf": leaf, "verifier": rotation.new_verifier} for leaf, rotation in result.rotations
        ],
    }
