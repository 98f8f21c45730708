"""What records of one task must be to each other, and what an auditor cannot tell of them.

Times do not run backwards, nothing follows a task's end, a model is new each time and so is a sum
with noise, and a measured variance is one that a sum can have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from dp.ledger.forms import Policy
from dp.ledger.records import ReleaseEntry
from dp.schedule import period_of
from secagg.limits import CLOCK_SKEW_S
from secagg.manifest import Manifest

_CHANCE_LOG2 = -80.0  # an event of a smaller chance has not happened by chance


@dataclass
class Conduct:
    """The records of one task so far. Methods yield (reason, message) of what is wrong."""

    manifest: Manifest
    first_model: bytes | None
    latest_s: int = 0
    finished: bool = False
    sums: set[bytes] = field(default_factory=set)
    models: set[bytes] = field(default_factory=set)
    unchecked: list[tuple[str, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.latest_s = self.manifest.created_at
        if self.first_model is not None:
            self.models.add(self.first_model)

    def release(self, entry: ReleaseEntry, leaf: int) -> Iterator[tuple[str, str]]:
        if self.finished:
            yield "task-finished", "A cohort follows the end of its task."
        yield from self._time(entry.released_at, 0)
        yield from self._measured(entry)
        if entry.outcome == "released":
            yield from self._new(entry, leaf)

    def policy(self, policy: Policy) -> Iterator[tuple[str, str]]:
        if self.finished:
            yield "task-finished", "A decision follows the end of its task."
        self.finished |= policy.action == "finished"
        if policy.action == "charge-given-back" and period_of(self.manifest) > 1:
            yield (
                "schedule-given-back",
                "A charge was given back in a task with a schedule: devices have counted it, so an "
                "example may be in more sums than the releases show.",
            )
        yield from self._time(policy.at, CLOCK_SKEW_S)  # perhaps by another replica's clock

    def _time(self, at_s: int, skew_s: int) -> Iterator[tuple[str, str]]:
        """A task has one cohort at a time, so its records are in the order of time."""
        if at_s < self.latest_s - skew_s:
            yield (
                "time-order",
                f"The record is dated {at_s}, before the task's last one, {self.latest_s}: the "
                "service's clock was set back, or the records are not what happened.",
            )
        self.latest_s = max(self.latest_s, at_s)

    def _measured(self, entry: ReleaseEntry) -> Iterator[tuple[str, str]]:
        if entry.measured_variance is None:
            return
        if self.manifest.noise is None:
            yield "noise-measured-unexpected", "Noise is measured in a task that adds none."
        elif entry.measured_variance[1] > 4**self.manifest.encoding.ring_bits:
            yield (
                "noise-measured-impossible",
                "The measured variance is more than numbers of the task's ring can have.",
            )

    def _new(self, entry: ReleaseEntry, leaf: int) -> Iterator[tuple[str, str]]:
        if entry.new_model_digest in self.models:  # a model's file names its version
            yield "model-repeated", "The new model is one that the task had before."
        self.models.add(entry.new_model_digest)
        if entry.sum_digest in self.sums and self._repeats_log2() < _CHANCE_LOG2:
            yield "sum-repeated", "An earlier release has the same sum, which its noise rules out."
        elif entry.sum_digest in self.sums:
            self.unchecked.append(
                (
                    "sum-repeated",
                    "An earlier release has the same sum. Without noise equal data give equal "
                    "sums; whether they were, no record tells.",
                    leaf,
                )
            )
        self.sums.add(entry.sum_digest)

    def _repeats_log2(self) -> float:
        """Log2 of a bound on the chance that two noised sums are equal.

        One coordinate takes its likeliest value with probability at most 1/sqrt(V + 1), for
        Skellam as for the discrete Gaussian.
        """
        noise = self.manifest.noise
        variance = 0 if noise is None else noise.share_variance * noise.honest_min
        return -self.manifest.data_length * math.log2(variance + 1) / 2
