"""What every algorithm declares: its default mode, its segments and its exclusions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import Manifest


class Algorithm(Protocol):
    """A declaration in one file of ``dp.contracts``.

    ``default_privacy``: example-level mode where the spec names none.

    A declaration may have ``suggested``, a mapping of fields of ``TrainingSpec``: what to start
    from where the spec's own defaults would teach nothing (``secagg demo`` uses it).
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


def suggested_terms(algorithm: Algorithm) -> Mapping[str, Any]:
    """Fields of ``TrainingSpec`` that the declaration suggests; empty where it has none."""
    terms: Mapping[str, Any] = getattr(algorithm, "suggested", {})
    return terms
