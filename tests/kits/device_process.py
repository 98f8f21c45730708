"""One device as a process of its own: ``device_process.py BUNDLE STATE NUMBER [HOLD_AT]``.

Prints its events as JSON lines. At the event ``HOLD_AT`` it stands still, for a test to kill it
there; with a pending session it finishes that one without a contributor.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from client_sdk import Client, Event, PrivacyPolicy, TrainingJob

TASK = "stats"


class OneHot:
    def __init__(self, number: int) -> None:
        self._number = number

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        values = np.zeros(job.manifest.data_length)
        values[self._number] = 1.0
        return {job.manifest.segments[0].name: values}


def main(bundle: str, state: str, number: str, hold_at: str = "") -> None:
    def on_event(event: Event) -> None:
        print(event.to_json(), flush=True)
        if event.kind == hold_at:
            threading.Event().wait()

    policy = PrivacyPolicy(min_cohort=2, min_corrupt=0, require=None, repeat_without_noise=True)
    client = Client.from_bundle(bundle, policy=policy, state_dir=Path(state), on_event=on_event)
    if client.has_pending():
        result = client.resume()
    else:
        result = client.run(OneHot(int(number)), task=TASK, rounds=1)
    releases = [release.release for release in result.releases]
    print(json.dumps({"releases": releases, "torch": "torch" in sys.modules}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
