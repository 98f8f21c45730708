"""A report says what it cost, who may have seen what, and what is not protected."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import rfc8785
from typer.testing import CliRunner

from dp.contracts import BudgetSpec, CohortSpec
from dp.ledger.builder import LedgerBuilder
from dp.ledger.verification import verify_ledger
from dp.report import ReportData, report_data
from secagg_cli.audit.report import render
from secagg_cli.main import app
from tests.kits.tasks import ORIGIN, VERIFIER, built, ledger, served, statistics


def report(manifest, survivors: tuple[int, ...]) -> ReportData:
    return report_data(verify_ledger(served(ledger(manifest, survivors)).get, VERIFIER))


def test_report_of_the_default_task() -> None:
    data = report(built(), (4, 5, 6))
    (task,) = data.tasks
    assert data.verified
    assert [row.survivors for row in task.releases] == [4, 5, 6]
    assert [row.dropped for row in task.releases] == [2, 1, 0]
    costs = [row.epsilons[0] for row in task.releases]
    assert costs == sorted(costs)
    assert task.lines[0].epsilon == costs[-1]
    assert task.planned[0].epsilon > costs[-1]
    assert task.budget.spent == costs[-1]
    assert task.budget.left == pytest.approx(8 - costs[-1])
    assert task.budget.releases_left == 1
    assert task.releases[0].noise_multiplier == pytest.approx(1.4, rel=1e-5)
    assert task.releases[2].noise_multiplier > 1.8
    profile = [point.epsilons for point in task.profile]
    assert profile == sorted(profile)
    assert any(point.delta == 1e-5 and point.epsilons == (costs[-1],) for point in task.profile)
    names = {row.name for row in task.parameters}
    assert {"noise_multiplier", "sampling_rate", "clip", "share_variance", "ring"} <= names
    assert any("--key" in step for step in data.recompute)
    assert task.unprotected
    assert task.assumptions
    assert task.exposure


def test_report_of_a_large_cohort_says_what_its_graph_leaves_to_chance() -> None:
    small = report(built(), (4,)).tasks[0]
    cohort = CohortSpec(size_min=200, size_max=200, survivors_min=180, corrupt_max=10)
    (task,) = report(built(cohort=cohort), (190,)).tasks
    rows = {row.name: row.value for row in task.parameters}
    assert 0 < int(rows["degree"]) / 2 < int(rows["threshold"]) <= int(rows["degree"])
    assert any("2^-40" in assumed and "2^64" in assumed for assumed in task.assumptions)
    assert not {"degree", "threshold"} & {row.name for row in small.parameters}
    assert len(task.assumptions) == len(small.assumptions) + 1


def test_report_is_plain_data() -> None:
    data = report(built(report_slot_s=5.0), (4,))
    again = msgspec.json.decode(msgspec.json.encode(data), type=ReportData)
    assert msgspec.json.encode(again) == msgspec.json.encode(data)  # what is infinite is null


def test_reports_differ_where_the_modes_do() -> None:
    local = report(built(algorithm="fedavg", noise_multiplier=3.0), (6,)).tasks[0]
    plain = report(built(algorithm="fedavg", privacy="none"), (6,)).tasks[0]
    device = report(built(statistics(("x", 4, 1.0), device_noise_multiplier=4.0)), (6,)).tasks[0]
    assert local.releases[0].noise_multiplier == 3.0
    assert plain.releases[0].noise_multiplier is None
    assert plain.lines == plain.profile == ()
    assert plain.budget.spent is None
    assert any("no noise is added" in text for text in plain.unprotected)
    assert any("exact sums" in row.what for row in plain.exposure)
    assert device.releases[0].noise_multiplier == pytest.approx(4 * (5 / 3) ** 0.5, rel=1e-3)
    assert any("takes part either way" in text for text in device.assumptions)
    assert any("device as a whole" in text for text in local.unprotected)


def test_tasks_on_the_same_data_are_composed() -> None:
    first, second = built(), built(task="second")
    builder = ledger(first, (4, 4))
    for record in ledger(second, ())._entries:
        builder.append(record)
    alone = report_data(verify_ledger(served(builder).get, VERIFIER))
    assert [row.unit for row in alone.combined] == ["example", "device"]
    assert alone.combined[0].epsilon == pytest.approx(alone.tasks[0].lines[0].epsilon, rel=1e-6)


def test_a_ledger_with_problems_is_reported_with_them() -> None:
    files = served(ledger(built(), (4,)))
    del files[next(path for path in files if path.startswith("tile/0/"))]
    data = report_data(verify_ledger(files.get, VERIFIER))
    assert not data.verified
    assert data.problems[0].reason == "tile-missing"
    assert data.tasks
    nothing = report_data(verify_ledger({}.get, VERIFIER))
    assert nothing.tasks == nothing.combined == ()


def test_combined_cost_of_both_units() -> None:
    budget = BudgetSpec(max_epsilon=None)
    data = report(built(device_noise_multiplier=2.0, examples_max=4, budget=budget), (4,))
    assert {row.unit for row in data.combined} == {"example", "device"}


def test_the_page_of_a_lying_ledger_is_red_and_the_command_fails(tmp_path: Path) -> None:
    """The recorded cost is smaller than the recomputed one."""
    entries = list(ledger(built(), (4, 5))._entries)
    record = json.loads(entries[2])
    record["epsilon_micro"] -= 2
    entries[2] = rfc8785.dumps(record)
    folder = tmp_path / "ledger"
    for path, data in served(LedgerBuilder(ORIGIN, entries)).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    page = tmp_path / "report.html"
    command = ["audit", "report", str(folder), "--key", VERIFIER, "--out", str(page)]
    answer = CliRunner().invoke(app, [*command, "--format", "json"])
    assert answer.exit_code == 1
    assert json.loads(answer.stdout)["problems"][0]["reason"] == "epsilon-mismatch"
    text = page.read_text("utf-8")
    assert 'class="red" role="alert"' in text
    assert text.count('<tr class="wrong">') == 2  # the release and its parameters
    assert "the recomputed one" in text


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    files = served(ledger(built(), (4, 5)))
    text = render(report_data(verify_ledger(files.get, VERIFIER)))
    assert "default-src 'none'" in text
    assert not re.search(r"<script|<link|<img|src=|@import|url\(http", text)
    for part in ("How to read this", "How to check this yourself", "What is not protected"):
        assert part in text
