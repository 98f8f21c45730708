"""What a server half is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from aggregator.algorithms.optimisers import OptimiserState
from dp.ledger.records import ClipMove
from secagg.manifest import Manifest, TrainingManifest, training_manifest

Sums = Mapping[str, NDArray[np.float64]]  # decoded, by segment name
Direction = tuple[NDArray[np.float64], dict[str, float]]  # in which the vector moves, and metrics
_M = TypeVar("_M", bound=Manifest)


@dataclass(frozen=True)
class StepInput(Generic[_M]):
    """One unmasked sum, and the version that its devices trained on.

    Attributes:
        vector: float32[d], of ``version``; phases and public seeds of an adapter's form follow
            from the version.
        optimiser: state that belongs to the version.
        survivors: contributors to the sums. ``masking_set_size``: devices that owed a vector (0:
            not known). The noise of their shares follows from both.
        lag: versions between the newest model that they trained on and ``vector`` (FedBuff).
    """

    manifest: _M
    vector: NDArray[np.float32]
    optimiser: OptimiserState
    sums: Sums
    version: int = 0
    survivors: int = 0
    masking_set_size: int = 0
    lag: int = 0

    def training(self) -> StepInput[TrainingManifest]:
        """The same, of a task that trains.

        Raises:
            ConfigurationError: ``training-missing``, ``adapter-missing``.
        """
        return StepInput(
            training_manifest(self.manifest),
            self.vector,
            self.optimiser,
            self.sums,
            self.version,
            self.survivors,
            self.masking_set_size,
            self.lag,
        )


@dataclass(frozen=True)
class Step:
    """``metrics``: what the sum says besides the vector, e.g. ``loss``.

    ``optimiser``: the next state; SCAFFOLD's ``control`` and an adaptive ``clip`` also go to
    devices, with the vector. ``clip``: how an adaptive clip moved.
    """

    vector: NDArray[np.float32]
    optimiser: OptimiserState
    metrics: dict[str, float] = field(default_factory=dict)
    clip: ClipMove | None = None
