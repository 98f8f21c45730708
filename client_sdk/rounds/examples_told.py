"""What a device's own user is told of the examples: how many, left out, cut off. None is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from client_sdk.state.journal import Contribution, StoredCut, StoredLeftOut
from client_sdk.training.dataset import Cut, LeftOut
from dp.schedule import period_of, places_served
from secagg.manifest import Manifest


@dataclass
class ExamplesTold:
    """Of all jobs of a run so far.

    Attributes:
        examples: places of the data set; None: nobody said.
        left_out: those that counted as zero, by place.
        cut: those that counted, but not whole, by place.
        owned: how many named a unit, in a task that protects each example by itself.
    """

    examples: int | None = None
    left_out: dict[int, LeftOut] = field(default_factory=dict)
    cut: dict[int, Cut] = field(default_factory=dict)
    owned: int = 0

    @classmethod
    def of_contributor(cls, contributor: object) -> ExamplesTold:
        """What a contributor says of its last job; what is not of the right type is nothing."""
        examples = _count(getattr(contributor, "examples", None))
        left_out = _of_type(LeftOut, getattr(contributor, "left_out", ()))
        cut = _of_type(Cut, getattr(contributor, "cut", ()))
        return cls(
            examples,
            {one.index: one for one in left_out},
            {one.index: one for one in cut},
            _count(getattr(contributor, "owned", None)) or 0,
        )

    @classmethod
    def of_contribution(cls, contribution: Contribution) -> ExamplesTold:
        """What was journalled with it."""
        return cls(
            contribution.examples if contribution.examples >= 0 else None,
            {
                one.index: LeftOut(one.index, one.reason, one.sentence)
                for one in contribution.left_out
            },
            {one.index: Cut(one.index, one.tokens, one.limit) for one in contribution.cut},
            contribution.owned,
        )

    def with_turnless(self, manifest: Manifest) -> ExamplesTold:
        """With the examples beyond the places that a task's schedule gives a turn to.

        Where it protects persons or documents, the places are theirs, and the contributor says it
        (:func:`client_sdk.training.units.without_turn`).
        """
        served, privacy = places_served(manifest), manifest.example_privacy
        if privacy is not None and privacy.protects != "example":
            return self
        if self.examples is None or served is None or self.examples <= served:
            return self
        period = period_of(manifest)
        sentence = (
            f"It has no turn: of each device the first {served} examples serve in this task "
            f"(period {period}, {served // period} in one sum). Take part with it in another task, "
            "or ask the operator for one with a larger examples_max or period."
        )
        turnless = {
            index: LeftOut(index, "example-without-turn", sentence)
            for index in range(served, self.examples)
            if index not in self.left_out
        }
        cut = {index: one for index, one in self.cut.items() if index < served}
        return replace(self, left_out=self.left_out | turnless, cut=cut)

    def stored_in(self, contribution: Contribution) -> Contribution:
        return msgspec.structs.replace(
            contribution,
            left_out=tuple(
                StoredLeftOut(index=one.index, reason=one.reason, sentence=one.sentence)
                for one in self.left_out.values()
            ),
            cut=tuple(
                StoredCut(index=one.index, tokens=one.tokens, limit=one.limit)
                for one in self.cut.values()
            ),
            examples=-1 if self.examples is None else self.examples,
            owned=self.owned,
        )

    def add(self, other: ExamplesTold) -> None:
        if other.examples is not None:
            self.examples = other.examples
        self.owned = max(self.owned, other.owned)
        self.left_out |= other.left_out
        self.cut |= other.cut


def _count(told: object) -> int | None:
    return told if type(told) is int and told >= 0 else None


def _of_type(kind: type[Any], told: object) -> list[Any]:
    return [one for one in told if type(one) is kind] if isinstance(told, Sequence) else []
