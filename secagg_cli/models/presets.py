"""Defaults that were measured: what the demo trains, per model and privacy mode.

Every number was chosen on the corpus of ``secagg_cli.models.corpus`` with six clients, which is
public; other models get SmolLM2's row. Clip and rate were chosen together (docs/privacy.md, "The
clip first").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from dp.contracts import TrainingSpec, suggested
from dp.contracts.algorithms.registry import algorithm_named
from secagg.manifest import AdapterKind

Privacy = Literal["distributed", "local", "none"]

MAX_TOKENS = 64
MICRO_BATCH = 4
HELD, HELD_MAX = 96, 160  # examples of a device: expected, and of the corpus's largest client
SAMPLING_RATE = 0.25  # of local steps


@dataclass(frozen=True)
class AdapterPreset:
    """Arguments of ``client_sdk.training.lora.adapter_spec``."""

    kind: AdapterKind
    rank: int
    alpha: int
    target_modules: tuple[str, ...]
    sketch: int = 0


@dataclass(frozen=True)
class TrainingPreset:
    """Terms of training and of example-level privacy for one mode.

    ``update_clip`` bounds a device's whole update. ``examples``: a public constant near the number
    that the surviving devices of a cohort hold; the divisor of a noisy sum is a part of it.
    """

    clip: float = 1.0
    noise_multiplier: float = 1.3
    update_clip: float = 1.0
    local_steps: int = 1
    local_learning_rate: float = 1.0
    server_learning_rate: float = 1.0
    examples: float = 0.0


@dataclass(frozen=True)
class Preset:
    """``form_rates``: factors of the mode's rate in other forms of LoRA than the adapter's own.

    ``slopes_rate``: zeroth order's server rate in every mode.
    """

    adapter: AdapterPreset
    modes: dict[Privacy, TrainingPreset]
    slopes_rate: float
    form_rates: Mapping[AdapterKind, float] = field(default_factory=dict)


_SMOLLM2 = Preset(
    adapter=AdapterPreset("ffa-lora", rank=4, alpha=8, target_modules=("q_proj", "v_proj")),
    slopes_rate=0.1,  # tiny's over the ratio of the adapters' lengths; not measured
    form_rates={"lora": 0.25, "product": 0.25},  # tiny's; not measured
    modes={
        "distributed": TrainingPreset(server_learning_rate=10.0, examples=400.0),
        "local": TrainingPreset(
            noise_multiplier=2.0,
            update_clip=256.0,
            local_steps=2,
            local_learning_rate=3.0,
        ),
        "none": TrainingPreset(update_clip=16.0, local_steps=2, local_learning_rate=2.0),
    },
)
_TINY = Preset(
    adapter=AdapterPreset("ffa-lora", rank=4, alpha=8, target_modules=("o_proj", "down_proj")),
    slopes_rate=10.0,
    form_rates={"lora": 0.25, "product": 0.25},  # at 1 the loss may rise
    modes={
        "distributed": TrainingPreset(server_learning_rate=16.0, examples=400.0),
        "local": TrainingPreset(
            noise_multiplier=2.0,
            update_clip=16.0,
            local_steps=2,
            local_learning_rate=2.0,
        ),
        "none": TrainingPreset(update_clip=16.0, local_steps=4, local_learning_rate=2.0),
    },
)


def preset_for(model: str) -> Preset:
    """The row of a model as named on the command line."""
    return _TINY if model == "tiny" else _SMOLLM2


def adapter_for(model: str, form: AdapterKind, clients: int) -> AdapterPreset:
    """The model's adapter in another form; sketches are wide enough for an exact sum."""
    adapter = preset_for(model).adapter
    sketch = adapter.rank * (clients + 1) if form == "product" else 0
    return replace(adapter, kind=form, sketch=sketch)


def period_for(privacy: Privacy, form: AdapterKind, releases: int) -> int:
    """Parts of the data, each in one release: an example is in one sum, however many there are.

    1: no schedule. RoLoRA's period is odd, so there an example may be in two.
    """
    if privacy != "distributed":
        return 1
    if form != "rolora" or releases % 2:
        return releases
    return releases - 1


def task_terms(
    model: str,
    privacy: Privacy,
    algorithm: str,
    clients: int = 6,
    form: AdapterKind = "ffa-lora",
    period: int = 1,
) -> dict[str, Any]:
    """Fields of a ``dp.contracts.TaskSpec``: ``TaskSpec(task=..., **task_terms(...), ...)``.

    ``clients``: all devices that are enrolled. What the algorithm's declaration suggests replaces
    the preset's training terms. With noise in the sum a batch is a whole part of ``period``.
    """
    preset = preset_for(model)
    terms, factor = preset.modes[privacy], preset.form_rates.get(form, 1.0)
    server, local = terms.server_learning_rate, terms.local_learning_rate
    if privacy == "distributed":
        server *= factor
    else:
        local *= factor
    if algorithm_named(algorithm).has_directions:
        server = preset.slopes_rate
    sampling_rate = 1.0 if privacy == "distributed" else SAMPLING_RATE
    training = TrainingSpec(
        local_steps=terms.local_steps,
        local_learning_rate=local,
        batch_size=round(HELD * sampling_rate / period),
        server_learning_rate=server,
        # Rates were measured with four parts; the same fits two and more.
        denominator=terms.examples / min(period, 2),
        max_tokens=MAX_TOKENS,
        micro_batch=MICRO_BATCH,
    )
    return {
        "algorithm": algorithm,
        "privacy": privacy,
        "clip": terms.clip,
        "noise_multiplier": terms.noise_multiplier,
        "sampling_rate": sampling_rate,
        "period": period,
        "examples_max": -(-HELD_MAX // period),
        "update_clip": terms.update_clip,
        "training": msgspec.structs.replace(training, **suggested(algorithm, privacy, clients)),
    }
