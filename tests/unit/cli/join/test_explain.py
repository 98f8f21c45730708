"""``secagg explain``: the text for people, and figures and text for programs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from client_sdk import Client, PolicyRefusal
from client_sdk.enrolment import save_bundle
from client_sdk.explanation import Explanation
from secagg_cli.main import app
from tests.kits.commands import invoke
from tests.kits.data_accounts import ONE, new_bundle
from tests.kits.device import account_in
from tests.kits.explained import explained


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    save_bundle(tmp_path / "bundle.json", new_bundle())
    refusal = PolicyRefusal("not-now", "Not now.", expected=1, found=2, again_at=3.0)

    def explain(self: Client, task: str) -> Explanation:
        found = explained(ONE, account_in(tmp_path / "account"))
        return Explanation(**{**vars(found), "task": task, "refusals": (refusal,)})

    monkeypatch.setattr(Client, "explain", explain)
    return ["explain", str(tmp_path / "bundle.json"), "--task", "t", "--state", str(tmp_path / "s")]


def test_programs_get_figures_refusals_and_the_text(arguments: list[str]) -> None:
    told = invoke(*arguments)
    assert told["task"] == "t"
    assert told["survivors_min"] == ONE.cohort.survivors_min
    assert {cost["unit"] for cost in told["costs"]} == {"example", "device"}
    assert told["refusals"] == [
        {
            "reason": "not-now",
            "message": "Not now.",
            "expected": 1,
            "found": 2,
            "remedy": None,
            "again_at": 3.0,
        }
    ]
    assert all(set(each) == {"who", "what"} for each in told["seen_by"])
    assert "What this does not protect:" in told["text"]


def test_people_get_the_text(arguments: list[str]) -> None:
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0
    assert ran.stdout.startswith("This app's policy refuses the task now:")
    assert "What this does not protect:" in ran.stdout


def test_it_is_judged_by_the_options_of_join(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges = []

    def explain(self: Client, task: str) -> Explanation:
        judges.append(self.policy)
        return explained(ONE, account_in(tmp_path / "account"))

    monkeypatch.setattr(Client, "explain", explain)
    invoke(*arguments, "--min-cohort", "4", "--max-epsilon", "2", "--period-mb", "7")
    (policy,) = judges
    assert (policy.min_cohort, policy.max_epsilon) == (4, 2.0)
    assert policy.per_period is not None
    assert policy.per_period.max_bytes == 7 << 20
