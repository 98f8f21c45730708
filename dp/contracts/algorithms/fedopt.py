"""FedOpt (Reddi et al. 2021): FedAvg's mean as a gradient for an optimiser at the server.

One declaration for ``fedavgm``, ``fedadagrad``, ``fedadam`` and ``fedyogi``. Segments, weights and
sensitivity are FedAvg's; the moments are post-processing of released sums, so they are free. Any
other algorithm may name the same optimisers in its training terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dp.contracts.algorithms.declaration import PLAIN_FORMS
from dp.contracts.algorithms.fedavg import FedAvg
from dp.contracts.optimisers import TAU
from dp.contracts.rules import refuse
from secagg.manifest import ServerOptimiser, TrainingManifest


class FedOpt(FedAvg):
    forms = PLAIN_FORMS  # moments of one release mean nothing for the factors of the next

    def __init__(self, optimiser: ServerOptimiser) -> None:
        self._optimiser = optimiser
        self.optimisers = frozenset((optimiser,))
        self.clip_adapts = optimiser not in TAU  # tau is fixed, and noise grows with the clip

    def suggested(self, privacy: str, population: int) -> Mapping[str, Any]:
        """A step per coordinate: near the best of 0.03, 0.1, 0.3 for the demo's tiny model."""
        return {"server_learning_rate": 0.1} if self._optimiser in TAU else {}

    def check_training(self, manifest: TrainingManifest) -> None:
        super().check_training(manifest)
        training = manifest.training
        if training.server_optimiser != self._optimiser:
            refuse(
                "server-optimiser",
                f"{manifest.algorithm} is named after its server optimiser.",
                expected=self._optimiser,
                found=training.server_optimiser,
                remedy="Leave server_optimiser out, or use the algorithm 'fedavg'.",
            )
