"""``secagg demo`` as a user runs it: real processes, real drop-outs, a real model."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from secagg_cli.audit.command import audit_ledger

DEMO = [sys.executable, "-m", "secagg_cli.main", "demo"]


def run_demo(folder: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [*DEMO, "--out", str(folder), "--format", "json", *options],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    return json.loads(done.stdout)


def check_adapter(folder: str) -> None:
    """Loads with plain peft onto the base model that its own config names."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM

    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    changed = [
        bool(tensor.any()) for name, tensor in model.named_parameters() if ".lora_B." in name
    ]
    assert changed
    assert all(changed)


def test_the_demo_trains_through_drop_outs_and_its_ledger_verifies(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    keys = run_demo(folder, "--model", "tiny", "--clients", "4", "--rounds", "2")
    assert (keys["rounds"], keys["clients"], keys["dropped"]) == (2, 4, 2)
    assert keys["loss_after"] < keys["loss_before"]
    assert 0 < keys["epsilon"] <= 8
    assert keys["delta"] == 1e-5
    assert keys["ledger_verified"] is True
    assert [line["mode"] for line in keys["privacy"]] == ["C"]
    for number, row in enumerate(keys["per_round"], 1):
        assert (row["round"], row["cohort"], row["dropped"]) == (number, 4, 1)
        assert row["resumed"] is (number == 1)
        assert row["sum_norm"] > 0
        assert row["epsilon"]["local"] is row["epsilon"]["device"] is None
    assert keys["per_round"][-1]["epsilon"]["distributed"] == keys["epsilon"]
    check_adapter(keys["adapter"])

    audit = audit_ledger(keys["ledger"], str(folder / "verifier.key"))
    assert audit.verified
    assert audit.releases == 2
    report = Path(keys["report"]).read_text("utf-8")
    assert f"{keys['loss_after']:.3f}" in report
    events = (folder / "events.log").read_text("utf-8").splitlines()
    resumed = [line for line in events if "life 2 resumed" in line and '"uploading"' in line]
    assert len(resumed) == 1  # in the first round one device came back to confirm and unmask


def test_smollm2_learns_in_one_release(tmp_path: Path) -> None:
    keys = run_demo(tmp_path / "demo", "--clients", "3", "--rounds", "1")
    assert keys["dropped"] == 0  # the threshold of three devices permits none
    assert keys["per_round"][0]["resumed"] is True
    assert keys["loss_after"] < keys["loss_before"]
    assert keys["ledger_verified"] is True
    check_adapter(keys["adapter"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_demo_that_is_stopped(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "demo"
    demo = subprocess.Popen(
        [*DEMO, "--model", "tiny", "--clients", "4", "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        for line in demo.stdout:
            if "in each," in line:
                break
        children = psutil.Process(demo.pid).children(recursive=True)
        assert children
        demo.send_signal(number)
        output, errors = demo.communicate(timeout=60)
    finally:
        demo.kill()
    if number != signal.SIGKILL:
        assert demo.returncode == 130, output + errors
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []


def test_what_cannot_work_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep me")
    for options, reason in (
        (["--out", str(tmp_path)], "out-not-empty"),
        (
            ["--out", str(tmp_path / "x"), "--algorithm", "fedavg", "--privacy", "distributed"],
            "algorithm-privacy",
        ),
        (["--out", str(tmp_path / "x"), "--algorithm", "fedavgg"], "algorithm-unknown"),
        (["--out", str(tmp_path / "y"), "--model", "no-such-model"], "model-unknown"),
    ):
        done = subprocess.run([*DEMO, *options, "--format", "json"], capture_output=True, text=True)
        assert done.returncode == 1
        assert json.loads(done.stdout)["error"]["reason"] == reason
        assert done.stdout.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("part", "reason"), [("serve", "service-failed"), ("join", "device-failed")]
)
def test_a_part_that_dies_ends_the_demo_with_the_reason(
    tmp_path: Path, part: str, reason: str
) -> None:
    options = ["--model", "tiny", "--clients", "3", "--out", str(tmp_path / "d")]
    demo = subprocess.Popen(
        [*DEMO, *options, "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in demo.stderr:
            if "in each," in line:
                break
        victim = None
        while victim is None:
            children = psutil.Process(demo.pid).children(recursive=True)
            victim = next((child for child in children if part in child.cmdline()), None)
        victim.kill()
        output, _ = demo.communicate(timeout=120)
    finally:
        demo.kill()
    assert demo.returncode == 1
    assert json.loads(output)["error"]["reason"] == reason
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
