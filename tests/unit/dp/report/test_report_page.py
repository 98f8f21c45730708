"""The page of a report: what stands on it, for whom, and that each figure can be computed again."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from dp.accounting.figures import shown_up
from dp.accounting.statements import ReleaseFacts
from dp.contracts import BudgetSpec
from dp.ledger.builder import LedgerBuilder
from dp.ledger.records import policy_record, release_record
from dp.ledger.verification import verify_ledger
from dp.report import ReportData, report_data
from secagg.manifest import Manifest, encode_manifest, manifest_digest
from secagg_cli.audit.report import render
from secagg_cli.audit.software import code_digest, software
from secagg_cli.main import app
from tests.kits.tasks import (
    ORIGIN,
    VERIFIER,
    built,
    entry,
    ledger,
    listed,
    listing,
    served,
    signed_task,
    statistics,
)

NO_LIMIT = BudgetSpec(max_epsilon=None, releases_max=9)
TASKS = {
    "distributed": built(),
    "distributed, amplified": built(report_slot_s=60.0),
    "local": built(algorithm="fedavg", budget=NO_LIMIT),
    "local, slots": built(algorithm="fedavg", budget=NO_LIMIT, report_slot_s=60.0),
    "device-level": built(statistics(("x", 4, 1.0), device_noise_multiplier=4.0)),
    "device-level and distributed": built(
        device_noise_multiplier=2.0, examples_max=4, budget=NO_LIMIT, report_slot_s=60.0
    ),
    "none": built(algorithm="fedavg", privacy="none"),
}


def data_of(builder: LedgerBuilder) -> ReportData:
    return report_data(verify_ledger(served(builder).get, VERIFIER))


def page_of(manifest: Manifest, survivors: tuple[int, ...] = (4, 5)) -> str:
    return render(data_of(ledger(manifest, survivors)))


def section(page: str, title: str, level: int = 3) -> str:
    """From a heading to the next one of its level or above."""
    after = page.split(f">{title}</h{level}>", 1)[1]
    return re.split(rf"<h[1-{level}][ >]", after, maxsplit=1)[0]


def put(builder: LedgerBuilder, folder: Path) -> Path:
    for path, content in served(builder).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


@pytest.mark.parametrize("mode", TASKS)
def test_every_figure_on_the_page_says_how_to_compute_it_again(mode: str) -> None:
    page = page_of(TASKS[mode])
    checking = page.split("How to check this yourself</h2>", 1)[1]
    explained = set(re.findall(r'<th scope="row">([^<]*)</th>', checking))
    shown = set(re.findall(r'data-figure="([^"]*)"', page))
    assert shown <= explained
    assert {"budget left", "releases left", "parameters"} <= shown
    for row in re.findall(r"<tr.*?</tr>", section(page, "Parameters"), re.S)[1:]:
        assert 'data-figure="parameters"' in row


def test_no_figure_is_explained_that_no_page_shows() -> None:
    data = data_of(ledger(TASKS["device-level and distributed"], (4, 5)))
    shown = set(re.findall(r'data-figure="([^"]*)"', render(data)))
    # In an answer, and where there are several tasks.
    elsewhere = {"charges of single devices", "epsilon of all tasks together"}
    assert {figure.name for figure in data.figures} - elsewhere == shown


NIST, DPFY, OPENDP = "NIST SP 800-226", "How to DP-fy ML", "OpenDP registry"
ASKED = {
    NIST: (
        "Privacy loss",
        "Unit of privacy",
        "Setting, and whom it trusts",
        "Mechanism",
        "Floating point",
        "Randomness",
        "Side channels",
        "Security of what is sent",
        "Software that the devices and the aggregator really ran",
        "What the data are, and about whom",
        "How the data were collected: consent, legal basis, retention",
        "Who can read the data where they lie",
        "Who gets the model, and when it is published",
        "How good the model is",
    ),
    DPFY: (
        "Setting, and whom it trusts",
        "Accesses to the data that it covers",
        "What is released, and how often",
        "Unit of privacy",
        "Neighbouring data sets",
        "Accounting and composition",
        "Do the accounting's assumptions hold?",
        "Privacy loss",
        "Hyperparameters",
        "Runs to choose the hyperparameters, and why these",
        "Code to verify it",
        "Base model",
    ),
    OPENDP: (
        "Registry tier",
        "Curator, intended use, sector and region",
        "Flavour",
        "Privacy loss",
        "Unit of privacy",
        "Setting, and whom it trusts",
        "What is released, and how often",
        "Whether the data stay the same or grow",
        "Who gets the model, and when it is published",
        "Accounting and composition",
        "Post-processing",
        "Cleaning, filtering and exploration before training",
        "Mechanism",
        "Runs to choose the hyperparameters, and why these",
    ),
}


@pytest.mark.parametrize("mode", TASKS)
@pytest.mark.parametrize("name", ASKED)
def test_every_question_of_the_reporting_lists_has_its_answer(name: str, mode: str) -> None:
    data = data_of(ledger(TASKS[mode], (4,)))
    page = render(data)
    answers = [answer for group in data.tasks[0].answers for answer in group.answers]
    asked = {answer.question: answer for answer in answers if name in answer.lists}
    for question in ASKED[name]:
        assert asked[question].text
        assert question.replace("'", "&#39;") in page


def test_what_a_ledger_cannot_know_is_said_and_who_can() -> None:
    (task,) = data_of(ledger(built(), (4,))).tasks
    unknown = [a for group in task.answers for a in group.answers if not a.known]
    assert len(unknown) >= 9
    for answer in unknown:
        assert "Ask the" in answer.text or "Compare" in answer.text
    questions = {answer.question for answer in unknown}
    assert "What the data are, and about whom" in questions
    assert "Runs to choose the hyperparameters, and why these" in questions
    assert section(page_of(built()), "What reporting lists ask").count('class="unknown"') == len(
        unknown
    )


def test_participation_is_bounded_and_counted() -> None:
    (task,) = data_of(ledger(built(), (4, 6))).tasks
    (answer,) = [
        answer
        for answer in task.answers[0].answers
        if answer.question == "How often one device takes part, and who enforces it"
    ]
    assert "at most 4 of this task" in answer.text
    assert "own account" in answer.text
    assert "6 devices, none of them in more than 2." in answer.text


@pytest.mark.parametrize("mode", TASKS)
def test_each_line_has_a_chart_of_its_own_that_says_whose_it_is(mode: str) -> None:
    data = data_of(ledger(TASKS[mode], (4, 5)))
    lines = data.tasks[0].lines
    costs = section(render(data), "What it has cost")
    assert costs.count("<svg") == costs.count("time (UTC)") == len(lines)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", costs)
    for line, caption in zip(lines, captions, strict=True):
        assert f"one {line.unit} ({line.mode.word} noise)" in caption
        assert line.adversary in caption
        assert ("not amplified" in caption) is not line.amplified


def test_the_chart_is_over_time() -> None:
    """A release a day later moves along the axis, while its number and its cost stay."""
    manifest, facts = built(), (ReleaseFacts(survivors=4, masking_set_size=6),)
    digest = manifest_digest(encode_manifest(manifest))
    pages = []
    for later in (0, 86_400):
        builder = ledger(manifest, (4,))
        record = entry(2)
        moved = msgspec.structs.replace(record, released_at=record.released_at + later)
        builder.append(release_record(manifest, digest, facts, moved))
        pages.append(section(render(data_of(builder)), "What it has cost"))
    assert "22:13:2" in pages[0]
    assert "22:13:2" not in pages[1]
    assert re.search(r">\d\d:00<|>\d\d Nov<", pages[1])


@pytest.mark.parametrize("mode", TASKS)
def test_an_amplified_line_never_stands_without_what_it_assumes(mode: str) -> None:
    data = data_of(ledger(TASKS[mode], (4,)))
    task = data.tasks[0]
    amplified = [line for line in task.lines if line.amplified]
    costs = section(render(data), "What it has cost")
    beside = "neither time nor failures show the batch"
    assert (beside in costs) is bool(amplified)
    assert (beside in " ".join(task.assumptions)) is bool(amplified)
    slots = TASKS[mode].report_slot_s > 0
    assert ("not part of delta" in costs) is (bool(amplified) and slots)
    for line in amplified:
        assert "not show the batch" in line.adversary


def test_abstention_is_assumed_beside_its_amplified_line() -> None:
    task = statistics(("x", 4, 1.0), device_noise_multiplier=4.0, participation_rate=0.5)
    costs = section(page_of(built(task)), "What it has cost")
    assert "who abstains" in costs
    assert "show the batch" not in costs


def test_the_parameters_of_each_release_stand_in_a_row() -> None:
    manifest = built()
    digest = manifest_digest(encode_manifest(manifest))
    builder = LedgerBuilder(ORIGIN, [signed_task(manifest)])
    variance = 3 * manifest.noise.share_variance
    measured = (variance // 2, 2 * variance)
    record = msgspec.structs.replace(entry(1), measured_variance=measured)
    builder.append(release_record(manifest, digest, (), record))
    data = data_of(builder)
    (release,) = data.tasks[0].releases
    assert release.clips == (("example", 1.0),)
    assert release.masking_set_size == 6
    assert release.model == record.new_model_digest.hex()
    row = section(render(data), "Parameters by release", 4)
    assert ">0.50 to 2.00<" in row
    assert ">1.400<" in row
    assert f">{shown_up(release.epsilons[0], 3)}<" in row


def test_each_cell_of_a_card_keeps_its_heading_on_a_phone() -> None:
    page = page_of(TASKS["device-level and distributed"])
    for table in re.findall(r'<table class="cards.*?</table>', page, re.S):
        heads = re.findall(r"<th[ >]", table)
        for row in re.findall(r"<tr.*?</tr>", table, re.S)[1:]:
            assert row.count("<td") == row.count("data-label=") == len(heads)


def test_the_operators_decisions_are_on_the_page() -> None:
    builder = ledger(built(), (4,))
    builder.append(policy_record("demo", "paused", 1_700_000_100, "maintenance <b>"))
    page = render(data_of(builder))
    assert "2023-11-14 22:15 UTC: paused (maintenance &lt;b&gt;), record 2" in page
    assert "operator&#39;s decisions" not in page_of(built())
    assert "operator's decisions" not in page_of(built())


def test_a_charged_cohort_says_whose_fault_it_was_and_claims_no_drop_outs(tmp_path: Path) -> None:
    manifest = built()
    failed = listed(manifest, entry(2, charged=True), 1, fault="unknown", cause="too-few-vectors")
    builder = listing(manifest, [listed(manifest, entry(1, 4)), failed])
    data = data_of(builder)
    first, second = data.tasks[0].releases
    assert (first.dropped, first.fault, first.cause) == (2, None, "")
    assert (second.dropped, second.masking_set_size) == (None, 6)
    assert (second.fault, second.cause) == ("unknown", "too-few-vectors")
    page = render(data)
    row = section(page, "Releases").split("<tr")[3]
    assert "charged: too-few-vectors, fault: unknown" in row
    assert 'data-label="dropped">not recorded<' in row
    assert "<strong>2 of 6</strong> devices dropped" in page  # of the released cohort alone
    assert "2 of 4</strong> charges, 1 of them released" in page
    assert "charged without a sum" in section(page, "Releases")
    assert "after vectors were sent" not in page
    command = ["audit", "report", str(put(builder, tmp_path / "l")), "--key", VERIFIER]
    CliRunner().invoke(app, [*command, "--out", str(tmp_path / "r.json")])
    written = json.loads((tmp_path / "r.json").read_text())["tasks"][0]["releases"][1]
    assert (written["fault"], written["cause"]) == ("unknown", "too-few-vectors")


def test_what_records_of_version_1_do_not_tell_is_not_made_up() -> None:
    manifest = built(budget=NO_LIMIT)
    builder = LedgerBuilder(ORIGIN, [signed_task(manifest)])
    digest = manifest_digest(encode_manifest(manifest))
    old = msgspec.structs.replace(entry(1, charged=True), masking_set_size=0)
    builder.append(release_record(manifest, digest, [], old))
    data = data_of(builder)
    (row,) = data.tasks[0].releases
    assert (row.masking_set_size, row.dropped) == (None, None)
    page = render(data)
    assert 'data-label="masking set">not recorded<' in page
    assert "fault and cause not recorded" in page
    assert "1 cohorts of version 1 were charged without a sum" in page


def test_charges_that_were_given_back_are_no_decision_of_the_operator() -> None:
    builder = ledger(built(), (4,))
    detail = "cohort ab: fault of the service, replica-lost; nobody had sent"
    builder.append(policy_record("demo", "charge-given-back", 1_700_000_100, detail))
    page = render(data_of(builder))
    assert detail in section(page, "Charges that were given back", 4)
    assert "keep their debit" in section(page, "Charges that were given back", 4)
    assert "operator's decisions" not in page
    assert "never refunded" not in page


def test_a_task_without_noise_does_not_show_an_epsilon_of_none() -> None:
    page = page_of(TASKS["none"])
    assert "no differential privacy</li>" in page
    assert "epsilon spent" not in page
    assert "epsilon spent" in page_of(TASKS["distributed"])


def test_the_verdict_says_whose_epsilon_it_prints(tmp_path: Path) -> None:
    def said(builder: LedgerBuilder, name: str) -> str:
        folder = put(builder, tmp_path / name)
        done = CliRunner().invoke(app, ["audit", "verify", str(folder), "--key", VERIFIER])
        return " ".join(done.output.split())

    two = ledger(built(), (4, 4))
    for encoded in ledger(built(task="second"), ())._entries:
        two.append(encoded)
    plain = built(task="plain", algorithm="fedavg", privacy="none")
    charged = listed(plain, entry(2, charged=True), 1, fault="devices", cause="x")
    none = listing(plain, [listed(plain, entry(1, 4)), charged])
    assert re.search(
        r"2 released, 0 charged; all tasks together: epsilon 4\.4314 at delta 1e-05 for one "
        r"example task 'demo', one example: epsilon 4\.4314 at delta 1e-05, not amplified, "
        r"add-or-remove, against the aggregator.* One example whose data served in every task: "
        r"epsilon 4\.4314",
        said(two, "two"),
    )
    assert "1 released, 1 charged; no differential privacy" in said(none, "none")
    for encoded in none._entries:
        two.append(encoded)
    mixed = said(two, "mixed")
    assert "all tasks together: epsilon infinite at delta 1e-05 for one example" in mixed
    assert "task 'plain': no differential privacy" in mixed
    assert (
        "every task: epsilon infinite at delta 1e-05. Task 'plain' adds no noise that protects it. "
        "All other tasks together: epsilon 4.4314 at delta 1e-05." in mixed
    )


@pytest.mark.parametrize(
    ("demands", "broken"),
    [
        ((), []),
        (("--require-dp",), ["no-differential-privacy"]),
        (("--max-epsilon", "1000"), ["epsilon-too-large"]),
        (
            ("--require-dp", "--max-epsilon", "4.9"),
            ["no-differential-privacy", "epsilon-too-large"],
        ),
    ],
)
def test_an_auditor_may_demand_privacy_of_all_tasks_together(
    tmp_path: Path, demands: tuple[str, ...], broken: list[str]
) -> None:
    """A ledger that verifies is refused with the reason, and exit code 1, where it does not."""
    plain = built(task="plain", algorithm="fedavg", privacy="none")
    mixed = ledger(built(), (4, 4))
    for encoded in listing(plain, [listed(plain, entry(1, 4), cohort=b"p" * 32)])._entries:
        mixed.append(encoded)
    command = ["audit", "verify", str(put(mixed, tmp_path)), "--key", VERIFIER, *demands]
    answer = CliRunner().invoke(app, [*command, "--format", "json"])
    printed = json.loads(answer.stdout)
    assert printed["verified"]
    assert [demand["reason"] for demand in printed["broken"]] == broken
    assert answer.exit_code == (1 if broken else 0)
    assert printed["without_privacy"] == ["plain"]
    (statement,) = printed["statements"]
    assert (statement["task"], statement["unit"], statement["delta"]) == ("demo", "example", 1e-5)
    assert (statement["adjacency"], statement["amplified"]) == ("add-or-remove", False)
    assert "aggregator" in statement["adversary"]
    assert printed["epsilon"] is None  # infinite
    assert [total["unbounded"] for total in printed["totals"]] == [["plain"]] * 2
    assert printed["totals"][0]["bounded"] == statement["epsilon"]
    said = CliRunner().invoke(app, command).output
    assert all(f"[{reason}]" in said for reason in broken)


@pytest.mark.parametrize(("limit", "code"), [("4.43", 1), ("4.44", 0)])
def test_the_limit_is_for_the_total_of_a_unit_that_a_task_protects(
    tmp_path: Path, limit: str, code: int
) -> None:
    folder = put(ledger(built(), (4, 4)), tmp_path)
    command = ["audit", "verify", str(folder), "--key", VERIFIER, "--require-dp"]
    assert CliRunner().invoke(app, [*command, "--max-epsilon", limit]).exit_code == code
    empty = put(LedgerBuilder(ORIGIN), tmp_path / "empty")
    command[2] = str(empty)
    assert CliRunner().invoke(app, command).exit_code == 1  # nothing shows any privacy


def test_the_report_works_without_a_network_and_as_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the report asked for a network")

    folder = put(ledger(built(), (4, 5)), tmp_path / "ledger")
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    command = ["audit", "report", str(folder), "--key", VERIFIER, "--format", "json"]
    answer = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "report.html")])
    assert answer.exit_code == 0
    printed = json.loads(answer.stdout)
    assert printed["verified"]
    assert printed["data"]["tasks"][0]["releases"][1]["survivors"] == 5
    assert printed["data"]["software"] == software()
    assert software()["SHA-256 of its code"] in (tmp_path / "report.html").read_text("utf-8")


def test_the_digest_of_the_code_follows_the_code(tmp_path: Path) -> None:
    (tmp_path / "dp" / "inner").mkdir(parents=True)
    file = tmp_path / "dp" / "inner" / "module.py"
    file.write_text("x = 1\n")
    first = code_digest(tmp_path)
    assert first == code_digest(tmp_path)
    file.write_text("x = 2\n")
    changed = code_digest(tmp_path)
    file.rename(tmp_path / "dp" / "module.py")
    assert len({first, changed, code_digest(tmp_path)}) == 3


def test_devices_are_lost_before_or_after_the_masking_set_or_with_their_cohort() -> None:
    builder = ledger(TASKS["none"], (4, 5))
    (task,) = data_of(builder).tasks
    released = [row for row in task.releases if row.outcome == "released"]
    gone = sum(row.cohort_size - row.survivors for row in released)
    assert sum(row.devices or 0 for row in task.lost) == gone > 0
    page = section(render(data_of(builder)), "Where devices were lost", 4)
    assert all(row.text in page for row in task.lost)
    assert "not recorded" in page


def test_losses_of_evaluations_are_drawn_if_their_releases_are_the_ledgers(tmp_path: Path) -> None:
    from secagg_cli.audit.evaluations import read_evaluations
    from secagg_cli.output import UnusableArgument

    data = data_of(ledger(TASKS["none"], (4, 5)))
    (task,) = data.tasks
    releases = [
        {
            "release": row.number,
            "outcome": row.outcome,
            "survivors": row.survivors,
            "leaf_index": row.leaf,
            "released_at": row.at,
            "metrics": {"loss": loss},
        }
        for row, loss in zip(task.releases, (2.5, None), strict=True)
    ]
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps({"task": task.task, "releases": releases}))
    found = read_evaluations([file], data)
    page = section(render(data, evaluations=found), "What evaluations measured", 2)
    assert "loss, nats per token" in page
    assert ">2.5</td>" in page
    assert page.count("not stated") == 5
    releases[0]["survivors"] += 1
    file.write_text(json.dumps({"task": task.task, "releases": releases}))
    with pytest.raises(UnusableArgument, match="evaluation-not-in-ledger"):
        read_evaluations([file], data)


def test_the_page_is_dark_where_the_reader_wants_it_and_never_on_paper() -> None:
    page = page_of(TASKS["distributed"])
    assert "@media screen and (prefers-color-scheme: dark)" in page
    style = page.split("<style>", 1)[1].split("</style>", 1)[0]
    colours = set(re.findall(r"#[0-9a-f]{3,6}", re.sub(r":root \{.*?\}", "", style, flags=re.S)))
    assert colours == set()
    assert "#000000" not in page.split("</style>", 1)[1]
