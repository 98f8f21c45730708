"""Wherever a cost is shown it is rounded up, wherever a guarantee or a rest is, down."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from aggregator.http.dashboard.charts import steps
from aggregator.http.dashboard.render import environment
from dp.accounting.budget import Account
from dp.accounting.figures import shown_down, shown_up
from dp.accounting.statements import lines
from dp.contracts import BudgetSpec, check_manifest
from dp.empirical_audit import Influence, Judgement
from dp.errors import BudgetError
from dp.ledger.verification import verify_ledger
from dp.report import ReportData, report_data
from dp.report.parameters import parameters
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest
from secagg_cli.audit.report import render
from secagg_cli.demo.summary import print_summary
from secagg_cli.main import app
from secagg_cli.output import Format, Output, power, power_log2
from tests.kits.tasks import VERIFIER, built, ledger, served, statistics

ROOT = Path(__file__).parents[4]
NO_LIMIT = BudgetSpec(max_epsilon=None, releases_max=9)
TASKS = {
    "distributed": built(),
    "distributed, amplified": built(report_slot_s=60.0),
    "local": built(algorithm="fedavg", budget=NO_LIMIT),
    "device-level": built(statistics(("x", 4, 1.0), device_noise_multiplier=4.0)),
    "device-level and distributed": built(
        device_noise_multiplier=2.0, examples_max=4, budget=NO_LIMIT, report_slot_s=60.0
    ),
}
COSTS = (7.169494, 0.9999949, 2.00004, 15.12341, 1e-7)


def data_of(manifest: Manifest) -> ReportData:
    return report_data(verify_ledger(served(ledger(manifest, (4, 5))).get, VERIFIER))


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.-])\d+\.\d+(?!\w|\.\d)", text))


def costs_of(data: ReportData) -> set[float]:
    (task,) = data.tasks
    found = {line.epsilon for line in (*task.lines, *task.planned, *task.replaced)}
    found |= {cost for release in task.releases for cost in release.epsilons}
    found |= {cost for point in task.profile for cost in point.epsilons}
    found |= {total.epsilon for total in data.combined if total.epsilon is not None}
    return {cost for cost in found if math.isfinite(cost)}


@pytest.mark.parametrize("name", TASKS)
def test_no_cost_on_the_page_is_below_the_one_that_was_computed(name: str) -> None:
    """Each is there rounded up; what would be nearer and lower is nowhere."""
    data = data_of(TASKS[name])
    page = render(data)
    shown = numbers(re.sub(r"<svg.*?</svg>", "", page, flags=re.S))
    costs = costs_of(data)
    ceilings = {shown_up(cost, 3) for cost in costs} | {shown_up(cost) for cost in costs}
    assert len(costs) > 5
    assert {shown_up(cost, 3) for cost in costs} <= shown
    for cost in costs:
        for nearest in (f"{cost:.2f}", f"{cost:.3f}", f"{cost:.4f}", f"{cost:.4g}"):
            assert float(nearest) >= cost or nearest in ceilings or nearest not in shown


@pytest.mark.parametrize("name", TASKS)
def test_verifying_prints_no_cost_below_the_one_that_was_computed(
    name: str, tmp_path: Path
) -> None:
    files = served(ledger(TASKS[name], (4, 5)))
    for path, content in files.items():
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    text = CliRunner().invoke(app, ["audit", "verify", str(tmp_path), "--key", VERIFIER]).stdout
    audit = verify_ledger(files.get, VERIFIER)
    costs = {line.epsilon for task in audit.tasks for line in task.lines}
    costs |= {total.epsilon for total in audit.totals}
    printed = set(re.findall(r"epsilon (\S+) at delta", text))
    assert {shown_up(cost) for cost in costs} == printed
    assert not printed & {f"{c:.4f}" for c in costs if c < math.inf and float(f"{c:.4f}") < c}


FORMATS = (
    r"\{[^{}()\n]*\b(?:epsilon|max_epsilon|cost|spent|delta|limit)\b[^{}()\n]*:\.?\d*[efg]\}",
    r"round\([^()\n]*\b(?:epsilon|cost|spent|delta|found)\b",
    r"format\([^()]*(?:epsilon|delta|left|spent)\)",
)


def test_no_place_formats_a_cost_by_itself() -> None:
    """Each way of it goes to the nearest number; dp/accounting/figures.py is the one room for
    it."""
    files = [
        path
        for folder in ("secagg", "dp", "client_sdk", "aggregator", "secagg_cli")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".html")
    ]
    assert len(files) > 150
    found = [
        f"{path.relative_to(ROOT)}: {hit[0]}"
        for path in files
        for pattern in FORMATS
        for hit in re.finditer(pattern, path.read_text("utf-8"))
    ]
    assert found == []


def test_what_is_left_of_a_budget_and_the_guaranteed_noise_are_rounded_down() -> None:
    data = data_of(TASKS["distributed"])
    (task,) = data.tasks
    left, noise = task.budget.left, task.releases[1].noise_multiplier
    assert left is not None
    assert noise is not None
    odd = msgspec.structs.replace(
        task,
        budget=msgspec.structs.replace(task.budget, left=0.8309996),
        releases=tuple(
            msgspec.structs.replace(row, noise_multiplier=1.3999996, measured=(0.7499, 1.2501))
            for row in task.releases
        ),
    )
    page = render(msgspec.structs.replace(data, tasks=(odd,)))
    for shown in ("0.830", ">1.399<", ">0.74 to 1.26<"):
        assert shown in page
    assert "0.831" not in page


@pytest.mark.parametrize("mechanism", ["gaussian", "skellam", "discrete-gaussian"])
@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 7])
def test_a_plan_prints_no_less_than_its_json_holds(mechanism: str, rounds: int) -> None:
    command = ["plan", "privacy", "--noise-multiplier", "1.4", "--delta", "1.2345674e-5"]
    command += ["--rounds", str(rounds), "--mechanism", mechanism]
    text = CliRunner().invoke(app, command).stdout
    found = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    printed = re.match(r"epsilon (\d+\.\d{4}) at delta ([\d.e-]+) ", text)
    assert printed is not None
    assert found["epsilon"] <= float(printed[1]) < found["epsilon"] + 1e-4
    assert (printed[2], found["delta"]) == ("1.23457e-05", 1.2345674e-5)


def test_a_planned_task_prints_as_much_noise_as_it_needs_and_what_that_costs() -> None:
    command = ["plan", "task", "--cohort", "40", "--rounds", "7", "--epsilon", "3"]
    command += ["--length", "100"]
    text = CliRunner().invoke(app, command).stdout
    found = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    printed = re.match(r"noise multiplier (\S+) \(skellam\): epsilon (\S+) per", text)
    assert printed is not None
    assert found["noise_multiplier"] <= float(printed[1]) < found["noise_multiplier"] + 1e-4
    assert found["epsilon"] <= float(printed[2]) < found["epsilon"] + 1e-4


@pytest.mark.parametrize("cost", COSTS)
def test_the_demo_prints_no_less(cost: float, capsys: pytest.CaptureFixture[str]) -> None:
    line = msgspec.to_builtins(lines(TASKS["distributed"], 1)[0])
    result: dict[str, Any] = {
        "loss_before": 1.0,
        "loss_after": 0.5,
        "answer": {"prompt": "?", "corpus": "", "before": "", "after": ""},
        "privacy": [{**line, "epsilon": cost}],
        "ledger_verified": True,
        "adapter": "a",
        "ledger": "l",
        "report": "r",
        "seconds": 1.0,
    }
    print_summary(Output(Format.text), result)
    assert f"epsilon {shown_up(cost, 3)} at delta 1e-05" in capsys.readouterr().out


@pytest.mark.parametrize("cost", COSTS)
def test_the_dashboard_shows_no_less(cost: float) -> None:
    task = {
        "task": "t",
        "state": "open",
        "algorithm": "fedsgd",
        "version": 1,
        "charges": 1,
        "releases_max": 4,
        "epsilon": cost,
        "max_epsilon": None,
        "charge_at": None,
        "cohort": None,
        "waiting": 0,
    }
    page = environment().get_template("overview/tasks.html").render(tasks=[task], left_out=0)
    assert f">{shown_up(cost)}<" in page
    chart = steps("Epsilon spent", [cost], 8.0, shown_up)
    assert f"<title>1: {shown_up(cost)}</title></rect>" in chart


def test_an_attack_prints_its_lower_bound_rounded_down_and_the_upper_one_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dp.empirical_audit import AttackResult
    from secagg_cli.audit import attack

    judgement = Judgement(canaries=9, guesses=8, correct=7, confidence=0.95, epsilon_lower=1.2349)
    result = AttackResult(
        judgement=judgement,
        epsilon_upper=7.169494,
        delta=1e-5,
        influence=Influence(measured=0.9, lower=0.1239, upper=1.0001),
        releases=4,
    )
    monkeypatch.setattr(attack, "run", lambda *_: result)
    text = CliRunner().invoke(app, ["audit", "attack"]).stdout
    assert "at least 1.234 (confidence 0.95)" in text
    assert "at most 7.170 (delta 1e-05)" in text
    assert "0.123 to 1.001" in text


def test_a_refused_task_costs_visibly_more_than_it_may_spend() -> None:
    """By the smallest number: the comparison is that of the unrounded values."""
    manifest = built(budget=BudgetSpec(max_epsilon=None, releases_max=3))
    cost = lines(manifest, 3)[0].epsilon
    assert round(cost, 4) < cost
    for limit, admitted in ((cost, True), (math.nextafter(cost, 0), False)):
        budget = msgspec.structs.replace(manifest.budget, max_epsilon=limit)
        limited = msgspec.structs.replace(manifest, budget=budget)
        if admitted:
            check_manifest(limited)
            continue
        with pytest.raises(ConfigurationError) as caught:
            check_manifest(limited)
        error = caught.value
        assert (error.reason, error.expected) == ("budget-exceeded", f"epsilon <= {limit!r}")
        assert error.found == float(shown_up(cost)) > limit


def test_the_account_compares_and_tells_what_the_next_release_really_costs() -> None:
    manifest = built(budget=NO_LIMIT)
    cost = Account(delta=1e-5).spend("a", manifest).epsilon("example")
    Account(delta=1e-5, max_epsilon=cost).spend("a", manifest)
    limit = math.nextafter(cost, 0)
    with pytest.raises(BudgetError) as caught:
        Account(delta=1e-5, max_epsilon=limit).spend("a", manifest)
    assert caught.value.found == float(shown_up(cost)) > limit


def test_a_cost_that_is_infinite_is_a_word_on_the_page_and_null_in_json() -> None:
    loud = built(noise_multiplier=0.7, budget=BudgetSpec(max_epsilon=None))
    data = report_data(verify_ledger(served(ledger(loud, (4, 4, 4, 4))).get, VERIFIER))
    assert math.isinf(data.tasks[0].replaced[0].epsilon)
    assert "one example (distributed noise): epsilon infinite." in render(data)
    record = json.loads(msgspec.json.encode(data))
    assert record["tasks"][0]["replaced"][0]["epsilon"] is None
    command = ["plan", "privacy", "--noise-multiplier", "1e-9", "--rounds", "1", "--delta", "1e-5"]
    assert "epsilon infinite at delta 1e-05" in CliRunner().invoke(app, command).stdout
    result = CliRunner().invoke(app, [*command, "--format", "json"])
    assert json.loads(result.stdout)["epsilon"] is None


def test_rounding_down_is_no_rounding_up() -> None:
    for value in COSTS:
        assert float(shown_down(value, 3)) <= value <= float(shown_up(value, 3))


def test_a_bound_of_a_probability_is_rounded_up() -> None:
    """Its exponent, that is: 2^-39.96 is not a chance of at most 2^-40."""
    assert (power(-39.96), power(-40.04), power(-math.inf)) == ("2^-39.9", "2^-40.0", "0")
    assert power_log2(-39.9996) == -39.999
    assert power_log2(-math.inf) is None
    for log2 in (-40.6, -41.2):
        encoding = msgspec.structs.replace(TASKS["distributed"].encoding, wrap_log2=log2)
        manifest = msgspec.structs.replace(TASKS["distributed"], encoding=encoding)
        (row,) = (row for row in parameters(manifest) if row.name == "wrap-around")
        assert float(row.value.removeprefix("2^")) >= log2
