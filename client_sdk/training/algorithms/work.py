"""What an algorithm gets for one round: the adapted model, the rows, the coins and the clock."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from client_sdk.errors import ContributionError
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.algorithms.passes import Passes
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
        groups: rows that are one unit of protection, by the unit's place; None: each by itself.
        part: places of the units that serve in this round, rising; None: all.
        left_out: by place, the examples that count as zero: the empty ones, and those that raise
            or are not finite in this round.
        passes: counts the rows of :meth:`micro_batches`.
        tried: places of those rows.
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
    groups: Sequence[tuple[int, ...]] | None = None
    tried: set[int] = field(default_factory=set)
    passes: Passes = field(default_factory=Passes)

    @property
    def places(self) -> NDArray[np.int64]:
        """Places of the units that serve, empty ones too."""
        if self.part is not None:
            return self.part
        return np.arange(len(self.rows if self.groups is None else self.groups))

    @property
    def usable(self) -> NDArray[np.int64]:
        """Places of the units that serve and have a row that is not empty."""
        return np.array([place for place in self.places if self._rows_of(place)], np.int64)

    def present(self, places: NDArray[np.int64]) -> list[Row]:
        """The rows of these units that are not empty: those of a unit together, else by length, so
        that passes are even."""
        groups = sorted(map(self._rows_of, places), key=lambda rows: [len(r.tokens) for r in rows])
        return [row for rows in groups for row in rows]

    def _rows_of(self, place: int) -> list[Row]:
        """Of one unit, the longest first."""
        group = (place,) if self.groups is None else self.groups[place]
        found = [self.rows[row] for row in group if self.rows[row].tokens]
        return sorted(found, key=lambda row: -len(row.tokens))

    @cached_property
    def _unit_of(self) -> dict[int, int]:
        """The unit's place, by the row's."""
        groups = [(row,) for row in range(len(self.rows))] if self.groups is None else self.groups
        return {row: place for place, group in enumerate(groups) for row in group}

    def unit_sums(self, computed: Iterable[tuple[Row, NDArray[Any]]]) -> Iterator[NDArray[Any]]:
        """What is clipped as one: the sum over each unit's rows, which come in the order of
        :meth:`present`.

        Of a unit of one row its own vector; of several their sum as float64.
        """
        for _, unit in itertools.groupby(computed, lambda each: self._unit_of[each[0].index]):
            first, *others = (vector for _, vector in unit)
            yield sum((other.astype(np.float64) for other in others), first)

    def unit_gradients(
        self, gradients: ExampleGradients, batch: NDArray[np.int64]
    ) -> Iterator[NDArray[Any]]:
        """The gradient of each unit in ``batch``, float[d]; rows that fail count as zero.

        Raises:
            ContributionError: as :meth:`micro_batches`.
        """

        def computed() -> Iterator[tuple[Row, NDArray[Any]]]:
            for rows in self.micro_batches(batch):
                counted = torch.isfinite(gradients.run(rows)).cpu()
                kept = itertools.compress(rows, counted.tolist())
                yield from zip(kept, gradients.flat()[counted].numpy(), strict=True)

        return self.unit_sums(computed())

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
        self, places: NDArray[np.int64], *, alone: bool = False
    ) -> Iterator[list[Row]]:
        """The rows of :meth:`present` in passes; checks the time before each.

        One row in each if ``alone``, for the method ``loop``, for mixtures of experts, and where a
        row is longer than those of the self-test.

        Raises:
            ContributionError: ``training-deadline``, ``training-stopped``.
        """
        size = rows_per_pass(self.adapted, self.method, self.micro_batch, alone=alone)
        chosen = self.present(places)
        self.passes.begin(len(chosen))
        for tested, run in itertools.groupby(chosen, lambda r: len(r.tokens) <= TESTED_TOKENS_MAX):
            rows, most = list(run), size if tested else 1
            for start in range(0, len(rows), most):
                self.check_time()
                part = rows[start : start + most]
                self.tried.update(row.index for row in part)
                yield part
                self.passes.passed(len(part))

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
