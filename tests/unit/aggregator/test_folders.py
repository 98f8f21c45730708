"""A data folder of before that others can read is closed at the start, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aggregator import logs
from aggregator.folders import close_database, close_to_others
from aggregator.service import Service
from aggregator.settings.options import Settings
from secagg.errors import ConfigurationError
from tests.kits.log_lines import lines, of


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def test_an_open_data_folder_with_an_open_database_is_closed_and_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    settings = Settings.load(data_dir=data)
    service = Service(settings)
    await service.start()
    await service.close()
    assert (mode(data), mode(data / "secagg.db")) == (0o700, 0o600)
    data.chmod(0o755)
    (data / "secagg.db").chmod(0o644)
    capsys.readouterr()
    logs.configure()
    again = Service(settings)
    await again.start()
    assert (mode(data), mode(data / "secagg.db")) == (0o700, 0o600)
    beside = {path.name: mode(path) for path in data.glob("secagg.db-*")}
    assert beside == dict.fromkeys(("secagg.db-replicas", "secagg.db-shm", "secagg.db-wal"), 0o600)
    await again.close()
    told = {line["path"]: line["before"] for line in of("permissions-tightened", lines(capsys))}
    assert told == {str(data): "0755", str(data / "secagg.db"): "0644"}


def test_what_cannot_be_closed_is_refused_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secagg.db"
    file.touch(0o644)
    file.chmod(0o644)

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refused)
    with pytest.raises(ConfigurationError) as caught:
        close_database(file)
    assert caught.value.reason == "data-permissions"
    assert f"chmod 600 {file}" in str(caught.value.remedy)
    # Somebody else's folder, as a volume with a group of its own: its files are looked at.
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    tmp_path_mode = 0o755
    os.chmod(tmp_path, tmp_path_mode)
    close_to_others(tmp_path)
    assert mode(tmp_path) == tmp_path_mode


@pytest.mark.parametrize("token", ["a", "1234567", "with space", "größe-größe"])
def test_a_weak_token_is_refused_with_a_way_to_make_one(tmp_path: Path, token: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(data_dir=tmp_path, operator_token=token)
    assert caught.value.reason == "settings-invalid"
    assert "secrets.token_urlsafe" in str(caught.value.remedy)
    assert caught.value.found == "(not shown)"
    file = tmp_path / "operator.token"
    file.write_text(token)
    file.chmod(0o600)
    with pytest.raises(ConfigurationError) as refused:
        Service(Settings.load(data_dir=tmp_path))
    assert refused.value.reason == "operator-token-weak"
    assert str(file) in refused.value.message
