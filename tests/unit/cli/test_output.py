"""The voice of the commands: one JSON object, text on standard error, stable exit codes."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from aggregator.http.problems import respond
from secagg.errors import ConfigurationError
from secagg_cli.main import app
from secagg_cli.output import CommandError, Format, Output, print_json


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "secagg_cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done


def test_a_typed_error_becomes_exit_code_1_with_reason_and_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as exit_, Output(Format.json):
        raise ConfigurationError("too-small", "Too small.", expected=3, found=2, remedy="Grow.")
    assert exit_.value.exit_code == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {
            "reason": "too-small",
            "message": "Too small. Expected 3, found 2.",
            "remedy": "Grow.",
        }
    }
    assert "too-small" in captured.err
    assert "Grow." in captured.err


def test_ctrl_c_exits_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as exit_, Output(Format.json):
        raise KeyboardInterrupt
    assert exit_.value.exit_code == 130
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "interrupted"


def test_text_goes_to_standard_error_beside_json(capsys: pytest.CaptureFixture[str]) -> None:
    with Output(Format.json) as out:
        out.say("for [people]")
        out.table("title", ["a"], [["[b]"]])
        out.result({"x": 1})
    captured = capsys.readouterr()
    assert captured.out == '{"x": 1}\n'
    assert "for [people]" in captured.err
    assert "[b]" in captured.err


def test_a_wrong_command_line_is_exit_code_2_and_still_one_json_object() -> None:
    done = run("plan", "privacy", "--no-such-option", "--format", "json", code=2)
    assert json.loads(done.stdout)["error"]["reason"] == "usage"
    assert "no-such-option" in done.stderr


def test_an_argument_that_cannot_be_used_is_one_json_object_too() -> None:
    words = ("audit", "verify", "/no/such/ledger", "--key", "x", "--format", "json")
    assert json.loads(run(*words, code=2).stdout)["error"]["reason"] == "ledger-missing"


def test_help_and_a_device_without_training_import_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['secagg', '--help']\n"
        "import secagg_cli.main as m, client_sdk\n"
        "try: m.main()\n"
        "except SystemExit: pass\n"
        "from client_sdk import Client, PrivacyPolicy\n"
        "assert not {'torch', 'transformers', 'matplotlib', 'sqlalchemy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_json_is_strict(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("inf"), {"b": float("nan")}], "c": (1.5, None, True, "x")})
    assert json.loads(capsys.readouterr().out) == {
        "a": [None, {"b": None}],
        "c": [1.5, None, True, "x"],
    }


@pytest.mark.parametrize("terminal", ["0", "1"])
def test_a_table_cuts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: str
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    if terminal == "1":
        monkeypatch.setenv("FORCE_COLOR", "1")
    key = "0123456789abcdef" * 4
    with Output(Format.text) as out:
        out.table(None, ["device", "note"], [[key, "lost by the ward"]])
    shown = capsys.readouterr().out
    if terminal == "0":
        assert key in shown
    assert "…" not in shown
    assert sum(shown.count(letter) for letter in "123456789") >= 36


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ""),
        ({"expected": 3}, "expected 3"),
        ({"found": "x"}, "found 'x'"),
        ({"expected": 3, "found": 0}, "expected 3, found 0"),
        ({"expected": False, "found": ""}, "expected False, found ''"),
    ],
)
def test_an_error_says_the_values_that_there_are(
    values: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = CommandError("too-small", "Too small.", **values)  # type: ignore[arg-type]
    assert error.values == said
    with pytest.raises(typer.Exit), Output(Format.json):
        raise error
    answered = respond(error).body
    assert isinstance(answered, bytes)
    for text in (str(error), capsys.readouterr().out, answered.decode()):
        assert said[1:] in text
        assert "None" not in text


TAKEN = (
    (("task", "export", "t", "--out"), "out-taken"),
    (("task", "export", "t", "--peft", "--out"), "out-not-empty"),
    (("device", "evidence", "ab" * 32, "--out"), "out-taken"),
    (("audit", "report", "http://127.0.0.1:9", "--key", "k", "--out"), "out-taken"),
    (("demo", "--out"), "out-not-empty"),
    (("enroll", "--partner-key", "no.key", "--out"), "out-unwritable"),
)


@pytest.mark.parametrize(("arguments", "reason"), TAKEN)
def test_a_place_that_is_taken_is_refused_before_anybody_is_asked(
    arguments: tuple[str, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server answers here: the place is looked at first."""
    monkeypatch.setenv("SECAGG_SERVER", "http://127.0.0.1:9")
    monkeypatch.setenv("SECAGG_OPERATOR_TOKEN", "token")
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    done = CliRunner().invoke(app, [*arguments, str(mine), "--format", "json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["reason"] == reason
    assert mine.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in TAKEN])
def test_a_folder_with_others_things_stays_as_it_is(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECAGG_SERVER", "http://127.0.0.1:9")
    monkeypatch.setenv("SECAGG_OPERATOR_TOKEN", "token")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("years")
    done = CliRunner().invoke(app, [*arguments, ".", "--format", "json"])
    assert done.exit_code == (3 if arguments[0] == "enroll" else 1)
    reason = json.loads(done.stdout)["error"]["reason"]
    assert reason in ("out-is-folder", "out-not-empty", "server-unreachable")
    assert (reason == "server-unreachable") == (arguments[0] == "enroll")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("out", "server", "reason", "code"),
    [
        ("", "http://127.0.0.1:9", "out-unwritable", 1),
        ("dangling", "http://127.0.0.1:9", "out-unwritable", 1),
        ("dangling/new", "http://127.0.0.1:9", "out-unwritable", 1),
        ("thesis.txt", "http://127.0.0.1:9", "out-unwritable", 1),
        ("new", "http://user:secret@127.0.0.1:9", "server-url", 2),
        ("new", "127.0.0.1:9", "server-url", 2),
        ("new", "http://127.0.0.1:65536", "server-url", 2),
    ],
)
def test_bundles_go_to_a_place_and_name_a_server_that_can_be_used(
    out: str, server: str, reason: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("years")
    (tmp_path / "dangling").symlink_to("nowhere")
    arguments = ["enroll", "--partner-key", "p.key", "--out", out, "--server", server]
    done = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert (done.exit_code, json.loads(done.stdout)["error"]["reason"]) == (code, reason)
    assert json.loads(done.stdout)["error"]["remedy"]
    assert "secret" not in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "thesis.txt"]


def test_what_others_wrote_moves_no_cursor_and_turns_no_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "paused \u202edesrever \x1b[2J\rgone \ud800 \u2066 caf\u00e9\u00a0au lait"
    out = Output(Format.text)
    out.say(words)
    out.warn(words)
    out.table(words, ["words"], [[words]])
    out._refuse("reason", words, words)
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert "\\u202edesrever" in text
        assert "\\x1b[2J\\rgone \\ud800 \\u2066 caf\u00e9" in text
        assert not any(each in text for each in "\u202e\x1b\r\u2066")


def test_an_error_over_a_full_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.stdout, "write", full)
    with pytest.raises(typer.Exit) as exit_, Output(Format.json) as out:
        out.result({"x": 1})
    assert exit_.value.exit_code == 1
    assert "No space left" in capsys.readouterr().err
