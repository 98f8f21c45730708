"""What a shell expects of a command: version, completion, ends of streams, users without a home."""

import json
import os
import pwd
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import secagg
from secagg.errors import ConfigurationError
from secagg_cli.main import app
from secagg_cli.models import cache

ROOT = Path(__file__).resolve().parents[3]
PLAN = ("plan", "cohort", "--clients", "10")
PYTHON = (sys.executable, "-m", "secagg_cli.main")


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "SECAGG": " ".join(PYTHON), **environment},
    )


def test_the_version_is_one_line() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.output == f"secagg {secagg.__version__}\n"
    assert secagg.__version__[0].isdigit()


def test_the_version_stands_in_one_place() -> None:
    """A package that is built has the version that the command prints."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in found["project"]
    assert "version" in found["project"]["dynamic"]
    assert found["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "secagg.__version__"}


def test_a_shell_completes_commands() -> None:
    asked = shell(
        "$SECAGG --show-completion bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert "_SECAGG_COMPLETE=complete_bash" in asked.stdout
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output
    code = "import sys; sys.argv = ['secagg']; import secagg_cli.main as m; m.main()"
    done = shell(
        f'"{sys.executable}" -c "{code}"',
        _SECAGG_COMPLETE="complete_bash",
        COMP_WORDS="secagg pl",
        COMP_CWORD="1",
    )
    assert done.stdout.split() == ["plan"]


@pytest.mark.parametrize("format_", ["text", "json"])
@pytest.mark.parametrize("arguments", [" ".join(PLAN), "plan cohort --clients 200 --corrupt 0.5"])
def test_a_full_disk_is_told_in_a_line(arguments: str, format_: str) -> None:
    done = shell(f"$SECAGG {arguments} --format {format_} >/dev/full")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "No space left" in done.stderr


@pytest.mark.parametrize("arguments", [" ".join(PLAN), "--help", "plan privacy"])
@pytest.mark.parametrize("format_", ["", " --format json"])
def test_a_reader_that_has_gone_is_no_trace(arguments: str, format_: str) -> None:
    done = shell(f"$SECAGG {arguments}{format_} | true")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Errno" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_is_closed_is_no_trace(closed: str) -> None:
    done = shell(f"$SECAGG {' '.join(PLAN)} --format json {closed}")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    if ">&-" not in closed.split():
        assert json.loads(done.stdout)["clients"] == 10


@pytest.fixture
def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without a name: no HOME, and no entry in the list of users."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("_nobody")
def test_without_a_home_folder_commands_say_what_to_name() -> None:
    for arguments in (["serve"], ["plan", "memory", "--model", "tiny"]):
        done = CliRunner().invoke(app, [*arguments, "--format", "json"])
        assert done.exit_code == 1
        error = json.loads(done.stdout)["error"]
        assert error["reason"] == "no-home"
        assert "HOME" in error["remedy"] or "--data-dir" in error["remedy"]
    done = CliRunner().invoke(app, ["doctor", "--format", "json"])
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert not checks["cache folder writable"]["ok"]
    assert checks["this folder writable"]["ok"]
    assert "defect" not in done.output


@pytest.mark.usefixtures("_nobody")
def test_a_model_folder_needs_no_home(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert cache.ensure_model(str(tmp_path)) == tmp_path.resolve()


@pytest.mark.parametrize("config", ["not json", "[]", '{"model_type": "nobody-s"}', "{}"])
def test_a_model_folder_that_holds_no_model_is_a_typed_error(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    for load in (cache.load_model, cache.load_config):
        with pytest.raises(ConfigurationError, match="model-unreadable"):
            load(tmp_path)


@pytest.mark.parametrize("name", ["no-such-folder", "./no/such", "/no/such/folder", "", "~"])
def test_a_model_that_is_not_there_is_a_typed_error(name: str) -> None:
    with pytest.raises(ConfigurationError, match="model-unknown"):
        cache.ensure_model(name)


@pytest.mark.parametrize("name", ["owner/a--b", "owner/a..b", "owner/name.git"])
def test_a_name_that_the_hub_does_not_admit_is_a_typed_error(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigurationError, match="model-download"):
        cache.ensure_model(name)
