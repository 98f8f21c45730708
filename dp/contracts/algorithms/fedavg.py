"""FedAvg (McMahan et al. 2017): local steps, then the mean of the deltas."""

from __future__ import annotations

from dp.contracts.algorithms.averaging import Averaging
from dp.contracts.algorithms.declaration import ALL_FORMS
from dp.contracts.rules import refuse
from secagg.manifest import TrainingManifest


class FedAvg(Averaging):
    forms = ALL_FORMS

    def check_training(self, manifest: TrainingManifest) -> None:
        super().check_training(manifest)
        training = manifest.training
        if training.proximal_mu != 0:
            refuse(
                "proximal-without-fedprox",
                "A proximal term makes FedAvg FedProx.",
                expected="proximal_mu = 0",
                found=training.proximal_mu,
                remedy="Use the algorithm 'fedprox'.",
            )
