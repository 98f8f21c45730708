"""Why a training gave nothing of a device's examples: told to its own user, and sent to nobody."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from client_sdk.errors import ContributionError

Given = Literal["zeros", "nothing"]
# What the number, the length or the form of the examples may decide. Where noise hides it, a device
# that stayed away for it would show what its examples are like.
_OF_THE_EXAMPLES = frozenset(
    (
        "contribution-late",
        "training-deadline",
        "training-stopped",
        "dataset-empty",
        "examples-failed",
    )
)


class TrainingFailure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training that gave nothing of the examples.

    Attributes:
        reason: stable, in kebab-case.
        message: for people, with what was expected and found.
        remedy: the way out; None: none is known.
        row: place of an example in the data set, from 0, that failed; None: not of one example.
        tensor: name of a tensor that does not fit; None: not of one tensor.
        version: of the global model; -1: unknown.
        given: ``zeros``: they went out in place of a contribution, under the task's noise, and
            were charged. ``nothing``: the device did not join the round.
    """

    reason: str
    message: str
    remedy: str | None = None
    row: int | None = None
    tensor: str | None = None
    version: int = -1
    given: Given = "nothing"

    @classmethod
    def of(cls, error: ContributionError, version: int, given: Given) -> TrainingFailure:
        """What an error of the contributor's says."""
        return cls(
            reason=error.reason,
            message=error.detail,
            remedy=error.remedy,
            row=error.row,
            tensor=error.tensor,
            version=version,
            given=given,
        )

    @property
    def counts(self) -> bool:
        """Whether it counts among those in a row after which a device stays away."""
        return self.given == "nothing" or self.reason not in _OF_THE_EXAMPLES

    def shown(self) -> dict[str, Any]:
        """Details of an event: ``failure``, the reason, and ``row`` and ``tensor`` where known."""
        named = {"row": self.row, "tensor": self.tensor}
        return {"failure": self.reason} | {k: v for k, v in named.items() if v is not None}

    def __str__(self) -> str:
        return " ".join(filter(None, (f"{self.message} [{self.reason}]", self.remedy)))
