"""FedProx (Li et al. 2020): FedAvg with a pull mu (y - x) to the global model.

The pull is added after clip and noise: it depends on the device's iterate only, so it is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dp.contracts.algorithms.averaging import Averaging
from dp.contracts.algorithms.declaration import ALL_FORMS
from dp.contracts.rules import in_range
from secagg.manifest import TrainingManifest


class FedProx(Averaging):
    proximal_term = True
    forms = ALL_FORMS

    def suggested(self, privacy: str, population: int) -> Mapping[str, Any]:
        return {"proximal_mu": 0.05}

    def check_training(self, manifest: TrainingManifest) -> None:
        super().check_training(manifest)
        in_range("proximal_mu", manifest.training.proximal_mu, 0, 1e6, open_low=True)
