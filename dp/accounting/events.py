"""What was released, as data. An event's meaning never changes; a new meaning is a new event.

Events are built from integers (units of the ring) wherever the mechanism is, so that the cost of a
release can be recomputed from a manifest bit by bit. Only :mod:`dp.accounting.statements` gives
them a cost, and it refuses an event that it does not know.

Every sensitivity is one between neighbours, and what makes two data sets neighbours is part of the
event: costs under different adjacencies do not add up to a statement under either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dp.errors import AccountingError

Adjacency = Literal["add-or-remove", "zero-out", "replace-one"]
"""What differs between neighbours: a record more or less; a unit whose contribution is all zeros
(it still adds its noise); a record exchanged for another, which moves a sum by twice as much."""


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
    adjacency: Adjacency = "add-or-remove"


@dataclass(frozen=True)
class DiscreteGaussianRelease(Event):
    """One integer vector with independent discrete Gaussian noise, sigma = multiplier * L2."""

    noise_multiplier: float
    adjacency: Adjacency = "add-or-remove"


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
    adjacency: Adjacency = "add-or-remove"


@dataclass(frozen=True)
class GaussianRelease(Event):
    """The continuous Gaussian mechanism; for planning and cross-checks, never what devices add."""

    noise_multiplier: float
    adjacency: Adjacency = "add-or-remove"


@dataclass(frozen=True)
class NonPrivateRelease(Event):
    """A release without noise that protects the unit: no epsilon bounds what it shows."""

    adjacency: Adjacency = "add-or-remove"


@dataclass(frozen=True)
class PoissonSampled(Event):
    """``event`` on a batch that every record joins by an independent secret coin of ``rate``.

    ``event``: one sum with additive noise. Whoever is not in the batch is, to it, a record less or
    a unit of zeros: the two adjacencies for which the accounting of sampling holds.
    """

    rate: float
    event: Event


@dataclass(frozen=True)
class PoissonReplaced(Event):
    """``PoissonSampled(rate, event)`` between neighbours of which one record is exchanged.

    The record keeps its coin. ``event``: what a record in the batch, more or less, moves.
    """

    rate: float
    event: Event


@dataclass(frozen=True)
class Composed(Event):
    """Adaptive composition: each event with its count."""

    parts: tuple[tuple[Event, int], ...]


@dataclass(frozen=True)
class Scheduled(Event):
    """Adaptive composition in which one record takes part in at most ``most`` events.

    Which ones is not known, and may follow from the outputs before (docs/privacy.md, "Scheduled
    batches"). ``parts``: each event with its count.
    """

    parts: tuple[tuple[Event, int], ...]
    most: int


def composed(counts: Mapping[Event, int]) -> Composed:
    """The composition of each event as often as it is counted."""
    return Composed(tuple(sorted(counts.items(), key=lambda item: repr(item[0]))))


def scheduled(counts: Mapping[Event, int], most: int) -> Mapping[Event, int]:
    """What to compose where a record is in at most ``most`` of the counted events.

    Of equal events it is ``most`` of them, and of different ones the dearest: :class:`Scheduled`.
    """
    total = sum(counts.values())
    if most >= total:
        return counts
    if len(counts) == 1:
        return dict.fromkeys(counts, most)
    return {Scheduled(composed(counts).parts, most): 1}


def adjacency_of(event: Event) -> Adjacency | None:
    """What the event's sensitivities are between; None for a composition of nothing.

    Raises:
        AccountingError: ``adjacency-mixed``; ``event-unknown`` for one that names none.
    """
    match event:
        case PoissonSampled(_, inner):
            return adjacency_of(inner)
        case PoissonReplaced(_, inner):
            return "replace-one" if adjacency_of(inner) else None
        case Composed(parts) | Scheduled(parts):
            found = {adjacency_of(part) for part, count in parts if count} - {None}
            if len(found) > 1:
                raise AccountingError(
                    "adjacency-mixed",
                    "Costs under different adjacencies do not compose.",
                    found=sorted(map(str, found)),
                    remedy="Account for each adjacency by itself.",
                )
            return next(iter(found), None)
        case (
            SkellamRelease()
            | DiscreteGaussianSum()
            | DiscreteGaussianRelease()
            | GaussianRelease()
            | NonPrivateRelease()
        ):
            return event.adjacency
        case _:
            raise AccountingError(
                "event-unknown",
                "No accountant can vouch for this event.",
                found=type(event).__name__,
            )


def replace_one(event: Event) -> Event:
    """``event`` between neighbours of which one record is exchanged: twice the sensitivity.

    One exchange is one removal and one addition, so L1 and L2 at most double (triangle inequality).

    Raises:
        AccountingError: ``adjacency-unaccounted``, ``event-unknown``.
    """
    if adjacency_of(event) == "replace-one":
        return event
    match event:
        case SkellamRelease(l2, l1, variance):
            return SkellamRelease(4 * l2, 2 * l1, variance, "replace-one")
        case DiscreteGaussianSum(l2, l1, share, shares, length):
            return DiscreteGaussianSum(4 * l2, 2 * l1, share, shares, length, "replace-one")
        case DiscreteGaussianRelease(z):
            return DiscreteGaussianRelease(z / 2, "replace-one")
        case GaussianRelease(z):
            return GaussianRelease(z / 2, "replace-one")
        case NonPrivateRelease():
            return NonPrivateRelease("replace-one")
        case PoissonSampled(rate, inner):
            return PoissonReplaced(rate, inner)
        case Composed(parts):
            return Composed(tuple((replace_one(part), count) for part, count in parts))
        case Scheduled(parts, most):
            return Scheduled(tuple((replace_one(part), count) for part, count in parts), most)
        case _:
            raise AccountingError(
                "adjacency-unaccounted",
                "Nobody here accounts for such an event under replace-one.",
                found=type(event).__name__,
            )
