"""client_sdk.testing: real devices, masks, charges and ledger, over an aggregator in memory."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from client_sdk import Event, PrivacyPolicy, TrainingJob, testing
from dp.contracts import AdaptiveClipSpec
from dp.ledger.verification import verify_ledger
from secagg import ring
from secagg.errors import ConfigurationError
from tests.kits.tasks import spec

LENGTH = 40
DEVICES = 4
TASK: dict[str, Any] = {
    "task": "counts",
    "algorithm": "sum",
    "privacy": "none",
    "segments": [{"name": "counts", "length": LENGTH, "clip": 100.0}],
    "budget": {"max_epsilon": None, "releases_max": 3},
}


class Counts:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        return {"counts": self.values}


def contributors(count: int = DEVICES) -> list[Counts]:
    random = np.random.default_rng(3)
    return [Counts(random.integers(0, 9, LENGTH).astype(float)) for _ in range(count)]


def sum_of(*given: Counts) -> np.ndarray:
    return np.sum([one.values for one in given], axis=0)


def audit(service: testing.Aggregator) -> Any:
    found = verify_ledger(service.ledger.get, service.verifier)
    assert not found.problems, found.problems
    return found


async def test_the_sum_is_exact_and_each_vector_alone_says_nothing() -> None:
    async with testing.Aggregator(TASK, devices=DEVICES) as service:
        given = contributors()
        results = await service.run(service.clients(DEVICES), given)
        [release] = service.releases
        assert release.sums["counts"] == pytest.approx(
            sum_of(*given), abs=4 * release.grid["counts"]
        )
        assert (release.survivors, release.masking_set, release.cohort_size) == (4, 4, 4)
        assert (service.charges, service.aborts, service.state) == (1, [], "open")
        for result in results:
            assert result is not None
            assert [outcome.release for outcome in result.releases] == [1]
            assert result.epsilon == math.inf
        [cohort] = service._formation.cohorts
        bits = service.manifest.encoding.ring_bits
        for index in range(DEVICES):  # each vector fills the ring evenly; the data would not
            lanes = ring.unpack(bytes(cohort.received[index]), LENGTH + 1, bits)
            spread = float(np.std(ring.centred(lanes, bits))) / 2.0**bits
            assert 0.2 < spread < 0.4
        audited = audit(service)
        assert [len(task.releases) for task in audited.tasks] == [1]


@pytest.mark.parametrize("lost", [{0: "uploded"}, {9: "uploaded"}, {0: "continued"}])
async def test_who_is_not_lost_as_said_ends_the_test(lost: dict[int, Any]) -> None:
    """No test passes since a name was misspelt, or since nothing of the kind happened."""
    async with testing.Aggregator(TASK, devices=DEVICES) as service:
        with pytest.raises(ValueError, match="lost"):
            await service.run(service.clients(DEVICES), contributors(), lost=lost)


async def test_the_masks_of_lost_devices_come_off_and_a_lost_one_goes_on_later() -> None:
    async with testing.Aggregator(TASK, devices=DEVICES) as service:
        given, clients = contributors(), service.clients(DEVICES)
        results = await service.run(clients, given, lost={1: "masking"})
        [release] = service.releases
        left = [given[0], *given[2:]]
        assert release.sums["counts"] == pytest.approx(
            sum_of(*left), abs=4 * release.grid["counts"]
        )
        assert (release.survivors, release.masking_set) == (3, 4)
        assert results[1] is None
        assert clients[1].has_pending()
        results = await service.run(clients, given, lost={3: "uploaded"})
        assert results[1] is not None
        assert (results[1].aborted, len(results[1].releases)) == (1, 1)
        assert service.releases[1].survivors == 4
        assert service.releases[1].sums["counts"] == pytest.approx(
            sum_of(*given), abs=4 * release.grid["counts"]
        )
        audit(service)


@pytest.mark.parametrize("kind", ["shared", "masking"])
async def test_a_device_that_is_stopped_leaves_while_it_may(kind: str) -> None:
    stop = threading.Event()

    def on_event(event: Event) -> None:
        if event.kind == kind:
            stop.set()

    async with testing.Aggregator(TASK, devices=DEVICES) as service:
        first, *others = contributors()
        leaving = service.client(on_event=on_event)
        results = await asyncio.gather(
            leaving.run_async(first, task="counts", stop=stop),
            *(service.client().run_async(one, task="counts", rounds=1) for one in others),
        )
        assert [len(result.releases) for result in results] == [int(kind == "masking"), 1, 1, 1]
        assert (results[0].stopped, results[0].pending) == (True, False)
        assert service.releases[0].survivors == (4 if kind == "masking" else 3)
        audit(service)


async def test_a_cohort_of_too_few_is_charged_and_ends_the_task() -> None:
    async with testing.Aggregator(TASK, devices=DEVICES) as service:
        lost = {2: "masking", 3: "masking"}
        results = await service.run(service.clients(DEVICES), contributors(), lost=lost)
        assert service.releases == []
        assert service.aborts == ["too-few-vectors"]
        assert (service.charges, service.state) == (1, "finished")
        for result in results[:2]:
            assert result is not None
            assert result.finished
            assert result.aborted == 2  # the cohort, and the advert that waited for another
            assert result.epsilon == math.inf
        audit(service)


async def test_the_apps_own_policy_refuses_and_the_others_do_not_wait_for_it() -> None:
    async with testing.Aggregator(TASK, devices=DEVICES) as service:
        clients = [*service.clients(DEVICES - 1), service.client(policy=PrivacyPolicy())]
        *others, refused = await service.run(clients, contributors())
        assert refused is not None
        assert [refusal.reason for refusal in refused.refusals] == ["cohort-too-small"]
        assert all(result is not None and result.finished for result in others)
        assert service.charges == 0


async def test_noise_is_real_and_costs_what_the_contract_says() -> None:
    task = {**TASK, "privacy": None, "device_noise_multiplier": 4.0}
    task["budget"] = {"max_epsilon": 8.0, "releases_max": 1}
    async with testing.Aggregator(task, devices=DEVICES) as service:
        given = contributors()
        results = await service.run(service.clients(DEVICES), given)
        [release] = service.releases
        deviation = release.deviation["counts"]
        assert 200 < deviation < 800  # 4 x the clip of 100, shared by three honest devices
        off = release.sums["counts"] - sum_of(*given)
        assert 0.4 * deviation < np.std(off) < 1.6 * deviation
        assert service.state == "finished"
        assert release.epsilon is not None
        for result in results:
            assert result is not None
            assert result.epsilon == pytest.approx(release.epsilon, rel=0.05)
        audit(service)


async def test_a_contributor_that_fails_where_no_noise_hides_it_does_not_hang_the_test() -> None:
    class Broken:
        def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
            raise RuntimeError("no data")

    events: list[Event] = []
    async with testing.Aggregator(TASK, devices=DEVICES) as service:
        clients = [*service.clients(DEVICES - 1), service.client(on_event=events.append)]
        *_, broken = await service.run(clients, [*contributors(DEVICES - 1), Broken()])
        assert broken is not None
        assert (broken.aborted, broken.finished) == (1, True)
        assert (service.releases, service.charges) == ([], 0)
    [told] = [event for event in events if event.kind == "aborted"]
    assert "no data" in str(told.detail["message"])


async def test_the_step_is_the_tests_own() -> None:
    def step(vector: np.ndarray, release: testing.Release) -> np.ndarray:
        return vector + release.sums["counts"] / release.survivors

    seen: list[np.ndarray] = []

    class Watching(Counts):
        def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
            seen.append(job.vector)
            return super().contribute(job)

    async with testing.Aggregator(TASK, devices=3, step=step) as service:
        given = [Watching(one.values) for one in contributors(3)]
        await service.run(service.clients(3), given, rounds=2)
        assert [release.new_version for release in service.releases] == [1, 2]
        audit(service)
    assert len(seen) == 6


async def test_an_app_makes_its_own_client_of_a_bundle(tmp_path: Path) -> None:
    from client_sdk import Client

    async with testing.Aggregator(TASK, devices=2) as service:
        bundle = service.bundle(tmp_path / "device.json")
        assert bundle.stat().st_mode & 0o777 == 0o600
        own = Client.from_bundle(bundle, policy=service.policy(), state_dir=tmp_path / "state")
        with pytest.raises(ValueError, match="not one of this aggregator"):
            await service.run([own], Counts(np.zeros(LENGTH)))


def test_what_it_has_no_server_half_for_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.toml"
    path.write_text('task = "x"\nalgorithm = "sum"\nnonsense = 1\n')
    with pytest.raises(ConfigurationError, match="nonsense"):
        testing.Aggregator(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        testing.Aggregator(tmp_path / "none.toml")
    adaptive = msgspec.to_builtins(spec(adaptive_clip=AdaptiveClipSpec()))
    with pytest.raises(ConfigurationError) as caught:
        testing.Aggregator(adaptive)
    assert caught.value.reason == "testing-task"
