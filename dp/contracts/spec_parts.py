"""Parts of a task's specification: who forms a cohort, deadlines, budget, training, statistics.

Each field says its meaning, unit and range where it is declared (:func:`told`); whoever shows them
(:mod:`dp.contracts.fields`) writes none of it anew.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from secagg.graph.parameters import corrupt_floor, corrupt_room
from secagg.limits import VERSIONS_BACK_MAX
from secagg.manifest import LocalOptimiser, ServerOptimiser


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


def told(
    meaning: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    default: str = "",
    example: float | None = None,
) -> msgspec.Meta:
    """What an operator is told of a field (:mod:`dp.contracts.fields`); it is in OpenAPI too.

    Args:
        unit: of a number.
        low, high: the range, both included; ``above``: its lower end, not included. The contracts
            refuse what is beyond.
        default: in words, where no value says it; ``example``: then a value, for a template.
    """
    said = {"unit": unit, "default": default, "example": example}
    ends = {"low": low, "high": high, "above": above}
    return msgspec.Meta(description=meaning, extra={**said, **ends})


CLIP_MAX = 1e12
NOISE_MAX = 1e4
DEADLINE_MAX_S = 30 * 86_400


class CohortSpec(Table, frozen=True):
    """Who may form a cohort. The defaults fit a device's default policy.

    Beyond 128 devices the graph is sparse; its degree and threshold follow from these numbers.
    """

    size_min: Annotated[
        int,
        told(
            "Fewest devices of a cohort; with fewer than size_max it closes report_s after the "
            "first of them.",
            unit="devices",
            low=2,
            high=10_000,
        ),
    ] = 24
    size_max: Annotated[
        int,
        told(
            "Most devices; with so many a cohort closes at once.",
            unit="devices",
            low=2,
            high=10_000,
        ),
    ] = 24
    survivors_min: Annotated[
        int,
        told(
            "Fewest devices in a released sum. A sparse graph is made for random drop-outs of "
            "1 - survivors_min / size_min of the devices.",
            unit="devices",
            low=2,
            high=10_000,
        ),
    ] = 20
    corrupt_max: Annotated[
        int | None,
        told(
            "Devices assumed to collude with the aggregator; more raise the threshold. Devices "
            "demand the default unless their policy says otherwise.",
            unit="devices",
            low=0,
            high=10_000,
            default="a tenth of size_max and at least 1, or as many as survivors_min has room for",
            example=2,
        ),
    ] = None
    silent_max: Annotated[
        int | None,
        told(
            "Survivors whose noise does not count: a participant knows its own share.",
            unit="devices",
            low=0,
            high=10_000,
            default="1, or corrupt_max if larger, with noise in the sum, else 0",
            example=2,
        ),
    ] = None
    versions_back: Annotated[
        int | None,
        told(
            "How many versions older than the newest a cohort's models may be.",
            unit="versions",
            low=0,
            high=VERSIONS_BACK_MAX,
            default="4",
            example=4,
        ),
    ] = None
    model_min: Annotated[
        int | None,
        told(
            "Devices behind each of a cohort's models.",
            unit="devices",
            low=0,
            high=10_000,
            default="half of survivors_min, at least corrupt_max + 2",
            example=10,
        ),
    ] = None

    @property
    def corrupt(self) -> int:
        """``corrupt_max``, or what stands for it."""
        if self.corrupt_max is not None:
            return self.corrupt_max
        room = corrupt_room(self.size_min, self.size_max, self.survivors_min)
        return min(corrupt_floor(self.size_max), room)


def _step(meaning: str) -> msgspec.Meta:
    return told(meaning, unit="seconds", above=0, high=DEADLINE_MAX_S)


class DeadlineSpec(Table, frozen=True):
    """Seconds that each step may take; a device that is late drops out of the cohort."""

    report_s: Annotated[
        float, _step("A cohort of fewer than size_max waits so long for more devices.")
    ] = 600.0
    share_s: Annotated[float, _step("For devices to deal the shares of their secrets.")] = 30.0
    check_s: Annotated[float, _step("For devices to check what they were dealt.")] = 30.0
    masked_input_s: Annotated[float, _step("For devices to send their masked vectors.")] = 120.0
    confirm_s: Annotated[float, _step("For devices to confirm who is in the sum.")] = 30.0
    unmask_s: Annotated[float, _step("For devices to answer for the masks of the sum.")] = 30.0


class BudgetSpec(Table, frozen=True):
    """What the task may spend."""

    max_epsilon: Annotated[
        float | None,
        told(
            "Unamplified, over all releases of the task. Left out of a task with noise: 8.",
            unit="epsilon",
            above=0,
            high=1e6,
            default="no limit",
            example=8.0,
        ),
    ] = 8.0
    delta: Annotated[
        float,
        told("Of every privacy statement; well below one over all units.", above=0, high=0.1),
    ] = 1e-5
    releases_max: Annotated[
        int, told("Sums that the task may release.", unit="releases", low=1, high=10**6)
    ] = 4


class TrainingSpec(Table, frozen=True):
    """What a device does before it reports in, and what the server does with the sum."""

    local_steps: Annotated[
        int,
        told(
            "Of the device's own optimiser, between two releases.",
            unit="steps",
            low=1,
            high=100_000,
        ),
    ] = 2
    local_learning_rate: Annotated[
        float, told("Of the device's own optimiser.", above=0, high=1e6)
    ] = 1.0
    local_epochs: Annotated[
        int,
        told(
            "Passes over a device's own examples, so that those who have more take more steps, at "
            "most local_steps; 0: all take local_steps. Only without example-level privacy.",
            unit="passes",
            low=0,
            high=1_000,
        ),
    ] = 0
    local_optimiser: Annotated[
        LocalOptimiser, told("Of the device; adam is begun anew each time.")
    ] = "sgd"
    local_momentum: Annotated[
        float, told("Heavy ball of the device's sgd.", low=0, high=0.9999)
    ] = 0.0
    batch_size: Annotated[
        int,
        told("Expected, per device and step.", unit="examples", low=1, high=1 << 20),
    ] = 24
    proximal_mu: Annotated[
        float, told("Strength of the pull to the global model.", low=0, high=1e6)
    ] = 0.0
    server_optimiser: Annotated[ServerOptimiser, told("Of the server's step along the mean.")] = (
        "sgd"
    )
    server_learning_rate: Annotated[
        float, told("Of the server's step along the mean.", above=0, high=1e6)
    ] = 1.0
    server_momentum: Annotated[
        float | None,
        told(
            "Heavy ball, or beta1.",
            low=0,
            high=0.9999,
            default="0.9 with momentum, adam and yogi, else 0",
            example=0.9,
        ),
    ] = None
    server_beta2: Annotated[
        float | None,
        told(
            "Decay of second moments.",
            low=0,
            high=0.999999,
            default="0.99 with adam and yogi",
            example=0.99,
        ),
    ] = None
    server_tau: Annotated[
        float | None,
        told(
            "Adaptivity of adagrad, adam and yogi.",
            low=0,
            high=1e6,
            default="0.001, or the standard deviation of the noise in a coordinate of the mean, "
            "where that is more",
            example=0.001,
        ),
    ] = None
    weight_unit: Annotated[
        int,
        told(
            "Examples that count as weight 1; 0: all devices weigh the same. Evaluations read so "
            "many of a device's examples.",
            unit="examples",
            low=0,
            high=1 << 40,
        ),
    ] = 0
    denominator: Annotated[
        float,
        told(
            "Public constant that the sum is divided by. 0: the algorithm's own, size_max * "
            "batch_size of examples, size_max of devices, or the sum of the weights.",
            low=0,
            high=1e12,
        ),
    ] = 0.0
    max_tokens: Annotated[int, told("Kept of an example.", unit="tokens", low=2, high=1 << 20)] = 64
    micro_batch: Annotated[
        int, told("At once in a device's memory, at most.", unit="examples", low=1, high=1 << 16)
    ] = 4
    directions: Annotated[
        int, told("Slopes of a release.", unit="directions", low=1, high=1 << 16)
    ] = 64
    perturbation: Annotated[
        float, told("Step along each direction, both ways.", above=0, high=1)
    ] = 0.01
    population: Annotated[
        int,
        told(
            "Enrolled devices, whether they take part or not.", unit="devices", low=0, high=1 << 40
        ),
    ] = 0


class SegmentSpec(Table, frozen=True):
    """A statistic of the ``sum`` algorithm."""

    name: Annotated[str, told("Of the statistic.")]
    length: Annotated[int, told("Of its vector.", unit="numbers", low=1, high=1 << 28)]
    clip: Annotated[float, told("L2 bound of one device's vector.", above=0, high=CLIP_MAX)]


class AdaptiveClipSpec(Table, frozen=True):
    """The clip follows a private estimate of a quantile of the norms (``dp.noise.adaptive_clip``).
    It begins at ``clip`` (distributed) or ``update_clip`` (device level)."""

    quantile: Annotated[
        float,
        told(
            "Share of the units (examples with distributed noise, else devices) whose norm is to "
            "be at most the clip.",
            low=0.01,
            high=0.99,
        ),
    ] = 0.5
    learning_rate: Annotated[
        float,
        told(
            "A release moves the clip by a factor of at most exp(this), but for noise.",
            above=0,
            high=2,
        ),
    ] = 0.2
    clip_min: Annotated[
        float | None,
        told("Lower end of its range.", above=0, high=CLIP_MAX, default="clip / 100", example=0.01),
    ] = None
    clip_max: Annotated[
        float | None,
        told(
            "Upper end of its range.", above=0, high=CLIP_MAX, default="100 * clip", example=100.0
        ),
    ] = None
