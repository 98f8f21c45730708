"""A report says what it cost, who may have seen what, and what is not protected."""

from __future__ import annotations

import msgspec
import pytest

from dp.audit import verify_ledger
from dp.contracts import BudgetSpec
from dp.report import ReportData, report_data
from tests.dp_tasks import VERIFIER, built, ledger, served, statistics


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
    profile = [point.epsilon for point in task.profile]
    assert profile == sorted(profile)
    assert any(point.delta == 1e-5 and point.epsilon == costs[-1] for point in task.profile)
    names = {row.name for row in task.parameters}
    assert {"noise_multiplier", "sampling_rate", "clip", "share_variance", "ring"} <= names
    assert any("--key" in step for step in data.recompute)
    assert task.unprotected
    assert task.assumptions
    assert task.exposure


def test_report_is_plain_data() -> None:
    data = report(built(report_slot_s=5.0), (4,))
    again = msgspec.json.decode(msgspec.json.encode(data), type=ReportData)
    assert again == data


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
    assert len(alone.combined) == 1
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
