"""What an app gives to a round: the contributor, and its job.

A contributor is any object with ``contribute(job)``; ``LoraTrainer`` is one, an app that sums
statistics with numpy alone writes its own in five lines. It runs in a thread of its own, one call
at a time. What its values become is ``client_sdk.payload``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from client_sdk.errors import PolicyRefusal
from client_sdk.payload import check_values, zero_contribution
from secagg.manifest import Manifest

__all__ = ["Contributor", "TrainingJob", "check_contributor", "check_values", "zero_contribution"]


@dataclass(frozen=True)
class TrainingJob:
    """One round's work.

    Attributes:
        manifest: the signed task manifest, already admitted by the device's policy.
        version: version number of the global model.
        vector: float32, read-only: the global adapter's change from its initialisation (empty
            for tasks without a model).
        releases: releases of the task so far, i.e. the step number of the global optimiser.
        correction: float64, with SCAFFOLD c - c_k: to be added to the gradient of every local step,
            after clip and noise. None elsewhere.
        clip: of this version, where the clip adapts; an ``ExampleSum`` needs it. None: it is fixed.
        deadline_s: seconds from now after which the result is ignored; None without a limit.
        stop: set when the result is no longer wanted; long work should look at it now and then.
    """

    manifest: Manifest
    version: int
    vector: np.ndarray
    releases: int
    deadline_s: float | None = None
    correction: np.ndarray | None = None
    clip: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)


class Contributor(Protocol):
    """The app's side of a round.

    What each mode rests on: device-level noise and the noise of distributed sums are the SDK's,
    whatever the contributor is. With distributed noise the contributor clips each example
    (``ExampleSum`` does). With local noise (``local``) the contributor clips and adds the noise,
    before the SDK sees a value, and only one that says so is let into such a task: with the
    attribute ``adds_local_noise = True``, which is its word that in such a task every step of
    ``contribute`` adds the manifest's noise.

    A contributor may have, of the last job and for the device's user alone: ``left_out``
    (:class:`client_sdk.training.dataset.LeftOut`), the examples that counted as zero; ``cut``
    (:class:`client_sdk.training.dataset.Cut`), those that counted, but not whole; ``examples``, the
    places of the data set. What one example raises must not leave ``contribute`` with distributed
    noise: the whole batch would count as zero, and no clip bounds that.
    """

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        """Values by segment name, each one-dimensional with the segment's length.

        Floats in real units; with distributed noise ``gradient`` is the int64 total of an
        ``ExampleSum``, whose
        ``values()`` have ``below`` too where the clip adapts (with device-level privacy alone the
        SDK adds it). May block. An exception means that the contribution failed: where noise
        protects the sum the device then sends zero plus noise, so that failure tells nothing;
        elsewhere it does not join the round. A ``TaskRefusal`` ends the run instead, before an
        advert: it says that the task cannot be served, whatever the data.
        """
        ...


def check_contributor(manifest: Manifest, contributor: object) -> None:
    """Refuse a contributor that does not say that it adds the noise which the task counts on.

    Raises:
        PolicyRefusal: ``local-noise-undeclared``.
    """
    privacy = manifest.example_privacy
    if privacy is None or privacy.mode != "local":
        return
    declared = getattr(contributor, "adds_local_noise", False)
    if declared is not True:
        raise PolicyRefusal(
            "local-noise-undeclared",
            "In this task each device adds its own noise to every local step, and this contributor "
            "does not declare that it does.",
            expected="adds_local_noise = True",
            found=declared,
            remedy="Use LoraTrainer, which adds it; or add the manifest's noise in contribute() "
            "and declare it; or take part in a task whose noise is added with the mask "
            "(privacy = 'distributed').",
        )
