"""One run of the demo, from the model on disk to the verified ledger and the report."""

from __future__ import annotations

import json
import queue
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from secagg_cli.audit.command import audit_ledger
from secagg_cli.background import Background
from secagg_cli.demo.board import Board
from secagg_cli.demo.conductor import Conductor, RoundRecord
from secagg_cli.demo.devices import DemoDevice, Report
from secagg_cli.demo.evaluation import Evaluator, Measured
from secagg_cli.demo.folder import claim_folder
from secagg_cli.demo.kills import KillPlan, plan_kills
from secagg_cli.demo.memory import MemoryMeter
from secagg_cli.demo.service import Service
from secagg_cli.demo.spec import TASK, DemoOptions, device_limit, task_spec
from secagg_cli.demo.summary import print_round, print_summary, round_json
from secagg_cli.network import go_straight_to
from secagg_cli.operator.enroll import enrol, partner_key
from secagg_cli.output import CommandError, Output
from secagg_cli.processes import Children

if TYPE_CHECKING:
    from dp.contracts import TaskSpec
    from dp.ledger.findings import AuditResult
    from secagg.manifest import CohortRules, Manifest
    from secagg_cli.models.corpus import ClientData, Pair


def run_demo(options: DemoOptions, out: Output) -> dict[str, Any]:
    """Run everything; returns the keys of ``--format json``.

    No process outlives this call, however it ends.
    """
    from secagg_cli.models.corpus import example_pair, load_clients

    start = time.monotonic()
    plan, message = plan_kills(options.clients, options.drop)
    if message:
        out.warn(message)
    clients = load_clients(options.clients)
    heldout = [pair for client in clients for pair in client.heldout]
    example = example_pair(heldout)
    prompt = example[0]
    model_folder = prepare_model(options.model, out)
    folder = claim_folder(options.folder)
    with Children() as children, MemoryMeter(children.pids) as memory:
        go_straight_to("127.0.0.1")
        service = Service(folder / "server", children)
        service.launch()
        evaluator = Evaluator(model_folder, heldout)
        service.wait()
        out.say(f"aggregator: {service.url}, a process of its own, SQLite in {service.data_dir}")
        out.say(
            f"algorithm: {options.algorithm}, LoRA form {options.form}, privacy {options.privacy}"
        )
        spec = task_spec(options, plan, evaluator.model)
        devices, reports = _enrol(folder, plan, spec, model_folder, clients, service, children, out)
        if spec.period > 1:
            out.say(f"a device's examples serve in {spec.period} parts, one a round in turn")
        before = Background(lambda: evaluator.measure(prompt))
        out.say(
            f"{options.rounds} round(s); in each, {plan.drops} device(s) killed before the upload"
            + (" and in every other round one after it, which resumes" if plan.resume else "")
        )
        with (
            (folder / "events.log").open("w", encoding="utf-8", buffering=1) as log,
            Board(out.errors, [client.name for client in clients], options.rounds) as board,
        ):
            conductor = Conductor(
                task=TASK,
                service=service,
                devices=devices,
                reports=reports,
                plan=plan,
                board=board,
                on_round=lambda record: print_round(out, record),
                say=out.say,
                log=log,
            )
            records = conductor.run(options.rounds)
            loss_before = before.result()
            audit, files = _audit(folder, service)
            model_file = service.operator().model(TASK)
            adapter = _write_adapter(folder / "adapter", audit, model_file, model_folder)
            out.say("measuring the held-out loss with the adapter ...")
            after = Background(lambda: evaluator.measure_adapter(adapter, prompt))
            conductor.end_devices()
        service.stop()
        loss_after = after.result()
    result = _result(options, records, audit, loss_before, loss_after, example)
    result |= {"adapter": str(adapter), **files}
    result["report"] = str(_report(folder / "report.html", audit, result))
    result["seconds"] = round(time.monotonic() - start, 1)
    result["peak_pss_bytes"] = memory.peak_bytes
    print_summary(out, result)
    return result


def prepare_model(name: str, out: Output) -> Path:
    """The model's folder; fetching or making it shows its progress."""
    from secagg_cli.models.cache import ensure_model

    with out.progress() as progress:
        bars: dict[str, Any] = {}

        def show(what: str, share: float | None) -> None:
            if what not in bars:
                out.say(f"{what} ...")
                bars[what] = progress.add_task(what, total=None)
            if share is not None:
                progress.update(bars[what], completed=round(100 * share), total=100)

        return ensure_model(name, progress=show)


