"""A histogram of screen times, with numpy alone. Nobody sees a device's own sixteen numbers.

python app.py BUNDLE STATE_FOLDER MINUTES_FILE
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from client_sdk import Client, Event, PrivacyPolicy, RunResult, SecaggError, TrainingJob

TASK = "screen-time"
BINS = 16
DAY_MINUTES = 1_440
POLICY = PrivacyPolicy(min_cohort=50, max_epsilon=4.0, require="distributed")


class Histogram:
    """The shares of a device's days in each bin: at most 1 in L2 norm, the clip of the task."""

    def __init__(self, minutes: Sequence[float]) -> None:
        self.minutes = np.asarray(minutes, float)

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        counts, _ = np.histogram(self.minutes, bins=BINS, range=(0, DAY_MINUTES))
        return {"minutes": counts / max(1, counts.sum())}


def show(event: Event) -> None:
    print(event.to_json(), flush=True)


def take_part(bundle: str | Path, state: str | Path, minutes: Sequence[float]) -> RunResult:
    """Blocks until one release holds this device's contribution, or the device refuses."""
    client = Client.from_bundle(
        bundle, policy=POLICY, state_dir=state, data_id="screen-time", on_event=show
    )
    return client.run(Histogram(minutes), task=TASK, rounds=1)


def main() -> None:
    bundle, state, minutes = sys.argv[1:4]
    try:
        result = take_part(bundle, state, np.loadtxt(minutes, ndmin=1).tolist())
    except SecaggError as error:
        sys.exit(str(error))  # reason, both values and the way out
    for refusal in result.refusals:
        print(refusal)
    print(f"{len(result.releases)} release, epsilon {result.epsilon:.2f} spent in this task")


if __name__ == "__main__":
    main()
