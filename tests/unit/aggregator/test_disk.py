"""Which disk is below its mark, and whose that is."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from aggregator.disk import full
from aggregator.settings.options import Settings


class _Usage(NamedTuple):
    free: int


@pytest.mark.parametrize(
    ("low", "database", "shared"),
    [
        ("data", "postgresql://h/d", False),
        ("blobs", "postgresql://h/d", True),
        ("data", None, True),  # SQLite: its one service has one folder
    ],
)
def test_a_full_disk_of_one_replica_is_not_that_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, low: str, database: str | None, shared: bool
) -> None:
    for name in ("data", "blobs"):
        (tmp_path / name).mkdir()
    settings = Settings.load(
        data_dir=tmp_path / "data", blob_dir=tmp_path / "blobs", database_url=database
    )
    free = {tmp_path / name: 0 if name == low else 1 << 40 for name in ("data", "blobs")}
    monkeypatch.setattr("shutil.disk_usage", lambda folder: _Usage(free[folder]))
    found = full(settings)
    assert found is not None
    assert found.folder == tmp_path / low
    assert (full(settings, shared=True) is not None) == shared
