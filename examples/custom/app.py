"""A contributor of one's own: two statistics of how somebody types, read from the app's records.

It bounds each statistic itself, says how far it is, and stops when it is told to.

    python app.py BUNDLE STATE_FOLDER RECORDS.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from client_sdk import Client, Event, PrivacyPolicy, RunResult, TaskRefusal, TrainingJob

TASK = "typing"
POLICY = PrivacyPolicy(min_cohort=50, max_epsilon=6.0, require="distributed")
_AT_ONCE = 1_000  # records between two looks at job.stop


class Typing:
    """Counts over lines ``{"word": ..., "hour": 0-23, "corrected": bool}``, each of norm 1."""

    def __init__(self, records: Path) -> None:
        self.records = records

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        lengths = {segment.name: segment.length for segment in job.manifest.segments}
        if lengths != {"word-lengths": 12, "corrections": 24}:
            raise TaskRefusal(
                "other-statistics", "This app counts something else.", found=sorted(lengths)
            )
        words, corrections = np.zeros(12), np.zeros(24)
        lines = self.records.read_text("utf-8").splitlines()
        for number, line in enumerate(lines):
            if number % _AT_ONCE == 0:
                if job.stop.is_set():  # the app pauses, or the result is too late
                    raise RuntimeError("stopped")
                job.progress(number, len(lines))
            record = json.loads(line)
            words[min(len(record["word"]), 12) - 1] += 1
            corrections[record["hour"]] += record["corrected"]
        return {"word-lengths": _bounded(words), "corrections": _bounded(corrections)}


def _bounded(counts: np.ndarray) -> np.ndarray:
    """Norm 1 at most: what is longer the SDK would shorten to the segment's clip."""
    return counts / max(1.0, float(np.linalg.norm(counts)))


def show(event: Event) -> None:
    print(event.to_json(), flush=True)


def take_part(bundle: str | Path, state: str | Path, records: Path) -> RunResult:
    client = Client.from_bundle(
        bundle, policy=POLICY, state_dir=state, data_id="typing", on_event=show
    )
    return client.run(Typing(records), task=TASK, rounds=1)


if __name__ == "__main__":
    print(take_part(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
