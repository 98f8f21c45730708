"""An app around the SDK as a partner would ship it: a program that is told to pause, to go on, to
leave and to forget, that may be killed at any moment, and that prints what happens as JSON lines.

    python app.py BUNDLE STATE_FOLDER [--small]

Commands come on stdin, one a line: ``pause``, ``resume``, ``stop``, ``forget``. ``--small`` is for
trials: it admits cohorts of a handful of devices.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from client_sdk import (
    Client,
    Event,
    PrivacyPolicy,
    RunResult,
    SecaggError,
    TrainingJob,
    TransportSettings,
)

TASK = "errands"
LENGTH = 20_000
POLICY = PrivacyPolicy(min_cohort=50, max_epsilon=6.0, require="distributed")
STEPS = 50


class Errands:
    """Where the user's minutes go; takes a second, as work on a phone does."""

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        counts = np.zeros(LENGTH)
        random = np.random.default_rng(7)
        for step in range(STEPS):
            if job.stop.wait(0.02):
                raise RuntimeError("stopped")
            job.progress(step, STEPS)
            counts[random.integers(0, LENGTH, 20)] += 1
        return {"minutes": counts / np.linalg.norm(counts)}


class App:
    def __init__(self, bundle: Path, state: Path, policy: PrivacyPolicy) -> None:
        self.client = Client.from_bundle(
            bundle,
            policy=policy,
            state_dir=state,
            on_event=self.show,
            transport=TransportSettings(patience_s=20.0),
        )
        self.stop = threading.Event()
        self.forget = False

    def show(self, event: Event) -> None:
        print(event.to_json(), flush=True)

    def listen(self) -> None:
        """Commands, until the app is closed."""
        for line in sys.stdin:
            match line.strip():
                case "pause":
                    self.client.pause()
                case "resume":
                    self.client.resume()
                case "stop":
                    self.stop.set()
                case "forget":
                    self.forget = True
                    self.stop.set()
        self.stop.set()

    def run(self) -> int:
        threading.Thread(target=self.listen, daemon=True).start()
        try:
            tell("explained", text=self.client.explain(TASK).text())  # the user may close the app
            result = self.client.run(Errands(), task=TASK, stop=self.stop)
            if self.forget:
                if result.pending:
                    result = self.client.resume()  # a cohort counts on this device
                gone = self.client.forget()
                tell("forgotten", account=gone.account, lasting=list(gone.lasting))
        except SecaggError as error:
            tell("error", reason=error.reason, message=str(error), remedy=error.remedy)
            return 1
        self.sum_up(result)
        return 0

    def sum_up(self, result: RunResult) -> None:
        tell(
            "ended",
            releases=len(result.releases),
            epsilon=result.epsilon,
            refusals=[refusal.reason for refusal in result.refusals],
            stopped=result.stopped,
            pending=result.pending,
        )


def tell(kind: str, **detail: object) -> None:
    print(json.dumps({"event": kind, **detail}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    small = {"min_cohort": 3, "min_corrupt": 0} if given.small else {}
    policy = replace(POLICY, **small)
    tell("started", process=os.getpid())
    return App(given.bundle, given.state, policy).run()


if __name__ == "__main__":
    sys.exit(main())
