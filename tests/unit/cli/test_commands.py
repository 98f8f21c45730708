"""The small commands, run as a user runs them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client_sdk.training.dataset import unread
from secagg_cli.join.training_data import left_out, read_rows
from secagg_cli.main import app
from tests.kits.commands import invoke


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
    words = ["plan", "privacy", "--noise-multiplier", "1", "--rounds", "1", "--delta", "2"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "--delta" in done.output


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
    keys = invoke("audit", "verify", str(tmp_path / "nothing"), "--key", "k", code=2)
    assert keys["error"]["reason"] == "ledger-missing"


def test_join_names_the_bad_line_but_not_its_content(tmp_path: Path) -> None:
    """It goes on: the absence of a device whose file has a bad line would be seen by all."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "my secret"}\n')
    arguments = ("join", str(tmp_path / "bundle.json"), "--data", str(data), "--task", "t")
    done = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert json.loads(done.stdout)["error"]["reason"] == "bundle-unreadable"
    assert "1 of 2 examples" in done.stderr
    assert "Line 2 of data.jsonl: " in done.stderr
    assert "my secret" not in done.output


def test_join_reads_labelled_texts(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "good", "label": 1}\n\n{"text": "bad", "label": 0, "id": 7}\n')
    rows = read_rows(data)
    assert [row["text"] for row in rows] == ["good", "bad"]
    assert rows.lines == (1, 3)
    assert left_out(rows) is None


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "my secret", "label": true}',
        b'{"text": "my secret", "label": -1}',
        b'{"text": "my secret", "label": 1.0}',
        b'{"text": "my secret", "label": "good"}',
        b'{"text": "my secret"}',
        b'["my secret", 1]',
        b"[" * 100_000,
        b'{"text": "my secret \xff", "label": 1}',
        b'{"text": "a' + b"a" * (1 << 20) + b'", "label": 1}',
        b"my secret",
        b'{"my secret": 1}',
        b'{"prompt": "my secret", "prompt": "b", "answer": "c"}',
    ],
)
def test_any_other_line_keeps_its_place_and_is_told(line: bytes, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(b'{"text": "good", "label": 1}\n\n' + line + b'\n{"text": "b", "label": 0}')
    rows = read_rows(data)
    assert [rows[0]["text"], rows[2]["text"]] == ["good", "b"]
    (one,) = unread(rows)
    assert (one.index, one.place) == (1, "line 3 of data.jsonl")
    told = left_out(rows)
    assert told is not None
    assert "1 of 3 examples" in told
    assert "Line 3 of data.jsonl: " in told
    assert "my secret" not in told
    data.write_bytes(line)
    assert "noise alone" in str(left_out(read_rows(data)))


def test_a_file_without_lines_is_no_error_and_is_told(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    for empty in (b"", b"\n", b"\xef\xbb\xbf\r\n \n", b"[]"):
        data.write_bytes(empty)
        rows = read_rows(data)
        assert len(rows) == 0
        assert "holds no example" in str(left_out(rows))


def test_plan_cohort_derives_a_sparse_graph_with_its_failure_probabilities() -> None:
    keys = invoke("plan", "cohort", "--clients", "1000", "--corrupt", "0.1", "--dropout", "0.1")
    assert (keys["degree"], keys["threshold"], keys["complete"]) == (138, 102, False)
    assert keys["security_log2"] <= -40
    assert keys["failure_log2"] <= -20
    more = invoke(
        "plan", "cohort", "--clients", "1000", "--corrupt", "0.1", "--security-bits", "80"
    )
    assert more["degree"] > keys["degree"]
