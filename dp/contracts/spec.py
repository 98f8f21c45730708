"""What an operator writes to create a task: everything has a sensible default but the name.

A minimal file::

    task = "support-bot"

    [budget]
    max_epsilon = 8.0

``base_model`` and ``adapter`` are filled in by the command line from the model on disk.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from dp.contracts.spec_parts import (
    CLIP_MAX,
    DEADLINE_MAX_S,
    NOISE_MAX,
    AdaptiveClipSpec,
    BudgetSpec,
    CohortSpec,
    DeadlineSpec,
    SegmentSpec,
    Table,
    TrainingSpec,
    told,
)
from secagg.errors import ConfigurationError
from secagg.manifest import Adapter, BaseModel

__all__ = [
    "AdaptiveClipSpec",
    "BudgetSpec",
    "CohortSpec",
    "DeadlineSpec",
    "SegmentSpec",
    "TaskSpec",
    "TrainingSpec",
    "parse_spec",
]
SAMPLING_RATE = 0.25  # of a task that does not say otherwise
UNIT_ROWS = 16  # of a person or document, the same


class TaskSpec(Table, frozen=True):
    """One federated task."""

    task: Annotated[
        str, told("The task's name: 1 to 64 of a-z, 0-9, '-', '_', '.'. Names are used once.")
    ]
    algorithm: Annotated[
        str,
        told(
            "fedsgd, fedavg, fedprox, FedAvg with a server optimiser (fedavgm, fedadagrad, "
            "fedadam, fedyogi), fednova, scaffold, fedbuff, zeroth-order, evaluation (loss and "
            "accuracy, no step) or sum (federated statistics)."
        ),
    ] = "fedsgd"
    privacy: Annotated[
        Literal["distributed", "local", "none"] | None,
        told(
            "Of one example. distributed: noise shares in the sum; local: DP-SGD on the device.",
            default="the algorithm's own",
        ),
    ] = None
    clip: Annotated[
        float,
        told("L2 bound of one example's gradient (example-level privacy).", above=0, high=CLIP_MAX),
    ] = 1.0
    noise_multiplier: Annotated[
        float,
        told(
            "Noise over clip, standard deviations (example-level privacy).",
            above=0,
            high=NOISE_MAX,
        ),
    ] = 1.4
    sampling_rate: Annotated[
        float | None,
        told(
            "Probability with which an example joins a batch; with a period, one of its part.",
            above=0,
            high=1,
            default="0.25; 1 with a period and distributed noise",
            example=0.25,
        ),
    ] = None
    examples_max: Annotated[
        int,
        told(
            "Most that one device may sum in one step (distributed).",
            unit="examples",
            low=1,
            high=1 << 20,
        ),
    ] = 256
    period: Annotated[
        int,
        told(
            "A device divides its examples into so many parts, and the next one is its batch with "
            "each charge: an example is in one sum of so many, and costs no more. 1: every "
            "example may be in every release.",
            unit="releases",
            low=1,
            high=10_000,
        ),
    ] = 1
    unit: Annotated[
        Literal["example", "person", "document"],
        told(
            "What the example-level noise protects: each row by itself, or all rows that name the "
            "same person or document, whose gradients are summed and clipped as one. Clip, batch "
            "size, examples_max and period are then of such units; rows that name none count as "
            "zero."
        ),
    ] = "example"
    unit_rows_max: Annotated[
        int,
        told(
            "Most rows of one person or document that are used.", unit="rows", low=1, high=1 << 20
        ),
    ] = UNIT_ROWS
    update_clip: Annotated[
        float | None,
        told(
            "L2 bound of a device's whole update.",
            above=0,
            high=CLIP_MAX,
            default="1 with device-level privacy, which it is the unit of; else 64, since then it "
            "protects nothing and only keeps the sum inside the ring",
            example=1.0,
        ),
    ] = None
    device_noise_multiplier: Annotated[
        float,
        told(
            "Noise over a device's bound, for device-level privacy; 0: none.",
            low=0,
            high=NOISE_MAX,
        ),
    ] = 0.0
    participation_rate: Annotated[
        float,
        told(
            "With device-level privacy, the probability with which a device of the cohort puts its "
            "contribution in, by a secret coin; else it sends zero and its noise. Means are "
            "divided by it; a sum is that of those who took part.",
            low=2**-11,
            high=1,
        ),
    ] = 1.0
    mechanism: Annotated[
        Literal["skellam", "discrete-gaussian"],
        told(
            "Of the noise in the sum. Sums of Skellam shares are Skellam; the discrete Gaussian "
            "costs what the Gaussian does, up to a term that vanishes for such large shares."
        ),
    ] = "skellam"
    removable_noise: Annotated[
        bool,
        told(
            "Devices add Skellam noise in parts, and those that the survivors of a cohort do not "
            "need are taken off its sum; else every sum keeps what the fewest survivors would "
            "have needed. Costs one more secret per level and device."
        ),
    ] = True
    report_slot_s: Annotated[
        float,
        told(
            "Devices report in at multiples of this after a version opens, the first that leaves a "
            "whole one to train in, so that time does not show the batch; 0: when they are ready.",
            unit="seconds",
            low=0,
            high=DEADLINE_MAX_S,
        ),
    ] = 0.0
    slot_overrun: Annotated[
        float,
        told(
            "Chance that in one release, all tries at it together, a batch makes its device miss "
            "its whole slot, or fail, whatever its data; delta pays for it in the amplified "
            "statements of examples. 0: it is claimed never to happen.",
            low=0,
            high=1,
        ),
    ] = 0.0
    segments: Annotated[tuple[SegmentSpec, ...], told("The statistics that are summed (sum).")] = ()
    cohort: CohortSpec = CohortSpec()
    deadlines: DeadlineSpec = DeadlineSpec()
    budget: BudgetSpec = BudgetSpec()
    training: TrainingSpec = TrainingSpec()
    adaptive_clip: AdaptiveClipSpec | None = None
    partners: Annotated[
        tuple[str, ...],
        told(
            "Whose devices may join, by name or by key (hex); empty: of all partners that are "
            "registered when the task is created."
        ),
    ] = ()
    start_from: Annotated[
        str,
        told(
            "Task whose present model is this one's version 0, with the same base model and "
            "adapter: to evaluate it, or to go on training. Empty: version 0 is zero."
        ),
    ] = ""
    base_model: BaseModel | None = None
    adapter: Adapter | None = None

    def rate(self, mode: str) -> float:
        """``sampling_rate``, or what stands for it in a privacy mode."""
        if self.sampling_rate is not None:
            return self.sampling_rate
        return 1.0 if self.period > 1 and mode == "distributed" else SAMPLING_RATE


def parse_spec(text: bytes | str, *, toml: bool = True) -> TaskSpec:
    """Read a task file (TOML, or JSON with ``toml=False``); bytes fields are base64.

    Raises:
        ConfigurationError: ``spec-malformed``, with what is wrong and where.
    """
    try:
        if toml:
            return msgspec.toml.decode(text, type=TaskSpec, strict=True)
        return msgspec.json.decode(text, type=TaskSpec, strict=True)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigurationError("spec-malformed", f"The task file does not parse: {error}.") from (
            error
        )
