"""What one device puts into a sum: from a contributor's values to the payload of one cohort.

Before the device reports in, with what is journalled then (:func:`prepared`):

1. check: exactly the manifest's segments, of their shape and type, finite;
2. clip indicator: where the clip adapts and a device is the unit, scale and ``below`` are added.

When the masking set is fixed, for that cohort alone (:func:`encoded`):

3. weigh: FedBuff's weight of a stale update;
4. coin: a device that abstains sends zeros and its noise;
5. encode: clip, noise, integers in the ring.

And of what was sent, clip and rounding included:

6. control variate: what the release will add to the device's own (:func:`control_change`).

Where noise protects the sum, zeros take the place of values that cannot be sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from client_sdk.errors import ContributionError
from dp.contracts.algorithms.fedbuff import staleness_weight
from dp.contracts.algorithms.registry import algorithm_of
from dp.contracts.algorithms.scaffold import control_step
from dp.encoding import decode, encode
from dp.errors import MechanismError
from dp.noise.adaptive_clip import adapts, with_below
from dp.noise.sampling import poisson_batch
from dp.schedule import period_of
from secagg.manifest import Manifest, Segment, training_manifest
from secagg.ring import Lanes
from secagg.secret import Secret


def is_batch_secret(manifest: Manifest) -> bool:
    """Whether the contribution holds a secret Poisson batch (distributed).

    Such a contribution serves at most one cohort that reaches masking: the same batch under two
    draws of noise would cost more than two amplified releases.
    """
    return manifest.example_privacy is not None and manifest.example_privacy.mode == "distributed"


def hides_failures(manifest: Manifest) -> bool:
    """Whether zeros take the place of a contribution that failed.

    Noise in the ring hides them. With a schedule they are sent without it too (local noise): a
    device whose count stood still for a failure would use all later parts in other sums.
    """
    return manifest.noise is not None or period_of(manifest) > 1


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
            remedy="Return a mapping of these names from a plain function: contribute is called in "
            "a thread, without await.",
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
                remedy="Return it in one dimension, as long as the manifest's segment.",
            )
        if array.dtype.kind not in ("iu" if is_batch_secret(manifest) else "iuf"):
            raise ContributionError(
                "contribution-dtype",
                f"Segment {segment.name!r} has the wrong type.",
                expected="integers" if is_batch_secret(manifest) else "real numbers",
                found=str(array.dtype),
                remedy="Return what an ExampleSum has added up."
                if is_batch_secret(manifest)
                else "Return numbers.",
            )
        array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ContributionError(
                "contribution-not-finite",
                f"Segment {segment.name!r} has values that are not finite.",
                expected="finite",
                found=f"{int((~np.isfinite(array)).sum())} of {segment.length} not finite",
                remedy="Look for a division by zero, or a training that diverges.",
            )
        checked[segment.name] = np.ascontiguousarray(array)
    return checked


def prepared(
    manifest: Manifest, values: Mapping[str, np.ndarray], clip: float | None
) -> dict[str, np.ndarray]:
    """Steps 1 and 2: a contributor's values as they are journalled.

    Args:
        clip: of the model's version, where the clip adapts; None: it is fixed.

    Raises:
        ContributionError: as :func:`check_values`.
        MechanismError: ``clip-out-of-range``.
    """
    checked = check_values(manifest, values)
    if clip is None or is_batch_secret(manifest):
        return checked
    return with_below(manifest, checked, clip)


def beyond_clip(
    manifest: Manifest, values: Mapping[str, np.ndarray]
) -> list[tuple[Segment, float]]:
    """Of a task without training, the segments whose L2 norm is above their clip, with the norm.

    There the numbers are the app's own, and :mod:`dp.encoding` shortens them. A trained update, and
    what a clip that adapts is to halve, is meant to be clipped.
    """
    if manifest.training is not None or manifest.clip_adaptation is not None:
        return []
    norms = [
        (segment, float(np.linalg.norm(np.asarray(values[segment.name], np.float64))))
        for segment in manifest.segments
    ]
    return [(segment, norm) for segment, norm in norms if norm > segment.clip]


def weighed(
    manifest: Manifest, values: Mapping[str, np.ndarray], staleness: int
) -> dict[str, np.ndarray]:
    """``values`` with ``delta`` clipped to its segment's bound, then times s(staleness).

    FedBuff's weight of a stale update (Nguyen et al. 2022, section 5), given by the device itself.
    Clipped first and weighed then: the other way round a long update would be scaled into the clip,
    and count in full however stale it is. s <= 1, so what is sent keeps the clip's bound, and the
    encoding's exact integer clip finds nothing to do.

    A ``delta`` that is not finite stays so: what it counts as is the encoding's rule.
    """
    delta = np.asarray(values["delta"], dtype=np.float64)
    peak = float(np.abs(delta).max(initial=0.0))
    if not np.isfinite(peak) or peak == 0:
        return dict(values)
    norm = peak * float(np.linalg.norm(delta / peak))
    clip = next(segment.clip for segment in manifest.segments if segment.name == "delta")
    return {**values, "delta": staleness_weight(staleness) * min(1.0, clip / norm) * delta}


def takes_part(manifest: Manifest, random_bytes: Callable[[int], bytes]) -> bool:
    """The device's secret coin for one cohort; always true where the task has no abstention."""
    privacy = manifest.device_privacy
    rate = privacy.participation_rate if privacy is not None else 1.0
    return len(poisson_batch(1, rate, random_bytes)) == 1


def encoded(
    manifest: Manifest,
    values: Mapping[str, np.ndarray],
    *,
    ctx: bytes,
    staleness: int,
    masking_set_size: int,
    noise_seeds: Sequence[Secret],
    random_bytes: Callable[[int], bytes],
) -> Lanes:
    """Steps 3 to 5: the payload of the cohort ``ctx`` before its mask, lanes[p].

    Args:
        values: as :func:`prepared` gives them.
        staleness: versions between this device's model and the newest of the cohort's.
        masking_set_size: devices that owe a vector in the cohort.
        noise_seeds: of the removable parts of this device's noise, by level.

    Raises:
        MechanismError: the values do not fit, and no noise hides that.
    """
    if algorithm_of(manifest).weighs_staleness:
        values = weighed(manifest, values, staleness)
    if not takes_part(manifest, random_bytes):
        values = zero_contribution(manifest)

    def encode_all(vector: Mapping[str, np.ndarray]) -> Lanes:
        return encode(
            manifest,
            vector,
            rotation_seed=ctx,
            random_bytes=random_bytes,
            masking_set_size=masking_set_size,
            noise_seeds=noise_seeds,
        )

    try:
        return encode_all(values)
    except MechanismError:
        if not hides_failures(manifest):
            raise
    return encode_all(zero_contribution(manifest))


def control_change(
    manifest: Manifest, control: NDArray[np.float64], vector: Lanes, ctx: bytes
) -> NDArray[np.float64]:
    """Step 6: -c - dy / (K eta), float64[d], with dy as it was sent.

    Args:
        control: c of the version that the device trained on, float64[d].
        vector: as :func:`encoded` gives it, for the same ``ctx``.
    """
    sent = decode(manifest, vector, survivors=1, rotation_seed=ctx)["delta"]
    return -control - sent / control_step(training_manifest(manifest).training)
