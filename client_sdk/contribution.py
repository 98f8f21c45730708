"""What an app gives to a round: the contributor, its job, and the shape that its values must have.

A contributor is any object with ``contribute(job)``; ``LoraTrainer`` is one, an app that sums
statistics with numpy alone writes its own in five lines. It runs in a thread of its own, one call
at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from client_sdk.errors import ContributionError, PolicyRefusal
from dp.adaptive import adapts
from dp.sampling import poisson_batch
from secagg.manifest import Manifest


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

    What each mode rests on: device-level noise and the noise of mode C are the SDK's, whatever the
    contributor is. In mode C the contributor clips each example (``ExampleSum`` does). In mode A
    (``local``) the contributor clips and adds the noise, before the SDK sees a value, and only one
    that says so is let into such a task: with the attribute ``adds_local_noise = True``, which is
    its word that in such a task every step of ``contribute`` adds the manifest's noise.

    A contributor may have ``left_out``, :class:`client_sdk.rows.LeftOut` of the last job: the
    examples that counted as zero, for the device's user. What one example raises must not leave
    ``contribute`` in mode C: the whole batch would count as zero, and no clip bounds that.
    """

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        """Values by segment name, each one-dimensional with the segment's length.

        Floats in real units; in mode C ``gradient`` is the int64 total of an ``ExampleSum``, whose
        ``values()`` have ``below`` too where the clip adapts (with device-level privacy alone the
        SDK adds it). May block. An exception means that the contribution failed: where noise
        protects the sum the device then sends zero plus noise, so that failure tells nothing;
        elsewhere it does not join the round. A ``TaskRefusal`` ends the run instead, before an
        advert: it says that the task cannot be served, whatever the data.
        """
        ...


def is_batch_secret(manifest: Manifest) -> bool:
    """Whether the contribution holds a secret Poisson batch (mode C).

    Such a contribution serves at most one cohort that reaches masking: the same batch under two
    draws of noise would cost more than two amplified releases.
    """
    return manifest.example_privacy is not None and manifest.example_privacy.mode == "distributed"


def hides_failures(manifest: Manifest) -> bool:
    """Whether a failed contribution is replaced by zero plus noise (modes B and C)."""
    return manifest.noise is not None


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


def takes_part(manifest: Manifest, random_bytes: Callable[[int], bytes]) -> bool:
    """The device's secret coin for one cohort; always true where the task has no abstention."""
    privacy = manifest.device_privacy
    rate = privacy.participation_rate if privacy is not None else 1.0
    return len(poisson_batch(1, rate, random_bytes)) == 1


def zero_contribution(manifest: Manifest) -> dict[str, np.ndarray]:
    """What a device sends in place of a failed contribution; only noise is added to it."""
    return {
        segment.name: np.zeros(
            segment.length,
            np.int64 if is_batch_secret(manifest) or adapts(manifest, segment) else np.float64,
        )
        for segment in manifest.segments
    }


def check_values(manifest: Manifest, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values as contiguous arrays, in the order of the segments.

    Where the clip adapts and a device is the unit, ``below`` is not the contributor's to give.

    Floats of any width become float64; integers become int64.

    Raises:
        ContributionError: reason ``contribution-segments``, ``contribution-shape``,
            ``contribution-dtype`` or ``contribution-not-finite``.
    """
    own = manifest.segments
    if manifest.clip_adaptation is not None and not is_batch_secret(manifest):
        own = own[:1]
    expected = [segment.name for segment in own]
    if not isinstance(values, Mapping) or set(values) != set(expected):
        raise ContributionError(
            "contribution-segments",
            "The contribution must have exactly the manifest's segments.",
            expected=expected,
            found=sorted(values) if isinstance(values, Mapping) else type(values).__name__,
        )
    checked = {}
    for segment in own:
        array = np.asarray(values[segment.name])
        if array.shape != (segment.length,):
            raise ContributionError(
                "contribution-shape",
                f"Segment {segment.name!r} has the wrong shape.",
                expected=(segment.length,),
                found=array.shape,
            )
        if array.dtype.kind not in ("iu" if is_batch_secret(manifest) else "iuf"):
            raise ContributionError(
                "contribution-dtype",
                f"Segment {segment.name!r} has the wrong type.",
                expected="integers" if is_batch_secret(manifest) else "real numbers",
                found=str(array.dtype),
            )
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ContributionError(
                "contribution-not-finite",
                f"Segment {segment.name!r} has values that are not finite.",
                expected="finite",
                found=f"{int((~np.isfinite(array)).sum())} of {segment.length} not finite",
            )
        checked[segment.name] = np.ascontiguousarray(array)
    return checked
