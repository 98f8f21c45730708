"""A report claims what a ledger can show, and says what it cannot."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nacl.signing
import pytest
from typer.testing import CliRunner

from dp.contracts import BudgetSpec
from dp.ledger.builder import LedgerBuilder
from dp.ledger.findings import AuditResult
from dp.ledger.verification import verify_ledger
from dp.report import report_data
from dp.tlog.witness import WitnessPolicy, cosign, witness_key
from secagg.secret import Secret
from secagg_cli.audit.report import render
from secagg_cli.main import app
from tests.kits.report_words import words
from tests.kits.tasks import ORIGIN, VERIFIER, built, ledger, served

NO_LIMIT = BudgetSpec(max_epsilon=None)
LEDGERS = {
    "distributed": ledger(built(), (4, 5)),
    "none": ledger(built(algorithm="fedavg", privacy="none"), (6,)),
    "local with device-level": ledger(
        built(
            algorithm="fedavg", noise_multiplier=3.0, device_noise_multiplier=2.0, budget=NO_LIMIT
        ),
        (6,),
    ),
}


def page_of(result: AuditResult) -> str:
    return words(render(report_data(result)))


@pytest.mark.parametrize("name", LEDGERS)
def test_no_report_claims_to_know_what_an_operator_did(name: str) -> None:
    result = verify_ledger(served(LEDGERS[name]).get, VERIFIER)
    text = page_of(result) + json.dumps(str(report_data(result)))
    for claim in (
        "every sum that the aggregator opened",
        "nothing but the counts",
        "only figure",
        "same public code that devices run",
        "debits before it unmasks a sum.",
        "budget is debited before",
        "can show that the log was never rewritten",
    ):
        assert claim not in text, claim
    assert "a sum that it does not record is covered by nothing" in text
    assert "What it does not mean That every cohort is recorded" in text
    assert "Sizes, times and digests are the operator's word." in text


def test_who_else_sees_the_ledger_is_said_not_to_be_checked(tmp_path: Path) -> None:
    files = served(LEDGERS["distributed"])
    alone = verify_ledger(files.get, VERIFIER)
    assert "others-view" in [finding.reason for finding in alone.unchecked]
    assert "Not checked here That others see this ledger: no witness was demanded" in page_of(alone)
    older = verify_ledger(files.get, VERIFIER, older=[files["checkpoint"]])
    (view,) = [finding for finding in older.unchecked if finding.reason == "others-view"]
    assert view.message.endswith("an older checkpoint was given.")

    seed = b"w" * 32
    text = files["checkpoint"].decode().split("\n\n")[0] + "\n"
    files["checkpoint"] += cosign(text, "witness", Secret(seed), 1_700_000_000).encode()
    key = witness_key("witness", bytes(nacl.signing.SigningKey(seed).verify_key))
    seen = verify_ledger(files.get, VERIFIER, witnesses=WitnessPolicy.of([key]))
    assert seen.verified
    assert "others-view" not in [finding.reason for finding in seen.unchecked]

    for path, data in served(LEDGERS["distributed"]).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    command = ["audit", "verify", str(tmp_path), "--key", VERIFIER]
    said = " ".join(CliRunner().invoke(app, command).output.split())
    assert "not checked: That others see this ledger" in said
    answer = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    assert answer["unchecked"][0]["reason"] == "others-view"


def test_a_ledger_without_cohorts_is_not_every_epsilon() -> None:
    for builder, said in (
        (LedgerBuilder(ORIGIN), "records no cohort and no task"),
        (ledger(built(), ()), "records no cohort, so there was no epsilon to compute"),
    ):
        result = verify_ledger(served(builder).get, VERIFIER)
        assert result.verified
        text = page_of(result)
        assert "Nothing was released:" in text
        assert said in text
        assert "every epsilon, computed again" not in text
    assert "every epsilon, computed again" in page_of(
        verify_ledger(served(LEDGERS["distributed"]).get, VERIFIER)
    )


def test_local_noise_beside_noise_of_devices_is_not_only_distributed() -> None:
    text = page_of(verify_ledger(served(LEDGERS["local with device-level"]).get, VERIFIER))
    assert "Local for examples: each device adds all the noise" in text
    assert "Distributed for devices" in text


KINDS = {
    "distributed without a slot": {},
    "distributed with a slot": {"report_slot_s": 60.0},
    "devices that abstain": {
        "algorithm": "fedavg",
        "privacy": "none",
        "device_noise_multiplier": 1.0,
        "participation_rate": 0.5,
        "budget": NO_LIMIT,
    },
    "local with device-level": {
        "algorithm": "fedavg",
        "noise_multiplier": 3.0,
        "device_noise_multiplier": 2.0,
        "budget": NO_LIMIT,
    },
    "local with device-level and abstention": {
        "algorithm": "fedavg",
        "noise_multiplier": 3.0,
        "device_noise_multiplier": 2.0,
        "participation_rate": 0.5,
        "budget": NO_LIMIT,
    },
    "distributed with device-level and abstention": {
        "device_noise_multiplier": 2.0,
        "examples_max": 4,
        "participation_rate": 0.5,
        "budget": NO_LIMIT,
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_no_warning_denies_a_line_of_the_table(name: str) -> None:
    (task,) = report_data(
        verify_ledger(served(ledger(built(**KINDS[name]), (6,))).get, VERIFIER)
    ).tasks
    amplified = {line.unit for line in task.lines if line.amplified}
    for warning in task.warnings:
        denied = re.search(
            r"no amplified (?:one|statement) is (?:made|stated)(?: for (\w+)s)?", warning
        )
        if denied is not None:
            assert denied[1] is not None, "it names the unit"
            assert denied[1] not in amplified
    assert name != "distributed without a slot" or any(
        "no amplified" in each for each in task.warnings
    )
