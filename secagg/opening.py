"""What is left to do once the shares are in: expand the masks and take them off the sum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secagg.masks import MaskTerm


@dataclass(frozen=True)
class OpeningPlan:
    """The masks that are left in a partial sum of ``length`` payload coordinates.

    ``terms`` carry the sign with which each mask has to be *added* to remove it.
    """

    ring_bits: int
    length: int
    terms: tuple[MaskTerm, ...] = field(repr=False)
