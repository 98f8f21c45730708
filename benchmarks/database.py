"""Bytes of the service's database per device and round: how large it grows, and what stays.

    python benchmarks/database.py --tasks 5 --devices 60 --rounds 2

Every device of a round is real but for its SDK; the vectors have 40 numbers, since vectors are not
in the database. The largest file, with its log of writes, is looked for while a round runs; what
stays is the file's pages that are in use after it. One JSON line for each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
from pathlib import Path

import numpy as np

from dp.contracts import BudgetSpec, CohortSpec, DeadlineSpec, TaskSpec
from tests.kits.service import Device, Served, finished, served, spec

_LOOK_S = 0.05


def _task(name: str, devices: int) -> TaskSpec:
    cohort = CohortSpec(
        size_min=devices, size_max=devices, survivors_min=devices * 3 // 4, corrupt_max=0
    )
    deadlines = DeadlineSpec(
        report_s=600, share_s=600, check_s=600, masked_input_s=600, confirm_s=600, unmask_s=600
    )
    budget = BudgetSpec(max_epsilon=None, releases_max=100)
    return spec(task=name, cohort=cohort, deadlines=deadlines, budget=budget)


async def _largest(file: Path, found: list[int]) -> None:
    while True:
        with_log = (file, file.with_name(f"{file.name}-wal"))
        found.append(sum(each.stat().st_size for each in with_log if each.exists()))
        await asyncio.sleep(_LOOK_S)


def _in_use(file: Path) -> int:
    with sqlite3.connect(file) as database:
        pages, free, size = (
            database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - free) * size)


async def _round(server: Served, tasks: list[str], devices: int) -> None:
    fleet = [
        Device(server, number, np.zeros(40), task=task)
        for task in tasks
        for number in range(devices)
    ]
    assert finished(await asyncio.gather(*(device.run() for device in fleet))) == len(fleet)


async def _measure(folder: Path, tasks: int, devices: int, rounds: int) -> None:
    names = [f"task{number}" for number in range(tasks)]
    async with served(folder) as server:
        for name in names:
            await server.set_up(_task(name, devices))
        file = folder / "secagg.db"
        before = _in_use(file)
        for number in range(rounds):
            sizes: list[int] = []
            looking = asyncio.create_task(_largest(file, sizes))
            await _round(server, names, devices)
            looking.cancel()
            await server.service.core.database.checkpoint()
            after, count = _in_use(file), tasks * devices
            print(
                json.dumps(
                    {
                        "round": number,
                        "largest_bytes": max(sizes),
                        "largest_per_device": max(sizes) // count,
                        "file_bytes": file.stat().st_size,
                        "stays_per_device": (after - before) // count,
                    }
                ),
                flush=True,
            )
            before = after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--devices", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder), given.tasks, given.devices, given.rounds))


if __name__ == "__main__":
    main()
