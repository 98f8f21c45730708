"""What a bad network costs devices: a row for each fault and rate, as docs/networks.md has them.

    python -m benchmarks.network
    python -m benchmarks.network --only cut,502 --seeds 3

Three devices, each behind a proxy with seeded faults (``tests/kits/fault_proxy.py``), release one
sum of ``--length`` numbers together, with the SDK's own times and steps of 25 s. A device whose
network failed it runs again, as an app would let it. Shown are how the devices ended, after how
long, what went up with heads, which part of the vectors was sent more than once, how many cohorts
it took, and how many requests met a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from aggregator import logs
from client_sdk import TransportSettings
from tests.kits.bad_networks import REPORTED, Ended, Pace, run_fleet
from tests.kits.fault_proxy import FAULTS, Schedule

_MIX = ("drop", "drop-late", "lost-answer", "cut", "duplicate", "reorder", "502")
_OWN = TransportSettings()
_SHORT = TransportSettings(patience_s=60.0, request_s=5.0, poll_s=5.0, transfer_s=10.0)
_SLOW = replace(REPORTED, transport=_SHORT, step_s=120.0, run_s=600.0)


@dataclass(frozen=True)
class Row:
    """Faults at a rate; ``pace``: times and speeds; ``length``: of its vectors, if not as all."""

    name: str
    faults: tuple[str, ...]
    rate: float
    pace: Pace = REPORTED
    length: int | None = None


ROWS = (
    Row("none", (), 0.0),
    Row("duplicate", ("duplicate",), 0.4),
    Row("reorder, 0 to 3 s", ("reorder",), 0.4),
    Row("drop", ("drop",), 0.3),
    Row("lost-answer", ("lost-answer",), 0.3),
    Row("cut", ("cut",), 0.3),
    Row("502", ("502",), 0.3),
    Row("portal", ("portal",), 0.25),
    Row("empty 200", ("empty",), 0.25),
    Row("mix", _MIX, 0.25),
    Row("mix", _MIX, 0.4),
    Row("stall", ("stall",), 0.08),
    Row("half-open", ("half-open",), 0.08),
    Row("slow-down, 2 kB/s", ("slow-down",), 0.5, replace(REPORTED, bytes_per_s=2_000.0)),
    Row("slow-up, 20 kB/s", ("slow-up",), 1.0, replace(_SLOW, bytes_per_s=20_000.0)),
    Row("slow, 1 kB/s, 65 kB", ("slow",), 1.0, replace(_SLOW, transport=_OWN), 20_000),
    Row("drop-late", ("drop-late",), 0.3),
    Row("502-late", ("502-late",), 0.3),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--length", type=int, default=300_000, help="numbers in a vector")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row")
    parser.add_argument("--only", default="", help="faults, with commas between")
    arguments = parser.parse_args()
    wanted = set(filter(None, arguments.only.split(",")))
    if unknown := wanted - FAULTS.keys():
        sys.exit(f"no such fault: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    logs.configure("ERROR")
    os.environ["NO_PROXY"] = "127.0.0.1"
    print("| fault | share | ended | seconds | MB up | sent again | cohorts | faults met |")
    print("|---|---|---|---|---|---|---|---|")
    for row in ROWS:
        if not wanted or wanted & set(row.faults):
            runs = [
                _run(row, seed, row.length or arguments.length) for seed in range(arguments.seeds)
            ]
            print(_line(row, runs), flush=True)


def _run(row: Row, seed: int, length: int) -> Ended:
    def schedule(device: int) -> Schedule:
        return Schedule(row.faults, row.rate, 100 * seed + device)

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(run_fleet(Path(folder), schedule, row.pace, length=length))


def _line(row: Row, runs: list[Ended]) -> str:
    ends = Counter(end for run in runs for end in run.ends)
    met = sum(sum(run.met.values()) - run.met.get("none", 0) for run in runs)
    again = sum(run.sent_bytes for run in runs) / max(1, sum(run.vector_bytes for run in runs)) - 1
    cells = (
        row.name,
        f"{row.rate:.0%}",
        ", ".join(f"{count} {end}" for end, count in ends.most_common()),
        f"{statistics.mean(run.seconds for run in runs):.0f}",
        f"{statistics.mean(run.up_bytes for run in runs) / 1e6:.2f}",
        f"{max(again, 0.0):.1%}",
        f"{statistics.mean(run.cohorts for run in runs):g}",
        f"{met}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
