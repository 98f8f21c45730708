"""What protects a contribution: noise in the ring, noise of the device's own, or nothing."""

from __future__ import annotations

from typing import Literal

from dp.contracts.algorithms.registry import algorithm_of
from secagg.manifest import Manifest

PrivacyMode = Literal["distributed", "local", "none"]
ANY_MODE: frozenset[PrivacyMode] = frozenset(("distributed", "local", "none"))


def privacy_modes(manifest: Manifest) -> frozenset[PrivacyMode]:
    """What protects a contribution: noise in the ring, noise of the device's own, or nothing."""
    modes: set[PrivacyMode] = set()
    if manifest.noise is not None:
        modes.add("distributed")
    if manifest.example_privacy is not None and manifest.example_privacy.mode == "local":
        modes.add("local")
    return frozenset(modes or {"none"})


def repeats(manifest: Manifest) -> bool:
    """Whether contributions are functions of the data alone, with no noise in the ring over them.

    A model that moves makes a trained update another one from release to release; a statistic or an
    evaluation of the same data stays what it was.
    """
    return manifest.noise is None and not algorithm_of(manifest).moves_model
