"""The device half of zeroth order: slopes of the loss along the manifest's directions.

No backward pass and no gradient: the memory of inference (MeZO; Malladi et al. 2023). What is sent
are K numbers, the adapter's length plays no part in traffic or noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client_sdk.algorithms.fedsgd import secret_batch
from client_sdk.algorithms.work import Work, weighted
from client_sdk.errors import ContributionError
from client_sdk.gradients import sequence_losses
from dp.mechanisms import ExampleSum
from dp.stream import BitStream
from secagg.directions import direction
from secagg.manifest import Manifest


def contribute(manifest: Manifest, work: Work) -> Mapping[str, NDArray[Any]]:
    """``{"gradient": [K]}``: in mode C the int64 sum of examples' clipped slopes, else the mean.

    Without any privacy the mean is multiplied by the hidden ``weight``, and ``weight`` and ``loss``
    (at the global model) are sent beside it.

    Raises:
        ContributionError: ``training-diverged``, ``training-deadline``, ``training-stopped``.
    """
    training = manifest.training
    assert training is not None  # noqa: S101  (AdaptedModel has checked it)
    if manifest.example_privacy is not None:
        slopes, _ = _slopes(manifest, work, secret_batch(manifest, work))
        total = ExampleSum(manifest, work.random_bytes)
        for example in slopes:
            total.add(example)
        return {"gradient": total.total}
    keys = BitStream(work.random_bytes).uint64(len(work.rows))
    slopes, loss = _slopes(manifest, work, np.argsort(keys)[: training.batch_size])
    mean = slopes.mean(0)
    if not np.isfinite(mean).all():
        raise ContributionError(
            "training-diverged", "The model's losses are not finite near the global model."
        )
    return weighted(manifest, work, mean, loss, "gradient")


def _slopes(
    manifest: Manifest, work: Work, batch: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float]:
    """Central differences per example, float64[examples, K], and the mean loss at the centre."""
    training, adapter = manifest.training, manifest.adapter
    assert training is not None  # noqa: S101
    assert adapter is not None  # noqa: S101
    start = work.adapted.flat()
    slopes = np.zeros((len(batch), training.directions))
    loss = float(_losses(work, batch).mean()) if len(batch) else 0.0
    for number in range(training.directions if len(batch) else 0):
        signs = direction(adapter.seed, work.version, number, work.adapted.length)
        step = training.perturbation * torch.from_numpy(signs).double()
        work.adapted.put(start + step)
        ahead = _losses(work, batch)
        work.adapted.put(start - step)
        slopes[:, number] = (ahead - _losses(work, batch)) / (2 * training.perturbation)
    work.adapted.put(start)
    return slopes, loss


def _losses(work: Work, batch: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Loss of each row of the batch, in the passes of :meth:`Work.micro_batches`."""
    model = work.adapted.model
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            parts = [
                sequence_losses(model, rows, work.pad_token).double().cpu().numpy()
                for rows in work.micro_batches(np.asarray(batch))
            ]
    finally:
        model.train(was_training)
    return np.concatenate(parts)
