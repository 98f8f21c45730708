"""What every algorithm declares: its default mode, its segments and its exclusions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import Manifest


class Algorithm(Protocol):
    """A declaration in one file of ``dp.contracts``.

    ``default_privacy``: example-level mode where the spec names none.

    A declaration may also have ``suggested(privacy, population)``: see :class:`Suggesting`.
    """

    default_privacy: str

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        """The segments of a task; ``length`` is the adapter's, ``noisy`` means modes A, B, C."""
        ...

    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        """The public constant that the sum is divided by, where the spec names none."""
        ...

    def check(self, manifest: Manifest) -> None:
        """Refuse what this algorithm excludes: ConfigurationError."""
        ...


@runtime_checkable
class Suggesting(Protocol):
    """A declaration that knows terms to start from where the spec's own would teach nothing."""

    def suggested(self, privacy: str, population: int) -> Mapping[str, Any]:
        """Fields of ``TrainingSpec`` in an example-level mode, for so many enrolled devices."""
        ...
