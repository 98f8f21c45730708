"""What ``secagg audit`` says of ledgers in which little, nothing or no noise is, and of limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from dp.contracts import BudgetSpec, TrainingSpec
from dp.ledger.builder import LedgerBuilder
from dp.ledger.verification import verify_ledger
from dp.report import report_data
from secagg_cli.audit.report import render
from secagg_cli.main import app
from tests.kits.report_words import words
from tests.kits.tasks import ORIGIN, VERIFIER, built, entry, ledger, listed, listing, put, served


def verify(folder: Path, *more: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, text and JSON."""
    command = ["audit", "verify", str(folder), "--key", VERIFIER, *more]
    done = CliRunner().invoke(app, command)
    answer = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    return done.exit_code, " ".join(done.output.split()), answer


def page(builder: LedgerBuilder) -> str:
    return words(render(report_data(verify_ledger(served(builder).get, VERIFIER))))


def test_a_ledger_without_tasks_is_not_said_to_lack_privacy(tmp_path: Path) -> None:
    code, said, answer = verify(put(LedgerBuilder(ORIGIN), tmp_path))
    assert (code, answer["epsilon"], answer["statements"]) == (0, None, [])
    assert "Verified: 0 records, 0 released, 0 charged; no task" in said
    assert "no differential privacy" not in said


def test_a_check_that_ended_early_does_not_call_the_rest_unsigned(tmp_path: Path) -> None:
    folder = put(ledger(built(), (4, 5)), tmp_path)
    bundle = folder / "tile/entries/000.p/3"
    bundle.write_bytes(bundle.read_bytes()[:100])
    code, said, answer = verify(folder)
    assert code == 1
    assert "NOT verified: none of the 3 records was read" in said
    assert (answer["tree_size"], answer["records_read"]) == (3, 0)
    assert "no task" not in said
    (unread,) = [item for item in answer["unchecked"] if item["reason"] == "files-unread"]
    assert "a problem ended the check before them" in unread["message"]
    assert "not part of" not in unread["message"]


@pytest.mark.parametrize(("limit", "broken"), [("7.5", 1), ("7.9", 0)])
def test_a_task_of_a_larger_delta_hides_no_other_tasks_epsilon(
    tmp_path: Path, limit: str, broken: int
) -> None:
    """A limit is for the total at the smallest delta, which no task's own line is above."""
    strict = built(task="strict", budget=BudgetSpec(max_epsilon=None, delta=1e-9))
    loose = built(task="loose", budget=BudgetSpec(delta=1e-4), noise_multiplier=50.0)
    both = ledger(strict, (4, 4, 4))
    for encoded in listing(loose, [listed(loose, entry(9), 0, release=1)])._entries:
        both.append(encoded)
    code, said, answer = verify(put(both, tmp_path), "--max-epsilon", limit)
    assert answer["verified"]
    assert answer["epsilon"] > max(line["epsilon"] for line in answer["statements"])
    assert (code, len(answer["broken"])) == (broken, broken)
    if broken:
        assert (
            "refused: --max-epsilon: at most 7.5; all tasks together cost one example 7.8345 at "
            "delta 1e-09. [epsilon-too-large]" in said
        )


def test_a_page_without_a_statement_speaks_of_no_noise_and_no_line() -> None:
    plain = built(task="plain", algorithm="fedavg", privacy="none")
    text = page(listing(plain, [listed(plain, entry(1))]))
    assert "its own share of noise" not in text
    assert "The statements account for what happened" not in text
    assert "No statement covers any of them; a sum that it does not record" in text
    assert "Do the accounting's assumptions hold? How to DP-fy ML No statement." in text
    assert "no float is part of the privacy proof" not in text
    assert "tails cut below" not in text
    text = page(listing(built(), [listed(built(), entry(1))]))
    assert "its own share of noise" in text
    assert "The statements account for what happened" in text
    assert "The statement covers every one of them" in text
    assert "The headline needs none about sampling" in text
    assert "no float is part of the privacy proof" in text
    assert "tails cut below" in text


def test_a_page_claims_no_better_sampler_than_the_accountant_pays_for() -> None:
    text = page(ledger(built(), (4,)))
    assert "at most 2^-90 for each coordinate, is taken from delta" in text
    assert "exactly but for" not in text


def test_of_examples_that_a_cohort_holds_no_most_is_claimed() -> None:
    """What one sum may hold is bounded; what the devices of a cohort hold is not."""
    text = page(ledger(built(), (4,)))
    assert "(576 expected, at most 1536 in one sum) is 0.0154" in text
    local = built(algorithm="fedavg", privacy="local", noise_multiplier=2.0)
    assert "(576 expected) is 0.00576" in page(ledger(local, (4,)))


def several(*tasks: str) -> LedgerBuilder:
    """One release of each."""
    builder = LedgerBuilder(ORIGIN)
    for number, name in enumerate(tasks, 1):
        manifest = built(task=name)
        for encoded in listing(manifest, [listed(manifest, entry(number), 0, release=1)])._entries:
            builder.append(encoded)
    return builder


@pytest.mark.parametrize("algorithm", ["fedsgd", "evaluation"])
def test_accesses_to_the_data_are_not_all_training(algorithm: str) -> None:
    terms: dict[str, Any] = {}
    if algorithm == "evaluation":
        terms = {"privacy": "none", "training": TrainingSpec(weight_unit=8)}
    manifest = built(task="any", algorithm=algorithm, **terms)
    text = page(listing(manifest, [listed(manifest, entry(1))]))
    assert "The contributions of devices to 1 charged cohort. Not covered:" in text


def test_what_all_tasks_cost_stands_before_the_tasks_and_in_the_contents() -> None:
    text = page(several("first", "second"))
    contents, _, rest = text.partition("How to check this yourself")
    assert "All tasks together Task first Task second" in contents
    assert rest.index("All tasks together") < rest.index("Task first Algorithm")
    assert "All tasks together" not in page(several("first"))


def test_a_refused_task_beside_one_task_is_in_the_total_that_the_page_shows() -> None:
    """Its own section is missing, for nothing is known of its noise: the total is infinite."""
    loose = built(task="loose")
    assert loose.noise is not None
    weak = msgspec.structs.replace(loose, noise=msgspec.structs.replace(loose.noise, honest_min=1))
    builder = several("first")
    item = listed(weak, entry(2), 0, release=1)
    for encoded in listing(weak, [item])._entries:
        builder.append(encoded)
    text = page(builder)
    assert "Not verified" in text
    assert "every task: epsilon infinite" in text
    assert "Task 'loose' adds no noise that protects it." in text
