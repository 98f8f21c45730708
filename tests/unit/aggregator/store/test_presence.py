"""The lock beside a SQLite database: who holds it, and what is not a holder."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from aggregator.store import presence
from aggregator.store.presence import FilePresence
from secagg.errors import ConfigurationError


async def test_replicas_share_it_and_a_command_has_it_alone(tmp_path: Path) -> None:
    file = tmp_path / "db-replicas"
    one, two, command = FilePresence(file), FilePresence(file), FilePresence(file)
    await one.start()
    await two.start()
    with pytest.raises(ConfigurationError, match="replicas-running"):
        async with command.alone():
            pass
    await one.close()
    await two.close()
    async with command.alone():
        with pytest.raises(ConfigurationError, match="database-in-maintenance"):
            await one.start()


async def test_a_file_of_another_user_is_not_a_command_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first `sudo secagg db upgrade` leaves it."""

    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(presence.os, "open", refused)
    with pytest.raises(ConfigurationError) as caught:
        await FilePresence(tmp_path / "db-replicas").start()
    assert caught.value.reason == "database-lock-unusable"
    assert "chown" in str(caught.value.remedy)


async def test_a_file_system_without_locks_keeps_no_service_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(presence, "share_file", without)
    held = FilePresence(tmp_path / "db-replicas")
    await held.start()
    await held.close()
