"""What commands tell: what was done before a refusal, reasons in words, the option at fault."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import client_sdk
from client_sdk.errors import PolicyRefusal, TransportError
from client_sdk.network.http import Http, TransportSettings
from client_sdk.rounds.participant import Outcome
from dp.tlog.notes import COSIGNATURE_V1, verifier_key
from secagg_cli.audit.command import audit_ledger
from secagg_cli.audit.ledger_files import witness_keys
from secagg_cli.join.sentences import sentence
from secagg_cli.main import app
from secagg_cli.output import UnusableArgument
from tests.kits.commands import invoke

LOG = verifier_key("ledger.test", bytes(range(32)))
WITNESS = verifier_key("witness.test", bytes(range(32)), COSIGNATURE_V1)


@pytest.mark.parametrize("releases", [0, 2])
def test_a_refusal_after_releases_tells_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, releases: int
) -> None:
    refusal = PolicyRefusal("own-budget", "Enough was spent.", remedy="Raise max_epsilon.")
    result = client_sdk.RunResult(
        releases=tuple(Outcome("t", n, None, release=n + 1) for n in range(releases)),
        epsilon=3.5,
        refusals=(refusal,),
        aborted=1,
    )
    client = SimpleNamespace(run=lambda *_, **__: result, state_dir=tmp_path)
    monkeypatch.setattr(client_sdk.Client, "from_bundle", lambda *_, **__: client)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    words = ("join", str(tmp_path / "b.json"), "--data", str(data), "--task", "t")
    told = invoke(*words, code=1)
    assert told["error"]["reason"] == "own-budget"
    assert "--max-epsilon" in told["error"]["remedy"]
    assert (told["releases"], told["epsilon"], told["aborted"]) == (
        [n + 1 for n in range(releases)],
        3.5,
        1,
    )
    text = CliRunner().invoke(app, words)
    assert text.exit_code == 1
    assert "Enough was spent." in text.output


@pytest.mark.parametrize(
    ("kind", "detail", "said"),
    [
        (
            "checked-in",
            {"version": 1, "no_finite_total": "stats", "others": 2.5},
            "checked-in: version 1, all tasks together have no finite epsilon, because of stats; "
            "the others cost 2.5",
        ),
        (
            "waiting",
            {"reason": "model-given", "version": 3},
            "waiting: this device gave a vector for this model; it waits for the next, version 3",
        ),
        ("waiting", {"reason": "task-paused"}, "waiting: the task is paused"),
        (
            "progress",
            {"what": "upload", "done": 40, "total": 90, "seconds_left": 2.4},
            "upload: 40 of 90, about 2 s left",
        ),
        (
            "progress",
            {"what": "training", "done": 1, "total": 9, "seconds_left": None},
            "training: 1 of 9",
        ),
        ("stopped", {"pending": True}, "stopped: a cohort counts on this device"),
        ("refused", {"reason": "own-budget", "message": "Enough."}, "refused: Enough."),
        ("reported", {"leaf_index": 4}, "reported: leaf index 4"),
        ("released", {"epsilon_micro": 2_977_412}, "released: epsilon 2.977"),
    ],
)
def test_events_are_told_in_words(
    kind: str, detail: dict[str, object], said: str, tmp_path: Path
) -> None:
    assert sentence(client_sdk.Event(kind, "t", None, detail), tmp_path) == said  # type: ignore[arg-type]


def test_a_key_in_the_wrong_option_is_told_with_its_option(tmp_path: Path) -> None:
    file = tmp_path / "log.key"
    file.write_text(LOG)
    for given in (LOG, str(file)):
        with pytest.raises(UnusableArgument) as caught:
            witness_keys([WITNESS, given])
        assert caught.value.reason == "verifier-key"
        assert caught.value.message.startswith(f"--witness {given}: ")
        assert "a ledger's key, which --key takes" in (caught.value.remedy or "")
    (tmp_path / "checkpoint").write_bytes(b"")
    with pytest.raises(UnusableArgument) as caught:
        audit_ledger(str(tmp_path), WITNESS)
    assert caught.value.message.startswith("--key ")
    assert "a witness's key, which --witness takes" in (caught.value.remedy or "")


@pytest.mark.parametrize("name", ["report.txt", "report", "report.pdf", ".json/x", "a.html.gz"])
def test_a_report_of_no_form_is_refused_before_the_ledger_is_read(
    tmp_path: Path, name: str
) -> None:
    place = tmp_path / name
    words = ["audit", "report", str(tmp_path / "none"), "--key", LOG, "--out", str(place)]
    done = CliRunner().invoke(app, [*words, "--format", "json"])
    error = json.loads(done.stdout)["error"]
    assert (done.exit_code, error["reason"]) == (2, "report-form")
    assert ".html or .json" in error["message"]
    assert not place.exists()


def test_a_plan_tells_the_other_unit_s_cost_too() -> None:
    arguments = ("--cohort", "8", "--rounds", "10", "--epsilon", "4", "--length", "1000")
    for unit, other in (("device", "example"), ("example", "device")):
        keys = invoke("plan", "task", *arguments, "--unit", unit)
        assert keys["costs"].keys() == {"device", "example"}
        assert keys["costs"][unit] == pytest.approx(keys["epsilon"], rel=1e-6)
        shown = keys["costs"][other]
        assert shown is None or shown > keys["epsilon"] / 2  # None: infinite
        text = CliRunner().invoke(app, ["plan", "task", *arguments, "--unit", unit]).stdout
        assert f"one {other}, which this task does not protect, costs epsilon" in text


async def test_retries_draw_nothing_from_python_s_generator() -> None:
    """The self-test of a model watches it, and a retry beside it is none of the model's coins."""
    settings = TransportSettings(backoff_first_s=0.0, backoff_max_s=0.0, jitter_s=1e-4)
    left = [TransportError("response-malformed", "x"), TransportError("response-malformed", "x")]
    before = random.getstate()

    async def once() -> str:
        if left:
            raise left.pop()
        return "answer"

    assert await Http.retry(SimpleNamespace(settings=settings), once) == "answer"  # type: ignore[arg-type]
    assert random.getstate() == before
