"""What is told of the settings: a template that loads, and those in force with their origin."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aggregator.settings.describe import described, in_force, template
from aggregator.settings.options import Settings
from secagg.errors import ConfigurationError
from secagg_cli.main import app

SECRET = "hunter2-hunter2"
NUMBERS = re.compile(r"_(s|bytes_max|max|min)$")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SECAGG_"):
            monkeypatch.delenv(name)


def uncommented(without: str) -> str:
    lines = re.findall(r"^# (\w+ = .*)$", template(), re.MULTILINE)
    return "\n".join(line for line in lines if not line.startswith(without))


def test_every_setting_says_what_it_means_and_numbers_their_unit() -> None:
    for each in described():
        assert each.meaning.endswith("."), each.name
        if NUMBERS.search(each.name):
            assert each.unit, each.name


def test_the_template_is_empty_settings_with_every_name() -> None:
    assert tomllib.loads(template()) == {}
    names = re.findall(r"^# (\w+) = ", template(), re.MULTILINE)
    assert set(names) == set(Settings.model_fields) - {"config"}


@pytest.mark.parametrize("without", ["blob_url", "blob_dir"])  # two names of one thing
def test_each_line_of_the_template_may_be_set(without: str, tmp_path: Path) -> None:
    pytest.importorskip("asyncpg")
    (tmp_path / "c.toml").write_text(uncommented(f"{without} "))
    settings = Settings.load(tmp_path / "c.toml")
    plain = Settings(data_dir=tmp_path)
    examples = {d.name for d in described() if Settings.model_fields[d.name].default is None}
    examples |= {"data_dir", "witnesses", "opening_threads"}
    for each in described():
        if each.name not in examples:
            assert getattr(settings, each.name) == getattr(plain, each.name), each.name


def test_what_is_in_force_says_from_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"port = 9000\nadmin_port = 9001\noperator_token = '{SECRET}'\n")
    monkeypatch.setenv("SECAGG_PORT", "9002")
    monkeypatch.setenv("SECAGG_DATABASE_URL", f"postgresql://u:{SECRET}@h:5/d?application_name=x")
    given = {"config": file, "data_dir": tmp_path}
    found = {f.name: (f.value, f.origin) for f in in_force(Settings.load(**given), given)}
    assert found["port"] == (9002, "the variable SECAGG_PORT")
    assert found["admin_port"] == (9001, str(file))
    assert found["data_dir"] == (str(tmp_path), "--data-dir")
    assert found["host"] == ("127.0.0.1", "its default")
    assert found["blob_dir"] == (str(tmp_path / "blobs"), "its default")
    assert found["database_url"] == ("postgresql://h:5/d", "the variable SECAGG_DATABASE_URL")
    assert found["operator_token"] == ("(hidden)", str(file))


def test_the_commands_show_no_secret_and_overwrite_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    monkeypatch.setenv("SECAGG_OPERATOR_TOKEN", SECRET)
    done = run(app, ["config", "show", "--format", "json"])
    assert done.exit_code == 0
    shown = json.loads(done.stdout)["settings"]
    assert shown["operator_token"] == {
        "value": "(hidden)",
        "unit": "",
        "from": "the variable SECAGG_OPERATOR_TOKEN",
    }
    assert SECRET not in done.output + done.stderr
    assert run(app, ["config", "template"]).stdout == template()
    assert run(app, ["config", "template", "--out", "s.toml"]).exit_code == 0
    assert Path("s.toml").read_text() == template()
    assert run(app, ["config", "show", "--config", "s.toml"]).exit_code == 0
    assert run(app, ["config", "template", "--out", "s.toml"]).exit_code != 0


def test_a_password_in_a_url_is_not_shown(tmp_path: Path) -> None:
    file, key = tmp_path / "c.toml", "w+aaaaaaaa+AbCdEfGhIjKlMnOpQrStUvWxYz0123456789+/AbCdEf"
    tables = f'ray_address = "ray://u:{SECRET}@head:1"\n'
    file.write_text(f'{tables}[witnesses]\n"{key}" = "https://u:{SECRET}@w.example/a"\n')
    given = {"config": file, "data_dir": tmp_path}
    found = {f.name: f.value for f in in_force(Settings.load(**given), given)}
    assert found["witnesses"] == {key: "https://<redacted>@w.example/a"}
    assert found["ray_address"] == "ray://<redacted>@head:1"
    file.write_text(f'witnesses = "https://u:{SECRET}@w.example"\nhost = 3\n')
    with pytest.raises(ConfigurationError) as refused:
        Settings.load(**given)
    assert SECRET not in f"{refused.value} {refused.value.found}"
    assert "<redacted>@w.example" in f"{refused.value} {refused.value.found}"
