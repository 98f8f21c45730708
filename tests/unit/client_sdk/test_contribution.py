"""What a contributor may hand over: the segments of the manifest and no other."""

from __future__ import annotations

import numpy as np
import pytest

from client_sdk.contribution import check_memory, check_values
from client_sdk.errors import ContributionError, PolicyRefusal
from dp.contracts import BudgetSpec
from secagg.manifest import Manifest
from tests.kits.tasks import built

NO_LIMIT = BudgetSpec(max_epsilon=None)


@pytest.mark.parametrize("extra", ["loss", "examples", "weight"])
@pytest.mark.parametrize("privacy", ["distributed", "local"])
def test_a_contributor_that_adds_a_figure_sends_none(privacy: str, extra: str) -> None:
    manifest = built(
        algorithm="fedsgd" if privacy == "distributed" else "fedavg",
        privacy=privacy,
        budget=NO_LIMIT,
    )
    (segment,) = manifest.segments
    values = {segment.name: np.zeros(segment.length, np.int64)}
    assert set(check_values(manifest, values)) == {segment.name}
    with pytest.raises(ContributionError) as caught:
        check_values(manifest, {**values, extra: np.array([7])})
    assert caught.value.reason == "contribution-segments"


class Says:
    def __init__(self, needed: int | None) -> None:
        self.needed = needed

    def memory_bytes(self, manifest: Manifest) -> int | None:
        return self.needed


@pytest.mark.parametrize("contributor", [object(), Says(None)])
def test_under_a_limit_a_contributor_says_what_memory_it_needs(contributor: object) -> None:
    manifest = built()
    check_memory(manifest, contributor, None)
    with pytest.raises(PolicyRefusal) as caught:
        check_memory(manifest, contributor, 1 << 30)
    assert caught.value.reason == "memory-undeclared"


def test_a_contributor_that_needs_too_much_memory_is_refused() -> None:
    check_memory(built(), Says(100), 100)
    with pytest.raises(PolicyRefusal) as caught:
        check_memory(built(), Says(101), 100)
    error = caught.value
    assert (error.reason, error.expected, error.found) == ("memory-too-large", "at most 100", 101)
