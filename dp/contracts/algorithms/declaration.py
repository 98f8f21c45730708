"""What every algorithm declares: what a manifest that names it means, its segments, its exclusions.

Code outside the registry asks a declaration, and compares no algorithm's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, get_args

from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import (
    AdapterKind,
    Manifest,
    ServerOptimiser,
    TrainingManifest,
    training_manifest,
)

PLAIN_FORMS: frozenset[AdapterKind] = frozenset(("lora", "ffa-lora"))
# Their factors change meaning between releases: not for state, or weights, per coordinate.
AVERAGED_FORMS: frozenset[AdapterKind] = PLAIN_FORMS | {"rolora", "fedsvd"}
ANY_OPTIMISER: frozenset[ServerOptimiser] = frozenset(get_args(ServerOptimiser))
ALL_FORMS: frozenset[AdapterKind] = AVERAGED_FORMS | {"product"}


class Algorithm(ABC):
    """A declaration, in one file of ``dp.contracts.algorithms``.

    Attributes:
        default_privacy: example-level mode where the spec names none.
        modes: example-level modes that it goes with.
        optimisers: of the server, that a task may name; empty: it takes no step.
        has_adapter: it is a :class:`TrainingAlgorithm`. Else it is a statistic: a sum of the
            segments that the operator names.
        moves_model: a release makes another model. Else what a device sends is a function of its
            data alone, the same in every release.
        joint_clip: one bound for all segments together. Else it is that of the first segment.
        local_steps: devices take local steps between two releases, and local terms shape them.
        forward_only: devices need losses or predictions, and no gradient.
        proximal_term: devices pull their steps towards the global model by ``proximal_mu``.
        keeps_control: the model comes with a control variate, and each device keeps one.
        weighs_staleness: a cohort admits several versions of the model, and a device weighs its
            update by the age of the one that it began with.
        normalises_steps: a device divides its update by what its steps add up to (|a|_1), and the
            server multiplies the mean by the mean of that.
        has_directions: slopes along public directions are sent, not the adapter's coordinates.
        clip_adapts: the clip may follow a quantile: one vector per unit, divided by a public
            constant, and no state in units of a clip.
        schedules: what a device sends is of its batch and of released models alone, so that batches
            may be scheduled (``dp.schedule``).
        forms: forms of LoRA that it goes with.
    """

    default_privacy: str
    modes: frozenset[str]
    optimisers: frozenset[ServerOptimiser] = frozenset()
    has_adapter: bool = False
    moves_model: bool = True
    joint_clip: bool = False
    local_steps: bool = True
    forward_only: bool = False
    proximal_term: bool = False
    keeps_control: bool = False
    weighs_staleness: bool = False
    normalises_steps: bool = False
    has_directions: bool = False
    clip_adapts: bool = False
    schedules: bool = False
    forms: frozenset[AdapterKind] = PLAIN_FORMS

    @abstractmethod
    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        """The segments of a task; ``length`` is the adapter's, ``noisy``: noise of any kind."""

    @abstractmethod
    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        """The public constant that the sum is divided by, where the spec names none."""

    @abstractmethod
    def check(self, manifest: Manifest) -> None:
        """Refuse what this algorithm excludes: ConfigurationError."""

    def suggested(self, privacy: str, population: int) -> Mapping[str, Any]:
        """Fields of ``TrainingSpec`` to start from, where the spec's own would teach nothing.

        Args:
            privacy: example-level mode.
            population: enrolled devices.
        """
        return {}


class TrainingAlgorithm(Algorithm):
    """One that works on the adapter of a base model, under training terms."""

    has_adapter = True

    def check(self, manifest: Manifest) -> None:
        self.check_training(training_manifest(manifest))

    @abstractmethod
    def check_training(self, manifest: TrainingManifest) -> None:
        """Refuse what this algorithm excludes: ConfigurationError."""
