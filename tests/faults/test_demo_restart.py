"""The real service process is killed with SIGKILL in the middle of a round and started again.

Devices send one-hot vectors over two opening slices, so a vector that was lost or counted twice
shows in the released sum.
"""

import queue
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from client_sdk import Client, Event, PrivacyPolicy, RunResult, TransportSettings
from secagg.limits import SLICE_LENGTH
from secagg_cli.audit.command import audit_ledger
from secagg_cli.demo.service import Service
from secagg_cli.operator.enroll import enrol, partner_key
from secagg_cli.operator.export import read_vector
from secagg_cli.processes import Children

DEVICES = 4
LENGTH = SLICE_LENGTH + DEVICES
TASK = "one-hot"
# Otherwise a device may rest for 5 s after the service is back.
QUICK = TransportSettings(backoff_max_s=0.5, jitter_s=0.05)
SPEC = {
    "task": TASK,
    "algorithm": "sum",
    "privacy": "none",
    "segments": [{"name": "ones", "length": LENGTH, "clip": 2.0}],
    "cohort": {"size_min": DEVICES, "size_max": DEVICES, "survivors_min": 3},
    "budget": {"max_epsilon": None, "releases_max": 2},
}


def one_hot(index: int) -> np.ndarray:
    vector = np.zeros(LENGTH)
    vector[[index, SLICE_LENGTH + index]] = 1.0
    return vector


class OneHot:
    def __init__(self, index: int) -> None:
        self.index = index

    def contribute(self, job: object) -> dict[str, np.ndarray]:
        return {"ones": one_hot(self.index)}


@dataclass
class Fleet:
    """Devices in threads; the first to reach ``point`` stops there until the test lets it go."""

    folder: Path
    bundles: list[Path]
    point: str
    reached: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    go_on: threading.Event = field(default_factory=threading.Event)
    results: dict[int, RunResult | BaseException] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._first = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(index,), daemon=True)
            for index in range(DEVICES)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(120)
        assert len(self.results) == DEVICES, "a device did not end"

    def _run(self, index: int) -> None:
        client = Client.from_bundle(
            self.bundles[index],
            policy=PrivacyPolicy(
                min_cohort=3, min_corrupt=0, require=None, repeat_without_noise=True
            ),
            state_dir=self.folder / f"state-{index}",
            on_event=self._on_event,
            transport=QUICK,
        )
        try:
            self.results[index] = client.run(OneHot(index), task=TASK, rounds=1)
        except BaseException as error:
            self.results[index] = error

    def _on_event(self, event: Event) -> None:
        if event.kind == self.point and self._first.acquire(blocking=False):
            self.reached.put(event.kind)
            self.go_on.wait(60)


@pytest.mark.parametrize("point", ["reported", "shared", "masking", "uploaded", "confirmed"])
def test_a_killed_service_ends_the_round_with_the_right_sum(tmp_path: Path, point: str) -> None:
    with Children() as children:
        service = Service(tmp_path / "server", children)
        service.start()
        operator = service.operator()
        operator.add_partner("partner", partner_key(tmp_path / "partner.key"))
        operator.create_task(SPEC)
        bundles = enrol(service.url, tmp_path / "partner.key", tmp_path / "bundles", DEVICES)
        fleet = Fleet(tmp_path, bundles, point)
        fleet.start()
        assert fleet.reached.get(timeout=60) == point
        service.kill()
        service.start()
        fleet.go_on.set()
        fleet.join()
        for result in fleet.results.values():
            assert isinstance(result, RunResult), result
            assert len(result.releases) == 1
        view = operator.task(TASK)
        vector = read_vector(operator.model(TASK))
        service.stop()

    released = [release for release in view.releases if release.outcome == "released"]
    assert len(released) == 1
    assert released[0].survivors == DEVICES
    np.testing.assert_array_equal(vector, sum(one_hot(index) for index in range(DEVICES)))
    audit = audit_ledger(str(service.ledger_folder), service.verifier)
    assert audit.verified, audit.problems
    assert audit.releases == 1