def _enrol(
    folder: Path,
    plan: KillPlan,
    spec: TaskSpec,
    model_folder: Path,
    clients: Sequence[ClientData],
    service: Service,
    children: Children,
    out: Output,
) -> tuple[list[DemoDevice], queue.SimpleQueue[Report]]:
    """Operator: partner and task. Partner: one bundle a device. Devices: data in their folders."""
    operator = service.operator()
    key_file = folder / "partner" / "partner.key"
    operator.add_partner("demo-partner", partner_key(key_file))
    answer = operator.create_task(spec)
    for warning in answer.warnings:
        out.warn(warning)
    bundles = enrol(service.url, key_file, folder / "partner" / "bundles", len(clients))
    reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
    devices = []
    for number, (client, bundle) in enumerate(zip(clients, bundles, strict=True)):
        own = folder / "devices" / f"{number + 1:02}"
        own.mkdir(parents=True, mode=0o700)
        bundle.rename(own / "bundle.json")
        write_jsonl(own / "data.jsonl", client.train)
        joining = ["--task", TASK, "--model", str(model_folder), *_device_policy(spec, plan)]
        device = DemoDevice(number, client.name, own, joining, children, reports)
        devices.append(device)
        out.say(f"device {number + 1}: {client.name}, {len(client.train)} pairs")
    return devices, reports


def _device_policy(spec: TaskSpec, plan: KillPlan) -> list[str]:
    """What the devices demand: the promised epsilon, the promised cohort, and no less."""
    policy = ["--min-cohort", str(plan.survivors_min), "--min-corrupt", "0"]
    if spec.budget.max_epsilon is None:
        return [*policy, "--without-noise", "--repeat-without-noise"]
    limit = str(device_limit(spec, spec.budget.max_epsilon))
    return [*policy, "--max-epsilon", limit, "--max-total-epsilon", limit]


def _audit(folder: Path, service: Service) -> tuple[AuditResult, dict[str, Any]]:
    """Copy the ledger out, put its key beside it, and verify both as an auditor would."""
    shutil.copytree(service.ledger_folder, folder / "ledger")
    key_file = folder / "verifier.key"
    key_file.write_text(service.verifier + "\n", "utf-8")
    audit = audit_ledger(str(folder / "ledger"), str(key_file))
    return audit, {
        "ledger": str(folder / "ledger"),
        "verifier_key": str(key_file),
        "ledger_verified": audit.verified,
        "ledger_problems": [problem.message for problem in audit.problems],
    }


def _manifest(audit: AuditResult) -> Manifest:
    for task in audit.tasks:
        if task.manifest.task == TASK:
            return task.manifest
    raise CommandError(
        "ledger-incomplete",
        f"The ledger does not know the task {TASK!r}.",
        remedy="See the aggregator's log in the demo's folder.",
    )


def _write_adapter(folder: Path, audit: AuditResult, model_file: bytes, base: Path) -> Path:
    from client_sdk.training.lora import write_peft_folder
    from secagg_cli.operator.export import read_vector

    vector = read_vector(model_file)
    return write_peft_folder(folder, _manifest(audit), vector, base_name=str(base))


def _result(
    options: DemoOptions,
    records: Sequence[RoundRecord],
    audit: AuditResult,
    before: Measured,
    after: Measured,
    example: Pair,
) -> dict[str, Any]:
    from dp.accounting.statements import headline

    task = next(task for task in audit.tasks if task.manifest.task == TASK)
    return {
        "rounds": len(records),
        "clients": options.clients,
        "dropped": sum(record.release.dropped for record in records),
        "per_round": [round_json(record) for record in records],
        "loss_before": round(before.loss, 4),
        "loss_after": round(after.loss, 4),
        "epsilon": headline(task.lines),
        "delta": task.manifest.budget.delta,
        "privacy": [msgspec.to_builtins(line) for line in task.lines],
        "notes": _notes(task.manifest.cohort),
        "answer": {
            "prompt": example[0],
            "corpus": example[1],
            "before": before.answer,
            "after": after.answer,
        },
        "options": {name: value for name, value in asdict(options).items() if name != "folder"},
    }


def _notes(rules: CohortRules) -> list[str]:
    """What the demo assumes about its devices, for the report."""
    return [
        f"Corrupt devices in the threshold: {rules.corrupt_max}. A cohort of {rules.size_min} that "
        f"may lose {rules.size_min - rules.survivors_min} has no room for more. A device's default "
        "policy refuses that; the demo's devices admit it by their own word (--min-corrupt 0), "
        "since all of them are this demo's. A real task has larger cohorts and assumes some.",
        f"The noise of {rules.silent_max} surviving participant(s) is not counted in any epsilon: "
        "a participant knows its own share. The noise that counts is that of "
        f"{rules.survivors_min - rules.silent_max} devices."
        if rules.silent_max
        else "No noise is added in the sum.",
    ]


def _report(path: Path, audit: AuditResult, result: dict[str, Any]) -> Path:
    from dp.report import report_data
    from secagg_cli.audit.report import write_report
    from secagg_cli.audit.software import software

    write_report(path, report_data(audit, software()), run=result)
    return path


def write_jsonl(path: Path, pairs: Sequence[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for prompt, answer in pairs:
            file.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
