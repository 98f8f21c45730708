"""Defaults that were measured: what the demo trains, per model and privacy mode.

Every number was chosen on the corpus of ``secagg_cli.corpus`` with six clients; other models get
SmolLM2's row. ``denominator`` is a public constant near the number of examples in a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dp.contracts import TrainingSpec
from secagg.manifest import AdapterKind

Privacy = Literal["distributed", "local", "none"]

MAX_TOKENS = 64
MICRO_BATCH = 4
ADAPTIVE = ("fedadagrad", "fedadam", "fedyogi")
ADAPTIVE_RATE = 0.1  # a step per coordinate; near the best of 0.03, 0.1, 0.3 for the tiny model
NOVA_STEPS = 8  # fednova without privacy: one pass over a device's own examples, at most so many
BATCH_SIZE = 24  # expected examples of a device in a step


@dataclass(frozen=True)
class AdapterPreset:
    """Arguments of ``client_sdk.lora.adapter_spec``."""

    kind: AdapterKind
    rank: int
    alpha: int
    target_modules: tuple[str, ...]
    sketch: int = 0


@dataclass(frozen=True)
class TrainingPreset:
    """Terms of training and of example-level privacy for one mode.

    ``update_clip`` bounds a device's whole update (fedavg, fedprox); ``proximal_mu`` counts only
    for fedprox.
    """

    clip: float = 1.0
    noise_multiplier: float = 1.4
    sampling_rate: float = 0.25
    examples_max: int = 128
    update_clip: float = 1.0
    local_steps: int = 1
    local_learning_rate: float = 1.0
    proximal_mu: float = 0.0
    server_learning_rate: float = 1.0
    denominator: float = 0.0


@dataclass(frozen=True)
class Preset:
    adapter: AdapterPreset
    modes: dict[Privacy, TrainingPreset]


_SMOLLM2 = Preset(
    adapter=AdapterPreset("ffa-lora", rank=4, alpha=8, target_modules=("q_proj", "v_proj")),
    modes={
        "distributed": TrainingPreset(server_learning_rate=4.5, denominator=100.0),
        "local": TrainingPreset(
            noise_multiplier=2.0,
            update_clip=256.0,
            local_steps=2,
            local_learning_rate=3.0,
            proximal_mu=0.05,
        ),
        "none": TrainingPreset(
            update_clip=16.0, local_steps=2, local_learning_rate=2.0, proximal_mu=0.05
        ),
    },
)
_TINY = Preset(
    adapter=AdapterPreset("ffa-lora", rank=4, alpha=8, target_modules=("o_proj", "down_proj")),
    modes={
        "distributed": TrainingPreset(server_learning_rate=8.0, denominator=100.0),
        "local": TrainingPreset(
            noise_multiplier=2.0,
            update_clip=16.0,
            local_steps=2,
            local_learning_rate=2.0,
            proximal_mu=0.05,
        ),
        "none": TrainingPreset(
            update_clip=16.0, local_steps=4, local_learning_rate=2.0, proximal_mu=0.05
        ),
    },
)


def preset_for(model: str) -> Preset:
    """The row of a model as named on the command line."""
    return _TINY if model == "tiny" else _SMOLLM2


def task_terms(model: str, privacy: Privacy, algorithm: str, clients: int = 6) -> dict[str, Any]:
    """Fields of a ``dp.contracts.TaskSpec``: ``TaskSpec(task=..., **task_terms(...), ...)``.

    ``clients``: all devices that are enrolled.
    """
    terms = preset_for(model).modes[privacy]
    unequal = algorithm == "fednova" and privacy == "none"
    return {
        "algorithm": algorithm,
        "privacy": privacy,
        "clip": terms.clip,
        "noise_multiplier": terms.noise_multiplier,
        "sampling_rate": terms.sampling_rate,
        "examples_max": terms.examples_max,
        "update_clip": terms.update_clip,
        "training": TrainingSpec(
            local_steps=NOVA_STEPS if unequal else terms.local_steps,
            local_epochs=1 if unequal else 0,
            local_learning_rate=terms.local_learning_rate,
            batch_size=BATCH_SIZE,
            proximal_mu=terms.proximal_mu if algorithm == "fedprox" else 0.0,
            server_learning_rate=(
                ADAPTIVE_RATE if algorithm in ADAPTIVE else terms.server_learning_rate
            ),
            denominator=terms.denominator,
            max_tokens=MAX_TOKENS,
            micro_batch=MICRO_BATCH,
            population=clients if algorithm == "scaffold" else 0,
        ),
    }
