"""What the pools that open sums cost: threads of one process, and a Ray cluster on this machine.

    python -m benchmarks.opening --masks 10,100,1000 --length 4000000

Both pools open the same sum in turns, and the results are compared bit by bit. ``--workers``
threads or processes each. Seconds by the clock, the best of ``--turns``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from aggregator.compute.opening import Opening
from aggregator.compute.pools import LocalPool, Pool
from aggregator.compute.ray_pool import RayPool
from secagg.masks import MaskTerm
from secagg.ring import Lanes, lane_dtype
from secagg.secret import Secret

BITS, SLICE = 24, 1 << 18


async def opened(pool: Pool, work: Opening, length: int) -> tuple[Lanes, float]:
    total = np.zeros(length, lane_dtype(BITS))
    began = time.perf_counter()
    await pool.take_off(work, total)
    return total, time.perf_counter() - began


async def measure(masks: list[int], length: int, workers: int, turns: int) -> dict[str, Any]:
    threads = LocalPool(ThreadPoolExecutor(workers), SLICE)
    cluster = RayPool(None, workers, SLICE)
    began = time.perf_counter()
    await cluster.start()
    started_s = time.perf_counter() - began
    rows = []
    for count in masks:
        work = Opening(BITS, tuple(MaskTerm(Secret(os.urandom(32)), 1) for _ in range(count)))
        seconds: dict[str, list[float]] = {"local": [], "ray": []}
        await opened(cluster, work, SLICE * workers)  # its processes have begun
        for _ in range(turns):
            here, local_s = await opened(threads, work, length)
            there, ray_s = await opened(cluster, work, length)
            np.testing.assert_array_equal(here, there)
            seconds["local"].append(local_s)
            seconds["ray"].append(ray_s)
        best = {name: round(min(found), 3) for name, found in seconds.items()}
        rows.append({"masks": count, **best, "ratio": round(best["ray"] / best["local"], 2)})
    await cluster.close()
    return {
        "length": length,
        "workers": workers,
        "start_s": round(started_s, 1),
        "seconds": rows,
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", default="10,100,1000", help="numbers of them, with commas")
    parser.add_argument("--length", type=int, default=4_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    masks = [int(count) for count in given.masks.split(",")]
    print(
        json.dumps(asyncio.run(measure(masks, given.length, given.workers, given.turns)), indent=2)
    )


if __name__ == "__main__":
    main()
