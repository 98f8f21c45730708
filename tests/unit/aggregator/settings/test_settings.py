"""Settings as people bring them: which count, and what is said of those that cannot."""

import asyncio
import json
import os
import string
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from aggregator.settings.options import Settings
from aggregator.store.database import Database
from aggregator.store.urls import parsed_url, postgres_arguments
from secagg.errors import ConfigurationError
from secagg_cli.main import app
from tests.kits.sealed import CELLS

NAMES = frozenset(Settings.model_fields) - {"config"}
ODD = "?#%&=;: +@'\"\\~é"
SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SECAGG_"):
            monkeypatch.delenv(name)


def refusal(config: Path | None = None, **overrides: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(config, **overrides)
    return caught.value


def variables(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("by_variable", [False, True])
@pytest.mark.parametrize("name", ["nosuch.toml", "folder", "file/below"])
def test_a_file_that_is_not_there_is_an_error(
    name: str, by_variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    config = tmp_path / name
    if by_variable:
        monkeypatch.setenv("SECAGG_CONFIG", str(config))
    found = refusal(None if by_variable else config)
    assert found.reason == "settings-missing"
    assert str(config) in found.message


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        (b"port = = 1\n", "settings-malformed", "line 1"),
        ("# Gr\xfc\xdfe\n".encode("latin-1"), "settings-malformed", "utf-8"),
        (b"prot = 1\n", "settings-unknown", "'prot'"),
        (b"[server]\nport = 1\n", "settings-unknown", "'server'"),
        (b"config = 'other.toml'\n", "settings-unknown", "'config'"),
        (b"port = 'eighty'\n", "settings-invalid", "port"),
        (b"port = 65536\n", "settings-invalid", "port"),
        (b"poll_s = nan\n", "settings-invalid", "poll_s"),
        (b"data_dir = ''\n", "settings-invalid", "data_dir"),
        (b"host = ''\n", "settings-invalid", "host"),
        (b"log_level = 'loud'\n", "settings-invalid", "log_level"),
        (b"witnesses = 'a'\n", "settings-invalid", "witnesses"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    text: bytes, reason: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "secagg.toml"
    file.write_bytes(text)
    found = refusal(file)
    assert found.reason == reason
    assert said in found.message
    assert str(file) in found.message


def test_a_misspelt_key_is_told_its_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("admin_prot = 1\n")
    assert "admin_port" in (refusal(tmp_path / "c.toml").remedy or "")


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text("admin_prot = 1\nhots = 'x'\nport = 'eighty'\n")
    variables(monkeypatch, SECAGG_LOG_LEVEL="loud", SECAGG_OPERATOR_TOKEN=SECRET[:3])
    found = refusal(tmp_path / "c.toml")
    assert found.reason == "settings-unknown"
    for said in (
        "'admin_prot', which",
        "is admin_port meant?",
        "'hots', which",
        "is host meant?",
        f"The setting port, from {tmp_path / 'c.toml'}, cannot be used: expected a valid integer",
        "found eighty",
        "The setting log_level, from the variable SECAGG_LOG_LEVEL",
        "found LOUD",
        "The setting operator_token, from the variable SECAGG_OPERATOR_TOKEN",
        "found (not shown)",
    ):
        assert said in found.message, said
    assert "admin_port or host" in (found.remedy or "")


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbfport = 7\r\n")
    assert Settings.load(tmp_path / "c.toml", data_dir=tmp_path).port == 7


def test_both_values_and_the_place_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    variables(monkeypatch, SECAGG_PORT="70000", SECAGG_LOG_LEVEL="loud")
    found = refusal()
    assert "port, from the variable SECAGG_PORT" in found.message
    assert "log_level" in found.message
    assert found.expected == "less than or equal to 65535"
    assert found.found == "70000"


def test_kubernetes_variables_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of services called secagg, secagg-admin and secagg-aggregator."""
    host = "10.104.104.172"
    for service in ("SECAGG", "SECAGG_ADMIN", "SECAGG_AGGREGATOR"):
        variables(
            monkeypatch,
            **{
                f"{service}_PORT": f"tcp://{host}:8080",
                f"{service}_SERVICE_HOST": host,
                f"{service}_SERVICE_PORT": "8080",
                f"{service}_SERVICE_PORT_HTTP": "8080",
                f"{service}_PORT_8080_TCP": f"tcp://{host}:8080",
                f"{service}_PORT_8080_TCP_PROTO": "tcp",
                f"{service}_PORT_8080_TCP_PORT": "8080",
                f"{service}_PORT_8080_TCP_ADDR": host,
            },
        )
    settings = Settings.load()
    assert (settings.port, settings.admin_port) == (8080, 8081)
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "kubernetes-variables-passed-over"
    assert len(line["variables"]) == 24


def test_a_variable_that_no_setting_has_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    variables(monkeypatch, SECAGG_OPERATOR_TOKN=SECRET, SECAGG_SERVER="http://x")
    Settings.load()
    said = capsys.readouterr().err
    assert SECRET not in said
    line = json.loads(said)
    assert (line["variable"], line["nearest"]) == (
        "SECAGG_OPERATOR_TOKN",
        "SECAGG_OPERATOR_TOKEN",
    )


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    variables(
        monkeypatch, SECAGG_PORT="", SECAGG_OPERATOR_TOKEN="", SECAGG_CONFIG="", SECAGG_DATA_DIR=""
    )
    settings = Settings.load()
    assert settings.port == 8080
    assert settings.operator_token is None
    assert settings.data_dir != Path()


def test_an_empty_token_is_none_that_anybody_could_give(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("operator_token = ''\n")
    assert refusal(tmp_path / "c.toml").reason == "settings-invalid"


def test_a_token_that_is_none_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(f"operator_token = ['{SECRET}']\n")
    found = refusal(tmp_path / "c.toml")
    assert (found.reason, found.found) == ("settings-invalid", "(not shown)")
    assert SECRET not in str(found)
    with pytest.raises(ValidationError) as caught:
        Settings(operator_token=[SECRET])
    assert SECRET not in str(caught.value)


def test_witnesses_are_json_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    variables(monkeypatch, SECAGG_WITNESSES='{"key": "http://w"}')
    assert Settings.load().witnesses == {"key": "http://w"}
    variables(monkeypatch, SECAGG_WITNESSES="{")
    assert "witnesses" in refusal().message


def test_a_table_counts_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text('witnesses = {file = "http://f"}\n')
    variables(monkeypatch, SECAGG_WITNESSES='{"variable": "http://v"}')
    assert set(Settings.load(tmp_path / "c.toml").witnesses) == {"variable"}
    argument = {"argument": "http://a"}
    assert Settings.load(tmp_path / "c.toml", witnesses=argument).witnesses == argument


@pytest.mark.parametrize("value", ["null", "[]", "1", '"a"', "{"])
def test_witnesses_that_are_no_table_are_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables(monkeypatch, SECAGG_WITNESSES=value)
    found = refusal()
    assert (found.reason, found.found) == ("settings-invalid", value)
    assert "the variable SECAGG_WITNESSES" in found.message


@pytest.mark.parametrize(
    "url",
    [
        SECRET,
        f"mysql://u:{SECRET}@h/d",
        f"postgresql://u:{SECRET}@h:port/d",
        f"postgresql://u:{SECRET}@h/d?channel_binding=require",
        f"postgresql://u:{SECRET}@h/d?connect_timeout={SECRET[:0]}soon",
        f"postgresql://u:a@{SECRET}@h/d",
        f"sqlite://u:{SECRET}@h/d",
        f"sqlite:///x?password={SECRET}",
    ],
)
def test_a_secret_is_in_no_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables(monkeypatch, SECAGG_DATABASE_URL=url)
    found = refusal()
    assert found.reason == "settings-invalid"
    assert "database_url" in found.message
    assert SECRET not in str(found)
    assert SECRET not in repr(Settings(database_url=url))


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("sslmode=require", {"dsn": "postgresql://?sslmode=require"}),
        ("ssl=require", {"dsn": "postgresql://?sslmode=require"}),
        ("ssl=true&sslmode=verify-full", {"dsn": "postgresql://?sslmode=verify-full"}),
        ("application_name=a%20b", {"dsn": "postgresql://?application_name=a+b"}),
        ("sslrootcert=%2Fa%3Fb%23c", {"dsn": "postgresql://?sslrootcert=%2Fa%3Fb%23c"}),
        ("connect_timeout=3", {"timeout": 3.0}),
        ("connect_timeout=0&gssencmode=disable&keepalives=1&channel_binding=prefer", {}),
    ],
)
def test_options_of_a_postgresql_url_are_libpq_s(query: str, options: dict[str, Any]) -> None:
    url = parsed_url(f"postgres://u:p%40ss@h:5/d?{query}")
    login = {"host": "h", "port": 5, "user": "u", "password": "p@ss", "database": "d"}
    assert postgres_arguments(url) == login | options


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:p@ss@h/d", "write %40 for @"),
        ("postgresql://h:99999/d", "1 to 65535"),
        ("postgresql://h:0/d", "1 to 65535"),
        ("postgresql://h/d?connect_timeout=" + "9" * 40, "at most 86400"),
        ("postgresql://h/d?connect_timeout=\u0663", "whole seconds"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////srv/a?b.db", "write %3F for ?"),
        ("sqlite:///x.db?mode=memory", "names more than a file"),
        ("sqlite://srv/secagg.db", "sqlite:////FILE"),
    ],
)
def test_an_address_of_which_a_part_would_be_lost_is_refused(url: str, said: str) -> None:
    found = refusal(database_url=url)
    assert found.reason == "settings-invalid"
    assert said in str(found)
    assert len(str(found)) < 400


@pytest.mark.parametrize("path", ["/srv/a b", "/srv/a#b", "/srv/a&b=c", "/srv/~x", "/srv/a%b"])
def test_a_path_with_special_characters_is_the_file_that_is_meant(path: str) -> None:
    """As it stands; of the letters of a URL only ? and % are written by their numbers."""
    assert parsed_url("sqlite:///" + path.replace("%", "%25")).database == path
    assert parsed_url("sqlite:////srv/a%3Fb").database == "/srv/a?b"


@pytest.mark.parametrize("query", ["", "?sslmode=disable&application_name=x&connect_timeout=5"])
async def test_a_database_that_does_not_answer_is_a_typed_error(query: str) -> None:
    pytest.importorskip("asyncpg")
    database = Database(parsed_url(f"postgresql://u:{SECRET}@127.0.0.1:1/d{query}"), CELLS)
    with pytest.raises(ConfigurationError, match="database-unreachable") as caught:
        await database.migrate()
    assert "127.0.0.1:1" in str(caught.value)
    assert SECRET not in str(caught.value)


async def test_a_driver_s_word_on_a_bad_option_is_handed_on() -> None:
    pytest.importorskip("asyncpg")
    database = Database(parsed_url("postgresql://u:p@127.0.0.1:1/d?sslmode=bogus"), CELLS)
    with pytest.raises(ConfigurationError, match="verify-full"):
        await database.migrate()


@hypothesis_settings(deadline=None, max_examples=15)
@given(name=st.text(alphabet=string.ascii_letters + ODD, min_size=1, max_size=12))
def test_a_data_folder_may_have_any_name(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("x") / f"d{name}"
    folder.mkdir()

    async def migrate() -> None:
        database = Database(Settings.load(data_dir=folder).database, CELLS)
        await database.migrate()
        await database.close()

    asyncio.run(migrate())
    assert (folder / "secagg.db").stat().st_size > 0
    assert [path.name for path in folder.parent.iterdir()] == [f"d{name}"]


WHATEVER = st.one_of(
    st.text(
        alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=9
    ),
    st.sampled_from(("1", "0", "-1", "nan", "inf", "1e400", "70000", "true", "{}", "tcp://h:1")),
)


@hypothesis_settings(deadline=None)
@given(
    environment=st.dictionaries(
        st.sampled_from(sorted(NAMES)).map(lambda name: f"SECAGG_{name.upper()}"), WHATEVER
    )
)
def test_whatever_a_variable_holds_settings_or_a_typed_error_come(
    environment: dict[str, str],
) -> None:
    try:
        with mock.patch.dict(os.environ, environment):
            settings = Settings.load()
    except ConfigurationError as error:
        found: tuple[str, object] | None = (error.reason, error.expected)
    else:
        found = None
    if found is None:
        assert 0 <= settings.port <= 65_535
        assert settings.host
        assert settings.operator_token is None or settings.operator_token.get_secret_value()
    else:
        assert found[0] == "settings-invalid"
        assert found[1] is not None


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        (("--config", "nosuch.toml"), {}, "settings-missing"),
        ((), {"SECAGG_PORT": "x"}, "settings-invalid"),
        ((), {"SECAGG_DATABASE_URL": SECRET}, "settings-invalid"),
    ],
)
def test_serve_refuses_as_every_command_does(
    arguments: tuple[str, ...],
    environment: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variables(monkeypatch, **environment)
    done = CliRunner().invoke(app, ["serve", *arguments, "--format", "json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["error"]["reason"] == reason
    assert "defect" not in done.output + done.stderr
    assert "Traceback" not in done.output + done.stderr
    assert SECRET not in done.output + done.stderr


@pytest.mark.parametrize("port", ["70000", "-1", "x"])
def test_a_port_out_of_range_is_a_usage_error(port: str) -> None:
    for option in ("--port", "--admin-port"):
        assert CliRunner().invoke(app, ["serve", option, port]).exit_code == 2


def test_a_home_folder_may_be_meant_by_its_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables(monkeypatch, HOME=str(tmp_path), SECAGG_DATA_DIR="~/data")
    assert Settings.load().data_dir == tmp_path / "data"


@pytest.mark.parametrize(
    ("given", "lacking"),
    [
        ({"tls_certificate": "c"}, "tls_key"),
        ({"tls_key": "k"}, "tls_certificate"),
        ({"tls_client_ca": "a"}, "tls_certificate"),
        ({"admin_tls": True}, "tls_certificate"),
        ({"admin_client_ca": "a"}, "tls_certificate"),
    ],
)
def test_settings_of_tls_come_whole(given: dict[str, Any], lacking: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="settings-invalid") as caught:
        Settings.load(data_dir=tmp_path, **given)
    assert lacking in str(caught.value.remedy)


def test_every_setting_is_in_the_documents() -> None:
    page = (Path(__file__).parents[4] / "docs" / "settings.md").read_text("utf-8")
    assert not [name for name in NAMES if f"`{name}`" not in page]


@pytest.mark.parametrize(
    "line",
    [
        "port = true",
        "poll_s = true",
        'tls_certificate = ""',
        'audit_log = ""',
        'ledger_name = "a\\nb"',
    ],
)
def test_a_value_that_would_mean_another_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(line)
    found = refusal(tmp_path / "c.toml")
    assert found.reason == "settings-invalid"
    assert f"The setting {line.split()[0]}, from" in found.message
