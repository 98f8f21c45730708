"""Sentences of verdict and page, over ledgers of every kind: each stands only where it is so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from dp.contracts import BudgetSpec
from dp.contracts.spec import TrainingSpec
from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.records import membership_record, policy_record
from dp.ledger.verification import verify_ledger
from dp.report import ReportData, report_data
from dp.schedule import period_of
from secagg_cli.audit.report import render
from secagg_cli.main import app
from tests.kits.report_words import words
from tests.kits.rotations import key_rotation_record
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, ledger, listed, listing, put, served

AT = 1_700_000_100
NO_LIMIT = BudgetSpec(max_epsilon=None)
EVALUATION = {"algorithm": "evaluation", "training": TrainingSpec(weight_unit=8)}
TASKS: dict[str, dict[str, Any]] = {
    "distributed": {},
    "distributed with a slot": {"report_slot_s": 60.0},
    "distributed with removable noise": {"removable_noise": True},
    "distributed, discrete": {"mechanism": "discrete-gaussian"},
    "distributed with device-level": {
        "device_noise_multiplier": 2.0,
        "examples_max": 4,
        "budget": NO_LIMIT,
    },
    "distributed with a schedule": {"period": 3},
    "of persons": {"unit": "person", "unit_rows_max": 5},
    "of documents with a schedule": {"unit": "document", "period": 3},
    "of persons, local": {"algorithm": "fedavg", "noise_multiplier": 3.0, "unit": "person"},
    "local with a schedule": {"algorithm": "fedavg", "noise_multiplier": 3.0, "period": 2},
    "local": {"algorithm": "fedavg", "noise_multiplier": 3.0},
    "local with device-level": {
        **{"algorithm": "fedavg", "noise_multiplier": 3.0, "device_noise_multiplier": 2.0},
        "budget": NO_LIMIT,
    },
    "device-level": {
        **{"algorithm": "fedavg", "privacy": "none", "device_noise_multiplier": 4.0},
        "budget": NO_LIMIT,
    },
    "device-level that abstains": {
        **{"algorithm": "fedavg", "privacy": "none", "device_noise_multiplier": 1.0},
        **{"budget": NO_LIMIT, "participation_rate": 0.5},
    },
    "zeroth order": {"algorithm": "zeroth-order"},
    "none": {"algorithm": "fedavg", "privacy": "none"},
    "zeroth order without noise": {"algorithm": "zeroth-order", "privacy": "none"},
    "evaluation": {**EVALUATION, "privacy": "none"},
    "evaluation with device-level": {
        **EVALUATION,
        **{"privacy": "none", "device_noise_multiplier": 1.0, "budget": NO_LIMIT},
    },
}


def of_one(charged: tuple[bool, ...], **terms: Any) -> LedgerBuilder:
    manifest = built(**terms)
    rows = [
        listed(manifest, entry(n, charged=without), n - 1, fault="devices", cause="too-few-vectors")
        if without
        else listed(manifest, entry(n), n - 1 - sum(charged[: n - 1]), release=n)
        for n, without in enumerate(charged, 1)
    ]
    return listing(manifest, rows)


def joined(*builders: LedgerBuilder) -> LedgerBuilder:
    return LedgerBuilder(ORIGIN, [each for builder in builders for each in builder._entries])


def second(**terms: Any) -> LedgerBuilder:
    manifest = built(task="second", **terms)
    return listing(manifest, [listed(manifest, entry(9), 0, release=1)])


def ledgers() -> Iterator[tuple[str, LedgerBuilder]]:
    yield "empty", LedgerBuilder(ORIGIN)
    yield "only a ban", LedgerBuilder(ORIGIN, [membership_record("banned", AT, device=b"d" * 32)])
    for name, terms in TASKS.items():
        yield f"{name}: no cohort", of_one((), **terms)
        yield f"{name}: released", of_one((False, False), **terms)
    for name in ("distributed", "local", "device-level", "none", "evaluation"):
        yield f"{name}: charged alone", of_one((True,), **TASKS[name])
        yield f"{name}: both", of_one((False, True), **TASKS[name])
    for name in ("distributed", "device-level", "none", "local with device-level"):
        yield f"distributed and {name}", joined(of_one((False,)), second(**TASKS[name]))
        yield f"none and {name}", joined(of_one((False,), **TASKS["none"]), second(**TASKS[name]))
    yield "of version 1", ledger(built(), (4, 6))
    yield "of version 1 without noise", ledger(built(**TASKS["none"]), (6,))
    told = [
        policy_record("demo", "charge-given-back", AT, "cohort ab: nobody had sent"),
        policy_record("demo", "finished", AT, "done"),
        membership_record("banned", AT, cause="operator", device=b"d" * 32),
        key_rotation_record(VERIFIER, VERIFIER, AT),
    ]
    yield "decisions", LedgerBuilder(ORIGIN, [*of_one((False,))._entries, *told])
    loose = built(task="second")
    assert loose.noise is not None
    weak = msgspec.structs.replace(loose, noise=msgspec.structs.replace(loose.noise, honest_min=1))
    refused = listing(weak, [listed(weak, entry(9), 0, release=1)])
    yield "a refused task", refused
    yield "a refused task beside a distributed one", joined(of_one((False,)), refused)


LEDGERS = dict(ledgers())


def charges(result: AuditResult) -> int:
    return sum(len(task.releases) for task in result.tasks)


def stated(result: AuditResult) -> bool:
    return any(task.lines and task.releases for task in result.tasks)


def some(result: AuditResult, test: Callable[[Any], object]) -> bool:
    return any(test(task) for task in result.tasks if task.admissible)


def scheduled(task: Any) -> bool:
    return period_of(task.manifest) > 1


def scheduled_examples(task: Any) -> bool:
    return scheduled(task) and task.manifest.example_privacy.protects == "example"


def scheduled_documents(task: Any) -> bool:
    return scheduled(task) and task.manifest.example_privacy.protects == "document"


def distributed(task: Any) -> bool:
    privacy = task.manifest.example_privacy
    return privacy is not None and privacy.mode == "distributed"


PAGE: dict[str, Callable[[AuditResult], bool]] = {
    "and every epsilon, computed again": lambda r: r.verified and stated(r),
    "No epsilon: no task of this ledger": lambda r: r.verified and charges(r) > 0 and not stated(r),
    "Nothing was released: the ledger records no cohort": lambda r: r.verified and not charges(r),
    "no cohort and no task": lambda r: r.verified and not r.tasks,
    "Do not rely on the figures below": lambda r: not r.verified and some(r, bool),
    "epsilon spent at delta": lambda r: some(r, lambda t: t.lines),
    "epsilon left": lambda r: some(r, lambda t: t.lines),
    "The statement covers every one of them": lambda r: some(r, lambda t: t.lines),
    "No statement covers any of them": lambda r: some(r, lambda t: not t.lines),
    "No epsilon is spent or limited": lambda r: some(r, lambda t: not t.lines),
    "Whose fault it was is the service's word": lambda r: some(r, lambda t: t.releases),
    "Sizes, times and digests are the operator's word": lambda r: some(r, lambda t: t.releases),
    "By the service's word it failed these cohorts": lambda r: some(
        r, lambda t: any(each["action"] == "charge-given-back" for each in t.policies)
    ),
    "reasons and times: the operator's word": lambda r: bool(r.memberships),
    "Since when is the operator's word": lambda r: bool(r.rotations),
    "of a model that stays as it is": lambda r: some(
        r, lambda t: t.manifest.algorithm == "evaluation"
    ),
    "A ledger holds no loss": lambda r: some(r, lambda t: t.manifest.algorithm != "evaluation"),
    "Seen in the sums of records of version 1": lambda r: some(
        r, lambda t: any(each.entry.attempt is None for each in t.releases)
    ),
    "an example is in at most": lambda r: some(r, scheduled_examples),
    "a document is in at most": lambda r: some(r, scheduled_documents),
    "puts one part of its examples and nothing else into the contribution": lambda r: some(
        r, scheduled_examples
    ),
    "puts one part of its documents and nothing else into the contribution": lambda r: some(
        r, scheduled_documents
    ),
    "from its place in a list of names that only grows": lambda r: some(r, scheduled_documents),
    "sums of the task that an example can be in": lambda r: some(r, scheduled_examples),
    "sums of the task that a document can be in": lambda r: some(r, scheduled_documents),
    "that a batch exceeds": lambda r: some(r, lambda t: distributed(t) and not scheduled(t)),
    "at its place in a device's list; the others keep theirs": lambda r: some(r, scheduled),
    "one state folder serves the task": lambda r: some(r, scheduled),
    "one that it leaves out moves their parts on": lambda r: some(r, scheduled),
    "of its list the first": lambda r: some(r, lambda t: distributed(t) and scheduled(t)),
    "Not checked here That others see this ledger": lambda r: True,
}
TEXT: dict[str, Callable[[AuditResult], bool]] = {
    "not checked: That others see this ledger": lambda r: True,
    "charged; no task": lambda r: not r.tasks,
    "charged; no differential privacy": lambda r: some(r, bool) and not some(r, lambda t: t.lines),
    "charged; nothing spent": lambda r: some(r, lambda t: t.lines) and not r.totals,
    "charged; all tasks together: epsilon": lambda r: some(r, lambda t: t.lines) and bool(r.totals),
    "refused, and not accounted": lambda r: any(not t.admissible for t in r.tasks),
    "an example is in at most": lambda r: some(r, scheduled_examples),
    "a document is in at most": lambda r: some(r, scheduled_documents),
    "whose data served in every task": lambda r: bool(r.totals),
}


def texts(data: ReportData) -> Iterator[str]:
    """What the page claims of any ledger, and what it claims to know of a task."""
    yield from (each.text for each in data.reading)
    yield from data.recompute
    for task in data.tasks:
        for group in task.answers:
            yield from (each.text for each in group.answers if each.known)


CONDUCT = re.compile(
    r"\b(debits?|keeps? an account|own account|draws? noise|add the noise of|holds no key)\b"
)


@pytest.mark.parametrize("name", LEDGERS)
def test_each_sentence_stands_only_where_it_is_so(name: str, tmp_path: Path) -> None:
    builder = LEDGERS[name]
    result = verify_ledger(served(builder).get, VERIFIER)
    assert result.verified == ("refused" not in name), result.problems
    data = report_data(result)
    page = words(render(data))
    found = {sentence: sentence in page for sentence in PAGE}
    assert found == {sentence: holds(result) for sentence, holds in PAGE.items()}
    command = ["audit", "verify", str(put(builder, tmp_path)), "--key", VERIFIER]
    said = " ".join(CliRunner().invoke(app, command).output.split())
    found = {sentence: sentence in said for sentence in TEXT}
    assert found == {sentence: holds(result) for sentence, holds in TEXT.items()}
    released = sum(t.entry.outcome == "released" for task in result.tasks for t in task.releases)
    counts = f"{released} released, {charges(result) - released} charged"
    assert f"{len(builder._entries)} records, {counts}" in said
    for text in texts(data):
        if CONDUCT.search(text):  # what somebody does, no ledger shows
            assert "published code" in text, text


def test_a_report_counts_the_sums_that_an_example_is_in() -> None:
    data = report_data(verify_ledger(served(of_one((False,) * 4, period=3)).get, VERIFIER))
    page = words(render(data))
    assert "an example is in at most 2 of the 4 sums so far, and in at most 2 of 4." in page
    (task,) = data.tasks
    (row,) = (each for each in task.parameters if each.name == "participations")
    assert (row.value, row.derived) == ("at most 2 of 4", "releases_max over period, rounded up")
    assert "one for each 3 begun" in page


def test_of_several_totals_the_one_is_named_that_a_task_states(tmp_path: Path) -> None:
    """Both units cost without bound there; the task that states one states it of devices."""
    builder = joined(of_one((False,), **TASKS["none"]), second(**TASKS["device-level"]))
    command = ["audit", "verify", str(put(builder, tmp_path)), "--key", VERIFIER]
    said = " ".join(CliRunner().invoke(app, command).output.split())
    assert "all tasks together: epsilon infinite at delta 1e-05 for one device" in said


@pytest.mark.parametrize("path", ["checkpoint", "tile/entries/000.p/3"])
def test_of_records_that_were_not_read_nothing_is_said(path: str, tmp_path: Path) -> None:
    builder = LEDGERS["distributed: released"]
    folder = put(builder, tmp_path)
    (folder / path).write_bytes((folder / path).read_bytes()[:-2])
    command = ["audit", "verify", str(folder), "--key", VERIFIER]
    said = " ".join(CliRunner().invoke(app, command).output.split())
    assert "no task" not in said
    assert "0 released" not in said
    assert "NOT verified: no" in said
    result = verify_ledger({**served(builder), path: (folder / path).read_bytes()}.get, VERIFIER)
    assert result.records_read == 0
    page = words(render(report_data(result)))
    assert "nothing of it read" in page or "3 records, none of them read" in page
    assert "figures below" not in page
    for claim in ("Nothing was released", "no task", "No epsilon"):
        assert claim not in page


@pytest.mark.parametrize(
    "name", ["of persons", "of documents with a schedule", "of persons, local"]
)
def test_a_page_says_whom_the_noise_protects(name: str) -> None:
    unit, task = TASKS[name]["unit"], built(**TASKS[name])
    result = verify_ledger(served(ledger(task, (6, 5))).get, VERIFIER)
    assert result.verified
    assert {statement.unit for statement in result.tasks[0].lines} == {unit}
    assert {total.unit for total in result.totals} == {"example", "device", unit}
    page = words(render(report_data(result)))
    assert f"One {unit}: all training sequences of one device that name it" in page
    assert f"all training sequences of one {unit} more or less" in page
    assert f"if time does not show one {unit} more" in page
    assert f"L2 bound of one {unit}'s gradient" in page
    rows_max = TASKS[name].get("unit_rows_max", 16)
    assert f"of which a device uses the first {rows_max}" in page
    assert "One training sequence of one device" not in page
    assert "one sequence more may move what is clipped by twice its bound" in page
