"""Integers that come from a peer, by what they count.

Every decoder of messages, manifests, API bodies and tokens refuses what lies outside. So no number
of a peer overflows what is computed with it, or a column of the service's database.
"""

from typing import Annotated

import msgspec

from secagg import limits

INT32_MAX = (1 << 31) - 1  # a column of 32 bits
EXACT_MAX = (1 << 53) - 1  # beyond, JSON readers and float64 lose the last digits
INT63_MAX = (1 << 63) - 1

Index = Annotated[int, msgspec.Meta(ge=0, lt=limits.COHORT_MAX)]  # a place in a roster
PartnerIndex = Annotated[int, msgspec.Meta(ge=0, lt=limits.PARTNERS_MAX)]
ModelIndex = Annotated[int, msgspec.Meta(ge=0, le=limits.VERSIONS_BACK_MAX)]
IndexOrNone = Annotated[int, msgspec.Meta(ge=-1, lt=limits.COHORT_MAX)]  # -1: none
ShareKind = Annotated[int, msgspec.Meta(ge=0, lt=2 + limits.NOISE_LEVELS_MAX)]
KindOrNone = Annotated[int, msgspec.Meta(ge=-1, lt=2 + limits.NOISE_LEVELS_MAX)]  # -1: none
Count = Annotated[int, msgspec.Meta(ge=0, le=INT32_MAX)]  # versions, releases, attempts, devices
Seconds = Annotated[int, msgspec.Meta(ge=0, le=EXACT_MAX)]  # Unix
Size = Annotated[int, msgspec.Meta(ge=0, le=EXACT_MAX)]  # bytes, leaves
Status = Annotated[int, msgspec.Meta(ge=0, lt=1_000)]  # of HTTP; 0: not said
LeafOrNone = Annotated[int, msgspec.Meta(ge=-1, le=EXACT_MAX)]  # -1: none
Units = Annotated[int, msgspec.Meta(ge=0, le=INT63_MAX)]  # of the integer grid, and their squares
