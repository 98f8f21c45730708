"""The device half of a federated evaluation: three sums over the device's own examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.training.algorithms.work import Work
from client_sdk.training.coins import without_coins
from client_sdk.training.examples import Row
from client_sdk.training.gradients import scores
from dp.contracts.algorithms.averaging import LOSS_CLIP
from secagg.manifest import TrainingManifest


def contribute(manifest: TrainingManifest, work: Work) -> Mapping[str, NDArray[Any]]:
    """``loss``, ``accuracy`` and ``count``, float64[1] each, divided by the public bound E.

    Only the first E rows that are not empty are used. A loss that is not finite counts as the
    bound: that is the model's doing. A row that raises counts in none of the three sums.

    Raises:
        ContributionError: ``training-deadline``, ``training-stopped``.
    """
    most = manifest.training.weight_unit
    model = work.adapted.model
    loss = right = 0.0
    count = 0

    def compute(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        return scores(model, rows, work.pad_token)

    with without_coins(model), torch.inference_mode():
        for rows in work.micro_batches(work.usable[:most]):
            for part, (losses, shares) in work.apart(rows, compute):
                bounded = np.nan_to_num(losses.double().cpu().numpy(), nan=LOSS_CLIP)
                loss += float(np.clip(bounded, 0.0, LOSS_CLIP).sum())
                right += float(shares.double().sum())
                count += len(part)
    values = {"loss": loss, "accuracy": right, "count": float(count)}
    return {name: np.array([value / most]) for name, value in values.items()}
