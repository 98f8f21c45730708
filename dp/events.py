"""What was released, as data. An event's meaning never changes; a new meaning is a new event.

Events are built from integers (units of the ring) wherever the mechanism is, so that the cost of a
release can be recomputed from a manifest bit by bit. Only :mod:`dp.accounting` gives them a cost,
and it refuses an event that it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass


class Event:
    """Base of all events."""


@dataclass(frozen=True)
class SkellamRelease(Event):
    """One vector released with independent Skellam noise on every coordinate.

    Attributes:
        l2_squared: exact bound on the squared L2 sensitivity, integer units squared.
        l1: bound on the L1 sensitivity, integer units.
        variance: guaranteed noise variance per coordinate, integer units squared.
    """

    l2_squared: int
    l1: int
    variance: int


@dataclass(frozen=True)
class DiscreteGaussianRelease(Event):
    """One integer vector with independent discrete Gaussian noise, sigma = multiplier * L2."""

    noise_multiplier: float


@dataclass(frozen=True)
class DiscreteGaussianSum(Event):
    """One integer vector with the sum of independent discrete Gaussian shares on every coordinate.

    Attributes:
        l2_squared: exact bound on the squared L2 sensitivity, integer units squared.
        l1: bound on the L1 sensitivity, integer units.
        share: parameter sigma^2 of one share, integer units squared.
        shares: how many shares count.
        length: coordinates.
    """

    l2_squared: int
    l1: int
    share: int
    shares: int
    length: int


@dataclass(frozen=True)
class GaussianRelease(Event):
    """The continuous Gaussian mechanism; for planning and cross-checks, never what devices add."""

    noise_multiplier: float


@dataclass(frozen=True)
class PoissonSampled(Event):
    """``event`` on a batch that every record joins by an independent secret coin of ``rate``."""

    rate: float
    event: Event


@dataclass(frozen=True)
class Composed(Event):
    """Adaptive composition: each event with its count."""

    parts: tuple[tuple[Event, int], ...]
