"""The small commands, run as a user runs them."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from secagg_cli.main import app
from secagg_cli.rows import read_rows


def invoke(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_bench_mask_reports_ratios_against_the_raw_key_stream() -> None:
    keys = invoke(
        "bench", "mask", "--clients", "8", "--length", "70000", "--bits", "24", "--dropout", "0.25"
    )
    assert keys["dropped"] == 2
    assert keys["degree"] == 7
    for name in ("client_mask_s", "server_open_s", "client_limit_s", "server_limit_s"):
        assert keys[name] > 0
    vector_bytes = 70_000 * 24 / 8
    assert vector_bytes < keys["upload_bytes"] <= 1.02 * vector_bytes + 7 * 2.5 * 1024
    assert keys["client_peak_bytes"] >= 70_000 * 4


def test_bench_mask_on_a_sparse_graph_and_its_refusal() -> None:
    sparse = ("bench", "mask", "--clients", "9", "--length", "1000", "--bits", "20")
    assert invoke(*sparse, "--degree", "4", "--repeat", "1")["degree"] == 4
    assert invoke(*sparse, "--degree", "5", code=1)["error"]["reason"] == "degree"


def test_bench_protocol_shows_every_part_beside_its_limit() -> None:
    small = ("bench", "protocol", "--clients", "12", "--length", "5000", "--repeat", "1")
    parts = {part["name"]: part for part in invoke(*small)["parts"]}
    assert {"pack", "unpack", "split, 9 of 12", "seal", "verify a message"} <= parts.keys()
    assert all(part["work_s"] > 0 and part["limit_s"] > 0 for part in parts.values())
    assert parts["encode with device noise"]["peak_bytes"] >= 5_000 * 8


def test_simulate_is_exact_and_replays_from_its_seed() -> None:
    arguments = ("simulate", "--clients", "6", "--length", "50", "--dropout", "0.3")
    first = invoke(*arguments, "--rounds", "3", "--seed", "7")
    again = invoke(*arguments, "--rounds", "3", "--seed", "7")
    other = invoke(*arguments, "--rounds", "3", "--seed", "8")
    assert first["exact"] is True
    assert first["rounds"] == 3
    assert first["digest"] == again["digest"] != other["digest"]


def test_plan_privacy_knows_the_gaussian_spot_value() -> None:
    keys = invoke("plan", "privacy", "--noise-multiplier", "1", "--rounds", "1", "--delta", "1e-5")
    assert keys["epsilon"] == pytest.approx(4.3772, abs=1e-4)
    assert "exact" in keys["accountant"]
    sampled = invoke(
        *("plan", "privacy", "--noise-multiplier", "2", "--rounds", "100", "--delta", "1e-6"),
        *("--sampling-rate", "0.1"),
    )
    assert sampled["epsilon"] == pytest.approx(2.6750, abs=1e-4)
    assert "pld" in sampled["accountant"]


def test_plan_privacy_refuses_what_is_no_probability() -> None:
    keys = invoke(
        "plan", "privacy", "--noise-multiplier", "1", "--rounds", "1", "--delta", "2", code=1
    )
    assert keys["error"]["reason"] == "delta"


def test_plan_cohort_says_when_drop_outs_are_not_tolerated() -> None:
    keys = invoke("plan", "cohort", "--clients", "6", "--dropout", "0.3")
    assert (keys["degree"], keys["threshold"], keys["dropouts_tolerated"]) == (5, 3, 2)
    refused = invoke("plan", "cohort", "--clients", "3", "--dropout", "0.3", code=1)
    assert refused["error"]["reason"] == "dropouts-not-tolerated"


def test_doctor_finds_this_machine_fit() -> None:
    keys = invoke("doctor")
    names = {check["name"] for check in keys["checks"]}
    assert {"Python", "packages", "AES-256-CTR", "ML-KEM-768 and HPKE"} <= names
    assert all(check["ok"] for check in keys["checks"] if check["required"])


def test_audit_of_a_missing_ledger_names_the_reason(tmp_path: Path) -> None:
    keys = invoke("audit", "verify", str(tmp_path / "nothing"), "--key", "k", code=1)
    assert keys["error"]["reason"] == "ledger-missing"


def test_join_names_the_bad_line_but_not_its_content(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "my secret"}\n')
    arguments = ("join", str(tmp_path / "bundle.json"), "--data", str(data), "--task", "t")
    error = invoke(*arguments, code=1)["error"]
    assert error["reason"] == "data-malformed"
    assert "line 2" in error["message"]
    assert "my secret" not in json.dumps(error)


def test_join_reads_labelled_texts(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good", "label": 1}\n\n{"text": "bad", "label": 0, "id": 7}\n')
    assert read_rows(data) == [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    assert read_rows(data) == [("a", "b")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "my secret", "label": true}', "data-malformed"),
        ('{"text": "my secret", "label": -1}', "data-malformed"),
        ('{"text": "my secret", "label": 1.0}', "data-malformed"),
        ('{"text": "my secret", "label": "good"}', "data-malformed"),
        ('{"text": "", "label": 1}', "data-malformed"),
        ('{"text": "my secret"}', "data-malformed"),
        ('["my secret", 1]', "data-malformed"),
        ("[" * 100_000, "data-malformed"),
        ('{"prompt": "my secret", "answer": "b"}', "data-mixed"),
    ],
)
def test_anything_but_a_labelled_text_is_refused_with_its_line(
    line: str, reason: str, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good", "label": 1}\n\n' + line + "\n")
    arguments = ("join", str(tmp_path / "bundle.json"), "--data", str(data), "--task", "t")
    error = invoke(*arguments, code=1)["error"]
    assert error["reason"] == reason
    assert "line 3 is" in error["message"]
    assert "my secret" not in json.dumps(error)


def test_plan_cohort_derives_a_sparse_graph_with_its_failure_probabilities() -> None:
    keys = invoke("plan", "cohort", "--clients", "1000", "--corrupt", "0.1", "--dropout", "0.1")
    assert (keys["degree"], keys["threshold"], keys["complete"]) == (138, 102, False)
    assert keys["security_log2"] <= -40
    assert keys["failure_log2"] <= -20
    more = invoke(
        "plan", "cohort", "--clients", "1000", "--corrupt", "0.1", "--security-bits", "80"
    )
    assert more["degree"] > keys["degree"]
