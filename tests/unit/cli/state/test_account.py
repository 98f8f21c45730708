"""``secagg account`` and what ``secagg join`` says of the account: whose spending counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import client_sdk
from client_sdk.accounts.turns import Turns
from client_sdk.enrolment import save_bundle
from client_sdk.events import Event
from dp.accounting.figures import shown_up
from dp.accounting.statements import headline, lines
from dp.contracts import BudgetSpec
from secagg_cli.join.sentences import sentence
from secagg_cli.main import app
from secagg_cli.output import CommandError
from secagg_cli.state.account import _charged, _served
from tests.kits.commands import invoke
from tests.kits.data_accounts import ONE, TWO, VERIFIER, A, B, Folder, new_bundle
from tests.kits.device import make_manifest, sum_spec


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "secagg"


def spent_by_two(tmp_path: Path, data_id: str | None, root: Path) -> list[Folder]:
    folders = [
        Folder(tmp_path / "secagg" / name, data_id, registry=root / "data", root=root)
        for name in ("first", "second")
    ]
    for folder, manifest, ctx in zip(folders, (ONE, TWO), (A, B), strict=True):
        folder.open().debit(manifest, ctx, "c")
        folder.journal.save_blob("checkpoint-x", b"as beside any charge")
    return folders


def test_show_counts_the_folders_of_the_data(tmp_path: Path, root: Path) -> None:
    first, second = spent_by_two(tmp_path, "journal", root)
    shutil.rmtree(second.path)
    shown = invoke("account", "show", str(first.path))
    assert (shown["counts"], shown["renewed"]) == ("data", 0)
    assert shown["folders"] == [
        {"path": str(first.path), "there": True},
        {"path": str(second.path), "there": False},
    ]
    assert {task: row["charges"] for task, row in shown["tasks"].items()} == {"one": 1, "two": 1}
    assert shown["tasks"]["two"]["epsilon"] == headline(lines(TWO, 1))
    assert shown["totals"][1]["stated"] == pytest.approx(headline(lines(ONE, 2)), rel=1e-9)


def test_show_says_that_unnamed_data_counts_by_user_and_a_named_folder_alone(
    tmp_path: Path, root: Path
) -> None:
    (_, second) = spent_by_two(tmp_path, None, root)
    assert invoke("account", "show", str(second.path))["counts"] == "user"
    alone = Folder(tmp_path / "alone", None)
    alone.open().debit(ONE, A, "c")
    shown = invoke("account", "show", str(alone.path))
    assert (shown["counts"], len(shown["folders"])) == ("folder", 1)
    assert shown["totals"][1]["stated"] == headline(lines(ONE, 1))


@pytest.mark.parametrize(
    ("charges", "epsilon", "said"),
    [
        (1, 1.38621, "in 1 cohort, epsilon 1.3863 at delta 1e-05 for one unit that it protects"),
        (2, float("inf"), "in 2 cohorts, no finite epsilon"),
        (2, None, "in 2 cohorts, no differential privacy"),
    ],
)
def test_a_tasks_own_figure_is_about_the_unit_that_it_protects(
    charges: int, epsilon: float | None, said: str
) -> None:
    assert _charged("one", charges, epsilon, 1e-5) == f"one: charged {said}"


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (Turns(4, 5, 2, 3), "4 parts: each is in at most 2 of these sums; 3 more charges leave it"),
        (Turns(4, 7, 2, 1), "at most 2 of these sums; 1 more charge leaves it at that"),
        (Turns(4, 8, 2, 0), "at most 2 of these sums; the next charge makes it 3"),
        (Turns(4, 8, 2, 0, "person"), "persons serve in turn, in 4 parts"),
    ],
)
def test_a_schedule_says_how_often_an_example_served_and_when_that_rises(
    turns: Turns, said: str
) -> None:
    assert said in _served(turns)


def test_a_task_s_figure_names_its_own_delta(
    tmp_path: Path,
) -> None:
    """That of the totals is another one: at a larger delta they may be lower than the task."""
    budget = BudgetSpec(max_epsilon=None, delta=1e-9, releases_max=4)
    manifest = make_manifest(sum_spec(task="strict", budget=budget), VERIFIER)
    alone = Folder(tmp_path / "alone", None)
    alone.open().debit(manifest, A, "c")
    shown = invoke("account", "show", str(alone.path))
    assert shown["tasks"]["strict"]["delta"] == 1e-9
    assert shown["totals"][1]["delta"] == 1e-5
    said = CliRunner().invoke(app, ["account", "show", str(alone.path)]).output
    epsilon = shown_up(alone.open().epsilon("strict"))
    assert f"strict: charged in 1 cohort, epsilon {epsilon} at delta 1e-09" in said


def test_a_look_is_for_a_running_device_too(tmp_path: Path) -> None:
    from client_sdk.state.journal import Lock

    alone = Folder(tmp_path / "alone", None)
    alone.open().debit(ONE, A, "c")
    with Lock(alone.path):
        assert invoke("account", "show", str(alone.path))["tasks"]["one"]["charges"] == 1


def test_renew_is_the_way_out_that_the_error_names(tmp_path: Path, root: Path) -> None:
    first, second = spent_by_two(tmp_path, "journal", root)
    shutil.rmtree(root / "data")
    error = invoke("account", "show", str(first.path), code=1)["error"]
    assert error["reason"] == "data-account-missing"
    assert "secagg account renew" in error["remedy"]
    for folder in (first, second):
        bundle = tmp_path / f"{folder.path.name}.json"
        save_bundle(bundle, folder.bundle)
        words = ("account", "renew", str(bundle), "--state", str(folder.path))
        assert invoke(*words, code=1)["error"]["reason"] == "data-id"
        invoke(*words, "--data-id", "journal")
    shown = invoke("account", "show", str(first.path))
    assert shown["renewed"] == 2
    assert shown["totals"][1]["stated"] == pytest.approx(headline(lines(ONE, 2)), rel=1e-9)


def test_join_hands_the_data_s_name_to_its_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def from_bundle(*_: object, data_id: str | None, **__: object) -> None:
        seen.append(data_id)
        raise CommandError("stopped-here", "The test has seen enough.")

    monkeypatch.setattr(client_sdk.Client, "from_bundle", from_bundle)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    save_bundle(tmp_path / "b.json", new_bundle())
    words = ("join", str(tmp_path / "b.json"), "--data", str(data), "--task", "t")
    invoke(*words, code=1)
    invoke(*words, "--data-id", "journal", code=1)
    assert seen == [None, "journal"]


@pytest.mark.parametrize(
    ("counts", "words"),
    [("folder", "this state folder alone"), ("user", "no --data-id"), ("data", "this data id")],
)
def test_join_says_in_words_what_counts(counts: str, words: str) -> None:
    numbers = {"folders": 2, "charges_of_others": 3, "renewed": 1}
    detail = {"counts": counts} | ({} if counts == "folder" else numbers)
    said = sentence(Event("account", "t", None, detail), Path("state"))
    assert words in said
    assert "--data-id" in said or counts == "data"
    if counts != "folder":
        assert "3 charges by others" in said
        assert "begun anew 1 times" in said
