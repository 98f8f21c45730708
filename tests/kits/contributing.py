"""One device's contribution without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.contribution import TrainingJob
from client_sdk.events import Event
from client_sdk.network.server_time import ServerTime
from client_sdk.policy import PrivacyPolicy
from client_sdk.rounds.checkin import CheckIn
from client_sdk.rounds.device import ParticipantSettings, RunningDevice
from secagg.http_api import ModelVersion, Offer
from secagg.manifest import Manifest, encode_manifest
from tests.kits.device import digest_of, journal_in

OPENED = 1_000_000.0


class Clock:
    """Time that moves only by sleeping."""

    def __init__(self, now: float = OPENED) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def checkin_of(manifest: Manifest, *, now: float = OPENED, version: int = 0) -> CheckIn:
    model = ModelVersion(
        version=version, digest=bytes((version,)) * 32, size_bytes=100, opened_at=OPENED
    )
    offer = Offer(
        manifest=encode_manifest(manifest),
        manifest_signature=b"",
        state="open",
        releases=version,
        model=model,
        now=now,
    )
    vector = np.zeros(manifest.data_length, np.float32)
    return CheckIn(offer, manifest, digest_of(manifest), vector)


class Runs:
    """A contributor that calls a function."""

    def __init__(self, work: Callable[[TrainingJob], Mapping[str, np.ndarray]]) -> None:
        self.work = work
        self.jobs: list[TrainingJob] = []

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        self.jobs.append(job)
        return self.work(job)


class Setting:
    def __init__(self, folder: Path, clock: Clock | None = None, **policy: Any) -> None:
        self.clock = clock or Clock()
        self.events: list[Event] = []
        journal = journal_in(folder)

        async def deliver(event: Event) -> None:
            self.events.append(event)

        self.device = RunningDevice(
            bundle=None,  # type: ignore[arg-type]  # not looked at while training
            policy=PrivacyPolicy(min_cohort=4, **policy),
            partner_keys=frozenset(),
            journal=journal,
            account=DeviceAccount(journal, 1e-5),
            transport=None,  # type: ignore[arg-type]
            ledger=None,  # type: ignore[arg-type]
            deliver=deliver,
            settings=ParticipantSettings(),
            time=ServerTime(journal, self.clock, self.clock),
            sleep=self.clock.sleep,
        )

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]
