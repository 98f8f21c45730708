"""Devices that spoil cohorts, and what the service says of them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from secagg import client
from secagg.secret import Secret
from tests.kits.sealed import plain
from tests.kits.service import (
    Device,
    Served,
)


class Spoiler(Device):
    """Masks with a seed that it did not deal: its vector is wrong, and nobody can name it."""

    async def perform(self, effect: client.Effect) -> None:
        if isinstance(effect, client.ProvideVector):
            self.state = replace(self.state, self_seed=Secret(os.urandom(32)))
        await super().perform(effect)


def again(device: Device) -> Device:
    """The same device with a fresh session."""
    kind = type(device)
    return kind(device.server, device.number, device.value, seed=device.seed)


async def rows(server: Served, table: Any) -> list[Any]:
    """All of a table, with sealed cells open."""
    database = server.service.core.database
    found = await database.rows(table.select())
    return [plain(database.cells, table.name, row._mapping) for row in found]
