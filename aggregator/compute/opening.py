"""What is taken off a partial sum, cut into slices of coordinates that know nothing of each other.

Every pool runs :func:`take_off` on the slices of :meth:`Opening.cut`, so all give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dp.noise.removable import RemovablePart, remove_parts
from secagg.limits import SLICE_LENGTH
from secagg.masks import MaskTerm, apply_masks
from secagg.ring import Lanes

_NOISE_STRIDE = SLICE_LENGTH + 1  # payload coordinates that one draw of a part covers


@dataclass(frozen=True, eq=False)
class Opening:
    """``terms``: masks with the sign with which they are added. ``parts``: noise that nobody
    needs."""

    ring_bits: int
    terms: tuple[MaskTerm, ...] = field(repr=False)
    parts: tuple[RemovablePart, ...] = field(repr=False, default=())

    def cut(self, length: int, coordinates: int) -> list[tuple[int, int]]:
        """(first, end) of the slices of a payload of ``length`` coordinates: ``coordinates`` each,
        or one draw of noise each where noise is taken off."""
        step = _NOISE_STRIDE if self.parts else coordinates
        return [(lo, min(lo + step, length)) for lo in range(0, length, step)]


def take_off(opening: Opening, lanes: Lanes, lo: int) -> float:
    """Take masks and noise off one slice, in place.

    Args:
        lanes: payload coordinates ``lo``, ``lo`` + 1, ...; a slice of :meth:`Opening.cut`.

    Returns:
        The scalar product of the noise with what is left, as
        :func:`dp.noise.removable.remove_parts`.
    """
    apply_masks(lanes, opening.terms, opening.ring_bits, lo)
    if not opening.parts:
        return 0.0
    first = lo // _NOISE_STRIDE
    return remove_parts(lanes, opening.parts, opening.ring_bits, 0, len(lanes), first=first)
