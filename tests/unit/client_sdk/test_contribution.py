"""What a contributor may hand over: the segments of the manifest and no other."""

from __future__ import annotations

import numpy as np
import pytest

from client_sdk.contribution import check_values
from client_sdk.errors import ContributionError
from dp.contracts import BudgetSpec
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
