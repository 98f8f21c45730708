"""Defaults that were measured: what the demo trains, per model and privacy mode.

Every number was chosen on the corpus of ``secagg_cli.models.corpus`` with six clients; other models
get SmolLM2's row. ``denominator`` is a public constant near the number of examples in a sum.
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
BATCH_SIZE = 24  # expected examples of a device in a step


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

    ``update_clip`` bounds a device's whole update.
    """

    clip: float = 1.0
    noise_multiplier: float = 1.4
    sampling_rate: float = 0.25
    examples_max: int = 128
    update_clip: float = 1.0
    local_steps: int = 1
    local_learning_rate: float = 1.0
    server_learning_rate: float = 1.0
    denominator: float = 0.0


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
        "distributed": TrainingPreset(server_learning_rate=4.5, denominator=100.0),
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
        "distributed": TrainingPreset(server_learning_rate=8.0, denominator=100.0),
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


def task_terms(
    model: str,
    privacy: Privacy,
    algorithm: str,
    clients: int = 6,
    form: AdapterKind = "ffa-lora",
) -> dict[str, Any]:
    """Fields of a ``dp.contracts.TaskSpec``: ``TaskSpec(task=..., **task_terms(...), ...)``.

    ``clients``: all devices that are enrolled. What the algorithm's declaration suggests replaces
    the preset's training terms.
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
    training = TrainingSpec(
        local_steps=terms.local_steps,
        local_learning_rate=local,
        batch_size=BATCH_SIZE,
        server_learning_rate=server,
        denominator=terms.denominator,
        max_tokens=MAX_TOKENS,
        micro_batch=MICRO_BATCH,
    )
    return {
        "algorithm": algorithm,
        "privacy": privacy,
        "clip": terms.clip,
        "noise_multiplier": terms.noise_multiplier,
        "sampling_rate": terms.sampling_rate,
        "examples_max": terms.examples_max,
        "update_clip": terms.update_clip,
        "training": msgspec.structs.replace(training, **suggested(algorithm, privacy, clients)),
    }
