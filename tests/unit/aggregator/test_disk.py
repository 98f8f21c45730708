"""Which disk is below its mark, and whose that is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import AsyncMock

import pytest

from aggregator.disk import full
from aggregator.measures import Measures
from aggregator.metrics import Samples
from aggregator.settings.options import Settings


class _Usage(NamedTuple):
    free: int
    total: int = 1 << 41


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


async def test_every_disk_that_can_be_too_full_has_its_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "db"):
        (tmp_path / name).mkdir()
    settings = Settings.load(
        data_dir=tmp_path / "data", database_url=f"sqlite:///{tmp_path}/db/secagg.db"
    )
    free = {tmp_path / "db": 0}
    monkeypatch.setattr("shutil.disk_usage", lambda folder: _Usage(free.get(folder, 1 << 40)))
    found = full(settings)
    assert found is not None
    assert found.folder == tmp_path / "db"
    core: Any = SimpleNamespace(settings=settings, ask_blobs=AsyncMock(return_value=0))
    none: Any = None
    samples = Samples()
    await Measures(core, none, none, none, none)._from_disk(samples)
    shown = samples.found["secagg_disk_free_bytes"]
    assert shown == {("data",): 1 << 40, ("blobs",): 1 << 40, ("database",): 0}
