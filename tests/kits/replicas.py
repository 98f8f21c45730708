"""Replicas of one service over one database, with a balancer in front."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.kits.service import Served, served, spec


class Balanced:
    """A load balancer that sends every request to the next replica that is up."""

    def __init__(self, *replicas: Served) -> None:
        self.up = list(replicas)
        self._turn = itertools.count()

    @property
    def url(self) -> str:
        return self.up[next(self._turn) % len(self.up)].url

    @property
    def service(self) -> Any:
        return self.up[0].service


@asynccontextmanager
async def pair(
    tmp_path: Path, database_url: str, **settings: Any
) -> AsyncIterator[tuple[Served, Served]]:
    """Two replicas, each with a data folder of its own."""
    shared = {
        "database_url": database_url,
        "blob_dir": tmp_path / "blobs",
        "keys_dir": tmp_path / "keys",
    }
    async with (
        served(tmp_path / "one", spec(), **shared, **settings) as one,
        served(tmp_path / "two", **shared, **settings) as two,
    ):
        yield one, two
