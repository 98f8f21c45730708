"""What is left to do once the shares are in: expand the masks and take them off the sum.

The sum can be cut by coordinates: every slice is unmasked on its own, on any thread or machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.manifest import Manifest
from secagg.masks import MaskTerm, apply_masks
from secagg.ring import Lanes, centred
from secagg.secret import Secret


@dataclass(frozen=True, eq=False)
class NoiseSeed:
    """The reconstructed seed of one removable part of the noise of the device at roster index
    ``owner``."""

    owner: int
    level: int
    seed: Secret


@dataclass(frozen=True, eq=False)
class UnmaskingPlan:
    """What is left in a partial sum of ``length`` payload coordinates beside the data.

    ``terms`` carry the sign with which each mask has to be *added* to remove it.
    ``noise_seeds``: parts of the noise that the survivors do not need; what is drawn from them is
    known one floor up, so the driver takes it off.
    """

    ring_bits: int
    length: int
    terms: tuple[MaskTerm, ...] = field(repr=False)
    noise_seeds: tuple[NoiseSeed, ...] = ()


def unmask_slice(plan: UnmaskingPlan, partial_sum: Lanes, lo: int, hi: int) -> None:
    """Remove the masks from coordinates ``lo`` to ``hi`` of the partial sum, in place.

    Args:
        partial_sum: lanes of the *whole* payload, ``plan.length`` long. Slices that do not
            overlap may be unmasked at the same time.

    Raises:
        LocalProtocolError: ``opening-slice``.
    """
    if len(partial_sum) != plan.length or not 0 <= lo <= hi <= plan.length:
        raise LocalProtocolError(
            "opening-slice",
            "The slice is not one of this plan's sum.",
            expected=plan.length,
            found=(len(partial_sum), lo, hi),
        )
    apply_masks(partial_sum[lo:hi], plan.terms, plan.ring_bits, lo)


def check_sum(manifest: Manifest, unmasked_payload: Lanes, survivors: int) -> None:
    """Every check coordinate of the unmasked sum shows the number of survivors.

    A mask that did not cancel, or a vector that is not one of this payload, shows here with
    probability 1 - 2^-b per slice.

    Raises:
        RemoteProtocolError: ``check-coordinates``.
    """
    lanes = unmasked_payload[:: manifest.encoding.slice_length + 1]
    checks = centred(lanes, manifest.encoding.ring_bits)
    wrong = np.flatnonzero(checks != survivors)
    if len(wrong):
        raise RemoteProtocolError(
            "check-coordinates",
            f"{len(wrong)} of {len(checks)} check coordinates do not show the number of survivors.",
            expected=survivors,
            found=int(checks[wrong[0]]),
            remedy="The sum is not released; a device sent a wrong vector or a wrong pair seed.",
        )
