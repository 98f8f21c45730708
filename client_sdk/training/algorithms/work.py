"""What an algorithm gets for one round: the adapted model, the rows, the coins and the clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from client_sdk.errors import ContributionError
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.dataset import LeftOut, together_or_apart, told
from client_sdk.training.examples import Row
from client_sdk.training.gradients import ExampleGradients, Method
from client_sdk.training.self_test import TESTED_TOKENS_MAX
from secagg.manifest import TrainingManifest

_T = TypeVar("_T")


@dataclass(frozen=True)
class Work:
    """One round's means; the adapter holds the global model when an algorithm starts.

    Attributes:
        rows: the device's conversations as tokens, each at its place in the data set; those that
            could not be encoded are empty.
        micro_batch: most rows in one pass.
        deadline_s: on ``clock``; None without a limit.
        stopped: whether the result is no longer wanted.
        version: of the global model; public seeds and phases follow from it.
        correction: SCAFFOLD's c - c_k, float64[d]; None elsewhere.
        clip: of the global model's version, where the clip adapts; None: the manifest's.
        part: places of the rows that serve in this round, rising; None: all.
        left_out: by place, the examples that count as zero: the empty ones, and those that raise
            or are not finite in this round.
    """

    adapted: AdaptedModel
    rows: Sequence[Row]
    pad_token: int
    micro_batch: int
    method: Method
    random_bytes: Callable[[int], bytes]
    clock: Callable[[], float]
    deadline_s: float | None
    stopped: Callable[[], bool]
    version: int = 0
    correction: NDArray[np.float64] | None = None
    clip: float | None = None
    part: NDArray[np.int64] | None = None
    left_out: dict[int, LeftOut] = field(default_factory=dict)

    @property
    def places(self) -> NDArray[np.int64]:
        """Places of the rows that serve, empty ones too."""
        return np.arange(len(self.rows)) if self.part is None else self.part

    @property
    def usable(self) -> NDArray[np.int64]:
        """Places of the rows that serve and are not empty."""
        return np.array([i for i in self.places if self.rows[i].tokens], np.int64)

    def present(self, indices: NDArray[np.int64]) -> list[Row]:
        """The rows at ``indices`` that are not empty, by length, so that passes are even."""
        chosen = [self.rows[int(i)] for i in indices]
        return sorted((row for row in chosen if row.tokens), key=lambda row: len(row.tokens))

    def leave_out(self, row: Row, error: BaseException) -> None:
        self.left_out[row.index] = told(row.index, error)

    def apart(
        self, rows: Sequence[Row], compute: Callable[[Sequence[Row]], _T]
    ) -> list[tuple[Sequence[Row], _T]]:
        """``compute`` of all rows at once; if that raises, of each alone, without those that raise.

        Raises:
            ContributionError: ``training-deadline``, ``training-stopped``.
        """
        return together_or_apart(rows, compute, self.leave_out, self.check_time)

    def gradients(self) -> ExampleGradients:
        return ExampleGradients(
            self.adapted.model,
            self.adapted.parameters,
            pad_token=self.pad_token,
            method=self.method,
            length=self.adapted.length,
            failed=self.leave_out,
            check_time=self.check_time,
        )

    def micro_batches(
        self, indices: NDArray[np.int64], *, alone: bool = False
    ) -> Iterator[list[Row]]:
        """The rows of :meth:`present` in passes; checks the time before each.

        One row in each if ``alone``, for the method ``loop``, for mixtures of experts, and where a
        row is longer than those of the self-test.

        Raises:
            ContributionError: ``training-deadline``, ``training-stopped``.
        """
        chosen = self.present(indices)
        size = rows_per_pass(self.adapted, self.method, self.micro_batch, alone=alone)
        tested = sum(len(row.tokens) <= TESTED_TOKENS_MAX for row in chosen)  # the first ones
        starts = [*range(0, tested, size), *range(tested, len(chosen))]
        for start, end in itertools.pairwise([*starts, len(chosen)]):
            self.check_time()
            yield chosen[start:end]

    def check_time(self) -> None:
        if self.stopped():
            raise ContributionError("training-stopped", "The result is no longer wanted.")
        if self.deadline_s is not None and self.clock() >= self.deadline_s:
            raise ContributionError(
                "training-deadline",
                "Training would not end in time.",
                remedy="Use fewer examples, a smaller sampling rate, or a longer deadline.",
            )


def rows_per_pass(
    adapted: AdaptedModel, method: Method, micro_batch: int, *, alone: bool = False
) -> int:
    """Most rows that share a pass; 1 where no float of one row may touch another's."""
    return 1 if alone or method == "loop" or adapted.mixture else micro_batch


Algorithm = Callable[[TrainingManifest, Work], Mapping[str, NDArray[Any]]]


def weighted(
    manifest: TrainingManifest,
    work: Work,
    update: NDArray[np.float64],
    loss: float,
    name: str = "delta",
) -> dict[str, NDArray[Any]]:
    """``{name: update}`` where a privacy mode is on; else weighted, with ``weight`` and ``loss``.

    The hidden weight w is min(examples / weight_unit, 1); w * update, w and w * loss are sent.
    Examples that were left out claim no weight.
    """
    training = manifest.training
    if len(manifest.segments) == 1:
        return {name: update}
    examples = len(work.rows) - len(work.left_out)
    weight = min(examples / training.weight_unit, 1.0) if training.weight_unit else 1.0
    return {name: weight * update, "weight": np.array([weight]), "loss": np.array([weight * loss])}
